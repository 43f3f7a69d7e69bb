//! The two execution clocks side by side: what recording and replaying cost, how soon a packet reaches a guest
//! that computes; and what the branch clock's landings take.

use crate::Settings;
use crate::measure::Measures;
use anyhow::{Context, Result, bail};
use rig::lab::{Lab, Side, UNDERSTUDY};
use rig::netns::Namespace;
use rig::observation::Load;
use rig::oracle::Oracle;
use rig::pair::{Alone, CONFIG, PairOptions};
use rig::wait::{now, pause};
use std::time::Duration;

/// Time for any of these guests to end.
const END_LIMIT: Duration = Duration::from_secs(180);

/// How long a guest that computes may leave a client unanswered before it counts as never answering.
const UNANSWERED_MS: u64 = 15_000;

pub(crate) fn measure(lab: &mut Lab, settings: &Settings, measures: &mut Measures) -> Result<()> {
    lab.reset()?;
    if let Err(why) = lab.counters_of(Side::Primary)? {
        bail!("no branch clock here: {why}");
    }
    landings(lab, measures)?;
    // The first guest of an emulated host pays for translating the code; nobody else does.
    timed(lab, "exits", false)?;
    for clock in ["exits", "branches"] {
        let plain = timed(lab, clock, false)?;
        let recorded = timed(lab, clock, true)?;
        let (replayed, inputs) = replay(lab, &[])?;
        measures.add(format!("run_s_{clock}"), plain, "s");
        measures.add(format!("record_s_{clock}"), recorded, "s");
        measures.add(format!("replay_s_{clock}"), replayed, "s");
        measures.add(
            format!("replay_over_record_{clock}"),
            recorded / replayed,
            "ratio",
        );
        if clock == "branches" {
            let (stepped, _) = replay(lab, &["--single-step"])?;
            measures.add("replay_s_branches_single_step", stepped, "s");
            measures.add("replayed_between_exits", inputs, "inputs");
        }
    }
    for clock in ["exits", "branches"] {
        latency(lab, clock, settings, measures)?;
    }
    Ok(())
}

/// Skid and the cost of a landing, as doctor found them.
fn landings(lab: &Lab, measures: &mut Measures) -> Result<()> {
    let report = lab.doctor(Side::Primary)?;
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or(0.0);
    measures.add("margin", number(&report["margin_branches"]), "branches");
    for bin in report["skid"].as_array().into_iter().flatten() {
        let name = format!("skid_{}_to_{}", bin["from"], bin["to"]);
        measures.add(name, number(&bin["count"]), "overflows");
    }
    let costs = &report["landing_costs"];
    measures.add("landing_breakpoint", number(&costs["breakpoint_us"]), "us");
    measures.add(
        "landing_single_step",
        number(&costs["single_step_us"]),
        "us",
    );
    Ok(())
}

fn options(lab: &Lab, clock: &str, workload: &str) -> PairOptions {
    PairOptions {
        clock: clock.into(),
        workload: workload.into(),
        ..lab.options()
    }
}

/// Seconds from a guest's start to its end: boot, loops, power-off; with a log or without.
fn timed(lab: &mut Lab, clock: &str, log: bool) -> Result<f64> {
    lab.reset()?;
    let options = PairOptions {
        log,
        ..options(lab, clock, "loops")
    };
    let began = now();
    Alone::start(lab, &options)?.wait_ended(lab, END_LIMIT)?;
    Ok(began.elapsed().as_secs_f64())
}

/// Seconds of the replay of what was recorded last, and the inputs that it placed between exits.
fn replay(lab: &Lab, more: &[&str]) -> Result<(f64, f64)> {
    let argv = [&[UNDERSTUDY, "replay", "--json", "--config", CONFIG], more].concat();
    let began = now();
    let done = lab.host(Side::Primary).agent()?.exec(&argv, END_LIMIT)?;
    let seconds = began.elapsed().as_secs_f64();
    let report: serde_json::Value = serde_json::from_slice(&done.success()?.stdout)?;
    let between = report["between"].as_f64().context("what was replayed")?;
    Ok((seconds, between))
}

/// Round trips to a guest whose other program never makes a system call.
fn latency(lab: &mut Lab, clock: &str, settings: &Settings, measures: &mut Measures) -> Result<()> {
    lab.reset()?;
    Alone::start(lab, &options(lab, clock, "busy"))?;
    let load = Load {
        window: 1,
        interval_us: 0,
        connect_limit_ms: UNANSWERED_MS,
        drain_limit_ms: 1_000,
        ..Load::default()
    };
    let mut client = Oracle::start(&Namespace::named("client"), &load)?;
    if client.wait_connected().is_err() {
        let name = format!("no_answer_from_computing_guest_{clock}");
        measures.add(name, UNANSWERED_MS as f64 / 1e3, "s tried");
        return Ok(());
    }
    pause(Duration::from_secs(settings.seconds));
    let seen = client.finish()?;
    measures.add(
        format!("computing_echo_{clock}"),
        seen.acknowledged as f64,
        "answers",
    );
    for (which, us) in [
        ("p50", seen.round_trip_p50_us),
        ("p99", seen.round_trip_p99_us),
    ] {
        measures.add(
            format!("computing_echo_{which}_ms_{clock}"),
            us as f64 / 1e3,
            "ms",
        );
    }
    Ok(())
}
