//! One host, no backup: record a guest that does a bit of everything, replay it twice from disk.
//!
//! Every replay compares each record's execution point, register check and output digest with what
//! happens, and the digests of all memory that the marks carry; two replays must also end alike. A
//! flipped bit in the log must be found, and the message must say where. On the branch clock a counter
//! that lies by one must be found, too, a replay that lands by single step must end like one that lands by
//! breakpoint, and a guest that never leaves the processor by itself must be served, preempted and replayed.

use crate::Drill;
use anyhow::{Context, Result, bail, ensure};
use rig::agent::Agent;
use rig::lab::{Lab, Side, UNDERSTUDY};
use rig::netns::Namespace;
use rig::observation::{Load, Order};
use rig::oracle::Oracle;
use rig::pair::{Alone, CONFIG, LOG_DIR, PairOptions};
use rig::wait::until;
use serde::Deserialize;
use std::time::Duration;

/// Needs the branch clock.
pub(crate) const BUSY: &str = "record-replay-busy";

/// Needs the branch clock.
pub(crate) const DEBUGGED: &str = "record-replay-debugged";

pub(crate) const DRILLS: &[Drill] = &[
    Drill {
        name: "record-replay",
        shows: "boot, loops, sort, sleeps, 1000 requests, power-off; replayed twice, bit for bit",
        run,
    },
    Drill {
        name: BUSY,
        shows: "branch clock: 10,000 injections into guests that compute; replayed bit for bit",
        run: busy,
    },
    Drill {
        name: DEBUGGED,
        shows: "branch clock: a debugger in the guest steps and stops a program; replayed bit for bit",
        run: debugged,
    },
];

const REQUESTS: u64 = 1_000;

/// Workloads of the busy drill in turn, with their requests; each request brings a packet or two at arbitrary
/// instructions.
const BUSY_BOOTS: [(&str, u64); 3] = [("busy", 4_000), ("selftest", REQUESTS), ("busy", 4_000)];

/// Inputs between exits that the busy drill asks for, over as many boots as it takes.
const INJECTIONS: u64 = 10_000;

/// Boots after which the busy drill gives up.
const BOOTS_MAX: usize = 16;

/// Requests beside the guest's own debugger, and what that says at its end: ten traps for each.
const DEBUGGED_REQUESTS: u64 = 500;
const DEBUGGED_SAYS: &str = "witness: debugged 10 rounds, 5000 traps";

/// Branches after which the sabotaged counter begins to lie: about in the middle of a boot.
const HONEST_BRANCHES: &str = "1000000";

pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// Status of `understudy replay` when it cannot go on.
const FAILED: i32 = 1;

/// Status of `understudy replay` when the log is damaged.
pub(crate) const DAMAGED: i32 = 8;

/// Status of `understudy replay` at a divergence.
const DIVERGED: i32 = 5;

/// What `understudy replay --json` answers, as far as it is compared.
#[derive(Debug, PartialEq, Deserialize)]
pub(crate) struct Report {
    pub(crate) records: u64,
    pub(crate) exits: u64,
    pub(crate) marks: u64,
    pub(crate) memory_digests: u64,
    pub(crate) between: u64,
    pub(crate) states: u64,
    pub(crate) snapshots: u64,
    pub(crate) end: Option<String>,
    pub(crate) registers_digest: u64,
    pub(crate) memory_digest: u64,
    pub(crate) divergence: Option<String>,
}

fn run(lab: &mut Lab) -> Result<()> {
    let options = lab.options();
    record(lab, "selftest", REQUESTS)?;
    let agent = lab.host(Side::Primary).agent()?;
    let replayed = replay_twice(agent)?;
    if options.clock == "branches" {
        let stepped = replay(agent, &["--single-step"]).context("landing by single step")?;
        ensure!(
            stepped == replayed,
            "single step and breakpoint differ: {stepped:?} and {replayed:?}"
        );
        a_lying_counter_is_found(agent)?;
    }
    a_flipped_bit_is_found(agent)
}

fn busy(lab: &mut Lab) -> Result<()> {
    ensure!(
        lab.options().clock == "branches",
        "a guest that computes without exits is preempted only with --clock branches"
    );
    let mut injections = 0;
    for boot in 1..=BOOTS_MAX {
        let (workload, requests) = BUSY_BOOTS[(boot - 1) % BUSY_BOOTS.len()];
        record(lab, workload, requests)?;
        let agent = lab.host(Side::Primary).agent()?;
        // That two replays are alike is worth knowing once per workload; that one is exact, each time.
        let replayed = match boot <= 2 {
            true => replay_twice(agent)?,
            false => replay(agent, &[])?,
        };
        injections += replayed.between;
        println!(
            "  boot {boot}, {workload}: {} injections, replayed exactly; {injections} of {INJECTIONS}",
            replayed.between
        );
        if injections >= INJECTIONS {
            return Ok(());
        }
        lab.reset()?;
    }
    bail!("only {injections} injections between exits in {BOOTS_MAX} boots")
}

/// Landings leave the guest's debug exceptions to it. By single step that cannot be: then it is said.
fn debugged(lab: &mut Lab) -> Result<()> {
    ensure!(
        lab.options().clock == "branches",
        "landings between exits need --clock branches"
    );
    record(lab, "debug", DEBUGGED_REQUESTS)?;
    let agent = lab.host(Side::Primary).agent()?;
    let replayed = replay_twice(agent)?;
    let argv = [UNDERSTUDY, "replay", "--console", "--config", CONFIG];
    let done = agent.exec(&argv, LIMIT)?.success()?;
    let shown = String::from_utf8_lossy(&done.stderr);
    ensure!(
        shown.contains(DEBUGGED_SAYS),
        "the guest's debugger did not get its traps: {shown}"
    );
    let argv = [UNDERSTUDY, "replay", "--single-step", "--config", CONFIG];
    let stepped = agent.exec(&argv, LIMIT)?;
    let said = String::from_utf8_lossy(&stepped.stderr);
    ensure!(
        stepped.code == FAILED && said.contains("cannot be brought to a recorded point"),
        "stepping a guest that debugs itself ended with status {}: {said}",
        stepped.code
    );
    println!(
        "  {} injections among 5,000 traps of the guest's own, replayed exactly",
        replayed.between
    );
    Ok(())
}

fn replay_twice(agent: &Agent) -> Result<Report> {
    let (first, second) = (replay(agent, &[])?, replay(agent, &[])?);
    ensure!(
        first == second,
        "two replays differ: {first:?} and {second:?}"
    );
    Ok(first)
}

pub(crate) fn record(lab: &Lab, workload: &str, requests: u64) -> Result<()> {
    record_with(lab, workload, requests, lab.options())
}

/// With the workload, and digests of memory.
pub(crate) fn record_options(workload: &str, requests: u64, options: PairOptions) -> PairOptions {
    PairOptions {
        workload: workload.into(),
        cmdline: format!("understudy.requests={requests} {}", options.cmdline),
        memory_every: 200,
        ..options
    }
}

pub(crate) fn record_with(
    lab: &Lab,
    workload: &str,
    requests: u64,
    options: PairOptions,
) -> Result<()> {
    let options = record_options(workload, requests, options);
    let guest = Alone::start(lab, &options)?;
    let load = Load {
        window: 4,
        interval_us: 0,
        requests_max: requests,
        ..Load::default()
    };
    let mut client = Oracle::start(&Namespace::named("client"), &load)?;
    client.wait_connected()?;
    until(
        "all requests to be answered",
        LIMIT,
        Duration::from_millis(100),
        || {
            // The client ends by itself when the guest closes after the last answer: then only its
            // last words are left to be heard.
            let seen = match client.order(&Order::Tell) {
                Ok(seen) => seen,
                Err(_) => client.finish()?,
            };
            if let Some(fault) = seen.fault {
                bail!("the client: {fault}");
            }
            Ok((seen.acknowledged == requests).then_some(()))
        },
    )?;
    guest.wait_ended(lab, LIMIT)
}

/// Replays the recorded guest to its end, with every check.
pub(crate) fn replay(agent: &Agent, more: &[&str]) -> Result<Report> {
    replay_within(agent, more, LIMIT)
}

pub(crate) fn replay_within(agent: &Agent, more: &[&str], limit: Duration) -> Result<Report> {
    let argv = [&[UNDERSTUDY, "replay", "--json", "--config", CONFIG], more].concat();
    let done = agent
        .exec(&argv, limit)?
        .success()
        .context("the replay failed")?;
    let report: Report = serde_json::from_slice(&done.stdout)?;
    ensure!(
        report.divergence.is_none(),
        "the replay differs: {report:?}"
    );
    ensure!(
        report.end.is_some(),
        "the log does not say how the guest ended: {report:?}"
    );
    ensure!(
        report.memory_digests > 0,
        "no digest of memory was compared: {report:?}"
    );
    Ok(report)
}

fn a_lying_counter_is_found(agent: &Agent) -> Result<()> {
    diverges(
        agent,
        &["--counter-lies-after", HONEST_BRANCHES],
        "a counter that lies by one",
    )
}

/// A sabotaged replay must end as a divergence.
pub(crate) fn diverges(agent: &Agent, more: &[&str], what: &str) -> Result<()> {
    let argv = [&[UNDERSTUDY, "replay", "--config", CONFIG], more].concat();
    let done = agent.exec(&argv, LIMIT)?;
    ensure!(
        done.code == DIVERGED,
        "{what} ended with status {}: {}",
        done.code,
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

fn a_flipped_bit_is_found(agent: &Agent) -> Result<()> {
    let list = agent
        .exec(&["sh", "-c", &format!("ls -S {LOG_DIR} | head -1")], LIMIT)?
        .text();
    let file = format!("{LOG_DIR}/{}", list.trim());
    let bytes = agent.get(&file, usize::MAX)?;
    let middle = bytes.len() / 2;
    let flipped = bytes.get(middle).context("the log is empty")? ^ 0x10;
    let write = format!("dd of={file} bs=1 seek={middle} conv=notrunc");
    agent
        .exec_streaming(&["sh", "-c", &write], &[flipped], LIMIT, &mut |_, _| {})?
        .success()?;
    let argv = [UNDERSTUDY, "replay", "--config", CONFIG];
    let done = agent.exec(&argv, LIMIT)?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(
        done.code == DAMAGED,
        "a flipped bit ended with status {}: {said}",
        done.code
    );
    ensure!(
        said.contains(list.trim()),
        "the damaged file is not named: {said}"
    );
    Ok(())
}
