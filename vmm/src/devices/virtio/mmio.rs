//! The memory-mapped transport's registers (virtio 1.2 section 4.2.2), version 2 only.
//!
//! Registers are 32 bits wide and aligned; only the configuration space, from 0x100, may be read in
//! smaller pieces. Anything else reads as zero, is ignored when written, and counts as a bad access.
//!
//! Left out: shared memory regions (all absent), notification data, queue reset, legacy registers.

#![forbid(unsafe_code)]

use super::Function;
use super::transport::{Transport, TransportState};
use crate::devices::{Device, DeviceContext, Misuse, RestoreError, bytes_from, count};
use serde::{Deserialize, Serialize};

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"UNST");
const CONFIG_SPACE: u64 = 0x100;
/// Reads of the shared memory registers: length and base of a region that is not there.
const NO_REGION: u32 = u32::MAX;

/// Saved state of a virtio device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioState<S> {
    /// What all virtio devices have.
    pub transport: TransportState,
    /// What this kind has.
    pub function: S,
}

/// A virtio device on the memory bus.
#[derive(Debug)]
pub struct VirtioMmio<F> {
    pub(super) transport: Transport,
    pub(super) function: F,
}

impl<F: Function> VirtioMmio<F> {
    /// A device after power-on that drives `irq_line`.
    #[must_use]
    pub fn new(function: F, irq_line: u8) -> Self {
        Self {
            transport: Transport::new(irq_line, function.features(), function.queue_sizes()),
            function,
        }
    }

    fn read_register(&mut self, offset: u64) -> Option<u32> {
        let t = &mut self.transport;
        Some(match offset {
            0x000 => MAGIC,
            0x004 => VERSION,
            0x008 => self.function.device_id(),
            0x00c => VENDOR,
            0x010 => t.selected_device_features(),
            0x034 => t.selected_ring().map_or(0, |r| u32::from(r.size_max())),
            0x044 => t.selected_ring().map_or(0, |r| u32::from(r.is_ready())),
            0x060 => t.registers.interrupt_status,
            0x070 => t.registers.status,
            0x0b0..=0x0bc => NO_REGION,
            // Configuration never changes after power-on.
            0x0fc => 0,
            _ => return None,
        })
    }

    fn write_register(&mut self, offset: u64, value: u32, ctx: &mut DeviceContext<'_>) {
        let t = &mut self.transport;
        match offset {
            0x014 => t.registers.device_features_select = value,
            0x020 => t.accept_features(value),
            0x024 => t.registers.driver_features_select = value,
            0x030 => t.registers.queue_select = value,
            0x038 | 0x080..=0x0a4 => self.set_up_queue(offset, value),
            0x044 => self.write_queue_ready(value, ctx),
            0x050 => self.notify(value, ctx),
            0x064 => t.acknowledge_interrupt(value, ctx),
            0x070 if value == 0 => {
                t.reset(ctx);
                self.function.reset();
            }
            0x070 => t.write_status(value, ctx),
            // Selecting a shared memory region: there is none.
            0x0ac => {}
            _ => count(&mut t.misuse_mut().bad_access, 1),
        }
    }

    /// Size and addresses of the selected queue, only while it is being set up.
    fn set_up_queue(&mut self, offset: u64, value: u32) {
        let open = self.transport.queues_are_open();
        let ring = self.transport.selected_ring();
        let Some(ring) = ring.filter(|ring| open && !ring.is_ready()) else {
            count(&mut self.transport.misuse_mut().bad_queue, 1);
            return;
        };
        let registers = ring.registers_mut();
        match offset {
            0x038 => registers.size = value,
            0x080 => set_low(&mut registers.descriptors, value),
            0x084 => set_high(&mut registers.descriptors, value),
            0x090 => set_low(&mut registers.available, value),
            0x094 => set_high(&mut registers.available, value),
            0x0a0 => set_low(&mut registers.used, value),
            0x0a4 => set_high(&mut registers.used, value),
            _ => count(&mut self.transport.misuse_mut().bad_access, 1),
        }
    }

    fn write_queue_ready(&mut self, value: u32, ctx: &mut DeviceContext<'_>) {
        let open = self.transport.queues_are_open();
        let Some(ring) = self.transport.selected_ring() else {
            count(&mut self.transport.misuse_mut().bad_queue, 1);
            return;
        };
        if value == 0 {
            ring.disable();
        } else if !open || ring.is_ready() {
            count(&mut self.transport.misuse_mut().bad_queue, 1);
        } else if let Err(fault) = ring.enable(ctx.memory) {
            self.transport.fail(fault, ctx);
        }
    }

    fn notify(&mut self, queue: u32, ctx: &mut DeviceContext<'_>) {
        let index = queue as usize;
        if index >= self.transport.ring_count() {
            count(&mut self.transport.misuse_mut().bad_queue, 1);
        } else if self.transport.is_live() && self.transport.ring(index).is_ready() {
            self.function.notify(index, &mut self.transport, ctx);
        }
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        let config = self.function.config();
        for (at, byte) in bytes_from(offset).zip(data) {
            *byte = usize::try_from(at)
                .ok()
                .and_then(|at| config.get(at))
                .copied()
                .unwrap_or(0);
        }
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address >> 32 << 32 | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | u64::from(value) << 32;
}

impl<F: Function> Device for VirtioMmio<F> {
    type State = VirtioState<F::State>;

    fn name(&self) -> &'static str {
        self.function.name()
    }

    fn read(&mut self, offset: u64, data: &mut [u8], _ctx: &mut DeviceContext<'_>) {
        if let Some(in_config) = offset.checked_sub(CONFIG_SPACE) {
            return self.read_config(in_config, data);
        }
        data.fill(0);
        let value = if data.len() == 4 {
            self.read_register(offset)
        } else {
            None
        };
        match value {
            Some(value) => data.copy_from_slice(&value.to_le_bytes()),
            None => count(&mut self.transport.misuse_mut().bad_access, 1),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8], ctx: &mut DeviceContext<'_>) {
        match <[u8; 4]>::try_from(data) {
            Ok(bytes) if offset < CONFIG_SPACE => {
                self.write_register(offset, u32::from_le_bytes(bytes), ctx);
            }
            // No device of ours has configuration that the driver may write.
            _ => count(&mut self.transport.misuse_mut().bad_access, 1),
        }
    }

    fn save(&self) -> Self::State {
        VirtioState {
            transport: self.transport.save(),
            function: self.function.save(),
        }
    }

    fn restore(&mut self, state: &Self::State) -> Result<(), RestoreError> {
        self.transport.restore(&state.transport)?;
        self.function.restore(&state.function)
    }

    fn misuse(&self) -> Misuse {
        self.transport.registers.misuse
    }
}
