//! A log in the form of other programs: packet capture, trace, table.

#![forbid(unsafe_code)]

pub mod csv;
pub mod pcapng;
pub mod trace;
mod trace_journal;
