//! `understudy log` on a log of gigabytes, against reading its files in the same run.

use crate::Settings;
use crate::measure::Measures;
use crate::synthetic_log;
use anyhow::{Context, Result, ensure};
use rig::lab::Lab;
use rig::programs::checkout;
use rig::wait::now;
use rustix::fs::{Advice, fadvise};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use wait4::Wait4 as _;

const LOG_BYTES: u64 = 2 << 30;

/// Runs of each; the best counts, since whatever else the machine does only makes them slower.
const RUNS: usize = 3;

/// Where the log is, and what of it is in memory before each run.
#[derive(Clone, Copy)]
enum Place {
    /// All of it: reading is copying.
    Memory,
    /// Nothing: reading is the disk's.
    Disk,
}

impl Place {
    /// Names of the measures: reading, `stat` and `ls` as a part of its speed.
    const fn names(self) -> [&'static str; 3] {
        match self {
            Self::Memory => [
                "log_read_gb_s",
                "log_stat_speed_ratio",
                "log_ls_speed_ratio",
            ],
            Self::Disk => [
                "log_read_disk_gb_s",
                "log_stat_disk_speed_ratio",
                "log_ls_disk_speed_ratio",
            ],
        }
    }

    fn before_run(self, log: &Path) -> Result<()> {
        match self {
            Self::Memory => Ok(()),
            Self::Disk => forget(log),
        }
    }
}

pub(crate) fn measure(lab: &mut Lab, _: &Settings, measures: &mut Measures) -> Result<()> {
    let places = [
        (Place::Memory, lab.run_dir().join("synthetic-log")),
        (Place::Disk, checkout()?.join("target/rig/synthetic-log")),
    ];
    let mut memory_mib: f64 = 0.0;
    for (place, log) in places {
        let _ = fs::remove_dir_all(&log);
        let measured = compare(lab.arbiter.program(), place, &log, measures);
        // Whatever came of it: gigabytes.
        let _ = fs::remove_dir_all(&log);
        memory_mib = memory_mib.max(measured?);
    }
    measures.add("log_memory_mib", memory_mib, "MiB");
    Ok(())
}

/// The most memory that a run had, MiB.
fn compare(program: &Path, place: Place, log: &Path, measures: &mut Measures) -> Result<f64> {
    fs::create_dir_all(log)?;
    synthetic_log::write(log, LOG_BYTES)?;
    let mut best = [f64::INFINITY; 3];
    let mut memory_mib: f64 = 0.0;
    for _ in 0..RUNS {
        place.before_run(log)?;
        best[0] = best[0].min(read(log)?);
        for (number, command) in ["stat", "ls"].into_iter().enumerate() {
            place.before_run(log)?;
            let (seconds, mib) = run(program, command, log)?;
            best[number + 1] = best[number + 1].min(seconds);
            memory_mib = memory_mib.max(mib);
        }
    }
    let ([read, stat, ls], names) = (best, place.names());
    measures.add(names[0], LOG_BYTES as f64 / 1e9 / read, "GB/s");
    measures.add(names[1], read / stat, "");
    measures.add(names[2], read / ls, "");
    Ok(memory_mib)
}

/// Has the kernel drop what it holds of the files of `log`.
fn forget(log: &Path) -> Result<()> {
    for entry in fs::read_dir(log)? {
        let file = File::open(entry?.path())?;
        // What is not on the disk yet cannot be dropped.
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

/// Seconds to read all files of `log`.
fn read(log: &Path) -> Result<f64> {
    let mut buffer = vec![0; 128 << 10];
    let began = now();
    for entry in fs::read_dir(log)? {
        let mut file = File::open(entry?.path())?;
        while file.read(&mut buffer)? > 0 {}
    }
    Ok(began.elapsed().as_secs_f64())
}

/// Seconds that `understudy log COMMAND` takes, and the most memory it had, MiB.
fn run(program: &Path, command: &str, log: &Path) -> Result<(f64, f64)> {
    let began = now();
    let child = Command::new(program)
        .args(["log", command])
        .arg(log)
        .stdout(Stdio::null())
        .spawn();
    let child = child.context("cannot start understudy")?;
    let ended = child.wait4()?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(
        ended.status.success(),
        "log {command}: {status}",
        status = ended.status
    );
    ensure!(ended.rusage.maxrss > 0, "no memory of log {command} known");
    Ok((seconds, ended.rusage.maxrss as f64 / f64::from(1 << 20)))
}
