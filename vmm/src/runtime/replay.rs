//! Replay of a log on disk, from its beginning, with every check the backup makes.
//!
//! It ends with the log, or before the first record at a place that was asked for; the guest then stands
//! there, and its registers and memory can be read. A place that is an exit is reached exactly; any other
//! stops at the point of the last record before it.

use super::checkpoints::Checkpoints;
use super::guest::Blueprint;
use super::host_clock::HostClock;
use super::kvm_executor::KvmExecutor;
use super::session::RuntimeError;
use super::snapshot_file::{self, Loaded};
use super::snapshot_trials::{TrialOptions, Trials};
use crate::clock::landing::LandingMethod;
use crate::config::Config;
use crate::kvm::KvmError;
use crate::kvm::vm::Vm;
use crate::machine::cpu_state::CpuState;
use crate::replication::divergence::Divergence;
use crate::replication::engine::{Emitted, Engine, EngineConfig, EntropySource, Next, Offer};
use crate::replication::executor::{Executor, Produced};
use crate::snapshot::file::About;
use inspect::place::Place;
use logging_channel::execution_point::PointKind;
use logging_channel::record::{ClockKind, Control, EndReason, LogIndex, Record, RecordBody};
use logging_channel::segment::reader::LogReader;
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

/// Records handed to the engine at a time.
const BATCH_RECORDS: usize = 1_024;

/// Bytes of guest memory behind one translation.
const PAGE_BYTES: u64 = 4_096;

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
    /// States in the log that the guest was taken on by, where it made no exits.
    pub states: u64,
    /// Snapshots that the replay went through, or that were gone on from to the end.
    pub snapshots: u64,
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

/// Is told what happens during a replay.
pub trait Observer {
    /// Every record, once it is replayed; with the bytes, if it is an Output record.
    ///
    /// # Errors
    /// When whatever is made of it cannot be written; that ends the replay.
    fn record(&mut self, record: &Record, sent: Option<&Produced>) -> io::Result<()>;

    /// Now and then, the number of records done so far.
    fn progress(&mut self, records: u64);
}

/// Does not care.
pub(super) struct Nobody;

impl Observer for Nobody {
    fn record(&mut self, _: &Record, _: Option<&Produced>) -> io::Result<()> {
        Ok(())
    }

    fn progress(&mut self, _: u64) {}
}

/// How a replay on the branch clock lands.
#[derive(Debug, Clone, Copy)]
pub struct LandingOptions {
    /// Margin, and how it is crossed.
    pub method: LandingMethod,
    /// Sabotage for drills: from this count on the counter reads one too many.
    pub counter_lies_after: Option<u64>,
}

/// What to replay.
#[derive(Debug, Clone, Copy)]
pub struct ReplayOptions<'a> {
    /// The guest: images, memory.
    pub config: &'a Config,
    /// Directory of the log.
    pub directory: &'a Path,
    /// How it lands, with the branch clock.
    pub landing: LandingOptions,
    /// Where to stop; the end of the log when absent.
    pub until: Option<Place>,
    /// Begin with this snapshot instead of power-on.
    pub from: Option<&'a Path>,
    /// Save the guest at the first place from `until` on where that can be done, and stop there.
    pub save: Option<&'a Path>,
    /// Wherever the guest can be saved, save it, build another from the bytes, and go on with that.
    pub through_snapshots: bool,
    /// Go on from snapshots of places on the way, too, each to the end.
    pub trials: Option<TrialOptions>,
}

/// A guest that was replayed, as it stands.
pub struct Replayed {
    /// What came of it.
    pub report: ReplayReport,
    replay: Replay,
}

impl Replayed {
    /// All registers.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn cpu(&mut self) -> Result<CpuState, KvmError> {
        self.replay.engine.executor().vcpu.save()
    }

    /// Up to `length` bytes at a linear address, as far as it is mapped to memory.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn linear(&mut self, address: u64, length: usize) -> Result<Vec<u8>, KvmError> {
        linear(self.replay.engine.executor(), address, length)
    }

    /// Up to `length` bytes at a guest physical address, as far as there is memory.
    pub fn physical(&mut self, address: u64, length: usize) -> Vec<u8> {
        physical(self.replay.engine.executor(), address, length)
    }
}

/// Up to `length` bytes at a linear address, as far as it is mapped to memory.
pub(super) fn linear(
    guest: &mut KvmExecutor,
    address: u64,
    length: usize,
) -> Result<Vec<u8>, KvmError> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let at = address.wrapping_add(bytes.len() as u64);
        let Some(there) = guest.vcpu.translate(at)? else {
            break;
        };
        let in_page = usize::try_from(PAGE_BYTES - at % PAGE_BYTES).unwrap_or(1);
        let wanted = in_page.min(length - bytes.len());
        let piece = physical(guest, there, wanted);
        let short = piece.len() < wanted;
        bytes.extend(piece);
        if short {
            break;
        }
    }
    Ok(bytes)
}

fn physical(guest: &KvmExecutor, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let read = guest
        .machine()
        .memory()
        .read(&mut bytes, GuestAddress(address));
    bytes.truncate(read.unwrap_or(0));
    bytes
}

/// An engine that replays from record `next` on.
fn engine(next: LogIndex, executor: KvmExecutor) -> Result<Engine<KvmExecutor>, RuntimeError> {
    let no_entropy: EntropySource = Box::new(|_| Vec::new());
    Ok(Engine::replaying_from(
        next,
        executor,
        EngineConfig::default(),
        no_entropy,
    )?)
}

/// A replay at work.
pub(super) struct Replay {
    pub(super) clock: HostClock,
    pub(super) clock_kind: ClockKind,
    log: LogReader,
    pub(super) engine: Engine<KvmExecutor>,
    /// Keeps the memory slots.
    vm: Vm,
    blueprint: Arc<Blueprint>,
    /// Live when the last record given was made.
    generation: u64,
    /// Stop behind a Settle record.
    to_settled: bool,
    /// Where it stopped for that: the next record's index.
    settled: Option<LogIndex>,
    snapshots: u64,
    /// Given to the engine, not yet reported as replayed.
    pending: VecDeque<Record>,
    /// Read ahead: the first at the place to stop at.
    beyond: Option<Record>,
    records: u64,
    exits: u64,
    marks: u64,
    memory_digests: u64,
    states: u64,
    between: u64,
    end: Option<EndReason>,
    divergence: Option<Box<Divergence>>,
}

/// Replays a log.
///
/// # Errors
/// When the log is damaged or of another guest, the host fails, or the observer cannot go on. A divergence
/// is no error but part of the report.
pub fn replay(
    options: &ReplayOptions<'_>,
    observer: &mut impl Observer,
) -> Result<Replayed, RuntimeError> {
    let mut replay = Replay::begin(options)?;
    let mut trials = Trials::choose(options)?;
    if options.through_snapshots {
        replay.run_settling(options.until, observer, Replay::pass_through_snapshot)?;
    } else if options.trials.is_some() {
        replay.run_settling(options.until, observer, |replay, next| {
            trials.at(replay, next)
        })?;
    } else {
        replay.run(options.until, observer)?;
    }
    if let Some(path) = options.save {
        replay.save_behind(path, observer)?;
    }
    let mut report = replay.report()?;
    trials.conclude(&mut report);
    Ok(Replayed { report, replay })
}

impl Replay {
    /// A guest at power-on or as a snapshot has it, and its log.
    pub(super) fn begin(options: &ReplayOptions<'_>) -> Result<Self, RuntimeError> {
        let landing = options.landing;
        let blueprint =
            Blueprint::read(options.config, landing.method)?.sabotaged(landing.counter_lies_after);
        let blueprint = Arc::new(blueprint);
        match options.from {
            None => Self::begin_at_power_on(options, blueprint),
            Some(path) => {
                let loaded = snapshot_file::load(path, &blueprint)?;
                Self::begin_with_snapshot(options.directory, blueprint, loaded)
            }
        }
    }

    fn begin_at_power_on(
        options: &ReplayOptions<'_>,
        blueprint: Arc<Blueprint>,
    ) -> Result<Self, RuntimeError> {
        let mut log = LogReader::open(options.directory);
        let Some(first) = log.next_record()? else {
            return Err(RuntimeError::NoLog(options.directory.display().to_string()));
        };
        let RecordBody::Start(start) = &first.body else {
            return Err(RuntimeError::NoStart(first.index.0));
        };
        let (clock_kind, generation) = (start.clock, start.generation);
        let guest = blueprint.build(start)?;
        let engine = engine(LogIndex(0), guest.executor)?;
        let mut replay = Self::new(clock_kind, log, engine, guest.vm, blueprint);
        replay.generation = generation;
        replay.beyond = Some(first);
        Ok(replay)
    }

    /// The guest that was saved, and the rest of its log.
    pub(super) fn begin_with_snapshot(
        directory: &Path,
        blueprint: Arc<Blueprint>,
        loaded: Loaded,
    ) -> Result<Self, RuntimeError> {
        let about = loaded.about.clone();
        let guest = loaded.build(&blueprint)?;
        let next = LogIndex(about.next);
        let mut log = LogReader::open_at(directory, next)?;
        let mut beyond = log.next_record()?;
        while beyond.as_ref().is_some_and(|record| record.index < next) {
            beyond = log.next_record()?;
        }
        let engine = engine(next, guest.executor)?;
        let mut replay = Self::new(about.clock, log, engine, guest.vm, blueprint);
        (replay.generation, replay.records) = (about.generation, about.next);
        replay.beyond = beyond;
        Ok(replay)
    }

    fn new(
        clock_kind: ClockKind,
        log: LogReader,
        engine: Engine<KvmExecutor>,
        vm: Vm,
        blueprint: Arc<Blueprint>,
    ) -> Self {
        Self {
            clock: HostClock::start(),
            clock_kind,
            log,
            engine,
            vm,
            blueprint,
            generation: 0,
            to_settled: false,
            settled: None,
            snapshots: 0,
            pending: VecDeque::new(),
            beyond: None,
            records: 0,
            exits: 0,
            marks: 0,
            memory_digests: 0,
            states: 0,
            between: 0,
            end: None,
            divergence: None,
        }
    }

    /// Replays up to a place; `each` is called wherever the guest can be saved on the way, with the index of
    /// the record that comes next.
    fn run_settling(
        &mut self,
        until: Option<Place>,
        observer: &mut impl Observer,
        mut each: impl FnMut(&mut Self, LogIndex) -> Result<(), RuntimeError>,
    ) -> Result<(), RuntimeError> {
        self.to_settled = true;
        loop {
            self.run(until, observer)?;
            let Some(next) = self.settled.filter(|_| !self.over()) else {
                self.to_settled = false;
                return Ok(());
            };
            // Output that finishing the access made is in the records that follow.
            if !self.engine.has_unlogged_output() {
                each(self, next)?;
            }
        }
    }

    /// Replays up to a place, and keeps states on the way.
    pub(super) fn run_keeping(
        &mut self,
        until: Place,
        observer: &mut impl Observer,
        checkpoints: &mut Checkpoints,
    ) -> Result<(), RuntimeError> {
        self.run_settling(Some(until), observer, |replay, next| {
            let here = replay.engine.point().exits;
            if let Some(file) = checkpoints.wanted(here) {
                let about = replay.about(next);
                snapshot_file::save(&file, &about, replay.engine.executor())?;
                checkpoints.add(here, file);
            }
            Ok(())
        })
    }

    fn about(&self, next: LogIndex) -> About {
        self.blueprint.about(self.generation, next, self.clock_kind)
    }

    /// Saves the guest, before record `next`, and reads what was written.
    pub(super) fn saved(&mut self, next: LogIndex) -> Result<Loaded, RuntimeError> {
        let about = self.about(next);
        let guest = self.engine.executor();
        let here = Path::new("in memory");
        let bytes = snapshot_file::write(Vec::new(), &about, guest, here)?;
        snapshot_file::read(bytes.as_slice(), &self.blueprint, here)
    }

    /// The images and settings of the guest.
    pub(super) fn blueprint(&self) -> Arc<Blueprint> {
        Arc::clone(&self.blueprint)
    }

    /// Goes on with another guest, built from what was saved of this one.
    fn pass_through_snapshot(&mut self, next: LogIndex) -> Result<(), RuntimeError> {
        let guest = self.saved(next)?.build(&self.blueprint)?;
        self.engine = engine(next, guest.executor)?;
        self.vm = guest.vm;
        self.snapshots += 1;
        Ok(())
    }

    /// Goes on to the first place that can be saved, and saves it.
    fn save_behind(
        &mut self,
        path: &Path,
        observer: &mut impl Observer,
    ) -> Result<(), RuntimeError> {
        self.to_settled = true;
        loop {
            self.run(None, observer)?;
            let Some(next) = self.settled.filter(|_| !self.over()) else {
                return Err(RuntimeError::NothingSettled);
            };
            if !self.engine.has_unlogged_output() {
                let about = self.about(next);
                return snapshot_file::save(path, &about, self.engine.executor());
            }
        }
    }

    /// Replays up to a place.
    pub(super) fn run(
        &mut self,
        until: Option<Place>,
        observer: &mut impl Observer,
    ) -> Result<(), RuntimeError> {
        loop {
            let last = self.feed(until)?;
            if last {
                // Before the guest runs on: it is to stop at the last record's point.
                self.engine.offer(self.clock.now(), Offer::FinishLog);
            }
            while self.engine.poll(self.clock.now())? == Next::Run {
                self.engine.execute()?;
            }
            self.take_outbox(observer)?;
            observer.progress(self.records);
            if last || self.over() {
                break;
            }
        }
        match until {
            Some(Place::Exit(exits)) => self.run_to_exit(exits, observer),
            _ => Ok(()),
        }
    }

    const fn over(&self) -> bool {
        self.end.is_some() || self.divergence.is_some()
    }

    /// Gives the engine more records; whether none follows, up to the place to stop at.
    pub(super) fn feed(&mut self, until: Option<Place>) -> Result<bool, RuntimeError> {
        let mut batch = Vec::new();
        let mut last = false;
        self.settled = None;
        while batch.len() < BATCH_RECORDS && !last {
            let next = match self.beyond.take() {
                Some(record) => Some(record),
                None => self.log.next_record()?,
            };
            match next {
                None => last = true,
                Some(record) if until.is_some_and(|place| place.reached_by(&record)) => {
                    self.beyond = Some(record);
                    last = true;
                }
                Some(record) => {
                    if let RecordBody::Control(Control::Generation(generation)) = record.body {
                        self.generation = generation;
                    }
                    let settles = record.body == RecordBody::Control(Control::Settle);
                    if settles && self.to_settled {
                        self.settled = Some(record.index.next());
                        last = true;
                    }
                    batch.push(record);
                }
            }
        }
        self.pending.extend(batch.iter().cloned());
        self.engine.offer(self.clock.now(), Offer::Records(batch));
        Ok(last)
    }

    /// From the last record before an exit to the exit itself: towards the first record behind it, which
    /// is not applied.
    fn run_to_exit(
        &mut self,
        exits: u64,
        observer: &mut impl Observer,
    ) -> Result<(), RuntimeError> {
        if self.engine.point().exits >= exits || self.over() {
            return Ok(());
        }
        let Some(target) = self.beyond.take() else {
            return Ok(());
        };
        self.pending.push_back(target.clone());
        let now = self.clock.now();
        self.engine.offer(now, Offer::Records(vec![target]));
        while self.engine.point().exits < exits && self.engine.poll(self.clock.now())? == Next::Run
        {
            self.engine.execute()?;
        }
        self.exits = self.engine.point().exits;
        self.take_outbox(observer)
    }

    pub(super) fn take_outbox(&mut self, observer: &mut impl Observer) -> Result<(), RuntimeError> {
        for emitted in self.engine.take_outbox() {
            match emitted {
                Emitted::Replayed {
                    next,
                    exits,
                    outputs,
                } => {
                    self.exits = exits;
                    self.replayed(next, &outputs, observer)?;
                }
                Emitted::Ended(reason) => self.end = Some(reason),
                Emitted::Diverged(divergence) => self.divergence = Some(divergence),
                // What a recorder says, or a node wants to know.
                Emitted::Recorded { .. }
                | Emitted::Snapshot { .. }
                | Emitted::Loaded { .. }
                | Emitted::Rested
                | Emitted::Drained
                | Emitted::Live => {}
            }
        }
        Ok(())
    }

    /// Every record below `next` is replayed; `outputs` are theirs, in order.
    fn replayed(
        &mut self,
        next: LogIndex,
        outputs: &[(LogIndex, Produced)],
        observer: &mut impl Observer,
    ) -> Result<(), RuntimeError> {
        self.records = next.0;
        let mut outputs = outputs.iter().peekable();
        while let Some(record) = self.pending.pop_front_if(|record| record.index < next) {
            if let RecordBody::Mark(digests) = &record.body {
                self.marks += 1;
                self.memory_digests += u64::from(digests.memory.is_some());
            }
            let state = matches!(record.body, RecordBody::State { last: true, .. });
            self.states += u64::from(state);
            self.between += u64::from(
                record.point.kind == PointKind::Between && record.body != RecordBody::Progress,
            );
            let sent = outputs.next_if(|(index, _)| *index == record.index);
            let told = observer.record(&record, sent.map(|(_, produced)| produced));
            told.map_err(|source| RuntimeError::Io {
                operation: "write what is replayed",
                source,
            })?;
        }
        Ok(())
    }

    pub(super) fn report(&mut self) -> Result<ReplayReport, RuntimeError> {
        let digests = self.engine.executor().digests(true)?;
        Ok(ReplayReport {
            records: self.records,
            exits: self.exits,
            marks: self.marks,
            memory_digests: self.memory_digests,
            between: self.between,
            states: self.states,
            snapshots: self.snapshots,
            guest_time_us: self.engine.executor().guest_time().as_micros(),
            host_time_us: self.clock.now().0 / 1_000,
            end: self.end.map(|reason| format!("{reason:?}")),
            registers_digest: digests.registers,
            memory_digest: digests.memory.unwrap_or_default(),
            divergence: self.divergence.as_ref().map(ToString::to_string),
        })
    }
}
