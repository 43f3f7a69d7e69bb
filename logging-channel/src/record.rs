//! Log records: what happened to the guest that it could not have computed by itself, and where.
//!
//! A record's **point** says where in guest execution it applies, its **guest time** what the
//! guest's clock reads from then on. Records at one point apply in index order. The bytes are
//! `docs/formats/log.md`, made by `codec`; these types are the plain in-memory form.
//!
//! Invariants, checked by the codec in both directions: indices are consecutive; points never
//! decrease; guest time never decreases and is a whole number of microseconds.

#![forbid(unsafe_code)]

use crate::execution_point::ExecutionPoint;
use crate::host_time::GuestTime;
use serde::{Deserialize, Serialize};

/// Position of a record in the log of one VM; the Start record has index 0.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct LogIndex(pub u64);

impl LogIndex {
    /// The index after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// One entry of the event log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Record {
    /// Position in the log.
    pub index: LogIndex,
    /// Where in guest execution it applies.
    pub point: ExecutionPoint,
    /// The guest's clock from this record on.
    pub guest_time: GuestTime,
    /// What happened.
    pub body: RecordBody,
}

/// What happened at a record's point.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RecordBody {
    /// The first record: everything both sides must agree on to build the same initial machine.
    Start(Box<Start>),
    /// Guest time moved on; timers that are now due fire.
    Timer,
    /// Bytes typed at the console.
    Console(Vec<u8>),
    /// A frame arrived for network device `device`.
    Packet {
        /// Which network device, 0-based.
        device: u8,
        /// The Ethernet frame.
        bytes: Vec<u8>,
    },
    /// Random bytes for the guest's virtio-rng.
    Entropy(Vec<u8>),
    /// The guest produced output here. Written before the output may be released.
    Output(Output),
    /// Every record at or before this point is in the log, unless the guest is halted here; what
    /// the state was. The backup compares it and goes on when a later record is there.
    Mark(Digests),
    /// The guest has come to this point between exits, and nothing happens at it: so far the backup may run
    /// too. A Mark would have it land here exactly, which costs time.
    Progress,
    /// An operator's or the monitor's command.
    Control(Control),
    /// The guest ended at this point; nothing follows.
    End(EndReason),
    /// A piece of the state that the guest reached from this point without an exit (exit clock): it
    /// is loaded instead of replayed. Means nothing until the last piece is there.
    State {
        /// The last of them: the guest now is at a new point, one exit further.
        last: bool,
        /// An item of `docs/formats/snapshot.md`.
        bytes: Vec<u8>,
    },
}

/// Sizes of everything in a record that a peer could inflate.
pub mod limits {
    /// Longest network frame: 64 KiB of payload and an Ethernet header with one VLAN tag.
    pub const PACKET_BYTES_MAX: usize = 65_536 + 18;
    /// Longest console input or entropy payload of one record.
    pub const INPUT_BYTES_MAX: usize = 4_096;
    /// Longest piece of a state in one record.
    pub const STATE_BYTES_MAX: usize = 96 * 1024;
    /// Longest text in a Start record (names, command line).
    pub const TEXT_BYTES_MAX: usize = 4_096;
    /// Longest encoded record; the codec refuses more before allocating.
    pub const RECORD_BYTES_MAX: usize = 128 * 1024;
}

/// Identity and initial conditions of a recorded execution.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Start {
    /// The VM's name, the arbiter's key.
    pub vm: String,
    /// Generation under which recording began.
    pub generation: u64,
    /// Execution clock that names the points.
    pub clock: ClockKind,
    /// Name and revision of the fixed guest CPU model.
    pub cpu_model: String,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// SHA-256 of the kernel image.
    pub kernel_sha256: [u8; 32],
    /// SHA-256 of the initramfs; of the empty string when there is none.
    pub initramfs_sha256: [u8; 32],
    /// The whole kernel command line.
    pub cmdline: String,
    /// MAC address of network device 0.
    pub mac: [u8; 6],
    /// Wall-clock seconds since 1970 that the guest reads from its RTC and wall clock at power-on.
    pub wall_clock_s: u64,
    /// Boot seed of the guest's random generator (setup_data RNG seed).
    pub rng_seed: [u8; 32],
}

/// What names execution points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ClockKind {
    /// Synchronous exits only; works on any KVM.
    Exits,
    /// Retired conditional branches between exits; needs a performance counter.
    Branches,
}

impl ClockKind {
    /// Its name in configurations and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exits => "exits",
            Self::Branches => "branches",
        }
    }
}

/// A device that produces externally visible output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OutputDevice {
    /// The serial console.
    Console,
    /// Network device, 0-based.
    Network(u8),
}

/// What an Output record says of the output it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Output {
    /// Which device.
    pub device: OutputDevice,
    /// Length in bytes.
    pub length: u32,
    /// CRC32C of the bytes: the backup's own output must match it.
    pub digest: u32,
}

/// Digests of guest-visible state at a Mark.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digests {
    /// All vCPU registers.
    pub registers: u64,
    /// All devices and the guest clock.
    pub devices: u64,
    /// All guest memory, when verification is on.
    pub memory: Option<u64>,
}

/// Commands that reach the guest's machine through the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Control {
    /// Power the guest off at once.
    PowerOff,
    /// A new generation became live here: the records after this are its own.
    Generation(u64),
    /// The access that the last exit stands for was completed without entering the guest, because
    /// its state was saved here for a new backup or for a file.
    Settle,
}

/// Why a guest's execution ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EndReason {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest halted with interrupts disabled, or shut down through a triple fault.
    Crash,
    /// A Control record ended it.
    Commanded,
}
