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

    /// When [`PrimaryEvent::Tick`] is next wanted; never, once the session is closed.
    #[must_use]
    pub fn wake_at(&self) -> Option<HostTime> {
        (self.state != State::Closed).then_some(self.heartbeat_at)
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
#[path = "primary_tests.rs"]
mod tests;
