//! A guest saved at a place of its past and gone on from there ends as it did without.

use crate::Drill;
use crate::record_replay::{DAMAGED, LIMIT, Report, record_with, replay, replay_within};
use anyhow::{Context, Result, ensure};
use rig::agent::Agent;
use rig::host::STATE_DIR;
use rig::lab::{Lab, Side, UNDERSTUDY};
use rig::pair::{CONFIG, PairOptions};
use rig::progress::note;
use std::time::Duration;

pub(crate) const DRILLS: &[Drill] = &[
    Drill {
        name: "snapshots",
        shows: "a replay that goes on from a saved guest, again and again, ends like one that does not",
        run: |lab| snapshots(lab, FEW_MS, FEW),
    },
    Drill {
        name: TWO_HUNDRED,
        shows: "the same at 200 places and more of a boot and a workload",
        run: |lab| snapshots(lab, MANY_MS, MANY),
    },
];

/// Takes minutes.
pub(crate) const TWO_HUNDRED: &str = "two-hundred-snapshots";

/// Intervals of the places, and how many there must be.
const FEW_MS: u32 = 1_000;
const FEW: u64 = 8;
const MANY_MS: u32 = 30;
const MANY: u64 = 200;

const REQUESTS: u64 = 1_000;

/// Each place costs about a second: a virtual machine and all of its memory.
const THROUGH_LIMIT: Duration = Duration::from_secs(1_500);

fn snapshots(lab: &mut Lab, settle_ms: u32, places: u64) -> Result<()> {
    let options = PairOptions {
        settle_ms,
        ..lab.options()
    };
    record_with(lab, "selftest", REQUESTS, options)?;
    let agent = lab.host(Side::Primary).agent()?;
    let straight = replay(agent, &[])?;
    let through = replay_within(agent, &["--through-snapshots"], THROUGH_LIMIT)?;
    note(&format!("{} snapshots passed through", through.snapshots));
    ensure!(
        through.snapshots >= places,
        "only {} places",
        through.snapshots
    );
    same_end(&straight, &through)?;
    let file = format!("{STATE_DIR}/saved.snapshot");
    let middle = format!("{}", straight.records / 2);
    let argv = [
        "replay", "--config", CONFIG, "--until", &middle, "--save", &file,
    ];
    agent
        .exec(&[&[UNDERSTUDY], &argv[..]].concat(), LIMIT)?
        .success()?;
    let later = replay(agent, &["--from", &file])?;
    same_end(&straight, &later)?;
    ensure!(
        later.marks < straight.marks,
        "the replay from a snapshot began at power-on"
    );
    damaged_and_foreign_files_are_refused(agent, &file)
}

fn same_end(straight: &Report, other: &Report) -> Result<()> {
    let end = |report: &Report| {
        (
            report.records,
            report.registers_digest,
            report.memory_digest,
            report.end.clone(),
        )
    };
    ensure!(end(straight) == end(other), "{straight:?}, and {other:?}");
    Ok(())
}

fn damaged_and_foreign_files_are_refused(agent: &Agent, file: &str) -> Result<()> {
    let refused = |file: &str, code: i32, why: &str| -> Result<()> {
        let argv = [UNDERSTUDY, "replay", "--config", CONFIG, "--from", file];
        let done = agent.exec(&argv, LIMIT)?;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(
            done.code == code && said.contains(why),
            "status {} where {code} and `{why}` were expected: {said}",
            done.code
        );
        Ok(())
    };
    refused(CONFIG, DAMAGED, "no snapshot")?;
    let size = agent
        .exec(&["sh", "-c", &format!("wc -c < {file}")], LIMIT)?
        .text();
    let size: u64 = size.trim().parse().context("a file's size")?;
    let flip = format!(
        "dd if={file} bs=1 skip={0} count=1 2>/dev/null | tr '\\000-\\377' '\\001-\\377\\000' | \
         dd of={file} bs=1 seek={0} conv=notrunc 2>/dev/null",
        size / 2
    );
    agent.exec(&["sh", "-c", &flip], LIMIT)?.success()?;
    refused(file, DAMAGED, "damaged at byte")?;
    agent
        .exec(&["truncate", "-s", &(size / 3).to_string(), file], LIMIT)?
        .success()?;
    refused(file, DAMAGED, "the file ends in")
}
