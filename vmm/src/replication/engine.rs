//! The engine drives one guest from point to point, recording or replaying.
//!
//! ```text
//!             offer(..)                 take_outbox()
//!   node ───────────────► Engine ───────────────────────► node
//!                          │  ▲
//!                poll(now) │  │ execute()
//!                          ▼  │
//!                        Executor (the guest)
//!
//!   Replaying ──FinishLog──► draining ──Drained──► (claim elsewhere) ──GoLive──► Recording
//!       └──────────────── Diverged / Halt / Ended ───────────────► Stopped
//! ```
//!
//! The caller's loop: `poll` decides everything at the present point; on [`Next::Run`] it calls
//! `execute`, which enters the guest; then the outbox goes to the node. No clock is read here: `now`
//! is supplied. Everything nondeterministic passes through `recorder` (which logs it) or `replayer`
//! (which takes it from the log); nothing else touches the executor.
//!
//! Left out: who may record (`role`), when output is released (`output_gate`), threads (`runtime`).

#![forbid(unsafe_code)]

use super::divergence::Divergence;
use super::executor::{Arrival, Executor, Input, Landing, Produced, Standing};
use super::recorder::Recorder;
use super::replayer::Replayer;
use logging_channel::execution_point::ExecutionPoint;
use logging_channel::host_time::HostTime;
use logging_channel::record::{ClockKind, Control, EndReason, LogIndex, Record, RecordBody, Start};

/// Attempts to put the state into a file are counted from here, where no node's own count comes to.
pub const FILE_ATTEMPTS: u64 = 1 << 63;

/// Supplies random bytes for the guest; called only while recording.
pub type EntropySource = Box<dyn FnMut(usize) -> Vec<u8> + Send>;

/// Settings that both recording and replay use.
#[derive(Debug, Clone, Copy)]
pub struct EngineConfig {
    /// Longest time between two Marks of a running guest, in nanoseconds.
    pub mark_interval_ns: u64,
    /// Put a digest of all guest memory into every n-th Mark, and into the last one.
    pub verify_memory_every: Option<u32>,
    /// Most input bytes kept for a guest that has no room.
    pub inbox_bytes_max: usize,
    /// Longest time without a point, in nanoseconds, when something waits for one: then the guest's
    /// state goes into the log. `None` where every kick leads to a point (branch clock).
    pub stall_ns: Option<u64>,
    /// How often the guest is settled, in nanoseconds, so that a replay of the log can be saved there.
    pub settle_interval_ns: Option<u64>,
    /// How often what was written is forgotten, in nanoseconds: more often makes states smaller, and
    /// costs the guest a fault for the first write to each page after it.
    pub forget_interval_ns: u64,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            mark_interval_ns: 5_000_000,
            verify_memory_every: None,
            inbox_bytes_max: 4 * 1024 * 1024,
            stall_ns: None,
            settle_interval_ns: None,
            forget_interval_ns: 1_000_000_000,
        }
    }
}

/// What the engine is given from outside.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Offer {
    /// Input for the guest; used only while recording, dropped while replaying.
    Input(Input),
    /// The next records of the log; used only while replaying.
    Records(Vec<Record>),
    /// No more records will come: report [`Emitted::Drained`] once all are replayed. Revoked by
    /// further records.
    FinishLog,
    /// Become the recorder here, under this generation.
    GoLive {
        /// The generation that was granted.
        generation: u64,
    },
    /// Pause this long in every mark interval, because the backup is behind.
    Throttle {
        /// Nanoseconds; 0 ends it.
        pause_ns: u64,
    },
    /// Say the guest's state at the next point, and from which record on the log has the rest.
    Snapshot {
        /// What it is for: one of the node's attempts to get a backup, or, from [`FILE_ATTEMPTS`] on, a file.
        attempt: u64,
    },
    /// A piece of the state from which this copy begins; before any record. Taken by whoever builds
    /// the executor.
    Load(Vec<u8>),
    /// The state is complete and this copy replays from record `next` on. Taken as [`Offer::Load`].
    Begin {
        /// First index that is not part of the state.
        next: LogIndex,
        /// What the guest runs on.
        clock: ClockKind,
    },
    /// Whatever was loaded is void.
    Unload,
    /// Stop at the next point and say nothing more until [`Offer::GoOn`].
    Rest,
    /// End a [`Offer::Rest`].
    GoOn,
    /// Power the guest off at the next point.
    PowerOff,
    /// Stop for good: the guest is not entered again.
    Halt,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Enter the guest: call [`Engine::execute`].
    Run,
    /// Nothing to do until something is offered or the deadline passes.
    Wait {
        /// When to poll again at the latest.
        deadline: Option<HostTime>,
    },
    /// It is over.
    Stopped,
}

/// What the engine tells the node, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Emitted {
    /// A record to send and store; with the output it stands for, if it is an Output record.
    Recorded {
        /// The record.
        record: Record,
        /// The output that waits for its acknowledgement.
        output: Option<Produced>,
    },
    /// The guest's state as it was before record `next`: see [`Offer::Snapshot`].
    Snapshot {
        /// From the offer.
        attempt: u64,
        /// First index that is not part of the state.
        next: LogIndex,
        /// The last pieces of the state, in order.
        parts: Vec<Vec<u8>>,
    },
    /// So many bytes of the offered state were taken in.
    Loaded {
        /// [`Offer::Unload`]s before them: what was reported before one is void, too.
        unloads: u64,
        /// Bytes.
        bytes: u64,
    },
    /// The recorder rests: nothing follows until it is told to go on.
    Rested,
    /// Replay has come this far.
    Replayed {
        /// Every record below this index has been replayed.
        next: LogIndex,
        /// Synchronous exits so far.
        exits: u64,
        /// Output produced by this copy since the last report, with the index of its record.
        outputs: Vec<(LogIndex, Produced)>,
    },
    /// The log is replayed to its end; the guest waits.
    Drained,
    /// This copy records from here on.
    Live,
    /// This copy differs from the log and is stopped.
    Diverged(Box<Divergence>),
    /// The guest ended.
    Ended(EndReason),
}

/// How the guest stands, shared by recorder and replayer.
#[derive(Debug)]
pub(super) struct Place {
    /// The last point reached.
    pub(super) point: ExecutionPoint,
    /// Whether the guest is still at it (not kicked out of a stretch in between).
    pub(super) at_point: bool,
    /// Runnable, halted or ended.
    pub(super) standing: Standing,
}

enum Mode {
    Recording(Box<Recorder>),
    Replaying(Box<Replayer>),
    Stopped,
}

/// One guest, recorded or replayed.
pub struct Engine<E: Executor> {
    executor: E,
    place: Place,
    mode: Mode,
    outbox: Vec<Emitted>,
    config: EngineConfig,
    entropy: Option<EntropySource>,
}

impl<E: Executor> Engine<E> {
    /// An engine that records from the guest's power-on; `start` becomes record 0.
    ///
    /// # Errors
    /// When the executor cannot be read.
    pub fn recording(
        executor: E,
        start: Start,
        config: EngineConfig,
        entropy: EntropySource,
        now: HostTime,
    ) -> Result<Self, E::Error> {
        let first = RecordBody::Start(Box::new(start));
        Self::recording_from(LogIndex(0), first, executor, config, entropy, now)
    }

    /// An engine that records from where a saved guest stands: record `next` begins `generation`.
    ///
    /// # Errors
    /// When the executor cannot be read.
    pub fn resuming(
        next: LogIndex,
        generation: u64,
        executor: E,
        config: EngineConfig,
        entropy: EntropySource,
        now: HostTime,
    ) -> Result<Self, E::Error> {
        let first = RecordBody::Control(Control::Generation(generation));
        Self::recording_from(next, first, executor, config, entropy, now)
    }

    /// Records from here; `first` becomes record `next`.
    fn recording_from(
        next: LogIndex,
        first: RecordBody,
        mut executor: E,
        config: EngineConfig,
        entropy: EntropySource,
        now: HostTime,
    ) -> Result<Self, E::Error> {
        let place = Place::begin(&mut executor)?;
        let mut outbox = Vec::new();
        let time = executor.guest_time();
        let mut recorder = Recorder::new(next, now, time, config, entropy);
        recorder.emit(&place, time, first, &mut outbox);
        let mode = Mode::Recording(Box::new(recorder));
        Ok(Self {
            executor,
            place,
            mode,
            outbox,
            config,
            entropy: None,
        })
    }

    /// An engine that replays a log from its Start record.
    ///
    /// # Errors
    /// When the executor cannot be read.
    pub fn replaying(
        executor: E,
        config: EngineConfig,
        entropy: EntropySource,
    ) -> Result<Self, E::Error> {
        Self::replaying_from(LogIndex(0), executor, config, entropy)
    }

    /// An engine that replays a log from record `next` on; `executor` is in the state before it.
    ///
    /// # Errors
    /// When the executor cannot be read.
    pub fn replaying_from(
        next: LogIndex,
        mut executor: E,
        config: EngineConfig,
        entropy: EntropySource,
    ) -> Result<Self, E::Error> {
        let place = Place::begin(&mut executor)?;
        let mode = Mode::Replaying(Box::new(Replayer::new(next)));
        Ok(Self {
            executor,
            place,
            mode,
            outbox: Vec::new(),
            config,
            entropy: Some(entropy),
        })
    }

    /// The guest, for inspection.
    pub fn executor(&mut self) -> &mut E {
        &mut self.executor
    }

    /// The last point reached.
    #[must_use]
    pub fn point(&self) -> ExecutionPoint {
        self.place.point
    }

    /// Whether this engine records (as opposed to replays or is stopped).
    #[must_use]
    pub fn is_recording(&self) -> bool {
        matches!(self.mode, Mode::Recording(_))
    }

    /// Whether this copy, replaying, has made output that no record given to it so far stands for.
    #[must_use]
    pub fn has_unlogged_output(&self) -> bool {
        match &self.mode {
            Mode::Replaying(r) => r.has_unlogged_output(),
            Mode::Recording(_) | Mode::Stopped => false,
        }
    }

    /// Host time at which a recorded guest's timer is due, if one is armed: with the branch clock
    /// the guest is worth a kick then.
    #[must_use]
    pub fn deadline(&self) -> Option<HostTime> {
        match &self.mode {
            Mode::Recording(r) => Some(r.host_time(self.executor.next_deadline()?)),
            Mode::Replaying(_) | Mode::Stopped => None,
        }
    }

    /// Takes what has been emitted since the last call.
    pub fn take_outbox(&mut self) -> Vec<Emitted> {
        std::mem::take(&mut self.outbox)
    }

    /// Gives the engine something from outside. Offers that do not fit the mode are dropped: input
    /// for a backup, records for a primary.
    pub fn offer(&mut self, now: HostTime, offer: Offer) {
        match (&mut self.mode, offer) {
            (_, Offer::Halt) => self.mode = Mode::Stopped,
            (Mode::Recording(r), Offer::Input(input)) => r.accept(input),
            (Mode::Recording(r), Offer::Throttle { pause_ns }) => r.throttle(pause_ns),
            (Mode::Recording(r), Offer::Snapshot { attempt }) => r.snapshot(attempt),
            (Mode::Recording(r), Offer::Rest) => r.rest(true),
            (Mode::Recording(r), Offer::GoOn) => r.rest(false),
            (Mode::Recording(r), Offer::PowerOff) => r.power_off(),
            (Mode::Replaying(r), Offer::Records(records)) => r.accept(now, records),
            (Mode::Replaying(r), Offer::FinishLog) => r.finish(),
            (Mode::Replaying(_), Offer::GoLive { generation }) => self.go_live(now, generation),
            _ => {}
        }
    }

    /// Decides what to do at the present point.
    ///
    /// # Errors
    /// When the executor fails: a failure of the host, not of the guest.
    pub fn poll(&mut self, now: HostTime) -> Result<Next, E::Error> {
        let next = match &mut self.mode {
            Mode::Stopped => Next::Stopped,
            Mode::Recording(r) => {
                r.decide(now, &mut self.executor, &mut self.place, &mut self.outbox)?
            }
            Mode::Replaying(r) => {
                r.decide(&mut self.executor, &mut self.place, &mut self.outbox)?
            }
        };
        if next == Next::Stopped {
            self.mode = Mode::Stopped;
        }
        Ok(next)
    }

    /// Enters the guest and takes in what it did. Call only after `poll` answered [`Next::Run`].
    ///
    /// # Errors
    /// When the executor fails.
    pub fn execute(&mut self) -> Result<(), E::Error> {
        let until = match &self.mode {
            Mode::Replaying(r) => r.target(),
            Mode::Recording(_) => Some(Landing::Anywhere),
            Mode::Stopped => None,
        };
        let stretch = self.executor.run(until)?;
        self.place.at_point = stretch.arrival == Arrival::Point;
        self.place.standing = stretch.standing;
        if self.place.at_point {
            self.place.point = self.executor.point()?;
        }
        match &mut self.mode {
            Mode::Recording(r) => {
                let time = self.executor.guest_time();
                r.produced(&self.place, time, stretch.outputs, &mut self.outbox);
            }
            Mode::Replaying(r) => r.arrived(stretch.arrival, stretch.outputs),
            Mode::Stopped => {}
        }
        Ok(())
    }

    /// Switches from the replayer to a recorder at the point reached. Only a drained replayer does;
    /// anything else is a broken invariant of the caller and stops the engine instead.
    fn go_live(&mut self, now: HostTime, generation: u64) {
        let Mode::Replaying(replayer) = std::mem::replace(&mut self.mode, Mode::Stopped) else {
            return;
        };
        let (Some(handover), Some(entropy)) = (replayer.hand_over(), self.entropy.take()) else {
            return;
        };
        let guest_time = handover.guest_time_at(now).max(self.executor.guest_time());
        let mut recorder =
            Recorder::new(handover.next_index, now, guest_time, self.config, entropy);
        let time = self.executor.guest_time();
        let control = RecordBody::Control(Control::Generation(generation));
        recorder.emit(&self.place, time, control, &mut self.outbox);
        recorder.produced(&self.place, time, handover.unlogged, &mut self.outbox);
        self.outbox.push(Emitted::Live);
        self.mode = Mode::Recording(Box::new(recorder));
    }
}

impl Place {
    fn begin<E: Executor>(executor: &mut E) -> Result<Self, E::Error> {
        Ok(Self {
            point: executor.point()?,
            at_point: true,
            standing: executor.standing(),
        })
    }
}
