//! The lab, its hosts and the oracle: real hosts to kill, and a client outside that watches.
//!
//! A **host** ([`host`]) is a whole emulated x86 machine with its own Linux and real kvm-amd. The
//! rig talks to it through a serial port ([`agent`]), never through the network that it cuts.
//! Design section 9.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "real hosts in real time; no guest sees this clock"
)]

pub mod agent;
pub mod arbiter;
pub mod artifacts;
pub mod client;
pub mod evidence;
pub mod fault;
pub mod host;
pub mod images;
pub mod initramfs;
pub mod isolation;
pub mod lab;
pub mod link;
pub mod log_sizes;
pub mod netns;
pub mod observation;
pub mod oracle;
pub mod pair;
pub mod prepare;
pub mod programs;
pub mod progress;
pub mod requirements;
pub mod scene;
pub mod traffic;
pub mod wait;
