//! `rig-drill`: failure drills with real hosts. Run by `cargo xtask drill`.

#![forbid(unsafe_code)]

mod arbiter_outage;
mod cells;
mod conversation;
mod counters;
mod failover;
mod fence;
mod gdb;
mod inspect;
mod lab;
mod live_snapshot;
mod package;
mod protection;
mod record_replay;
mod redundancy;
mod snapshots;
mod spinning;
mod split_brain;
mod timeline;
mod transfer;

use anyhow::{Result, bail};
use clap::Parser;
use rig::artifacts;
use rig::debian_root;
use rig::isolation;
use rig::lab::Lab;
use rig::prepare::{self, Stage};
use rig::progress;
use rig::wait::now;
use serde::Serialize;
use std::process::ExitCode;

/// One drill: what it is called, what it shows, how it is done.
struct Drill {
    name: &'static str,
    shows: &'static str,
    run: fn(&mut Lab) -> Result<()>,
}

/// Every drill, in the order of running: those that kill no host first, since they need no boot.
const GROUPS: &[&[Drill]] = &[
    record_replay::DRILLS,
    spinning::DRILLS,
    snapshots::DRILLS,
    live_snapshot::DRILLS,
    counters::DRILLS,
    split_brain::DRILLS,
    arbiter_outage::DRILLS,
    fence::DRILLS,
    protection::DRILLS,
    failover::DRILLS,
    redundancy::DRILLS,
    transfer::DRILLS,
    cells::DRILLS,
    inspect::DRILLS,
    package::DRILLS,
    lab::DRILLS,
];

/// What the exit clock cannot pass: left out of "all" there.
const BRANCHES_ONLY: &[&str] = &[record_replay::BUSY, record_replay::DEBUGGED, counters::SKID];

/// Run only when named: they take minutes.
const NAMED_ONLY: &[&str] = &[
    redundancy::TEN_LIVES,
    snapshots::TWO_HUNDRED,
    transfer::KILLED,
    cells::CELLS[0],
    cells::CELLS[1],
    cells::CELLS[2],
    package::PACKAGE,
];

fn all() -> impl Iterator<Item = &'static Drill> {
    GROUPS.iter().copied().flatten()
}

/// Failure drills with real hosts
#[derive(Parser)]
#[command(name = "cargo xtask drill")]
struct Arguments {
    /// Which drills; all when none is named
    names: Vec<String>,
    /// List the drills and what each shows
    #[arg(long)]
    list: bool,
    /// Execution clock: exits, branches or auto
    #[arg(long, default_value = "exits", value_parser = rig::pair::CLOCKS)]
    clock: String,
    /// System calls outside the lists: enforced, logged (in the hosts' kernel log) or off
    #[arg(long, default_value = "enforced")]
    confine: String,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Outcome {
    name: &'static str,
    passed: bool,
    seconds: f64,
    why: Option<String>,
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
    if arguments.list {
        for drill in all() {
            println!("{:<24} {}", drill.name, drill.shows);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = choose(&arguments)?;
    if !isolation::is_inside() && chosen.iter().any(|drill| drill.name == package::PACKAGE) {
        debian_root::clean()?;
    }
    let prepared = match prepare::stage()? {
        Stage::Done(code) => return Ok(code),
        Stage::Inside(prepared) => prepared,
    };
    let mut lab = progress::step("booting two hosts", || Lab::start(&prepared))?;
    lab.use_clock(&arguments.clock);
    if arguments.clock == "branches" && !counters::are_there(&lab)? {
        return Ok(ExitCode::SUCCESS);
    }
    lab.use_confinement(&arguments.confine);
    let mut outcomes = Vec::new();
    for drill in chosen {
        outcomes.push(run_one(drill, &mut lab, &arguments.clock));
    }
    report(&outcomes, arguments.json)?;
    Ok(ExitCode::from(u8::from(
        outcomes.iter().any(|outcome| !outcome.passed),
    )))
}

fn choose(arguments: &Arguments) -> Result<Vec<&'static Drill>> {
    let names = &arguments.names;
    if names.is_empty() || names.iter().any(|name| name == "all") {
        let fits = |drill: &&Drill| {
            let clock_fits = arguments.clock == "branches" || !BRANCHES_ONLY.contains(&drill.name);
            clock_fits && !NAMED_ONLY.contains(&drill.name)
        };
        return Ok(all().filter(fits).collect());
    }
    let find = |name: &String| match all().find(|drill| drill.name == name) {
        Some(drill) => Ok(drill),
        None => bail!("there is no drill `{name}`; --list shows them"),
    };
    names.iter().map(find).collect()
}

fn run_one(drill: &'static Drill, lab: &mut Lab, clock: &str) -> Outcome {
    let began = now();
    let result = progress::step(drill.name, || {
        lab.reset()?;
        (drill.run)(lab)
    });
    for call in protection::noted_calls(lab) {
        progress::note(&format!("outside the lists: {call}"));
    }
    let mut why = result.err().map(|error| format!("{error:#}"));
    if let Some(why) = &mut why {
        let again = format!("cargo xtask drill --clock {clock} {}", drill.name);
        if let Some(dir) = artifacts::keep(lab, drill.name, &again, why) {
            eprintln!(
                "  everything of this run is kept in {}; again: {again}",
                dir.display()
            );
            why.push('\n');
            why.push_str(&artifacts::last_messages(&dir));
        }
    }
    Outcome {
        name: drill.name,
        passed: why.is_none(),
        seconds: began.elapsed().as_secs_f64(),
        why,
    }
}

fn report(outcomes: &[Outcome], json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(outcomes)?);
        return Ok(());
    }
    for outcome in outcomes {
        let verdict = if outcome.passed { "pass" } else { "FAIL" };
        println!("{verdict} {:<24} {:5.1} s", outcome.name, outcome.seconds);
        if let Some(why) = &outcome.why {
            println!("     {why}");
        }
    }
    let passed = outcomes.iter().filter(|outcome| outcome.passed).count();
    println!("{passed} passed, {} failed", outcomes.len() - passed);
    Ok(())
}
