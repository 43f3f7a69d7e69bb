//! One virtqueue: its registers as the driver sets them up, and the ring once it is ready.
//!
//! The rings themselves are virtio-queue's; this adds what a replayed device needs: every way in
//! which the driver can break them has a value of [`RingFault`], the next available chain can be looked
//! at without taking it, and state is plain data.

#![forbid(unsafe_code)]

use super::chain::Chain;
use crate::devices::RestoreError;
use crate::devices::ram::GuestRam;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// How the driver broke a queue. Either way the device needs a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingFault {
    /// Addresses or indices of the queue itself.
    Queue,
    /// A descriptor chain.
    Chain,
}

/// Saved state of one queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingState {
    /// QueueNum.
    pub size: u32,
    /// QueueReady.
    pub ready: bool,
    /// Descriptor table address.
    pub descriptors: u64,
    /// Available ring address.
    pub available: u64,
    /// Used ring address.
    pub used: u64,
    /// Available ring position.
    pub next_available: u16,
    /// Used ring position.
    pub next_used: u16,
}

/// One virtqueue.
#[derive(Debug)]
pub struct Ring {
    size_max: u16,
    /// What the driver wrote. Positions are kept in `queue` only.
    registers: RingState,
    /// Present while ready.
    queue: Option<Queue>,
}

impl Ring {
    /// A queue of at most `size_max` descriptors, a power of two, not ready.
    #[must_use]
    pub fn new(size_max: u16) -> Self {
        Self {
            size_max,
            registers: RingState::default(),
            queue: None,
        }
    }

    /// QueueNumMax.
    #[must_use]
    pub const fn size_max(&self) -> u16 {
        self.size_max
    }

    /// QueueReady.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.queue.is_some()
    }

    /// The registers, for the driver to set up while the queue is not ready.
    pub const fn registers_mut(&mut self) -> &mut RingState {
        &mut self.registers
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        *self = Self::new(self.size_max);
    }

    /// QueueReady := 1. Positions start at 0.
    ///
    /// # Errors
    /// [`RingFault::Queue`] when size, alignment or addresses cannot be: the queue stays not ready.
    pub fn enable(&mut self, memory: &GuestRam) -> Result<(), RingFault> {
        let queue = self.build(&self.registers).ok_or(RingFault::Queue)?;
        if !queue.is_valid(memory) {
            return Err(RingFault::Queue);
        }
        self.queue = Some(queue);
        Ok(())
    }

    /// QueueReady := 0.
    pub fn disable(&mut self) {
        self.queue = None;
    }

    fn build(&self, state: &RingState) -> Option<Queue> {
        let mut queue = Queue::new(self.size_max).ok()?;
        queue.try_set_size(u16::try_from(state.size).ok()?).ok()?;
        queue
            .try_set_desc_table_address(GuestAddress(state.descriptors))
            .ok()?;
        queue
            .try_set_avail_ring_address(GuestAddress(state.available))
            .ok()?;
        queue
            .try_set_used_ring_address(GuestAddress(state.used))
            .ok()?;
        queue.set_next_avail(state.next_available);
        queue.set_next_used(state.next_used);
        queue.set_ready(true);
        Some(queue)
    }

    /// The next available chain, left where it is. `None` when there is none or the queue is not
    /// ready.
    ///
    /// # Errors
    /// What the driver broke.
    pub fn front(&self, memory: &GuestRam) -> Result<Option<Chain>, RingFault> {
        let Some(queue) = &self.queue else {
            return Ok(None);
        };
        let available = queue
            .avail_idx(memory, Ordering::Acquire)
            .map_err(|_| RingFault::Queue)?;
        let waiting = available.0.wrapping_sub(queue.next_avail());
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > queue.size() {
            return Err(RingFault::Queue);
        }
        let slot = u64::from(queue.next_avail() % queue.size());
        let head = queue
            .avail_ring()
            .checked_add(4 + 2 * slot)
            .and_then(|gpa| memory.read_obj::<u16>(GuestAddress(gpa)).ok())
            .ok_or(RingFault::Queue)?;
        Chain::walk(memory, queue.desc_table(), queue.size(), u16::from_le(head)).map(Some)
    }

    /// Takes the next available chain.
    ///
    /// # Errors
    /// What the driver broke.
    pub fn pop(&mut self, memory: &GuestRam) -> Result<Option<Chain>, RingFault> {
        let chain = self.front(memory)?;
        if chain.is_some()
            && let Some(queue) = &mut self.queue
        {
            queue.set_next_avail(queue.next_avail().wrapping_add(1));
        }
        Ok(chain)
    }

    /// The chain at `head` again, after it was popped.
    ///
    /// # Errors
    /// What the driver broke since.
    pub fn walk_again(&self, head: u16, memory: &GuestRam) -> Result<Chain, RingFault> {
        let queue = self.queue.as_ref().ok_or(RingFault::Queue)?;
        Chain::walk(memory, queue.desc_table(), queue.size(), head)
    }

    /// Gives a chain back with `written` bytes in it.
    ///
    /// # Errors
    /// [`RingFault::Queue`] when the used ring cannot be written.
    pub fn add_used(
        &mut self,
        head: u16,
        written: u32,
        memory: &GuestRam,
    ) -> Result<(), RingFault> {
        let queue = self.queue.as_mut().ok_or(RingFault::Queue)?;
        queue
            .add_used(memory, head, written)
            .map_err(|_| RingFault::Queue)
    }

    /// Whether the driver wants an interrupt for used buffers (section 2.7.7, without EVENT_IDX).
    ///
    /// # Errors
    /// [`RingFault::Queue`] when the available ring cannot be read.
    pub fn wants_interrupt(&self, memory: &GuestRam) -> Result<bool, RingFault> {
        let queue = self.queue.as_ref().ok_or(RingFault::Queue)?;
        let flags: u16 = memory
            .read_obj(GuestAddress(queue.avail_ring()))
            .map_err(|_| RingFault::Queue)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Its state.
    #[must_use]
    pub fn save(&self) -> RingState {
        RingState {
            ready: self.is_ready(),
            next_available: self.queue.as_ref().map_or(0, QueueT::next_avail),
            next_used: self.queue.as_ref().map_or(0, QueueT::next_used),
            ..self.registers
        }
    }

    /// Replaces its state.
    ///
    /// # Errors
    /// When a ready queue has a size or an alignment that [`Ring::enable`] refuses.
    pub fn restore(&mut self, state: &RingState) -> Result<(), RestoreError> {
        let queue = self.build(state);
        if (state.ready && queue.is_none())
            || (!state.ready && (state.next_available, state.next_used) != (0, 0))
        {
            return Err(RestoreError {
                device: "virtio",
                field: "rings",
                found: format!("{state:?}"),
            });
        }
        self.queue = queue.filter(|_| state.ready);
        self.registers = RingState {
            ready: false,
            next_available: 0,
            next_used: 0,
            ..*state
        };
        Ok(())
    }
}
