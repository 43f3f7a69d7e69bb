//! The rules between a record and the one before it, for the codec, segments and sessions.

#![forbid(unsafe_code)]

use super::wire::RecordKind;
use crate::execution_point::{ExecutionPoint, PointKind};
use crate::host_time::GuestTime;
use crate::record::{LogIndex, Record, RecordBody};

/// Checks that records form a log: consecutive indices, points and guest time that never decrease.
///
/// A fresh one accepts a log from any index on; afterwards each record must follow the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sequence {
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Last {
    index: LogIndex,
    point: ExecutionPoint,
    guest_time: GuestTime,
    ended: bool,
}

/// Why a record cannot be at its place in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SequenceFault {
    /// Not the next index.
    #[error("index {} where {} must follow", found.0, expected.0)]
    Index {
        /// The next index.
        expected: LogIndex,
        /// The record's.
        found: LogIndex,
    },
    /// No index can follow.
    #[error("the log is full: the index has no successor")]
    IndexExhausted,
    /// Its point is before the last one's.
    #[error("the execution point is before the last one's")]
    PointDecreases,
    /// An instruction pointer at an exit, where it does not travel.
    #[error("an exit point carries an instruction pointer")]
    RipAtExit,
    /// Guest time runs backwards.
    #[error("guest time is before the last record's")]
    TimeDecreases,
    /// Guest time is not a whole number of microseconds.
    #[error("guest time is not a whole number of microseconds")]
    TimeNotMicroseconds,
    /// A record of a kind that does not move time has another time than the one before it.
    #[error("guest time moves at a record that does not move it")]
    TimeMoves,
    /// A Start record elsewhere than at index 0.
    #[error("a Start record can only have index 0")]
    StartNotFirst,
    /// A record after End.
    #[error("a record follows the End record")]
    AfterEnd,
}

impl Sequence {
    /// The index that must follow; `None` while nothing was admitted.
    #[must_use]
    pub fn next(&self) -> Option<LogIndex> {
        self.last.map(|last| last.index.next())
    }

    /// Point of the last record; of power-on while nothing was admitted.
    #[must_use]
    pub fn point(&self) -> ExecutionPoint {
        self.last.map(|last| last.point).unwrap_or_default()
    }

    /// Guest time of the last record; of power-on while nothing was admitted.
    #[must_use]
    pub fn guest_time(&self) -> GuestTime {
        self.last.map(|last| last.guest_time).unwrap_or_default()
    }

    /// Takes `record` as the next of the log.
    ///
    /// # Errors
    /// Which rule it breaks; the sequence is then unchanged.
    pub fn admit(&mut self, record: &Record) -> Result<(), SequenceFault> {
        if record.index.0 == u64::MAX {
            return Err(SequenceFault::IndexExhausted);
        }
        if record.point.kind == PointKind::Exit && record.point.rip != 0 {
            return Err(SequenceFault::RipAtExit);
        }
        if !record.guest_time.as_nanos().is_multiple_of(1_000) {
            return Err(SequenceFault::TimeNotMicroseconds);
        }
        if matches!(record.body, RecordBody::Start(_)) && record.index != LogIndex(0) {
            return Err(SequenceFault::StartNotFirst);
        }
        if let Some(last) = &self.last {
            last.admits(record)?;
        }
        self.last = Some(Last {
            index: record.index,
            point: record.point,
            guest_time: record.guest_time,
            ended: matches!(record.body, RecordBody::End(_)),
        });
        Ok(())
    }
}

impl Last {
    fn admits(&self, record: &Record) -> Result<(), SequenceFault> {
        if self.ended {
            return Err(SequenceFault::AfterEnd);
        }
        if record.index != self.index.next() {
            let (expected, found) = (self.index.next(), record.index);
            return Err(SequenceFault::Index { expected, found });
        }
        // The branch count never falls, not even where the order would not look at it.
        if record.point.order(&self.point).is_lt() || record.point.branches < self.point.branches {
            return Err(SequenceFault::PointDecreases);
        }
        if record.guest_time < self.guest_time {
            return Err(SequenceFault::TimeDecreases);
        }
        if record.guest_time != self.guest_time && !RecordKind::of(&record.body).moves_time() {
            return Err(SequenceFault::TimeMoves);
        }
        Ok(())
    }
}
