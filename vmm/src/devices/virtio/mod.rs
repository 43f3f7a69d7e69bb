//! Virtio 1.2 devices behind the memory-mapped transport.
//!
//! [`mmio::VirtioMmio`] is the bus device: registers, feature negotiation, status, interrupts. What
//! a kind of device does with its queues is a [`Function`], which sees the rings and the
//! interrupt only through [`transport::Transport`]. Chains are walked and checked in [`chain`] before
//! anything looks at their bytes.

#![forbid(unsafe_code)]

pub mod chain;
pub mod mmio;
pub mod net;
pub mod ring;
pub mod rng;
pub mod transport;

#[cfg(test)]
pub(crate) mod mock_driver;

use super::{DeviceContext, RestoreError};
use transport::Transport;

/// Feature bit 32: virtio 1.0 and later. All our devices insist on it.
pub const FEATURE_VERSION_1: u64 = 1 << 32;

/// What distinguishes one kind of virtio device from another.
pub trait Function {
    /// Saved state.
    type State: Clone + PartialEq + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned;

    /// Short name for logs and digests.
    fn name(&self) -> &'static str;

    /// Virtio device ID (section 5).
    fn device_id(&self) -> u32;

    /// Feature bits offered beside [`FEATURE_VERSION_1`].
    fn features(&self) -> u64;

    /// Largest size of each queue, a power of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// Configuration space.
    fn config(&self) -> &[u8];

    /// The driver notified `queue`, which exists and is ready.
    fn notify(&mut self, queue: usize, transport: &mut Transport, ctx: &mut DeviceContext<'_>);

    /// The driver reset the device.
    fn reset(&mut self);

    /// All state that the transport does not hold.
    fn save(&self) -> Self::State;

    /// Replaces it.
    ///
    /// # Errors
    /// When `state` could not have come from `save`.
    fn restore(&mut self, state: &Self::State) -> Result<(), RestoreError>;
}
