//! What wakes the node's loop, and the waits that are not a channel's own.

#![forbid(unsafe_code)]

use super::control_socket::Wish;
use super::link_task::LinkEvent;
use super::node_task::Wishes;
use super::saving::SavingEvent;
use super::transfer::{Transfer, TransferEvent};
use super::vcpu_thread::VcpuReport;
use crate::backend::console::ConsoleEvent;
use crate::replication::node::ArbiterReply;

/// What woke the loop.
pub(super) enum Wake {
    Vcpu(Option<VcpuReport>),
    Link(LinkEvent),
    Answer(ArbiterReply),
    Frames(Vec<Vec<u8>>),
    Typed(ConsoleEvent),
    Transfer(TransferEvent),
    Saving(SavingEvent),
    Wish(Wish),
    Timer,
}

/// The next wish of an operator.
pub(super) async fn next_wish(wishes: &Wishes) -> Option<Wish> {
    wishes.lock().await.recv().await
}

/// The next of a transfer, if there is one.
pub(super) async fn next_part(transfer: &mut Option<Transfer>) -> Option<TransferEvent> {
    match transfer {
        Some(transfer) => transfer.events.recv().await,
        None => None,
    }
}

/// Until `at`; at once without.
pub(super) async fn sleep_until(at: Option<tokio::time::Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}
