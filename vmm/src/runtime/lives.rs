//! The lives of one process: a copy of a guest that is over is never used again, but the process can
//! stand by for another.
//!
//! ```text
//!   run                                  primary, backup ──over──► standby ──invited──► backup ...
//!    └─over─► end                             │                       ▲                   │
//!                                             └─► end                 └──────over─────────┘
//! ```
//!
//! A life that was handed over, refused by the arbiter, or that diverged left nothing that the next
//! one uses: a new name at the arbiter, a new log directory, a new machine. What ended a life is
//! counted and shown in the status. A host that failed under its guest, and an operator's stop, end the
//! process.

use super::RuntimeError;
use super::connecting::Beginning;
use super::node_task::NodeEnd;
use super::session::{Process, RunOptions, live};
use crate::config::Config;
use crate::replication::node::HaltReason;
use serde::Serialize;
use std::net::SocketAddr;

/// What became of the lives before the present one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Lives {
    /// Lives that are over.
    pub over: u32,
    /// Of them, copies that diverged: each was replaced by a new one, once it was invited.
    pub diverged: u32,
    /// Of them, guests that were handed over.
    pub handed_over: u32,
    /// Why the last one ended.
    pub last_end: Option<String>,
}

/// Runs the guest without replication.
///
/// # Errors
/// When something the guest needs cannot be had.
pub async fn run(config: &Config, options: RunOptions) -> Result<NodeEnd, RuntimeError> {
    let process = Process::begin(config, &options, false, false)?;
    live(config, &options, 0, Beginning::Alone, &process).await
}

/// Runs the guest as the primary. `after_generation` is 0 for a VM that was never started. With
/// `standby` the process stands by there when its guest is over here.
///
/// # Errors
/// When something the guest needs cannot be had.
pub async fn primary(
    config: &Config,
    options: RunOptions,
    after_generation: u64,
    standby: Option<SocketAddr>,
) -> Result<NodeEnd, RuntimeError> {
    let beginning = Beginning::Primary { after_generation };
    lives(config, options, beginning, standby).await
}

/// Follows a primary, and takes over when it is lost. `standby` as for [`primary`].
///
/// # Errors
/// When something the guest needs cannot be had.
pub async fn backup(
    config: &Config,
    options: RunOptions,
    standby: Option<SocketAddr>,
) -> Result<NodeEnd, RuntimeError> {
    lives(config, options, Beginning::Backup, standby).await
}

/// Waits at `address` for whoever runs the guest alone, and becomes its backup.
///
/// # Errors
/// When something the guest needs cannot be had.
pub async fn standby(
    config: &Config,
    options: RunOptions,
    address: SocketAddr,
) -> Result<NodeEnd, RuntimeError> {
    lives(
        config,
        options,
        Beginning::Standby { address },
        Some(address),
    )
    .await
}

async fn lives(
    config: &Config,
    options: RunOptions,
    first: Beginning,
    standby: Option<SocketAddr>,
) -> Result<NodeEnd, RuntimeError> {
    let mut beginning = first;
    let mut life = 0;
    let process = Process::begin(config, &options, true, standby.is_some())?;
    loop {
        let end = live(config, &options, life, beginning, &process).await?;
        let (Some(address), NodeEnd::Halted(reason)) = (standby, &end) else {
            return Ok(end);
        };
        if !may_stand_by(reason) {
            return Ok(end);
        }
        tracing::warn!(%reason, %address, "this copy is over for good; standing by for another");
        options.lives.send_modify(|lives| note(lives, reason));
        life += 1;
        beginning = Beginning::Standby { address };
    }
}

/// Whether the host itself is sound, and nobody wants it to stop.
const fn may_stand_by(reason: &HaltReason) -> bool {
    match reason {
        HaltReason::Refused { .. }
        | HaltReason::Diverged(_)
        | HaltReason::NothingReceived
        | HaltReason::HandedOver => true,
        HaltReason::PeerRefused { .. }
        | HaltReason::OlderGeneration { .. }
        | HaltReason::HostFailed(_)
        | HaltReason::Stopped => false,
    }
}

fn note(lives: &mut Lives, reason: &HaltReason) {
    lives.over += 1;
    lives.diverged += u32::from(matches!(reason, HaltReason::Diverged(_)));
    lives.handed_over += u32::from(*reason == HaltReason::HandedOver);
    lives.last_end = Some(reason.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_a_life_is_counted() {
        let mut lives = Lives::default();
        note(&mut lives, &HaltReason::Diverged("at record 7".to_owned()));
        note(&mut lives, &HaltReason::HandedOver);
        let expected = Lives {
            over: 2,
            diverged: 1,
            handed_over: 1,
            last_end: Some(HaltReason::HandedOver.to_string()),
        };
        assert_eq!(lives, expected);
    }

    #[test]
    fn a_host_that_failed_does_not_stand_by() {
        assert!(!may_stand_by(&HaltReason::HostFailed("KVM".to_owned())));
        assert!(!may_stand_by(&HaltReason::Stopped));
        assert!(may_stand_by(&HaltReason::HandedOver));
    }
}
