//! The vCPU thread: sole owner of the guest, its machine and the engine that drives it.
//!
//! It takes offers from a queue, polls the engine, enters the guest, and hands what the engine
//! emits to the node. It never waits for the network but by back-pressure: the channel to the node
//! is bounded, and a full one stops the guest, not the memory of the host.
//!
//! Invariants: the guest's state is touched by no other thread; offers are taken only between
//! stretches. Left out: what the emitted records mean (`node_task`), how a stretch is cut short
//! (`watchdog`, `kvm::kick`).

use super::host_clock::HostClock;
use super::watchdog::StretchMeter;
use crate::replication::engine::{Emitted, Engine, Next, Offer};
use crate::replication::executor::Executor;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;
use tokio::sync::mpsc::Sender;

/// Batches on their way to the node before the guest is stopped.
pub const OUTBOX_BATCHES_MAX: usize = 256;

/// What the vCPU thread tells the node.
#[derive(Debug)]
pub enum VcpuReport {
    /// The engine's outbox, in order.
    Emitted(Vec<Emitted>),
    /// The guest stood still while its state was said, which is in the report before.
    Paused {
        /// What the state was for.
        attempt: u64,
        /// How long, nanoseconds.
        pause_ns: u64,
    },
    /// The host failed under the guest; nothing follows.
    Failed(String),
}

/// Offers taken between two stretches: a flood of them must not keep the guest from running.
const OFFERS_PER_STRETCH_MAX: usize = 256;

/// How the vCPU thread ended.
#[derive(Debug)]
pub enum VcpuEnd<E> {
    /// The engine stopped: the guest ended, diverged or was halted.
    Stopped,
    /// The node went away; the guest was left where it was.
    NodeGone,
    /// KVM or the host failed.
    Failed(E),
}

/// Runs `engine` until it stops. Call it on a thread of its own.
pub fn drive<E: Executor>(
    engine: &mut Engine<E>,
    offers: &Receiver<Offer>,
    node: &Sender<VcpuReport>,
    clock: HostClock,
    meter: &Arc<StretchMeter>,
) -> VcpuEnd<E::Error> {
    loop {
        if !take_offers(engine, offers, clock) {
            return VcpuEnd::NodeGone;
        }
        let polled = clock.now();
        let next = match engine.poll(polled) {
            Ok(next) => next,
            Err(error) => return VcpuEnd::Failed(error),
        };
        if !report(engine.take_outbox(), node, || clock.now().since(polled)) {
            return VcpuEnd::NodeGone;
        }
        match next {
            Next::Run => {
                meter.enter(engine.deadline());
                let outcome = engine.execute();
                meter.leave();
                if let Err(error) = outcome {
                    return VcpuEnd::Failed(error);
                }
            }
            Next::Wait { deadline } => {
                let timeout = deadline.map(|at| Duration::from_nanos(at.since(clock.now())));
                if !wait(engine, offers, clock, timeout) {
                    return VcpuEnd::NodeGone;
                }
            }
            Next::Stopped => return VcpuEnd::Stopped,
        }
    }
}

/// Tells the node; `since` is how long the guest has stood still. False when there is no node any more.
fn report(emitted: Vec<Emitted>, node: &Sender<VcpuReport>, since: impl Fn() -> u64) -> bool {
    let said = emitted.iter().find_map(|item| match item {
        Emitted::Snapshot { attempt, .. } => Some(*attempt),
        _ => None,
    });
    if !emitted.is_empty() && node.blocking_send(VcpuReport::Emitted(emitted)).is_err() {
        return false;
    }
    let Some(attempt) = said else {
        return true;
    };
    let pause_ns = since();
    let paused = VcpuReport::Paused { attempt, pause_ns };
    node.blocking_send(paused).is_ok()
}

/// Takes what has been offered. False when nobody can offer anything any more.
fn take_offers<E: Executor>(
    engine: &mut Engine<E>,
    offers: &Receiver<Offer>,
    clock: HostClock,
) -> bool {
    for _ in 0..OFFERS_PER_STRETCH_MAX {
        match offers.try_recv() {
            Ok(offer) => engine.offer(clock.now(), offer),
            Err(TryRecvError::Empty) => return true,
            Err(TryRecvError::Disconnected) => return false,
        }
    }
    true
}

/// Waits for an offer, or for the deadline. False when nobody can offer anything any more.
fn wait<E: Executor>(
    engine: &mut Engine<E>,
    offers: &Receiver<Offer>,
    clock: HostClock,
    timeout: Option<Duration>,
) -> bool {
    let received = match timeout {
        Some(timeout) => offers.recv_timeout(timeout),
        None => offers.recv().map_err(|_| RecvTimeoutError::Disconnected),
    };
    match received {
        Ok(offer) => {
            engine.offer(clock.now(), offer);
            true
        }
        Err(RecvTimeoutError::Timeout) => true,
        Err(RecvTimeoutError::Disconnected) => false,
    }
}
