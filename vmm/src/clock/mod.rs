//! Execution clocks: what names a place in guest execution, and how to get to one again.
//!
//! The exit clock names synchronous exits and nothing else; it needs no code but a count, which the
//! executor keeps. The branch clock (`branch_clock`) names any instruction by the conditional
//! branches retired in guest mode since power-on, the instruction pointer and a register check;
//! `landing` decides step by step how to arrive there.

#![forbid(unsafe_code)]

pub mod branch_clock;
#[cfg(test)]
mod conformance;
pub mod landing;
