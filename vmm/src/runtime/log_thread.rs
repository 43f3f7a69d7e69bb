//! Writes the log to segment files on a thread of its own.
//!
//! The disk must never hold up the node: the queue is bounded, and if the disk falls that far
//! behind, or fails, the log on disk ends there, which is said once and clearly. Replication does
//! not depend on it: acknowledged means in the backup's memory.

use super::host_clock::HostClock;
use logging_channel::codec::EncodedLog;
use logging_channel::record::Record;
use logging_channel::segment::writer::SegmentWriter;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// Batches waiting for the disk.
const QUEUE_BATCHES_MAX: usize = 8_192;

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
    pub(super) fn start(writer: SegmentWriter, clock: HostClock) -> std::io::Result<Self> {
        let (queue, batches) = sync_channel(QUEUE_BATCHES_MAX);
        let thread = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write(writer, &batches, clock))?;
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
    while let Ok(mut batch) = batches.recv() {
        while let Ok(more) = batches.try_recv() {
            batch.extend(more);
            if batch.len() >= 1_024 {
                break;
            }
        }
        if let Err(cause) = append(&mut writer, &batch, clock) {
            tracing::error!("the log on disk ends here: {cause}");
            return;
        }
    }
    if let Err(error) = writer.sync(clock.now()) {
        tracing::error!(%error, "the log's last records may not be on disk");
    }
}

fn append(
    writer: &mut SegmentWriter,
    records: &[Record],
    clock: HostClock,
) -> Result<(), Box<dyn std::error::Error>> {
    for log in EncodedLog::encode_all(records)? {
        writer.append(&log, clock.now())?;
    }
    Ok(())
}
