//! What the guest gets done by itself: boot, a CPU-bound program, replay against recording.

use crate::Settings;
use crate::measure::Measures;
use anyhow::{Context, Result, ensure};
use rig::host::STATE_DIR;
use rig::lab::{Lab, Side, UNDERSTUDY};
use rig::pair::{Alone, CONFIG, Pair, PairOptions};
use rig::scene::PROTECTED_LIMIT;
use rig::wait::{now, until};
use std::time::Duration;

/// Time for any of these guests to end.
const END_LIMIT: Duration = Duration::from_secs(180);

/// Million rounds of the CPU-bound program: a few seconds.
const SPIN: u32 = 400;

pub(crate) fn measure(lab: &mut Lab, _: &Settings, measures: &mut Measures) -> Result<()> {
    let boot = options(lab, "boot-poweroff");
    // The guest's clock tells how long: it moves at records, so the program must be interruptible.
    let spin = PairOptions {
        clock: "branches".into(),
        ..options(lab, "spin")
    };
    // The first boot of an emulated host pays for translating the code; nobody else does.
    alone(lab, &boot)?;
    let boot_alone = alone(lab, &boot)?;
    alone(lab, &spin)?;
    let work_alone = guest_seconds(lab)?;
    let boot_pair = replicated(lab, &boot)?;
    replicated(lab, &spin)?;
    let work_pair = guest_seconds(lab)?;
    measures.add("boot_s_alone", boot_alone, "s");
    measures.add("boot_s_replicated", boot_pair, "s");
    measures.add("cpu_s_alone", work_alone, "s");
    measures.add("cpu_s_replicated", work_pair, "s");
    ensure!(
        work_alone > 0.0 && work_pair > 0.0,
        "the CPU-bound program took no time by the guest's clock: it needs the branch clock"
    );
    measures.add("cpu_ratio", work_alone / work_pair, "ratio");
    replay(lab, measures)
}

/// How long the CPU-bound program took, as the guest itself said: on the branch clock its clock follows
/// the host's closely.
fn guest_seconds(lab: &Lab) -> Result<f64> {
    let console = format!("{STATE_DIR}/console.log");
    let agent = lab.host(Side::Primary).agent()?;
    let text = String::from_utf8_lossy(&agent.get(&console, usize::MAX)?).into_owned();
    let said = text
        .split_once("guest_seconds ")
        .and_then(|(_, rest)| rest.split_whitespace().next());
    said.context("the guest did not say how long its program took")?
        .parse()
        .context("the guest's time")
}

fn options(lab: &Lab, workload: &str) -> PairOptions {
    PairOptions {
        workload: workload.into(),
        cmdline: format!("understudy.spin={SPIN}"),
        ..lab.options()
    }
}

/// Seconds from start to power-off, unreplicated and without a log.
fn alone(lab: &mut Lab, options: &PairOptions) -> Result<f64> {
    lab.reset()?;
    let began = now();
    let guest = Alone::start(
        lab,
        &PairOptions {
            log: false,
            ..options.clone()
        },
    )?;
    guest.wait_ended(lab, END_LIMIT)?;
    Ok(began.elapsed().as_secs_f64())
}

/// Seconds from the moment when the guest may run to its power-off, replicated.
fn replicated(lab: &mut Lab, options: &PairOptions) -> Result<f64> {
    lab.reset()?;
    let pair = Pair::start_protected(lab, options, PROTECTED_LIMIT)?;
    let began = now();
    until(
        "the guest to end",
        END_LIMIT,
        Duration::from_millis(20),
        || pair.ended(lab, Side::Primary),
    )?;
    Ok(began.elapsed().as_secs_f64())
}

fn replay(lab: &mut Lab, measures: &mut Measures) -> Result<()> {
    lab.reset()?;
    let began = now();
    Alone::start(lab, &options(lab, "loops"))?.wait_ended(lab, END_LIMIT)?;
    let recording = began.elapsed().as_secs_f64();
    let began = now();
    let argv = [UNDERSTUDY, "replay", "--config", CONFIG];
    let agent = lab.host(Side::Primary).agent()?;
    agent.exec(&argv, END_LIMIT)?.success().context("replay")?;
    let replaying = began.elapsed().as_secs_f64();
    measures.add("record_s", recording, "s");
    measures.add("replay_s", replaying, "s");
    measures.add("replay_over_record", recording / replaying, "ratio");
    Ok(())
}
