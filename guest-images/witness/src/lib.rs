//! The witness: a TCP service for the guest whose answers prove, to a client outside, that nothing
//! acknowledged was lost, repeated or rolled back.
//!
//! The same code runs on both ends: the guest runs [`service::Service`], the client outside
//! checks with [`expectation::Expectation`] and [`ledger::Ledger`]. Everything here is pure; sockets
//! are in the binary. `README.md` has the frames byte by byte.

#![forbid(unsafe_code)]

pub mod connection;
pub mod expectation;
pub mod hash;
pub mod ledger;
pub mod service;
pub mod wire;

/// TCP port of the witness service (echo's).
pub const WITNESS_PORT: u16 = 7;
/// TCP port that reads and drops everything (discard's).
pub const SINK_PORT: u16 = 9;
/// TCP port that sends without end (character generator's).
pub const SOURCE_PORT: u16 = 19;
