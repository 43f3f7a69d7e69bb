//! Appends entries to the journal's last file, begins new ones, removes the oldest.
//!
//! One writer per directory: the log's writer holds the lock. A write that fails ends the journal; the log
//! goes on. Each file begins with whose journal it is and what this side is, and can be read alone.

#![forbid(unsafe_code)]

use super::entry::{Entry, What};
use super::format::{
    ENTRY_BYTES_MAX, JOURNAL_HEADER_BYTES, encode_header, journal_name, parse_journal_name,
    put_entry,
};
use crate::file_header::{FileHeader, vm_hash};
use crate::host_time::HostTime;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file that would grow beyond this is followed by a new one.
pub const FILE_BYTES_MAX: u64 = 16 << 20;
/// Files that are kept.
pub const FILES_MAX: usize = 8;

/// The writer of the journal in one directory.
#[derive(Debug)]
pub struct JournalWriter {
    directory: PathBuf,
    vm_hash: u64,
    file_bytes_max: u64,
    /// Syncs at most this long after a write; never without it.
    sync_ns: Option<u64>,
    /// Repeated at the beginning of each file.
    begun: Entry,
    role: Option<Entry>,
    current: Option<(File, u64)>,
    next_number: u64,
    kept: VecDeque<PathBuf>,
    dirty_since: Option<HostTime>,
}

impl JournalWriter {
    /// A writer to `directory`, behind whatever journal is there. `begun` is a [`What::Begun`]; nothing is
    /// created before the first entry.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn open(
        directory: &Path,
        vm: &str,
        begun: Entry,
        sync_ns: Option<u64>,
    ) -> io::Result<Self> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            numbers.extend(name.to_str().and_then(parse_journal_name));
        }
        numbers.sort_unstable();
        let next_number = numbers.last().map_or(0, |last| last.saturating_add(1));
        let path = |number: &u64| directory.join(journal_name(*number));
        Ok(Self {
            directory: directory.to_owned(),
            vm_hash: vm_hash(vm),
            file_bytes_max: FILE_BYTES_MAX,
            sync_ns,
            begun,
            role: None,
            current: None,
            next_number,
            kept: numbers.iter().map(path).collect(),
            dirty_since: None,
        })
    }

    /// With files of at most about `file_bytes_max` bytes.
    #[must_use]
    pub fn with_file_bytes_max(mut self, file_bytes_max: u64) -> Self {
        self.file_bytes_max = file_bytes_max.max((JOURNAL_HEADER_BYTES + ENTRY_BYTES_MAX) as u64);
        self
    }

    /// Appends entries; `now` is only compared with earlier calls.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn append(&mut self, entries: &[Entry], now: HostTime) -> io::Result<()> {
        for entry in entries {
            let mut bytes = Vec::new();
            if !put_entry(&mut bytes, entry) {
                continue;
            }
            let length = bytes.len() as u64;
            let full = |at: u64| at + length > self.file_bytes_max;
            if self.current.as_ref().is_none_or(|(_, at)| full(*at)) {
                self.begin_file()?;
            }
            if let Some((file, at)) = &mut self.current {
                file.write_all(&bytes)?;
                *at += length;
            }
            if matches!(entry.what, What::Role(_)) {
                self.role = Some(entry.clone());
            }
            self.dirty_since.get_or_insert(now);
        }
        Ok(())
    }

    /// When [`Self::sync_if_due`] has something to do.
    #[must_use]
    pub fn sync_due(&self) -> Option<HostTime> {
        Some(self.dirty_since?.plus_ns(self.sync_ns?))
    }

    /// Makes everything durable if that is due by `now`.
    ///
    /// # Errors
    /// When the sync fails.
    pub fn sync_if_due(&mut self, now: HostTime) -> io::Result<()> {
        match self.sync_due() {
            Some(due) if due <= now => self.sync(),
            _ => Ok(()),
        }
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// When the sync fails.
    pub fn sync(&mut self) -> io::Result<()> {
        self.dirty_since = None;
        match &self.current {
            Some((file, _)) => file.sync_data(),
            None => Ok(()),
        }
    }

    fn begin_file(&mut self) -> io::Result<()> {
        let number = self.next_number;
        let path = self.directory.join(journal_name(number));
        let mut file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&path)?;
        let vm_hash = self.vm_hash;
        let mut bytes = encode_header(FileHeader { number, vm_hash }).to_vec();
        for entry in [Some(&self.begun), self.role.as_ref()]
            .into_iter()
            .flatten()
        {
            put_entry(&mut bytes, entry);
        }
        file.write_all(&bytes)?;
        self.next_number = number.saturating_add(1);
        self.current = Some((file, bytes.len() as u64));
        self.kept.push_back(path);
        while self.kept.len() > FILES_MAX
            && let Some(oldest) = self.kept.pop_front()
        {
            fs::remove_file(oldest)?;
        }
        Ok(())
    }
}
