//! Writes the log to segment files, and the journal beside it, on a thread of its own.
//!
//! The disk must never hold up the node: the queue is bounded, and if the disk falls that far
//! behind, or fails, the log on disk ends there, which is said once and clearly. Replication does
//! not depend on it: acknowledged means in the backup's memory. What was written is synced in time even
//! when nothing follows it. The journal takes the same way and gives way: it ends by itself when it cannot be
//! written, and with the log; the evidence of a divergence goes behind the records that led to it.

use super::evidence::EvidencePlace;
use super::host_clock::HostClock;
use crate::confine::Confinement;
use crate::confine::filter::{Thread, confine_thread};
use crate::confine::privileges::drop_capabilities;
use crate::replication::divergence::Divergence;
use crate::replication::engine::Emitted;
use logging_channel::codec::EncodedLog;
use logging_channel::journal::{Entry, JournalWriter};
use logging_channel::record::Record;
use logging_channel::segment::writer::SegmentWriter;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Batches waiting for the disk.
const QUEUE_BATCHES_MAX: usize = 8_192;

/// Batches of one frame; what is queued beyond makes the next.
const ITEMS_AT_ONCE_MAX: usize = 256;

/// What is queued.
enum Item {
    Records(Vec<Record>),
    Journal(Vec<Entry>),
    /// In this generation.
    Diverged(u64, Divergence),
}

/// The thread and its queue.
pub(super) struct LogThread {
    queue: Option<SyncSender<Item>>,
    thread: Option<JoinHandle<()>>,
}

impl LogThread {
    /// Starts writing to `writer` and `journal`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start(
        writer: SegmentWriter,
        journal: Option<JournalWriter>,
        evidence: EvidencePlace,
        clock: HostClock,
        confinement: Confinement,
    ) -> std::io::Result<Self> {
        let (queue, batches) = sync_channel(QUEUE_BATCHES_MAX);
        let thread = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                // It inherited what its parent still needs.
                let confined =
                    drop_capabilities().and_then(|()| confine_thread(confinement, Thread::Log));
                match confined {
                    Ok(()) => Files {
                        writer,
                        journal,
                        evidence,
                        clock,
                    }
                    .write(&batches),
                    Err(error) => tracing::error!(%error, "no log is kept on disk"),
                }
            })?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
        })
    }

    /// Queues records, in order.
    pub(super) fn append(&mut self, records: Vec<Record>) {
        if records.is_empty() {
            return;
        }
        if let Some(queue) = &self.queue
            && let Err(error) = queue.try_send(Item::Records(records))
        {
            let cause = match error {
                TrySendError::Full(_) => "the disk is too slow",
                TrySendError::Disconnected(_) => "the disk failed",
            };
            tracing::error!("the log on disk ends here: {cause}");
            self.queue = None;
        }
    }

    /// Queues entries of the journal; where there is no room for them they are lost.
    pub(super) fn note(&mut self, entries: Vec<Entry>) {
        if let Some(queue) = &self.queue
            && !entries.is_empty()
        {
            let _ = queue.try_send(Item::Journal(entries));
        }
    }

    /// Queues what was recorded, and behind it the evidence of a divergence: whoever looks for the cause needs
    /// both logs as they are now, before the pair is left.
    pub(super) fn emitted(&mut self, generation: u64, items: &[Emitted]) {
        let recorded = items.iter().filter_map(|item| match item {
            Emitted::Recorded { record, .. } => Some(record.clone()),
            _ => None,
        });
        self.append(recorded.collect());
        for item in items {
            if let Emitted::Diverged(divergence) = item {
                self.diverged(generation, divergence.as_ref().clone());
            }
        }
    }

    fn diverged(&mut self, generation: u64, divergence: Divergence) {
        let kept = self.queue.as_ref().is_some_and(|queue| {
            let item = Item::Diverged(generation, divergence);
            queue.try_send(item).is_ok()
        });
        if !kept {
            tracing::error!("evidence not kept: the log on disk has ended");
        }
    }

    /// Writes what is queued and closes the log.
    pub(super) fn close(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // The thread reports its own errors; its result is empty.
            let _ = thread.join();
        }
    }
}

impl Drop for LogThread {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What the thread writes to.
struct Files {
    writer: SegmentWriter,
    journal: Option<JournalWriter>,
    evidence: EvidencePlace,
    clock: HostClock,
}

impl Files {
    fn write(mut self, items: &Receiver<Item>) {
        let ended = loop {
            let item = match self.next(items) {
                Ok(item) => Some(item),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break self.close(),
            };
            if let Err(cause) = self.append(item, items) {
                break Err(cause);
            }
        };
        if let Err(cause) = ended {
            tracing::error!("the log on disk ends here: {cause}");
        }
    }

    fn close(mut self) -> Result<(), Box<dyn std::error::Error>> {
        self.with_journal(JournalWriter::sync);
        Ok(self.writer.close()?)
    }

    /// What is queued next, or a timeout when it is time to sync.
    fn next(&self, items: &Receiver<Item>) -> Result<Item, RecvTimeoutError> {
        let journal_due = self.journal.as_ref().and_then(JournalWriter::sync_due);
        let due = [self.writer.sync_due(), journal_due];
        let Some(due) = due.into_iter().flatten().min() else {
            return items.recv().map_err(|_| RecvTimeoutError::Disconnected);
        };
        let left_ns = due.0.saturating_sub(self.clock.now().0);
        items.recv_timeout(Duration::from_nanos(left_ns))
    }

    /// Appends `item`, with what else is queued, and syncs what is due.
    fn append(
        &mut self,
        item: Option<Item>,
        items: &Receiver<Item>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let (mut batch, mut entries, mut divergences) = (Vec::new(), Vec::new(), Vec::new());
        let mut take = |item| match item {
            Item::Records(records) => batch.extend(records),
            Item::Journal(more) => entries.extend(more),
            Item::Diverged(generation, divergence) => divergences.push((generation, divergence)),
        };
        item.into_iter().for_each(&mut take);
        items.try_iter().take(ITEMS_AT_ONCE_MAX).for_each(&mut take);
        if !batch.is_empty() {
            for log in EncodedLog::encode_all(&batch)? {
                self.writer.append(&log, self.clock.now())?;
            }
        }
        for (generation, divergence) in divergences {
            self.keep_evidence(generation, &divergence);
        }
        self.writer.sync_if_due(self.clock.now())?;
        let now = self.clock.now();
        self.with_journal(|journal| {
            journal.append(&entries, now)?;
            journal.sync_if_due(now)
        });
        Ok(())
    }

    fn keep_evidence(&self, generation: u64, divergence: &Divergence) {
        match self.evidence.keep(generation, divergence) {
            Ok(file) => tracing::error!(%divergence, file = %file.display(), "evidence kept"),
            Err(error) => tracing::error!(%divergence, %error, "evidence not kept"),
        }
    }

    /// A journal that cannot be written ends; the log goes on.
    fn with_journal(&mut self, write: impl FnOnce(&mut JournalWriter) -> std::io::Result<()>) {
        if let Some(journal) = &mut self.journal
            && let Err(cause) = write(journal)
        {
            tracing::warn!(%cause, "the journal beside the log ends here");
            self.journal = None;
        }
    }
}
