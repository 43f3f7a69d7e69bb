//! Guest RAM: one anonymous mapping, in place for the VM's life.
//!
//! Invariants: the mapping is reserved for real (no MAP_NORESERVE: a guest must not die of
//! overcommit at a random instruction), zero at first, left out of core dumps (it holds the guest's
//! secrets), and never larger than [`layout::MEMORY_MIB_MAX`]. RAM starts at 0 and has no hole:
//! the legacy area below 1 MiB is backed as well but not reported as usable, so that probing it
//! costs no exit.
//!
//! Left out: reading the dirty log (`dirty`), huge pages.

#![expect(
    unsafe_code,
    reason = "madvise, mlock and KVM memory slots take raw addresses"
)]

use crate::machine::layout;
use crate::machine::ram::GuestRam;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use rustix::mm::{Advice, madvise, mlock};
use vm_memory::bitmap::{AtomicBitmap, NewBitmap};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

/// How the host backs guest memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backing {
    /// Touch every page at start, so that no page is missing later.
    pub populate: bool,
    /// Lock all pages (needs RLIMIT_MEMLOCK); implies that they are never swapped.
    pub lock: bool,
}

/// Guest memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum GuestMemoryError {
    /// Outside the limits.
    #[error(
        "guest memory of {mib} MiB is outside {}..={} MiB",
        layout::MEMORY_MIB_MIN,
        layout::MEMORY_MIB_MAX
    )]
    Size {
        /// What was asked.
        mib: u64,
    },
    /// mmap failed.
    #[error("cannot map {mib} MiB of guest memory: {reason}")]
    Map {
        /// What was asked.
        mib: u64,
        /// Why not.
        reason: String,
    },
    /// mlock failed.
    #[error(
        "cannot lock {mib} MiB of guest memory: {source} (raise RLIMIT_MEMLOCK or turn locking off)"
    )]
    Lock {
        /// What was asked.
        mib: u64,
        /// What the kernel said.
        source: rustix::io::Errno,
    },
    /// KVM refused the slot.
    #[error("KVM refused guest memory slot {slot}: {source}")]
    Slot {
        /// Slot number.
        slot: u32,
        /// What the kernel said.
        source: kvm_ioctls::Error,
    },
}

/// Maps `mib` MiB of zeroed guest RAM at guest physical address 0.
///
/// # Errors
/// When the size is outside the limits or the host has not enough memory.
pub fn allocate(mib: u64, backing: Backing) -> Result<GuestRam, GuestMemoryError> {
    if !(layout::MEMORY_MIB_MIN..=layout::MEMORY_MIB_MAX).contains(&mib) {
        return Err(GuestMemoryError::Size { mib });
    }
    map(mib << 20, backing)
}

/// A guest memory of `bytes` bytes without the configured limits: for probes of a few pages.
pub(crate) fn map(bytes: u64, backing: Backing) -> Result<GuestRam, GuestMemoryError> {
    let mib = bytes >> 20;
    let refused = |reason: String| GuestMemoryError::Map { mib, reason };
    let length = usize::try_from(bytes).map_err(|e| refused(e.to_string()))?;
    let mut flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    if backing.populate {
        flags |= libc::MAP_POPULATE;
    }
    // `MmapRegionBuilder::new` would make a bitmap of no pages, which notes nothing.
    let region = MmapRegionBuilder::new_with_bitmap(length, AtomicBitmap::with_len(length))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags)
        .build()
        .map_err(|e| refused(e.to_string()))?;
    let start = region.as_ptr().cast();
    // SAFETY: `start..start + length` is the mapping made above, which `region` owns; the advice
    // changes what a core dump holds, not the memory.
    let advised = unsafe { madvise(start, length, Advice::LinuxDontDump) };
    advised.map_err(|e| refused(e.to_string()))?;
    if backing.lock {
        // SAFETY: as above; locking does not change the memory's contents.
        let locked = unsafe { mlock(start, length) };
        locked.map_err(|source| GuestMemoryError::Lock { mib, source })?;
    }
    let region = GuestRegionMmap::new(region, GuestAddress(0))
        .ok_or_else(|| refused("address overflow".into()))?;
    GuestRam::from_regions(vec![region]).map_err(|e| refused(e.to_string()))
}

/// Gives `memory` to the VM, one slot per region.
///
/// The caller keeps `memory` alive as long as `vm` (see `Vm`, which owns both).
pub(super) fn register(vm: &VmFd, memory: &GuestRam) -> Result<(), GuestMemoryError> {
    set_slots(vm, memory, 0)
}

/// Turns KVM's dirty log on or off for all of `memory`, which is registered already.
pub(super) fn log_writes(vm: &VmFd, memory: &GuestRam, on: bool) -> Result<(), GuestMemoryError> {
    set_slots(vm, memory, if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })
}

fn set_slots(vm: &VmFd, memory: &GuestRam, flags: u32) -> Result<(), GuestMemoryError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let slot_region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is a live mapping owned by `memory`, of exactly this size; `Vm` holds
        // a clone of `memory` and drops it after the VM file descriptor.
        let set = unsafe { vm.set_user_memory_region(slot_region) };
        set.map_err(|source| GuestMemoryError::Slot { slot, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn size_limits_are_enforced_before_mapping() {
        for mib in [
            0,
            layout::MEMORY_MIB_MIN - 1,
            layout::MEMORY_MIB_MAX + 1,
            u64::MAX,
        ] {
            let refused = allocate(mib, Backing::default());
            assert!(matches!(refused, Err(GuestMemoryError::Size { mib: m }) if m == mib));
        }
    }

    #[test]
    fn what_user_space_writes_is_noted() {
        let memory = allocate(32, Backing::default()).expect("32 MiB");
        memory
            .write_slice(&[1; 5000], GuestAddress(0x5800))
            .expect("in memory");
        let region = memory.iter().next().expect("one region");
        let noted = std::ops::Deref::deref(region).bitmap().get_and_reset();
        assert_eq!(noted[0], 0b110_0000);
        assert!(noted[1..].iter().all(|word| *word == 0));
    }

    #[test]
    fn memory_is_zero_and_ends_where_it_should() {
        let memory = allocate(32, Backing::default()).expect("32 MiB");
        assert_eq!(memory.last_addr(), GuestAddress((32 << 20) - 1));
        let mut page = [1u8; 4096];
        memory
            .read_slice(&mut page, GuestAddress((32 << 20) - 4096))
            .expect("last page");
        assert!(page.iter().all(|&b| b == 0));
        assert!(
            memory
                .read_slice(&mut page, GuestAddress((32 << 20) - 4095))
                .is_err()
        );
    }
}
