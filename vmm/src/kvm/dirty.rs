//! Which pages of guest memory were written: KVM's dirty log and user space's own notes, as one.
//!
//! Several may want to know at the same time, each since another moment: a transfer, a snapshot, and the
//! recorder of the exit clock. KVM has one log, so whatever is read from it is added to what each of them
//! has not taken yet. An attempt that is over and one that has just begun are two: what the first still
//! takes or ends changes nothing for the second.
//!
//! Tracking costs the guest one fault for the first write to each page after each reading; while
//! nobody watches it costs nothing. A reading clears what it returns, so a page that is written while
//! its copy is made is in the next answer.
//!
//! Invariant: from `start` on, every page that differs from what it was at a reader's last `take` (or
//! at its `start`) is in its next answer. Left out: what is done with the pages (`snapshot`,
//! `replication::precopy`).

use super::{KvmError, guest_memory};
use crate::machine::page_set::PageSet;
use crate::machine::ram::GuestRam;
use kvm_ioctls::VmFd;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Who wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// An attempt to give the state away, round by round; by its number.
    Attempt(u64),
    /// The recorder, for the next State record.
    Recorder,
}

/// What each reader that watches has not taken.
#[derive(Debug, Default)]
struct Pending(Vec<(Reader, PageSet)>);

impl Pending {
    fn of(&mut self, reader: Reader) -> Option<&mut PageSet> {
        let mut watching = self.0.iter_mut();
        let (_, pages) = watching.find(|(who, _)| *who == reader)?;
        Some(pages)
    }

    fn is_watched(&self) -> bool {
        !self.0.is_empty()
    }

    fn begin(&mut self, reader: Reader) {
        self.end(reader);
        self.0.push((reader, PageSet::default()));
    }

    /// Whether it watched.
    fn end(&mut self, reader: Reader) -> bool {
        let before = self.0.len();
        self.0.retain(|(who, _)| *who != reader);
        self.0.len() < before
    }

    /// What was written since the last reading, for everybody who watches.
    fn add(&mut self, pages: &PageSet) {
        self.0.iter_mut().for_each(|(_, p)| p.union(pages));
    }

    /// What `reader` has not taken yet; it goes on watching.
    fn take(&mut self, reader: Reader) -> PageSet {
        self.of(reader).map(std::mem::take).unwrap_or_default()
    }
}

/// Dirty pages of one virtual machine. Guest memory is one region that begins at 0.
#[derive(Debug)]
pub struct DirtyLog {
    vm: Arc<VmFd>,
    memory: GuestRam,
    /// Held during every call, so that none meets a log that just ended.
    pending: Mutex<Pending>,
}

impl DirtyLog {
    pub(super) fn new(vm: Arc<VmFd>, memory: GuestRam) -> Self {
        let pending = Mutex::default();
        Self {
            vm,
            memory,
            pending,
        }
    }

    /// The memory that is watched.
    #[must_use]
    pub const fn memory(&self) -> &GuestRam {
        &self.memory
    }

    /// Begins to watch, from a clean slate.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn start(&self, reader: Reader) -> Result<(), KvmError> {
        let mut pending = self.lock();
        if !pending.is_watched() {
            guest_memory::log_writes(&self.vm, &self.memory, true)?;
        }
        pending.add(&self.read()?);
        pending.begin(reader);
        Ok(())
    }

    /// Ends watching.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn stop(&self, reader: Reader) -> Result<(), KvmError> {
        let mut pending = self.lock();
        if pending.end(reader) && !pending.is_watched() {
            guest_memory::log_writes(&self.vm, &self.memory, false)?;
        }
        Ok(())
    }

    /// The pages written since the reader's last call or since it began to watch; none if it does not.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn take(&self, reader: Reader) -> Result<PageSet, KvmError> {
        let mut pending = self.lock();
        if pending.of(reader).is_some() {
            pending.add(&self.read()?);
        }
        Ok(pending.take(reader))
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        // Page sets are never left half-written: whatever is read is added as a whole.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reader_is_told_everything_since_its_own_last_time() {
        let mut pending = Pending::default();
        let pages = |bits: u64| PageSet::from_words(vec![bits]);
        let transfer = Reader::Attempt(1);
        pending.begin(Reader::Recorder);
        pending.add(&pages(0b0001));
        pending.begin(transfer);
        pending.add(&pages(0b0010));
        assert_eq!(pending.take(transfer), pages(0b0010));
        pending.add(&pages(0b0100));
        assert_eq!(pending.take(Reader::Recorder), pages(0b0111));
        assert_eq!(pending.take(Reader::Recorder), PageSet::default());
        assert_eq!(pending.take(transfer), pages(0b0100));
        pending.end(transfer);
        pending.add(&pages(0b1000));
        assert_eq!(pending.take(transfer), PageSet::default());
        assert!(pending.is_watched());
    }

    /// Its thread may notice late that it was given up.
    #[test]
    fn an_attempt_that_is_over_takes_nothing_from_the_next() {
        let mut pending = Pending::default();
        let pages = |bits: u64| PageSet::from_words(vec![bits]);
        let [first, second] = [1, 2].map(Reader::Attempt);
        pending.begin(first);
        pending.begin(second);
        pending.add(&pages(0b0110));
        assert_eq!(pending.take(first), pages(0b0110));
        assert!(pending.end(first) && !pending.end(first));
        assert_eq!(pending.take(second), pages(0b0110));
        assert!(pending.is_watched());
    }
}
