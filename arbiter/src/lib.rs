//! The arbiter: a test-and-set service that decides which host may run a virtual machine.
//!
//! | file | owns |
//! |---|---|
//! | `register` | the cell: current generation and holder, and the one rule that changes them |
//! | `protocol` | HTTP paths and JSON shapes; decoding of hostile bytes |
//! | `access` | which certificate may claim which virtual machine |
//! | `address` | where an arbiter is: HTTP, or an etcd cluster |
//! | `store` | durable cells: in memory (tests), in a redb file, in etcd |
//! | `etcd` | registers in an etcd cluster, by compare-and-swap |
//! | `http` | the client's connections |
//! | `server` | answers requests, stops when its store fails |
//! | `retry` | tries, pauses, and an end |
//! | `client` | claims with short tries and bounded retry |
//!
//! **Invariant: a grant is permanent.** There are no leases and no clocks: a generation, once
//! granted, is never granted to anybody else, across crashes of the arbiter too. Everything here
//! serves that sentence. `register` and `protocol` are pure. Of the workspace the crate
//! imports `tls` only. Bytes and shapes: `docs/formats/arbiter.md`.

pub mod access;
pub mod address;
pub mod client;
mod etcd;
mod http;
pub mod protocol;
pub mod register;
mod retry;
pub mod server;
pub mod store;
