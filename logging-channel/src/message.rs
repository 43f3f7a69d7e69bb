//! What the two sides of a logging channel say to each other.
//!
//! One message is one frame. `Log` carries records; everything else is small. The byte form is
//! `docs/formats/log.md`; the rules of who says what when are `session`.

#![forbid(unsafe_code)]

use crate::clock_agreement::ClockOffer;
use crate::record::{LogIndex, Record};
use serde::{Deserialize, Serialize};

/// Version of the channel's protocol; both sides must have the same.
pub const PROTOCOL_VERSION: u32 = 3;

/// A message on the logging channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Message {
    /// Backup to primary, first: who I am and what I would run.
    Hello(Hello),
    /// Primary to backup: accepted; log records follow.
    Welcome(Welcome),
    /// Primary to backup: not accepted; the connection closes.
    Refused(Refused),
    /// Primary to backup: consecutive log records.
    Log(Vec<Record>),
    /// Backup to primary.
    Ack(Ack),
    /// Both ways, at a fixed interval.
    Heartbeat(Heartbeat),
    /// Both ways: an orderly end; silence after it is not a failure.
    Goodbye(Goodbye),
    /// Primary to backup: a piece of the guest's state, opaque here; see `vmm::snapshot`.
    Part(Vec<u8>),
    /// Primary to backup: the state is complete, the log goes on from here.
    Complete(Complete),
    /// Backup to primary: how much of the state it has taken in.
    Taken(Taken),
}

/// Longest piece of a state transfer.
pub const PART_BYTES_MAX: usize = 512 << 10;

/// Everything that must match before a guest may be replicated.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The VM's name.
    pub vm: String,
    /// Guest CPU model and revision.
    pub cpu_model: String,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// SHA-256 of the kernel image.
    pub kernel_sha256: [u8; 32],
    /// SHA-256 of the initramfs.
    pub initramfs_sha256: [u8; 32],
    /// The whole kernel command line.
    pub cmdline: String,
    /// MAC address of network device 0.
    pub mac: [u8; 6],
}

/// The backup introduces itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub protocol: u32,
    /// The backup's name, as it would claim at the arbiter.
    pub holder: String,
    /// What it would run.
    pub identity: Identity,
    /// What it can run it on.
    pub clocks: ClockOffer,
}

/// The primary accepts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Welcome {
    /// The primary's name.
    pub holder: String,
    /// Generation under which the primary runs.
    pub generation: u64,
    /// What follows.
    pub begins: Begins,
    /// What the primary can run on; with the Hello's this settles the clock.
    pub clocks: ClockOffer,
}

/// How a backup comes by the guest's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Begins {
    /// It builds the machine itself; the log follows from its Start record.
    WithStart,
    /// The guest runs already: its state follows, then the log from some later index.
    WithTransfer,
}

/// The end of a state transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Complete {
    /// Index of the first record that is not part of the state.
    pub first_index: LogIndex,
    /// Bytes of all parts, so that none is missing.
    pub bytes: u64,
}

/// Progress of a state transfer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Taken {
    /// Bytes of the parts that are in the backup's guest, cumulative.
    pub bytes: u64,
}

/// The primary refuses, naming the first item that differs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Refused {
    /// What differs, such as `kernel_sha256` or `protocol`.
    pub item: String,
    /// The primary's value.
    pub ours: String,
    /// The backup's value.
    pub theirs: String,
}

/// The backup acknowledges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ack {
    /// Every record below this index is in the backup's memory.
    pub received: LogIndex,
    /// Every record below this index has been replayed.
    pub replayed: LogIndex,
    /// Synchronous exits replayed, for the execution lag.
    pub replayed_exits: u64,
}

/// Still here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Heartbeat {
    /// From the primary: every output below this index was released. Zero from the backup.
    pub released: LogIndex,
}

/// An orderly end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Goodbye {
    /// The guest ended; the End record was sent.
    GuestEnded,
    /// The sender was told to stop and will not run the guest again.
    Stopped,
    /// The sender's copy differs; it will never go live from it.
    Diverged,
    /// The primary hands the guest over: it rests at the log's end and never runs there again.
    HandedOver,
}
