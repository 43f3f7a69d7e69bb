//! The journal beside a log: what one side saw in host time, which is no part of the execution.
//!
//! A log says what reached the guest; it is the same on both sides, and has guest time only. When records
//! were acknowledged and replayed, how long output waited at the gate, what this side was and when it
//! went live, is different on each, and is here. Nothing is ever replayed from a journal, and a log is whole
//! without one.
//!
//! Bounded: an [`entry::Interval`] at most every quarter of a second, with counts and a bounded number of
//! samples; files of a bounded size, of which the oldest are removed. A torn or damaged place costs the entries
//! in it. Byte form: `docs/formats/journal.md`.
//!
//! Left out: who observes (`vmm::replication::journal`), what it means (`inspect`).

#![forbid(unsafe_code)]

pub mod entry;
pub mod format;
pub mod histogram;
pub mod reader;
#[cfg(test)]
mod tests;
pub mod writer;

pub use entry::{Entry, Happening, Interval, Role, What};
pub use histogram::Histogram;
pub use reader::{JournalReader, Read};
pub use writer::JournalWriter;
