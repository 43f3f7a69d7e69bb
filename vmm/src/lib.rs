//! Room map of the monitor. See ARCHITECTURE.md; `cargo xtask check` refuses any import between
//! rooms that is not declared there.

pub mod backend;
pub mod boot;
pub mod clock;
pub mod config;
pub mod confine;
pub mod devices;
pub mod doctor;
pub mod kvm;
pub mod machine;
pub mod replication;
pub mod runtime;
pub mod snapshot;
