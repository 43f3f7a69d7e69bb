//! What must hold in every state.

#![forbid(unsafe_code)]

use crate::guest::Guest;
use crate::host::{Fate, Host};
use crate::world::World;
use logging_channel::message::{Heartbeat, Message};
use vmm::replication::node::{ArbiterReply, HaltReason, NodeEvent};
use vmm::replication::role::Role;

/// An invariant that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Broken {
    /// Two processes were the only one, or one without being the arbiter's choice.
    OneExecutor,
    /// Something left that the survivor's past lacks, or out of order.
    OutputRule,
    /// A halted process did something.
    LoserHalted,
    /// The arbiter, or its answer, went back on a grant.
    WinnerWins,
    /// A process took part in a generation older than one that its host has seen.
    OlderGeneration,
}

/// What has to be looked at again after host `id` did something.
pub fn after(world: &mut World, id: usize) {
    let host = &world.hosts[id];
    if takes_part(host) && host.node.generation() < host.mark {
        world.breaks(Broken::OlderGeneration);
        return;
    }
    if host.role() == Some(Role::Protected) {
        // It has a backup again.
        let life = host.life;
        world.alone.remove(&life);
        return;
    }
    if host.role() != Some(Role::Solo) {
        return;
    }
    let (life, chosen) = (host.life, chosen_by_arbiter(world, id));
    if world.alone.insert(life) && !(chosen && world.alone.len() == 1) {
        world.breaks(Broken::OneExecutor);
    }
}

/// Whether its guest may come to live there.
fn takes_part(host: &Host) -> bool {
    let not_yet = [Role::Idle, Role::Starting, Role::Joining];
    host.role()
        .is_some_and(|role| !role.is_over() && !not_yet.contains(&role))
}

fn chosen_by_arbiter(world: &World, id: usize) -> bool {
    let status = world.hosts[id].node.status(world.hosts[id].now);
    world
        .register
        .holder()
        .is_some_and(|holder| holder.as_str() == status.holder)
}

/// Whether everything that ever left is in the past of everybody who is the only one.
#[must_use]
pub fn output_rule(world: &World) -> bool {
    world
        .hosts
        .iter()
        .filter(|host| host.role() == Some(Role::Solo))
        .filter_map(|host| host.guest.as_ref())
        .map(Guest::past)
        .all(|past| {
            let knows = |(index, life): &(u8, u8)| past.get(usize::from(*index)) == Some(life);
            world.released.iter().all(knows)
        })
}

/// Whether the arbiter's choice was told that it lost.
#[must_use]
pub fn winner_was_refused(world: &World) -> bool {
    world.hosts.iter().any(|host| {
        let refused = matches!(host.fate, Fate::Halted(HaltReason::Refused { .. }));
        let name = host.node.status(host.now).holder;
        refused && world.register.holder().is_some_and(|h| h.as_str() == name)
    })
}

/// Whether a process that is over stays so, whatever it is told.
#[must_use]
pub fn stays_over(host: &Host) -> bool {
    let temptations = [
        NodeEvent::Tick,
        NodeEvent::PeerConnected,
        NodeEvent::PeerMessage(Message::Heartbeat(Heartbeat::default())),
        NodeEvent::Arbiter(ArbiterReply::Granted {
            generation: host.node.generation() + 1,
        }),
        NodeEvent::PeerDisconnected,
    ];
    let mut node = host.node.clone();
    temptations
        .into_iter()
        .all(|event| node.handle(host.now, event).is_empty() && node.role().is_over())
}
