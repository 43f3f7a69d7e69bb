//! A node as an operator sees it: plain data for the control socket and the metrics.

#![forbid(unsafe_code)]

use super::{Node, Session};
use crate::replication::go_live::{Claim, ClaimStatus};
use crate::replication::output_gate::GateStatus;
use crate::replication::role::Role;
use crate::replication::transfer_watch::TransferStatus;
use logging_channel::host_time::HostTime;
use serde::{Deserialize, Serialize};
use std::hash::{Hash, Hasher};

/// Counts since the process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Records made here.
    pub records: u64,
    /// Times this process did not run for longer than half the timeout.
    pub stalls: u64,
    /// Times the peer was suspected.
    pub suspicions: u64,
    /// Requests sent to the arbiter.
    pub claims: u64,
    /// Backups that were given the guest's state.
    pub transfers: u64,
    /// Messages that came when nothing the peer says counts any more.
    pub ignored_messages: u64,
}

/// Log pointers: the index of the first record not yet so-and-so. What a role does not have is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointerStatus {
    /// Primary: made here while there was a backup.
    pub recorded: u64,
    /// Primary: handed to the transport.
    pub sent: u64,
    /// Primary: in the backup's memory.
    pub acknowledged: u64,
    /// Backup: in memory here.
    pub received: u64,
    /// Replayed by the backup, as far as this side knows.
    pub replayed: u64,
    /// Every output below has left, as far as this side knows.
    pub released: u64,
}

/// Counts decide nothing, so two nodes that differ only in them are the same to a model checker.
impl Hash for Counters {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// State of one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// `idle`, `primary`, `backup`, `going live`, `solo`, `ended` or `halted`.
    pub title: String,
    /// The exact state.
    pub role: Role,
    /// Generation held or followed.
    pub generation: u64,
    /// Our name at the arbiter.
    pub holder: String,
    /// The peer's name, once known.
    pub peer: Option<String>,
    /// `exits` or `branches`, once that is settled: in the handshake, for a pair.
    pub clock: Option<String>,
    /// Why this clock.
    pub clock_why: Option<String>,
    /// Whether a connection is in use.
    pub linked: bool,
    /// Nanoseconds since the peer was last heard, while a connection is in use.
    pub silence_ns: Option<u64>,
    /// Log pointers.
    pub pointers: PointerStatus,
    /// Primary: age of the oldest record that the backup has not replayed.
    pub lag_ns: u64,
    /// Primary: bytes sent and not acknowledged.
    pub unacknowledged_bytes: u64,
    /// Primary: bytes sent and not replayed.
    pub unreplayed_bytes: u64,
    /// The output gate.
    pub gate: GateStatus,
    /// Bytes of the guest's state sent to a new backup, or received by one, and taken in, during a transfer.
    pub transfer: Option<(u64, u64)>,
    /// Primary: the last transfer that began. Filled in by whoever watches the node.
    pub last_transfer: Option<TransferStatus>,
    /// The claim that waits for the arbiter.
    pub claim: Option<ClaimStatus>,
    /// Why it halted.
    pub halted: Option<String>,
    /// Counts.
    pub counters: Counters,
}

impl Node {
    /// The present state.
    #[must_use]
    pub fn status(&self, now: HostTime) -> NodeStatus {
        let (mut lag_ns, mut unacknowledged_bytes, mut unreplayed_bytes) = (0, 0, 0);
        let mut transfer = None;
        let mut pointers = PointerStatus {
            released: self.gate.released_below().0,
            ..PointerStatus::default()
        };
        match &self.session {
            Session::Primary(session) => {
                let p = session.pointers();
                pointers.recorded = p.recorded().0;
                pointers.sent = p.sent().0;
                pointers.acknowledged = p.acknowledged().0;
                pointers.replayed = p.replayed().0;
                transfer = session
                    .is_transferring()
                    .then(|| session.transferred_bytes());
                if self.detector.is_some() {
                    lag_ns = session.flow().lag_ns(now);
                    unacknowledged_bytes = session.flow().unacknowledged_bytes();
                    unreplayed_bytes = session.flow().unreplayed_bytes();
                }
            }
            Session::Backup(session) => {
                let p = session.pointers();
                pointers.received = p.received().0;
                pointers.replayed = p.replayed().0;
                transfer = session.is_loading().then(|| session.transferred_bytes());
            }
            Session::None => {}
        }
        NodeStatus {
            title: self.role.title().to_owned(),
            role: self.role,
            generation: self.generation,
            holder: self.config.holder.clone(),
            peer: self.peer.clone(),
            clock: self.clock().map(|kind| kind.name().to_owned()),
            clock_why: self.clock.as_ref().map(|agreed| agreed.why.clone()),
            linked: self.detector.is_some(),
            silence_ns: self.detector.as_ref().map(|d| d.silence_ns(now)),
            pointers,
            lag_ns,
            unacknowledged_bytes,
            unreplayed_bytes,
            gate: self.gate.status(),
            transfer,
            last_transfer: None,
            claim: self.claim.as_ref().map(Claim::status),
            halted: self.halted.as_ref().map(ToString::to_string),
            counters: self.counters,
        }
    }
}
