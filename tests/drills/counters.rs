//! Hosts whose counters differ: one without any, and some whose overflows come late.
//!
//! The emulator's processor properties make them. What doctor finds must follow them, and what a guest is
//! served must not.

use crate::Drill;
use crate::record_replay::{diverges, record, replay};
use anyhow::{Context, Result, bail, ensure};
use rig::fault::Fault;
use rig::host::Counters;
use rig::lab::{HostKind, Lab, Side, UNDERSTUDY};
use rig::observation::Load;
use rig::pair::{CONFIG, PairOptions};
use rig::requirements::{self, Facility};
use rig::scene::Scene;
use std::time::Duration;

/// Needs the branch clock.
pub(crate) const SKID: &str = "skid";

pub(crate) const DRILLS: &[Drill] = &[
    Drill {
        name: "one-counter",
        shows: "clock auto, one host without counters: the pair agrees on the exit clock, and fails over",
        run: one_counter,
    },
    Drill {
        name: SKID,
        shows: "branch clock: overflows late by 0, 10, 1000 instructions; the margin follows, replay is exact",
        run: skid,
    },
];

/// Most instructions by which overflows come late.
const SKIDS: [u32; 3] = [0, 10, 1_000];

/// Requests of a boot whose counter skids.
const REQUESTS: u64 = 300;

/// A margin that no skid of a thousand instructions respects.
const MARGIN_TOO_SMALL: &str = "1";

/// Status of a program whose host cannot do what the configuration asks for.
const UNFIT: i32 = 6;

const LIMIT: Duration = Duration::from_secs(60);

/// Whether the hosts have counters that doctor trusts. Asked of the host, not of the emulator's name.
///
/// # Errors
/// When they have not, and `REQUIRE` names them.
pub(crate) fn are_there(lab: &Lab) -> Result<bool> {
    match lab.counters_of(Side::Primary)? {
        Ok(_) => Ok(true),
        Err(why) => requirements::skip(Facility::Pmu, &why).map(|()| false),
    }
}

fn one_counter(lab: &mut Lab) -> Result<()> {
    if lab.kind() != HostKind::Emulated {
        return requirements::skip(Facility::Rig, "only an emulated host can lose its counters");
    }
    lab.reboot_with(Side::Backup, Counters::Absent)?;
    let why = match lab.counters_of(Side::Backup)? {
        Ok(margin) => bail!("a host without counters was given a margin of {margin}"),
        Err(why) => why,
    };
    ensure!(
        why.contains("perf_event_open"),
        "doctor does not say what is missing: {why}"
    );
    let whole = lab.counters_of(Side::Primary)?.is_ok();
    an_explicit_clock_is_refused(lab)?;
    let options = PairOptions {
        clock: "auto".into(),
        ..lab.options()
    };
    let mut scene = Scene::open(lab, &options, &Load::default())?;
    for side in Side::BOTH {
        let status = scene.pair.status(scene.lab, side)?;
        ensure!(status.clock == "exits", "{side} is on {}", status.clock);
        let whose = if whole {
            "the backup's host lacks a counter"
        } else {
            "neither host"
        };
        ensure!(
            status.clock_why.contains(whose) && status.clock_why.contains("perf_event_open"),
            "{side} says of its clock: {}",
            status.clock_why
        );
    }
    scene.strike(Fault::Kill(Side::Primary))?;
    scene.wait_solo(Side::Backup)?;
    scene.wait_served()?;
    scene.check_register(2)?;
    scene.close().map(|_| ())
}

/// A host that is told to use what it has not says so and starts nothing.
fn an_explicit_clock_is_refused(lab: &Lab) -> Result<()> {
    let options = PairOptions {
        clock: "branches".into(),
        ..lab.options()
    };
    let agent = lab.host(Side::Backup).agent()?;
    agent.put(CONFIG, 0o644, options.config().as_bytes())?;
    let done = agent.exec(&[UNDERSTUDY, "backup", "--config", CONFIG], LIMIT)?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(
        done.code == UNFIT && said.contains("the branch clock cannot be trusted on this host"),
        "told to use a counter that is not there, it ended with {}: {said}",
        done.code
    );
    Ok(())
}

fn skid(lab: &mut Lab) -> Result<()> {
    ensure!(
        lab.options().clock == "branches",
        "a skid shows only with --clock branches"
    );
    if lab.kind() != HostKind::Emulated {
        return requirements::skip(Facility::Rig, "only an emulated host's skid can be chosen");
    }
    let mut margins = Vec::new();
    for most in SKIDS {
        lab.reset()?;
        lab.reboot_with(Side::Primary, Counters::Skid(most))?;
        let margin = match lab.counters_of(Side::Primary)? {
            Ok(margin) => margin,
            Err(why) => bail!("doctor gives a skid of {most} instructions up: {why}"),
        };
        record(lab, "selftest", REQUESTS).with_context(|| format!("skid {most}"))?;
        let agent = lab.host(Side::Primary).agent()?;
        let replayed = replay(agent, &[]).with_context(|| format!("skid {most}"))?;
        println!(
            "  skid up to {most} instructions: margin {margin}, {} injections replayed exactly",
            replayed.between
        );
        margins.push(margin);
    }
    ensure!(
        margins.is_sorted() && margins.first() < margins.last(),
        "the margins do not follow the skid: {margins:?}"
    );
    // The last host still skids by a thousand.
    let agent = lab.host(Side::Primary).agent()?;
    diverges(
        agent,
        &["--margin", MARGIN_TOO_SMALL],
        "a margin smaller than the skid",
    )
}
