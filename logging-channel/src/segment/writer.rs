//! Appends `Log` frames to the last segment, begins new ones, and syncs as told.
//!
//! Behind each sync stands a sync point (`sync_point`). Old segments are removed when there is a bound.
//!
//! Invariants: one writer per directory (an advisory lock on it); only the log's next records are
//! accepted; the last two segments are never removed; a frame that could be written only in part is taken back, and if that fails, or a sync
//! fails, the writer gives up for good: what the kernel then holds is not known.

#![forbid(unsafe_code)]

use super::format::{SegmentError, SegmentHeader, segment_name};
use super::recovery::{Recovered, TailPolicy, recover};
use super::sync_point;
use crate::codec::EncodedLog;
use crate::file_header::vm_hash;
use crate::host_time::HostTime;
use crate::record::LogIndex;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// When appended frames are made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Whenever the kernel likes.
    Never,
    /// This long after the first append that is not yet durable: at the next append then, or when
    /// [`SegmentWriter::sync_if_due`] is called.
    EveryMs(u64),
    /// Before each append returns.
    Always,
}

/// How a log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriterOptions {
    /// A segment that would grow beyond this is followed by a new one.
    pub segment_bytes_max: u64,
    /// When frames are made durable.
    pub sync: SyncPolicy,
    /// The oldest segments are removed while the log has more bytes, except the last two.
    pub keep_bytes: Option<u64>,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            segment_bytes_max: 64 << 20,
            sync: SyncPolicy::EveryMs(1_000),
            keep_bytes: None,
        }
    }
}

/// The writer of the log in one directory.
#[derive(Debug)]
pub struct SegmentWriter {
    directory: PathBuf,
    /// Open for the lock, and to make new names durable.
    directory_file: File,
    vm_hash: u64,
    options: WriterOptions,
    next: Option<LogIndex>,
    current: Option<Current>,
    /// The segments before it that are still there, and their lengths; of use only with a bound.
    earlier: VecDeque<(PathBuf, u64)>,
    /// When the first append was made that is not durable.
    dirty_since: Option<HostTime>,
    given_up: bool,
}

/// The segment that is appended to.
#[derive(Debug)]
struct Current {
    first: LogIndex,
    path: PathBuf,
    file: File,
    bytes: u64,
    empty: bool,
}

impl SegmentWriter {
    /// Opens the log of `vm` in `directory`, which is created if need be, after recovering it.
    ///
    /// # Errors
    /// When another process writes it, it is damaged, or the file system fails.
    pub fn open(
        directory: &Path,
        vm: &str,
        options: WriterOptions,
        tail: TailPolicy,
    ) -> Result<(Self, Recovered), SegmentError> {
        fs::create_dir_all(directory).map_err(failed("create", directory))?;
        let directory_file = File::open(directory).map_err(failed("open", directory))?;
        match directory_file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let path = directory.to_owned();
                return Err(SegmentError::InUse { path });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", directory)(source)),
        }
        let recovered = recover(directory, vm, tail)?;
        let current = match recovered.segments.last() {
            None => None,
            Some((first, path)) => Some(Current {
                first: *first,
                file: OpenOptions::new()
                    .append(true)
                    .open(path)
                    .map_err(failed("open", path))?,
                path: path.clone(),
                bytes: recovered.last_segment_bytes,
                empty: recovered.next().is_none_or(|next| next == *first),
            }),
        };
        let writer = Self {
            directory: directory.to_owned(),
            directory_file,
            vm_hash: vm_hash(vm),
            options,
            next: recovered
                .next()
                .or(recovered.segments.last().map(|(first, _)| *first)),
            current,
            earlier: earlier(&recovered)?,
            dirty_since: None,
            given_up: false,
        };
        Ok((writer, recovered))
    }

    /// Index that must be appended next; `None` when the log may begin anywhere.
    #[must_use]
    pub const fn next(&self) -> Option<LogIndex> {
        self.next
    }

    /// Appends `log`; `now` is only compared with earlier calls.
    ///
    /// # Errors
    /// When its records are not the next of the log, or the file system fails.
    pub fn append(&mut self, log: &EncodedLog, now: HostTime) -> Result<(), SegmentError> {
        self.check_alive()?;
        if let Some(expected) = self.next
            && expected != log.first()
        {
            let found = log.first();
            return Err(SegmentError::NotNext { expected, found });
        }
        let bytes = log.bytes();
        let full = self.current.as_ref().is_none_or(|current| {
            !current.empty && current.bytes + bytes.len() as u64 > self.options.segment_bytes_max
        });
        if full {
            self.begin_segment(log.first())?;
        }
        if let Some(current) = &mut self.current
            && let Err(error) = current.write(bytes)
        {
            self.given_up = error.left_behind;
            return Err(failed("write", &current.path)(error.source));
        }
        self.next = Some(log.next());
        self.dirty_since.get_or_insert(now);
        match self.options.sync {
            SyncPolicy::Always => self.sync(),
            _ => self.sync_if_due(now),
        }
    }

    /// When [`Self::sync_if_due`] has something to do; `None` while everything is durable that has to be.
    #[must_use]
    pub fn sync_due(&self) -> Option<HostTime> {
        match self.options.sync {
            SyncPolicy::EveryMs(ms) => self.dirty_since.map(|since| since.plus_ms(ms)),
            SyncPolicy::Never | SyncPolicy::Always => None,
        }
    }

    /// Syncs when the policy asks for it by `now`; for when nothing is appended for a while.
    ///
    /// # Errors
    /// When the sync fails; the writer gives up then.
    pub fn sync_if_due(&mut self, now: HostTime) -> Result<(), SegmentError> {
        match self.sync_due() {
            Some(due) if due <= now => self.sync(),
            _ => Ok(()),
        }
    }

    /// Makes everything appended durable, whatever the policy, and writes a sync point behind it.
    ///
    /// # Errors
    /// When the sync fails; the writer gives up then.
    pub fn sync(&mut self) -> Result<(), SegmentError> {
        self.check_alive()?;
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        if self.dirty_since.is_some() {
            let synced = current.sync();
            self.given_up = synced.is_err();
            synced?;
            self.dirty_since = None;
            if let Err(error) = current.write(&sync_point::encode(current.first, current.bytes)) {
                self.given_up = error.left_behind;
                return Err(failed("write", &current.path)(error.source));
            }
        }
        Ok(())
    }

    /// Makes everything durable, the sync point behind it too: nothing of this log is unsynced then.
    ///
    /// # Errors
    /// When the sync fails.
    pub fn close(mut self) -> Result<(), SegmentError> {
        self.sync()?;
        self.current.map_or(Ok(()), |current| current.sync())
    }

    fn begin_segment(&mut self, first: LogIndex) -> Result<(), SegmentError> {
        if self.options.sync != SyncPolicy::Never {
            self.sync()?;
        }
        let path = self.directory.join(segment_name(first));
        let mut options = OpenOptions::new();
        let file = options.append(true).create_new(true).open(&path);
        let file = file.map_err(failed("create", &path))?;
        let mut current = Current {
            first,
            path,
            file,
            bytes: 0,
            empty: true,
        };
        let vm_hash = self.vm_hash;
        let header = SegmentHeader { first, vm_hash }.encode();
        if let Err(error) = current.write(&header) {
            // The next attempt must not meet the file that this one leaves.
            self.given_up = fs::remove_file(&current.path).is_err();
            return Err(failed("write", &current.path)(error.source));
        }
        current.empty = true;
        if self.options.sync != SyncPolicy::Never {
            let synced = current.sync().and_then(|()| {
                let synced = self.directory_file.sync_all();
                synced.map_err(failed("sync", &self.directory))
            });
            self.given_up = synced.is_err();
            synced?;
        }
        if let Some(full) = self.current.replace(current) {
            self.earlier.push_back((full.path, full.bytes));
        }
        self.remove_old()
    }

    /// Removes the oldest segments beyond the bound. The segment before the current one stays, so that the
    /// log's end can be looked at whatever the bound.
    fn remove_old(&mut self) -> Result<(), SegmentError> {
        let Some(keep_bytes) = self.options.keep_bytes else {
            self.earlier.clear();
            return Ok(());
        };
        // The current one may grow to this.
        let mut bytes = self.options.segment_bytes_max;
        bytes += self.earlier.iter().map(|(_, bytes)| bytes).sum::<u64>();
        while self.earlier.len() > 1
            && bytes > keep_bytes
            && let Some((path, removed)) = self.earlier.pop_front()
        {
            fs::remove_file(&path).map_err(failed("remove", &path))?;
            bytes -= removed;
        }
        Ok(())
    }

    fn check_alive(&self) -> Result<(), SegmentError> {
        if self.given_up {
            let path = self.directory.clone();
            return Err(SegmentError::GivenUp { path });
        }
        Ok(())
    }
}

/// A write that failed, and whether part of it is still in the file.
struct WriteFailure {
    source: io::Error,
    left_behind: bool,
}

impl Current {
    fn sync(&self) -> Result<(), SegmentError> {
        self.file.sync_data().map_err(failed("sync", &self.path))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), WriteFailure> {
        if let Err(source) = self.file.write_all(bytes) {
            let left_behind = self.file.set_len(self.bytes).is_err();
            return Err(WriteFailure {
                source,
                left_behind,
            });
        }
        self.bytes += bytes.len() as u64;
        self.empty = false;
        Ok(())
    }
}

/// The segments before the last one, and their lengths.
fn earlier(recovered: &Recovered) -> Result<VecDeque<(PathBuf, u64)>, SegmentError> {
    let count = recovered.segments.len().saturating_sub(1);
    let paths = recovered.segments.iter().take(count).map(|(_, path)| path);
    let with_length = |path: &PathBuf| {
        let metadata = fs::metadata(path).map_err(failed("read", path))?;
        Ok((path.clone(), metadata.len()))
    };
    paths.map(with_length).collect()
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SegmentError {
    let path = path.to_owned();
    move |source| SegmentError::Io {
        operation,
        path,
        source,
    }
}
