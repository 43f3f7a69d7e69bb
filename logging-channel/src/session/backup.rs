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
    /// The newest generation that this host has seen of the virtual machine; 0 for none. Whoever runs
    /// it under an older one is a primary of the past.
    pub newest_generation: u64,
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

    /// When [`BackupEvent::Tick`] is next wanted; never, once the session is closed.
    #[must_use]
    pub fn wake_at(&self) -> Option<HostTime> {
        (self.state != State::Closed).then_some(self.heartbeat_at)
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

    /// Bytes of the state received so far, and of those taken in.
    #[must_use]
    pub const fn transferred_bytes(&self) -> (u64, u64) {
        (self.parts_received, self.parts_taken)
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
                let newest = self.config.newest_generation;
                if welcome.generation < newest {
                    let generation = welcome.generation;
                    return Err(CloseReason::OlderGeneration { generation, newest });
                }
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
#[path = "backup_tests.rs"]
mod tests;
