//! Reads event logs for people and their tools: whole or damaged, finished or being written.
//!
//! Everything streams: memory is that of a few frames and of the report, whatever the log's size. Nothing
//! here writes to a log, and nothing is ever replayed from what is salvaged here. What the log does not
//! hold (transmitted bytes; without its journal host time and acknowledgements, too) is said to be missing,
//! never invented: `docs/inspecting.md`.
//!
//! ```text
//! source ──▶ Found::{Record, Hole} ──▶ filter ──▶ line, show, diff, export
//!   └─ pass ──▶ Seen, on several threads ──▶ line, stat
//!                       └─ facts, packet (decoded only when asked)
//! ```

#![forbid(unsafe_code)]

mod ahead;
pub mod diff;
mod digits;
pub mod export;
pub mod facts;
pub mod filter;
pub mod hex;
pub mod journal;
pub mod kind;
pub mod line;
pub mod packet;
pub mod pass;
pub mod place;
pub mod repeats;
pub mod show;
pub mod source;
pub mod stat;
pub mod theme;
pub mod verify;

#[cfg(test)]
mod sample;
