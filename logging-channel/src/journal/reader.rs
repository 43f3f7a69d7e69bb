//! Reads a journal: file by file, over damage, with memory for one chunk.
//!
//! Behind a damaged place the next sound entry is searched for; a file of another VM, of a version that this
//! program does not have, or without a sound header, is left out whole. What is wrong at the end of the last
//! file is what a host that lost power, or a writer at work, leaves.

#![forbid(unsafe_code)]

use super::entry::Entry;
use super::format::{
    ENTRY_BYTES_MAX, JOURNAL_HEADER_BYTES, JournalDamage, decode_header, parse_entry,
    parse_journal_name,
};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Least that is read at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// Bytes of a file that may be checked in searches behind damaged places, so that a hostile file costs no more.
const SEARCH_BYTES_MAX: usize = 64 << 20;

/// Something in a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// An entry.
    Entry(Entry),
    /// Bytes that could not be read.
    LeftOut {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// How many.
        bytes: u64,
        /// What is wrong with the first of them.
        damage: JournalDamage,
        /// They are the end of the journal.
        last: bool,
    },
}

/// Reads the journal of a directory.
#[derive(Debug)]
pub struct JournalReader {
    files: VecDeque<PathBuf>,
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    /// Bytes of the buffer that were passed over.
    consumed: usize,
    /// Offset in the file of the first byte that was not.
    offset: u64,
    begun: bool,
    searched_bytes: usize,
}

impl JournalReader {
    /// The journal in `directory`; without files, it is empty.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let mut numbered = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if let Some(number) = entry.file_name().to_str().and_then(parse_journal_name) {
                numbered.push((number, entry.path()));
            }
        }
        numbered.sort();
        Ok(Self {
            files: numbered.into_iter().map(|(_, path)| path).collect(),
            current: None,
        })
    }

    /// The next entry or damaged place.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn next_read(&mut self) -> io::Result<Option<Read>> {
        loop {
            if self.current.is_none() {
                let Some(path) = self.files.pop_front() else {
                    return Ok(None);
                };
                self.current = Some(Current::open(path)?);
            }
            let last = self.files.is_empty();
            if let Some(current) = &mut self.current {
                match current.next(last)? {
                    Some(read) => return Ok(Some(read)),
                    None => self.current = None,
                }
            }
        }
    }
}

impl Current {
    fn open(path: PathBuf) -> io::Result<Self> {
        Ok(Self {
            file: File::open(&path)?,
            path,
            buffer: Vec::new(),
            consumed: 0,
            offset: 0,
            begun: false,
            searched_bytes: 0,
        })
    }

    fn next(&mut self, last: bool) -> io::Result<Option<Read>> {
        if !std::mem::replace(&mut self.begun, true) {
            let header = match self.fill(JOURNAL_HEADER_BYTES)?.first_chunk() {
                None => Err(JournalDamage::Torn),
                Some(bytes) => decode_header(bytes),
            };
            match header {
                Ok(_) => self.advance(JOURNAL_HEADER_BYTES),
                Err(damage) => {
                    while !self.fill(1)?.is_empty() {
                        self.advance(self.buffer.len() - self.consumed);
                    }
                    return Ok(Some(self.left_out(0, damage, last)));
                }
            }
        }
        let there = self.fill(ENTRY_BYTES_MAX)?;
        if there.is_empty() {
            return Ok(None);
        }
        match parse_entry(there) {
            Ok((entry, length)) => {
                self.advance(length);
                Ok(Some(Read::Entry(entry)))
            }
            Err(damage) => self.search(damage, last).map(Some),
        }
    }

    /// Moves to the next sound entry, or the end of the file.
    fn search(&mut self, damage: JournalDamage, last: bool) -> io::Result<Read> {
        let offset = self.offset;
        loop {
            self.advance(1);
            let searched_bytes = self.searched_bytes;
            let there = self.fill(ENTRY_BYTES_MAX)?;
            let Some([low, high]) = there.first_chunk() else {
                self.advance(self.buffer.len() - self.consumed);
                return Ok(self.left_out(offset, damage, last));
            };
            let length = usize::from(u16::from_le_bytes([*low, *high])).min(there.len());
            let found = searched_bytes + length <= SEARCH_BYTES_MAX && parse_entry(there).is_ok();
            self.searched_bytes = searched_bytes + length;
            if found {
                return Ok(self.left_out(offset, damage, false));
            }
        }
    }

    fn left_out(&self, offset: u64, damage: JournalDamage, last: bool) -> Read {
        Read::LeftOut {
            path: self.path.clone(),
            offset,
            bytes: self.offset - offset,
            damage,
            last,
        }
    }

    fn advance(&mut self, length: usize) {
        let length = length.min(self.buffer.len() - self.consumed);
        self.consumed += length;
        self.offset += length as u64;
    }

    /// The bytes at the position: at least `need`, fewer only at the end of the file.
    fn fill(&mut self, need: usize) -> io::Result<&[u8]> {
        if self.buffer.len() - self.consumed < need {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
            let want = need.max(self.buffer.len() + CHUNK_BYTES) - self.buffer.len();
            let chunk = (&mut self.file).take(want as u64);
            { chunk }.read_to_end(&mut self.buffer)?;
        }
        Ok(&self.buffer[self.consumed..])
    }
}
