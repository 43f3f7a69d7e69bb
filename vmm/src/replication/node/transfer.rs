//! The side that runs alone gets a backup again, and hands the guest over.
//!
//! ```text
//!   Solo ──Hello──► Solo, transferring ──TransferReady──► Solo, Snapshot offered
//!    ▲                   │ link lost                          │ Emitted::Snapshot
//!    └───────────────────┴──── link lost ─────────────────────┤
//!                                                             ▼
//!                                                         Protected
//! ```
//!
//! The decisive moment is the engine's report of the state. Before it this side is the only one, and
//! a lost connection costs nothing. With it the gate is guarded *before* the last part of the state
//! leaves, so that the new backup can never be able to go live while output passes that it does not
//! know of. From then on the two are a pair like any other: whoever loses the other asks the arbiter
//! for the next generation. A pair needs no generation of its own: it ends only when somebody is
//! granted the next one, so no generation ever has two of them.
//!
//! Left out: how the state is read while the guest runs (`precopy`, `runtime`).

#![forbid(unsafe_code)]

use super::{Handover, LinkEnd, Node, NodeCommand, Note, Session};
use crate::replication::engine::Offer;
use crate::replication::role::Role;
use logging_channel::host_time::HostTime;
use logging_channel::message::Goodbye;
use logging_channel::record::LogIndex;
use logging_channel::session::primary::{PrimaryEvent, PrimarySession};

impl Node {
    /// A backup was welcomed by the side that runs alone.
    pub(super) fn begin_transfer(&mut self, holder: String) {
        self.attempt += 1;
        self.push(NodeCommand::Note(Note::TransferBegins { holder }));
        self.push(NodeCommand::BeginTransfer {
            attempt: self.attempt,
        });
    }

    /// The session of transfer `attempt`, if that is the one under way.
    fn transfer(&self, attempt: u64) -> Option<&PrimarySession> {
        match &self.session {
            Session::Primary(session)
                if attempt == self.attempt
                    && self.detector.is_some()
                    && session.is_transferring() =>
            {
                Some(session)
            }
            _ => None,
        }
    }

    pub(super) fn transfer_part(&mut self, now: HostTime, attempt: u64, bytes: Vec<u8>) {
        if self.transfer(attempt).is_some() {
            self.primary_session(now, PrimaryEvent::Part(bytes));
        }
    }

    pub(super) fn transfer_ready(&mut self, attempt: u64) {
        if self.transfer(attempt).is_some() {
            self.ready = Some(attempt);
        }
    }

    /// The rest is offered when the new backup has taken in all that was sent: from then on output
    /// waits for it, and must not wait behind megabytes of pages.
    pub(super) fn check_transfer(&mut self) {
        let Some(attempt) = self.ready else { return };
        match self
            .transfer(attempt)
            .map(PrimarySession::transferred_bytes)
        {
            Some((sent, taken)) if sent > taken => {}
            Some(_) => {
                self.ready = None;
                self.push(NodeCommand::Engine(Offer::Snapshot { attempt }));
            }
            None => self.ready = None,
        }
    }

    pub(super) fn transfer_failed(&mut self, attempt: u64, cause: String) {
        if self.transfer(attempt).is_some() {
            self.push(NodeCommand::Note(Note::TransferFailed(cause)));
            self.close_link(LinkEnd::NotWanted(self.role.title()));
        }
    }

    /// The engine said the state: everything from record `next` on waits for the new backup.
    pub(super) fn complete_transfer(
        &mut self,
        now: HostTime,
        attempt: u64,
        next: LogIndex,
        parts: Vec<Vec<u8>>,
    ) {
        if self.role != Role::Solo || self.transfer(attempt).is_none() {
            // Its connection was lost meanwhile; the guest goes on as if nothing had been.
            return;
        }
        self.gate.guard();
        self.untold_bytes = 0;
        self.role.become_(Role::Protected);
        for part in parts {
            self.primary_session(now, PrimaryEvent::Part(part));
        }
        let bytes = self.transferred_bytes();
        self.primary_session(now, PrimaryEvent::Complete(next));
        if let Some(detector) = &mut self.detector {
            detector.settle(now);
        }
        self.counters.transfers += 1;
        self.push(NodeCommand::EndTransfer);
        self.push(NodeCommand::Note(Note::TransferDone { next, bytes }));
    }

    fn transferred_bytes(&self) -> u64 {
        match &self.session {
            Session::Primary(session) => session.transferred_bytes().0,
            _ => 0,
        }
    }

    /// The connection to a backup that was to be: nothing was promised to anybody.
    pub(super) fn transfer_lost(&mut self) {
        self.peer = None;
        self.session = Session::None;
        self.push(NodeCommand::EndTransfer);
    }

    /// The guest ended while its state was on the way.
    pub(super) fn end_transfer(&mut self, now: HostTime) {
        if self.detector.is_some() {
            self.say_goodbye(now, Goodbye::GuestEnded);
            self.push(NodeCommand::EndTransfer);
        }
    }

    /// An operator wants the backup to run the guest.
    pub(super) fn ask_for_handover(&mut self) {
        if self.role == Role::Protected && self.handover == Handover::No && self.ended.is_none() {
            self.handover = Handover::Asked;
            self.push(NodeCommand::Note(Note::HandingOver));
            self.push(NodeCommand::Engine(Offer::Rest));
        }
    }

    pub(super) fn rested(&mut self) {
        if self.handover == Handover::Asked {
            self.handover = Handover::Rested;
        }
    }

    /// The backup was lost before it had the guest: the guest goes on here, if it may.
    pub(super) fn keep_the_guest(&mut self) {
        if self.handover != Handover::No {
            self.handover = Handover::No;
            self.push(NodeCommand::Engine(Offer::GoOn));
        }
    }
}
