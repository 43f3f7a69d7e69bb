//! A journal's bytes: a header like a segment's, then entries, each with a length and a check.
//!
//! ```text
//!  0            8         12             20           28          32
//!  +------------+---------+--------------+------------+-----------+---------
//!  | "UNDRJRNL" | version | number       | VM name    | CRC-32C   | entries
//!  |            | u32 LE  | u64 LE       | FNV-1a 64  | of 0..28  |
//!  +------------+---------+--------------+------------+-----------+---------
//!
//!  entry   length u16 LE | CRC-32C of length and payload, LE | payload
//! ```
//!
//! A file's name is its number in 20 decimal digits and `.journal`.

#![forbid(unsafe_code)]

use super::entry::Entry;
use crate::codec::{DecodeError, decode_value, encode_value};

/// Bytes of a journal file before its first entry.
pub const JOURNAL_HEADER_BYTES: usize = 32;
/// Version of header and entries.
pub const JOURNAL_VERSION: u32 = 1;
/// Longest payload of an entry.
pub const ENTRY_PAYLOAD_BYTES_MAX: usize = 16 * 1024;
/// Bytes before the payload.
pub const ENTRY_HEADER_BYTES: usize = 6;
/// Longest entry.
pub const ENTRY_BYTES_MAX: usize = ENTRY_HEADER_BYTES + ENTRY_PAYLOAD_BYTES_MAX;

const MAGIC: [u8; 8] = *b"UNDRJRNL";
const CRC_OFFSET: usize = 28;
const NAME_DIGITS: usize = 20;
const NAME_SUFFIX: &str = ".journal";

/// The first bytes of a journal file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalHeader {
    /// Number of the file.
    pub number: u64,
    /// [`vm_hash`](crate::segment::format::vm_hash) of the VM's name.
    pub vm_hash: u64,
}

impl JournalHeader {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; JOURNAL_HEADER_BYTES] {
        let mut bytes = [0; JOURNAL_HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&JOURNAL_VERSION.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.number.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.vm_hash.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
        bytes[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header in `bytes`.
    ///
    /// # Errors
    /// Why it is none.
    pub fn decode(bytes: &[u8; JOURNAL_HEADER_BYTES]) -> Result<Self, JournalDamage> {
        let (magic, rest) = bytes.split_at(8);
        if magic != MAGIC {
            return Err(JournalDamage::Magic);
        }
        let expected = crc32c::crc32c(&bytes[..CRC_OFFSET]).to_le_bytes();
        if expected != bytes[CRC_OFFSET..] {
            return Err(JournalDamage::HeaderCrc);
        }
        let version = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
        if version != JOURNAL_VERSION {
            return Err(JournalDamage::Version(version));
        }
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[12..20]);
        let number = u64::from_le_bytes(word);
        word.copy_from_slice(&bytes[20..28]);
        let vm_hash = u64::from_le_bytes(word);
        Ok(Self { number, vm_hash })
    }
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
    format!("{number:0NAME_DIGITS$}{NAME_SUFFIX}")
}

/// Number of the journal file called `name`; `None` for the name of anything else.
#[must_use]
pub fn parse_journal_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(NAME_SUFFIX)?;
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    if digits.len() != NAME_DIGITS || !all_digits {
        return None;
    }
    digits.parse().ok()
}
