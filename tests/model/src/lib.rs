//! The go-live protocol, checked in every interleaving within stated bounds.
//!
//! The state machines are the product's own: `vmm::replication::node::Node` with its role, session,
//! output gate, failure detector and claim, and the arbiter's `Register`. Around them is the least that
//! a world needs: connections, requests under way, clocks, and a guest that numbers its records.
//!
//! | file | owns |
//! |---|---|
//! | `world` | one state: hosts, connections, register, what left; the bounds |
//! | `host` | one process: its node, clock, guest, and queues between them |
//! | `guest` | what the engine is to a node: records, outputs, replay, drained |
//! | `bounds` | how much may happen, by default |
//! | `action` | everything that may happen next |
//! | `step` | what an action does |
//! | `invariants` | what must hold in every state |
//! | `progress` | from every state, when faults end, the guest is served again |
//! | `sabotage` | deliberate breaks, each of which must be found |
//! | `histories` | what the arbiter's clients observe is linearizable |
//! | `relative` | hashing times relative to now, so that equal futures are equal states |
//! | `check` | stateright over all of it |
//!
//! Time: each host has a clock of its own that moves when its timer fires, or by an hour when it
//! sleeps. Clocks are unrelated, so every speed of every host is covered, and a message is delayed by
//! delivering it later than anything else.
//!
//! Left out: KVM, the real engine (`tests/sim` runs it from seeds), bytes, more than one connection
//! accepted at a time by the primary.

#![forbid(unsafe_code)]

pub mod action;
pub mod bounds;
pub mod check;
pub mod guest;
pub mod histories;
pub mod host;
pub mod invariants;
pub mod progress;
pub mod relative;
pub mod report;
pub mod sabotage;
pub mod step;
pub mod world;
