//! What every virtio device has: status, negotiated features, queues, interrupt.
//!
//! Rules of section 2.1 (device status) and 3.1 (initialisation). A driver that breaks a queue gets
//! DEVICE_NEEDS_RESET and a configuration change interrupt; from then on the device touches no
//! memory until it is reset.

#![forbid(unsafe_code)]

use super::FEATURE_VERSION_1;
use super::ring::{Ring, RingFault, RingState};
use crate::devices::{DeviceContext, Misuse, RestoreError, count};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config as bits;

const DRIVER_OK: u32 = bits::VIRTIO_CONFIG_S_DRIVER_OK;
const FEATURES_OK: u32 = bits::VIRTIO_CONFIG_S_FEATURES_OK;
const NEEDS_RESET: u32 = bits::VIRTIO_CONFIG_S_NEEDS_RESET;
const FAILED: u32 = bits::VIRTIO_CONFIG_S_FAILED;
const STATUS_VALID: u32 = bits::VIRTIO_CONFIG_S_ACKNOWLEDGE
    | bits::VIRTIO_CONFIG_S_DRIVER
    | DRIVER_OK
    | FEATURES_OK
    | NEEDS_RESET
    | FAILED;

/// Interrupt status bit: buffers were used.
pub const INTERRUPT_USED: u32 = 1;
/// Interrupt status bit: configuration, or the status, changed.
pub const INTERRUPT_CONFIG: u32 = 2;

/// Saved state of the transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Device status field.
    pub status: u32,
    /// Features the driver accepted.
    pub driver_features: u64,
    /// Which half of the device's features is read.
    pub device_features_select: u32,
    /// Which half of the driver's features is written.
    pub driver_features_select: u32,
    /// Which queue the queue registers are of.
    pub queue_select: u32,
    /// Pending interrupt causes.
    pub interrupt_status: u32,
    /// The queues.
    pub rings: Vec<RingState>,
    /// What the guest did wrong.
    pub misuse: Misuse,
}

/// State and rules of one virtio device.
#[derive(Debug)]
pub struct Transport {
    irq_line: u8,
    offered: u64,
    rings: Vec<Ring>,
    /// Everything of the saved state but the rings.
    pub(super) registers: TransportState,
}

impl Transport {
    /// A device after reset that offers `features` and drives `irq_line`.
    #[must_use]
    pub fn new(irq_line: u8, features: u64, queue_sizes: &[u16]) -> Self {
        Self {
            irq_line,
            offered: features | FEATURE_VERSION_1,
            rings: queue_sizes.iter().map(|&size| Ring::new(size)).collect(),
            registers: TransportState {
                status: 0,
                driver_features: 0,
                device_features_select: 0,
                driver_features_select: 0,
                queue_select: 0,
                interrupt_status: 0,
                rings: Vec::new(),
                misuse: Misuse::default(),
            },
        }
    }

    /// Whether the driver has said that it drives the device, and neither side has given up.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.registers.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK
    }

    /// Counts of what the guest did wrong.
    pub const fn misuse_mut(&mut self) -> &mut Misuse {
        &mut self.registers.misuse
    }

    /// Queue `index`, which exists.
    #[must_use]
    pub fn ring(&self, index: usize) -> &Ring {
        &self.rings[index]
    }

    /// Queue `index`, which exists.
    pub fn ring_mut(&mut self, index: usize) -> &mut Ring {
        &mut self.rings[index]
    }

    pub(super) fn ring_count(&self) -> usize {
        self.rings.len()
    }

    /// The queue that the queue registers are of, if there is one.
    pub(super) fn selected_ring(&mut self) -> Option<&mut Ring> {
        self.rings.get_mut(self.registers.queue_select as usize)
    }

    /// The half of the offered features that the driver selected.
    pub(super) fn selected_device_features(&self) -> u32 {
        match self.registers.device_features_select {
            0 => self.offered as u32,
            1 => (self.offered >> 32) as u32,
            _ => 0,
        }
    }

    /// The driver writes half of its features. Too late once it has said FEATURES_OK.
    pub(super) fn accept_features(&mut self, value: u32) {
        let r = &mut self.registers;
        match r.driver_features_select {
            _ if r.status & FEATURES_OK != 0 => count(&mut r.misuse.bad_access, 1),
            0 => r.driver_features = r.driver_features >> 32 << 32 | u64::from(value),
            1 => {
                r.driver_features = r.driver_features & 0xffff_ffff | u64::from(value) << 32;
            }
            _ => count(&mut r.misuse.bad_access, u64::from(value != 0)),
        }
    }

    /// The driver writes the status field, not zero. Bits can only be added; FEATURES_OK does not
    /// stick when the features do not suit; DRIVER_OK out of order breaks the device.
    pub(super) fn write_status(&mut self, value: u32, ctx: &mut DeviceContext<'_>) {
        let current = self.registers.status;
        let mut added = value & !current & STATUS_VALID & !NEEDS_RESET;
        if current & !value & !NEEDS_RESET != 0 || value & !STATUS_VALID != 0 {
            count(&mut self.registers.misuse.bad_access, 1);
        }
        let accepted = self.registers.driver_features;
        let suits = accepted & !self.offered == 0 && accepted & FEATURE_VERSION_1 != 0;
        if added & FEATURES_OK != 0 && !suits {
            added &= !FEATURES_OK;
        }
        let out_of_order = added & DRIVER_OK != 0 && (current | added) & FEATURES_OK == 0;
        self.registers.status |= added;
        if out_of_order {
            count(&mut self.registers.misuse.bad_access, 1);
            self.need_reset(ctx);
        }
    }

    /// Whether the driver may set up queues now.
    pub(super) const fn queues_are_open(&self) -> bool {
        self.registers.status & (FEATURES_OK | DRIVER_OK | NEEDS_RESET) == FEATURES_OK
    }

    /// The driver writes 0 to the status field. Counts of misuse stay.
    pub(super) fn reset(&mut self, ctx: &mut DeviceContext<'_>) {
        for ring in &mut self.rings {
            ring.reset();
        }
        self.registers = TransportState {
            status: 0,
            driver_features: 0,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            interrupt_status: 0,
            rings: Vec::new(),
            misuse: self.registers.misuse,
        };
        self.drive_line(ctx);
    }

    /// The driver broke a queue: counted, and the device needs a reset.
    pub fn fail(&mut self, fault: RingFault, ctx: &mut DeviceContext<'_>) {
        match fault {
            RingFault::Queue => count(&mut self.registers.misuse.bad_queue, 1),
            RingFault::Chain => count(&mut self.registers.misuse.bad_chain, 1),
        }
        self.need_reset(ctx);
    }

    fn need_reset(&mut self, ctx: &mut DeviceContext<'_>) {
        self.registers.status |= NEEDS_RESET;
        if self.registers.status & DRIVER_OK != 0 {
            self.registers.interrupt_status |= INTERRUPT_CONFIG;
            self.drive_line(ctx);
        }
    }

    /// Tells the driver that buffers of queue `index` were used, if it wants to know.
    ///
    /// # Errors
    /// When the available ring cannot be read.
    pub fn interrupt_for(
        &mut self,
        index: usize,
        ctx: &mut DeviceContext<'_>,
    ) -> Result<(), RingFault> {
        if self.rings[index].wants_interrupt(ctx.memory)? {
            self.registers.interrupt_status |= INTERRUPT_USED;
            self.drive_line(ctx);
        }
        Ok(())
    }

    /// InterruptACK.
    pub(super) fn acknowledge_interrupt(&mut self, value: u32, ctx: &mut DeviceContext<'_>) {
        self.registers.interrupt_status &= !value;
        self.drive_line(ctx);
    }

    fn drive_line(&self, ctx: &mut DeviceContext<'_>) {
        ctx.irq
            .set(self.irq_line, self.registers.interrupt_status != 0);
    }

    /// Its state.
    #[must_use]
    pub fn save(&self) -> TransportState {
        TransportState {
            rings: self.rings.iter().map(Ring::save).collect(),
            ..self.registers.clone()
        }
    }

    /// Replaces its state.
    ///
    /// # Errors
    /// Names the field.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        let refuse = |field, found: String| {
            Err(RestoreError {
                device: "virtio",
                field,
                found,
            })
        };
        if state.rings.len() != self.rings.len() {
            return refuse("rings", format!("{} queues", state.rings.len()));
        }
        if state.status & !STATUS_VALID != 0 {
            return refuse("status", format!("{:#x}", state.status));
        }
        if state.interrupt_status & !(INTERRUPT_USED | INTERRUPT_CONFIG) != 0 {
            return refuse("interrupt_status", format!("{:#x}", state.interrupt_status));
        }
        let mut rings: Vec<Ring> = self.rings.iter().map(|r| Ring::new(r.size_max())).collect();
        for (ring, saved) in rings.iter_mut().zip(&state.rings) {
            ring.restore(saved)?;
        }
        self.rings = rings;
        self.registers = TransportState {
            rings: Vec::new(),
            ..state.clone()
        };
        Ok(())
    }
}
