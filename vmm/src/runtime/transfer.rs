//! Reads a running guest's state, for a new backup or a file, on a thread of its own.
//!
//! The thread copies pages while the guest writes them; dirty tracking has it copy again what was
//! written. It is held back by whoever takes the parts: for a backup by its queue, which the node empties
//! only while the window to the new backup has room. When little is left it says so, and the vCPU's thread does the rest at the next
//! point (`Executor::save`). Tracking ends with the thread, however the attempt ends.
//!
//! Left out: when to stop (`replication::precopy`), what a part is (`snapshot::part`), files (`saving`).

use crate::kvm::KvmError;
use crate::kvm::dirty::{DirtyLog, Reader};
use crate::machine::page_set::{PAGE_BYTES, PageSet};
use crate::replication::precopy::{Precopy, PrecopyConfig, Step};
use crate::snapshot::part::{self, PAGES_PER_PART_MAX};
use std::sync::Arc;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Parts made ahead of the node.
const PARTS_MAX: usize = 8;

/// What the thread says.
#[derive(Debug)]
pub(super) enum TransferEvent {
    /// A round begins.
    Round {
        /// Counted from 1.
        number: u32,
        /// Pages that it sends.
        pages: u64,
    },
    /// A piece of the state.
    Part(Vec<u8>),
    /// The guest is to be slowed, or not any more.
    Throttle {
        /// Pause in each mark interval, nanoseconds.
        pause_ns: u64,
    },
    /// Little is left.
    Ready,
    /// It cannot be done.
    Failed(String),
}

/// One attempt. Dropping it ends the thread and the tracking of writes.
pub(super) struct Transfer {
    /// Which.
    pub(super) attempt: u64,
    /// From the thread.
    pub(super) events: Receiver<TransferEvent>,
}

impl Transfer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start(attempt: u64, dirty: Arc<DirtyLog>) -> std::io::Result<Self> {
        let (sender, events) = channel(PARTS_MAX);
        std::thread::Builder::new()
            .name("transfer".to_owned())
            .spawn(move || {
                let mut say = |event| sender.blocking_send(event).map_err(|_| Ended::Dropped);
                if let Err(Ended::Failed(cause)) = copy(&dirty, attempt, &mut say) {
                    // A node that has let go does not want to know.
                    let _ = say(TransferEvent::Failed(cause));
                }
                wait_until_dropped(&sender);
                stop(&dirty, attempt);
            })?;
        Ok(Self { attempt, events })
    }

    /// An attempt that could not begin, and says so like any other.
    pub(super) fn failed(attempt: u64, cause: std::io::Error) -> Self {
        let (sender, events) = channel(PARTS_MAX);
        // There is room: the channel is new.
        let _ = sender.try_send(TransferEvent::Failed(cause.to_string()));
        Self { attempt, events }
    }
}

/// Why copying ended early.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The node has let go of the attempt.
    Dropped,
    /// It cannot be done.
    Failed(String),
}

impl From<KvmError> for Ended {
    fn from(error: KvmError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What takes the parts, and hears how it goes.
pub(super) type Say<'a> = &'a mut dyn FnMut(TransferEvent) -> Result<(), Ended>;

/// Copies all of memory, then what is written meanwhile, until little is left. Tracking of writes goes on
/// until [`stop`].
///
/// # Errors
/// When the guest writes too fast, KVM refuses, or nobody takes the parts any more.
pub(super) fn copy(dirty: &DirtyLog, attempt: u64, say: Say<'_>) -> Result<(), Ended> {
    let reader = Reader::Attempt(attempt);
    dirty.start(reader)?;
    let bytes = dirty.memory().iter().map(|region| region.len()).sum();
    let mut precopy = Precopy::new(PrecopyConfig::default());
    let mut pages = PageSet::all(bytes);
    let mut slowed = 0;
    loop {
        let found = pages.count();
        let step = precopy.scanned(found);
        let number = precopy.rounds();
        tracing::debug!(round = number, pages = found, ?step, "transfer");
        say(TransferEvent::Round {
            number,
            pages: found,
        })?;
        match step {
            Step::GiveUp => {
                say(TransferEvent::Throttle { pause_ns: 0 })?;
                let mib = (found * PAGE_BYTES) >> 20;
                let rounds = number - 1;
                return Err(Ended::Failed(format!(
                    "after {rounds} rounds the guest still writes {mib} MiB in each"
                )));
            }
            Step::Send { pause_ns } if pause_ns != slowed => {
                slowed = pause_ns;
                say(TransferEvent::Throttle { pause_ns })?;
            }
            Step::Send { .. } | Step::Finish => {}
        }
        send(dirty, &pages, say)?;
        if step == Step::Finish {
            if slowed > 0 {
                say(TransferEvent::Throttle { pause_ns: 0 })?;
            }
            return say(TransferEvent::Ready);
        }
        pages = dirty.take(reader)?;
    }
}

fn send(dirty: &DirtyLog, pages: &PageSet, say: Say<'_>) -> Result<(), Ended> {
    let mut taken = Ok(());
    part::parts_of(dirty.memory(), pages, PAGES_PER_PART_MAX, |part| {
        taken = say(TransferEvent::Part(part));
        taken.is_ok()
    })
    .map_err(|error| Ended::Failed(error.to_string()))?;
    taken
}

/// Ends the tracking of writes for an attempt.
pub(super) fn stop(dirty: &DirtyLog, attempt: u64) {
    if let Err(error) = dirty.stop(Reader::Attempt(attempt)) {
        tracing::warn!(%error, "dirty tracking goes on");
    }
}

/// The vCPU's thread still needs the tracking for the rest.
fn wait_until_dropped(sender: &Sender<TransferEvent>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    if let Ok(runtime) = runtime {
        runtime.block_on(sender.closed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_could_not_begin_says_so() {
        let mut transfer = Transfer::failed(3, std::io::Error::other("no thread"));
        assert_eq!(transfer.attempt, 3);
        let said = transfer.events.try_recv();
        assert!(
            matches!(&said, Ok(TransferEvent::Failed(cause)) if cause == "no thread"),
            "{said:?}"
        );
    }
}
