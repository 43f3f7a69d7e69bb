//! User-space devices: everything the guest reaches through port or memory-mapped I/O.
//!
//! Devices never ask, they are told: guest time and input arrive through [`DeviceContext`] and
//! typed methods that only the recorder or the replayer call; output leaves as [`Effect`]s. A
//! device is a pure function of its state, the access and the context, so that the backup's copy
//! stays identical. A bus device sees offsets, never where it is mapped.
//!
//! What a guest does wrong is answered as the chip's datasheet says and counted in [`Misuse`];
//! it is never a Rust error and never a panic.

#![forbid(unsafe_code)]

pub mod calendar;
#[cfg(test)]
pub(crate) mod conformance;
pub mod digest;
pub mod irq;
pub mod pic;
pub mod pic_chip;
pub mod pit;
pub mod pit_counter;
pub mod ram;
pub mod reset;
pub mod rtc;
pub mod serial;
pub mod virtio;

use self::ram::GuestRam;
use irq::IrqLines;
use logging_channel::host_time::GuestTime;

/// What leaves a device during one exit, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// One byte out of the serial port.
    Console(u8),
    /// An Ethernet frame out of network device `device`.
    Transmit {
        /// Which network device, 0-based.
        device: u8,
        /// The frame, without any virtio header.
        bytes: Vec<u8>,
    },
    /// The guest wants this many random bytes (virtio-rng); answered by an Entropy record.
    WantEntropy(u32),
    /// The guest asked for a reset (keyboard controller or port 0xcf9).
    Reset,
    /// The guest asked to be powered off.
    PowerOff,
}

/// Counts of what the guest did wrong; part of device state, so both sides must agree on them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Misuse {
    /// Accesses of a size or offset the device does not have.
    pub bad_access: u64,
    /// Queue addresses or indices outside guest memory, or misaligned.
    pub bad_queue: u64,
    /// Descriptor chains with loops, bad addresses, or wrong direction.
    pub bad_chain: u64,
    /// Frames too long or too short to send.
    pub bad_frame: u64,
    /// Received frames dropped because the guest offered no room.
    pub dropped_receive: u64,
}

/// What a device may see and do during one access or one input.
pub struct DeviceContext<'a> {
    /// Guest time, as of the last record.
    pub now: GuestTime,
    /// Interrupt lines into the 8259 pair.
    pub irq: &'a mut IrqLines,
    /// Output, in order.
    pub effects: &'a mut Vec<Effect>,
    /// Guest memory, for devices that do DMA.
    pub memory: &'a GuestRam,
}

/// A device on the port or memory bus.
pub trait Device {
    /// Saved state: plain data, versioned by the snapshot format, without host resources.
    type State: Clone + PartialEq + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned;

    /// Short name for logs and digests, such as `serial`.
    fn name(&self) -> &'static str;

    /// The guest reads `data.len()` bytes (1, 2, 4 or 8) at `offset`. Every byte must be written.
    fn read(&mut self, offset: u64, data: &mut [u8], ctx: &mut DeviceContext<'_>);

    /// The guest writes `data` (1, 2, 4 or 8 bytes) at `offset`.
    fn write(&mut self, offset: u64, data: &[u8], ctx: &mut DeviceContext<'_>);

    /// All state the guest could ever notice.
    fn save(&self) -> Self::State;

    /// Replaces all state. Does not raise interrupts: line levels are restored by `IrqLines`.
    ///
    /// # Errors
    /// When `state` could not have come from `save`: names the field.
    fn restore(&mut self, state: &Self::State) -> Result<(), RestoreError>;

    /// What the guest has done wrong so far.
    fn misuse(&self) -> Misuse {
        Misuse::default()
    }
}

/// A device that fires at a guest time of its own.
pub trait TimedDevice {
    /// The earliest guest time at which it next does something, if any.
    fn next_deadline(&self) -> Option<GuestTime>;

    /// Guest time is now `ctx.now`: do whatever is due, each deadline at most once.
    fn advance(&mut self, ctx: &mut DeviceContext<'_>);
}

/// Saved state that no device could have produced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{device}: saved field {field} is out of range: {found}")]
pub struct RestoreError {
    /// Which device.
    pub device: &'static str,
    /// Which field.
    pub field: &'static str,
    /// What it held.
    pub found: String,
}

/// Offsets of the bytes of an access, for devices whose registers are bytes. The end of the offset
/// space, which no device reaches, repeats rather than wraps.
fn bytes_from(offset: u64) -> impl Iterator<Item = u64> {
    (0..).map(move |at| offset.saturating_add(at))
}

/// Adds to a count of misuse, which stays at its largest value rather than wraps.
const fn count(counter: &mut u64, more: u64) {
    *counter = counter.saturating_add(more);
}
