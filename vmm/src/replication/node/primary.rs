//! The primary's half of [`Node`]: welcome a backup, feed it, release what it holds, go on alone.

#![forbid(unsafe_code)]

use super::{HaltReason, Handover, LinkEnd, Node, NodeCommand, Note, Session};
use crate::replication::engine::Offer;
use crate::replication::role::Role;
use logging_channel::clock_agreement::{ClockAgreement, ClockOffer};
use logging_channel::failure_detector::FailureDetector;
use logging_channel::host_time::HostTime;
use logging_channel::message::{Begins, Goodbye, Message};
use logging_channel::record::{LogIndex, Record};
use logging_channel::session::primary::{
    PrimaryCommand, PrimaryConfig, PrimaryEvent, PrimarySession,
};

/// Bytes released after which the backup is told before the next heartbeat: bounds what it keeps.
const UNTOLD_BYTES_MAX: usize = 256 << 10;

impl Node {
    pub(super) fn open_primary_session(&mut self, now: HostTime, begins: Begins) {
        let config = PrimaryConfig {
            holder: self.config.holder.clone(),
            identity: self.config.identity.clone(),
            // A guest that runs keeps its clock, whoever joins.
            clocks: match self.clock() {
                Some(kind) => ClockOffer::Only(kind),
                None => self.config.clocks.clone(),
            },
            generation: self.generation,
            begins,
            heartbeat_interval_ns: self.config.detector.heartbeat_interval_ns,
            flow: self.config.flow,
        };
        self.session = Session::Primary(Box::new(PrimarySession::new(config, now)));
        self.detector = Some(FailureDetector::starting(self.config.detector, now));
    }

    pub(super) fn primary_message(&mut self, now: HostTime, message: Message) {
        self.primary_session(now, PrimaryEvent::Received(message));
    }

    pub(super) fn tick_primary(&mut self, now: HostTime) {
        self.primary_session(now, PrimaryEvent::Tick);
    }

    /// The engine made records.
    pub(super) fn recorded(&mut self, now: HostTime, records: Vec<Record>) {
        if records.is_empty() {
            return;
        }
        self.counters.records += records.len() as u64;
        if self.role == Role::Protected {
            self.primary_session(now, PrimaryEvent::Recorded(records));
        }
    }

    pub(super) fn check_protected(&mut self, now: HostTime) {
        if self.withhold_until.is_some_and(|until| now >= until) {
            self.withhold_until = None;
            self.release_acknowledged(now);
        }
        let Session::Primary(session) = &mut self.session else {
            return;
        };
        if let Some(pause_ns) = session.pause_change(now) {
            self.out
                .push(NodeCommand::Engine(Offer::Throttle { pause_ns }));
        }
        let pointers = session.pointers();
        if !self.gate.is_empty() || pointers.acknowledged() != pointers.recorded() {
            return;
        }
        // Power-off is output too: it shows only when the backup knows of it.
        if let Some(reason) = self.ended {
            self.say_goodbye(now, Goodbye::GuestEnded);
            self.finish(reason);
        } else if self.handover == Handover::Rested {
            self.leave(now, Goodbye::HandedOver, HaltReason::HandedOver);
        }
    }

    /// The backup is lost: nothing leaves until the arbiter has let us go on alone.
    pub(super) fn contest(&mut self) {
        self.gate.freeze();
        self.role.become_(Role::Contested);
        self.withhold_until = None;
        self.push(NodeCommand::Engine(Offer::Throttle { pause_ns: 0 }));
        self.keep_the_guest();
        self.send_claim();
    }

    pub(super) fn say_goodbye(&mut self, now: HostTime, goodbye: Goodbye) {
        // The role changes right after; the session's own Close must not count as a loss.
        let commands = match &mut self.session {
            Session::Primary(session) => {
                send_only(session.handle(now, PrimaryEvent::SayGoodbye(goodbye)))
            }
            Session::Backup(_) => vec![NodeCommand::Send(Message::Goodbye(goodbye))],
            Session::None => Vec::new(),
        };
        self.out.extend(commands);
        self.detector = None;
        let reason = LinkEnd::Session(logging_channel::session::CloseReason::SaidGoodbye);
        self.push(NodeCommand::CloseLink { reason });
    }

    pub(super) fn primary_session(&mut self, now: HostTime, event: PrimaryEvent) {
        let Session::Primary(session) = &mut self.session else {
            return;
        };
        for command in session.handle(now, event) {
            match command {
                PrimaryCommand::Send(message) => self.push(NodeCommand::Send(message)),
                PrimaryCommand::Welcomed { holder, clock } => self.welcomed(holder, clock),
                PrimaryCommand::Acknowledged(ack) => {
                    if ack.replayed > LogIndex(0)
                        && let Some(detector) = &mut self.detector
                    {
                        detector.settle(now);
                    }
                    self.release_acknowledged(now);
                }
                PrimaryCommand::PeerSaid(goodbye) => {
                    self.push(NodeCommand::Note(Note::PeerSaid(goodbye)));
                }
                PrimaryCommand::Close(reason) => self.close_link(LinkEnd::Session(reason)),
            }
        }
    }

    fn welcomed(&mut self, holder: String, clock: ClockAgreement) {
        self.peer = Some(holder.clone());
        if self.role == Role::Solo {
            self.begin_transfer(holder);
            return;
        }
        self.role.become_(Role::Protected);
        self.push(NodeCommand::Note(Note::BackupWelcomed {
            holder,
            clock: clock.clone(),
        }));
        self.start_guest(clock);
    }

    /// Releases what the backup holds, and lets it know soon enough.
    fn release_acknowledged(&mut self, now: HostTime) {
        let Session::Primary(session) = &mut self.session else {
            return;
        };
        if self.withhold_until.is_some_and(|until| now < until) {
            return;
        }
        let outputs = self.gate.acknowledged(session.pointers().acknowledged());
        if outputs.is_empty() {
            return;
        }
        self.untold_bytes += outputs
            .iter()
            .map(|output| output.bytes.len())
            .sum::<usize>();
        let at_once = self.untold_bytes >= UNTOLD_BYTES_MAX;
        if at_once {
            self.untold_bytes = 0;
        }
        let below: LogIndex = self.gate.released_below();
        let told = session.handle(now, PrimaryEvent::Released { below, at_once });
        self.release(outputs);
        self.out.extend(send_only(told));
    }
}

fn send_only(commands: Vec<PrimaryCommand>) -> Vec<NodeCommand> {
    commands
        .into_iter()
        .filter_map(|command| match command {
            PrimaryCommand::Send(message) => Some(NodeCommand::Send(message)),
            _ => None,
        })
        .collect()
}
