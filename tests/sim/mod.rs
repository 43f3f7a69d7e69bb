//! The whole pair and the arbiter in one thread, from a seed.
//!
//! Two nodes with their engines, a toy deterministic processor in place of KVM, the arbiter's real
//! register, a client outside. Links stall and break, claims and answers are lost, delayed and
//! doubled, hosts crash, restart and stand still. `invariants` lists what must hold all the same.
//!
//! A failing seed is repeated, with everything that happened, by `cargo xtask sim --seed N`.

pub mod client;
pub mod faults;
mod guests;
pub mod host;
pub mod invariants;
pub mod link;
mod links;
pub mod matrix;
pub mod random;
pub mod sabotage;
pub mod sweep;
pub mod toy_cpu;
pub mod world;

pub use sabotage::Sabotage;
pub use world::{Options, Stats, run};
