//! What a journal says. These types are the file's, and nothing else's.
//!
//! Times are microseconds: `at_us` since the run began on this side, `*_after_us` since the interval did.

#![forbid(unsafe_code)]

use super::histogram::Histogram;
use serde::{Deserialize, Serialize};

/// Acknowledgements that an interval lists.
pub const ACKS_MAX: usize = 16;
/// Releases that an interval lists.
pub const RELEASES_MAX: usize = 64;
/// Characters of a text; longer ones are cut.
pub const TEXT_CHARS_MAX: usize = 200;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Host time at which it was made.
    pub at_us: u64,
    /// What it says.
    pub what: What,
}

/// What an entry says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// Whose journal this is. First in each file.
    Begun(Begun),
    /// What this side is from now on. Repeated in each file.
    Role(Standing),
    /// Something happened.
    Happened(Happening),
    /// Counts and samples of the time before this entry.
    Interval(Interval),
}

/// Whose journal it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Name of the VM.
    pub vm: String,
    /// Name of this side at the arbiter.
    pub holder: String,
    /// Wall clock at `at_us` 0, microseconds since 1970.
    pub wall_clock_us: u64,
}

/// What one side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Its role.
    pub role: Role,
    /// The generation held or followed; 0 before any.
    pub generation: u64,
    /// First index that was not in its log then.
    pub next: u64,
    /// Guest time of the record before that.
    pub guest_time_us: u64,
    /// When that was seen, in host time as `at_us`.
    pub seen_us: u64,
}

/// Roles of a side; their meaning is in `vmm/src/replication/role.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are those of the roles")]
pub enum Role {
    Idle,
    Starting,
    Awaiting,
    Protected,
    Contested,
    Solo,
    Joining,
    Following,
    Finishing,
    GoingLive,
    Ended,
    Halted,
}

impl Role {
    /// Whether the guest ran here and its output could leave, or waited only for the arbiter.
    #[must_use]
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Protected | Self::Contested | Self::Solo)
    }

    /// For people.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Starting => "starting",
            Self::Awaiting => "awaiting a backup",
            Self::Protected => "primary",
            Self::Contested => "contested",
            Self::Solo => "solo",
            Self::Joining => "joining",
            Self::Following => "backup",
            Self::Finishing => "finishing the log",
            Self::GoingLive => "going live",
            Self::Ended => "ended",
            Self::Halted => "halted",
        }
    }
}

/// What can happen to a side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Happening {
    /// The other side is known by name.
    Paired {
        /// Its name.
        peer: String,
    },
    /// The peer is suspected.
    Suspected {
        /// How long nothing was heard.
        silence_us: u64,
    },
    /// The peer was heard again before anything was claimed.
    Recovered,
    /// The connection ended.
    LinkLost {
        /// Why.
        cause: String,
    },
    /// Everything received was replayed.
    Drained {
        /// First index not in the log.
        next: u64,
    },
    /// The arbiter was asked.
    Claiming {
        /// For this generation.
        generation: u64,
        /// 1 for the first request.
        attempt: u32,
    },
    /// The arbiter did not decide.
    ArbiterSilent {
        /// What happened instead.
        cause: String,
    },
    /// The arbiter granted the claim.
    Granted {
        /// The generation.
        generation: u64,
    },
    /// This side goes on as the only one.
    Alone {
        /// Outputs that had waited and left now.
        released: u64,
    },
    /// The guest is recorded here from now on.
    Recording,
    /// This process did not run for a while.
    Stalled {
        /// How long.
        gap_us: u64,
    },
    /// The guest's state is on its way to a new backup.
    TransferBegun {
        /// Counts attempts.
        attempt: u64,
    },
    /// The new backup protects the guest.
    TransferDone {
        /// First index that is not part of the state.
        next: u64,
        /// Bytes sent.
        bytes: u64,
    },
    /// The guest goes on without the new backup.
    TransferFailed {
        /// Why.
        cause: String,
    },
    /// The guest rests and is handed over.
    HandingOver,
    /// The peer ended the session.
    PeerSaid {
        /// What.
        goodbye: String,
    },
    /// This copy never runs again.
    Halted {
        /// Why.
        cause: String,
    },
    /// The guest ended.
    Ended {
        /// How.
        reason: String,
    },
}

/// What was counted since the interval before it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// Its length; it ends at the entry's time.
    pub us: u64,
    /// At its end: first index not in the log here.
    pub next: u64,
    /// At its end: guest time of the record before that.
    pub guest_time_us: u64,
    /// When that was seen, in host time as `at_us`.
    pub seen_us: u64,
    /// At its end: first index not acknowledged as received; on a backup, not received.
    pub received: u64,
    /// At its end: first index not known to be replayed by the backup.
    pub replayed: u64,
    /// Primary: from a record's making to its acknowledgement; of a sample of the records.
    pub acknowledged: Histogram,
    /// From a record's making (primary) or arrival (backup) to its replay, as far as this side knows; of a
    /// sample of the records: the execution lag.
    pub lag: Histogram,
    /// Primary: from an output's making to its release; of all outputs that waited for acknowledgement.
    pub gate: Histogram,
    /// Some of the acknowledgements, the last among them.
    pub acks: Vec<Ack>,
    /// Some of the releases; those that waited longest.
    pub releases: Vec<Release>,
    /// Longest time without a word of the peer that ended in the interval.
    pub unheard_us: u64,
    /// Longest time without output leaving that ended in the interval.
    pub unreleased_us: u64,
}

/// An acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// When it came.
    pub after_us: u64,
    /// The backup has every record below.
    pub received: u64,
    /// And has replayed every record below.
    pub replayed: u64,
}

/// An output that left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// When it left.
    pub after_us: u64,
    /// Index of its Output record.
    pub index: u64,
    /// How long it had waited.
    pub waited_us: u64,
}

/// `text`, cut to what an entry may hold.
#[must_use]
pub fn text(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}
