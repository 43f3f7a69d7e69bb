//! The log on disk: a directory of segment files.
//!
//! A segment is a header and then the very `Log` frames that went to the peer. One process writes,
//! any number read, also while it writes. Recovery cuts a torn tail off the last segment when it is
//! told to, and refuses every other damage with file and offset; what tools may still read of a
//! damaged log is `salvage`'s. Byte form: `docs/formats/log.md`.
//!
//! Left out: when old segments may be deleted, and which run a directory belongs to.

#![forbid(unsafe_code)]

pub mod format;
pub mod reader;
pub mod recovery;
pub mod salvage;
mod scan;
pub mod writer;

pub use format::{SegmentDamage, SegmentError};
pub use reader::{LogReader, ReadFrame};
pub use recovery::{Cut, Recovered, TailPolicy, recover};
pub use salvage::{LeftOut, Salvaged, Salvager};
pub use writer::{SegmentWriter, SyncPolicy, WriterOptions};

#[cfg(test)]
mod tests;
