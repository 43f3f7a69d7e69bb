//! What goes into a [`Node`](super::Node) and what comes out of it.

#![forbid(unsafe_code)]

use crate::replication::engine::{Emitted, Offer};
use crate::replication::executor::Produced;
use crate::replication::go_live::RetryConfig;
use logging_channel::clock_agreement::{ClockAgreement, ClockOffer};
use logging_channel::failure_detector::DetectorConfig;
use logging_channel::flow::FlowConfig;
use logging_channel::host_time::HostTime;
use logging_channel::message::{Goodbye, Identity, Message};
use logging_channel::record::{ClockKind, EndReason, LogIndex};
use logging_channel::session::CloseReason;

/// What this process was started as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// Unreplicated: no backup, no arbiter, no waiting.
    Alone,
    /// Claims the generation after `after_generation` and starts the guest once a backup is there.
    Primary {
        /// 0 for a VM that never ran.
        after_generation: u64,
    },
    /// Follows a primary.
    Backup,
}

/// Settings of one side.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeConfig {
    /// What to be.
    pub part: Part,
    /// Our name at the arbiter and to the peer. Must be unique to this *process*, not only to the
    /// host: the arbiter repeats a grant to its winner, and a restarted process is not the winner.
    pub holder: String,
    /// What we run.
    pub identity: Identity,
    /// What this host can and may run it on.
    pub clocks: ClockOffer,
    /// Heartbeats and suspicion.
    pub detector: DetectorConfig,
    /// How far the backup may be behind.
    pub flow: FlowConfig,
    /// Repetition of claims.
    pub retry: RetryConfig,
    /// Bytes of output at which the recorder has to wait.
    pub gate_bytes_max: usize,
    /// Generation of the snapshot that an unreplicated guest goes on from; 0 at power-on.
    pub generation: u64,
    /// The newest generation that this host has seen: a primary of an older one is not followed, a
    /// grant that is no newer counts for nothing. 0 for none.
    pub newest_generation: u64,
}

/// The arbiter's answer to the request under way. Every [`NodeCommand::Claim`] gets exactly one; a
/// request that timed out is answered `Unreachable`, and what the arbiter says later is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ArbiterReply {
    /// We hold this generation.
    Granted {
        /// The generation claimed.
        generation: u64,
    },
    /// Somebody else does.
    Refused {
        /// The current generation.
        generation: u64,
        /// Who holds it.
        holder: String,
    },
    /// No answer.
    Unreachable,
    /// An answer that is no decision, such as a damaged store.
    Failed(String),
}

/// What happens to a node.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeEvent {
    /// The process is ready. First, once.
    Start,
    /// A connection to the peer was made. One connection at a time.
    PeerConnected,
    /// The peer said something on the present connection.
    PeerMessage(Message),
    /// The present connection broke, after everything it carried was delivered.
    PeerDisconnected,
    /// The engine's outbox, in order.
    Emitted(Vec<Emitted>),
    /// The arbiter answered.
    Arbiter(ArbiterReply),
    /// The time of [`NodeCommand::WakeAt`] has come, or nearly: one that is early is answered with another
    /// `WakeAt`. Extra ticks do no harm.
    Tick,
    /// The host failed under the guest (KVM, memory): it cannot go on here.
    EngineFailed(String),
    /// Stop here. A backup, if there is one, goes live.
    OperatorStop,
    /// Hand the guest over to the backup, which goes live without a loss or a wait.
    OperatorHandover,
    /// A piece of the guest's state, read while the guest runs; see [`Node::wants_part`].
    TransferPart {
        /// From [`NodeCommand::BeginTransfer`].
        attempt: u64,
        /// The piece.
        bytes: Vec<u8>,
    },
    /// So little is left of the state that the guest may be stopped for it.
    TransferReady {
        /// From [`NodeCommand::BeginTransfer`].
        attempt: u64,
    },
    /// The state cannot be read.
    TransferFailed {
        /// From [`NodeCommand::BeginTransfer`].
        attempt: u64,
        /// Why.
        cause: String,
    },
}

/// What a node wants done, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NodeCommand {
    /// Send this on the present connection.
    Send(Message),
    /// Close the present connection after what was sent; report nothing about it any more.
    CloseLink {
        /// For the log.
        reason: LinkEnd,
    },
    /// Ask the arbiter.
    Claim {
        /// Generation that must be current.
        expected: u64,
        /// Generation asked for.
        new: u64,
    },
    /// Let this out.
    Release(Produced),
    /// Give this to the engine.
    Engine(Offer),
    /// Make the guest and record it from its beginning.
    StartGuest {
        /// The generation for its Start record.
        generation: u64,
        /// The clock that names its points.
        clock: ClockKind,
    },
    /// Read the guest's state for a new backup, while the guest runs: events come back as
    /// [`NodeEvent::TransferPart`] and [`NodeEvent::TransferReady`].
    BeginTransfer {
        /// Counts attempts; events of an earlier one mean nothing.
        attempt: u64,
    },
    /// The attempt is over, one way or the other.
    EndTransfer,
    /// Attach the devices here and tell the network where the guest is now.
    Announce,
    /// This copy never runs again. The process may answer status requests and exit.
    Halted {
        /// Why.
        reason: HaltReason,
    },
    /// The guest ended and everything it sent has left.
    Ended(EndReason),
    /// Send one [`NodeEvent::Tick`] at this time; replaces the time before.
    WakeAt(HostTime),
    /// For logs and metrics.
    Note(Note),
}

/// Why a connection is no longer used.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum LinkEnd {
    /// It broke.
    #[error("connection lost")]
    Lost,
    /// A rule of the session.
    #[error(transparent)]
    Session(#[from] CloseReason),
    /// The peer said nothing for too long.
    #[error("peer silent")]
    Silent,
    /// The state of this side has no use for a peer.
    #[error("no peer wanted while {0}")]
    NotWanted(&'static str),
}

/// Why a side halted for good.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HaltReason {
    /// The arbiter gave the generation to somebody else.
    #[error("the arbiter gave generation {generation} to {holder}")]
    Refused {
        /// The current generation.
        generation: u64,
        /// Who holds it.
        holder: String,
    },
    /// The primary runs something else.
    #[error("the primary refused us: {item} is {theirs} here but {ours} there")]
    PeerRefused {
        /// What differs.
        item: String,
        /// The primary's value.
        ours: String,
        /// Our value.
        theirs: String,
    },
    /// This host has seen a newer generation than the one after which this side was to start.
    #[error("told to start after generation {after}, but this host has seen generation {newest}")]
    OlderGeneration {
        /// What the operator said.
        after: u64,
        /// What this host has seen.
        newest: u64,
    },
    /// This copy differs from the log.
    #[error("this copy diverged: {0}")]
    Diverged(String),
    /// The primary was lost before the log's first record came.
    #[error("the primary was lost before the log began")]
    NothingReceived,
    /// The host cannot run the guest.
    #[error("the host failed: {0}")]
    HostFailed(String),
    /// An operator's decision.
    #[error("stopped by the operator")]
    Stopped,
    /// An operator's decision: the backup goes live with everything this side had.
    #[error("handed over to the backup")]
    HandedOver,
}

/// Something worth a line in the log or a counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Note {
    /// A claim was sent.
    Claiming {
        /// The generation asked for.
        new: u64,
        /// 1 for the first request.
        attempt: u32,
    },
    /// A claim is undecided.
    ArbiterSilent {
        /// What happened.
        cause: String,
        /// Until the next request.
        pause_ns: u64,
    },
    /// A claim was granted.
    Granted {
        /// The generation.
        generation: u64,
    },
    /// An arbiter's answer to nothing we asked.
    StrayAnswer,
    /// A backup was welcomed.
    BackupWelcomed {
        /// Its name.
        holder: String,
        /// What the pair runs on.
        clock: ClockAgreement,
    },
    /// A new backup was welcomed; the guest's state is on its way to it.
    TransferBegins {
        /// Its name.
        holder: String,
    },
    /// The new backup was sent everything and protects the guest.
    TransferDone {
        /// First index that is not part of the state.
        next: LogIndex,
        /// Bytes sent.
        bytes: u64,
    },
    /// The guest goes on without the new backup.
    TransferFailed(String),
    /// The guest rests and is handed over.
    HandingOver,
    /// A primary welcomed us.
    Following {
        /// Its name.
        holder: String,
        /// Its generation.
        generation: u64,
        /// What the pair runs on.
        clock: ClockAgreement,
    },
    /// The peer is suspected.
    PeerSuspected {
        /// How long nothing was heard.
        silence_ns: u64,
    },
    /// The peer was heard again before anything was claimed.
    PeerRecovered,
    /// The connection ended.
    LinkLost(LinkEnd),
    /// The peer ended the session.
    PeerSaid(Goodbye),
    /// This process did not run for a while.
    Stalled {
        /// How long.
        gap_ns: u64,
    },
    /// Everything received was replayed.
    Drained {
        /// First index not in the log.
        next: LogIndex,
    },
    /// Going on as the only one.
    Alone {
        /// Outputs that had waited and left now.
        released: usize,
    },
    /// The engine records here from now on.
    Recording,
}
