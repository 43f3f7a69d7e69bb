//! One side of a replicated virtual machine: session, gate, role, suspicion and claims together.
//!
//! `Node` is sans-I/O: [`Node::handle`] takes the time and an event and returns commands, to be
//! carried out in order. It decides
//!
//! * who is who ([`Role`], with the drawing): `primary` and `backup` hold the two halves;
//! * what leaves: only through [`OutputGate`], and only in the roles that may release;
//! * when to ask the arbiter: to start, to go live, to go on alone, never while the pair is healthy.
//!
//! Rules that hold whatever happens: once a claim is sent, nothing the peer says changes anything;
//! a side that is refused, has diverged or is in doubt halts for good and its gate is sealed; a
//! process that itself did not run for a while first listens (`FailureDetector`), and a primary
//! that slept long enough to be suspected lets nothing out until it has.
//!
//! Left out: bytes, sockets, threads, clocks (`runtime`), the guest (`engine`).

#![forbid(unsafe_code)]

mod backup;
mod interface;
mod primary;
mod status;
#[cfg(test)]
mod tests;
mod transfer;

pub use interface::{
    ArbiterReply, HaltReason, LinkEnd, NodeCommand, NodeConfig, NodeEvent, Note, Part,
};
pub use status::NodeStatus;

use super::engine::{Emitted, Offer};
use super::executor::Produced;
use super::go_live::Claim;
use super::output_gate::{OutputGate, Stance};
use super::role::Role;
use logging_channel::clock_agreement::ClockAgreement;
use logging_channel::failure_detector::FailureDetector;
use logging_channel::host_time::HostTime;
use logging_channel::message::{Begins, Goodbye, Message};
use logging_channel::record::{ClockKind, EndReason, LogIndex, Record};
use logging_channel::session::backup::BackupSession;
use logging_channel::session::primary::PrimarySession;

/// Our end of the logging channel; kept after the connection broke, for its pointers.
#[derive(Clone, Hash)]
enum Session {
    None,
    Primary(Box<PrimarySession>),
    Backup(Box<BackupSession>),
}

/// How far a planned handover is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Handover {
    No,
    /// The guest was told to rest.
    Asked,
    /// It rests: when the backup has everything, it may have the guest.
    Rested,
}

/// One side of a replicated virtual machine. Equal hashes mean equal behaviour from here on.
#[derive(Clone, Hash)]
pub struct Node {
    config: NodeConfig,
    role: Role,
    generation: u64,
    session: Session,
    /// Present while a connection is in use.
    detector: Option<FailureDetector>,
    gate: OutputGate,
    claim: Option<Claim>,
    peer: Option<String>,
    /// What the guest runs on, once that is settled; it never changes.
    clock: Option<ClockAgreement>,
    /// The log is drained up to what was received; only meaningful while Finishing.
    drained: bool,
    /// The primary said that the guest ended: its silence is no failure.
    orderly: bool,
    ended: Option<EndReason>,
    /// A primary that slept lets nothing out before this time.
    withhold_until: Option<HostTime>,
    /// Transfers begun so far: the number of the last one.
    attempt: u64,
    /// The transfer of which only the rest is to be sent.
    ready: Option<u64>,
    /// States begun and not finished on this side.
    unloads: u64,
    /// The guest is to rest, or rests, so that it can be handed over.
    handover: Handover,
    /// Bytes released since the backup was last told at once.
    untold_bytes: usize,
    counters: status::Counters,
    halted: Option<HaltReason>,
    wake_at: Option<HostTime>,
    out: Vec<NodeCommand>,
}

impl Node {
    /// A node that waits for [`NodeEvent::Start`].
    #[must_use]
    pub fn new(config: NodeConfig) -> Self {
        let stance = match config.part {
            Part::Alone => Stance::Open,
            Part::Primary { .. } => Stance::Guarded,
            Part::Backup => Stance::Watching,
        };
        Self {
            role: Role::Idle,
            generation: config.generation,
            session: Session::None,
            detector: None,
            gate: OutputGate::new(stance, config.gate_bytes_max),
            claim: None,
            peer: None,
            clock: None,
            drained: false,
            orderly: false,
            ended: None,
            withhold_until: None,
            attempt: 0,
            ready: None,
            unloads: 0,
            handover: Handover::No,
            untold_bytes: 0,
            counters: status::Counters::default(),
            halted: None,
            wake_at: None,
            out: Vec::new(),
            config,
        }
    }

    /// Advances the node. The commands are to be carried out in order.
    pub fn handle(&mut self, now: HostTime, event: NodeEvent) -> Vec<NodeCommand> {
        if !self.role.is_over() {
            self.observe(now);
            self.dispatch(now, event);
        }
        if !self.role.is_over() {
            self.check(now);
        }
        if !self.role.is_over() {
            self.schedule(now);
        }
        std::mem::take(&mut self.out)
    }

    /// Whether the engine's outbox may be taken. While false, leave it: the recorder fills its
    /// bounded queue and waits. May change with every call of [`Node::handle`].
    #[must_use]
    pub fn accepts_emitted(&self) -> bool {
        let room = match (&self.session, self.role) {
            (Session::Primary(session), Role::Protected) => session.has_room(),
            _ => true,
        };
        room && match self.role {
            Role::Protected | Role::Contested => !self.gate.is_full(),
            _ => true,
        }
    }

    /// Whether another [`NodeEvent::TransferPart`] may come: the window to the new backup has room.
    #[must_use]
    pub fn wants_part(&self) -> bool {
        matches!(&self.session, Session::Primary(session) if session.wants_part())
            && self.detector.is_some()
    }

    /// Whether what the guest did below record `next` may be seen outside: nobody who goes live can be
    /// without it.
    #[must_use]
    pub fn may_show(&self, next: LogIndex) -> bool {
        match (self.role, &self.session) {
            (Role::Solo, _) => true,
            (Role::Protected, Session::Primary(session)) => {
                session.pointers().acknowledged() >= next
            }
            _ => false,
        }
    }

    /// Whether this side records a guest that goes on, so that its state can be said.
    #[must_use]
    pub fn can_be_saved(&self) -> bool {
        matches!(self.role, Role::Solo | Role::Protected)
            && self.ended.is_none()
            && self.handover == Handover::No
            && self.clock.is_some()
    }

    /// What this side is.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// The generation held or followed; 0 before any.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// What the guest runs on; `None` before the pair has agreed.
    #[must_use]
    pub fn clock(&self) -> Option<ClockKind> {
        self.clock.as_ref().map(|agreed| agreed.kind)
    }

    fn dispatch(&mut self, now: HostTime, event: NodeEvent) {
        match event {
            NodeEvent::Start => self.start(),
            NodeEvent::PeerConnected => self.peer_connected(now),
            NodeEvent::PeerMessage(message) => self.peer_message(now, message),
            NodeEvent::PeerDisconnected => self.link_lost(LinkEnd::Lost),
            NodeEvent::Emitted(items) => self.emitted(now, items),
            NodeEvent::Arbiter(reply) => self.arbiter(now, reply),
            NodeEvent::Tick => {
                // One that came early leaves nothing behind that would wake us again.
                self.wake_at = None;
                self.tick_session(now);
            }
            NodeEvent::EngineFailed(cause) => {
                self.leave(now, Goodbye::Stopped, HaltReason::HostFailed(cause));
            }
            NodeEvent::OperatorStop => self.leave(now, Goodbye::Stopped, HaltReason::Stopped),
            NodeEvent::OperatorHandover => self.ask_for_handover(),
            NodeEvent::TransferPart { attempt, bytes } => self.transfer_part(now, attempt, bytes),
            NodeEvent::TransferReady { attempt } => self.transfer_ready(attempt),
            NodeEvent::TransferFailed { attempt, cause } => self.transfer_failed(attempt, cause),
        }
    }

    fn start(&mut self) {
        if self.role != Role::Idle {
            return;
        }
        match self.config.part {
            Part::Alone => {
                self.role.become_(Role::Solo);
                self.start_guest(self.config.clocks.alone());
            }
            Part::Primary {
                after_generation: after,
            } if after < self.config.newest_generation => {
                let newest = self.config.newest_generation;
                self.halt(HaltReason::OlderGeneration { after, newest });
            }
            Part::Primary { after_generation } => {
                self.generation = after_generation;
                self.role.become_(Role::Starting);
                self.send_claim();
            }
            Part::Backup => self.role.become_(Role::Joining),
        }
    }

    fn start_guest(&mut self, agreed: ClockAgreement) {
        let (generation, clock) = (self.generation, agreed.kind);
        self.clock = Some(agreed);
        self.push(NodeCommand::StartGuest { generation, clock });
    }

    /// Notices that this process did not run for a while.
    fn observe(&mut self, now: HostTime) {
        let Some(detector) = &mut self.detector else {
            return;
        };
        let Some(gap_ns) = detector.observe(now) else {
            return;
        };
        let suspected_after_ns =
            self.config.detector.timeout_ns - self.config.detector.heartbeat_interval_ns;
        if gap_ns >= suspected_after_ns && self.role == Role::Protected {
            self.withhold_until = detector.grace_ends(now);
        }
        self.counters.stalls += 1;
        self.push(NodeCommand::Note(Note::Stalled { gap_ns }));
    }

    fn peer_connected(&mut self, now: HostTime) {
        if self.detector.is_some() {
            self.link_lost(LinkEnd::Lost);
        }
        match self.role {
            Role::Awaiting => self.open_primary_session(now, Begins::WithStart),
            Role::Joining => self.open_backup_session(now),
            Role::Solo if self.ended.is_none() => {
                self.open_primary_session(now, Begins::WithTransfer)
            }
            role => {
                let reason = LinkEnd::NotWanted(role.title());
                self.push(NodeCommand::CloseLink { reason });
            }
        }
    }

    fn peer_message(&mut self, now: HostTime, message: Message) {
        let Some(detector) = &mut self.detector else {
            self.counters.ignored_messages += 1;
            return;
        };
        detector.heard(now);
        match self.session {
            Session::Primary(_) => self.primary_message(now, message),
            Session::Backup(_) => self.backup_message(now, message),
            Session::None => {}
        }
    }

    fn tick_session(&mut self, now: HostTime) {
        if self.detector.is_none() {
            return;
        }
        match self.session {
            Session::Primary(_) => self.tick_primary(now),
            Session::Backup(_) => self.tick_backup(now),
            Session::None => {}
        }
    }

    fn emitted(&mut self, now: HostTime, items: Vec<Emitted>) {
        let mut records: Vec<Record> = Vec::new();
        for item in items {
            match item {
                Emitted::Recorded { record, output } => {
                    if let Some(output) = output {
                        self.produced(record.index, output);
                    }
                    records.push(record);
                }
                Emitted::Replayed {
                    next,
                    exits,
                    outputs,
                } => {
                    self.replayed(now, next, exits, outputs);
                }
                Emitted::Snapshot {
                    attempt,
                    next,
                    parts,
                } => {
                    self.recorded(now, std::mem::take(&mut records));
                    self.complete_transfer(now, attempt, next, parts);
                }
                Emitted::Loaded { unloads, bytes } => self.loaded(now, unloads, bytes),
                Emitted::Rested => self.rested(),
                Emitted::Drained => self.drained(),
                Emitted::Live => self.push(NodeCommand::Note(Note::Recording)),
                Emitted::Diverged(divergence) => {
                    let reason = HaltReason::Diverged(divergence.to_string());
                    self.leave(now, Goodbye::Diverged, reason);
                    return;
                }
                Emitted::Ended(reason) => self.ended = Some(reason),
            }
        }
        self.recorded(now, records);
    }

    fn produced(&mut self, index: LogIndex, output: Produced) {
        if let Some(output) = self.gate.produced(index, output) {
            self.push(NodeCommand::Release(output));
        }
    }

    /// What time alone brings about, and what the event made possible.
    fn check(&mut self, now: HostTime) {
        self.check_suspicion(now);
        match self.role {
            Role::Protected => self.check_protected(now),
            Role::Finishing => self.check_finishing(now),
            Role::Solo => {
                self.check_transfer();
                if let Some(reason) = self.ended {
                    self.end_transfer(now);
                    self.finish(reason);
                }
            }
            _ => {}
        }
        if self
            .claim
            .as_mut()
            .is_some_and(|claim| claim.retry_due(now))
        {
            self.repeat_claim();
        }
    }

    fn check_suspicion(&mut self, now: HostTime) {
        let Some(detector) = &self.detector else {
            return;
        };
        if !detector.suspects(now) || self.role == Role::Finishing {
            return;
        }
        let silence_ns = detector.silence_ns(now);
        self.counters.suspicions += 1;
        self.push(NodeCommand::Note(Note::PeerSuspected { silence_ns }));
        match self.role {
            // The connection may yet carry a sign of life while the log is drained.
            Role::Following => self.finish_log(),
            _ => self.close_link(LinkEnd::Silent),
        }
    }

    /// The connection ended, by itself.
    fn link_lost(&mut self, why: LinkEnd) {
        if self.detector.is_some() {
            self.drop_link(why);
        }
    }

    /// The session closes the connection.
    fn close_link(&mut self, why: LinkEnd) {
        self.push(NodeCommand::CloseLink {
            reason: why.clone(),
        });
        self.drop_link(why);
    }

    fn drop_link(&mut self, why: LinkEnd) {
        self.detector = None;
        self.push(NodeCommand::Note(Note::LinkLost(why)));
        match self.role {
            Role::Protected => self.contest(),
            Role::Following => self.finish_log(),
            Role::Solo => self.transfer_lost(),
            Role::Joining => self.unload(),
            _ => {}
        }
    }

    fn send_claim(&mut self) {
        self.claim = Some(Claim::after(self.generation, self.config.retry));
        self.repeat_claim();
    }

    fn repeat_claim(&mut self) {
        let Some(claim) = &self.claim else { return };
        let (expected, new) = (claim.expected(), claim.new_generation());
        let attempt = claim.status().attempts;
        self.counters.claims += 1;
        self.push(NodeCommand::Note(Note::Claiming { new, attempt }));
        self.push(NodeCommand::Claim { expected, new });
    }

    fn arbiter(&mut self, now: HostTime, reply: ArbiterReply) {
        let Some(claim) = &mut self.claim else {
            self.push(NodeCommand::Note(Note::StrayAnswer));
            return;
        };
        let cause = match reply {
            ArbiterReply::Granted { generation } if generation == claim.new_generation() => {
                self.granted(generation);
                return;
            }
            ArbiterReply::Refused { generation, holder } => {
                self.halt(HaltReason::Refused { generation, holder });
                return;
            }
            ArbiterReply::Granted { generation } => {
                format!("granted generation {generation}, which was not asked for")
            }
            ArbiterReply::Unreachable => "unreachable".to_owned(),
            ArbiterReply::Failed(cause) => cause,
        };
        let pause_ns = claim.undecided(now);
        self.push(NodeCommand::Note(Note::ArbiterSilent { cause, pause_ns }));
    }

    fn granted(&mut self, generation: u64) {
        self.claim = None;
        self.generation = generation;
        self.push(NodeCommand::Note(Note::Granted { generation }));
        match self.role {
            Role::Starting => self.role.become_(Role::Awaiting),
            Role::Contested => self.go_on_alone(),
            Role::GoingLive => self.go_live(),
            _ => {}
        }
    }

    fn go_on_alone(&mut self) {
        self.role.become_(Role::Solo);
        let waiting = self.gate.open();
        self.push(NodeCommand::Note(Note::Alone {
            released: waiting.len(),
        }));
        self.release(waiting);
    }

    fn release(&mut self, outputs: Vec<Produced>) {
        assert!(
            outputs.is_empty() || self.role.may_release(),
            "no output while {:?}",
            self.role
        );
        self.out
            .extend(outputs.into_iter().map(NodeCommand::Release));
    }

    /// Says goodbye if anybody listens, and halts.
    fn leave(&mut self, now: HostTime, goodbye: Goodbye, reason: HaltReason) {
        if self.detector.is_some() {
            self.say_goodbye(now, goodbye);
        }
        self.halt(reason);
    }

    /// Nothing leaves any more, nothing runs any more.
    fn halt(&mut self, reason: HaltReason) {
        self.gate.seal();
        self.claim = None;
        self.role.become_(Role::Halted);
        self.push(NodeCommand::Engine(Offer::Halt));
        if self.detector.take().is_some() {
            let reason = LinkEnd::NotWanted(self.role.title());
            self.push(NodeCommand::CloseLink { reason });
        }
        self.halted = Some(reason.clone());
        self.push(NodeCommand::Halted { reason });
    }

    fn finish(&mut self, reason: EndReason) {
        self.role.become_(Role::Ended);
        self.push(NodeCommand::Ended(reason));
    }

    fn schedule(&mut self, now: HostTime) {
        let session_at = match (&self.session, &self.detector) {
            (Session::Primary(session), Some(_)) => session.wake_at(),
            (Session::Backup(session), Some(_)) => session.wake_at(),
            _ => None,
        };
        let suspicion_at = self
            .detector
            .as_ref()
            .filter(|detector| !detector.suspects(now))
            .map(FailureDetector::suspicion_at);
        let claim_at = self.claim.as_ref().and_then(Claim::retry_at);
        let due = [session_at, suspicion_at, claim_at, self.withhold_until];
        let wake_at = due.into_iter().flatten().min();
        if self.wake_at == wake_at {
            return;
        }
        self.wake_at = wake_at;
        self.out.extend(wake_at.map(NodeCommand::WakeAt));
    }

    fn push(&mut self, command: NodeCommand) {
        self.out.push(command);
    }
}
