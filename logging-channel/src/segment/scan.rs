//! Frames of one segment file in order, with memory for one frame.
//!
//! The scanner keeps its own position and reads with `pread`, so it can be asked again after the
//! end was reached and the file has grown.

#![forbid(unsafe_code)]

use super::format::{
    SEGMENT_HEADER_BYTES, SegmentDamage, SegmentError, SegmentHeader, parse_segment_name,
};
use super::spare::Spare;
use super::sync_point;
use crate::codec::{DecodeError, Placed, Sequence};
use crate::frame::{self, Frame, FrameError, FrameKind};
use crate::record::LogIndex;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Most that is read at once, unless a frame is longer: small enough to be checked and decoded from the
/// processor's cache.
const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// What is read first: a short file needs no more.
const CHUNK_BYTES: usize = 16 * 1024;

/// The segments of `directory` in the order of the log; other files are passed over.
pub(super) fn list(directory: &Path) -> Result<Vec<(LogIndex, PathBuf)>, SegmentError> {
    let io = |operation| {
        move |source| SegmentError::Io {
            operation,
            path: directory.to_owned(),
            source,
        }
    };
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory).map_err(io("list"))? {
        let entry = entry.map_err(io("list"))?;
        if let Some(first) = entry.file_name().to_str().and_then(parse_segment_name) {
            segments.push((first, entry.path()));
        }
    }
    segments.sort();
    Ok(segments)
}

/// Bytes of all segments of the log in `directory`, whatever is in them.
///
/// # Errors
/// When the directory or a file cannot be looked at.
pub fn bytes_on_disk(directory: &Path) -> Result<u64, SegmentError> {
    let segments = list(directory)?.into_iter();
    let bytes = segments.map(|(_, path)| match fs::metadata(&path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(source) => Err(SegmentError::Io {
            operation: "look at",
            path,
            source,
        }),
    });
    bytes.sum()
}

/// Gives `take` each record of `payload`, all of which must follow `sequence`; it then stands after
/// them. Packets are put into `spare` buffers while there are some. An error's offset counts from the frame's beginning, and leaves `sequence` as it was.
pub(super) fn walk_batch(
    payload: &[u8],
    sequence: &mut Sequence,
    spare: &mut Spare,
    mut take: impl FnMut(Placed),
) -> Result<(), (u64, SegmentDamage)> {
    let in_frame = |offset| (frame::HEADER_BYTES + offset) as u64;
    let refuse = |error: DecodeError| (in_frame(error.offset), SegmentDamage::Batch(error));
    let mut decoder = spare.decoder(payload).map_err(refuse)?;
    let mut first = true;
    for placed in decoder.by_ref() {
        let placed = placed.map_err(refuse)?;
        if std::mem::take(&mut first) {
            // The decoder sees to it that the others follow this one.
            let admitted = { *sequence }.admit(&placed.record);
            admitted.map_err(|fault| (in_frame(placed.offset), SegmentDamage::Sequence(fault)))?;
        }
        take(placed);
    }
    *sequence = decoder.sequence();
    spare.done(decoder);
    Ok(())
}

/// What lies at the scanner's position.
#[derive(Debug)]
pub(super) enum Scanned<'a> {
    /// A `Log` frame, at this offset; the scanner is past it now.
    Frame { offset: u64, frame: Frame<'a> },
    /// The end of the file.
    End,
    /// The file ends inside a header or frame of which this many bytes are there.
    Torn { bytes: u64 },
}

/// Reads one segment from its beginning.
#[derive(Debug)]
pub(super) struct Scanner {
    file: File,
    path: PathBuf,
    /// Index of the first record, as the name says.
    first: LogIndex,
    /// Offset in the file of the next frame.
    offset: u64,
    /// Up to `filled`, bytes of the file from `offset - consumed` on; behind it, room.
    buffer: Vec<u8>,
    consumed: usize,
    filled: usize,
}

impl Scanner {
    /// Opens the segment at `path`, named after `first`; its header is read by [`Self::header`].
    pub(super) fn open(path: &Path, first: LogIndex) -> Result<Self, SegmentError> {
        let file = File::open(path).map_err(|source| SegmentError::Io {
            operation: "open",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            file,
            path: path.to_owned(),
            first,
            offset: 0,
            buffer: Vec::new(),
            consumed: 0,
            filled: 0,
        })
    }

    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) const fn first(&self) -> LogIndex {
        self.first
    }

    /// The segment, to be read by others as well.
    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Goes on at `offset`.
    pub(super) fn move_to(&mut self, offset: u64) {
        self.forget();
        self.offset = offset;
    }

    /// Bytes from the position to the end of the file.
    pub(super) fn rest_bytes(&self) -> Result<u64, SegmentError> {
        let metadata = self.file.metadata().map_err(|source| SegmentError::Io {
            operation: "read",
            path: self.path.clone(),
            source,
        })?;
        Ok(metadata.len().saturating_sub(self.offset))
    }

    /// The error that `damage` at `offset` of this file is.
    pub(super) fn damaged(&self, offset: u64, damage: SegmentDamage) -> SegmentError {
        SegmentError::Damaged {
            path: self.path.clone(),
            offset,
            damage,
        }
    }

    /// Reads the header at the beginning; `None` when the file ends inside it.
    pub(super) fn header(&mut self) -> Result<Option<SegmentHeader>, SegmentError> {
        assert_eq!(self.offset, 0, "the header comes first");
        let Some(bytes) = self.fill(SEGMENT_HEADER_BYTES)?.first_chunk().copied() else {
            return Ok(None);
        };
        let header = SegmentHeader::decode(&bytes)
            .map_err(|(offset, damage)| self.damaged(offset, damage))?;
        self.advance(SEGMENT_HEADER_BYTES);
        Ok(Some(header))
    }

    /// Reads the next `Log` frame; after an error or `Torn` the position is not behind what is wrong.
    pub(super) fn frame(&mut self) -> Result<Scanned<'_>, SegmentError> {
        if let Some(torn) = self.pass_sync_points()? {
            return Ok(torn);
        }
        let mut need = frame::HEADER_BYTES;
        let length = loop {
            let there = self.fill(need)?;
            if there.is_empty() {
                return Ok(Scanned::End);
            }
            match frame::parse(there) {
                Ok(frame) if frame.kind == FrameKind::Log => break frame.length(),
                Ok(frame) => {
                    let damage = SegmentDamage::FrameKind(frame.kind);
                    return Err(self.damaged(self.offset, damage));
                }
                Err(FrameError::Incomplete { need: more }) if there.len() < need => {
                    debug_assert!(more >= need, "what is needed only grows");
                    return Ok(self.torn());
                }
                Err(FrameError::Incomplete { need: more }) => need = more,
                Err(FrameError::Corrupt { offset, damage }) => {
                    let at = self.offset + offset as u64;
                    return Err(self.damaged(at, SegmentDamage::Frame(damage)));
                }
                Err(FrameError::UnsupportedVersion { version }) => {
                    let damage = SegmentDamage::FrameVersion(version);
                    return Err(self.damaged(self.offset, damage));
                }
            }
        };
        let (offset, start) = (self.offset, self.consumed);
        self.advance(length);
        let bytes = &self.buffer[start..start + length];
        let payload = &bytes[frame::HEADER_BYTES..];
        let kind = FrameKind::Log;
        Ok(Scanned::Frame {
            offset,
            frame: Frame { kind, payload },
        })
    }

    /// Passes over sync points; `Torn` when the file ends inside one.
    fn pass_sync_points(&mut self) -> Result<Option<Scanned<'static>>, SegmentError> {
        let mut need = frame::HEADER_BYTES;
        loop {
            let (first, offset) = (self.first, self.offset);
            let there = self.fill(need)?;
            match sync_point::read(there, first, offset) {
                sync_point::Read::Other => return Ok(None),
                sync_point::Read::Incomplete { .. } if there.len() < need => {
                    return Ok(Some(self.torn()));
                }
                sync_point::Read::Incomplete { need: more } => need = more,
                sync_point::Read::Sound => self.advance(sync_point::SYNC_POINT_BYTES),
                sync_point::Read::Damaged => {
                    return Err(self.damaged(offset, SegmentDamage::SyncPoint));
                }
            }
        }
    }

    /// What is there is the beginning of something.
    fn torn(&mut self) -> Scanned<'static> {
        let bytes = (self.filled - self.consumed) as u64;
        self.forget();
        Scanned::Torn { bytes }
    }

    /// Reads again when asked again: a writer whose write failed takes back what it had written, and
    /// something else may then come here.
    pub(super) fn forget(&mut self) {
        self.filled = self.consumed;
    }

    /// Number of zero bytes from the position to the end of the file, when nothing else is there.
    pub(super) fn zero_tail(&self) -> Result<Option<u64>, SegmentError> {
        let mut at = self.offset;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match self.read_at(&mut chunk, at)? {
                0 => return Ok(Some(at - self.offset)),
                read if chunk[..read].iter().all(|byte| *byte == 0) => at += read as u64,
                _ => return Ok(None),
            }
        }
    }

    /// Passes over `length` bytes that [`Self::fill`] has shown.
    pub(super) fn advance(&mut self, length: usize) {
        assert!(self.consumed + length <= self.filled, "only what was seen");
        self.consumed += length;
        self.offset += length as u64;
    }

    /// The bytes at the position: at least `need` of them, fewer only at the end of the file.
    pub(super) fn fill(&mut self, need: usize) -> Result<&[u8], SegmentError> {
        if self.filled - self.consumed < need {
            self.buffer.copy_within(self.consumed..self.filled, 0);
            self.filled -= self.consumed;
            self.consumed = 0;
            if self.buffer.len() < need.max(CHUNK_BYTES_MAX) {
                // Twice as much each time, so that the beginning of a file costs little.
                let bytes = (self.buffer.len() * 2).clamp(CHUNK_BYTES, CHUNK_BYTES_MAX);
                self.buffer.resize(need.max(bytes), 0);
            }
            while self.filled < need {
                let at = self.offset + self.filled as u64;
                let mut buffer = std::mem::take(&mut self.buffer);
                let read = self.read_at(&mut buffer[self.filled..], at);
                self.buffer = buffer;
                match read? {
                    0 => break,
                    read => self.filled += read,
                }
            }
        }
        Ok(&self.buffer[self.consumed..self.filled])
    }

    /// Fills `buffer` from offset `at` on; fewer bytes only at the end of the file.
    pub(super) fn read_whole(&self, buffer: &mut [u8], at: u64) -> Result<usize, SegmentError> {
        let mut have = 0;
        while have < buffer.len() {
            match self.read_at(&mut buffer[have..], at + have as u64)? {
                0 => break,
                read => have += read,
            }
        }
        Ok(have)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<usize, SegmentError> {
        loop {
            match self.file.read_at(buffer, at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(SegmentError::Io {
                        operation: "read",
                        path: self.path.clone(),
                        source,
                    });
                }
                Ok(read) => return Ok(read),
            }
        }
    }
}
