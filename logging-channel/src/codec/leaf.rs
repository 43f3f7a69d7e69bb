//! Single values to bytes and back, with bincode in the one configuration of every format.
//!
//! bincode's own limits are not needed: leaves are read from a slice, texts and payloads are
//! borrowed from it, so nothing is allocated before its bytes are known to be there.

#![forbid(unsafe_code)]

use super::error::{DecodeError, Fault};
use crate::frame::PAYLOAD_BYTES_MAX;
use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::enc::write::SizeWriter;
use serde::{Deserialize, Serialize};

/// Little-endian, variable-length integers, never more than a frame.
const CONFIG: Configuration<LittleEndian, Varint, Limit<PAYLOAD_BYTES_MAX>> =
    bincode::config::standard().with_limit::<PAYLOAD_BYTES_MAX>();

/// First bytes of varints that have two, and four, more.
const VARINT_16: u8 = 251;
const VARINT_32: u8 = 252;

/// Appends `value` to `out`.
pub(super) fn put<T: Serialize>(out: &mut Vec<u8>, value: T) {
    bincode::serde::encode_into_std_write(value, out, CONFIG)
        .expect("wire types are plain structs and a Vec accepts every write");
}

/// The bytes of one value that is not part of a frame.
pub(crate) fn encode_value<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, value);
    out
}

/// The one value in `bytes`, in its one form.
///
/// # Errors
/// What is wrong, and where.
pub(crate) fn decode_value<'a, T>(bytes: &'a [u8], what: &'static str) -> Result<T, DecodeError>
where
    T: Deserialize<'a> + Serialize,
{
    let mut input = Input::new(bytes);
    let value = input.leaf(what)?;
    input.finish()?;
    Ok(value)
}

/// Appends `bytes` with their length before them.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads leaves from a payload, remembering where it is.
#[derive(Debug, Clone)]
pub(super) struct Input<'a> {
    all: &'a [u8],
    offset: usize,
}

impl<'a> Input<'a> {
    pub(super) const fn new(all: &'a [u8]) -> Self {
        Self { all, offset: 0 }
    }

    /// Bytes read so far.
    pub(super) const fn offset(&self) -> usize {
        self.offset
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.offset == self.all.len()
    }

    fn rest(&self) -> &'a [u8] {
        self.all.get(self.offset..).unwrap_or_default()
    }

    /// An error about the item that begins at `offset`.
    pub(super) fn fail<T>(offset: usize, fault: impl Into<Fault>) -> Result<T, DecodeError> {
        Err(DecodeError {
            offset,
            fault: fault.into(),
        })
    }

    /// Reads a value and refuses any but its shortest form.
    pub(super) fn leaf<T>(&mut self, what: &'static str) -> Result<T, DecodeError>
    where
        T: Deserialize<'a> + Serialize,
    {
        let decoded = bincode::serde::borrow_decode_from_slice::<T, _>(self.rest(), CONFIG);
        let (value, length) = match decoded {
            Ok(decoded) => decoded,
            Err(bincode::error::DecodeError::UnexpectedEnd { .. }) => {
                return Self::fail(self.offset, Fault::Truncated(what));
            }
            Err(_) => return Self::fail(self.offset, Fault::Malformed(what)),
        };
        if encoded_length(&value) != length {
            return Self::fail(self.offset, Fault::NotCanonical(what));
        }
        self.offset += length;
        Ok(value)
    }

    /// Reads a varint, in its shortest form.
    #[inline]
    pub(super) fn varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        match self.number() {
            Some(number) => Ok(number),
            None => self.leaf(what),
        }
    }

    /// Reads a varint of at most 32 bits, in its shortest form: most of what a log consists of. Of anything
    /// else nothing is read, and bincode is the one to say what it is.
    #[inline]
    pub(super) fn number(&mut self) -> Option<u64> {
        let (number, length, least) = match self.rest() {
            [byte @ 0..VARINT_16, ..] => (u64::from(*byte), 1, 0),
            [VARINT_16, a, b, ..] => {
                let number = u16::from_le_bytes([*a, *b]);
                (number.into(), 3, VARINT_16.into())
            }
            [VARINT_32, a, b, c, d, ..] => {
                let number = u32::from_le_bytes([*a, *b, *c, *d]);
                (number.into(), 5, u64::from(u16::MAX) + 1)
            }
            _ => return None,
        };
        if number < least {
            return None;
        }
        self.offset += length;
        Some(number)
    }

    /// Goes back to `offset`, which was read before.
    pub(super) const fn back_to(&mut self, offset: usize) {
        self.offset = offset;
    }

    /// Reads one byte.
    #[inline]
    pub(super) fn byte(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.array(what).map(|[byte]| byte)
    }

    /// Reads bytes as they are.
    #[inline]
    pub(super) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        let Some(bytes) = self.rest().first_chunk() else {
            return Self::fail(self.offset, Fault::Truncated(what));
        };
        self.offset += N;
        Ok(*bytes)
    }

    /// Reads a length of at most `max` and that many bytes.
    #[inline]
    pub(super) fn bytes(
        &mut self,
        what: &'static str,
        max: usize,
    ) -> Result<&'a [u8], DecodeError> {
        let at = self.offset;
        let length = self.varint(what)?;
        if length > max as u64 {
            return Self::fail(at, Fault::TooLong { what, length, max });
        }
        let Some(bytes) = self.rest().get(..length as usize) else {
            return Self::fail(at, Fault::Truncated(what));
        };
        self.offset += bytes.len();
        Ok(bytes)
    }

    /// Refuses bytes after the end.
    pub(super) fn finish(&self) -> Result<(), DecodeError> {
        match self.rest().len() {
            0 => Ok(()),
            extra => Self::fail(self.offset, Fault::TrailingBytes(extra)),
        }
    }
}

fn encoded_length<T: Serialize>(value: &T) -> usize {
    let mut size = SizeWriter::default();
    bincode::serde::encode_into_writer(value, &mut size, CONFIG)
        .expect("a value that was decoded encodes");
    size.bytes_written
}
