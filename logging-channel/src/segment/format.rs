//! Segment headers and names, and what can be wrong with a segment.
//!
//! ```text
//!  0            8         12             20           28          32
//!  +------------+---------+--------------+------------+-----------+-----------
//!  | "UNDRSTDY" | version | first index  | VM name    | CRC-32C   | Log frames,
//!  |            | u32 LE  | u64 LE       | FNV-1a 64  | of 0..28  | sync points
//!  +------------+---------+--------------+------------+-----------+-----------
//! ```
//!
//! A segment's name is its first index in 20 decimal digits and `.log`, so that names sort as the
//! log does. The name's hash keeps logs of two VMs apart that were put in one directory; it is
//! no protection against anyone.

#![forbid(unsafe_code)]

use crate::codec::{DecodeError, SequenceFault};
use crate::frame::{Damage, FrameKind};
use crate::record::LogIndex;
use std::io;
use std::path::PathBuf;

/// Bytes of a segment before its first frame.
pub const SEGMENT_HEADER_BYTES: usize = 32;
/// Version of the segment header.
pub const SEGMENT_VERSION: u32 = 2;

const MAGIC: [u8; 8] = *b"UNDRSTDY";
const CRC_OFFSET: usize = 28;
const NAME_DIGITS: usize = 20;
const NAME_SUFFIX: &str = ".log";

/// The first bytes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Index of the first record.
    pub first: LogIndex,
    /// [`vm_hash`] of the VM's name.
    pub vm_hash: u64,
}

impl SegmentHeader {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.vm_hash.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
        bytes[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header in `bytes`.
    ///
    /// # Errors
    /// Why it is none, and the offset at which that shows.
    pub fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Result<Self, (u64, SegmentDamage)> {
        let (magic, rest) = bytes.split_at(8);
        let mut word = [0; 8];
        if magic != MAGIC {
            word.copy_from_slice(magic);
            return Err((0, SegmentDamage::Magic(word)));
        }
        let version = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
        let expected = crc32c::crc32c(&bytes[..CRC_OFFSET]).to_le_bytes();
        if expected != bytes[CRC_OFFSET..] {
            return Err((CRC_OFFSET as u64, SegmentDamage::HeaderCrc));
        }
        if version != SEGMENT_VERSION {
            return Err((8, SegmentDamage::Version(version)));
        }
        word.copy_from_slice(&bytes[12..20]);
        let first = LogIndex(u64::from_le_bytes(word));
        word.copy_from_slice(&bytes[20..28]);
        Ok(Self {
            first,
            vm_hash: u64::from_le_bytes(word),
        })
    }
}

/// FNV-1a, 64 bits, of the VM's name.
#[must_use]
pub fn vm_hash(vm: &str) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    vm.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// File name of the segment that begins with record `first`.
#[must_use]
pub fn segment_name(first: LogIndex) -> String {
    format!("{:0NAME_DIGITS$}{NAME_SUFFIX}", first.0)
}

/// First index of the segment called `name`; `None` for the name of anything else.
#[must_use]
pub fn parse_segment_name(name: &str) -> Option<LogIndex> {
    let digits = name.strip_suffix(NAME_SUFFIX)?;
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    if digits.len() != NAME_DIGITS || !all_digits {
        return None;
    }
    digits.parse().ok().map(LogIndex)
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

    #[test]
    fn golden_header() {
        let header = SegmentHeader {
            first: LogIndex(0x0102),
            vm_hash: vm_hash("a"),
        };
        // FNV-1a 64 of "a" is 0xaf63dc4c8601ec8c (the algorithm's published test vector).
        assert_eq!(header.vm_hash, 0xaf63_dc4c_8601_ec8c);
        let golden = "554e44525354445902000000020100000000000\
                      08cec01864cdc63afc9af8fcc";
        let hex: String = header.encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, golden);
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn every_flip_of_one_header_bit_is_refused() {
        let header = SegmentHeader {
            first: LogIndex(7),
            vm_hash: 9,
        };
        for bit in 0..SEGMENT_HEADER_BYTES * 8 {
            let mut bytes = header.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            SegmentHeader::decode(&bytes).expect_err("a flipped bit was not seen");
        }
    }

    #[test]
    fn a_later_version_is_named() {
        let mut bytes = SegmentHeader {
            first: LogIndex(7),
            vm_hash: 9,
        }
        .encode();
        bytes[8] = 3;
        let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
        bytes[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        let refused = Err((8, SegmentDamage::Version(3)));
        assert_eq!(SegmentHeader::decode(&bytes), refused);
    }

    #[test]
    fn names_are_exact() {
        assert_eq!(segment_name(LogIndex(42)), "00000000000000000042.log");
        assert_eq!(
            parse_segment_name("00000000000000000042.log"),
            Some(LogIndex(42))
        );
        let largest = segment_name(LogIndex(u64::MAX));
        assert_eq!(parse_segment_name(&largest), Some(LogIndex(u64::MAX)));
        for other in [
            "42.log",
            "00000000000000000042",
            "99999999999999999999.log",
            "+0000000000000000042.log",
        ] {
            assert_eq!(parse_segment_name(other), None, "{other}");
        }
    }
}
