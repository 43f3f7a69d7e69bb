//! What the guest remembers: a counter and a running hash per client, and both over all clients.
//!
//! Pure: a request in, a reply out. Clients are never forgotten, so that a request repeated after
//! any length of time is refused; the table is bounded instead.

use crate::hash::{HASH_START, after_any_request, after_request};
use crate::wire::{Outcome, Reply, Request, RequestKind};
use std::collections::BTreeMap;

/// Most client ids that one guest serves in its life.
pub const CLIENTS_MAX: usize = 4_096;

#[derive(Debug, Clone, Copy)]
struct ClientState {
    counter: u64,
    hash: u64,
}

const NEW_CLIENT: ClientState = ClientState {
    counter: 0,
    hash: HASH_START,
};

/// All state of the witness.
#[derive(Debug, Clone)]
pub struct Service {
    clients: BTreeMap<u64, ClientState>,
    global_counter: u64,
    global_hash: u64,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            clients: BTreeMap::new(),
            global_counter: 0,
            global_hash: HASH_START,
        }
    }
}

impl Service {
    /// Applies or refuses `request`.
    pub fn handle(&mut self, request: &Request) -> Reply {
        let known = self.clients.get(&request.client).copied();
        let client = known.unwrap_or(NEW_CLIENT);
        if request.kind == RequestKind::Report {
            return self.reply(request, client, Outcome::Report);
        }
        if known.is_none() && self.clients.len() >= CLIENTS_MAX {
            return self.reply(request, client, Outcome::TooManyClients);
        }
        if Some(request.sequence) != client.counter.checked_add(1) {
            return self.reply(request, client, Outcome::WrongSequence);
        }
        let hash = after_request(client.hash, request.sequence, &request.payload);
        let client = ClientState {
            counter: request.sequence,
            hash,
        };
        self.clients.insert(request.client, client);
        self.global_counter = self.global_counter.saturating_add(1);
        self.global_hash =
            after_any_request(self.global_hash, request.client, request.sequence, hash);
        self.reply(request, client, Outcome::Applied)
    }

    /// Requests applied so far, of all clients.
    #[must_use]
    pub const fn applied(&self) -> u64 {
        self.global_counter
    }

    /// Running hash over all applied requests.
    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.global_hash
    }

    fn reply(&self, request: &Request, client: ClientState, outcome: Outcome) -> Reply {
        let burst_bytes = if outcome == Outcome::Applied {
            request.burst_bytes
        } else {
            0
        };
        Reply {
            outcome,
            client: request.client,
            sequence: request.sequence,
            client_counter: client.counter,
            client_hash: client.hash,
            global_counter: self.global_counter,
            global_hash: self.global_hash,
            burst_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(client: u64, sequence: u64) -> Request {
        Request {
            kind: RequestKind::Apply,
            client,
            sequence,
            burst_bytes: 0,
            payload: sequence.to_le_bytes().to_vec(),
        }
    }

    #[test]
    fn counts_each_client_and_all_of_them() {
        let mut service = Service::default();
        service.handle(&apply(1, 1));
        service.handle(&apply(2, 1));
        let reply = service.handle(&apply(1, 2));
        assert_eq!(
            (reply.outcome, reply.client_counter, reply.global_counter),
            (Outcome::Applied, 2, 3)
        );
    }

    #[test]
    fn repeated_and_skipped_requests_are_refused_and_change_nothing() {
        let mut service = Service::default();
        let first = service.handle(&apply(1, 1));
        for sequence in [0, 1, 3, u64::MAX] {
            let refused = service.handle(&apply(1, sequence));
            assert_eq!(refused.outcome, Outcome::WrongSequence);
            assert_eq!(
                refused.client_counter + 1,
                2,
                "names the expected sequence number"
            );
            assert_eq!(
                (refused.client_hash, refused.global_hash),
                (first.client_hash, first.global_hash)
            );
        }
        assert_eq!(service.handle(&apply(1, 2)).outcome, Outcome::Applied);
    }

    #[test]
    fn a_report_changes_nothing_and_remembers_nobody() {
        let mut service = Service::default();
        let report = Request {
            kind: RequestKind::Report,
            ..apply(9, 77)
        };
        let reply = service.handle(&report);
        assert_eq!(
            (reply.outcome, reply.sequence, reply.client_counter),
            (Outcome::Report, 77, 0)
        );
        assert!(service.clients.is_empty());
    }

    #[test]
    fn the_table_of_clients_is_bounded() {
        let mut service = Service::default();
        for client in 0..CLIENTS_MAX as u64 {
            assert_eq!(service.handle(&apply(client, 1)).outcome, Outcome::Applied);
        }
        assert_eq!(
            service.handle(&apply(u64::MAX, 1)).outcome,
            Outcome::TooManyClients
        );
        assert_eq!(
            service.handle(&apply(0, 2)).outcome,
            Outcome::Applied,
            "known clients go on"
        );
    }

    #[test]
    fn only_an_applied_request_gets_its_burst() {
        let mut service = Service::default();
        let wanted = Request {
            burst_bytes: 100,
            ..apply(1, 1)
        };
        assert_eq!(service.handle(&wanted).burst_bytes, 100);
        assert_eq!(service.handle(&wanted).burst_bytes, 0);
    }
}
