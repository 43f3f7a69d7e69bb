//! Wires the rooms to threads: what the commands `run`, `primary`, `backup` and `replay` do.
//!
//! ```text
//!   vCPU thread: Engine<KvmExecutor> ──VcpuReport──►┐
//!        ▲            ▲ kick                        │
//!        │ Offer      │                             ▼
//!        └────────────┴──────────────── node loop (tokio, one thread)
//!                                        │   │    │      │
//!                             link tasks ┘ TAP  console  log thread, arbiter tasks
//! ```

mod arbiter_claim;
mod checkpoints;
mod connecting;
pub mod control_socket;
mod debugger;
mod doom;
mod evidence;
mod fence;
mod gdb;
mod generation_mark;
mod guest;
mod held_frames;
mod hidden_trap_flag;
pub mod host_clock;
pub mod kvm_executor;
mod kvm_landing;
mod kvm_snapshot;
mod kvm_state_record;
mod kvm_step;
mod link_task;
mod lives;
mod loader;
mod log_thread;
mod network;
mod next_instruction;
mod node_task;
mod replay;
mod sabotage;
mod saving;
mod secure;
mod session;
mod snapshot_file;
mod snapshot_trials;
mod tap_fence;
mod transfer;
mod transfer_progress;
mod vcpu_start;
pub mod vcpu_thread;
mod wake;
pub mod watchdog;

pub use doom::Moment;
pub use fence::fence_helper;
pub use gdb::serve_gdb;
pub use generation_mark::MarkError;
pub use guest::GuestError;
pub use lives::{Lives, backup, primary, run, standby};
pub use node_task::NodeEnd;
pub use replay::{LandingOptions, Observer, ReplayOptions, ReplayReport, Replayed, replay};
pub use saving::{SnapshotBoard, SnapshotPhase, SnapshotStatus};
pub use session::{RunOptions, RuntimeError};
pub use snapshot_trials::{Share, TrialOptions};
