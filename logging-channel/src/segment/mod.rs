//! The log on disk: a directory of segment files.
//!
//! A segment is a header, the very `Log` frames that went to the peer, and sync points between them. One
//! process writes, any number read, also while it writes. Recovery cuts an unsynced tail off the last
//! segment when it is told to, and refuses every other damage with file and offset; what tools may still
//! read of a damaged log is `salvage`'s. Byte form: `docs/formats/log.md`.
//!
//! Left out: which run a directory belongs to.

#![forbid(unsafe_code)]

pub mod blocks;
pub mod format;
pub mod reader;
pub mod recovery;
pub mod salvage;
mod scan;
mod spare;
pub mod sync_point;
pub mod writer;

pub use blocks::{Block, BlockEnd, BlockFrame, Stretch};
pub use format::{SegmentDamage, SegmentError};
pub use reader::{LogReader, ReadFrame};
pub use recovery::{Cut, Recovered, TailPolicy, recover};
pub use salvage::{LeftOut, Salvaged, Salvager};
pub use scan::bytes_on_disk;
pub use writer::{SegmentWriter, SyncPolicy, WriterOptions};

#[cfg(test)]
mod tail_tests;
#[cfg(test)]
mod tests;
