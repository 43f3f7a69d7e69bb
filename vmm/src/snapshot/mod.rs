//! A guest's state as bytes: pieces for a new backup, and files.
//!
//! `state` is everything but memory, `part` a piece of a few hundred kilobytes: a run of pages, or the
//! state. The same pieces travel in a state transfer and stand in a snapshot `file`
//! (`docs/formats/snapshot.md`).
//!
//! Invariant: bytes from a peer or a file never write outside guest memory and never size an
//! allocation before a limit was checked.

#![forbid(unsafe_code)]

pub mod file;
pub mod part;
pub mod state;
