//! Room map of the monitor. See ARCHITECTURE.md; `cargo xtask check` refuses any import between
//! rooms that is not declared there.

pub mod devices;
pub mod machine;
pub mod replication;
