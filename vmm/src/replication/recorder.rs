//! The recorder: stamps whatever reaches the guest from outside, and what leaves it.
//!
//! It acts only at points the execution clock can name. Order at one point: output that the guest
//! produced on the way there, inputs that the guest has room for, a Timer if one is due, then a
//! Mark, at most one per interval. Guest time is `base_guest + (now - base_host)`, cut to microseconds, and
//! moves only when a record carries it.
//!
//! On the exit clock a guest that computes makes no points. When something has waited for one for
//! `stall_ns`, a kick's place is made a point, and the guest's state goes into the log in the
//! stretch's place: registers, devices, and the pages written since the last time it was certain
//! that the backup can come to a point by itself.

#![forbid(unsafe_code)]

use super::engine::{Emitted, EngineConfig, EntropySource, Next, Place};
use super::executor::{Executor, Input, Produced, Standing};
use logging_channel::execution_point::{ExecutionPoint, PointKind};
use logging_channel::host_time::{GuestTime, HostTime};
use logging_channel::record::{
    Control, EndReason, LogIndex, Output, OutputDevice, Record, RecordBody, limits,
};
use std::collections::VecDeque;

/// Most inputs applied at one point before the guest is entered again: a flood of packets must not
/// starve the guest that is to answer them.
const INPUTS_PER_POINT_MAX: usize = 64;

/// Longest pause that a throttle may insert at once.
const THROTTLE_PAUSE_NS_MAX: u64 = 50_000_000;

/// Whether the guest is to be left where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resting {
    No,
    /// From the next point on.
    Due,
    /// It rests, and this was said.
    Said,
}

/// State of a recording.
pub(super) struct Recorder {
    next_index: LogIndex,
    inbox: VecDeque<Input>,
    inbox_bytes: usize,
    base_host: HostTime,
    base_guest: GuestTime,
    marked_at: HostTime,
    marks: u32,
    /// The last Mark or Progress: a halted guest is not marked again at it.
    closed: Option<ExecutionPoint>,
    throttle_ns: u64,
    paused_until: Option<HostTime>,
    power_off: bool,
    /// A snapshot is wanted for this attempt.
    snapshot: Option<u64>,
    resting: Resting,
    /// When the guest last left a point.
    left_at: HostTime,
    /// When it was last settled without being asked for a state.
    settled_at: HostTime,
    /// When its writes were last forgotten.
    forgotten_at: Option<HostTime>,
    config: EngineConfig,
    entropy: EntropySource,
}

impl Recorder {
    pub(super) fn new(
        next_index: LogIndex,
        now: HostTime,
        guest_time: GuestTime,
        config: EngineConfig,
        entropy: EntropySource,
    ) -> Self {
        Self {
            next_index,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            base_host: now,
            base_guest: guest_time,
            marked_at: now,
            marks: 0,
            closed: None,
            throttle_ns: 0,
            paused_until: None,
            power_off: false,
            snapshot: None,
            resting: Resting::No,
            left_at: now,
            settled_at: now,
            forgotten_at: None,
            config,
            entropy,
        }
    }

    /// Queues input; what exceeds the limit is dropped, as a network card without buffers does.
    pub(super) fn accept(&mut self, input: Input) {
        let bytes = input_bytes(&input);
        if self.inbox_bytes + bytes <= self.config.inbox_bytes_max {
            self.inbox_bytes += bytes;
            self.inbox.push_back(input);
        }
    }

    pub(super) fn throttle(&mut self, pause_ns: u64) {
        self.throttle_ns = pause_ns.min(THROTTLE_PAUSE_NS_MAX);
    }

    pub(super) fn power_off(&mut self) {
        self.power_off = true;
    }

    pub(super) fn snapshot(&mut self, attempt: u64) {
        self.snapshot = Some(attempt);
    }

    pub(super) fn rest(&mut self, wanted: bool) {
        self.resting = if wanted { Resting::Due } else { Resting::No };
    }

    /// Appends a record at the present point.
    pub(super) fn emit(
        &mut self,
        place: &Place,
        guest_time: GuestTime,
        body: RecordBody,
        outbox: &mut Vec<Emitted>,
    ) {
        self.emit_with(place, guest_time, body, None, outbox);
    }

    fn emit_with(
        &mut self,
        place: &Place,
        guest_time: GuestTime,
        body: RecordBody,
        output: Option<Produced>,
        outbox: &mut Vec<Emitted>,
    ) {
        let record = Record {
            index: self.next_index,
            point: place.point,
            guest_time,
            body,
        };
        self.next_index = self.next_index.next();
        outbox.push(Emitted::Recorded { record, output });
    }

    /// Writes the Output records of a stretch.
    pub(super) fn produced(
        &mut self,
        place: &Place,
        guest_time: GuestTime,
        outputs: Vec<Produced>,
        outbox: &mut Vec<Emitted>,
    ) {
        for output in outputs {
            let body = RecordBody::Output(describe(&output));
            self.emit_with(place, guest_time, body, Some(output), outbox);
        }
    }

    /// Everything there is to do at the present point.
    pub(super) fn decide<E: Executor>(
        &mut self,
        now: HostTime,
        executor: &mut E,
        place: &mut Place,
        outbox: &mut Vec<Emitted>,
    ) -> Result<Next, E::Error> {
        if !place.at_point {
            if !self.stalled(now, executor) {
                return Ok(Next::Run);
            }
            self.name_here(now, executor, place, outbox)?;
        }
        if let Standing::Ended(reason) = place.standing {
            return self.end(reason, executor, place, outbox);
        }
        if self.power_off {
            let body = RecordBody::Control(Control::PowerOff);
            self.emit(place, executor.guest_time(), body, outbox);
            return self.end(EndReason::Commanded, executor, place, outbox);
        }
        if self.resting != Resting::No {
            return self.stay(now, executor, place, outbox);
        }
        if let Some(attempt) = self.snapshot.take() {
            self.say_state(attempt, executor, place, outbox)?;
        } else if self.settle_due(now) {
            self.settle(executor, place, outbox)?;
            self.settled_at = now;
        }
        if let Some(until) = self.pausing(now) {
            return Ok(Next::Wait {
                deadline: Some(until),
            });
        }
        self.deliver(now, executor, place, outbox)?;
        match place.standing {
            Standing::Ended(reason) => self.end(reason, executor, place, outbox),
            Standing::Halted => self.wait(now, executor, place, outbox),
            Standing::Runnable => self.run(now, executor, place, outbox),
        }
    }

    /// The guest rests: a Mark so that the backup may check all of it, then nothing.
    fn stay<E: Executor>(
        &mut self,
        now: HostTime,
        executor: &mut E,
        place: &Place,
        outbox: &mut Vec<Emitted>,
    ) -> Result<Next, E::Error> {
        if self.resting == Resting::Due {
            self.mark(now, executor, place, false, outbox)?;
            outbox.push(Emitted::Rested);
            self.resting = Resting::Said;
        }
        Ok(Next::Wait { deadline: None })
    }

    fn settle_due(&self, now: HostTime) -> bool {
        let due = |interval_ns| now.since(self.settled_at) >= interval_ns;
        self.config.settle_interval_ns.is_some_and(due)
    }

    /// Says the state here.
    fn say_state<E: Executor>(
        &mut self,
        attempt: u64,
        executor: &mut E,
        place: &mut Place,
        outbox: &mut Vec<Emitted>,
    ) -> Result<(), E::Error> {
        self.settle(executor, place, outbox)?;
        let (next, parts) = (self.next_index, executor.save(attempt)?);
        outbox.push(Emitted::Snapshot {
            attempt,
            next,
            parts,
        });
        Ok(())
    }

    /// Finishes what the last exit stands for; the record has every replay do it here, too.
    fn settle<E: Executor>(
        &mut self,
        executor: &mut E,
        place: &mut Place,
        outbox: &mut Vec<Emitted>,
    ) -> Result<(), E::Error> {
        let time = executor.guest_time();
        self.emit(place, time, RecordBody::Control(Control::Settle), outbox);
        let outputs = executor.settle()?;
        place.point = executor.point()?;
        place.standing = executor.standing();
        self.closed = None;
        self.produced(place, time, outputs, outbox);
        Ok(())
    }

    /// Whether something has waited too long for a point.
    fn stalled<E: Executor>(&self, now: HostTime, executor: &E) -> bool {
        let long = |stall_ns| now.since(self.left_at) >= stall_ns;
        let due = |at| at <= self.guest_time(now);
        self.config.stall_ns.is_some_and(long)
            && (self.power_off
                || self.snapshot.is_some()
                || self.resting == Resting::Due
                || !self.inbox.is_empty()
                || executor.next_deadline().is_some_and(due))
    }

    /// Makes a point of the place where the guest was kicked out, with its state in the log, and a
    /// Mark so that every copy checks what it loaded.
    fn name_here<E: Executor>(
        &mut self,
        now: HostTime,
        executor: &mut E,
        place: &mut Place,
        outbox: &mut Vec<Emitted>,
    ) -> Result<(), E::Error> {
        let time = executor.guest_time();
        let mut pieces = executor.name_here()?.into_iter().peekable();
        while let Some(bytes) = pieces.next() {
            let last = pieces.peek().is_none();
            self.emit(place, time, RecordBody::State { last, bytes }, outbox);
        }
        place.point = executor.point()?;
        place.at_point = true;
        place.standing = executor.standing();
        self.forgotten_at = Some(now);
        self.mark(now, executor, place, false, outbox)
    }

    /// A copy comes to this point by itself: what was written before is no part of a state. Not often,
    /// for each page costs the guest a fault afterwards.
    fn forget_writes<E: Executor>(
        &mut self,
        now: HostTime,
        executor: &mut E,
    ) -> Result<(), E::Error> {
        let interval_ns = self.config.forget_interval_ns;
        let due = self
            .forgotten_at
            .is_none_or(|at| now.since(at) >= interval_ns);
        if self.config.stall_ns.is_some() && due {
            executor.forget_writes()?;
            self.forgotten_at = Some(now);
        }
        Ok(())
    }

    /// Applies what is due: entropy that the guest asked for, inputs it has room for, its timer.
    fn deliver<E: Executor>(
        &mut self,
        now: HostTime,
        executor: &mut E,
        place: &mut Place,
        outbox: &mut Vec<Emitted>,
    ) -> Result<(), E::Error> {
        let time = self.guest_time(now).max(executor.guest_time());
        for _ in 0..INPUTS_PER_POINT_MAX {
            let Some(input) = self.next_input(executor) else {
                break;
            };
            self.emit(place, time, record_body(&input), outbox);
            self.enter_input(time, input, executor, place)?;
        }
        if executor
            .next_deadline()
            .is_some_and(|deadline| deadline <= time)
        {
            self.emit(place, time, RecordBody::Timer, outbox);
            self.enter_input(time, Input::Timer, executor, place)?;
        }
        Ok(())
    }

    /// Applies an input whose record was just written. It reopens the point: a Mark written while
    /// the guest was halted here no longer says that all is known about the point.
    fn enter_input<E: Executor>(
        &mut self,
        time: GuestTime,
        input: Input,
        executor: &mut E,
        place: &mut Place,
    ) -> Result<(), E::Error> {
        place.standing = executor.apply(time, input)?;
        place.point = executor.point()?;
        self.closed = None;
        Ok(())
    }

    fn next_input<E: Executor>(&mut self, executor: &E) -> Option<Input> {
        let wanted = executor.wanted_entropy().min(limits::INPUT_BYTES_MAX);
        if wanted > 0 {
            return Some(Input::Entropy((self.entropy)(wanted)));
        }
        if !executor.accepts(self.inbox.front()?) {
            return None;
        }
        let input = self.inbox.pop_front()?;
        self.inbox_bytes -= input_bytes(&input);
        Some(input)
    }

    fn run<E: Executor>(
        &mut self,
        now: HostTime,
        executor: &mut E,
        place: &Place,
        outbox: &mut Vec<Emitted>,
    ) -> Result<Next, E::Error> {
        if now.since(self.marked_at) >= self.config.mark_interval_ns {
            if place.point.kind == PointKind::Between {
                // A Mark would have the backup land here exactly, which costs it time.
                self.emit(place, executor.guest_time(), RecordBody::Progress, outbox);
                self.closed = Some(place.point);
                self.marked_at = now;
            } else {
                self.mark(now, executor, place, false, outbox)?;
            }
            if self.throttle_ns > 0 {
                self.paused_until = Some(now.plus_ns(self.throttle_ns));
            }
        }
        self.forget_writes(now, executor)?;
        self.left_at = now;
        Ok(Next::Run)
    }

    fn wait<E: Executor>(
        &mut self,
        now: HostTime,
        executor: &mut E,
        place: &Place,
        outbox: &mut Vec<Emitted>,
    ) -> Result<Next, E::Error> {
        let mut deadline = executor.next_deadline().map(|at| self.host_time(at));
        if self.closed != Some(place.point) {
            // A guest that halts after every packet would be marked after every packet, and a mark
            // costs more than the packet: the backup stands at this HLT anyway until input comes.
            let due = self.marked_at.plus_ns(self.config.mark_interval_ns);
            if now >= due {
                self.mark(now, executor, place, false, outbox)?;
            } else {
                deadline = Some(deadline.map_or(due, |at| at.min(due)));
            }
        }
        Ok(Next::Wait { deadline })
    }

    fn end<E: Executor>(
        &mut self,
        reason: EndReason,
        executor: &mut E,
        place: &Place,
        outbox: &mut Vec<Emitted>,
    ) -> Result<Next, E::Error> {
        let now = self.marked_at;
        self.mark(now, executor, place, true, outbox)?;
        self.emit(
            place,
            executor.guest_time(),
            RecordBody::End(reason),
            outbox,
        );
        outbox.push(Emitted::Ended(reason));
        Ok(Next::Stopped)
    }

    fn mark<E: Executor>(
        &mut self,
        now: HostTime,
        executor: &mut E,
        place: &Place,
        last: bool,
        outbox: &mut Vec<Emitted>,
    ) -> Result<(), E::Error> {
        self.marks = self.marks.wrapping_add(1);
        let with_memory = self
            .config
            .verify_memory_every
            .is_some_and(|n| last || self.marks.is_multiple_of(n.max(1)));
        let digests = executor.digests(with_memory)?;
        self.emit(
            place,
            executor.guest_time(),
            RecordBody::Mark(digests),
            outbox,
        );
        self.closed = Some(place.point);
        self.marked_at = now;
        Ok(())
    }

    /// Whether a throttle's pause is under way; it ends by itself.
    fn pausing(&mut self, now: HostTime) -> Option<HostTime> {
        self.paused_until = self.paused_until.filter(|until| now < *until);
        self.paused_until
    }

    fn guest_time(&self, now: HostTime) -> GuestTime {
        let ns = self
            .base_guest
            .as_nanos()
            .saturating_add(now.since(self.base_host));
        GuestTime::from_nanos(ns)
    }

    /// The first host time at which [`Recorder::guest_time`] is at least `at`.
    pub(super) fn host_time(&self, at: GuestTime) -> HostTime {
        self.base_host
            .plus_ns(at.as_nanos().saturating_sub(self.base_guest.as_nanos()))
    }
}

fn input_bytes(input: &Input) -> usize {
    match input {
        Input::Timer => 0,
        Input::Console(bytes) | Input::Entropy(bytes) | Input::Packet { bytes, .. } => bytes.len(),
    }
}

fn record_body(input: &Input) -> RecordBody {
    match input {
        Input::Timer => RecordBody::Timer,
        Input::Console(bytes) => RecordBody::Console(bytes.clone()),
        Input::Entropy(bytes) => RecordBody::Entropy(bytes.clone()),
        Input::Packet { device, bytes } => RecordBody::Packet {
            device: *device,
            bytes: bytes.clone(),
        },
    }
}

/// What an Output record says of `output`.
pub(super) fn describe(output: &Produced) -> Output {
    Output {
        device: output.device,
        // A frame or a console line: far below 4 GiB by the devices' own limits.
        length: u32::try_from(output.bytes.len()).unwrap_or(u32::MAX),
        digest: crc32c::crc32c(&output.bytes),
    }
}

/// Short text of an output for evidence.
pub(super) fn name_output(output: &Output) -> String {
    let device = match output.device {
        OutputDevice::Console => "console".to_owned(),
        OutputDevice::Network(n) => format!("network {n}"),
    };
    format!(
        "{} bytes on {device} (crc {:#010x})",
        output.length, output.digest
    )
}
