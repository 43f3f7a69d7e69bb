//! Sync points: marks in a segment that say what was durable when they were written.
//!
//! ```text
//!  0            8             16           24          28
//!  +------------+-------------+------------+-----------+
//!  | "UNDRSYNC" | first index | own offset | CRC-32C   |
//!  |            | u64 LE      | u64 LE     | of 0..24  |
//!  +------------+-------------+------------+-----------+
//! ```
//!
//! The writer puts one behind the log after each sync. A host that loses power may leave anything
//! behind the last sync: zeros, a page as it was before, a hole with later data behind it. So a sync
//! point is what tells a crash from a disk that lost what it had promised to keep: **bytes before a
//! sound sync point, and all of a segment that has a successor, are damage when they are wrong; what
//! is wrong behind the last one is an unsynced tail**, and recovery cuts it.
//!
//! It names its segment and its offset, so that a block of another file, or of another place in
//! this one, is not taken for one.

#![forbid(unsafe_code)]

use super::format::SegmentError;
use super::scan::Scanner;
use crate::record::LogIndex;

/// Bytes of a sync point.
pub const SYNC_POINT_BYTES: usize = 28;

const MAGIC: [u8; 8] = *b"UNDRSYNC";
const CRC_OFFSET: usize = 24;

/// What lies where a sync point may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// Something else.
    Other,
    /// The beginning of one; this many bytes are needed to say more.
    Incomplete { need: usize },
    /// One that is sound, and in its place.
    Sound,
    /// One that is damaged, or of another place.
    Damaged,
}

/// The bytes of a sync point at `offset` of the segment that begins with record `first`.
#[must_use]
pub fn encode(first: LogIndex, offset: u64) -> [u8; SYNC_POINT_BYTES] {
    let mut bytes = [0; SYNC_POINT_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&first.0.to_le_bytes());
    bytes[16..CRC_OFFSET].copy_from_slice(&offset.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
    bytes[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// What `bytes` begin with, which lie at `offset` of the segment that begins with record `first`.
pub(super) fn read(bytes: &[u8], first: LogIndex, offset: u64) -> Read {
    let seen = bytes.len().min(MAGIC.len());
    if seen == 0 || bytes[..seen] != MAGIC[..seen] {
        return Read::Other;
    }
    match bytes.first_chunk::<SYNC_POINT_BYTES>() {
        None => Read::Incomplete {
            need: SYNC_POINT_BYTES,
        },
        Some(there) if *there == encode(first, offset) => Read::Sound,
        Some(_) => Read::Damaged,
    }
}

/// Offset of the last sound sync point at or behind the scanner's position, which does not move.
pub(super) fn last_behind(scanner: &Scanner) -> Result<Option<u64>, SegmentError> {
    const CHUNK_BYTES: usize = 64 * 1024;
    let mut chunk = vec![0; CHUNK_BYTES];
    let (mut at, mut last) = (scanner.offset(), None);
    loop {
        let there = scanner.read_whole(&mut chunk, at)?;
        let bytes = &chunk[..there];
        let begins = bytes
            .windows(SYNC_POINT_BYTES)
            .enumerate()
            .filter(|(_, window)| window.starts_with(&MAGIC));
        for (within, window) in begins {
            let offset = at + within as u64;
            if read(window, scanner.first(), offset) == Read::Sound {
                last = Some(offset);
            }
        }
        if there < CHUNK_BYTES {
            return Ok(last);
        }
        // One that begins in this chunk may end in the next.
        at += (CHUNK_BYTES - (SYNC_POINT_BYTES - 1)) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_sync_point() {
        let bytes = encode(LogIndex(0x0102), 0x20);
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "554e445253594e4302010000000000002000000000000000db27d0fc"
        );
    }

    #[test]
    fn it_is_sound_only_whole_and_in_its_place() {
        let (first, offset) = (LogIndex(7), 4_000);
        let bytes = encode(first, offset);
        assert_eq!(read(&bytes, first, offset), Read::Sound);
        assert_eq!(read(&bytes, first, offset + 1), Read::Damaged);
        assert_eq!(read(&bytes, LogIndex(8), offset), Read::Damaged);
        for cut in 1..SYNC_POINT_BYTES {
            let need = SYNC_POINT_BYTES;
            assert_eq!(
                read(&bytes[..cut], first, offset),
                Read::Incomplete { need }
            );
        }
        for bit in 0..SYNC_POINT_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(read(&flipped, first, offset), Read::Sound, "bit {bit}");
        }
    }
}
