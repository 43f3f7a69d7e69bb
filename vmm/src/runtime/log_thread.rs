//! Writes the log to segment files on a thread of its own.
//!
//! The disk must never hold up the node: the queue is bounded, and if the disk falls that far
//! behind, or fails, the log on disk ends there, which is said once and clearly. Replication does
//! not depend on it: acknowledged means in the backup's memory. What was written is synced in time even
//! when nothing follows it.

use super::host_clock::HostClock;
use crate::confine::Confinement;
use crate::confine::filter::{Thread, confine_thread};
use crate::confine::privileges::drop_capabilities;
use logging_channel::codec::EncodedLog;
use logging_channel::record::Record;
use logging_channel::segment::writer::SegmentWriter;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Batches waiting for the disk.
const QUEUE_BATCHES_MAX: usize = 8_192;

/// Records of one frame; what is queued beyond makes the next.
const RECORDS_AT_ONCE_MAX: usize = 1_024;

/// The thread and its queue.
pub(super) struct LogThread {
    queue: Option<SyncSender<Vec<Record>>>,
    thread: Option<JoinHandle<()>>,
}

impl LogThread {
    /// Starts writing to `writer`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start(
        writer: SegmentWriter,
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
                    Ok(()) => write(writer, &batches, clock),
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
            && let Err(error) = queue.try_send(records)
        {
            let cause = match error {
                TrySendError::Full(_) => "the disk is too slow",
                TrySendError::Disconnected(_) => "the disk failed",
            };
            tracing::error!("the log on disk ends here: {cause}");
            self.queue = None;
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

fn write(mut writer: SegmentWriter, batches: &Receiver<Vec<Record>>, clock: HostClock) {
    let ended = loop {
        let batch = match next(&writer, batches, clock) {
            Ok(batch) => batch,
            Err(RecvTimeoutError::Timeout) => Vec::new(),
            Err(RecvTimeoutError::Disconnected) => break writer.close().map_err(Into::into),
        };
        if let Err(cause) = append(&mut writer, batch, batches, clock) {
            break Err(cause);
        }
    };
    if let Err(cause) = ended {
        tracing::error!("the log on disk ends here: {cause}");
    }
}

/// The next batch, or a timeout when it is time to sync.
fn next(
    writer: &SegmentWriter,
    batches: &Receiver<Vec<Record>>,
    clock: HostClock,
) -> Result<Vec<Record>, RecvTimeoutError> {
    let Some(due) = writer.sync_due() else {
        return batches.recv().map_err(|_| RecvTimeoutError::Disconnected);
    };
    let left_ns = due.0.saturating_sub(clock.now().0);
    batches.recv_timeout(Duration::from_nanos(left_ns))
}

/// Appends `batch`, with what else is queued, and syncs if that is due.
fn append(
    writer: &mut SegmentWriter,
    mut batch: Vec<Record>,
    batches: &Receiver<Vec<Record>>,
    clock: HostClock,
) -> Result<(), Box<dyn std::error::Error>> {
    while batch.len() < RECORDS_AT_ONCE_MAX
        && let Ok(more) = batches.try_recv()
    {
        batch.extend(more);
    }
    if !batch.is_empty() {
        for log in EncodedLog::encode_all(&batch)? {
            writer.append(&log, clock.now())?;
        }
    }
    Ok(writer.sync_if_due(clock.now())?)
}
