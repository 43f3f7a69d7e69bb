//! The shapes on the wire: what a batch and a record's body consist of.
//!
//! Texts are borrowed from the payload. Field order is the byte order; a change here is a new
//! [`crate::frame::FRAME_VERSION`]. [`ClockKind`], [`Control`], [`EndReason`] and `Goodbye` are
//! small closed enumerations and travel as they are: the golden bytes fix their numbers.

#![forbid(unsafe_code)]

use super::error::{DecodeError, Fault};
use super::leaf::Input;
use crate::record::{
    ClockKind, Control, Digests, EndReason, Output, OutputDevice, RecordBody, Start, limits,
};
use serde::{Deserialize, Serialize};

/// Kinds of record, as `log stat` counts them and as the low half of a record's tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// [`RecordBody::Start`]
    Start = 0,
    /// [`RecordBody::Timer`]
    Timer = 1,
    /// [`RecordBody::Console`]
    Console = 2,
    /// [`RecordBody::Packet`]
    Packet = 3,
    /// [`RecordBody::Entropy`]
    Entropy = 4,
    /// [`RecordBody::Output`]
    Output = 5,
    /// [`RecordBody::Mark`]
    Mark = 6,
    /// [`RecordBody::Control`]
    Control = 7,
    /// [`RecordBody::End`]
    End = 8,
    /// [`RecordBody::Progress`]
    Progress = 9,
    /// [`RecordBody::State`]
    State = 10,
}

impl RecordKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Start,
        Self::Timer,
        Self::Console,
        Self::Packet,
        Self::Entropy,
        Self::Output,
        Self::Mark,
        Self::Control,
        Self::End,
        Self::Progress,
        Self::State,
    ];

    /// The kind of `body`.
    #[must_use]
    pub const fn of(body: &RecordBody) -> Self {
        match body {
            RecordBody::Start(_) => Self::Start,
            RecordBody::Timer => Self::Timer,
            RecordBody::Console(_) => Self::Console,
            RecordBody::Packet { .. } => Self::Packet,
            RecordBody::Entropy(_) => Self::Entropy,
            RecordBody::Output(_) => Self::Output,
            RecordBody::Mark(_) => Self::Mark,
            RecordBody::Control(_) => Self::Control,
            RecordBody::End(_) => Self::End,
            RecordBody::Progress => Self::Progress,
            RecordBody::State { .. } => Self::State,
        }
    }

    /// Its name in lower case, as printed and as a metric label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Timer => "timer",
            Self::Console => "console",
            Self::Packet => "packet",
            Self::Entropy => "entropy",
            Self::Output => "output",
            Self::Mark => "mark",
            Self::Control => "control",
            Self::End => "end",
            Self::Progress => "progress",
            Self::State => "state",
        }
    }

    pub(super) fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.get(usize::from(tag & TAG_KIND)).copied()
    }

    /// Whether the record carries a difference of guest time; the other kinds inherit the time.
    #[must_use]
    pub const fn moves_time(self) -> bool {
        !matches!(
            self,
            Self::Output | Self::Mark | Self::Progress | Self::End | Self::State
        )
    }
}

/// Bits of a record's tag that are its [`RecordKind`].
pub(super) const TAG_KIND: u8 = 0x0F;
/// Tag bit: an exit point whose branch count moved carries the difference.
pub(super) const TAG_BRANCHES: u8 = 0x10;
/// Tag bit: a Mark with a digest of guest memory.
pub(super) const TAG_MEMORY: u8 = 0x20;
/// Tag bit: the last piece of a State.
pub(super) const TAG_LAST: u8 = 0x40;

/// Where a batch begins: index, point and time of its first record, whose own differences are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WireBase {
    pub(super) index: u64,
    pub(super) exits: u64,
    pub(super) branches: u64,
    pub(super) time_us: u64,
}

/// Body of a Start record.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WireStart<'a> {
    vm: &'a str,
    generation: u64,
    clock: ClockKind,
    cpu_model: &'a str,
    memory_bytes: u64,
    kernel_sha256: [u8; 32],
    initramfs_sha256: [u8; 32],
    cmdline: &'a str,
    mac: [u8; 6],
    wall_clock_s: u64,
    rng_seed: [u8; 32],
}

impl<'a> WireStart<'a> {
    pub(super) fn from_live(start: &'a Start) -> Result<Self, Fault> {
        let wire = Self {
            vm: &start.vm,
            generation: start.generation,
            clock: start.clock,
            cpu_model: &start.cpu_model,
            memory_bytes: start.memory_bytes,
            kernel_sha256: start.kernel_sha256,
            initramfs_sha256: start.initramfs_sha256,
            cmdline: &start.cmdline,
            mac: start.mac,
            wall_clock_s: start.wall_clock_s,
            rng_seed: start.rng_seed,
        };
        wire.check()?;
        Ok(wire)
    }

    pub(super) fn into_live(self) -> Result<Start, Fault> {
        self.check()?;
        Ok(Start {
            vm: self.vm.to_owned(),
            generation: self.generation,
            clock: self.clock,
            cpu_model: self.cpu_model.to_owned(),
            memory_bytes: self.memory_bytes,
            kernel_sha256: self.kernel_sha256,
            initramfs_sha256: self.initramfs_sha256,
            cmdline: self.cmdline.to_owned(),
            mac: self.mac,
            wall_clock_s: self.wall_clock_s,
            rng_seed: self.rng_seed,
        })
    }

    fn check(&self) -> Result<(), Fault> {
        check_text("vm", self.vm)?;
        check_text("cpu_model", self.cpu_model)?;
        check_text("cmdline", self.cmdline)
    }
}

/// Refuses a text longer than [`limits::TEXT_BYTES_MAX`].
pub(super) fn check_text(what: &'static str, text: &str) -> Result<(), Fault> {
    check_length(what, text.len(), limits::TEXT_BYTES_MAX)
}

/// Refuses `what` when its `length` is more than `max` bytes.
pub(super) fn check_length(what: &'static str, length: usize, max: usize) -> Result<(), Fault> {
    if length > max {
        return Err(Fault::TooLong {
            what,
            length: length as u64,
            max,
        });
    }
    Ok(())
}

/// Body of an Output record. The digest is raw: as a number it would mostly take a byte more.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct WireOutput {
    /// 0 is the console, `n + 1` network device `n`.
    device: u16,
    length: u32,
    digest: [u8; 4],
}

impl WireOutput {
    pub(super) fn from_live(output: Output) -> Self {
        let device = match output.device {
            OutputDevice::Console => 0,
            OutputDevice::Network(device) => u16::from(device) + 1,
        };
        Self {
            device,
            length: output.length,
            digest: output.digest.to_le_bytes(),
        }
    }

    /// Reads one as bincode does, but faster: a busy log has many.
    #[inline]
    pub(super) fn read(input: &mut Input<'_>) -> Result<Self, DecodeError> {
        let offset = input.offset();
        if let Some(output) = Self::read_sound(input) {
            return Ok(output);
        }
        input.back_to(offset);
        input.leaf("output")
    }

    fn read_sound(input: &mut Input<'_>) -> Option<Self> {
        Some(Self {
            device: u16::try_from(input.number()?).ok()?,
            length: u32::try_from(input.number()?).ok()?,
            digest: input.array("output").ok()?,
        })
    }

    pub(super) fn into_live(self) -> Result<Output, Fault> {
        let device = match self.device {
            0 => OutputDevice::Console,
            network => u8::try_from(network - 1)
                .map(OutputDevice::Network)
                .map_err(|_| Fault::Malformed("output device"))?,
        };
        Ok(Output {
            device,
            length: self.length,
            digest: u32::from_le_bytes(self.digest),
        })
    }
}

/// Body of a Mark without the memory digest; digests are raw.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct WireDigests {
    registers: [u8; 8],
    devices: [u8; 8],
}

impl WireDigests {
    pub(super) const fn from_live(digests: &Digests) -> Self {
        Self {
            registers: digests.registers.to_le_bytes(),
            devices: digests.devices.to_le_bytes(),
        }
    }

    pub(super) fn into_live(self, memory: Option<[u8; 8]>) -> Digests {
        Digests {
            registers: u64::from_le_bytes(self.registers),
            devices: u64::from_le_bytes(self.devices),
            memory: memory.map(u64::from_le_bytes),
        }
    }
}

/// Body of a Control record.
pub(super) type WireControl = Control;
/// Body of an End record.
pub(super) type WireEnd = EndReason;
