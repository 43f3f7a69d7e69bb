//! Log indices that each side keeps, and their order.
//!
//! Every pointer is *the index of the first record not yet* so-and-so, hence 0 at the beginning.
//!
//! ```text
//! primary   recorded  >=  sent  >=  acknowledged  >=  replayed (by the backup, as it told us)
//! backup    received  >=  replayed                >=  released (by the primary, as it told us)
//! ```
//!
//! *Acknowledged* means: in the backup's memory. No pointer ever decreases. What we do ourselves is
//! asserted, in release builds too: a broken invariant here would mean wrong output. What the peer
//! says is checked and answered with a [`PointerError`].

#![forbid(unsafe_code)]

use crate::message::Ack;
use crate::record::{LogIndex, Record};

/// A claim of the peer that contradicts what this side knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PointerError {
    /// Acknowledged or replayed more than was sent or received.
    #[error("{what} {claimed} is beyond {limit}")]
    Beyond {
        /// Which pointer.
        what: &'static str,
        /// What the peer said.
        claimed: u64,
        /// The most it could be.
        limit: u64,
    },
    /// A pointer went backwards.
    #[error("{what} went back from {before} to {claimed}")]
    Backwards {
        /// Which pointer.
        what: &'static str,
        /// What the peer said.
        claimed: u64,
        /// What it had said before.
        before: u64,
    },
    /// Received records do not continue the log.
    #[error("log record {found} where {expected} was due")]
    Gap {
        /// Index that was due.
        expected: u64,
        /// Index found.
        found: u64,
    },
}

fn check_claim(
    what: &'static str,
    claimed: LogIndex,
    before: LogIndex,
    limit: LogIndex,
) -> Result<(), PointerError> {
    if claimed > limit {
        return Err(PointerError::Beyond {
            what,
            claimed: claimed.0,
            limit: limit.0,
        });
    }
    if claimed < before {
        return Err(PointerError::Backwards {
            what,
            claimed: claimed.0,
            before: before.0,
        });
    }
    Ok(())
}

/// The primary's pointers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PrimaryPointers {
    recorded: LogIndex,
    sent: LogIndex,
    acknowledged: LogIndex,
    replayed: LogIndex,
}

impl PrimaryPointers {
    /// Pointers of a log whose records below `first` the backup has in another form: a state.
    #[must_use]
    pub const fn starting_at(first: LogIndex) -> Self {
        Self {
            recorded: first,
            sent: first,
            acknowledged: first,
            replayed: first,
        }
    }

    /// A record was made here.
    ///
    /// # Panics
    /// When `index` does not continue the log: the recorder is broken.
    pub fn record(&mut self, index: LogIndex) {
        assert_eq!(index, self.recorded, "recorded indices are consecutive");
        self.recorded = index.next();
    }

    /// Every record below `next` was handed to the transport.
    ///
    /// # Panics
    /// When that is more than was recorded, or less than before.
    pub fn send(&mut self, next: LogIndex) {
        assert!(
            self.sent <= next && next <= self.recorded,
            "recorded >= sent, never back"
        );
        self.sent = next;
    }

    /// The backup said `ack`.
    ///
    /// # Errors
    /// When it claims more than was sent, or less than it did before.
    pub fn acknowledge(&mut self, ack: &Ack) -> Result<(), PointerError> {
        check_claim("acknowledged", ack.received, self.acknowledged, self.sent)?;
        check_claim("replayed", ack.replayed, self.replayed, ack.received)?;
        self.acknowledged = ack.received;
        self.replayed = ack.replayed;
        self.check();
        Ok(())
    }

    /// First index not yet recorded.
    #[must_use]
    pub const fn recorded(&self) -> LogIndex {
        self.recorded
    }

    /// First index not yet sent.
    #[must_use]
    pub const fn sent(&self) -> LogIndex {
        self.sent
    }

    /// First index not yet known to be in the backup's memory.
    #[must_use]
    pub const fn acknowledged(&self) -> LogIndex {
        self.acknowledged
    }

    /// First index not yet known to be replayed by the backup.
    #[must_use]
    pub const fn replayed(&self) -> LogIndex {
        self.replayed
    }

    fn check(&self) {
        assert!(
            self.recorded >= self.sent
                && self.sent >= self.acknowledged
                && self.acknowledged >= self.replayed,
            "recorded >= sent >= acknowledged >= replayed: {self:?}"
        );
    }
}

/// The backup's pointers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct BackupPointers {
    received: LogIndex,
    replayed: LogIndex,
    replayed_exits: u64,
    released: LogIndex,
}

impl BackupPointers {
    /// Pointers of a log whose records below `first` this side has in another form: a state.
    #[must_use]
    pub const fn starting_at(first: LogIndex) -> Self {
        Self {
            received: first,
            replayed: first,
            replayed_exits: 0,
            released: first,
        }
    }

    /// Takes records into memory: all of them, or none.
    ///
    /// # Errors
    /// When they do not continue the log.
    pub fn receive(&mut self, records: &[Record]) -> Result<(), PointerError> {
        let mut next = self.received;
        for record in records {
            if record.index != next {
                return Err(PointerError::Gap {
                    expected: next.0,
                    found: record.index.0,
                });
            }
            next = next.next();
        }
        self.received = next;
        Ok(())
    }

    /// Every record below `next` was replayed, after `exits` synchronous exits.
    ///
    /// # Panics
    /// When that is more than was received, or less than before: the replayer is broken.
    pub fn replay(&mut self, next: LogIndex, exits: u64) {
        assert!(
            self.replayed <= next && next <= self.received,
            "received >= replayed, never back"
        );
        self.replayed = next;
        self.replayed_exits = self.replayed_exits.max(exits);
    }

    /// The primary said that it released every output below `next`.
    ///
    /// # Errors
    /// When that is more than this side ever received (it was not acknowledged), or less than
    /// before.
    pub fn release(&mut self, next: LogIndex) -> Result<(), PointerError> {
        check_claim("released", next, self.released, self.received)?;
        self.released = next;
        Ok(())
    }

    /// What the primary is told.
    #[must_use]
    pub const fn ack(&self) -> Ack {
        Ack {
            received: self.received,
            replayed: self.replayed,
            replayed_exits: self.replayed_exits,
        }
    }

    /// First index not yet received.
    #[must_use]
    pub const fn received(&self) -> LogIndex {
        self.received
    }

    /// First index not yet replayed.
    #[must_use]
    pub const fn replayed(&self) -> LogIndex {
        self.replayed
    }

    /// First index whose output the primary may not have released.
    #[must_use]
    pub const fn released(&self) -> LogIndex {
        self.released
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execution_point::ExecutionPoint;
    use crate::host_time::GuestTime;
    use crate::record::RecordBody;

    fn timer(index: u64) -> Record {
        Record {
            index: LogIndex(index),
            point: ExecutionPoint::at_exit(index, 0),
            guest_time: GuestTime::ZERO,
            body: RecordBody::Timer,
        }
    }

    fn ack(received: u64, replayed: u64) -> Ack {
        Ack {
            received: LogIndex(received),
            replayed: LogIndex(replayed),
            replayed_exits: 0,
        }
    }

    fn primary_with(recorded: u64, sent: u64) -> PrimaryPointers {
        let mut p = PrimaryPointers::default();
        (0..recorded).for_each(|i| p.record(LogIndex(i)));
        p.send(LogIndex(sent));
        p
    }

    #[test]
    fn acknowledgements_advance_within_what_was_sent() {
        let mut p = primary_with(5, 3);
        assert_eq!(p.acknowledge(&ack(3, 1)), Ok(()));
        assert_eq!((p.acknowledged(), p.replayed()), (LogIndex(3), LogIndex(1)));
        let beyond = PointerError::Beyond {
            what: "acknowledged",
            claimed: 4,
            limit: 3,
        };
        assert_eq!(p.acknowledge(&ack(4, 1)), Err(beyond));
        let back = PointerError::Backwards {
            what: "acknowledged",
            claimed: 2,
            before: 3,
        };
        assert_eq!(p.acknowledge(&ack(2, 1)), Err(back));
        let unreceived = PointerError::Beyond {
            what: "replayed",
            claimed: 4,
            limit: 3,
        };
        assert_eq!(p.acknowledge(&ack(3, 4)), Err(unreceived));
        assert_eq!((p.acknowledged(), p.replayed()), (LogIndex(3), LogIndex(1)));
    }

    #[test]
    #[should_panic(expected = "consecutive")]
    fn a_gap_in_our_own_records_is_a_bug() {
        primary_with(2, 0).record(LogIndex(3));
    }

    #[test]
    #[should_panic(expected = "recorded >= sent")]
    fn sending_what_was_not_recorded_is_a_bug() {
        primary_with(2, 0).send(LogIndex(3));
    }

    #[test]
    fn received_records_must_continue_the_log() {
        let mut b = BackupPointers::default();
        assert_eq!(b.receive(&[timer(0), timer(1)]), Ok(()));
        let gap = PointerError::Gap {
            expected: 3,
            found: 4,
        };
        assert_eq!(b.receive(&[timer(2), timer(4)]), Err(gap));
        assert_eq!(b.received(), LogIndex(2), "all or nothing");
        b.replay(LogIndex(1), 7);
        assert_eq!(
            b.ack(),
            Ack {
                replayed_exits: 7,
                ..ack(2, 1)
            }
        );
    }

    #[test]
    fn released_output_must_have_been_received() {
        let mut b = BackupPointers::default();
        b.receive(&[timer(0), timer(1)]).expect("consecutive");
        assert_eq!(b.release(LogIndex(2)), Ok(()));
        let beyond = PointerError::Beyond {
            what: "released",
            claimed: 3,
            limit: 2,
        };
        assert_eq!(b.release(LogIndex(3)), Err(beyond));
    }

    #[test]
    #[should_panic(expected = "received >= replayed")]
    fn replaying_what_was_not_received_is_a_bug() {
        BackupPointers::default().replay(LogIndex(1), 0);
    }
}
