//! Appends `Log` frames to the last segment, begins new ones, and syncs as told.
//!
//! Invariants: one writer per directory (an advisory lock on it); only the log's next records are
//! accepted; a frame that could be written only in part is taken back, and if that fails, or a sync
//! fails, the writer gives up for good: what the kernel then holds is not known.

#![forbid(unsafe_code)]

use super::format::{SegmentError, SegmentHeader, segment_name, vm_hash};
use super::recovery::{Recovered, TailPolicy, recover};
use crate::codec::EncodedLog;
use crate::host_time::HostTime;
use crate::record::LogIndex;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// When appended frames are made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Whenever the kernel likes.
    Never,
    /// At the first append, or call of [`SegmentWriter::sync_if_due`], this long after the last.
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
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            segment_bytes_max: 64 << 20,
            sync: SyncPolicy::EveryMs(1_000),
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
    last_sync: HostTime,
    dirty: bool,
    given_up: bool,
}

/// The segment that is appended to.
#[derive(Debug)]
struct Current {
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
            last_sync: HostTime::default(),
            dirty: false,
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
            self.begin_segment(log.first(), now)?;
        }
        if let Some(current) = &mut self.current
            && let Err(error) = current.write(bytes)
        {
            self.given_up = error.left_behind;
            return Err(failed("write", &current.path)(error.source));
        }
        self.next = Some(log.next());
        self.dirty = true;
        match self.options.sync {
            SyncPolicy::Always => self.sync(now),
            _ => self.sync_if_due(now),
        }
    }

    /// Syncs when the policy asks for it by `now`; for when nothing is appended for a while.
    ///
    /// # Errors
    /// When the sync fails; the writer gives up then.
    pub fn sync_if_due(&mut self, now: HostTime) -> Result<(), SegmentError> {
        match self.options.sync {
            SyncPolicy::EveryMs(ms) if self.dirty && self.last_sync.plus_ms(ms) <= now => {
                self.sync(now)
            }
            _ => Ok(()),
        }
    }

    /// Makes everything appended durable, whatever the policy.
    ///
    /// # Errors
    /// When the sync fails; the writer gives up then.
    pub fn sync(&mut self, now: HostTime) -> Result<(), SegmentError> {
        self.check_alive()?;
        if let Some(current) = &self.current
            && self.dirty
        {
            let synced = current.file.sync_data();
            self.given_up = synced.is_err();
            synced.map_err(failed("sync", &current.path))?;
        }
        self.dirty = false;
        self.last_sync = now;
        Ok(())
    }

    fn begin_segment(&mut self, first: LogIndex, now: HostTime) -> Result<(), SegmentError> {
        if self.options.sync != SyncPolicy::Never {
            self.sync(now)?;
        }
        let path = self.directory.join(segment_name(first));
        let mut options = OpenOptions::new();
        let file = options.append(true).create_new(true).open(&path);
        let file = file.map_err(failed("create", &path))?;
        let mut current = Current {
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
            let synced = self.directory_file.sync_all();
            self.given_up = synced.is_err();
            synced.map_err(failed("sync", &self.directory))?;
        }
        self.current = Some(current);
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

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SegmentError {
    let path = path.to_owned();
    move |source| SegmentError::Io {
        operation,
        path,
        source,
    }
}
