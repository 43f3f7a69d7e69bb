//! The outside view of one client: what each reply must be, and what a wrong one proves.
//!
//! An [`Expectation`] makes the requests of one client and foretells the reply to each. It survives
//! lost connections: [`Expectation::resume`] compares a report with what was sent and
//! acknowledged, and says which requests must be sent again.

use crate::hash::{HASH_START, after_request};
use crate::wire::{Outcome, Reply, Request, RequestKind};
use std::collections::VecDeque;
use std::fmt;

/// Most requests without a reply.
pub const IN_FLIGHT_MAX: usize = 1_024;

/// A reply that no faithful guest could have sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The guest knows fewer requests than it acknowledged: it was rolled back.
    RolledBack {
        /// Highest acknowledged sequence number.
        acknowledged: u64,
        /// What the guest says now.
        found: u64,
    },
    /// The guest refused the next request in turn, or applied one out of turn: one was lost or
    /// applied twice.
    OutOfTurn {
        /// Sequence number whose reply is due.
        due: u64,
        /// Sequence number expected by the guest.
        guest_expects: u64,
    },
    /// The guest applied requests that were never sent.
    NeverSent {
        /// Highest sequence number sent.
        sent: u64,
        /// What the guest says.
        found: u64,
    },
    /// Same count, other history.
    WrongHash {
        /// At which sequence number.
        sequence: u64,
        /// The hash of what was sent.
        expected: u64,
        /// The guest's.
        found: u64,
    },
    /// The count over all clients went back, or is less than this client's own.
    GlobalWentBack {
        /// Before.
        before: u64,
        /// Now.
        found: u64,
    },
    /// The reply is to somebody else, or nothing was asked.
    NotMine {
        /// Client named in the reply.
        client: u64,
        /// Sequence number named in the reply.
        sequence: u64,
    },
    /// The guest's table of clients is full.
    TooManyClients,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RolledBack {
                acknowledged,
                found,
            } => {
                write!(
                    f,
                    "rolled back: {acknowledged} requests were acknowledged, the guest now knows {found}"
                )
            }
            Self::OutOfTurn { due, guest_expects } => {
                write!(
                    f,
                    "out of turn: reply to request {due} is due, the guest expects request {guest_expects}"
                )
            }
            Self::NeverSent { sent, found } => {
                write!(f, "{sent} requests were sent, the guest applied {found}")
            }
            Self::WrongHash {
                sequence,
                expected,
                found,
            } => {
                write!(
                    f,
                    "other history at request {sequence}: hash {found:#018x}, expected {expected:#018x}"
                )
            }
            Self::GlobalWentBack { before, found } => {
                write!(
                    f,
                    "count over all clients went back from {before} to {found}"
                )
            }
            Self::NotMine { client, sequence } => {
                write!(
                    f,
                    "reply to client {client}, request {sequence}, which was not asked here"
                )
            }
            Self::TooManyClients => write!(f, "the guest's table of clients is full"),
        }
    }
}

impl std::error::Error for Fault {}

#[derive(Debug, Clone)]
struct InFlight {
    request: Request,
    hash_after: u64,
}

/// One client's requests and the replies they must get.
#[derive(Debug, Clone)]
pub struct Expectation {
    client: u64,
    acknowledged: u64,
    acknowledged_hash: u64,
    global_counter: u64,
    in_flight: VecDeque<InFlight>,
}

impl Expectation {
    /// A client that has not asked anything yet.
    #[must_use]
    pub const fn new(client: u64) -> Self {
        Self {
            client,
            acknowledged: 0,
            acknowledged_hash: HASH_START,
            global_counter: 0,
            in_flight: VecDeque::new(),
        }
    }

    /// A client that comes back after requests with these payloads, all of them answered.
    #[must_use]
    pub fn after(client: u64, payloads: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let mut expectation = Self::new(client);
        for payload in payloads {
            let sequence = expectation.acknowledged + 1;
            let hash = after_request(expectation.acknowledged_hash, sequence, &payload);
            (expectation.acknowledged, expectation.acknowledged_hash) = (sequence, hash);
        }
        expectation
    }

    /// Requests acknowledged so far.
    #[must_use]
    pub const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Requests sent and not acknowledged.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The next request, to be sent after all earlier ones; `None` while [`IN_FLIGHT_MAX`] wait.
    pub fn next_request(&mut self, payload: Vec<u8>, burst_bytes: u32) -> Option<Request> {
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            return None;
        }
        let (sequence, hash) = self
            .in_flight
            .back()
            .map_or((self.acknowledged, self.acknowledged_hash), |last| {
                (last.request.sequence, last.hash_after)
            });
        let sequence = sequence + 1;
        let hash_after = after_request(hash, sequence, &payload);
        let request = Request {
            kind: RequestKind::Apply,
            client: self.client,
            sequence,
            burst_bytes,
            payload,
        };
        self.in_flight.push_back(InFlight {
            request: request.clone(),
            hash_after,
        });
        Some(request)
    }

    /// Checks the reply to the oldest request in flight, which is thereby acknowledged.
    ///
    /// # Errors
    /// What the reply proves to have gone wrong. The expectation is then of no further use.
    pub fn check(&mut self, reply: &Reply) -> Result<(), Fault> {
        let mine = reply.client == self.client;
        let Some(due) = self
            .in_flight
            .front()
            .filter(|due| mine && due.request.sequence == reply.sequence)
        else {
            return Err(Fault::NotMine {
                client: reply.client,
                sequence: reply.sequence,
            });
        };
        let sequence = due.request.sequence;
        match reply.outcome {
            Outcome::Applied if reply.client_counter == sequence => {}
            Outcome::TooManyClients => return Err(Fault::TooManyClients),
            Outcome::WrongSequence if reply.client_counter < self.acknowledged => {
                return Err(Fault::RolledBack {
                    acknowledged: self.acknowledged,
                    found: reply.client_counter,
                });
            }
            _ => {
                return Err(Fault::OutOfTurn {
                    due: sequence,
                    guest_expects: reply.client_counter.saturating_add(1),
                });
            }
        }
        if reply.client_hash != due.hash_after {
            return Err(Fault::WrongHash {
                sequence,
                expected: due.hash_after,
                found: reply.client_hash,
            });
        }
        if reply.global_counter <= self.global_counter || reply.global_counter < sequence {
            return Err(Fault::GlobalWentBack {
                before: self.global_counter,
                found: reply.global_counter,
            });
        }
        self.acknowledge_front();
        self.global_counter = reply.global_counter;
        Ok(())
    }

    /// The request to send first on a new connection: it changes nothing.
    #[must_use]
    pub const fn report_request(&self) -> Request {
        Request {
            kind: RequestKind::Report,
            client: self.client,
            sequence: 0,
            burst_bytes: 0,
            payload: Vec::new(),
        }
    }

    /// After a lost connection: takes the answer to [`Expectation::report_request`]. Requests that
    /// were applied although their replies were lost count as acknowledged; the others are
    /// returned, to be sent again in this order.
    ///
    /// # Errors
    /// What the report proves to have gone wrong.
    pub fn resume(&mut self, report: &Reply) -> Result<Vec<Request>, Fault> {
        if report.client != self.client || report.outcome != Outcome::Report {
            return Err(Fault::NotMine {
                client: report.client,
                sequence: report.sequence,
            });
        }
        let found = report.client_counter;
        if found < self.acknowledged {
            return Err(Fault::RolledBack {
                acknowledged: self.acknowledged,
                found,
            });
        }
        let sent = self.acknowledged + self.in_flight.len() as u64;
        if found > sent {
            return Err(Fault::NeverSent { sent, found });
        }
        if report.global_counter < self.global_counter {
            return Err(Fault::GlobalWentBack {
                before: self.global_counter,
                found: report.global_counter,
            });
        }
        while self.acknowledged < found {
            self.acknowledge_front();
        }
        if report.client_hash != self.acknowledged_hash {
            let (sequence, expected) = (found, self.acknowledged_hash);
            return Err(Fault::WrongHash {
                sequence,
                expected,
                found: report.client_hash,
            });
        }
        self.global_counter = report.global_counter;
        Ok(self
            .in_flight
            .iter()
            .map(|waiting| waiting.request.clone())
            .collect())
    }

    fn acknowledge_front(&mut self) {
        if let Some(done) = self.in_flight.pop_front() {
            self.acknowledged = done.request.sequence;
            self.acknowledged_hash = done.hash_after;
        }
    }
}

#[cfg(test)]
#[path = "expectation_tests.rs"]
mod tests;
