//! The replayer: takes from the log what the recorder put there, at the same points.
//!
//! It may leave a point only when the log proves that nothing more happens at it and that the guest is
//! to get further by itself: the next record lies further on. Until then the stretch may still end
//! in a State record, which is loaded at the point that the stretch left. It checks where each record applies, every
//! digest and every output; the first difference is a divergence and stops the copy for good.
//! Output that this copy produced beyond the log's end is kept: if it goes live, nobody has released
//! that output yet.

#![forbid(unsafe_code)]

use super::divergence::{Difference, Divergence, first_difference};
use super::engine::{Emitted, Next, Place};
use super::executor::{Arrival, Executor, Input, Landing, Produced, Standing};
use super::recorder::{describe, name_output};
use logging_channel::execution_point::{ExecutionPoint, PointKind};
use logging_channel::host_time::{GuestTime, HostTime};
use logging_channel::record::{Control, Digests, EndReason, LogIndex, Output, Record, RecordBody};
use std::cmp::Ordering;
use std::collections::VecDeque;

/// Records replayed before the node hears of it, at the most.
const REPORT_RECORDS_MAX: usize = 64;

/// State of a replay.
pub(super) struct Replayer {
    next_index: LogIndex,
    records: VecDeque<Record>,
    /// Produced by this copy, not yet matched with an Output record.
    unmatched: VecDeque<Produced>,
    /// Matched, not yet reported.
    matched: Vec<(LogIndex, Produced)>,
    reported: LogIndex,
    /// Pieces of a State whose last is not there yet. Void when another record follows: then the
    /// primary died in between.
    pieces: Vec<Vec<u8>>,
    pieces_bytes: u64,
    overshot: bool,
    finishing: bool,
    drained: bool,
    /// When the newest record that carries time was received, and that time.
    clock: Option<(HostTime, GuestTime)>,
}

/// What a drained replayer leaves to the recorder that takes over.
pub(super) struct Handover {
    pub(super) next_index: LogIndex,
    pub(super) unlogged: Vec<Produced>,
    clock: Option<(HostTime, GuestTime)>,
}

impl Handover {
    /// Guest time if the guest's clock had gone on since the last record was received.
    pub(super) fn guest_time_at(&self, now: HostTime) -> GuestTime {
        self.clock.map_or(GuestTime::ZERO, |(host, guest)| {
            GuestTime::from_nanos(guest.as_nanos().saturating_add(now.since(host)))
        })
    }
}

impl Replayer {
    pub(super) fn new(next_index: LogIndex) -> Self {
        Self {
            next_index,
            records: VecDeque::new(),
            unmatched: VecDeque::new(),
            matched: Vec::new(),
            reported: next_index,
            pieces: Vec::new(),
            pieces_bytes: 0,
            overshot: false,
            finishing: false,
            drained: false,
            clock: None,
        }
    }

    /// Queues records. After [`Replayer::finish`] they revoke it: the primary was only suspected,
    /// and is heard again. The node offers none once it has claimed.
    pub(super) fn accept(&mut self, now: HostTime, records: Vec<Record>) {
        self.finishing = false;
        self.drained = false;
        if let Some(last) = records.last() {
            self.clock = Some((now, last.guest_time));
        }
        self.records.extend(records);
    }

    /// The node forgot what was reported if the primary was heard in between: report again.
    pub(super) fn finish(&mut self) {
        self.finishing = true;
        self.drained = false;
    }

    /// Where to stop, when the next record lies between exits. A Progress only says how far the
    /// guest may run: landing on it exactly would cost time and prove nothing.
    pub(super) fn target(&self) -> Option<Landing> {
        let record = self
            .records
            .front()
            .filter(|r| r.point.kind == PointKind::Between)?;
        Some(match record.body {
            RecordBody::Progress => Landing::Near(record.point),
            _ => Landing::On(record.point),
        })
    }

    /// Takes in the end of a stretch.
    pub(super) fn arrived(&mut self, arrival: Arrival, outputs: Vec<Produced>) {
        self.unmatched.extend(outputs);
        if arrival == Arrival::Near
            && let Some(progress) = self.records.pop_front()
        {
            self.next_index = progress.index.next();
        }
        self.overshot = arrival == Arrival::Overshot;
    }

    /// What the recorder that takes over needs; `None` unless the log is drained.
    pub(super) fn hand_over(self) -> Option<Handover> {
        self.drained.then(|| Handover {
            next_index: self.next_index,
            unlogged: self.unmatched.into(),
            clock: self.clock,
        })
    }

    /// Everything the log says about the present point.
    pub(super) fn decide<E: Executor>(
        &mut self,
        executor: &mut E,
        place: &mut Place,
        outbox: &mut Vec<Emitted>,
    ) -> Result<Next, E::Error> {
        let next = self.consume(executor, place, outbox)?;
        if next != Next::Run || self.matched.len() >= REPORT_RECORDS_MAX || self.report_due() {
            self.report(place, outbox);
        }
        Ok(next)
    }

    fn consume<E: Executor>(
        &mut self,
        executor: &mut E,
        place: &mut Place,
        outbox: &mut Vec<Emitted>,
    ) -> Result<Next, E::Error> {
        if self.overshot {
            return Ok(self.diverge(place, Difference::Passed, outbox));
        }
        loop {
            let Some(record) = self.records.front() else {
                return Ok(self.at_end_of_log(place, outbox));
            };
            if record.index != self.next_index {
                return Ok(self.diverge(
                    place,
                    Difference::Gap {
                        due: self.next_index,
                    },
                    outbox,
                ));
            }
            match relation(&record.point, place) {
                Ordering::Less => return Ok(self.diverge(place, Difference::Passed, outbox)),
                Ordering::Greater => return Ok(self.leave(place, outbox)),
                Ordering::Equal if !place.at_point => {
                    return Ok(self.diverge(place, Difference::Passed, outbox));
                }
                Ordering::Equal => {}
            }
            let Some(record) = self.records.pop_front() else {
                return Ok(Next::Run);
            };
            self.next_index = record.index.next();
            if let Err(difference) = self.apply(&record, executor, place)? {
                return Ok(diverged(
                    record.index,
                    record.point,
                    place,
                    difference,
                    outbox,
                ));
            }
            if let RecordBody::End(reason) = record.body {
                self.report(place, outbox);
                outbox.push(Emitted::Ended(reason));
                return Ok(Next::Stopped);
            }
        }
    }

    /// The log has more, further on: everything at this point has been said.
    fn leave(&mut self, place: &Place, outbox: &mut Vec<Emitted>) -> Next {
        if let Some(difference) = self.unlogged_output() {
            return self.diverge(place, difference, outbox);
        }
        match place.standing {
            Standing::Runnable => Next::Run,
            standing => self.diverge(place, goes_on(standing), outbox),
        }
    }

    fn at_end_of_log(&mut self, place: &Place, outbox: &mut Vec<Emitted>) -> Next {
        if self.finishing && !self.drained {
            self.drained = true;
            self.report(place, outbox);
            outbox.push(Emitted::Drained);
        }
        // The guest runs only towards a record: the primary may have stopped it at any instruction
        // (branch clock), or taken it on from here by its state.
        Next::Wait { deadline: None }
    }

    fn apply<E: Executor>(
        &mut self,
        record: &Record,
        executor: &mut E,
        place: &mut Place,
    ) -> Result<Result<(), Difference>, E::Error> {
        if place.at_point && record.point.check != place.point.check {
            let (expected, found) = (record.point.check, place.point.check);
            return Ok(Err(Difference::Registers { expected, found }));
        }
        if !matches!(record.body, RecordBody::State { .. }) {
            self.drop_pieces();
        }
        let input = match &record.body {
            RecordBody::State { last, bytes } => {
                return self.take_piece(bytes, *last, executor, place);
            }
            RecordBody::Output(output) => return Ok(self.match_output(record.index, output)),
            RecordBody::Mark(expected) => return check_digests(expected, executor),
            RecordBody::Progress
            | RecordBody::Start(_)
            | RecordBody::Control(Control::Generation(_)) => return Ok(Ok(())),
            RecordBody::Control(Control::Settle) => {
                if let Some(difference) = self.unlogged_output() {
                    return Ok(Err(difference));
                }
                let outputs = executor.settle()?;
                self.unmatched.extend(outputs);
                place.point = executor.point()?;
                place.standing = executor.standing();
                return Ok(Ok(()));
            }
            RecordBody::Control(Control::PowerOff) => {
                place.standing = Standing::Ended(EndReason::Commanded);
                return Ok(Ok(()));
            }
            RecordBody::End(reason) => return Ok(check_end(*reason, place.standing)),
            RecordBody::Timer => Input::Timer,
            RecordBody::Console(bytes) => Input::Console(bytes.clone()),
            RecordBody::Entropy(bytes) => Input::Entropy(bytes.clone()),
            RecordBody::Packet { device, bytes } => Input::Packet {
                device: *device,
                bytes: bytes.clone(),
            },
        };
        if let Some(difference) = self.refuse_input(record, &input, executor, place) {
            return Ok(Err(difference));
        }
        place.standing = executor.apply(record.guest_time, input)?;
        place.point = executor.point()?;
        Ok(Ok(()))
    }

    /// A piece of the state that takes the guest on from here; with the last one it is loaded.
    fn take_piece<E: Executor>(
        &mut self,
        bytes: &[u8],
        last: bool,
        executor: &mut E,
        place: &mut Place,
    ) -> Result<Result<(), Difference>, E::Error> {
        if let Some(difference) = self.unlogged_output() {
            return Ok(Err(difference));
        }
        if place.standing != Standing::Runnable {
            return Ok(Err(goes_on(place.standing)));
        }
        self.pieces_bytes += bytes.len() as u64;
        if self.pieces_bytes > executor.state_bytes_max() {
            let cause = format!("more than {} bytes", executor.state_bytes_max());
            return Ok(Err(Difference::State(cause)));
        }
        self.pieces.push(bytes.to_vec());
        if !last {
            return Ok(Ok(()));
        }
        let loaded = executor.load(&self.pieces)?;
        self.drop_pieces();
        if loaded.is_ok() {
            place.point = executor.point()?;
            place.standing = executor.standing();
        }
        Ok(loaded.map_err(Difference::State))
    }

    fn drop_pieces(&mut self) {
        self.pieces = Vec::new();
        self.pieces_bytes = 0;
    }

    /// Input that a recorder could not have applied here.
    fn refuse_input<E: Executor>(
        &self,
        record: &Record,
        input: &Input,
        executor: &E,
        place: &Place,
    ) -> Option<Difference> {
        if let Some(difference) = self.unlogged_output() {
            return Some(difference);
        }
        if matches!(place.standing, Standing::Ended(_)) {
            return Some(Difference::Input("the guest has ended"));
        }
        if record.guest_time < executor.guest_time() {
            return Some(Difference::Input("guest time goes backwards"));
        }
        if !executor.accepts(input) {
            return Some(Difference::Input("the guest has no room for it"));
        }
        None
    }

    pub(super) fn has_unlogged_output(&self) -> bool {
        !self.unmatched.is_empty()
    }

    /// Output that this copy made and the log, which is past it, does not have.
    fn unlogged_output(&self) -> Option<Difference> {
        let found = name_output(&describe(self.unmatched.front()?));
        Some(Difference::Output {
            expected: "none".to_owned(),
            found,
        })
    }

    fn match_output(&mut self, index: LogIndex, expected: &Output) -> Result<(), Difference> {
        let found = self.unmatched.pop_front();
        match found {
            Some(output) if describe(&output) == *expected => {
                self.matched.push((index, output));
                Ok(())
            }
            other => Err(Difference::Output {
                expected: name_output(expected),
                found: other.map_or("none".to_owned(), |o| name_output(&describe(&o))),
            }),
        }
    }

    fn report_due(&self) -> bool {
        self.next_index.0 - self.reported.0 >= REPORT_RECORDS_MAX as u64
    }

    fn report(&mut self, place: &Place, outbox: &mut Vec<Emitted>) {
        if self.reported == self.next_index && self.matched.is_empty() {
            return;
        }
        self.reported = self.next_index;
        outbox.push(Emitted::Replayed {
            next: self.next_index,
            exits: place.point.exits,
            outputs: std::mem::take(&mut self.matched),
        });
    }

    fn diverge(&self, place: &Place, difference: Difference, outbox: &mut Vec<Emitted>) -> Next {
        let expected = self.records.front().map_or(place.point, |r| r.point);
        diverged(self.next_index, expected, place, difference, outbox)
    }
}

/// The log has the guest running on, and here it does not.
fn goes_on(standing: Standing) -> Difference {
    Difference::End {
        expected: "goes on".to_owned(),
        found: format!("{standing:?}"),
    }
}

fn diverged(
    index: LogIndex,
    expected_point: ExecutionPoint,
    place: &Place,
    difference: Difference,
    outbox: &mut Vec<Emitted>,
) -> Next {
    let found_point = place.point;
    let divergence = Divergence {
        index,
        expected_point,
        found_point,
        difference,
    };
    outbox.push(Emitted::Diverged(Box::new(divergence)));
    Next::Stopped
}

/// Where `point` lies, seen from `place`. Two places between the same exits may have the same branch
/// count: then the one that is not this one lies ahead, and landing on it finds out if that is wrong.
fn relation(point: &ExecutionPoint, place: &Place) -> Ordering {
    let order = point.order(&place.point);
    let here = place.at_point && point.rip == place.point.rip && point.check == place.point.check;
    if order == Ordering::Equal && point.kind == PointKind::Between && !here {
        return Ordering::Greater;
    }
    order
}

fn check_digests<E: Executor>(
    expected: &Digests,
    executor: &mut E,
) -> Result<Result<(), Difference>, E::Error> {
    let found = executor.digests(expected.memory.is_some())?;
    Ok(match first_difference(expected, &found) {
        None => Ok(()),
        Some(section) => Err(Difference::Digests {
            section,
            expected: *expected,
            found,
        }),
    })
}

fn check_end(expected: EndReason, standing: Standing) -> Result<(), Difference> {
    if standing == Standing::Ended(expected) {
        return Ok(());
    }
    Err(Difference::End {
        expected: format!("ends ({expected:?})"),
        found: format!("{standing:?}"),
    })
}
