//! A journal's bytes: a numbered file as [`file_header`](crate::file_header) says, then entries, each with
//! a length and a check.
//!
//! ```text
//!  entry   length u16 LE | CRC-32C of length and payload, LE | payload
//! ```

#![forbid(unsafe_code)]

use super::entry::Entry;
use crate::codec::{DecodeError, decode_value, encode_value};
use crate::file_header::{FILE_HEADER_BYTES, FileHeader, FileKind, HeaderFault};

/// Bytes of a journal file before its first entry.
pub const JOURNAL_HEADER_BYTES: usize = FILE_HEADER_BYTES;
/// Version of header and entries.
pub const JOURNAL_VERSION: u32 = 2;
/// Longest payload of an entry.
pub const ENTRY_PAYLOAD_BYTES_MAX: usize = 16 * 1024;
/// Bytes before the payload.
pub const ENTRY_HEADER_BYTES: usize = 6;
/// Longest entry.
pub const ENTRY_BYTES_MAX: usize = ENTRY_HEADER_BYTES + ENTRY_PAYLOAD_BYTES_MAX;

const JOURNAL: FileKind = FileKind {
    magic: *b"UNDRJRNL",
    version: JOURNAL_VERSION,
    suffix: ".journal",
};

/// The first bytes of a journal file.
#[must_use]
pub fn encode_header(header: FileHeader) -> [u8; JOURNAL_HEADER_BYTES] {
    JOURNAL.encode(header)
}

/// The header in `bytes`.
///
/// # Errors
/// Why it is none.
pub fn decode_header(bytes: &[u8; JOURNAL_HEADER_BYTES]) -> Result<FileHeader, JournalDamage> {
    Ok(JOURNAL.decode(bytes)?)
}

/// What can be wrong with a journal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalDamage {
    /// It does not begin like one.
    #[error("no journal begins like this")]
    Magic,
    /// The header's check.
    #[error("the header's CRC-32C is wrong")]
    HeaderCrc,
    /// Written by another program.
    #[error("journal version {0}, this program reads {JOURNAL_VERSION}")]
    Version(u32),
    /// The file ends inside a header or an entry.
    #[error("it ends inside an entry")]
    Torn,
    /// An entry's length or check.
    #[error("an entry's length or CRC-32C is wrong")]
    Entry,
    /// An entry's payload.
    #[error(transparent)]
    Payload(#[from] DecodeError),
}

impl From<HeaderFault> for JournalDamage {
    fn from(fault: HeaderFault) -> Self {
        match fault {
            HeaderFault::Magic(_) => Self::Magic,
            HeaderFault::Crc => Self::HeaderCrc,
            HeaderFault::Version(version) => Self::Version(version),
        }
    }
}

/// Appends `entry` to `out`. An entry that is too long is left out: `false`.
pub fn put_entry(out: &mut Vec<u8>, entry: &Entry) -> bool {
    let payload = encode_value(entry);
    let Ok(length) = u16::try_from(payload.len()) else {
        return false;
    };
    if payload.len() > ENTRY_PAYLOAD_BYTES_MAX {
        return false;
    }
    let length = length.to_le_bytes();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&length), &payload);
    out.extend_from_slice(&length);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&payload);
    true
}

/// The entry at the beginning of `bytes`, and its length.
///
/// # Errors
/// [`JournalDamage::Torn`] when `bytes` end inside it.
pub fn parse_entry(bytes: &[u8]) -> Result<(Entry, usize), JournalDamage> {
    let payload = sound_payload(bytes)?;
    let entry = decode_value(payload, "entry")?;
    Ok((entry, ENTRY_HEADER_BYTES + payload.len()))
}

fn sound_payload(bytes: &[u8]) -> Result<&[u8], JournalDamage> {
    let Some([low, high, crc @ ..]) = bytes.first_chunk::<ENTRY_HEADER_BYTES>() else {
        return Err(JournalDamage::Torn);
    };
    let length = usize::from(u16::from_le_bytes([*low, *high]));
    if length == 0 || length > ENTRY_PAYLOAD_BYTES_MAX {
        return Err(JournalDamage::Entry);
    }
    let payload = bytes
        .get(ENTRY_HEADER_BYTES..ENTRY_HEADER_BYTES + length)
        .ok_or(JournalDamage::Torn)?;
    let expected = crc32c::crc32c_append(crc32c::crc32c(&[*low, *high]), payload);
    if expected.to_le_bytes() != *crc {
        return Err(JournalDamage::Entry);
    }
    Ok(payload)
}

/// File name of journal file `number`.
#[must_use]
pub fn journal_name(number: u64) -> String {
    JOURNAL.name(number)
}

/// Number of the journal file called `name`; `None` for the name of anything else.
#[must_use]
pub fn parse_journal_name(name: &str) -> Option<u64> {
    JOURNAL.parse_name(name)
}
