//! Watches from outside how the guest's state is given to a new backup: rounds, bytes, how long the guest stood
//! still and its output waited.
//!
//! It is told every event before the node, every command after it, and what only the runtime knows; nothing
//! it keeps decides anything.
//!
//! ```text
//!   copying ──little left──► pausing ──state said──► waiting ──first record acknowledged──► done
//!      └────────────────────────┴──── connection lost, guest too fast ──► failed
//! ```
//!
//! Left out: snapshots into files, which have their own (`runtime::saving`).

#![forbid(unsafe_code)]

use super::engine::Emitted;
use super::node::{NodeCommand, NodeEvent, Note};
use logging_channel::host_time::HostTime;
use logging_channel::message::Message;
use serde::{Deserialize, Serialize};

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferPhase {
    /// Pages are sent while the guest writes others.
    Copying,
    /// The new backup takes in what was sent; then the guest is stopped for the rest.
    Pausing,
    /// All is sent; output waits for the new backup's first acknowledgement.
    Waiting,
    /// The two are a pair.
    Done,
    /// There is no backup.
    Failed,
}

/// The last transfer that began here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferStatus {
    /// Counts those of the process's present life.
    pub attempt: u64,
    /// How far it is.
    pub phase: TransferPhase,
    /// Rounds of copying begun.
    pub rounds: u32,
    /// Pages that the present round sends: all of memory in the first, then what was written meanwhile.
    pub round_pages: u64,
    /// How many of them were given to the connection.
    pub round_sent: u64,
    /// Bytes of the state sent.
    pub bytes: u64,
    /// Time from the beginning until little was left, nanoseconds.
    pub copying_ns: u64,
    /// Time in which the guest stood still for the rest, nanoseconds.
    pub pause_ns: u64,
    /// Time from then until the new backup acknowledged the first record, nanoseconds: no output left.
    pub waiting_ns: u64,
    /// Time from the beginning to the end, nanoseconds.
    pub total_ns: u64,
    /// Longest pause of the processor in each mark interval, nanoseconds, for a guest that wrote too fast.
    pub slowed_ns_max: u64,
    /// Why there is no backup.
    pub failure: Option<String>,
}

impl TransferStatus {
    /// What is being done, in words; `None` when it is over.
    #[must_use]
    pub fn doing(&self) -> Option<String> {
        match self.phase {
            TransferPhase::Copying => Some(format!("round {} of copying memory", self.rounds)),
            TransferPhase::Pausing => Some("sending what the guest wrote last".to_owned()),
            TransferPhase::Waiting => Some("waiting for the new backup".to_owned()),
            TransferPhase::Done | TransferPhase::Failed => None,
        }
    }
}

/// Watches one node.
#[derive(Debug, Default)]
pub struct TransferWatch {
    status: Option<TransferStatus>,
    began: HostTime,
    /// When the state was said, and the first record behind it.
    said: Option<(HostTime, u64)>,
}

impl TransferWatch {
    /// The last transfer, if there was one.
    #[must_use]
    pub const fn status(&self) -> Option<&TransferStatus> {
        self.status.as_ref()
    }

    /// The node is about to handle `event`.
    pub fn event(&mut self, now: HostTime, event: &NodeEvent) {
        let Some(status) = &mut self.status else {
            return;
        };
        match event {
            NodeEvent::TransferPart { attempt, bytes } if *attempt == status.attempt => {
                status.bytes += bytes.len() as u64;
            }
            NodeEvent::TransferReady { attempt }
                if *attempt == status.attempt && status.phase == TransferPhase::Copying =>
            {
                status.phase = TransferPhase::Pausing;
                status.copying_ns = now.since(self.began);
            }
            NodeEvent::Emitted(items) => {
                for item in items {
                    if let Emitted::Snapshot { attempt, next, .. } = item
                        && *attempt == status.attempt
                        && status.phase == TransferPhase::Pausing
                    {
                        status.phase = TransferPhase::Waiting;
                        self.said = Some((now, next.0));
                    }
                }
            }
            NodeEvent::PeerMessage(Message::Ack(ack)) => {
                if let Some((said, next)) = self.said
                    && status.phase == TransferPhase::Waiting
                    && ack.received.0 > next
                {
                    status.phase = TransferPhase::Done;
                    status.waiting_ns = now.since(said);
                    status.total_ns = now.since(self.began);
                }
            }
            _ => {}
        }
    }

    /// The node wants `command` done.
    pub fn command(&mut self, now: HostTime, command: &NodeCommand) {
        match command {
            NodeCommand::BeginTransfer { attempt } => self.begin(now, *attempt),
            NodeCommand::Note(Note::TransferFailed(cause)) => self.fail(now, cause),
            NodeCommand::Note(Note::TransferDone { bytes, .. }) => {
                if let Some(status) = &mut self.status {
                    status.bytes = *bytes;
                }
            }
            // It comes at a good end, too.
            NodeCommand::EndTransfer => {
                self.fail(now, "the connection was lost, or the guest ended")
            }
            _ => {}
        }
    }

    /// A round of copying `pages` begins.
    pub fn round(&mut self, number: u32, pages: u64) {
        if let Some(status) = &mut self.status {
            (status.rounds, status.round_pages, status.round_sent) = (number, pages, 0);
        }
    }

    /// Some of the round's pages were given to the connection.
    pub fn sent(&mut self, pages: u64) {
        if let Some(status) = &mut self.status {
            status.round_sent = status.round_sent.saturating_add(pages);
        }
    }

    /// The guest is slowed because it writes fast.
    pub fn slowed(&mut self, pause_ns: u64) {
        if let Some(status) = &mut self.status {
            status.slowed_ns_max = status.slowed_ns_max.max(pause_ns);
        }
    }

    /// The guest stood still while its state was said.
    pub fn paused(&mut self, attempt: u64, pause_ns: u64) {
        if let Some(status) = self.status.as_mut().filter(|s| s.attempt == attempt) {
            status.pause_ns = pause_ns;
        }
    }

    fn begin(&mut self, now: HostTime, attempt: u64) {
        (self.began, self.said) = (now, None);
        self.status = Some(TransferStatus {
            attempt,
            phase: TransferPhase::Copying,
            rounds: 0,
            round_pages: 0,
            round_sent: 0,
            bytes: 0,
            copying_ns: 0,
            pause_ns: 0,
            waiting_ns: 0,
            total_ns: 0,
            slowed_ns_max: 0,
            failure: None,
        });
    }

    fn fail(&mut self, now: HostTime, cause: &str) {
        if let Some(status) = &mut self.status
            && matches!(
                status.phase,
                TransferPhase::Copying | TransferPhase::Pausing
            )
        {
            status.phase = TransferPhase::Failed;
            status.total_ns = now.since(self.began);
            status.failure = Some(cause.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logging_channel::message::Ack;
    use logging_channel::record::LogIndex;

    const fn at(ms: u64) -> HostTime {
        HostTime(ms * 1_000_000)
    }

    fn ack(received: u64) -> NodeEvent {
        NodeEvent::PeerMessage(Message::Ack(Ack {
            received: LogIndex(received),
            ..Ack::default()
        }))
    }

    fn state(attempt: u64) -> NodeEvent {
        NodeEvent::Emitted(vec![Emitted::Snapshot {
            attempt,
            next: LogIndex(70),
            parts: Vec::new(),
        }])
    }

    fn copied() -> TransferWatch {
        let mut watch = TransferWatch::default();
        watch.event(at(1), &ack(9));
        watch.command(at(10), &NodeCommand::BeginTransfer { attempt: 3 });
        for round in 1..=2 {
            watch.round(round, 30);
            watch.sent(10);
            let part = |attempt| NodeEvent::TransferPart {
                attempt,
                bytes: vec![0; 100],
            };
            watch.event(at(20), &part(3));
            // An attempt that is over may still say something.
            watch.event(at(20), &part(2));
        }
        watch
    }

    #[test]
    fn times_and_bytes_of_a_transfer_are_told() {
        let mut watch = copied();
        watch.slowed(5);
        watch.slowed(0);
        watch.event(at(40), &NodeEvent::TransferReady { attempt: 3 });
        watch.event(at(50), &state(2));
        assert_eq!(watch.status().unwrap().phase, TransferPhase::Pausing);
        watch.event(at(50), &state(3));
        watch.command(at(50), &NodeCommand::EndTransfer);
        let done = Note::TransferDone {
            next: LogIndex(70),
            bytes: 230,
        };
        watch.command(at(50), &NodeCommand::Note(done));
        watch.paused(3, 7);
        watch.event(at(60), &ack(70));
        assert_eq!(watch.status().unwrap().phase, TransferPhase::Waiting);
        watch.event(at(65), &ack(71));
        watch.event(at(90), &ack(80));
        let expected = TransferStatus {
            attempt: 3,
            phase: TransferPhase::Done,
            rounds: 2,
            round_pages: 30,
            round_sent: 10,
            bytes: 230,
            copying_ns: 30_000_000,
            pause_ns: 7,
            waiting_ns: 15_000_000,
            total_ns: 55_000_000,
            slowed_ns_max: 5,
            failure: None,
        };
        assert_eq!(watch.status(), Some(&expected));
    }

    #[test]
    fn a_transfer_that_breaks_says_why_and_the_next_begins_anew() {
        let mut watch = copied();
        let why = "it writes too fast".to_owned();
        watch.command(
            at(30),
            &NodeCommand::Note(Note::TransferFailed(why.clone())),
        );
        watch.command(at(31), &NodeCommand::EndTransfer);
        let status = watch.status().unwrap();
        assert_eq!(status.phase, TransferPhase::Failed);
        assert_eq!((status.failure.as_ref(), status.bytes), (Some(&why), 200));
        watch.event(at(32), &state(3));
        assert_eq!(watch.status().unwrap().phase, TransferPhase::Failed);
        watch.command(at(40), &NodeCommand::BeginTransfer { attempt: 4 });
        let status = watch.status().unwrap();
        assert_eq!((status.attempt, status.bytes), (4, 0));
        assert_eq!(status.failure, None);
    }
}
