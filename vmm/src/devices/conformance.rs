//! Tests that every device must pass.

use super::irq::IrqLines;
use super::{DeviceContext, Effect};
use logging_channel::host_time::GuestTime;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// What surrounds a device under test.
#[derive(Debug, Clone)]
pub(crate) struct Bench {
    pub(crate) now: GuestTime,
    pub(crate) irq: IrqLines,
    pub(crate) effects: Vec<Effect>,
    pub(crate) memory: GuestMemoryMmap,
}

impl Bench {
    /// Guest memory of the bench in bytes.
    pub(crate) const MEMORY_BYTES: usize = 0x4_0000;

    pub(crate) fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), Self::MEMORY_BYTES)])
            .expect("a small mapping");
        Self {
            now: GuestTime::ZERO,
            irq: IrqLines::default(),
            effects: Vec::new(),
            memory,
        }
    }

    pub(crate) fn ctx(&mut self) -> DeviceContext<'_> {
        DeviceContext {
            now: self.now,
            irq: &mut self.irq,
            effects: &mut self.effects,
            memory: &self.memory,
        }
    }
}
