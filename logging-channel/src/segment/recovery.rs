//! Checks a whole log before it is appended to, and cuts an unsynced tail when told to.
//!
//! An **unsynced tail** is what a host that lost power leaves behind the last sync point of the last
//! segment, from the first byte on that is wrong: the beginning of a frame, zeros, a page as it was
//! before, and whatever follows, sound frames among it. Nothing there was promised to be on disk.
//! Everything else is damage, and refused: bytes before a sync point, an earlier segment, a gap
//! between segments, a sound frame with records that do not belong.

#![forbid(unsafe_code)]

use super::format::{SEGMENT_HEADER_BYTES, SegmentDamage, SegmentError};
use super::scan::{Scanned, Scanner, list, walk_batch};
use super::spare::Spare;
use super::sync_point;
use crate::codec::Sequence;
use crate::file_header::vm_hash;
use crate::record::LogIndex;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

/// What recovery does with an unsynced tail of the last segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TailPolicy {
    /// Refuse it like any damage; nothing is changed on disk.
    Refuse,
    /// Cut it off, and say so in [`Recovered::cut`].
    CutTorn,
}

/// An unsynced tail that was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub path: PathBuf,
    /// Where it was cut. 0 when not even its header was there: the file is gone then.
    pub offset: u64,
    /// Bytes that were cut off.
    pub bytes: u64,
}

/// A log that is sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// First index and path of every segment.
    pub segments: Vec<(LogIndex, PathBuf)>,
    /// Where the log ends; admits its next record.
    pub sequence: Sequence,
    /// Records in the log.
    pub records: u64,
    /// Length of the last segment in bytes.
    pub last_segment_bytes: u64,
    /// The unsynced tail that was cut off, if there was one.
    pub cut: Option<Cut>,
}

impl Recovered {
    /// Index after the last record; `None` when the log is empty.
    #[must_use]
    pub fn next(&self) -> Option<LogIndex> {
        self.sequence.next()
    }
}

/// Checks every frame and record of the log of `vm` in `directory`.
///
/// # Errors
/// When a file cannot be read, or with the file and offset of any damage but an unsynced tail that
/// `tail` allows to cut.
pub fn recover(directory: &Path, vm: &str, tail: TailPolicy) -> Result<Recovered, SegmentError> {
    let segments = list(directory)?;
    let mut recovered = Recovered {
        segments: Vec::new(),
        sequence: Sequence::default(),
        records: 0,
        last_segment_bytes: 0,
        cut: None,
    };
    let count = segments.len();
    for (number, (first, path)) in segments.into_iter().enumerate() {
        let mut scanner = Scanner::open(&path, first)?;
        let checked = check_segment(&mut scanner, first, vm, &mut recovered);
        let offset = scanner.offset();
        if let Err(error) = checked {
            let last = number + 1 == count;
            if !last || tail == TailPolicy::Refuse || !is_unsynced(&scanner, &error)? {
                return Err(error);
            }
            let bytes = scanner.rest_bytes()?;
            cut(directory, &path, offset)?;
            recovered.cut = Some(Cut {
                path: path.clone(),
                offset,
                bytes,
            });
            if offset == 0 {
                continue;
            }
        }
        recovered.last_segment_bytes = offset;
        recovered.segments.push((first, path));
    }
    Ok(recovered)
}

/// Whether `error`, met at the scanner's position in the last segment, is what a host that lost power
/// may have left there.
pub(super) fn is_unsynced(scanner: &Scanner, error: &SegmentError) -> Result<bool, SegmentError> {
    match error {
        SegmentError::Damaged { damage, .. } if damage.may_be_unsynced() => {
            Ok(sync_point::last_behind(scanner)?.is_none())
        }
        _ => Ok(false),
    }
}

/// Checks one segment up to its end; after an error the scanner stands before what is wrong.
fn check_segment(
    scanner: &mut Scanner,
    name: LogIndex,
    vm: &str,
    recovered: &mut Recovered,
) -> Result<(), SegmentError> {
    let header = match scanner.header() {
        Ok(Some(header)) => header,
        Ok(None) => {
            let bytes = scanner.fill(SEGMENT_HEADER_BYTES)?.len() as u64;
            return Err(scanner.damaged(0, SegmentDamage::Torn { bytes }));
        }
        Err(error) => return Err(zero_tail_or(scanner, error)?),
    };
    check_header(scanner, name, header.first, recovered.sequence.next())?;
    if header.vm_hash != vm_hash(vm) {
        return Err(scanner.damaged(20, SegmentDamage::OtherVm));
    }
    loop {
        let (offset, batch) = match scanner.frame() {
            Ok(Scanned::Frame { offset, frame }) => (offset, check_batch(frame.payload, recovered)),
            Ok(Scanned::End) => return Ok(()),
            Ok(Scanned::Torn { bytes }) => {
                let torn = scanner.damaged(scanner.offset(), SegmentDamage::Torn { bytes });
                return Err(zero_tail_or(scanner, torn)?);
            }
            Err(error) => return Err(zero_tail_or(scanner, error)?),
        };
        batch.map_err(|(within, damage)| scanner.damaged(offset + within, damage))?;
    }
}

/// Whether a segment may stand where it does.
pub(super) fn check_header(
    scanner: &Scanner,
    name: LogIndex,
    header: LogIndex,
    next: Option<LogIndex>,
) -> Result<(), SegmentError> {
    if header != name {
        return Err(scanner.damaged(12, SegmentDamage::Name { name, header }));
    }
    match next {
        Some(expected) if expected != header => {
            let found = header;
            Err(scanner.damaged(12, SegmentDamage::Gap { expected, found }))
        }
        _ => Ok(()),
    }
}

/// Takes the records of `payload`; an error's offset counts from the frame's beginning.
fn check_batch(payload: &[u8], recovered: &mut Recovered) -> Result<(), (u64, SegmentDamage)> {
    let records = &mut recovered.records;
    walk_batch(
        payload,
        &mut recovered.sequence,
        &mut Spare::default(),
        |_| {
            *records += 1;
        },
    )
}

/// `error`, with a better word for damage that is nothing but zeros up to the end of the file.
pub(super) fn zero_tail_or(
    scanner: &Scanner,
    error: SegmentError,
) -> Result<SegmentError, SegmentError> {
    match (&error, scanner.zero_tail()?) {
        (SegmentError::Damaged { .. }, Some(bytes @ 1..)) => {
            Ok(scanner.damaged(scanner.offset(), SegmentDamage::ZeroTail { bytes }))
        }
        _ => Ok(error),
    }
}

fn cut(directory: &Path, path: &Path, offset: u64) -> Result<(), SegmentError> {
    let io = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| SegmentError::Io {
            operation,
            path,
            source,
        }
    };
    if offset == 0 {
        fs::remove_file(path).map_err(io("remove", path))?;
        return File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(io("sync", directory));
    }
    let file = OpenOptions::new().write(true).open(path);
    let file = file.map_err(io("open", path))?;
    file.set_len(offset).map_err(io("truncate", path))?;
    file.sync_all().map_err(io("sync", path))
}
