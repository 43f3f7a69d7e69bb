//! What the vCPU's thread begins with: a guest to record, at power-on or as a snapshot has it, a log to
//! replay from its Start, or the state of a running guest.

use super::guest::Blueprint;
use super::host_clock::HostClock;
use super::loader::Loader;
use super::session::{RuntimeError, set_nice};
use super::snapshot_file::Loaded;
use super::vcpu_thread::{VcpuEnd, VcpuReport, drive};
use super::watchdog::{StretchMeter, Watchdog, WatchdogConfig};
use crate::confine::Confinement;
use crate::confine::filter::{Thread, confine_thread};
use crate::confine::privileges::drop_capabilities;
use crate::kvm::dirty::DirtyLog;
use crate::kvm::kick::Kicker;
use crate::replication::engine::{Emitted, Engine, EngineConfig, EntropySource, Offer};
use logging_channel::record::{ClockKind, LogIndex, Record, RecordBody};
use std::io::Read;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};
use tokio::sync::mpsc;

/// How often the watchdog looks in the time after which a guest without exits is stopped.
const TICKS_PER_STALL: u64 = 4;

/// What the vCPU thread begins with.
pub(super) struct VcpuStart {
    pub(super) blueprint: Arc<Blueprint>,
    pub(super) offers: Receiver<Offer>,
    pub(super) reports: mpsc::Sender<VcpuReport>,
    pub(super) kicker: Arc<OnceLock<Kicker>>,
    pub(super) dirty: Arc<OnceLock<Arc<DirtyLog>>>,
    pub(super) clock: HostClock,
    pub(super) engine: EngineConfig,
    pub(super) confinement: Confinement,
    /// Nice value of its thread.
    pub(super) nice: i32,
}

/// What the vCPU thread is for.
pub(super) enum Task {
    /// Record a guest from power-on, under a generation, on a clock.
    Record(u64, ClockKind),
    /// Record a guest from where it was saved.
    Resume(Box<Loaded>),
    /// Replay what will be offered.
    Replay,
}

/// Starts the vCPU thread.
pub(super) fn spawn(start: Option<VcpuStart>, task: Task) -> Result<(), RuntimeError> {
    let Some(start) = start else { return Ok(()) };
    std::thread::Builder::new()
        .name("vcpu".to_owned())
        .spawn(move || start.run(task))
        .map(|_detached| ())
        .map_err(|source| RuntimeError::Io {
            operation: "start the vCPU thread",
            source,
        })
}

impl VcpuStart {
    fn run(self, task: Task) {
        set_nice(self.nice);
        let outcome = match task {
            Task::Record(generation, clock) => self.record(generation, clock),
            Task::Resume(loaded) => self.resume(*loaded),
            Task::Replay => self.replay(),
        };
        if let Err(error) = outcome {
            // A node that is gone needs no report.
            let _ = self
                .reports
                .blocking_send(VcpuReport::Failed(error.to_string()));
        }
    }

    fn record(&self, generation: u64, clock: ClockKind) -> Result<(), RuntimeError> {
        let start = self.blueprint.start(generation, clock)?;
        let guest = self.blueprint.build(&start)?;
        let now = self.clock.now();
        let config = self.engine_on(clock);
        let engine = Engine::recording(guest.executor, start, config, entropy()?, now)?;
        self.drive(engine, guest.kicker, guest.dirty, clock)
    }

    fn resume(&self, loaded: Loaded) -> Result<(), RuntimeError> {
        let (next, generation) = (LogIndex(loaded.about.next), loaded.about.generation);
        let clock = loaded.about.clock;
        let guest = loaded.build(&self.blueprint)?;
        let (config, now) = (self.engine_on(clock), self.clock.now());
        let engine = Engine::resuming(next, generation, guest.executor, config, entropy()?, now)?;
        self.drive(engine, guest.kicker, guest.dirty, clock)
    }

    fn replay(&self) -> Result<(), RuntimeError> {
        let mut loader = Loader::new(&self.blueprint);
        loop {
            // The node is gone: nobody needs this copy.
            let Ok(offer) = self.offers.recv() else {
                return Ok(());
            };
            match offer {
                Offer::Records(records) => return self.replay_from_start(records),
                Offer::Load(part) => {
                    let loaded = loader.load(&part)?;
                    if !self.report(loaded) {
                        return Ok(());
                    }
                }
                Offer::Unload => loader.unload(),
                Offer::Begin { next, clock } => {
                    return self.replay_from_state(loader, next, clock);
                }
                Offer::Halt => return Ok(()),
                _ => {}
            }
        }
    }

    fn report(&self, emitted: Emitted) -> bool {
        let report = VcpuReport::Emitted(vec![emitted]);
        self.reports.blocking_send(report).is_ok()
    }

    fn replay_from_start(&self, records: Vec<Record>) -> Result<(), RuntimeError> {
        let Some(RecordBody::Start(start)) = records.first().map(|record| &record.body) else {
            return Err(RuntimeError::NoStart(
                records.first().map_or(0, |record| record.index.0),
            ));
        };
        let (guest, clock) = (self.blueprint.build(start)?, start.clock);
        let mut engine = Engine::replaying(guest.executor, self.engine_on(clock), entropy()?)?;
        engine.offer(self.clock.now(), Offer::Records(records));
        self.drive(engine, guest.kicker, guest.dirty, clock)
    }

    fn replay_from_state(
        &self,
        loader: Loader<'_>,
        next: LogIndex,
        clock: ClockKind,
    ) -> Result<(), RuntimeError> {
        let guest = loader.finish(clock)?;
        let config = self.engine_on(clock);
        let engine = Engine::replaying_from(next, guest.executor, config, entropy()?)?;
        self.drive(engine, guest.kicker, guest.dirty, clock)
    }

    /// The engine's settings on `clock`: where every kick leads to a point there are no State records.
    fn engine_on(&self, clock: ClockKind) -> EngineConfig {
        let stalls = clock == ClockKind::Exits;
        EngineConfig {
            stall_ns: self.engine.stall_ns.filter(|_| stalls),
            ..self.engine
        }
    }

    fn drive(
        &self,
        mut engine: Engine<super::kvm_executor::KvmExecutor>,
        kicker: Kicker,
        dirty: Arc<DirtyLog>,
        clock: ClockKind,
    ) -> Result<(), RuntimeError> {
        let meter = Arc::new(StretchMeter::default());
        let watch = WatchdogConfig {
            confinement: self.confinement,
            interval_ns: match clock {
                ClockKind::Branches => self.engine.mark_interval_ns,
                ClockKind::Exits => self.engine.stall_ns.unwrap_or(u64::MAX) / TICKS_PER_STALL,
            },
            anywhere: clock == ClockKind::Branches,
        };
        let _watchdog = Watchdog::start(Arc::clone(&meter), kicker.clone(), self.clock, watch)
            .map_err(|source| RuntimeError::Io {
                operation: "start the watchdog",
                source,
            })?;
        // The guest's memory is mapped, the counter open, the watchdog started: nothing else is needed.
        drop_capabilities()?;
        confine_thread(self.confinement, Thread::Vcpu)?;
        // Set once: the thread is started once.
        let _ = self.kicker.set(kicker);
        let _ = self.dirty.set(dirty);
        match drive(&mut engine, &self.offers, &self.reports, self.clock, &meter) {
            VcpuEnd::Failed(error) => Err(error.into()),
            VcpuEnd::Stopped | VcpuEnd::NodeGone => Ok(()),
        }
    }
}

/// Random bytes for the guest, from a descriptor that is opened before the thread is confined.
fn entropy() -> Result<EntropySource, RuntimeError> {
    let random = std::fs::File::open("/dev/urandom").map_err(|source| RuntimeError::Io {
        operation: "open /dev/urandom",
        source,
    })?;
    Ok(Box::new(move |count| {
        let mut bytes = vec![0; count];
        if let Err(error) = (&random).read_exact(&mut bytes) {
            tracing::error!(%error, "no random bytes for the guest");
            bytes.clear();
        }
        bytes
    }))
}
