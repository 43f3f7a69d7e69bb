//! Segment headers and names, and what can be wrong with a segment.
//!
//! A segment begins as [`file_header`](crate::file_header) says and is numbered by the index of its first
//! record; Log frames and sync points follow.

#![forbid(unsafe_code)]

use crate::codec::{DecodeError, SequenceFault};
use crate::file_header::{FILE_HEADER_BYTES, FileHeader, FileKind, HeaderFault};
use crate::frame::{Damage, FrameKind};
use crate::record::LogIndex;
use std::io;
use std::path::PathBuf;

/// Bytes of a segment before its first frame.
pub const SEGMENT_HEADER_BYTES: usize = FILE_HEADER_BYTES;
/// Version of the segment header.
pub const SEGMENT_VERSION: u32 = 2;

const SEGMENT: FileKind = FileKind {
    magic: *b"UNDRSTDY",
    version: SEGMENT_VERSION,
    suffix: ".log",
};

/// The first bytes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Index of the first record.
    pub first: LogIndex,
    /// [`vm_hash`](crate::file_header::vm_hash) of the VM's name.
    pub vm_hash: u64,
}

impl SegmentHeader {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let (number, vm_hash) = (self.first.0, self.vm_hash);
        SEGMENT.encode(FileHeader { number, vm_hash })
    }

    /// The header in `bytes`.
    ///
    /// # Errors
    /// Why it is none, and the offset at which that shows.
    pub fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Result<Self, (u64, SegmentDamage)> {
        match SEGMENT.decode(bytes) {
            Ok(FileHeader { number, vm_hash }) => Ok(Self {
                first: LogIndex(number),
                vm_hash,
            }),
            Err(fault) => Err((fault.offset(), fault.into())),
        }
    }
}

/// File name of the segment that begins with record `first`.
#[must_use]
pub fn segment_name(first: LogIndex) -> String {
    SEGMENT.name(first.0)
}

/// First index of the segment called `name`; `None` for the name of anything else.
#[must_use]
pub fn parse_segment_name(name: &str) -> Option<LogIndex> {
    SEGMENT.parse_name(name).map(LogIndex)
}

/// A log on disk that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The file system failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
    /// The bytes are not a sound log.
    #[error("{} is damaged at byte {offset}: {damage}", path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        damage: SegmentDamage,
    },
    /// Another process writes this log.
    #[error("{} is being written by another process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The appended records are not the next of the log.
    #[error("record {} cannot be appended: the log's next index is {}", found.0, expected.0)]
    NotNext {
        /// The log's next index.
        expected: LogIndex,
        /// First index of what was to be appended.
        found: LogIndex,
    },
    /// An earlier write or sync failed; what is on disk is not known any more.
    #[error("{} was given up after a failed write", path.display())]
    GivenUp {
        /// The directory.
        path: PathBuf,
    },
}

impl SegmentError {
    /// A file that was listed is not there any more.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// What is wrong with a segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentDamage {
    /// Not a segment at all.
    #[error("the file does not begin as a log segment does, but with {0:02x?}")]
    Magic([u8; 8]),
    /// A segment of another version.
    #[error("segment version {0} is not supported (this program has {SEGMENT_VERSION})")]
    Version(u32),
    /// The header changed.
    #[error("the CRC-32C of the segment header does not match")]
    HeaderCrc,
    /// The file is named after another index.
    #[error("the file is named after index {} but begins with {}", name.0, header.0)]
    Name {
        /// Index in the name.
        name: LogIndex,
        /// Index in the header.
        header: LogIndex,
    },
    /// A segment of another VM.
    #[error("the log belongs to another VM")]
    OtherVm,
    /// The segment does not begin where the one before it ended.
    #[error("the segment begins with index {} where {} must follow", found.0, expected.0)]
    Gap {
        /// Index after the last record of the segment before.
        expected: LogIndex,
        /// First index of this segment.
        found: LogIndex,
    },
    /// A sync point that was changed, or belongs elsewhere.
    #[error("a sync point is damaged, or of another place")]
    SyncPoint,
    /// Bytes that are not a frame.
    #[error("{0}")]
    Frame(Damage),
    /// A frame of another version.
    #[error("frame format version {0} is not supported")]
    FrameVersion(u8),
    /// A frame that does not belong in a log.
    #[error("a {0:?} frame is not part of a log")]
    FrameKind(FrameKind),
    /// A sound frame around a batch that is none.
    #[error("{}", .0.fault)]
    Batch(DecodeError),
    /// The records of this frame do not follow those before it.
    #[error("{0}")]
    Sequence(SequenceFault),
    /// The file ends inside a header or frame.
    #[error("the file ends {bytes} bytes into a frame or header")]
    Torn {
        /// Bytes of the beginning that are there.
        bytes: u64,
    },
    /// Zeros up to the end of the file, as an interrupted write leaves on some file systems.
    #[error("{bytes} zero bytes up to the end of the file")]
    ZeroTail {
        /// How many.
        bytes: u64,
    },
}

impl From<HeaderFault> for SegmentDamage {
    fn from(fault: HeaderFault) -> Self {
        match fault {
            HeaderFault::Magic(found) => Self::Magic(found),
            HeaderFault::Crc => Self::HeaderCrc,
            HeaderFault::Version(version) => Self::Version(version),
        }
    }
}

impl SegmentDamage {
    /// Whether a host that lost power can leave this where nothing was synced. Sound frames that say the
    /// wrong thing, and headers, which are synced before anything follows, are never its work.
    #[must_use]
    pub const fn may_be_unsynced(&self) -> bool {
        matches!(
            self,
            Self::Frame(_)
                | Self::FrameVersion(_)
                | Self::SyncPoint
                | Self::Torn { .. }
                | Self::ZeroTail { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file_header::vm_hash;

    #[test]
    fn golden_header() {
        let header = SegmentHeader {
            first: LogIndex(0x0102),
            vm_hash: vm_hash("a"),
        };
        let golden = "554e44525354445902000000020100000000000\
                      08cec01864cdc63afc9af8fcc";
        let hex: String = header.encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, golden);
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
        assert_eq!(segment_name(LogIndex(42)), "00000000000000000042.log");
    }

    #[test]
    fn faults_are_told_with_their_offset() {
        let sound = SegmentHeader {
            first: LogIndex(7),
            vm_hash: 9,
        }
        .encode();
        let with = |at: usize| {
            let mut bytes = sound;
            bytes[at] ^= 1;
            SegmentHeader::decode(&bytes)
        };
        assert_eq!(with(0), Err((0, SegmentDamage::Magic(*b"TNDRSTDY"))));
        assert_eq!(with(13), Err((28, SegmentDamage::HeaderCrc)));
    }
}
