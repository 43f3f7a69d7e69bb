//! After a failover both logs are looked into with every command, and both are replayed.
//!
//! The captures are read by tshark: none of what was acknowledged on any connection may be missing from the
//! replay's capture, which has both directions whole. gdb debugs the survivor's guest as it was shortly before the
//! failover.

use crate::{Drill, conversation, gdb, timeline};
use anyhow::{Context, Result, bail, ensure};
use rig::fault::Fault;
use rig::host::STATE_DIR;
use rig::lab::{Lab, Side, UNDERSTUDY};
use rig::observation::Load;
use rig::pair::{CONFIG, PairOptions};
use rig::scene::Scene;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub(crate) const DRILLS: &[Drill] = &[Drill {
    name: "inspect",
    shows: "a failover's logs and journals in every log command; both replayed, a capture whole for tshark; gdb, both ways",
    run,
}];

/// Time for a replay in a host.
const LIMIT: Duration = Duration::from_secs(300);

/// Between places at which a replay can keep the guest's state.
const SETTLE_MS: u32 = 300;

/// Records before the failover at which gdb begins: some requests are on their way there.
const RECORDS_BEFORE: u64 = 400;

/// Sequence numbers that must have been acknowledged at least, for the capture to be worth judging.
const ACKNOWLEDGED_MIN: u64 = 10_000;

fn run(lab: &mut Lab) -> Result<()> {
    let program = lab.arbiter.program().to_owned();
    let copies = lab.run_dir().join("evidence");
    // So that gdb need not go back to power-on each time.
    let options = PairOptions {
        settle_ms: SETTLE_MS,
        ..lab.options()
    };
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
    journals_tell(&program, &logs)?;
    stop_survivor(lab)?;
    replayed_capture_is_whole(lab, &copies)?;
    lost_side_is_replayed(lab, primary)?;
    if lab.options().clock != "exits" {
        // A replay on the branch clock needs the processor's breakpoints for itself.
        return Ok(());
    }
    let until = generation.saturating_sub(RECORDS_BEFORE);
    gdb::goes_there_and_back(lab, Side::Backup, until, lab.guest_kernel())
}

/// Both journals know who was live, how long output waited, and what happened; a timeline has it.
fn journals_tell(program: &Path, logs: &[PathBuf; 2]) -> Result<()> {
    let json = |log: &Path| -> Result<serde_json::Value> {
        let text = log_command(program, &["stat", "--json", &path(log)])?;
        Ok(serde_json::from_str(&text)?)
    };
    let [primary, backup] = [json(&logs[0])?, json(&logs[1])?];
    let (lost, survivor) = (&primary["journal"]["holder"], &backup["journal"]["holder"]);
    ensure!(
        lost.is_string() && survivor.is_string() && lost != survivor,
        "{lost}, {survivor}"
    );
    for (stat, generation, live) in [
        (&primary, 0, lost),
        (&backup, 0, lost),
        (&backup, 1, survivor),
    ] {
        let told = &stat["generations"][generation]["live"];
        ensure!(
            told == live,
            "generation {generation} was live on {live}, not {told}"
        );
    }
    for (stat, delay) in [
        (&primary, "gate"),
        (&primary, "acknowledgement"),
        (&primary, "lag"),
        (&backup, "lag"),
    ] {
        let count = stat["journal"][delay]["count"].as_u64().unwrap_or(0);
        ensure!(count > 0, "no {delay} was measured: {}", stat["journal"]);
    }
    let events = stat_events(&backup);
    for what in [
        "peer suspected",
        "claims generation 2",
        "granted generation 2",
    ] {
        ensure!(
            events.contains(what),
            "the survivor's journal lacks `{what}`: {events}"
        );
    }
    for (log, names) in [
        (
            &logs[0],
            &["gate delay, ms", "lag, ms", "ack", "released"][..],
        ),
        (
            &logs[1],
            &[
                "lag, ms",
                "peer silent",
                "claim of generation 2",
                "solo, generation 2",
            ][..],
        ),
    ] {
        let file = path(&log.with_extension("perfetto.json"));
        log_command(program, &["export", &path(log), "--perfetto", &file])?;
        let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        timeline::judge(&trace).with_context(|| file.clone())?;
        for name in names {
            ensure!(
                timeline::has(&trace, name),
                "{file} has nothing called `{name}`"
            );
        }
    }
    Ok(())
}

fn stat_events(stat: &serde_json::Value) -> String {
    let events = stat["journal"]["events"].as_array();
    let what = events
        .into_iter()
        .flatten()
        .filter_map(|event| event["what"].as_str());
    what.collect::<Vec<_>>().join("; ")
}

/// The log that came off the killed host's disk is replayed on the survivor's host, as far as it goes.
fn lost_side_is_replayed(lab: &Lab, log: &Path) -> Result<()> {
    let agent = lab.host(Side::Backup).agent()?;
    let there = format!("{STATE_DIR}/lost-log");
    agent.exec(&["mkdir", "-p", &there], LIMIT)?.success()?;
    for entry in std::fs::read_dir(log)? {
        let file = entry?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        agent.put(&format!("{there}/{name}"), 0o644, &std::fs::read(&file)?)?;
    }
    let argv = [UNDERSTUDY, "replay", "--config", CONFIG, "--json", &there];
    let replayed = agent.exec(&argv, LIMIT)?.success();
    let replayed = replayed.context("the replay of the lost side's log")?;
    let report: serde_json::Value = serde_json::from_slice(&replayed.stdout)?;
    let records = report["records"].as_u64().unwrap_or(0);
    ensure!(
        records > RECORDS_BEFORE,
        "only {records} records of it: {report}"
    );
    Ok(())
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
