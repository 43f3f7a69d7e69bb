//! `rig-demo`: kill the primary's host, watch the client continue. Run by `cargo xtask demo`.

#![forbid(unsafe_code)]

mod screen;

use anyhow::Result;
use clap::Parser;
use rig::artifacts;
use rig::fault::Fault;
use rig::lab::{Lab, Side};
use rig::link::Direction;
use rig::observation::Load;
use rig::pair::PairOptions;
use rig::prepare::{self, Stage};
use rig::progress::step;
use rig::requirements::{Facility, skip};
use rig::scene::Scene;
use rig::wait::{now, pause};
use screen::Report;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// How often the lag is looked at while the client is watched.
const SAMPLE: Duration = Duration::from_millis(500);

/// Emulated hosts on few processors: the product's default of 120 ms is for real ones.
const SUSPECT_MS: u32 = 500;

/// A pair on one machine: kill the primary's host and watch the client continue
#[derive(Parser)]
#[command(name = "cargo xtask demo")]
struct Arguments {
    /// Write the result to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Execution clock: exits, branches, or what the hosts are fit for (auto)
    #[arg(long, default_value = "auto", value_parser = rig::pair::CLOCKS)]
    clock: String,
    /// Seconds to watch the client before the kill, and after it
    #[arg(long, default_value_t = 4, value_name = "N")]
    seconds: u64,
    /// Silence after which the other host is suspected, in milliseconds
    #[arg(long, default_value_t = SUSPECT_MS, value_name = "MS")]
    suspect_ms: u32,
    /// Keep both hosts' logs of a run that passed, too, below target/rig, for `understudy log`
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    if prepare::was_client()? {
        return Ok(ExitCode::SUCCESS);
    }
    let arguments = Arguments::parse();
    let prepared = match prepare::stage()? {
        Stage::Done(code) => return Ok(code),
        Stage::Inside(prepared) => prepared,
    };
    let mut lab = step("booting two hosts", || Lab::start(&prepared))?;
    let performed = perform(&mut lab, &arguments);
    let said = match &performed {
        Ok(report) => report.screen().to_string(),
        Err(error) => format!("{error:#}"),
    };
    if arguments.keep || performed.is_err() {
        let kept = artifacts::keep(&mut lab, "demo", "cargo xtask demo", &said);
        if let Some(dir) = kept {
            eprintln!("  everything of this run is kept in {}", dir.display());
        }
    }
    let report = performed?;
    print!("{said}");
    if let Some(file) = &arguments.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(ExitCode::from(u8::from(!report.failed_checks().is_empty())))
}

fn perform(lab: &mut Lab, arguments: &Arguments) -> Result<Report> {
    let options = PairOptions {
        clock: arguments.clock.clone(),
        suspect_ms: arguments.suspect_ms,
        ..PairOptions::default()
    };
    let watch = Duration::from_secs(arguments.seconds);
    let mut scene = step("starting arbiter, primary, backup and client", || {
        Scene::open(lab, &options, &Load::steady())
    })?;
    let mut report = Report {
        hosts: scene.lab.kind().name(),
        ..Report::default()
    };
    step("watching the client", || {
        before(&mut scene, watch, &mut report)
    })?;
    if arguments.clock == "auto" && report.clock != "branches" {
        // The demo goes on without; only who requires counters stops here.
        skip(Facility::Pmu, &report.clock_why)?;
    }
    step("killing the primary's host", || {
        let killed = scene.phase("during")?.acknowledged;
        scene.strike(Fault::Kill(Side::Primary))?;
        // The first answers after the kill; a few may have been on their way.
        scene
            .client
            .wait_progress(killed, IN_FLIGHT, Duration::from_secs(30))?;
        report.generation_after = scene.wait_solo(Side::Backup)?.generation;
        scene.phase("after").map(|_| ())
    })?;
    step("watching the client", || {
        pause(watch);
        scene.wait_served().map(|_| ())
    })?;
    scene.check_register(report.generation_after)?;
    let (seen, evidence) = step("comparing totals and logs", || scene.close())?;
    report.records_compared = evidence.common;
    report.take(&seen);
    Ok(report)
}

/// Answers that may still arrive after the kill.
const IN_FLIGHT: u64 = 20;

fn before(scene: &mut Scene<'_>, watch: Duration, report: &mut Report) -> Result<()> {
    scene.phase("before")?;
    let (began, bytes) = (now(), scene.lab.link.counters(Direction::ToBackup).bytes);
    while began.elapsed() < watch {
        pause(SAMPLE.min(watch));
        let status = scene.pair.status(scene.lab, Side::Primary)?;
        report.generation_before = status.generation;
        report.clock = status.clock;
        report.clock_why = status.clock_why;
        // Nanoseconds of a lag are far below 2^52.
        report.lag_ms = report.lag_ms.max(status.lag_ns as f64 / 1e6);
    }
    let bytes = scene.lab.link.counters(Direction::ToBackup).bytes - bytes;
    report.log_mbit_s = bytes as f64 * 8.0 / 1e6 / began.elapsed().as_secs_f64();
    Ok(())
}
