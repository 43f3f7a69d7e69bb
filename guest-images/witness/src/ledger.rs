//! All replies of all clients, put in the order in which the guest says it applied the requests.
//!
//! One client's [`Expectation`](crate::expectation::Expectation) cannot tell whether *two* guests
//! served different clients. The global counter and hash can: the replies of one execution form one
//! chain, those of two executions do not.

use crate::hash::{HASH_START, after_any_request};
use crate::wire::{Outcome, Reply};
use std::collections::BTreeMap;
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    client: u64,
    sequence: u64,
    client_hash: u64,
    global_hash: u64,
}

/// Acknowledged requests by their place in the order of all. Grows by 40 bytes for each; the
/// caller bounds the number of requests it makes.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    entries: BTreeMap<u64, Entry>,
}

/// What a sound ledger shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Replies in the ledger.
    pub acknowledged: u64,
    /// Highest place seen.
    pub highest: u64,
    /// Places below it for which nobody has a reply. Requests whose replies were lost with a
    /// connection; any other number means that replies are missing here.
    pub missing: u64,
}

/// Two replies that cannot both come from one execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerFault {
    /// Two different requests have the same place: two executions answered.
    TwoAtOnePlace {
        /// Place in the order of all requests.
        place: u64,
        /// Client and sequence number seen first.
        first: (u64, u64),
        /// Client and sequence number seen later.
        second: (u64, u64),
    },
    /// The hash at `place` does not follow from the one before.
    BrokenChain {
        /// Place in the order of all requests.
        place: u64,
        /// Hash that follows from the place before.
        expected: u64,
        /// Hash in the reply.
        found: u64,
    },
}

impl fmt::Display for LedgerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TwoAtOnePlace {
                place,
                first,
                second,
            } => write!(
                f,
                "two executions: place {place} was given to client {} request {} and to client {} request {}",
                first.0, first.1, second.0, second.1
            ),
            Self::BrokenChain {
                place,
                expected,
                found,
            } => {
                write!(
                    f,
                    "broken chain at place {place}: hash {found:#018x}, expected {expected:#018x}"
                )
            }
        }
    }
}

impl std::error::Error for LedgerFault {}

impl Ledger {
    /// Enters an `Applied` reply; others have no place and are ignored.
    ///
    /// # Errors
    /// When another request already has its place.
    pub fn enter(&mut self, reply: &Reply) -> Result<(), LedgerFault> {
        if reply.outcome != Outcome::Applied {
            return Ok(());
        }
        let entry = Entry {
            client: reply.client,
            sequence: reply.sequence,
            client_hash: reply.client_hash,
            global_hash: reply.global_hash,
        };
        let place = reply.global_counter;
        match self.entries.insert(place, entry) {
            Some(old) if old != entry => Err(LedgerFault::TwoAtOnePlace {
                place,
                first: (old.client, old.sequence),
                second: (entry.client, entry.sequence),
            }),
            _ => Ok(()),
        }
    }

    /// Follows the chain from the first place, wherever neighbours are known.
    ///
    /// # Errors
    /// At the first hash that does not follow from the one before.
    pub fn verify(&self) -> Result<Summary, LedgerFault> {
        let (mut last_place, mut last_hash, mut missing) = (0, HASH_START, 0);
        for (&place, entry) in &self.entries {
            missing += place.saturating_sub(last_place + 1);
            if place == last_place + 1 {
                let expected =
                    after_any_request(last_hash, entry.client, entry.sequence, entry.client_hash);
                if expected != entry.global_hash {
                    return Err(LedgerFault::BrokenChain {
                        place,
                        expected,
                        found: entry.global_hash,
                    });
                }
            }
            (last_place, last_hash) = (place, entry.global_hash);
        }
        Ok(Summary {
            acknowledged: self.entries.len() as u64,
            highest: last_place,
            missing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Service;
    use crate::wire::{Request, RequestKind};

    fn apply(client: u64, sequence: u64) -> Request {
        Request {
            kind: RequestKind::Apply,
            client,
            sequence,
            burst_bytes: 0,
            payload: vec![1],
        }
    }

    #[test]
    fn one_execution_makes_one_chain() {
        let (mut service, mut ledger) = (Service::default(), Ledger::default());
        for sequence in 1..=10 {
            for client in 1..=3 {
                let reply = service.handle(&apply(client, sequence));
                if (client, sequence) != (2, 5) {
                    ledger.enter(&reply).expect("one execution");
                }
            }
        }
        assert_eq!(
            ledger.verify(),
            Ok(Summary {
                acknowledged: 29,
                highest: 30,
                missing: 1
            })
        );
    }

    #[test]
    fn two_executions_are_found_at_one_place() {
        let (mut primary, mut ledger) = (Service::default(), Ledger::default());
        ledger.enter(&primary.handle(&apply(1, 1))).expect("first");
        let mut backup = primary.clone();
        ledger.enter(&primary.handle(&apply(1, 2))).expect("second");
        let fault = ledger
            .enter(&backup.handle(&apply(2, 1)))
            .expect_err("split brain");
        assert_eq!(
            fault,
            LedgerFault::TwoAtOnePlace {
                place: 2,
                first: (1, 2),
                second: (2, 1)
            }
        );
    }

    #[test]
    fn two_executions_are_found_by_the_chain() {
        let (mut primary, mut ledger) = (Service::default(), Ledger::default());
        let mut backup = primary.clone();
        ledger.enter(&primary.handle(&apply(1, 1))).expect("first");
        backup.handle(&apply(2, 1));
        ledger
            .enter(&backup.handle(&apply(2, 2)))
            .expect("another place");
        assert!(matches!(
            ledger.verify(),
            Err(LedgerFault::BrokenChain { place: 2, .. })
        ));
    }
}
