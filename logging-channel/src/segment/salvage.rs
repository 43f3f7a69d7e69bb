//! Reads what can still be read of a damaged log, and says what was left out.
//!
//! For tools only: nothing is ever replayed from a log with holes. After damage the next frame is
//! looked for byte by byte; a header and its CRC-8 must be right before a frame's CRC-32C is
//! computed, and the work that crafted bytes can cause is bounded per hole.

#![forbid(unsafe_code)]

use super::format::{SegmentDamage, SegmentError};
use super::reader::{ReadFrame, read_batch};
use super::recovery::check_header;
use super::scan::{Scanned, Scanner, list};
use crate::codec::Sequence;
use crate::frame::{self, FrameKind, HEADER_BYTES};
use crate::record::LogIndex;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes whose CRC-32C is computed in search of one next frame before the segment is given up.
const SEARCH_BYTES_MAX: u64 = 256 << 20;

/// Something found in a log, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Salvaged {
    /// A sound frame.
    Frame(ReadFrame),
    /// Bytes that could not be read as one.
    LeftOut(LeftOut),
}

/// Bytes of a log that were left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The segment.
    pub path: Arc<Path>,
    /// Where the bytes begin.
    pub offset: u64,
    /// How many there are; 0 when frames are sound but records are missing before this one.
    pub bytes: u64,
    /// Why the first of them could not be read.
    pub damage: SegmentDamage,
}

/// Reads the log in one directory as it is now, over any damage.
#[derive(Debug)]
pub struct Salvager {
    segments: VecDeque<(LogIndex, PathBuf)>,
    current: Option<(Scanner, Arc<Path>)>,
    sequence: Sequence,
    pending: Option<Salvaged>,
}

impl Salvager {
    /// A reader of what is in `directory`.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn open(directory: &Path) -> Result<Self, SegmentError> {
        Ok(Self {
            segments: list(directory)?.into(),
            current: None,
            sequence: Sequence::default(),
            pending: None,
        })
    }

    /// As [`Self::open`], without the segments that end before record `from`.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn open_at(directory: &Path, from: LogIndex) -> Result<Self, SegmentError> {
        let mut salvager = Self::open(directory)?;
        let begun = salvager.segments.iter().filter(|(first, _)| *first <= from);
        let passed = begun.count().saturating_sub(1);
        salvager.segments.drain(..passed);
        Ok(salvager)
    }

    /// First indices of the segments not yet opened, in order.
    #[must_use]
    pub fn segments(&self) -> Vec<LogIndex> {
        self.segments.iter().map(|(first, _)| *first).collect()
    }

    /// The next frame or hole; `None` at the end.
    ///
    /// # Errors
    /// When a file cannot be read; damage is no error here.
    #[expect(
        clippy::should_implement_trait,
        reason = "fallible, like the other readers"
    )]
    pub fn next(&mut self) -> Result<Option<Salvaged>, SegmentError> {
        if self.pending.is_some() {
            return Ok(self.pending.take());
        }
        loop {
            let Some((scanner, path)) = &mut self.current else {
                let Some((first, path)) = self.segments.pop_front() else {
                    return Ok(None);
                };
                let mut scanner = Scanner::open(&path)?;
                let path: Arc<Path> = path.into();
                let hole = read_header(&mut scanner, &path, first, &mut self.sequence)?;
                self.current = Some((scanner, path));
                match hole {
                    Some(hole) => return Ok(Some(Salvaged::LeftOut(hole))),
                    None => continue,
                }
            };
            match read_frame(scanner, path, &mut self.sequence)? {
                None => self.current = None,
                Some((hole, None)) => return Ok(hole.map(Salvaged::LeftOut)),
                Some((None, frame)) => return Ok(frame.map(Salvaged::Frame)),
                Some((Some(hole), frame)) => {
                    self.pending = frame.map(Salvaged::Frame);
                    return Ok(Some(Salvaged::LeftOut(hole)));
                }
            }
        }
    }
}

/// Reads a segment's header; a hole when it is damaged or records are missing before it.
fn read_header(
    scanner: &mut Scanner,
    path: &Arc<Path>,
    name: LogIndex,
    sequence: &mut Sequence,
) -> Result<Option<LeftOut>, SegmentError> {
    let checked = match scanner.header() {
        Ok(Some(header)) => check_header(scanner, name, header.first, sequence.next()),
        // What there is of the header is left out by the search for a frame.
        Ok(None) => return Ok(None),
        Err(error) => Err(error),
    };
    let Err(error) = checked else {
        return Ok(None);
    };
    *sequence = Sequence::default();
    let (offset, damage) = damage_of(error)?;
    let from = scanner.offset();
    if from > 0 {
        // The header itself is sound.
        let path = Arc::clone(path);
        return Ok(Some(LeftOut {
            path,
            offset,
            bytes: 0,
            damage,
        }));
    }
    search(scanner, path, damage).map(Some)
}

/// A hole and the frame after it; either may be absent, nothing at the end of the segment.
type Found = Option<(Option<LeftOut>, Option<ReadFrame>)>;

fn read_frame(
    scanner: &mut Scanner,
    path: &Arc<Path>,
    sequence: &mut Sequence,
) -> Result<Found, SegmentError> {
    let from = scanner.offset();
    let damage = match scanner.frame() {
        Ok(Scanned::End) => return Ok(None),
        Ok(Scanned::Torn { bytes }) => SegmentDamage::Torn { bytes },
        Ok(Scanned::Frame { offset, frame }) => {
            return Ok(Some(read_sound(
                frame.payload,
                frame.length(),
                offset,
                path,
                sequence,
            )));
        }
        Err(error) => damage_of(error)?.1,
    };
    debug_assert_eq!(scanner.offset(), from, "a refused frame is not passed over");
    *sequence = Sequence::default();
    Ok(Some((Some(search(scanner, path, damage)?), None)))
}

/// The records of a frame whose checks are right.
fn read_sound(
    payload: &[u8],
    length: usize,
    offset: u64,
    path: &Arc<Path>,
    sequence: &mut Sequence,
) -> (Option<LeftOut>, Option<ReadFrame>) {
    let path = Arc::clone(path);
    let frame = |records| {
        let path = Arc::clone(&path);
        Some(ReadFrame {
            path,
            offset,
            length,
            records,
        })
    };
    let damage = match read_batch(payload, sequence) {
        Ok(records) => return (None, frame(records)),
        Err((_, damage)) => damage,
    };
    // It may only be out of sequence, and sound by itself.
    *sequence = Sequence::default();
    let records = read_batch(payload, sequence);
    let bytes = if records.is_ok() { 0 } else { length as u64 };
    let hole = LeftOut {
        path: Arc::clone(&path),
        offset,
        bytes,
        damage,
    };
    (Some(hole), records.ok().and_then(frame))
}

/// Moves `scanner` to the next sound frame or the end of the file; what was passed over.
fn search(
    scanner: &mut Scanner,
    path: &Arc<Path>,
    damage: SegmentDamage,
) -> Result<LeftOut, SegmentError> {
    let offset = scanner.offset();
    let damage = match scanner.zero_tail()? {
        // What a host that lost power leaves where the file had grown and its data was not there yet.
        Some(bytes @ 1..) => SegmentDamage::ZeroTail { bytes },
        _ => damage,
    };
    let mut checked_bytes = 0;
    loop {
        if scanner.fill(1)?.is_empty() {
            break;
        }
        scanner.advance(1);
        let header = frame::parse_header(scanner.fill(HEADER_BYTES)?);
        let Ok((FrameKind::Log, length)) = header else {
            continue;
        };
        checked_bytes += length as u64;
        if checked_bytes <= SEARCH_BYTES_MAX && frame::parse(scanner.fill(length)?).is_ok() {
            break;
        }
    }
    Ok(LeftOut {
        path: Arc::clone(path),
        offset,
        bytes: scanner.offset() - offset,
        damage,
    })
}

/// Separates damage, which is reported, from failures of the file system.
fn damage_of(error: SegmentError) -> Result<(u64, SegmentDamage), SegmentError> {
    match error {
        SegmentError::Damaged { offset, damage, .. } => Ok((offset, damage)),
        other => Err(other),
    }
}
