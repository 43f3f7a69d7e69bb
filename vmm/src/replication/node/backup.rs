//! The backup's half of [`Node`]: follow the log, drain it when the primary is lost, go live.

#![forbid(unsafe_code)]

use super::{HaltReason, LinkEnd, Node, NodeCommand, Note, Session};
use crate::replication::engine::Offer;
use crate::replication::executor::Produced;
use crate::replication::role::Role;
use logging_channel::failure_detector::FailureDetector;
use logging_channel::host_time::HostTime;
use logging_channel::message::{Begins, Goodbye, Message};
use logging_channel::record::{ClockKind, LogIndex};
use logging_channel::session::backup::{BackupCommand, BackupConfig, BackupEvent, BackupSession};

impl Node {
    pub(super) fn open_backup_session(&mut self, now: HostTime) {
        let config = BackupConfig {
            holder: self.config.holder.clone(),
            identity: self.config.identity.clone(),
            clocks: self.config.clocks.clone(),
            heartbeat_interval_ns: self.config.detector.heartbeat_interval_ns,
            newest_generation: self.config.newest_generation.max(self.generation),
        };
        self.session = Session::Backup(Box::new(BackupSession::new(config, now)));
        self.detector = Some(FailureDetector::starting(self.config.detector, now));
        self.backup_session(now, BackupEvent::Connected);
    }

    pub(super) fn backup_message(&mut self, now: HostTime, message: Message) {
        if self.role == Role::Finishing {
            // Only suspected, nothing claimed yet: it lives after all. Later records make the
            // engine go on; until then a Drained says nothing.
            self.role.become_(Role::Following);
            self.drained = false;
            self.push(NodeCommand::Note(Note::PeerRecovered));
        }
        self.backup_session(now, BackupEvent::Received(message));
    }

    pub(super) fn tick_backup(&mut self, now: HostTime) {
        self.backup_session(now, BackupEvent::Tick);
    }

    pub(super) fn replayed(
        &mut self,
        now: HostTime,
        next: LogIndex,
        exits: u64,
        outputs: Vec<(LogIndex, Produced)>,
    ) {
        if let Some(detector) = &mut self.detector {
            detector.settle(now);
        }
        self.backup_session(now, BackupEvent::Replayed { next, exits });
        for (index, output) in outputs {
            self.produced(index, output);
        }
    }

    /// The guest being built took in some of its state.
    pub(super) fn loaded(&mut self, now: HostTime, unloads: u64, bytes: u64) {
        if unloads == self.unloads {
            self.backup_session(now, BackupEvent::Loaded { bytes });
        }
    }

    /// The connection was lost before the state was complete: it means nothing.
    pub(super) fn unload(&mut self) {
        let loading = matches!(&self.session, Session::Backup(session) if session.is_loading());
        if loading {
            self.unloads += 1;
            self.push(NodeCommand::Engine(Offer::Unload));
        }
    }

    /// The engine replayed all it has. A report from before the newest records is out of date: the
    /// engine will report again, because the order to finish came after them.
    pub(super) fn drained(&mut self) {
        let Session::Backup(session) = &self.session else {
            return;
        };
        let pointers = session.pointers();
        if self.role != Role::Finishing || pointers.replayed() != pointers.received() {
            return;
        }
        self.drained = true;
        self.push(NodeCommand::Note(Note::Drained {
            next: pointers.received(),
        }));
    }

    /// The primary is silent or gone: no more records will be taken, unless it is heard again.
    pub(super) fn finish_log(&mut self) {
        self.role.become_(Role::Finishing);
        self.drained = false;
        self.push(NodeCommand::Engine(Offer::FinishLog));
    }

    /// The log is drained and the primary still lost: ask for the right to go live.
    pub(super) fn check_finishing(&mut self, now: HostTime) {
        let lost = self
            .detector
            .as_ref()
            .is_none_or(|detector| detector.suspects(now));
        let Session::Backup(session) = &mut self.session else {
            return;
        };
        let nothing_received = session.pointers().received() == LogIndex(0);
        if !lost || !(self.drained || self.ended.is_some() || nothing_received) {
            return;
        }
        if nothing_received {
            self.halt(HaltReason::NothingReceived);
            return;
        }
        if self.orderly {
            self.finish_orderly();
            return;
        }
        session.abandon();
        self.role.become_(Role::GoingLive);
        if self.detector.take().is_some() {
            self.push(NodeCommand::CloseLink {
                reason: LinkEnd::Silent,
            });
        }
        self.send_claim();
    }

    /// The guest ended at the primary, and here too once its End record was replayed.
    fn finish_orderly(&mut self) {
        self.gate.seal();
        match self.ended {
            Some(reason) => self.finish(reason),
            None => self.halt(HaltReason::Diverged("the log has no End record".to_owned())),
        }
    }

    /// The arbiter chose us: record from here on, be seen, let out what may not have left.
    pub(super) fn go_live(&mut self) {
        self.role.become_(Role::Solo);
        if self.ended.is_none() {
            let generation = self.generation;
            self.push(NodeCommand::Engine(Offer::GoLive { generation }));
        }
        self.push(NodeCommand::Announce);
        let waiting = self.gate.open();
        self.push(NodeCommand::Note(Note::Alone {
            released: waiting.len(),
        }));
        self.release(waiting);
    }

    /// This side has all that it needs to be the backup.
    fn follow(&mut self) {
        self.role.become_(Role::Following);
        if let (Some(holder), Some(clock)) = (self.peer.clone(), self.clock.clone()) {
            let generation = self.generation;
            self.push(NodeCommand::Note(Note::Following {
                holder,
                generation,
                clock,
            }));
        }
    }

    fn backup_session(&mut self, now: HostTime, event: BackupEvent) {
        let Session::Backup(session) = &mut self.session else {
            return;
        };
        for command in session.handle(now, event) {
            match command {
                BackupCommand::Send(message) => self.push(NodeCommand::Send(message)),
                BackupCommand::Accepted(welcome, clock) => {
                    self.generation = welcome.generation;
                    self.peer = Some(welcome.holder);
                    self.clock = Some(clock);
                    if welcome.begins == Begins::WithStart {
                        self.follow();
                    }
                }
                BackupCommand::Load(bytes) => self.push(NodeCommand::Engine(Offer::Load(bytes))),
                BackupCommand::Complete(next) => {
                    self.follow();
                    self.gate.begin_at(next);
                    // Agreed on with the Welcome.
                    let clock = self.clock().unwrap_or(ClockKind::Exits);
                    self.push(NodeCommand::Engine(Offer::Begin { next, clock }));
                }
                BackupCommand::RefusedByPeer(refused) => {
                    let (item, ours, theirs) = (refused.item, refused.ours, refused.theirs);
                    self.halt(HaltReason::PeerRefused { item, ours, theirs });
                    return;
                }
                BackupCommand::Deliver(records) => {
                    self.push(NodeCommand::Engine(Offer::Records(records)));
                }
                BackupCommand::PeerReleased(below) => self.gate.released_by_peer(below),
                BackupCommand::PeerSaid(goodbye) => {
                    self.orderly = goodbye == Goodbye::GuestEnded;
                    self.push(NodeCommand::Note(Note::PeerSaid(goodbye)));
                }
                BackupCommand::Close(reason) => self.close_link(LinkEnd::Session(reason)),
            }
        }
    }
}
