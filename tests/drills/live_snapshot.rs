//! A guest is saved while it runs and serves, and goes on from the file when all else is gone.

use crate::Drill;
use crate::record_replay::{DAMAGED, LIMIT, Report};
use anyhow::{Context, Result, ensure};
use rig::agent::Agent;
use rig::fault::Fault;
use rig::host::STATE_DIR;
use rig::lab::{Lab, Side, UNDERSTUDY};
use rig::netns::Namespace;
use rig::observation::{Load, Order};
use rig::oracle::Oracle;
use rig::pair::{Alone, CONFIG, LOG_DIR, PairOptions};
use rig::progress::note;
use rig::scene::{PROGRESS_LIMIT, Scene};
use serde::Deserialize;

pub(crate) const DRILLS: &[Drill] = &[Drill {
    name: "snapshot-live",
    shows: "a pair's guest is saved under load; when both hosts are lost it goes on from the file",
    run,
}];

/// Status of `understudy` when the two sides, or a file and a host, differ.
const REFUSED: i32 = 4;

/// Where the file is, on whichever host.
const FILE: &str = "/run/host/state/live.snapshot";

/// Where the pair's log is kept when the guest goes on with another.
const PAIR_LOG: &str = "/run/host/state/pair-log";

/// Requests to the guest that went on.
const REQUESTS: u64 = 200;

/// What `understudy snapshot --json` answers.
#[derive(Debug, Deserialize)]
struct Saved {
    phase: String,
    round: u32,
    bytes: u64,
    next: u64,
}

fn run(lab: &mut Lab) -> Result<()> {
    let options = PairOptions {
        // A page that is missing in the file shows nowhere else.
        memory_every: 50,
        ..lab.options()
    };
    let load = Load::steady();
    let (known, file) = save_under_load(lab, &options, &load)?;
    Fault::Kill(Side::Primary).strike(lab)?;
    lab.host(Side::Backup).stop_everything()?;
    let agent = lab.host(Side::Backup).agent()?;
    agent.put(FILE, 0o600, &file)?;
    let set_aside = format!("mv {LOG_DIR} {PAIR_LOG}");
    agent.exec(&["sh", "-c", &set_aside], LIMIT)?.success()?;
    let followed = replay(agent, &["--from", FILE, PAIR_LOG])?;
    note(&format!("the backup's log, from the file on: {followed:?}"));
    foreign_and_damaged_files_are_refused(agent, &options, &file)?;
    go_on(
        lab,
        &options,
        &Load {
            known: Some(known),
            ..load
        },
    )?;
    let agent = lab.host(Side::Backup).agent()?;
    let alone = replay(agent, &["--from", FILE])?;
    note(&format!("the log of the guest that went on: {alone:?}"));
    fails(
        agent,
        &["replay", "--config", CONFIG],
        1,
        "not at its Start record",
    )
}

/// How many requests the guest of the file knows, at least and at the most; and the file.
fn save_under_load(
    lab: &mut Lab,
    options: &PairOptions,
    load: &Load,
) -> Result<((u64, u64), Vec<u8>)> {
    let mut scene = Scene::open(lab, options, load)?;
    let least = scene.phase("saved")?.acknowledged;
    let agent = scene.lab.host(Side::Primary).agent()?.clone();
    let argv = [UNDERSTUDY, "snapshot", "--json", "--config", CONFIG, FILE];
    let done = agent.exec(&argv, LIMIT)?.success()?;
    let saved: Saved = serde_json::from_slice(&done.stdout).context("what it answers")?;
    let most = scene.phase("afterwards")?.sent;
    ensure!(saved.phase == "done" && saved.next > 0, "{saved:?}");
    let refused = ["snapshot", "--config", CONFIG, "/run/host/state/no/where"];
    fails(&agent, &refused, 1, "may write")?;
    let agent = scene.lab.host(Side::Backup).agent()?;
    let refused = ["snapshot", "--config", CONFIG, FILE];
    fails(agent, &refused, 1, "only the side that runs the guest")?;
    for _ in 0..3 {
        scene.wait_served()?;
    }
    scene.check_register(1)?;
    for (side, role) in [(Side::Primary, "protected"), (Side::Backup, "following")] {
        let status = scene.pair.status(scene.lab, side)?;
        ensure!(status.role == role, "{side} is {}", status.role);
    }
    let file = scene
        .lab
        .host(Side::Primary)
        .agent()?
        .get(FILE, usize::MAX)?;
    let (seen, _) = scene.close()?;
    for phase in &seen.phases {
        note(&format!(
            "{:<16} {:6} acknowledged, longest silence {:6.0} ms",
            phase.name, phase.acknowledged, phase.silence_ms
        ));
    }
    let Saved {
        round, bytes, next, ..
    } = saved;
    note(&format!(
        "{bytes} bytes in {round} rounds, before record {next}; {least} to {most} requests in it"
    ));
    Ok(((least, most), file))
}

/// The guest of the file serves the client that it knows, which comes back.
fn go_on(lab: &Lab, options: &PairOptions, load: &Load) -> Result<()> {
    let guest = Alone::resume(lab, Side::Backup, options, FILE)?;
    let mut client = Oracle::start(&Namespace::named("client"), load)?;
    client.wait_connected()?;
    let known = client.wait_progress(0, 1, PROGRESS_LIMIT)?.acknowledged;
    client.wait_progress(known, REQUESTS, PROGRESS_LIMIT)?;
    client.order(&Order::Tell)?;
    let seen = client.finish()?;
    let complaints = seen.complaints();
    ensure!(complaints.is_empty(), "{complaints:?}: {seen:?}");
    note(&format!(
        "the guest of the file went on to {} requests",
        seen.acknowledged
    ));
    let agent = lab.host(Side::Backup).agent()?;
    let stop = [UNDERSTUDY, "stop", "--config", CONFIG];
    agent.exec(&stop, LIMIT)?.success()?;
    guest.wait_ended(lab, LIMIT)
}

fn replay(agent: &Agent, more: &[&str]) -> Result<Report> {
    let argv = [&[UNDERSTUDY, "replay", "--json", "--config", CONFIG], more].concat();
    let done = agent.exec(&argv, LIMIT)?.success()?;
    let report: Report = serde_json::from_slice(&done.stdout)?;
    ensure!(report.divergence.is_none(), "it differs: {report:?}");
    ensure!(
        report.marks > 10 && report.memory_digests > 0,
        "nothing was compared: {report:?}"
    );
    Ok(report)
}

fn foreign_and_damaged_files_are_refused(
    agent: &Agent,
    options: &PairOptions,
    file: &[u8],
) -> Result<()> {
    let from = |name: &str| format!("{STATE_DIR}/{name}.snapshot");
    let mut flipped = file.to_vec();
    flipped[file.len() / 2] ^= 1;
    agent.put(&from("flipped"), 0o600, &flipped)?;
    let run = |file: &str, code: i32, why: &str| {
        fails(
            agent,
            &["run", "--config", CONFIG, "--from", file],
            code,
            why,
        )
    };
    run(&from("flipped"), DAMAGED, "damaged at byte")?;
    agent.put(&from("cut"), 0o600, &file[..file.len() - 9])?;
    run(&from("cut"), DAMAGED, "the file ends")?;
    let other = PairOptions {
        cmdline: "understudy.requests=1".into(),
        ..options.clone()
    };
    agent.put(CONFIG, 0o644, other.config().as_bytes())?;
    run(FILE, REFUSED, "another cmdline")?;
    agent.put(CONFIG, 0o644, options.config().as_bytes())
}

fn fails(agent: &Agent, argv: &[&str], code: i32, why: &str) -> Result<()> {
    let done = agent.exec(&[&[UNDERSTUDY], argv].concat(), LIMIT)?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(
        done.code == code && said.contains(why),
        "{argv:?}: status {} where {code} and `{why}` were expected: {said}",
        done.code
    );
    Ok(())
}
