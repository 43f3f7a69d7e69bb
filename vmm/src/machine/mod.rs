//! All guest-visible state but the processor's own registers.

#![forbid(unsafe_code)]

pub mod exit;
pub mod layout;
