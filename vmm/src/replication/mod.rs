//! Recording, replay, the Output Rule and going live: what this project exists for.
//!
//! Pure: no clocks, sockets, threads or KVM. `runtime` carries bytes and time.

#![forbid(unsafe_code)]

pub mod divergence;
pub mod engine;
pub mod executor;
pub mod go_live;
pub mod journal;
pub mod node;
pub mod output_gate;
pub mod precopy;
mod recorder;
mod replayer;
pub mod role;
pub mod transfer_watch;
