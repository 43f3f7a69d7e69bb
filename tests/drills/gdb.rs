//! Debian's gdb on a guest that is replayed in a host: to a function of the kernel, a step on, back again,
//! and back to where it was the time before.

use anyhow::{Context, Result, bail, ensure};
use rig::agent::Agent;
use rig::host::STATE_DIR;
use rig::lab::{Lab, Side, UNDERSTUDY};
use rig::pair::CONFIG;
use rig::wait::until;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Where the breakpoint is: every answer to a client passes here.
const FUNCTION: &str = "tcp_sendmsg";
const PORT: u16 = 2_345;

/// Time for the replay to get to where it is to be debugged.
const LISTEN_LIMIT: Duration = Duration::from_secs(120);

/// Time for all of gdb, in seconds: every step back replays a part of the log.
const GDB_LIMIT_S: &str = "400";

/// What gdb is told, and what it says is looked for by its first word. `$rsp` tells two visits apart.
const SCRIPT: [&str; 20] = [
    "set pagination off",
    "set confirm off",
    "set tcp connect-timeout 30",
    "set remotetimeout 200",
    "ATTACH",
    "break *tcp_sendmsg",
    "continue",
    "printf \"FIRST %lx %lx\\n\", $rip, $rsp",
    "stepi",
    "printf \"STEPPED %lx %lx\\n\", $rip, $rsp",
    "reverse-stepi",
    "printf \"BACK %lx %lx\\n\", $rip, $rsp",
    "continue",
    "printf \"SECOND %lx %lx\\n\", $rip, $rsp",
    "reverse-continue",
    "printf \"AGAIN %lx %lx\\n\", $rip, $rsp",
    "reverse-stepi",
    "printf \"CALLER %lx %lx\\n\", $rip, $rsp",
    "stepi",
    "printf \"CALLED %lx %lx\\n\", $rip, $rsp",
];

/// Replays the log of `side` up to record `until` and debugs it there.
pub(crate) fn goes_there_and_back(lab: &Lab, side: Side, until: u64, kernel: &Path) -> Result<()> {
    let agent = lab.host(side).agent()?;
    let host = side.address();
    let (at, until) = (format!("{host}:{PORT}"), until.to_string());
    let log = format!("{STATE_DIR}/gdb.log");
    let argv = [
        UNDERSTUDY, "replay", "--config", CONFIG, "--until", &until, "--gdb", &at,
    ];
    let server = agent.spawn(&argv, &log)?;
    let said = wait_listening(agent, server, &log).and_then(|()| debug(&at, kernel));
    // What went wrong before says more than a log that is not there.
    let told = agent.get(&log, 1 << 16).unwrap_or_default();
    if agent.poll(server)?.is_none() {
        agent.signal(server, rustix::process::Signal::KILL)?;
    }
    check(&said?, kernel)?;
    let told = String::from_utf8_lossy(&told);
    ensure!(
        told.contains("back with a state that was kept"),
        "every way back began at power-on: {told}"
    );
    Ok(())
}

fn wait_listening(agent: &Agent, server: u32, log: &str) -> Result<()> {
    until(
        "the replay to wait for gdb",
        LISTEN_LIMIT,
        Duration::from_millis(200),
        || {
            let said = String::from_utf8_lossy(&agent.get(log, 1 << 16)?).into_owned();
            if let Some(code) = agent.poll(server)? {
                bail!("it ended with status {code}: {said}");
            }
            Ok(said.contains("gdb may connect").then_some(()))
        },
    )
}

fn debug(at: &str, kernel: &Path) -> Result<String> {
    let mut command = Command::new("timeout");
    command
        .args([GDB_LIMIT_S, "gdb", "-nx", "-batch"])
        .arg(kernel);
    for line in SCRIPT {
        let attach = format!("target remote {at}");
        command.args(["-ex", if line == "ATTACH" { &attach } else { line }]);
    }
    let output = command.args(["-ex", "detach"]).output();
    let output = output.context("cannot run gdb: `cargo xtask images` installs it")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "gdb: {}: {said}\n{complaints}",
        output.status
    );
    Ok(said + &complaints)
}

/// The instruction and stack pointers that gdb printed behind `word`.
fn place(said: &str, word: &str) -> Result<(u64, u64)> {
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
    let line = line.with_context(|| format!("gdb did not come to {word}: {said}"))?;
    let (rip, rsp) = line.split_once(' ').context("two numbers")?;
    let number = |text: &str| u64::from_str_radix(text, 16);
    Ok((number(rip)?, number(rsp)?))
}

fn check(said: &str, kernel: &Path) -> Result<()> {
    let symbols = Command::new("nm")
        .arg(kernel)
        .output()
        .context("cannot run nm")?;
    let symbols = String::from_utf8_lossy(&symbols.stdout).into_owned();
    let wanted = format!(" T {FUNCTION}");
    let entry = symbols.lines().find_map(|line| line.strip_suffix(&wanted));
    let entry = u64::from_str_radix(entry.context("the kernel has no such function")?, 16)?;
    let [first, stepped, back, second, again] =
        ["FIRST", "STEPPED", "BACK", "SECOND", "AGAIN"].map(|word| place(said, word));
    let (first, stepped) = (first?, stepped?);
    ensure!(
        first.0 == entry,
        "the breakpoint was not met at {entry:x}: {said}"
    );
    ensure!(
        stepped.0 != entry && stepped.0 - entry <= 15,
        "no step was made: {said}"
    );
    ensure!(back? == first, "the step back led elsewhere: {said}");
    ensure!(
        second?.0 == entry,
        "the breakpoint was not met again: {said}"
    );
    ensure!(again? == first, "the way back led elsewhere: {said}");
    // Before a function's first instruction there is the call, with nothing on the stack yet.
    let (caller, called) = (place(said, "CALLER")?, place(said, "CALLED")?);
    ensure!(
        caller.0 != entry && caller.1 >= first.1,
        "there is no call before the function: {said}"
    );
    ensure!(called == first, "the call led elsewhere: {said}");
    Ok(())
}
