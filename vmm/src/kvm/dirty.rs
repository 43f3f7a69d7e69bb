//! Which pages of guest memory were written: KVM's dirty log and user space's own notes, as one.
//!
//! Tracking costs the guest one fault for the first write to each page after each
//! [`DirtyLog::take`]; while it is off it costs nothing. `take` clears what it returns, so a page that
//! is written while its copy is made is in the next answer.
//!
//! Invariant: from `start` on, every page that differs from what it was at the last `take` (or at
//! `start`) is in the next answer. Left out: what is done with the pages (`snapshot`, `replication::precopy`).

use super::{KvmError, guest_memory};
use crate::machine::page_set::PageSet;
use crate::machine::ram::GuestRam;
use kvm_ioctls::VmFd;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Dirty pages of one virtual machine. Guest memory is one region that begins at 0.
#[derive(Debug)]
pub struct DirtyLog {
    vm: Arc<VmFd>,
    memory: GuestRam,
    /// Whether writes are tracked; held during every call, so that none meets a log that just ended.
    on: Mutex<bool>,
}

impl DirtyLog {
    pub(super) const fn new(vm: Arc<VmFd>, memory: GuestRam) -> Self {
        let on = Mutex::new(false);
        Self { vm, memory, on }
    }

    /// The memory that is watched.
    #[must_use]
    pub const fn memory(&self) -> &GuestRam {
        &self.memory
    }

    /// Begins to track writes, from a clean slate.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn start(&self) -> Result<(), KvmError> {
        let mut on = self.lock();
        guest_memory::log_writes(&self.vm, &self.memory, true)?;
        *on = true;
        self.read().map(drop)
    }

    /// Ends tracking.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn stop(&self) -> Result<(), KvmError> {
        let mut on = self.lock();
        *on = false;
        Ok(guest_memory::log_writes(&self.vm, &self.memory, false)?)
    }

    /// The pages written since the last call or since tracking began; none while it is off.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn take(&self) -> Result<PageSet, KvmError> {
        let on = self.lock();
        if *on {
            self.read()
        } else {
            Ok(PageSet::default())
        }
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        // A flag is never left half-written.
        self.on.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Result<PageSet, KvmError> {
        let mut pages = PageSet::default();
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let bytes = usize::try_from(region.len()).unwrap_or(usize::MAX);
            let log = self.vm.get_dirty_log(slot, bytes);
            pages.add(&super::call("KVM_GET_DIRTY_LOG", log)?);
            pages.add(&Deref::deref(region).bitmap().get_and_reset());
        }
        Ok(pages)
    }
}
