//! `rig-bench`: replicated against unreplicated, side by side in one run. Run by `cargo xtask bench`.
//!
//! Nothing here is a test: a section that cannot be measured is reported as such and left out. The
//! numbers are of emulated hosts on this machine; the ratios are what carries over.

#![forbid(unsafe_code)]

mod clocks;
mod gap;
mod inspect;
mod log;
mod measure;
mod service;
mod synthetic_log;
mod transfer;
mod work;

use anyhow::Result;
use clap::Parser;
use measure::Measures;
use rig::lab::Lab;
use rig::prepare::{self, Stage};
use rig::programs::checkout;
use rig::progress::step;
use std::process::ExitCode;

/// Measure replicated against unreplicated; writes target/bench/latest.json
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    /// Sections to measure: work, clocks, service, log, gap, inspect, transfer; all when none is named
    sections: Vec<String>,
    /// Kills for the client-visible gap
    #[arg(long, default_value_t = 20, value_name = "N")]
    kills: u32,
    /// Seconds of each load
    #[arg(long, default_value_t = 5, value_name = "N")]
    seconds: u64,
}

/// Memory of a host: the largest guest is of 1,024 MiB.
const HOST_MEMORY_MIB: u32 = 2_048;

type Section = fn(&mut Lab, &Settings, &mut Measures) -> Result<()>;

/// What the sections need to know.
struct Settings {
    kills: u32,
    seconds: u64,
}

const SECTIONS: &[(&str, Section)] = &[
    ("work", work::measure),
    ("clocks", clocks::measure),
    ("service", service::measure),
    ("log", log::measure),
    ("gap", gap::measure),
    ("inspect", inspect::measure),
    ("transfer", transfer::measure),
];

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
    let settings = Settings {
        kills: arguments.kills,
        seconds: arguments.seconds,
    };
    let mut lab = step("booting two hosts", || {
        Lab::start_with(&prepared, HOST_MEMORY_MIB)
    })?;
    let mut measures = Measures::default();
    let mut failed = false;
    for (name, section) in SECTIONS {
        let chosen = &arguments.sections;
        if !chosen.is_empty() && !chosen.iter().any(|wanted| wanted == name) {
            continue;
        }
        let result = step(name, || section(&mut lab, &settings, &mut measures));
        if let Err(error) = result {
            eprintln!("  {name} could not be measured whole: {error:#}");
            failed = true;
        }
    }
    print!("{}", measures.table());
    let dir = checkout()?.join("target/bench");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(
        dir.join("latest.json"),
        serde_json::to_vec_pretty(&measures.0)?,
    )?;
    Ok(ExitCode::from(u8::from(failed)))
}
