//! What the log costs: rate on the wire, idle and under load; bytes per record by kind.

use crate::Settings;
use crate::measure::Measures;
use anyhow::{Context, Result};
use rig::evidence;
use rig::lab::Lab;
use rig::link::Direction;
use rig::log_sizes;
use rig::netns::Namespace;
use rig::observation::Load;
use rig::oracle::Oracle;
use rig::pair::Pair;
use rig::scene::PROTECTED_LIMIT;
use rig::traffic::{self, Kind};
use rig::wait::{now, pause};
use std::time::Duration;

/// After this a guest that has booted is idle.
const SETTLED: Duration = Duration::from_secs(4);

pub(crate) fn measure(lab: &mut Lab, settings: &Settings, measures: &mut Measures) -> Result<()> {
    lab.reset()?;
    let options = lab.options();
    Pair::start_protected(lab, &options, PROTECTED_LIMIT)?;
    let lasting = Duration::from_secs(settings.seconds);
    // A guest that answers has booted; what a boot costs is not what idling costs.
    let mut client = Oracle::start(&Namespace::named("client"), &Load::default())?;
    client.wait_connected()?;
    client.finish()?;
    pause(SETTLED);
    let idle = rate(lab, || {
        pause(lasting);
        Ok(())
    })?;
    measures.add("idle_log_mbit_s", idle, "Mbit/s");
    let witness = rate(lab, || {
        let mut client = Oracle::start(&Namespace::named("client"), &Load::default())?;
        client.wait_connected()?;
        pause(lasting);
        client.finish().map(|_| ())
    })?;
    measures.add("witness_log_mbit_s", witness, "Mbit/s");
    for (name, kind) in [
        ("http", Kind::Http),
        ("receive", Kind::Receive),
        ("transmit", Kind::Transmit),
    ] {
        let rate = rate(lab, || traffic::make(kind, settings.seconds).map(|_| ()))?;
        measures.add(format!("{name}_log_mbit_s"), rate, "Mbit/s");
    }
    sizes(lab, measures)
}

/// Mbit/s towards the backup on the log link, with all protocol headers, while `load` lasts.
fn rate(lab: &Lab, load: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = now();
    let before = lab.link.counters(Direction::ToBackup).bytes;
    load()?;
    let bytes = lab.link.counters(Direction::ToBackup).bytes - before;
    Ok(bytes as f64 * 8.0 / 1e6 / began.elapsed().as_secs_f64())
}

fn sizes(lab: &mut Lab, measures: &mut Measures) -> Result<()> {
    let copies = lab.run_dir().join("bench-evidence");
    let _ = std::fs::remove_dir_all(&copies);
    evidence::collect(lab, &copies)?.verify()?;
    let sizes = log_sizes::read(&copies.join("primary/log")).context("the primary's log")?;
    for (kind, size) in &sizes.kinds {
        measures.add(format!("{kind}_records"), size.records as f64, "records");
        let name = match *kind {
            "timer" => "timer_record_bytes".to_owned(),
            "packet" => "packet_overhead_bytes".to_owned(),
            other => format!("{other}_overhead_bytes"),
        };
        measures.add(name, size.overhead(), "B");
    }
    Ok(())
}
