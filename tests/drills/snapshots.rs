//! A guest saved at a place of its past and gone on from there ends as it did without: places in a row, each guest
//! saved from the one before, and places at random, each gone on from to the end.

use crate::Drill;
use crate::record_replay::{
    DAMAGED, LIMIT, Report, diverges, record_options, record_with, replay, replay_within,
};
use anyhow::{Context, Result, bail, ensure};
use rig::agent::Agent;
use rig::host::STATE_DIR;
use rig::lab::{Lab, Side, UNDERSTUDY};
use rig::pair::{CONFIG, PairOptions};
use rig::progress::note;
use rig::wait::now;
use std::time::Duration;

pub(crate) const DRILLS: &[Drill] = &[
    Drill {
        name: "snapshots",
        shows: "a replay that goes on from a saved guest, again and again, ends like one that does not",
        run: snapshots,
    },
    Drill {
        name: TWO_HUNDRED,
        shows: "a guest saved at 200 random places of a boot and a workload, each gone on from to the end",
        run: two_hundred,
    },
];

/// Takes minutes.
pub(crate) const TWO_HUNDRED: &str = "two-hundred-snapshots";

/// Interval of the places in a row, and how many there must be.
const SETTLE_MS: u32 = 500;
const PLACES: u64 = 6;

const REQUESTS: u64 = 1_000;

/// Of these places 200 are drawn. The guest boots, does a bit of everything, and answers some requests: each
/// saved one does the rest of that again, so it is to be short, and says little (a letter is two exits).
const MANY_SETTLE_MS: u32 = 1;
const MANY: u64 = 200;
const MANY_REQUESTS: u64 = 100;
const MANY_CMDLINE: &str = "understudy.loops=20 quiet";

const MANY_LIMIT: Duration = Duration::from_secs(1_150);

fn snapshots(lab: &mut Lab) -> Result<()> {
    let options = PairOptions {
        settle_ms: SETTLE_MS,
        ..lab.options()
    };
    record_with(lab, "selftest", REQUESTS, options)?;
    let agent = lab.host(Side::Primary).agent()?;
    let straight = replay(agent, &[])?;
    let through = replay(agent, &["--through-snapshots"])?;
    note(&format!("{} snapshots in a row", through.snapshots));
    ensure!(
        through.snapshots >= PLACES,
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
    let spoiled = ["--try-snapshots", "1", "--spoil-snapshots"];
    diverges(agent, &spoiled, "a snapshot with a bit of memory changed")?;
    damaged_and_foreign_files_are_refused(agent, &file)
}

/// What is compared of every one of them: each record's point, registers and outputs on the way, and at the
/// end counts, registers and all of memory. Both hosts do it, each with every second place.
fn two_hundred(lab: &mut Lab) -> Result<()> {
    let options = PairOptions {
        settle_ms: MANY_SETTLE_MS,
        cmdline: MANY_CMDLINE.into(),
        ..lab.options()
    };
    record_with(lab, "selftest", MANY_REQUESTS, options.clone())?;
    let [one, other] = [
        lab.host(Side::Primary).agent()?,
        lab.host(Side::Backup).agent()?,
    ];
    let began = now();
    let straight = replay(one, &[])?;
    note(&format!(
        "{} records, {} exits; a replay takes {:.1} s",
        straight.records,
        straight.exits,
        began.elapsed().as_secs_f64()
    ));
    other.put(
        CONFIG,
        0o644,
        record_options("selftest", MANY_REQUESTS, options)
            .config()
            .as_bytes(),
    )?;
    copy_log(one, other)?;
    let began = now();
    let count = MANY.to_string();
    let try_share = |agent: &Agent, share: &str| {
        let more = ["--try-snapshots", &count, "--share", share];
        replay_within(agent, &more, MANY_LIMIT)
    };
    let shares = std::thread::scope(|scope| {
        let theirs = scope.spawn(|| try_share(other, "2/2"));
        let ours = try_share(one, "1/2");
        let theirs = theirs
            .join()
            .unwrap_or_else(|_| bail!("the other host's thread"));
        [ours, theirs]
    });
    let mut tried = 0;
    for report in shares {
        let report = report?;
        same_end(&straight, &report)?;
        tried += report.snapshots;
    }
    note(&format!(
        "{tried} guests saved at random places of it, all gone on to the same end in {:.0} s",
        began.elapsed().as_secs_f64()
    ));
    ensure!(tried == MANY, "there are only {tried} places");
    Ok(())
}

/// Gives one host's log to the other.
fn copy_log(from: &Agent, to: &Agent) -> Result<()> {
    let pack = ["tar", "-c", "-C", STATE_DIR, "log"];
    let archive = from.exec(&pack, LIMIT)?.success()?.stdout;
    let file = "/run/host/log.tar";
    to.put(file, 0o600, &archive)?;
    let unpack = ["tar", "-x", "-f", file, "-C", STATE_DIR];
    to.exec(&unpack, LIMIT)?.success().map(drop)
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
