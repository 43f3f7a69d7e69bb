//! Records and messages to bytes and back: bounded, total, and one byte form per value.
//!
//! A **batch** is the payload of a `Log` frame: it states the place where it begins, so that it can
//! be read alone, and codes each record as the difference to the one before. The very bytes that go
//! to the peer are appended to segment files ([`EncodedLog`]).
//!
//! Invariants: decoding any bytes gives a value or an error with a byte offset, never a panic, and
//! allocates no more than the input's length; what decodes encodes to the same bytes again (longer
//! forms of a number are refused); the rules of `record` hold for whatever passes in either
//! direction ([`Sequence`]). All of serde and bincode is behind this module, in one configuration.
//! Byte form: `docs/formats/log.md`.

#![forbid(unsafe_code)]

mod batch;
mod error;
mod leaf;
mod message;
#[cfg(test)]
pub(crate) mod sample;
mod sequence;
mod wire;

pub use batch::{BatchDecoder, BatchEncoder, Placed, Pushed, decode_records, encode_records};
pub use error::{DecodeError, EncodeError, Fault};
pub(crate) use leaf::{decode_value, encode_value};
pub use message::{EncodedLog, decode_message, encode_message, frame_kind};
pub use sequence::{Sequence, SequenceFault};
pub use wire::RecordKind;
