//! Reads what can still be read of a damaged log, and says what was left out.
//!
//! For tools only: nothing is ever replayed from a log with holes. After damage the next frame is
//! looked for byte by byte; a header and its CRC-8 must be right before a frame's CRC-32C is
//! computed, and the work that crafted bytes can cause is bounded per hole.

#![forbid(unsafe_code)]

use super::blocks::Stretch;
use super::format::{SegmentDamage, SegmentError};
use super::reader::ReadFrame;
use super::recovery::check_header;
use super::scan::{Scanned, Scanner, list};
use super::spare::{Spare, read_batch};
use super::sync_point::{self, SYNC_POINT_BYTES};
use crate::codec::Sequence;
use crate::frame::{self, FrameKind};
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
    /// They lie behind the last sync point of the last segment, where a host that lost power may leave
    /// anything: recovery cuts the log here. Otherwise they are damage.
    pub unsynced: bool,
}

/// Reads the log in one directory as it is now, over any damage.
#[derive(Debug)]
pub struct Salvager {
    segments: VecDeque<(LogIndex, PathBuf)>,
    current: Option<Current>,
    sequence: Sequence,
    pending: Option<Salvaged>,
    spare: Spare,
}

/// The segment that is read.
#[derive(Debug)]
struct Current {
    scanner: Scanner,
    path: Arc<Path>,
    /// No segment follows.
    last: bool,
    /// The last sync point behind the first hole, once it was looked for.
    synced: Option<Option<u64>>,
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
            spare: Spare::default(),
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

    /// Takes back what was looked at: its memory is used for what is read next.
    pub fn reuse(&mut self, item: Salvaged) {
        if let Salvaged::Frame(frame) = item {
            self.spare.keep(frame.records);
        }
    }

    /// Where the last record given stands.
    #[must_use]
    pub const fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// What is left of the present segment, for reading in blocks; `None` when that is less than
    /// `bytes_min`, and between segments.
    ///
    /// # Errors
    /// When the file cannot be looked at.
    pub fn stretch(&self, bytes_min: u64) -> Result<Option<Stretch>, SegmentError> {
        let (Some(current), None) = (&self.current, &self.pending) else {
            return Ok(None);
        };
        let rest_bytes = current.scanner.rest_bytes()?;
        if rest_bytes < bytes_min {
            return Ok(None);
        }
        let stretch = Stretch::of(&current.scanner, &current.path, rest_bytes);
        stretch.map(Some).map_err(|source| SegmentError::Io {
            operation: "read",
            path: current.path.to_path_buf(),
            source,
        })
    }

    /// Goes on at `offset` in the present segment: what lies before it was read in blocks, to `sequence`.
    pub fn resume(&mut self, offset: u64, sequence: Sequence) {
        if let Some(current) = &mut self.current {
            current.scanner.move_to(offset);
            self.sequence = sequence;
        }
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
            let Some(current) = &mut self.current else {
                let Some((first, path)) = self.segments.pop_front() else {
                    return Ok(None);
                };
                let scanner = match Scanner::open(&path, first) {
                    // The writer's bound removed it since the directory was listed.
                    Err(error) if error.is_gone() => continue,
                    opened => opened?,
                };
                let mut current = Current {
                    scanner,
                    path: path.into(),
                    last: self.segments.is_empty(),
                    synced: None,
                };
                let hole = current.read_header(first, &mut self.sequence)?;
                self.current = Some(current);
                match hole {
                    Some(hole) => return Ok(Some(Salvaged::LeftOut(hole))),
                    None => continue,
                }
            };
            match current.read_frame(&mut self.sequence, &mut self.spare)? {
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

/// A hole and the frame after it; either may be absent, nothing at the end of the segment.
type Found = Option<(Option<LeftOut>, Option<ReadFrame>)>;

impl Current {
    /// Reads the header; a hole when it is damaged or records are missing before it.
    fn read_header(
        &mut self,
        name: LogIndex,
        sequence: &mut Sequence,
    ) -> Result<Option<LeftOut>, SegmentError> {
        let scanner = &mut self.scanner;
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
        if scanner.offset() > 0 {
            // The header itself is sound.
            return Ok(Some(LeftOut {
                path: Arc::clone(&self.path),
                offset,
                bytes: 0,
                damage,
                unsynced: false,
            }));
        }
        self.search(damage).map(Some)
    }

    fn read_frame(
        &mut self,
        sequence: &mut Sequence,
        spare: &mut Spare,
    ) -> Result<Found, SegmentError> {
        let damage = match self.scanner.frame() {
            Ok(Scanned::End) => return Ok(None),
            Ok(Scanned::Torn { bytes }) => SegmentDamage::Torn { bytes },
            Ok(Scanned::Frame { offset, frame }) => {
                let (payload, length) = (frame.payload, frame.length());
                return Ok(Some(read_sound(
                    payload,
                    (offset, length),
                    &self.path,
                    sequence,
                    spare,
                )));
            }
            Err(error) => damage_of(error)?.1,
        };
        *sequence = Sequence::default();
        Ok(Some((Some(self.search(damage)?), None)))
    }

    /// Whether bytes at the scanner's position, damaged like this, may be an unsynced tail.
    fn is_unsynced(&mut self, damage: &SegmentDamage) -> Result<bool, SegmentError> {
        if !self.last || !damage.may_be_unsynced() {
            return Ok(false);
        }
        let synced = match self.synced {
            Some(synced) => synced,
            None => *self.synced.insert(sync_point::last_behind(&self.scanner)?),
        };
        Ok(synced.is_none_or(|synced| synced < self.scanner.offset()))
    }

    /// Moves the scanner to the next sound frame or sync point, or the end of the file; what was
    /// passed over.
    fn search(&mut self, damage: SegmentDamage) -> Result<LeftOut, SegmentError> {
        let offset = self.scanner.offset();
        let damage = match self.scanner.zero_tail()? {
            // What a host that lost power leaves where the file had grown and its data was not there yet.
            Some(bytes @ 1..) => SegmentDamage::ZeroTail { bytes },
            _ => damage,
        };
        let unsynced = self.is_unsynced(&damage)?;
        let scanner = &mut self.scanner;
        let mut checked_bytes = 0;
        loop {
            if scanner.fill(1)?.is_empty() {
                break;
            }
            scanner.advance(1);
            let (first, at) = (scanner.first(), scanner.offset());
            let there = scanner.fill(SYNC_POINT_BYTES)?;
            if sync_point::read(there, first, at) == sync_point::Read::Sound {
                break;
            }
            let Ok((FrameKind::Log, length)) = frame::parse_header(there) else {
                continue;
            };
            checked_bytes += length as u64;
            if checked_bytes <= SEARCH_BYTES_MAX && frame::parse(scanner.fill(length)?).is_ok() {
                break;
            }
        }
        Ok(LeftOut {
            path: Arc::clone(&self.path),
            offset,
            bytes: scanner.offset() - offset,
            damage,
            unsynced,
        })
    }
}

/// The records of a frame whose checks are right.
fn read_sound(
    payload: &[u8],
    (offset, length): (u64, usize),
    path: &Arc<Path>,
    sequence: &mut Sequence,
    spare: &mut Spare,
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
    let damage = match read_batch(payload, sequence, spare) {
        Ok(records) => return (None, frame(records)),
        Err((_, damage)) => damage,
    };
    // It may only be out of sequence, and sound by itself.
    *sequence = Sequence::default();
    let records = read_batch(payload, sequence, spare);
    let bytes = if records.is_ok() { 0 } else { length as u64 };
    let hole = LeftOut {
        path: Arc::clone(&path),
        offset,
        bytes,
        damage,
        unsynced: false,
    };
    (Some(hole), records.ok().and_then(frame))
}

/// Separates damage, which is reported, from failures of the file system.
fn damage_of(error: SegmentError) -> Result<(u64, SegmentDamage), SegmentError> {
    match error {
        SegmentError::Damaged { offset, damage, .. } => Ok((offset, damage)),
        other => Err(other),
    }
}
