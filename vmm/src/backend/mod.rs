//! The host's side of the guest's devices: where released output goes and input comes from.
//!
//! Nothing here is part of the guest's state, and nothing here decides when output may leave: that
//! is the output gate's.

pub mod announce;
pub mod console;
pub mod tap;
