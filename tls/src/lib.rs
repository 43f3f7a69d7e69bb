//! Mutual TLS for every connection that leaves a host: who may connect is decided by the names in
//! certificates, both ways.
//!
//! | file | owns |
//! |---|---|
//! | `identity` | certificate, key and authority read from files; the settings of TLS |
//! | `verify` | which certificate is accepted, and the reason when it is not |
//! | `stream` | a connection, in TLS or in plain text, as a byte stream |
//! | `door` | the listening side: handshakes bounded in number and time |
//! | `dial` | the connecting side |
//! | `issue` | an authority and certificates for a start |
//!
//! Invariants: TLS 1.3 only, with a certificate on both sides; no resumption and no early data, so that
//! every connection is judged by a certificate that is valid now, and nothing of a recorded handshake
//! can be used again; an unfinished handshake holds a bounded place for a bounded time, and the oldest
//! gives way to the newest. A name is compared as it is: wildcards name nobody.
//!
//! Left out: revocation lists. Who is no longer trusted is taken out of the lists of names. The crate
//! imports no other of the workspace. Threats: `docs/threat-model.md`.

#![forbid(unsafe_code)]

pub mod dial;
pub mod door;
pub mod identity;
pub mod issue;
pub mod stream;
#[cfg(test)]
mod tests;
mod verify;

pub use dial::Dial;
pub use door::{Accepted, Door};
pub use identity::{Identity, IdentityFiles, Purpose, TlsError};
pub use stream::Stream;
