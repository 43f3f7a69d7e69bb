//! The backup's end of the logging channel.
//!
//! ```text
//!   AwaitingWelcome --Welcome--> Established --Goodbye / violation--> Closed
//!         |  '--Welcome to a running guest--> Loading --Complete--> Established
//!         '--Refused / Goodbye / violation-------------------------->'
//! ```
//!
//! Invariants: records are delivered in index order without a gap; a record is acknowledged only
//! after it was delivered; nothing is taken from the peer once the session is closed.

#![forbid(unsafe_code)]

use super::{CloseReason, message_name, settle_clock};
use crate::clock_agreement::{ClockAgreement, ClockOffer};
use crate::host_time::HostTime;
use crate::message::{
    Ack, Begins, Complete, Goodbye, Heartbeat, Hello, Identity, Message, PROTOCOL_VERSION, Refused,
    Taken, Welcome,
};
use crate::pointers::BackupPointers;
use crate::record::{LogIndex, Record};

/// What the backup's session needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BackupConfig {
    /// Our name, as we would claim at the arbiter.
    pub holder: String,
    /// What we would run.
    pub identity: Identity,
    /// What we can run it on.
    pub clocks: ClockOffer,
    /// Time between heartbeats.
    pub heartbeat_interval_ns: u64,
}

/// What happens to the backup's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupEvent {
    /// The connection was made: introduce ourselves.
    Connected,
    /// The peer said something.
    Received(Message),
    /// The replayer advanced.
    Replayed {
        /// First index not replayed.
        next: LogIndex,
        /// Synchronous exits so far.
        exits: u64,
    },
    /// The guest being built took in this many bytes of its state, beside those told before.
    Loaded {
        /// Bytes.
        bytes: u64,
    },
    /// Time passed.
    Tick,
    /// End the session in an orderly way.
    SayGoodbye(Goodbye),
}

/// What the backup's session wants done, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupCommand {
    /// Send this.
    Send(Message),
    /// We are the backup of this primary, on this clock.
    Accepted(Welcome, ClockAgreement),
    /// The primary runs something else.
    RefusedByPeer(Refused),
    /// Records, to be kept before the next command is carried out.
    Deliver(Vec<Record>),
    /// A piece of the guest's state.
    Load(Vec<u8>),
    /// The state is complete: the log goes on from this index, and this side is a backup.
    Complete(LogIndex),
    /// The primary has released every output below this index.
    PeerReleased(LogIndex),
    /// The primary ends the session.
    PeerSaid(Goodbye),
    /// Close the connection; nothing more comes from this session.
    Close(CloseReason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    AwaitingWelcome,
    Loading,
    Established,
    Closed,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::AwaitingWelcome => "awaiting Welcome",
            Self::Loading => "loading the state",
            Self::Established => "established",
            Self::Closed => "closed",
        }
    }
}

/// The backup's end of one connection.
#[derive(Debug, Clone, Hash)]
pub struct BackupSession {
    config: BackupConfig,
    state: State,
    pointers: BackupPointers,
    told: Ack,
    /// Bytes of parts received, and of those taken in.
    parts_received: u64,
    parts_taken: u64,
    /// Some of a state came, and not all.
    loading: bool,
    heartbeat_at: HostTime,
}

impl BackupSession {
    /// A session on a connection made at `now`.
    #[must_use]
    pub fn new(config: BackupConfig, now: HostTime) -> Self {
        Self {
            state: State::AwaitingWelcome,
            pointers: BackupPointers::default(),
            told: Ack::default(),
            parts_received: 0,
            parts_taken: 0,
            loading: false,
            heartbeat_at: now.plus_ns(config.heartbeat_interval_ns),
            config,
        }
    }

    /// Advances the session.
    pub fn handle(&mut self, now: HostTime, event: BackupEvent) -> Vec<BackupCommand> {
        let mut out = Vec::new();
        // Replay goes on after the connection broke, and the pointers must follow it.
        if let BackupEvent::Replayed { next, exits } = event {
            self.pointers.replay(next, exits);
            return out;
        }
        if self.state == State::Closed {
            return out;
        }
        match event {
            BackupEvent::Connected => out.push(BackupCommand::Send(Message::Hello(Hello {
                protocol: PROTOCOL_VERSION,
                holder: self.config.holder.clone(),
                identity: self.config.identity.clone(),
                clocks: self.config.clocks.clone(),
            }))),
            BackupEvent::Received(message) => {
                if let Err(reason) = self.received(message, &mut out) {
                    self.close(reason, &mut out);
                }
            }
            BackupEvent::Replayed { .. } => {}
            BackupEvent::Loaded { bytes } => self.loaded(bytes, &mut out),
            BackupEvent::Tick => self.tick(now, &mut out),
            BackupEvent::SayGoodbye(goodbye) => {
                out.push(BackupCommand::Send(Message::Goodbye(goodbye)));
                self.close(CloseReason::SaidGoodbye, &mut out);
            }
        }
        out
    }

    /// When [`BackupEvent::Tick`] is next wanted.
    #[must_use]
    pub const fn wake_at(&self) -> HostTime {
        self.heartbeat_at
    }

    /// Received, replayed, released.
    #[must_use]
    pub const fn pointers(&self) -> BackupPointers {
        self.pointers
    }

    /// Whether the primary welcomed us and the session is open.
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.state == State::Established
    }

    /// Whether some of a state came, and not all.
    #[must_use]
    pub const fn is_loading(&self) -> bool {
        self.loading
    }

    /// Takes nothing more from the peer; replay progress is still counted.
    pub fn abandon(&mut self) {
        self.state = State::Closed;
    }

    fn received(
        &mut self,
        message: Message,
        out: &mut Vec<BackupCommand>,
    ) -> Result<(), CloseReason> {
        match (self.state, message) {
            (State::AwaitingWelcome, Message::Welcome(welcome)) => {
                // A primary that welcomes us on a clock that we have not is none that we can follow.
                let clock = settle_clock(&welcome.clocks, &self.config.clocks)
                    .map_err(|refused| CloseReason::from(&refused))?;
                self.state = match welcome.begins {
                    Begins::WithStart => State::Established,
                    Begins::WithTransfer => State::Loading,
                };
                out.push(BackupCommand::Accepted(welcome, clock));
                Ok(())
            }
            (State::AwaitingWelcome, Message::Refused(refused)) => {
                let reason = CloseReason::from(&refused);
                out.push(BackupCommand::RefusedByPeer(refused));
                Err(reason)
            }
            (State::Loading, Message::Part(bytes)) => {
                self.loading = true;
                self.parts_received += bytes.len() as u64;
                out.push(BackupCommand::Load(bytes));
                Ok(())
            }
            (State::Loading, Message::Complete(complete)) => self.complete(complete, out),
            (State::Established, Message::Log(records)) => {
                if records.is_empty() {
                    return Err(CloseReason::EmptyLog);
                }
                self.pointers.receive(&records)?;
                out.push(BackupCommand::Deliver(records));
                self.acknowledge(out);
                Ok(())
            }
            // Of the time before the state: nothing that this side could have kept.
            (State::Loading, Message::Heartbeat(_)) => Ok(()),
            (_, Message::Heartbeat(beat)) => {
                let before = self.pointers.released();
                self.pointers.release(beat.released)?;
                if beat.released > before {
                    out.push(BackupCommand::PeerReleased(beat.released));
                }
                Ok(())
            }
            (_, Message::Goodbye(goodbye)) => {
                out.push(BackupCommand::PeerSaid(goodbye));
                Err(CloseReason::PeerSaidGoodbye)
            }
            (state, message) => Err(CloseReason::Unexpected {
                message: message_name(&message),
                state: state.name(),
            }),
        }
    }

    fn complete(
        &mut self,
        complete: Complete,
        out: &mut Vec<BackupCommand>,
    ) -> Result<(), CloseReason> {
        if complete.bytes != self.parts_received {
            let ours = self.parts_received;
            return Err(CloseReason::PartsDiffer(ours, complete.bytes));
        }
        self.state = State::Established;
        self.loading = false;
        self.pointers = BackupPointers::starting_at(complete.first_index);
        self.told = self.pointers.ack();
        out.push(BackupCommand::Complete(complete.first_index));
        Ok(())
    }

    fn loaded(&mut self, bytes: u64, out: &mut Vec<BackupCommand>) {
        self.parts_taken += bytes;
        let bytes = self.parts_taken;
        out.push(BackupCommand::Send(Message::Taken(Taken { bytes })));
    }

    fn tick(&mut self, now: HostTime, out: &mut Vec<BackupCommand>) {
        if now < self.heartbeat_at {
            return;
        }
        self.heartbeat_at = now.plus_ns(self.config.heartbeat_interval_ns);
        if self.pointers.ack() == self.told {
            out.push(BackupCommand::Send(
                Message::Heartbeat(Heartbeat::default()),
            ));
        } else {
            self.acknowledge(out);
        }
    }

    fn acknowledge(&mut self, out: &mut Vec<BackupCommand>) {
        self.told = self.pointers.ack();
        out.push(BackupCommand::Send(Message::Ack(self.told)));
    }

    fn close(&mut self, reason: CloseReason, out: &mut Vec<BackupCommand>) {
        self.state = State::Closed;
        out.push(BackupCommand::Close(reason));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, hello, identity, timer};
    use super::*;
    use crate::pointers::PointerError;
    use crate::record::ClockKind;

    fn new_session() -> BackupSession {
        let config = BackupConfig {
            holder: "b".into(),
            identity: identity(),
            clocks: ClockOffer::Either,
            heartbeat_interval_ns: 20_000_000,
        };
        BackupSession::new(config, at(0))
    }

    fn welcome() -> Welcome {
        Welcome {
            holder: "a".into(),
            generation: 1,
            begins: Begins::WithStart,
            clocks: ClockOffer::Either,
        }
    }

    fn accepted(welcome: Welcome) -> BackupCommand {
        let clock = settle_clock(&welcome.clocks, &ClockOffer::Either).expect("both auto");
        BackupCommand::Accepted(welcome, clock)
    }

    fn receive(session: &mut BackupSession, message: Message) -> Vec<BackupCommand> {
        session.handle(at(1), BackupEvent::Received(message))
    }

    fn established() -> BackupSession {
        let mut session = new_session();
        let commands = receive(&mut session, Message::Welcome(welcome()));
        assert_eq!(commands, [accepted(welcome())]);
        session
    }

    fn ack(received: u64, replayed: u64, replayed_exits: u64) -> BackupCommand {
        BackupCommand::Send(Message::Ack(Ack {
            received: LogIndex(received),
            replayed: LogIndex(replayed),
            replayed_exits,
        }))
    }

    fn gap(expected: u64, found: u64) -> BackupCommand {
        BackupCommand::Close(CloseReason::Pointer(PointerError::Gap { expected, found }))
    }

    #[test]
    fn connecting_introduces_us() {
        assert_eq!(
            new_session().handle(at(0), BackupEvent::Connected),
            [BackupCommand::Send(Message::Hello(hello()))]
        );
    }

    #[test]
    fn records_are_delivered_before_they_are_acknowledged() {
        let mut session = established();
        assert_eq!(
            receive(&mut session, Message::Log(vec![timer(0), timer(1)])),
            [
                BackupCommand::Deliver(vec![timer(0), timer(1)]),
                ack(2, 0, 0)
            ]
        );
        session.handle(
            at(2),
            BackupEvent::Replayed {
                next: LogIndex(1),
                exits: 9,
            },
        );
        assert_eq!(
            receive(&mut session, Message::Log(vec![timer(2)])),
            [BackupCommand::Deliver(vec![timer(2)]), ack(3, 1, 9)]
        );
    }

    #[test]
    fn a_gap_or_a_repetition_closes() {
        let mut session = established();
        assert_eq!(
            receive(&mut session, Message::Log(vec![timer(1)])),
            [gap(0, 1)]
        );
        let mut session = established();
        receive(&mut session, Message::Log(vec![timer(0)]));
        assert_eq!(
            receive(&mut session, Message::Log(vec![timer(0)])),
            [gap(1, 0)]
        );
        assert_eq!(
            receive(&mut session, Message::Log(vec![timer(1)])),
            [],
            "closed is closed"
        );
        assert_eq!(session.pointers().received(), LogIndex(1));
    }

    #[test]
    fn an_empty_log_frame_closes() {
        let commands = receive(&mut established(), Message::Log(vec![]));
        assert_eq!(commands, [BackupCommand::Close(CloseReason::EmptyLog)]);
    }

    #[test]
    fn refusal_names_the_item() {
        let refused = Refused {
            item: "mac".into(),
            ours: "01".into(),
            theirs: "02".into(),
        };
        assert_eq!(
            receive(&mut new_session(), Message::Refused(refused.clone())),
            [
                BackupCommand::RefusedByPeer(refused),
                BackupCommand::Close(CloseReason::IdentityDiffers {
                    item: "mac".into(),
                    ours: "01".into(),
                    theirs: "02".into()
                })
            ]
        );
    }

    #[test]
    fn the_clock_is_what_both_offers_make_it() {
        let with_one = Welcome {
            clocks: ClockOffer::NoCounter("none here".into()),
            ..welcome()
        };
        let commands = receive(&mut new_session(), Message::Welcome(with_one.clone()));
        let [BackupCommand::Accepted(taken, clock)] = &commands[..] else {
            panic!("{commands:?}");
        };
        assert_eq!((taken, clock.kind), (&with_one, ClockKind::Exits));
        assert!(clock.why.contains("none here"), "{}", clock.why);
    }

    #[test]
    fn a_welcome_to_a_clock_that_we_have_not_closes() {
        let mut session = new_session();
        session.config.clocks = ClockOffer::NoCounter("none".into());
        let fixed = Welcome {
            clocks: ClockOffer::Only(ClockKind::Branches),
            ..welcome()
        };
        let reason = CloseReason::IdentityDiffers {
            item: "clock".into(),
            ours: "branches".into(),
            theirs: "auto without a counter (none)".into(),
        };
        assert_eq!(
            receive(&mut session, Message::Welcome(fixed)),
            [BackupCommand::Close(reason)]
        );
        assert!(!session.is_established());
    }

    fn loading() -> BackupSession {
        let mut session = new_session();
        let running = Welcome {
            begins: Begins::WithTransfer,
            ..welcome()
        };
        receive(&mut session, Message::Welcome(running));
        assert!(!session.is_established());
        session
    }

    fn complete(first: u64, bytes: u64) -> Message {
        let first_index = LogIndex(first);
        Message::Complete(Complete { first_index, bytes })
    }

    #[test]
    fn a_running_guest_begins_with_its_state() {
        let mut session = loading();
        assert_eq!(
            receive(&mut session, Message::Part(vec![7; 10])),
            [BackupCommand::Load(vec![7; 10])]
        );
        let taken = BackupCommand::Send(Message::Taken(Taken { bytes: 10 }));
        assert_eq!(
            session.handle(at(2), BackupEvent::Loaded { bytes: 10 }),
            [taken]
        );
        assert_eq!(
            receive(&mut session, complete(5, 10)),
            [BackupCommand::Complete(LogIndex(5))]
        );
        assert!(session.is_established());
        assert_eq!(session.pointers().received(), LogIndex(5));
        assert_eq!(session.pointers().released(), LogIndex(5));
        receive(&mut session, Message::Log(vec![timer(5)]));
        assert_eq!(session.pointers().received(), LogIndex(6));
    }

    #[test]
    fn a_state_with_a_part_missing_is_refused() {
        let mut session = loading();
        receive(&mut session, Message::Part(vec![7; 10]));
        assert_eq!(
            receive(&mut session, complete(5, 20)),
            [BackupCommand::Close(CloseReason::PartsDiffer(10, 20))]
        );
    }

    #[test]
    fn records_before_the_state_is_complete_are_refused() {
        let closed = receive(&mut loading(), Message::Log(vec![timer(5)]));
        let reason = CloseReason::Unexpected {
            message: "Log",
            state: "loading the state",
        };
        assert_eq!(closed, [BackupCommand::Close(reason)]);
    }

    #[test]
    fn released_moves_forward_within_what_was_received() {
        let mut session = established();
        receive(&mut session, Message::Log(vec![timer(0), timer(1)]));
        let beat = |released| {
            Message::Heartbeat(Heartbeat {
                released: LogIndex(released),
            })
        };
        assert_eq!(
            receive(&mut session, beat(2)),
            [BackupCommand::PeerReleased(LogIndex(2))]
        );
        assert_eq!(receive(&mut session, beat(2)), []);
        let reason = PointerError::Beyond {
            what: "released",
            claimed: 3,
            limit: 2,
        };
        assert_eq!(
            receive(&mut session, beat(3)),
            [BackupCommand::Close(CloseReason::Pointer(reason))]
        );
    }

    #[test]
    fn the_tick_tells_progress_or_just_life() {
        let mut session = established();
        receive(&mut session, Message::Log(vec![timer(0)]));
        assert_eq!(session.handle(at(19), BackupEvent::Tick), []);
        let alive = BackupCommand::Send(Message::Heartbeat(Heartbeat::default()));
        assert_eq!(session.handle(at(20), BackupEvent::Tick), [alive]);
        session.handle(
            at(30),
            BackupEvent::Replayed {
                next: LogIndex(1),
                exits: 4,
            },
        );
        assert_eq!(session.handle(at(40), BackupEvent::Tick), [ack(1, 1, 4)]);
    }

    #[test]
    fn messages_out_of_place_close() {
        let reason = CloseReason::Unexpected {
            message: "Log",
            state: "awaiting Welcome",
        };
        assert_eq!(
            receive(&mut new_session(), Message::Log(vec![timer(0)])),
            [BackupCommand::Close(reason)]
        );
        let reason = CloseReason::Unexpected {
            message: "Welcome",
            state: "established",
        };
        assert_eq!(
            receive(&mut established(), Message::Welcome(welcome())),
            [BackupCommand::Close(reason)]
        );
    }

    #[test]
    fn an_abandoned_session_takes_nothing_but_counts_replay() {
        let mut session = established();
        receive(&mut session, Message::Log(vec![timer(0)]));
        session.abandon();
        assert_eq!(receive(&mut session, Message::Log(vec![timer(1)])), []);
        session.handle(
            at(2),
            BackupEvent::Replayed {
                next: LogIndex(1),
                exits: 1,
            },
        );
        assert_eq!(session.pointers().replayed(), LogIndex(1));
    }
}
