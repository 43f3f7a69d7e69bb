//! A guest that computes and makes no exits: its clock goes on, it is preempted and reached, and its
//! backup stays correct, on a clock that has points at exits only.

use crate::Drill;
use crate::record_replay::{record, replay};
use anyhow::{Context, Result, bail, ensure};
use rig::fault::Fault;
use rig::host::STATE_DIR;
use rig::lab::{Lab, Side};
use rig::observation::Load;
use rig::pair::PairOptions;
use rig::progress::note;
use rig::scene::{PROGRESS_LIMIT, Scene, keep_so_far};
use rig::wait::until;
use std::time::Duration;

pub(crate) const DRILLS: &[Drill] = &[
    Drill {
        name: "record-replay-spinning",
        shows: "a neighbour makes no system call; served meanwhile, and replayed bit for bit",
        run: replayed,
    },
    Drill {
        name: "kill-primary-spinning",
        shows: "the primary's host dies while the guest only computes; clock and network go on",
        run: killed,
    },
];

/// Requests to a guest that computes; each waits for its turn.
const REQUESTS: u64 = 300;

/// Seconds of uptime that the guest must have said before and after the kill.
const TICKS: usize = 3;

fn replayed(lab: &mut Lab) -> Result<()> {
    record(lab, "busy", REQUESTS)?;
    let agent = lab.host(Side::Primary).agent()?;
    let report = replay(agent, &[])?;
    note(&format!(
        "{} states loaded, {} inputs between exits",
        report.states, report.between
    ));
    match lab.options().clock.as_str() {
        "exits" => ensure!(
            report.states > 0,
            "the guest was never taken on by its state"
        ),
        _ => ensure!(report.between > 0 && report.states == 0, "{report:?}"),
    }
    Ok(())
}

fn killed(lab: &mut Lab) -> Result<()> {
    let options = PairOptions {
        workload: "spinning".into(),
        memory_every: 40,
        ..lab.options()
    };
    let mut scene = Scene::open(lab, &options, &Load::steady())?;
    let before = ticks(scene.lab, Side::Primary, 0)?;
    scene.wait_served()?;
    keep_so_far(scene.lab)?;
    scene.phase("killed")?;
    scene.strike(Fault::Kill(Side::Primary))?;
    scene.wait_solo(Side::Backup)?;
    scene.wait_served()?;
    let after = ticks(
        scene.lab,
        Side::Backup,
        before.last().map_or(0, |last| *last),
    )?;
    ensure!(
        before.iter().chain(&after).is_sorted(),
        "the guest's clock went back: {before:?}, then {after:?}"
    );
    scene.check_register(2)?;
    let exits = options.clock == "exits";
    let (seen, evidence) = scene.close()?;
    let log = &evidence.backup;
    ensure!(
        !exits || log.states > 0,
        "no state in the log: {evidence:?}"
    );
    for phase in &seen.phases {
        note(&format!(
            "{:<16} {:6} acknowledged, longest silence {:6.0} ms",
            phase.name, phase.acknowledged, phase.silence_ms
        ));
    }
    note(&format!(
        "{} states of {} KiB on average in {} records",
        log.states,
        (log.state_bytes >> 10) / log.states.max(1),
        log.records
    ));
    Ok(())
}

/// Waits until the guest has said its uptime some times, later than `after`; hundredths of a second.
fn ticks(lab: &Lab, side: Side, after: u64) -> Result<Vec<u64>> {
    let agent = lab.host(side).agent()?;
    let console = format!("{STATE_DIR}/console.log");
    let interval = Duration::from_millis(200);
    until(
        "the guest's clock to go on",
        PROGRESS_LIMIT,
        interval,
        || {
            let done = agent.exec(&["cat", &console], PROGRESS_LIMIT)?.success()?;
            let text = String::from_utf8_lossy(&done.stdout);
            let said = text
                .lines()
                .filter_map(|line| line.trim().strip_prefix("understudy: tick "));
            let mut found = Vec::new();
            for time in said {
                let time = time.replace('.', "").parse().context("an uptime")?;
                if time > after {
                    found.push(time);
                }
            }
            match found.len() {
                0..TICKS => Ok(None),
                _ if found.is_sorted() => Ok(Some(found)),
                _ => bail!("the guest's clock went back: {found:?}"),
            }
        },
    )
}
