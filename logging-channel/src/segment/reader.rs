//! Reads a log in order, also while it is being written.
//!
//! At the end of what is there, [`LogReader::next_frame`] gives `None` and may be asked again: what a
//! host that lost power leaves behind the last sync point of the last segment is no damage but the
//! log's end, and so is a frame of which only the beginning is there yet. Memory is that of one frame
//! and its records.

#![forbid(unsafe_code)]

use super::format::{SegmentDamage, SegmentError};
use super::recovery::{check_header, is_unsynced, zero_tail_or};
use super::scan::{Scanned, Scanner, list};
use super::spare::{Spare, read_batch};
use crate::codec::{Placed, Sequence};
use crate::frame::HEADER_BYTES;
use crate::record::{LogIndex, Record};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One frame of the log, where it is and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadFrame {
    /// The segment.
    pub path: Arc<Path>,
    /// Offset of the frame in it.
    pub offset: u64,
    /// Length of the frame, header included.
    pub length: usize,
    /// Its records; their offsets count from the payload's beginning, see [`Self::place_of`].
    pub records: Vec<Placed>,
}

impl ReadFrame {
    /// Offset in the file, and length, of one of the records.
    #[must_use]
    pub const fn place_of(&self, placed: &Placed) -> (u64, usize) {
        (
            self.offset + (HEADER_BYTES + placed.offset) as u64,
            placed.length,
        )
    }
}

/// Reads the log in one directory from its first record on.
#[derive(Debug)]
pub struct LogReader {
    directory: PathBuf,
    current: Option<Open>,
    sequence: Sequence,
    vm_hash: Option<u64>,
    queue: VecDeque<Record>,
}

#[derive(Debug)]
struct Open {
    first: LogIndex,
    path: Arc<Path>,
    scanner: Scanner,
    header_read: bool,
}

impl LogReader {
    /// A reader of the log in `directory`, which may still be empty.
    #[must_use]
    pub fn open(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            current: None,
            sequence: Sequence::default(),
            vm_hash: None,
            queue: VecDeque::new(),
        }
    }

    /// As [`Self::open`], beginning with the segment that holds record `from`, or with the first.
    ///
    /// # Errors
    /// When the directory or the segment cannot be read.
    pub fn open_at(directory: &Path, from: LogIndex) -> Result<Self, SegmentError> {
        let mut reader = Self::open(directory);
        let before = list(directory)?
            .into_iter()
            .rfind(|(first, _)| *first <= from);
        if let Some((first, path)) = before {
            reader.current = Some(Open::segment(first, path)?);
        }
        Ok(reader)
    }

    /// Index of the record after the last frame read; `None` before the first.
    #[must_use]
    pub fn next_index(&self) -> Option<LogIndex> {
        self.sequence.next()
    }

    /// The next record; `None` when there is none yet.
    ///
    /// # Errors
    /// As [`Self::next_frame`].
    pub fn next_record(&mut self) -> Result<Option<Record>, SegmentError> {
        if self.queue.is_empty()
            && let Some(frame) = self.next_frame()?
        {
            self.queue
                .extend(frame.records.into_iter().map(|placed| placed.record));
        }
        Ok(self.queue.pop_front())
    }

    /// The next frame with its records; `None` when there is none yet. Not to be mixed with
    /// [`Self::next_record`], which reads whole frames ahead.
    ///
    /// # Errors
    /// When a file cannot be read, or with the file and offset of damage; not to be asked again
    /// after that.
    pub fn next_frame(&mut self) -> Result<Option<ReadFrame>, SegmentError> {
        if self.current.is_none() {
            self.current = self.segment_after(None)?;
        }
        loop {
            let Some(open) = &mut self.current else {
                return Ok(None);
            };
            let wrong = match open.read(&mut self.sequence, &mut self.vm_hash) {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Ok(None) => None,
                Err(error) => Some(error),
            };
            let first = open.first;
            let Some(successor) = self.segment_after(Some(first))? else {
                return match (wrong, &mut self.current) {
                    (Some(error), Some(open)) => open.end_or(error).map(|()| None),
                    _ => Ok(None),
                };
            };
            if let Some(error) = wrong {
                return Err(error);
            }
            // The writer may have added to this segment before it began the next: look again, now
            // that it cannot grow any more.
            let Some(open) = &mut self.current else {
                return Ok(None);
            };
            if let Some(frame) = open.read(&mut self.sequence, &mut self.vm_hash)? {
                return Ok(Some(frame));
            }
            open.must_be_whole()?;
            self.current = Some(successor);
        }
    }

    /// The first segment after the one that begins with `after`, or the first of all.
    fn segment_after(&self, after: Option<LogIndex>) -> Result<Option<Open>, SegmentError> {
        let later = |first: LogIndex| after.is_none_or(|after| first > after);
        let segments = list(&self.directory)?;
        for (first, path) in segments.into_iter().filter(|(first, _)| later(*first)) {
            match Open::segment(first, path) {
                // The writer's bound removed it since the directory was listed.
                Err(error) if error.is_gone() => {}
                opened => return opened.map(Some),
            }
        }
        Ok(None)
    }
}

impl Open {
    fn segment(first: LogIndex, path: PathBuf) -> Result<Self, SegmentError> {
        Ok(Self {
            first,
            scanner: Scanner::open(&path, first)?,
            path: path.into(),
            header_read: false,
        })
    }

    /// The next frame; `None` when no whole one is there.
    fn read(
        &mut self,
        sequence: &mut Sequence,
        vm_hash: &mut Option<u64>,
    ) -> Result<Option<ReadFrame>, SegmentError> {
        if !self.header_read {
            let scanner = &mut self.scanner;
            let Some(header) = scanner.header()? else {
                return Ok(None);
            };
            self.header_read = true;
            check_header(scanner, self.first, header.first, sequence.next())?;
            if vm_hash.is_some_and(|vm_hash| vm_hash != header.vm_hash) {
                return Err(scanner.damaged(20, SegmentDamage::OtherVm));
            }
            *vm_hash = Some(header.vm_hash);
        }
        let (offset, length, records) = match self.scanner.frame()? {
            Scanned::End | Scanned::Torn { .. } => return Ok(None),
            Scanned::Frame { offset, frame } => (
                offset,
                frame.length(),
                read_batch(frame.payload, sequence, &mut Spare::default()),
            ),
        };
        let records =
            records.map_err(|(within, damage)| self.scanner.damaged(offset + within, damage))?;
        let path = Arc::clone(&self.path);
        Ok(Some(ReadFrame {
            path,
            offset,
            length,
            records,
        }))
    }

    /// Takes `error`, met in the last segment, for the log's end if it may be an unsynced tail.
    fn end_or(&mut self, error: SegmentError) -> Result<(), SegmentError> {
        let error = zero_tail_or(&self.scanner, error)?;
        if !is_unsynced(&self.scanner, &error)? {
            return Err(error);
        }
        self.scanner.forget();
        Ok(())
    }

    /// Refuses a segment that ends inside something though another follows it.
    fn must_be_whole(&mut self) -> Result<(), SegmentError> {
        let bytes = self.scanner.fill(1)?.len() as u64;
        if bytes == 0 && self.header_read {
            return Ok(());
        }
        let offset = self.scanner.offset();
        Err(self.scanner.damaged(offset, SegmentDamage::Torn { bytes }))
    }
}
