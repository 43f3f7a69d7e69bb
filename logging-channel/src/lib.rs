//! The event log of a replicated virtual machine, and the channel that carries it.
//!
//! Everything here but `segment` and `journal` (their formats apart) and `transport::tcp` is pure: no clocks,
//! sockets, files or async. This crate imports no other workspace crate.

pub mod clock_agreement;
pub mod codec;
pub mod execution_point;
pub mod failure_detector;
pub mod file_header;
pub mod flow;
pub mod frame;
pub mod host_time;
pub mod journal;
pub mod message;
pub mod pointers;
pub mod record;
pub mod segment;
pub mod session;
pub mod transport;
