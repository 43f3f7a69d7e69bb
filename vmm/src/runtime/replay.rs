//! Replay of a log on disk, from its beginning, with every check the backup makes.

use super::guest::Blueprint;
use super::host_clock::HostClock;
use super::session::RuntimeError;
use crate::config::Config;
use crate::replication::divergence::Divergence;
use crate::replication::engine::{Emitted, Engine, EngineConfig, Next, Offer};
use crate::replication::executor::{Executor, Produced};
use logging_channel::execution_point::PointKind;
use logging_channel::record::{Digests, EndReason, OutputDevice, Record, RecordBody};
use logging_channel::segment::reader::LogReader;
use std::path::Path;

/// Records handed to the engine at a time.
const BATCH_RECORDS: usize = 1_024;

/// What came of a replay.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ReplayReport {
    /// Records replayed.
    pub records: u64,
    /// Synchronous exits.
    pub exits: u64,
    /// Records that carried a digest, all of which agreed up to the end or the divergence.
    pub marks: u64,
    /// Of them, those with a digest of all guest memory.
    pub memory_digests: u64,
    /// Records of input applied between exits, where only the branch clock can place them.
    pub between: u64,
    /// Guest time at the end, microseconds.
    pub guest_time_us: u64,
    /// Host time it took, microseconds.
    pub host_time_us: u64,
    /// How the guest ended; none when the log does not say.
    pub end: Option<String>,
    /// Digest of all registers at the end.
    pub registers_digest: u64,
    /// Digest of all guest memory at the end.
    pub memory_digest: u64,
    /// The first difference, if there is one.
    pub divergence: Option<String>,
}

/// Counts while the replay runs.
#[derive(Default)]
struct Progress {
    records: u64,
    exits: u64,
    marks: u64,
    memory_digests: u64,
    between: u64,
    end: Option<EndReason>,
    divergence: Option<Box<Divergence>>,
}

/// How a replay on the branch clock lands.
#[derive(Debug, Clone, Copy)]
pub struct LandingOptions {
    /// Branches short of a point at which the counter is armed.
    pub margin: u64,
    /// Sabotage for drills: from this count on the counter reads one too many.
    pub counter_lies_after: Option<u64>,
}

/// Replays the log in `directory`. `console` is given the guest's console output, `progress` the
/// number of records done so far, now and then.
///
/// # Errors
/// When the log is damaged or of another guest, or the host fails. A divergence is no error but part
/// of the report.
pub fn replay(
    config: &Config,
    directory: &Path,
    landing: LandingOptions,
    mut console: impl FnMut(&[u8]),
    mut progress: impl FnMut(u64),
) -> Result<ReplayReport, RuntimeError> {
    let clock = HostClock::start();
    let mut log = LogReader::open(directory);
    let Some(first) = log.next_record()? else {
        return Err(RuntimeError::NoLog(directory.display().to_string()));
    };
    let RecordBody::Start(start) = &first.body else {
        return Err(RuntimeError::NoStart(first.index.0));
    };
    let guest = Blueprint::read(config, start.clock, landing.margin)?
        .sabotaged(landing.counter_lies_after)
        .build(start)?;
    let engine_config = EngineConfig::default();
    let mut engine = Engine::replaying(guest.executor, engine_config, no_entropy())?;
    let mut done = Progress::default();
    let mut batch = vec![first];
    loop {
        fill(&mut log, &mut batch)?;
        let last = batch.is_empty();
        done.count(&batch);
        let offer = if last {
            Offer::FinishLog
        } else {
            Offer::Records(std::mem::take(&mut batch))
        };
        engine.offer(clock.now(), offer);
        while engine.poll(clock.now())? == Next::Run {
            engine.execute()?;
        }
        for emitted in engine.take_outbox() {
            done.take(emitted, &mut console);
        }
        progress(done.records);
        if last || done.end.is_some() || done.divergence.is_some() {
            break;
        }
    }
    let digests = engine.executor().digests(true)?;
    let guest_time_us = engine.executor().guest_time().as_micros();
    Ok(done.report(digests, guest_time_us, clock.now().0 / 1_000))
}

fn fill(log: &mut LogReader, batch: &mut Vec<Record>) -> Result<(), RuntimeError> {
    while batch.len() < BATCH_RECORDS {
        match log.next_record()? {
            Some(record) => batch.push(record),
            None => break,
        }
    }
    Ok(())
}

/// A replay needs no entropy: what the guest was given is in the log.
fn no_entropy() -> crate::replication::engine::EntropySource {
    Box::new(|_| Vec::new())
}

impl Progress {
    fn count(&mut self, batch: &[Record]) {
        for record in batch {
            self.between += u64::from(
                record.point.kind == PointKind::Between && record.body != RecordBody::Progress,
            );
            if let RecordBody::Mark(digests) = &record.body {
                self.marks += 1;
                self.memory_digests += u64::from(digests.memory.is_some());
            }
        }
    }

    fn take(&mut self, emitted: Emitted, console: &mut impl FnMut(&[u8])) {
        match emitted {
            Emitted::Replayed {
                next,
                exits,
                outputs,
            } => {
                self.records = next.0;
                self.exits = exits;
                for (_, Produced { device, bytes }) in outputs {
                    if device == OutputDevice::Console {
                        console(&bytes);
                    }
                }
            }
            Emitted::Ended(reason) => self.end = Some(reason),
            Emitted::Diverged(divergence) => self.divergence = Some(divergence),
            Emitted::Recorded { .. } | Emitted::Drained | Emitted::Live => {}
        }
    }

    fn report(self, digests: Digests, guest_time_us: u64, host_time_us: u64) -> ReplayReport {
        ReplayReport {
            records: self.records,
            exits: self.exits,
            marks: self.marks,
            memory_digests: self.memory_digests,
            between: self.between,
            guest_time_us,
            host_time_us,
            end: self.end.map(|reason| format!("{reason:?}")),
            registers_digest: digests.registers,
            memory_digest: digests.memory.unwrap_or_default(),
            divergence: self.divergence.map(|d| d.to_string()),
        }
    }
}
