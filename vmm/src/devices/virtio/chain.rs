//! Descriptor chains of a split virtqueue (virtio 1.2 section 2.7.5): walked, checked and bounded
//! before any byte of them is used.
//!
//! A chain is refused when it loops or is longer than its queue, names a descriptor outside the
//! table, uses an indirect table (never negotiated), puts a readable buffer after a writable one,
//! or has a buffer outside guest memory.

#![forbid(unsafe_code)]

use super::ring::RingFault;
use crate::devices::ram::GuestRam;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const DESCRIPTOR_BYTES: u64 = size_of::<RawDescriptor>() as u64;

/// A buffer in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Guest physical address.
    pub gpa: GuestAddress,
    /// Length in bytes.
    pub length: u32,
}

/// A checked chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Index of its first descriptor, which names it in the used ring.
    pub head: u16,
    readable: Vec<Span>,
    writable: Vec<Span>,
}

impl Chain {
    /// Walks the chain that starts at descriptor `head` of the table of `size` descriptors at `table`.
    ///
    /// # Errors
    /// [`RingFault::Chain`] when the driver broke a rule, [`RingFault::Queue`] when the table
    /// itself cannot be read.
    pub fn walk(memory: &GuestRam, table: u64, size: u16, head: u16) -> Result<Self, RingFault> {
        let mut chain = Self {
            head,
            readable: Vec::new(),
            writable: Vec::new(),
        };
        let mut index = head;
        for _ in 0..size {
            let descriptor = read_descriptor(memory, table, size, index)?;
            chain.add(memory, &descriptor)?;
            if descriptor.flags() & NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next();
        }
        Err(RingFault::Chain)
    }

    fn add(&mut self, memory: &GuestRam, descriptor: &Descriptor) -> Result<(), RingFault> {
        let write = descriptor.flags() & WRITE != 0;
        let misordered = !write && !self.writable.is_empty();
        if descriptor.flags() & !(NEXT | WRITE) != 0 || misordered {
            return Err(RingFault::Chain);
        }
        let span = Span {
            gpa: descriptor.addr(),
            length: descriptor.len(),
        };
        if span.length == 0 {
            return Ok(());
        }
        let access = if write {
            Permissions::Write
        } else {
            Permissions::Read
        };
        if !memory.check_range(span.gpa, span.length as usize, access) {
            return Err(RingFault::Chain);
        }
        if write {
            self.writable.push(span);
        } else {
            self.readable.push(span);
        }
        Ok(())
    }

    /// Bytes the device may read.
    #[must_use]
    pub fn readable_bytes(&self) -> u64 {
        self.readable.iter().map(|s| u64::from(s.length)).sum()
    }

    /// Bytes the device may write.
    #[must_use]
    pub fn writable_bytes(&self) -> u64 {
        self.writable.iter().map(|s| u64::from(s.length)).sum()
    }

    /// Copies the readable bytes out, all of them.
    ///
    /// # Errors
    /// [`RingFault::Chain`] when there are more than `limit_bytes`.
    pub fn read(&self, memory: &GuestRam, limit_bytes: usize) -> Result<Vec<u8>, RingFault> {
        let total = usize::try_from(self.readable_bytes()).map_err(|_| RingFault::Chain)?;
        if total > limit_bytes {
            return Err(RingFault::Chain);
        }
        let mut bytes = vec![0; total];
        let mut rest = bytes.as_mut_slice();
        for span in &self.readable {
            let (part, after) = rest.split_at_mut(span.length as usize);
            memory
                .read_slice(part, span.gpa)
                .map_err(|_| RingFault::Chain)?;
            rest = after;
        }
        Ok(bytes)
    }

    /// Copies `bytes` into the writable buffers and returns how many fitted.
    ///
    /// # Errors
    /// [`RingFault::Chain`] when guest memory refuses.
    pub fn write(&self, memory: &GuestRam, bytes: &[u8]) -> Result<u32, RingFault> {
        let mut rest = bytes;
        let mut written = 0;
        for span in &self.writable {
            let length = rest.len().min(span.length as usize);
            let (part, after) = rest.split_at(length);
            memory
                .write_slice(part, span.gpa)
                .map_err(|_| RingFault::Chain)?;
            written += length as u32;
            rest = after;
        }
        Ok(written)
    }
}

fn read_descriptor(
    memory: &GuestRam,
    table: u64,
    size: u16,
    index: u16,
) -> Result<Descriptor, RingFault> {
    if index >= size {
        return Err(RingFault::Chain);
    }
    let gpa = table
        .checked_add(u64::from(index) * DESCRIPTOR_BYTES)
        .ok_or(RingFault::Queue)?;
    memory
        .read_obj::<Descriptor>(GuestAddress(gpa))
        .map_err(|_| RingFault::Queue)
}
