//! Guest memory, with a note of every page that user space wrote.
//!
//! KVM's dirty log knows what the guest's processor wrote; a device that writes a received frame, and
//! the clock page, write behind its back. State transfer needs both, so the type that devices are
//! given keeps a bitmap of its own. Left out: who reads it (`kvm::dirty`).

#![forbid(unsafe_code)]

use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::AtomicBitmap;

/// Guest physical memory.
pub type GuestRam = GuestMemoryMmap<AtomicBitmap>;
