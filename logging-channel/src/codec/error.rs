//! What the codec refuses, and where.

#![forbid(unsafe_code)]

use super::sequence::SequenceFault;
use crate::record::LogIndex;

/// Bytes that are not a batch or message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at payload byte {offset}: {fault}")]
pub struct DecodeError {
    /// Where in the payload, from 0, the refused item begins.
    pub offset: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// A value that has no byte form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A batch has at least one record.
    #[error("a batch without records has no byte form")]
    EmptyBatch,
    /// The record breaks a rule of the log.
    #[error("record {}: {fault}", index.0)]
    Record {
        /// Its index.
        index: LogIndex,
        /// The rule.
        fault: Fault,
    },
    /// The message breaks a limit.
    #[error("{0}")]
    Message(Fault),
    /// More than one frame holds; see [`super::EncodedLog::encode_all`].
    #[error("the batch is longer than one frame")]
    BatchTooLong,
}

/// What is wrong with an item.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The bytes end inside it.
    #[error("the bytes end inside {0}")]
    Truncated(&'static str),
    /// Not a form of it.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// A longer or redundant form where a shorter one exists.
    #[error("{0} is not in its shortest form")]
    NotCanonical(&'static str),
    /// A Hello of another version of the protocol, whose bytes mean something else.
    #[error("the peer speaks protocol {theirs}, this side {ours}: use one version on both hosts")]
    OtherProtocol {
        /// This side's.
        ours: u32,
        /// The peer's.
        theirs: u32,
    },
    /// Bytes after the end.
    #[error("{0} bytes follow the end")]
    TrailingBytes(usize),
    /// A record kind or flag that this version does not have.
    #[error("unknown record tag 0x{0:02x}")]
    UnknownTag(u8),
    /// Longer than its limit.
    #[error("{what} of {length} bytes is longer than {max}")]
    TooLong {
        /// What.
        what: &'static str,
        /// Its length in bytes.
        length: u64,
        /// The limit in bytes.
        max: usize,
    },
    /// A difference that leads beyond the range of the value.
    #[error("{0} overflows")]
    Overflow(&'static str),
    /// The record may not follow the one before it.
    #[error(transparent)]
    Sequence(#[from] SequenceFault),
}
