//! What it takes to give a running guest a backup again, and to carry on a guest that makes no exits.
//!
//! Against the size of guest memory, most of it full of what does not compress, and against the rate at which a
//! program writes to it. The link is measured in the same run by a plain TCP stream of the same hosts over the same path. Times
//! are the product's own (`last_transfer` in `status`); MB are 10^6 bytes.

use crate::Settings;
use crate::measure::Measures;
use anyhow::{Context, Result, ensure};
use logging_channel::host_time::GuestTime;
use logging_channel::record::RecordBody;
use logging_channel::segment::LogReader;
use rig::host::STATE_DIR;
use rig::lab::{BUSYBOX, Lab, Side, UNDERSTUDY};
use rig::netns::{Namespace, address};
use rig::observation::{Load, Order};
use rig::oracle::Oracle;
use rig::pair::{Alone, CONFIG, Pair, PairOptions};
use rig::progress::note;
use rig::scene::{GO_LIVE_LIMIT, PROGRESS_LIMIT, PROTECTED_LIMIT};
use rig::wait::{now, pause, until};
use std::path::Path;
use std::time::Duration;
use vmm::replication::transfer_watch::{TransferPhase, TransferStatus};

/// Guest memory, and how much of it a program fills; all in MiB.
const SIZES: [(u32, u32); 3] = [(64, 8), (256, 160), (1_024, 800)];

/// Pages written each second, by a guest of the second size.
const RATES: [u32; 4] = [100, 1_000, 4_000, 16_000];

/// What they are written to, in MiB.
const WRITTEN_MIB: u32 = 64;

/// Bytes of the plain stream.
const STREAM_MIB: u32 = 96;

/// Where it goes, and what its reader prints, in the backup's host.
const STREAM_PORT: u16 = 7_999;
const SINK_SAID: &str = "/run/host/sink.out";

/// Time between two looks at what ends soon.
const PROMPTLY: Duration = Duration::from_millis(20);

/// A question costs a host a process; what is measured is not to wait for it.
const INTERVAL: Duration = Duration::from_millis(500);

const LIMIT: Duration = Duration::from_secs(180);

/// Million rounds of the CPU-bound program.
const SPIN: u32 = 200;

/// Runs of each kind for the cost of tracking; the quickest counts.
const RUNS: u32 = 2;

pub(crate) fn measure(lab: &mut Lab, settings: &Settings, measures: &mut Measures) -> Result<()> {
    lab.reset()?;
    let link = link_mb_s(lab)?;
    measures.add("link_mb_s", link, "MB/s");
    let mut missed = Vec::new();
    let mut keep = |what: String, result: Result<()>| {
        if let Err(error) = result {
            eprintln!("  {what}: {error:#}");
            missed.push(what);
        }
    };
    for (memory_mib, fill_mib) in SIZES {
        let size = of_size(lab, memory_mib, fill_mib, link, measures);
        keep(format!("{memory_mib} MiB"), size);
    }
    for pages in RATES {
        keep(format!("{pages} pages/s"), at_rate(lab, pages, measures));
    }
    keep("under load".to_owned(), under_load(lab, measures));
    keep("spinning".to_owned(), spinning(lab, settings, measures));
    keep("tracking".to_owned(), tracking(lab, measures));
    ensure!(missed.is_empty(), "not measured: {}", missed.join(", "));
    Ok(())
}

/// What a plain TCP stream gets from the primary's host to the backup's.
fn link_mb_s(lab: &Lab) -> Result<f64> {
    let from = lab.host(Side::Primary).agent()?;
    let to = lab.host(Side::Backup).agent()?;
    let sink = format!("{BUSYBOX} nc -l -p {STREAM_PORT} -e {BUSYBOX} dd of=/dev/null bs=64k");
    let sink = to.spawn(&["sh", "-c", &sink], SINK_SAID)?;
    let listens = format!("grep -q ':{STREAM_PORT:04X} .* 0A ' /proc/net/tcp /proc/net/tcp6");
    until("somebody to listen", LIMIT, PROMPTLY, || {
        let found = to.exec(&["sh", "-c", &listens], LIMIT)?;
        Ok((found.code == 0).then_some(()))
    })?;
    let stream = format!(
        "{BUSYBOX} nc {} {STREAM_PORT} -e {BUSYBOX} dd if=/dev/zero bs=64k count={}",
        address::BACKUP_LOG,
        STREAM_MIB * 16
    );
    let began = now();
    from.exec(&["sh", "-c", &stream], LIMIT)?.success()?;
    // The reader's end counts: by then all has come through.
    let code = until("the plain stream to end", LIMIT, PROMPTLY, || to.poll(sink))?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(code == 0, "the stream's reader ended with status {code}");
    Ok(f64::from(STREAM_MIB) * 1.048_576 / seconds)
}

fn of_size(
    lab: &mut Lab,
    memory_mib: u32,
    fill_mib: u32,
    link: f64,
    measures: &mut Measures,
) -> Result<()> {
    let (given, restored_s) = give_away(lab, &writing(lab, memory_mib, fill_mib, 0), || Ok(()))?;
    let name = |what: &str| format!("{what}_{memory_mib}mib");
    let mb_s = given.bytes as f64 / 1e6 / seconds(given.copying_ns);
    measures.add(name("transfer_mb"), given.bytes as f64 / 1e6, "MB");
    measures.add(name("transfer_mb_s"), mb_s, "MB/s");
    measures.add(name("transfer_over_link"), mb_s / link, "ratio");
    measures.add(name("transfer_s"), seconds(given.total_ns), "s");
    measures.add(name("restored_s"), restored_s, "s");
    add_pauses(&given, name, measures);
    Ok(())
}

fn at_rate(lab: &mut Lab, pages: u32, measures: &mut Measures) -> Result<()> {
    let options = writing(lab, SIZES[1].0, WRITTEN_MIB, pages);
    let (given, _) = give_away(lab, &options, || Ok(()))?;
    let name = |what: &str| format!("{what}_{pages}_pages_s");
    measures.add(name("transfer_s"), seconds(given.total_ns), "s");
    measures.add(name("rounds"), f64::from(given.rounds), "rounds");
    measures.add(name("slowed_ms"), given.slowed_ns_max as f64 / 1e6, "ms");
    add_pauses(&given, name, measures);
    Ok(())
}

/// A client is served meanwhile; what it notices is its longest silence.
fn under_load(lab: &mut Lab, measures: &mut Measures) -> Result<()> {
    let options = writing(lab, SIZES[0].0, SIZES[0].1, 0);
    let mut client = None;
    let (given, _) = give_away(lab, &options, || {
        let mut served = Oracle::start(&Namespace::named("client"), &Load::steady())?;
        served.wait_connected()?;
        served.wait_progress(0, 50, PROGRESS_LIMIT)?;
        client
            .insert(served)
            .order(&Order::Phase("transfer".into()))?;
        Ok(())
    })?;
    let seen = client.context("the client")?.finish()?;
    ensure!(seen.complaints().is_empty(), "{:?}", seen.complaints());
    let name = |what: &str| format!("{what}_witness_load");
    measures.add(name("silence_ms"), seen.phase("transfer").silence_ms, "ms");
    add_pauses(&given, name, measures);
    Ok(())
}

fn add_pauses(given: &TransferStatus, name: impl Fn(&str) -> String, measures: &mut Measures) {
    measures.add(name("pause_ms"), given.pause_ns as f64 / 1e6, "ms");
    measures.add(name("output_waits_ms"), given.waiting_ns as f64 / 1e6, "ms");
}

fn writing(lab: &Lab, memory_mib: u32, fill_mib: u32, pages: u32) -> PairOptions {
    PairOptions {
        memory_mib,
        workload: "writing".into(),
        cmdline: format!("understudy.fill={fill_mib} understudy.pages={pages}"),
        log: false,
        ..lab.options()
    }
}

/// A pair loses its backup, the guest fills its memory, and a new backup is given all of it: what came of that,
/// and how many seconds after its start the new backup protected the guest. `before` is done right before.
fn give_away(
    lab: &mut Lab,
    options: &PairOptions,
    before: impl FnOnce() -> Result<()>,
) -> Result<(TransferStatus, f64)> {
    lab.reset()?;
    let mut pair = Pair::start_protected(lab, options, PROTECTED_LIMIT)?;
    pair.kill_process(lab, Side::Backup)?;
    pair.wait_role(lab, Side::Primary, "solo", GO_LIVE_LIMIT)?;
    let agent = lab.host(Side::Primary).agent()?;
    let filled = format!("grep -q 'witness: filled' {STATE_DIR}/console.log");
    until("the guest to fill its memory", LIMIT, INTERVAL, || {
        let found = agent.exec(&["sh", "-c", &filled], PROGRESS_LIMIT)?;
        Ok((found.code == 0).then_some(()))
    })?;
    before()?;
    let began = now();
    pair.stand_by(lab, Side::Backup, options)?;
    let given = until("the state to be given away", LIMIT, INTERVAL, || {
        let status = pair.status(lab, Side::Primary)?.last_transfer;
        let over = |given: &TransferStatus| {
            matches!(given.phase, TransferPhase::Done | TransferPhase::Failed)
        };
        Ok(status.filter(over))
    })?;
    let restored = began.elapsed().as_secs_f64();
    note(&format!("{given:?}"));
    ensure!(given.phase == TransferPhase::Done, "{given:?}");
    Ok((given, restored))
}

/// State records of a guest that only computes, on the exit clock.
fn spinning(lab: &mut Lab, settings: &Settings, measures: &mut Measures) -> Result<()> {
    lab.reset()?;
    let options = PairOptions {
        clock: "exits".into(),
        workload: "spinning".into(),
        ..lab.options()
    };
    let guest = Alone::start(lab, &options)?;
    let agent = lab.host(Side::Primary).agent()?;
    let ticks = format!("grep -q 'understudy: tick' {STATE_DIR}/console.log");
    until("the guest to compute", LIMIT, INTERVAL, || {
        let found = agent.exec(&["sh", "-c", &ticks], PROGRESS_LIMIT)?;
        Ok((found.code == 0).then_some(()))
    })?;
    pause(Duration::from_secs(2 * settings.seconds));
    let stop = [UNDERSTUDY, "stop", "--config", CONFIG];
    agent.exec(&stop, LIMIT)?.success()?;
    guest.wait_ended(lab, LIMIT)?;
    let copy = lab.run_dir().join("bench-spinning");
    let _ = std::fs::remove_dir_all(&copy);
    lab.host(Side::Primary).read_state(&copy)?;
    let (states, bytes, spun_s) = states_in(&copy.join("log"))?;
    ensure!(states > 1 && spun_s > 0.0, "{states} states in {spun_s} s");
    measures.add(
        "state_record_kib",
        bytes as f64 / 1_024.0 / states as f64,
        "KiB",
    );
    measures.add("state_records_s", states as f64 / spun_s, "1/s");
    let mbit = bytes as f64 * 8.0 / 1e6 / spun_s;
    measures.add("state_records_mbit_s", mbit, "Mbit/s");
    Ok(())
}

/// States, their bytes, and seconds of guest time from the first to the last; the first has all of the boot in
/// it and is left out.
fn states_in(log: &Path) -> Result<(u64, u64, f64)> {
    let mut log = LogReader::open(log);
    let (mut states, mut bytes) = (0, 0);
    let mut span: Option<(GuestTime, GuestTime)> = None;
    while let Some(record) = log.next_record()? {
        let RecordBody::State { last, bytes: piece } = &record.body else {
            continue;
        };
        if let Some((_, end)) = &mut span {
            bytes += piece.len() as u64;
            states += u64::from(*last);
            *end = record.guest_time;
        } else if *last {
            span = Some((record.guest_time, record.guest_time));
        }
    }
    let (from, to) = span.context("no state in the log")?;
    let us = to.as_micros().saturating_sub(from.as_micros());
    Ok((states, bytes, us as f64 / 1e6))
}

/// Guests that compute and guests that start processes, with the writes to their memory tracked (and
/// their states said where they make no exits), and without.
fn tracking(lab: &mut Lab, measures: &mut Measures) -> Result<()> {
    for workload in ["spin", "loops"] {
        let mut best = [f64::INFINITY; 2];
        for _ in 0..RUNS {
            for (best, stall_ms) in best.iter_mut().zip([0, PairOptions::default().stall_ms]) {
                let options = PairOptions {
                    clock: "exits".into(),
                    workload: workload.into(),
                    cmdline: format!("understudy.spin={SPIN}"),
                    log: false,
                    stall_ms,
                    ..lab.options()
                };
                lab.reset()?;
                let began = now();
                Alone::start(lab, &options)?.wait_ended(lab, LIMIT)?;
                *best = best.min(began.elapsed().as_secs_f64());
            }
        }
        let [without, with] = best;
        measures.add(format!("{workload}_s_untracked"), without, "s");
        measures.add(format!("{workload}_s_tracked"), with, "s");
        measures.add(
            format!("{workload}_tracking_cost"),
            with / without - 1.0,
            "ratio",
        );
    }
    Ok(())
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
