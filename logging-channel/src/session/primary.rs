//! The primary's end of the logging channel.
//!
//! ```text
//!   AwaitingHello --Hello, equal--> Established --Goodbye / violation--> Closed
//!        |  '--Hello, equal, the guest runs--> Transferring --Complete--> Established
//!        '--Hello, different------------------------------------------>'
//! ```
//!
//! Invariants: records leave in index order, none twice; nothing is sent beyond the window of
//! [`Flow`], nor parts of a state beyond [`TRANSFER_WINDOW_BYTES`]; an acknowledgement beyond what was
//! sent closes the session.

#![forbid(unsafe_code)]

use super::{CloseReason, compare, message_name, settle_clock};
use crate::clock_agreement::{ClockAgreement, ClockOffer};
use crate::flow::{Flow, FlowConfig, weight_bytes};
use crate::host_time::HostTime;
use crate::message::{
    Ack, Begins, Complete, Goodbye, Heartbeat, Hello, Identity, Message, Taken, Welcome,
};
use crate::pointers::PrimaryPointers;
use crate::record::{LogIndex, Record};
use std::collections::VecDeque;

/// Most records in one Log frame.
pub const FRAME_RECORDS_MAX: usize = 512;
/// Weight at which a Log frame is full. One record may exceed it.
pub const FRAME_BYTES_MAX: u64 = 256 << 10;

/// Bytes of a state that may be on their way or waiting in the backup's queue.
pub const TRANSFER_WINDOW_BYTES: u64 = 4 << 20;

/// What the primary's session needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PrimaryConfig {
    /// Our name, as claimed at the arbiter.
    pub holder: String,
    /// What we run.
    pub identity: Identity,
    /// What we can run it on; only its own clock once the guest runs.
    pub clocks: ClockOffer,
    /// Generation under which we run.
    pub generation: u64,
    /// Whether the guest runs already, so that its state has to be transferred.
    pub begins: Begins,
    /// Time between heartbeats.
    pub heartbeat_interval_ns: u64,
    /// Bounds on the backup's distance.
    pub flow: FlowConfig,
}

/// What happens to the primary's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrimaryEvent {
    /// The peer said something.
    Received(Message),
    /// The recorder made records, in index order.
    Recorded(Vec<Record>),
    /// Every output below this index has left; goes out with the next heartbeat, or at once.
    Released {
        /// First index not released.
        below: LogIndex,
        /// Tell the peer now.
        at_once: bool,
    },
    /// A piece of the guest's state.
    Part(Vec<u8>),
    /// All of the state was given: the log goes on from this index.
    Complete(LogIndex),
    /// Time passed.
    Tick,
    /// End the session in an orderly way.
    SayGoodbye(Goodbye),
}

/// What the primary's session wants done, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrimaryCommand {
    /// Send this.
    Send(Message),
    /// A backup is welcome: records may be made, or the state be sent.
    Welcomed {
        /// Its name.
        holder: String,
        /// What the pair runs on.
        clock: ClockAgreement,
    },
    /// The backup's pointers moved.
    Acknowledged(Ack),
    /// The backup ends the session.
    PeerSaid(Goodbye),
    /// Close the connection; nothing more comes from this session.
    Close(CloseReason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    AwaitingHello,
    Transferring,
    Established,
    Closed,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::AwaitingHello => "awaiting Hello",
            Self::Transferring => "transferring the state",
            Self::Established => "established",
            Self::Closed => "closed",
        }
    }
}

/// The primary's end of one connection.
#[derive(Debug, Clone, Hash)]
pub struct PrimarySession {
    config: PrimaryConfig,
    state: State,
    pointers: PrimaryPointers,
    flow: Flow,
    unsent: VecDeque<Record>,
    unsent_bytes: u64,
    released: LogIndex,
    /// Bytes of parts handed to the transport, and of those that the backup took in.
    parts_sent: u64,
    parts_taken: u64,
    heartbeat_at: HostTime,
}

impl PrimarySession {
    /// A session on a connection made at `now`. The primary waits for the backup's Hello.
    #[must_use]
    pub fn new(config: PrimaryConfig, now: HostTime) -> Self {
        Self {
            state: State::AwaitingHello,
            pointers: PrimaryPointers::default(),
            flow: Flow::new(config.flow),
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            released: LogIndex(0),
            parts_sent: 0,
            parts_taken: 0,
            heartbeat_at: now.plus_ns(config.heartbeat_interval_ns),
            config,
        }
    }

    /// Advances the session.
    pub fn handle(&mut self, now: HostTime, event: PrimaryEvent) -> Vec<PrimaryCommand> {
        let mut out = Vec::new();
        if self.state == State::Closed {
            return out;
        }
        match event {
            PrimaryEvent::Received(message) => {
                if let Err(reason) = self.received(message, &mut out) {
                    self.close(reason, &mut out);
                }
            }
            PrimaryEvent::Recorded(records) => self.recorded(now, records, &mut out),
            PrimaryEvent::Released { below, at_once } => {
                self.released = self.released.max(below);
                if at_once {
                    self.heartbeat(now, &mut out);
                }
            }
            PrimaryEvent::Part(bytes) => self.part(bytes, &mut out),
            PrimaryEvent::Complete(first) => self.complete(first, &mut out),
            PrimaryEvent::Tick if now >= self.heartbeat_at => self.heartbeat(now, &mut out),
            PrimaryEvent::Tick => {}
            PrimaryEvent::SayGoodbye(goodbye) => {
                out.push(PrimaryCommand::Send(Message::Goodbye(goodbye)));
                self.close(CloseReason::SaidGoodbye, &mut out);
            }
        }
        out
    }

    /// When [`PrimaryEvent::Tick`] is next wanted.
    #[must_use]
    pub const fn wake_at(&self) -> HostTime {
        self.heartbeat_at
    }

    /// Whether a state is being transferred.
    #[must_use]
    pub fn is_transferring(&self) -> bool {
        self.state == State::Transferring
    }

    /// Whether another part of the state may be given.
    #[must_use]
    pub fn wants_part(&self) -> bool {
        self.is_transferring() && self.parts_sent - self.parts_taken < TRANSFER_WINDOW_BYTES
    }

    /// Bytes of the state sent so far, and of those taken in by the backup.
    #[must_use]
    pub const fn transferred_bytes(&self) -> (u64, u64) {
        (self.parts_sent, self.parts_taken)
    }

    /// Whether more records may be recorded without filling memory.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.unsent_bytes < self.config.flow.window_bytes
    }

    /// Recorded, sent, acknowledged, replayed.
    #[must_use]
    pub const fn pointers(&self) -> PrimaryPointers {
        self.pointers
    }

    /// How far the backup is behind.
    #[must_use]
    pub const fn flow(&self) -> &Flow {
        &self.flow
    }

    /// The new pause of the processor, if it changed.
    pub fn pause_change(&mut self, now: HostTime) -> Option<u64> {
        self.flow.pause_change(now)
    }

    /// Whether a backup was welcomed and the session is open.
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.state == State::Established
    }

    fn received(
        &mut self,
        message: Message,
        out: &mut Vec<PrimaryCommand>,
    ) -> Result<(), CloseReason> {
        match (self.state, message) {
            (State::AwaitingHello, Message::Hello(hello)) => self.welcome(hello, out),
            (State::Established, Message::Ack(ack)) => {
                self.pointers.acknowledge(&ack)?;
                self.flow.acknowledged(ack.received, ack.replayed);
                out.push(PrimaryCommand::Acknowledged(ack));
                self.flush(out);
                Ok(())
            }
            // After the last part, too.
            (State::Transferring | State::Established, Message::Taken(taken)) => self.taken(taken),
            (_, Message::Heartbeat(_)) => Ok(()),
            (_, Message::Goodbye(goodbye)) => {
                out.push(PrimaryCommand::PeerSaid(goodbye));
                Err(CloseReason::PeerSaidGoodbye)
            }
            (state, message) => Err(CloseReason::Unexpected {
                message: message_name(&message),
                state: state.name(),
            }),
        }
    }

    fn welcome(&mut self, hello: Hello, out: &mut Vec<PrimaryCommand>) -> Result<(), CloseReason> {
        let settled = match compare(&self.config.identity, &hello) {
            Some(refused) => Err(refused),
            None => settle_clock(&self.config.clocks, &hello.clocks),
        };
        let clock = match settled {
            Ok(clock) => clock,
            Err(refused) => {
                let reason = CloseReason::from(&refused);
                out.push(PrimaryCommand::Send(Message::Refused(refused)));
                return Err(reason);
            }
        };
        self.state = match self.config.begins {
            Begins::WithStart => State::Established,
            Begins::WithTransfer => State::Transferring,
        };
        out.push(PrimaryCommand::Send(Message::Welcome(Welcome {
            holder: self.config.holder.clone(),
            generation: self.config.generation,
            begins: self.config.begins,
            clocks: self.config.clocks.clone(),
        })));
        let holder = hello.holder;
        out.push(PrimaryCommand::Welcomed { holder, clock });
        Ok(())
    }

    fn part(&mut self, bytes: Vec<u8>, out: &mut Vec<PrimaryCommand>) {
        if self.state == State::Transferring {
            self.parts_sent += bytes.len() as u64;
            out.push(PrimaryCommand::Send(Message::Part(bytes)));
        }
    }

    /// Records are taken from here on. Whatever was released before is part of the state.
    fn complete(&mut self, first_index: LogIndex, out: &mut Vec<PrimaryCommand>) {
        if self.state != State::Transferring {
            return;
        }
        self.state = State::Established;
        self.pointers = PrimaryPointers::starting_at(first_index);
        self.released = first_index;
        let bytes = self.parts_sent;
        out.push(PrimaryCommand::Send(Message::Complete(Complete {
            first_index,
            bytes,
        })));
    }

    fn taken(&mut self, taken: Taken) -> Result<(), CloseReason> {
        if !(self.parts_taken..=self.parts_sent).contains(&taken.bytes) {
            return Err(CloseReason::PartsDiffer(self.parts_sent, taken.bytes));
        }
        self.parts_taken = taken.bytes;
        Ok(())
    }

    fn recorded(&mut self, now: HostTime, records: Vec<Record>, out: &mut Vec<PrimaryCommand>) {
        for record in records {
            self.pointers.record(record.index);
            self.flow.recorded(record.index, now);
            self.unsent_bytes += weight_bytes(&record);
            self.unsent.push_back(record);
        }
        self.flush(out);
    }

    /// Sends what the window allows.
    fn flush(&mut self, out: &mut Vec<PrimaryCommand>) {
        if self.state != State::Established {
            return;
        }
        while !self.unsent.is_empty() && self.flow.may_send() {
            let (mut frame, mut bytes) = (Vec::new(), 0);
            while frame.len() < FRAME_RECORDS_MAX && bytes < FRAME_BYTES_MAX {
                let Some(record) = self.unsent.pop_front() else {
                    break;
                };
                bytes += weight_bytes(&record);
                frame.push(record);
            }
            let next = LogIndex(self.pointers.sent().0 + frame.len() as u64);
            self.unsent_bytes -= bytes;
            self.pointers.send(next);
            self.flow.sent(next, bytes);
            out.push(PrimaryCommand::Send(Message::Log(frame)));
        }
    }

    fn heartbeat(&mut self, now: HostTime, out: &mut Vec<PrimaryCommand>) {
        self.heartbeat_at = now.plus_ns(self.config.heartbeat_interval_ns);
        out.push(PrimaryCommand::Send(Message::Heartbeat(Heartbeat {
            released: self.released,
        })));
    }

    fn close(&mut self, reason: CloseReason, out: &mut Vec<PrimaryCommand>) {
        self.state = State::Closed;
        self.unsent.clear();
        self.unsent_bytes = 0;
        out.push(PrimaryCommand::Close(reason));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, hello, identity, timer};
    use super::*;
    use crate::message::Refused;
    use crate::pointers::PointerError;
    use crate::record::ClockKind;

    fn config() -> PrimaryConfig {
        PrimaryConfig {
            holder: "a".into(),
            identity: identity(),
            clocks: ClockOffer::Either,
            generation: 1,
            begins: Begins::WithStart,
            heartbeat_interval_ns: 20_000_000,
            flow: FlowConfig::default(),
        }
    }

    fn established(config: PrimaryConfig) -> PrimarySession {
        let mut session = PrimarySession::new(config, at(0));
        session.handle(at(0), PrimaryEvent::Received(Message::Hello(hello())));
        assert!(session.is_established());
        session
    }

    fn ack(received: u64, replayed: u64) -> Ack {
        Ack {
            received: LogIndex(received),
            replayed: LogIndex(replayed),
            replayed_exits: 0,
        }
    }

    fn receive(session: &mut PrimarySession, message: Message) -> Vec<PrimaryCommand> {
        session.handle(at(1), PrimaryEvent::Received(message))
    }

    #[test]
    fn an_equal_backup_is_welcomed() {
        let mut session = PrimarySession::new(config(), at(0));
        let welcome = Welcome {
            holder: "a".into(),
            generation: 1,
            begins: Begins::WithStart,
            clocks: ClockOffer::Either,
        };
        let clock = settle_clock(&ClockOffer::Either, &ClockOffer::Either).expect("both auto");
        assert_eq!(
            receive(&mut session, Message::Hello(hello())),
            [
                PrimaryCommand::Send(Message::Welcome(welcome)),
                PrimaryCommand::Welcomed {
                    holder: "b".into(),
                    clock
                }
            ]
        );
    }

    #[test]
    fn a_different_backup_is_refused_by_name() {
        let mut session = PrimarySession::new(config(), at(0));
        let mut hello = hello();
        hello.identity.cmdline = "quiet".into();
        let (item, ours, theirs) = (
            "cmdline".to_owned(),
            "console=ttyS0".to_owned(),
            "quiet".to_owned(),
        );
        assert_eq!(
            receive(&mut session, Message::Hello(hello.clone())),
            [
                PrimaryCommand::Send(Message::Refused(Refused {
                    item: item.clone(),
                    ours: ours.clone(),
                    theirs: theirs.clone()
                })),
                PrimaryCommand::Close(CloseReason::IdentityDiffers { item, ours, theirs }),
            ]
        );
        assert_eq!(
            receive(&mut session, Message::Hello(hello)),
            [],
            "closed is closed"
        );
    }

    /// What a primary with `ours` makes of a backup with `theirs`: the clock, or both in words.
    fn settled(ours: ClockOffer, theirs: ClockOffer) -> Result<ClockKind, (String, String)> {
        let mut config = config();
        config.clocks = ours;
        let mut session = PrimarySession::new(config, at(0));
        let mut hello = hello();
        hello.clocks = theirs;
        match &receive(&mut session, Message::Hello(hello))[..] {
            [
                PrimaryCommand::Send(Message::Welcome(_)),
                PrimaryCommand::Welcomed { clock, .. },
            ] => Ok(clock.kind),
            [
                PrimaryCommand::Send(Message::Refused(refused)),
                PrimaryCommand::Close(CloseReason::IdentityDiffers { item, ours, theirs }),
            ] => {
                assert_eq!((item.as_str(), &refused.item), ("clock", item));
                Err((ours.clone(), theirs.clone()))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn hosts_that_differ_agree_on_the_exit_clock() {
        let none = || ClockOffer::NoCounter("none".into());
        assert_eq!(settled(ClockOffer::Either, none()), Ok(ClockKind::Exits));
        assert_eq!(settled(none(), ClockOffer::Either), Ok(ClockKind::Exits));
        let both = settled(ClockOffer::Either, ClockOffer::Either);
        assert_eq!(both, Ok(ClockKind::Branches));
    }

    #[test]
    fn a_setting_that_the_other_side_cannot_meet_is_refused_by_name() {
        let only = ClockOffer::Only;
        let none = ClockOffer::NoCounter("none".into());
        assert_eq!(
            settled(only(ClockKind::Branches), none),
            Err(("branches".into(), "auto without a counter (none)".into()))
        );
        assert_eq!(
            settled(only(ClockKind::Exits), only(ClockKind::Branches)),
            Err(("exits".into(), "branches".into()))
        );
    }

    #[test]
    fn records_are_sent_at_once_and_acknowledged() {
        let mut session = established(config());
        assert_eq!(
            session.handle(at(1), PrimaryEvent::Recorded(vec![timer(0), timer(1)])),
            [PrimaryCommand::Send(Message::Log(vec![timer(0), timer(1)]))]
        );
        assert_eq!(
            receive(&mut session, Message::Ack(ack(2, 1))),
            [PrimaryCommand::Acknowledged(ack(2, 1))]
        );
        assert_eq!(session.pointers().acknowledged(), LogIndex(2));
    }

    #[test]
    fn a_full_window_holds_records_back_until_an_acknowledgement() {
        let mut config = config();
        config.flow.window_bytes = 100;
        let mut session = established(config);
        session.handle(at(1), PrimaryEvent::Recorded(vec![timer(0), timer(1)]));
        assert_eq!(
            session.handle(at(1), PrimaryEvent::Recorded(vec![timer(2)])),
            []
        );
        assert!(session.has_room());
        assert_eq!(
            session.handle(at(1), PrimaryEvent::Recorded(vec![timer(3)])),
            []
        );
        assert!(!session.has_room());
        assert_eq!(
            receive(&mut session, Message::Ack(ack(2, 0))),
            [
                PrimaryCommand::Acknowledged(ack(2, 0)),
                PrimaryCommand::Send(Message::Log(vec![timer(2), timer(3)]))
            ]
        );
        assert!(session.has_room());
    }

    #[test]
    fn an_acknowledgement_beyond_what_was_sent_closes() {
        let mut session = established(config());
        session.handle(at(1), PrimaryEvent::Recorded(vec![timer(0)]));
        let reason = PointerError::Beyond {
            what: "acknowledged",
            claimed: 2,
            limit: 1,
        };
        assert_eq!(
            receive(&mut session, Message::Ack(ack(2, 0))),
            [PrimaryCommand::Close(CloseReason::Pointer(reason))]
        );
    }

    #[test]
    fn messages_out_of_place_close() {
        let cases = [
            (Message::Hello(hello()), "Hello"),
            (Message::Log(vec![timer(0)]), "Log"),
            (
                Message::Welcome(Welcome {
                    holder: "x".into(),
                    generation: 9,
                    begins: Begins::WithStart,
                    clocks: ClockOffer::Either,
                }),
                "Welcome",
            ),
        ];
        for (message, name) in cases {
            let mut session = established(config());
            let reason = CloseReason::Unexpected {
                message: name,
                state: "established",
            };
            assert_eq!(
                receive(&mut session, message),
                [PrimaryCommand::Close(reason)]
            );
        }
        let mut session = PrimarySession::new(config(), at(0));
        let reason = CloseReason::Unexpected {
            message: "Ack",
            state: "awaiting Hello",
        };
        assert_eq!(
            receive(&mut session, Message::Ack(ack(0, 0))),
            [PrimaryCommand::Close(reason)]
        );
    }

    #[test]
    fn heartbeats_carry_what_was_released() {
        let mut session = established(config());
        assert_eq!(session.handle(at(19), PrimaryEvent::Tick), []);
        let released = LogIndex(7);
        session.handle(
            at(19),
            PrimaryEvent::Released {
                below: released,
                at_once: false,
            },
        );
        let beat = PrimaryCommand::Send(Message::Heartbeat(Heartbeat { released }));
        assert_eq!(
            session.handle(at(20), PrimaryEvent::Tick),
            std::slice::from_ref(&beat)
        );
        assert_eq!(session.wake_at(), at(40));
        let event = PrimaryEvent::Released {
            below: released,
            at_once: true,
        };
        assert_eq!(session.handle(at(21), event), [beat]);
    }

    #[test]
    fn goodbyes_close_in_both_directions() {
        let mut session = established(config());
        assert_eq!(
            session.handle(at(1), PrimaryEvent::SayGoodbye(Goodbye::GuestEnded)),
            [
                PrimaryCommand::Send(Message::Goodbye(Goodbye::GuestEnded)),
                PrimaryCommand::Close(CloseReason::SaidGoodbye)
            ]
        );
        let mut session = established(config());
        assert_eq!(
            receive(&mut session, Message::Goodbye(Goodbye::Diverged)),
            [
                PrimaryCommand::PeerSaid(Goodbye::Diverged),
                PrimaryCommand::Close(CloseReason::PeerSaidGoodbye)
            ]
        );
    }

    #[test]
    fn long_batches_are_split_into_frames() {
        let mut session = established(config());
        let records: Vec<_> = (0..FRAME_RECORDS_MAX as u64 + 1).map(timer).collect();
        let commands = session.handle(at(1), PrimaryEvent::Recorded(records));
        let lengths: Vec<_> = commands
            .iter()
            .map(|c| match c {
                PrimaryCommand::Send(Message::Log(records)) => records.len(),
                _ => 0,
            })
            .collect();
        assert_eq!(lengths, [FRAME_RECORDS_MAX, 1]);
    }

    fn transferring() -> PrimarySession {
        let config = PrimaryConfig {
            begins: Begins::WithTransfer,
            ..config()
        };
        let mut session = PrimarySession::new(config, at(0));
        session.handle(at(0), PrimaryEvent::Received(Message::Hello(hello())));
        assert!(session.is_transferring() && !session.is_established());
        session
    }

    #[test]
    fn a_running_guest_is_sent_as_parts_and_its_log_follows() {
        let mut session = transferring();
        assert_eq!(
            session.handle(at(1), PrimaryEvent::Part(vec![7; 10])),
            [PrimaryCommand::Send(Message::Part(vec![7; 10]))]
        );
        let complete = Complete {
            first_index: LogIndex(5),
            bytes: 10,
        };
        assert_eq!(
            session.handle(at(1), PrimaryEvent::Complete(LogIndex(5))),
            [PrimaryCommand::Send(Message::Complete(complete))]
        );
        assert!(session.is_established());
        let sent = session.handle(at(1), PrimaryEvent::Recorded(vec![timer(5)]));
        assert_eq!(sent, [PrimaryCommand::Send(Message::Log(vec![timer(5)]))]);
        assert_eq!(receive(&mut session, Message::Ack(ack(6, 5))).len(), 1);
    }

    #[test]
    fn parts_wait_for_the_window() {
        let mut session = transferring();
        let part = vec![0; 1 << 20];
        let mut parts = 0;
        while session.wants_part() {
            session.handle(at(1), PrimaryEvent::Part(part.clone()));
            parts += 1;
        }
        assert_eq!(parts, TRANSFER_WINDOW_BYTES >> 20);
        receive(&mut session, Message::Taken(Taken { bytes: 1 << 20 }));
        assert!(session.wants_part());
    }

    #[test]
    fn a_backup_that_took_in_more_than_was_sent_is_refused() {
        let mut session = transferring();
        let closed = receive(&mut session, Message::Taken(Taken { bytes: 1 }));
        assert_eq!(
            closed,
            [PrimaryCommand::Close(CloseReason::PartsDiffer(0, 1))]
        );
    }

    #[test]
    fn an_acknowledgement_during_the_transfer_is_refused() {
        let closed = receive(&mut transferring(), Message::Ack(ack(0, 0)));
        let reason = CloseReason::Unexpected {
            message: "Ack",
            state: "transferring the state",
        };
        assert_eq!(closed, [PrimaryCommand::Close(reason)]);
    }
}
