//! Tests that need emulated hosts: run by `cargo xtask kvm`, skipped by a plain `cargo test`.

#![forbid(unsafe_code)]

mod host;
