//! The lab, its hosts and the oracle: real hosts to kill, and a client outside that watches.
//!
//! A **host** ([`host`]) is a whole emulated x86 machine with its own Linux and real kvm-amd. The
//! rig talks to it through a serial port ([`agent`]), never through the network that it cuts.
//! Design section 9.

#![forbid(unsafe_code)]

pub mod agent;
pub mod arbiter;
pub mod artifacts;
pub mod client;
pub mod debian_root;
pub mod emulated_host;
pub mod evidence;
pub mod fault;
pub mod host;
pub mod images;
pub mod initramfs;
pub mod isolation;
pub mod lab;
pub mod lineage;
pub mod link;
pub mod log_sizes;
pub mod namespace_host;
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

#[path = "../sim/mod.rs"]
pub mod sim;
