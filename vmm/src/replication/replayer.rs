//! The replayer: takes from the log what the recorder put there, at the same points.
//!
//! It may leave a point only when the log proves that nothing more happens at it: the next record
//! lies further on, or a Mark or Progress closed it. It checks where each record applies, every
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
use logging_channel::record::{
    ClockKind, Control, Digests, EndReason, LogIndex, Output, Record, RecordBody,
};
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
    /// The point that the last Mark or Progress closed.
    closed: Option<ExecutionPoint>,
    overshot: bool,
    finishing: bool,
    drained: bool,
    /// From the Start record.
    clock_kind: ClockKind,
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
    pub(super) fn new(next_index: LogIndex, clock_kind: ClockKind) -> Self {
        Self {
            next_index,
            records: VecDeque::new(),
            unmatched: VecDeque::new(),
            matched: Vec::new(),
            reported: next_index,
            closed: None,
            clock_kind,
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
                    // Only a Progress applies at a point that was left already.
                    if record.body != RecordBody::Progress {
                        return Ok(self.diverge(place, Difference::Passed, outbox));
                    }
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
            standing => {
                let expected = "goes on".to_owned();
                let difference = Difference::End {
                    expected,
                    found: format!("{standing:?}"),
                };
                self.diverge(place, difference, outbox)
            }
        }
    }

    fn at_end_of_log(&mut self, place: &Place, outbox: &mut Vec<Emitted>) -> Next {
        if self.finishing {
            if !self.drained {
                self.drained = true;
                self.report(place, outbox);
                outbox.push(Emitted::Drained);
            }
            return Next::Wait { deadline: None };
        }
        // On the branch clock the primary may stop at any instruction: the guest runs only towards
        // a record. On the exit clock a closed point can only be followed by the next exit.
        let may_leave = self.clock_kind == ClockKind::Exits
            && (!place.at_point || self.closed == Some(place.point));
        if may_leave && place.standing == Standing::Runnable && self.unmatched.is_empty() {
            Next::Run
        } else {
            Next::Wait { deadline: None }
        }
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
        let input = match &record.body {
            RecordBody::Output(output) => return Ok(self.match_output(record.index, output)),
            RecordBody::Progress => {
                self.closed = Some(place.point);
                return Ok(Ok(()));
            }
            RecordBody::Mark(expected) => {
                self.closed = Some(place.point);
                return check_digests(expected, executor);
            }
            RecordBody::Start(start) => {
                self.clock_kind = start.clock;
                return Ok(Ok(()));
            }
            RecordBody::Control(Control::Generation(_)) => return Ok(Ok(())),
            RecordBody::Control(Control::Settle) => {
                if let Some(difference) = self.unlogged_output() {
                    return Ok(Err(difference));
                }
                let outputs = executor.settle()?;
                self.unmatched.extend(outputs);
                place.point = executor.point()?;
                place.standing = executor.standing();
                self.closed = None;
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
        // More input may follow at this point, whatever a Mark of the halted guest said before.
        self.closed = None;
        Ok(Ok(()))
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
