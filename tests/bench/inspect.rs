//! `understudy log` on a log of gigabytes, against reading its files in the same run.

use crate::Settings;
use crate::measure::Measures;
use crate::synthetic_log;
use anyhow::{Context, Result, ensure};
use rig::lab::Lab;
use rig::wait::now;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use wait4::Wait4 as _;

const LOG_BYTES: u64 = 2 << 30;

/// Runs of each; the best counts, since whatever else the machine does only makes them slower.
const RUNS: usize = 3;

pub(crate) fn measure(lab: &mut Lab, _: &Settings, measures: &mut Measures) -> Result<()> {
    let log = lab.run_dir().join("synthetic-log");
    let _ = fs::remove_dir_all(&log);
    let measured = compare(lab.arbiter.program(), &log, measures);
    // Whatever came of it: gigabytes.
    let _ = fs::remove_dir_all(&log);
    measured
}

fn compare(program: &Path, log: &Path, measures: &mut Measures) -> Result<()> {
    fs::create_dir_all(log)?;
    synthetic_log::write(log, LOG_BYTES)?;
    let mut best = [f64::INFINITY; 3];
    let mut memory_mib: f64 = 0.0;
    for _ in 0..RUNS {
        best[0] = best[0].min(read(log)?);
        for (number, command) in ["stat", "ls"].into_iter().enumerate() {
            let (seconds, mib) = run(program, command, log)?;
            best[number + 1] = best[number + 1].min(seconds);
            memory_mib = memory_mib.max(mib);
        }
    }
    let [read, stat, ls] = best;
    measures.add("log_read_gb_s", LOG_BYTES as f64 / 1e9 / read, "GB/s");
    measures.add("log_stat_speed_ratio", read / stat, "");
    measures.add("log_ls_speed_ratio", read / ls, "");
    measures.add("log_memory_mib", memory_mib, "MiB");
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
