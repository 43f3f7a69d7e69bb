//! After a failover both logs are looked into with every command, and the survivor's is replayed.
//!
//! The captures are read by tshark: none of what was acknowledged on any connection may be missing from the
//! replay's capture, which has both directions whole. gdb debugs the survivor's guest as it was shortly before the
//! failover.

use crate::{Drill, conversation, gdb};
use anyhow::{Context, Result, bail, ensure};
use rig::fault::Fault;
use rig::host::STATE_DIR;
use rig::lab::{Lab, Side, UNDERSTUDY};
use rig::observation::Load;
use rig::pair::CONFIG;
use rig::scene::Scene;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub(crate) const DRILLS: &[Drill] = &[Drill {
    name: "inspect",
    shows: "a failover's logs in every log command; its replay's capture whole for tshark; gdb, both ways",
    run,
}];

/// Time for a replay in a host.
const LIMIT: Duration = Duration::from_secs(300);

/// Records before the failover at which gdb begins: some requests are on their way there.
const RECORDS_BEFORE: u64 = 400;

/// Sequence numbers that must have been acknowledged at least, for the capture to be worth judging.
const ACKNOWLEDGED_MIN: u64 = 10_000;

fn run(lab: &mut Lab) -> Result<()> {
    let program = lab.arbiter.program().to_owned();
    let copies = lab.run_dir().join("evidence");
    let options = lab.options();
    let mut scene = Scene::open(lab, &options, &Load::default())?;
    scene.strike(Fault::Kill(Side::Primary))?;
    scene.wait_solo(Side::Backup)?;
    scene.wait_served()?;
    scene.close()?;
    let logs = Side::BOTH.map(|side| copies.join(side.name()).join("log"));
    for log in &logs {
        every_command(&program, log).with_context(|| log.display().to_string())?;
    }
    let [primary, backup] = &logs;
    let words = ["diff", &path(primary), &path(backup)];
    let said = log_command(&program, &words)?;
    ensure!(
        !said.contains("the logs differ") || said.contains("never acknowledged"),
        "{said}"
    );
    let stat = log_command(&program, &["stat", "--json", &path(backup)])?;
    let stat: serde_json::Value = serde_json::from_str(&stat)?;
    ensure!(
        stat["generations"].as_array().map(Vec::len) == Some(2),
        "the survivor's log has other generations: {}",
        stat["generations"]
    );
    let generation = stat["generations"][1]["from"]["index"].as_u64();
    let generation = generation.context("where the second generation begins")?;
    stop_survivor(lab)?;
    replayed_capture_is_whole(lab, &copies)?;
    if lab.options().clock != "exits" {
        // A replay on the branch clock needs the processor's breakpoints for itself.
        return Ok(());
    }
    let until = generation.saturating_sub(RECORDS_BEFORE);
    gdb::goes_there_and_back(lab, Side::Backup, until, lab.guest_kernel())
}

fn stop_survivor(lab: &Lab) -> Result<()> {
    let agent = lab.host(Side::Backup).agent()?;
    let stop = agent.exec(&[UNDERSTUDY, "stop", "--config", CONFIG], LIMIT)?;
    stop.success().context("the survivor does not stop")?;
    Ok(())
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

/// Runs `understudy log WORDS` here; it must end with status 0.
fn log_command(program: &Path, words: &[&str]) -> Result<String> {
    let output = Command::new(program).arg("log").args(words).output();
    let output = output.context("cannot run understudy")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("log {}: {}: {said}", words.join(" "), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn every_command(program: &Path, log: &Path) -> Result<()> {
    let log_dir = path(log);
    let capture = path(&log.with_extension("pcapng"));
    let verified = log_command(program, &["verify", &log_dir])?;
    ensure!(verified.contains("sound: "), "{verified}");
    let all = log_command(program, &["ls", &log_dir])?.lines().count();
    let json = log_command(program, &["ls", "--json", &log_dir])?;
    ensure!(
        json.lines().count() == all,
        "JSON has other lines than text"
    );
    for line in json.lines() {
        let _: serde_json::Value = serde_json::from_str(line)?;
    }
    let chosen = log_command(program, &["ls", &log_dir, "--filter", "tcp and in"])?;
    ensure!(chosen.contains(" tcp "), "no TCP packet in {log_dir}");
    for words in [
        &["stat", &log_dir][..],
        &["show", &log_dir, "0"],
        &["grep", "--hex", "0800", &log_dir],
        &["export", &log_dir, "--csv", "/dev/null"],
        &["export", &log_dir, "--perfetto", "/dev/null"],
        &["export", &log_dir, "--pcapng", &capture],
    ] {
        let said = log_command(program, words)?;
        ensure!(
            words[0] == "export" || !said.is_empty(),
            "{words:?} says nothing"
        );
    }
    let packets = log_command(
        program,
        &["ls", &log_dir, "--filter", "packet or device == net0"],
    )?;
    // A killed host's log may have an unsynced tail, which has a line of its own.
    let packets = packets
        .lines()
        .filter(|line| !line.starts_with("unsynced: "));
    let (seen, packets) = (tshark(&capture, "frame")?.lines().count(), packets.count());
    ensure!(seen == packets, "tshark sees {seen} of {packets} packets");
    Ok(())
}

/// The lines that tshark has for a display filter.
fn tshark(capture: &str, filter: &str) -> Result<String> {
    let output = Command::new("tshark")
        .args(["-n", "-r", capture, "-Y", filter])
        .output()
        .context("cannot run tshark: `cargo xtask images` installs it")?;
    ensure!(
        output.status.success(),
        "tshark does not read {capture}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn replayed_capture_is_whole(lab: &Lab, copies: &Path) -> Result<()> {
    let agent = lab.host(Side::Backup).agent()?;
    let there = format!("{STATE_DIR}/replay.pcapng");
    let argv = [UNDERSTUDY, "replay", "--config", CONFIG, "--pcapng", &there];
    agent.exec(&argv, LIMIT)?.success().context("the replay")?;
    let here: PathBuf = copies.join("replay.pcapng");
    std::fs::write(&here, agent.get(&there, usize::MAX)?)?;
    let here = path(&here);
    ensure!(
        !tshark(&here, "tcp.srcport == 7 && tcp.len > 0")?.is_empty(),
        "the replay's capture has nothing that the guest sent"
    );
    let found = conversation::read(&here, "tcp")?;
    ensure!(
        found.acknowledged >= ACKNOWLEDGED_MIN,
        "only {} bytes of TCP were acknowledged",
        found.acknowledged
    );
    if let Some(frame) = found.gap {
        bail!("frame {frame} of {here} acknowledges what is not in the capture");
    }
    // The check itself: without one of the guest's answers, the client acknowledges what is not there.
    let spoiled = tshark(
        &here,
        "tcp.srcport == 7 && tcp.len > 0 && !tcp.analysis.retransmission",
    )?;
    let answer = spoiled.split_whitespace().next().unwrap_or_default();
    let without = format!("tcp && frame.number != {answer}");
    let gap = conversation::read(&here, &without)?.gap;
    ensure!(
        gap.is_some(),
        "frame {answer} is not missed: the check finds nothing"
    );
    Ok(())
}
