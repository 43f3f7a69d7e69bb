//! Everything that may happen next.

#![forbid(unsafe_code)]

use crate::host::Fate;
use crate::sabotage::Sabotage;
use crate::world::{Parcel, World};

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// This backup connects to the primary.
    Connect(usize),
    /// The next parcel reaches this host.
    Deliver(usize),
    /// The guest's thread takes the next offer.
    Engine(usize),
    /// The node takes the next report of the guest's thread.
    Report(usize),
    /// The guest produces an output.
    Produce(usize),
    /// This claim, the n-th, reaches the arbiter.
    Arbiter(usize),
    /// This answer, the n-th, reaches its host.
    Answer(usize),
    /// The host's timer fires.
    Tick(usize),
    /// Something that should not happen, and does.
    Fault(Fault),
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Power loss (untold), or the process dies and the kernel tells its peer.
    Crash {
        /// Where.
        host: usize,
        /// Whether the other end of its connection hears of it.
        told: bool,
    },
    /// A dead or halted process is started again with the same configuration.
    Restart(usize),
    /// The host stands still for an hour: longer than every timeout.
    Sleep(usize),
    /// The connection breaks; what was under way is lost. Which ends are told.
    Cut(usize, [bool; 2]),
    /// The next parcel towards this host is lost, those behind it are not.
    Drop(usize),
    /// The next parcel towards this host arrives twice.
    Duplicate(usize),
    /// This claim reaches the arbiter, and will once more.
    Repeat(usize),
    /// No answer came in time; it may still come, too late.
    Timeout(usize),
    /// An operator stops this side.
    Stop(usize),
    /// This copy finds that it differs.
    Diverge(usize),
    /// Sabotage: the arbiter restarts without its last grant.
    Forget,
}

/// What is under way: a fair world brings it to its end promptly.
pub fn prompt(world: &World, actions: &mut Vec<Action>) {
    for id in 0..world.hosts.len() {
        let host = &world.hosts[id];
        if host.fate != Fate::Running {
            continue;
        }
        if let Some((link, end)) = world.link_of(id)
            && !world.links[link].towards[end].queue.is_empty()
        {
            actions.push(Action::Deliver(id));
        }
        if !host.offers.is_empty() {
            actions.push(Action::Engine(id));
        }
        if !host.reports.is_empty() && host.node.accepts_emitted() {
            actions.push(Action::Report(id));
        }
    }
    actions.extend((0..world.requests.len()).map(Action::Arbiter));
    actions.extend((0..world.answers.len()).map(Action::Answer));
}

/// Everything that may happen.
pub fn all(world: &World, sabotage: Sabotage, actions: &mut Vec<Action>) {
    prompt(world, actions);
    for id in 0..world.hosts.len() {
        let host = &world.hosts[id];
        if id > 0 && world.may_connect(id) {
            actions.push(Action::Connect(id));
        }
        if world.outputs_left > 0 && host.may_produce() {
            actions.push(Action::Produce(id));
        }
        if host.fate == Fate::Running && host.wake_at.is_some() {
            actions.push(Action::Tick(id));
        }
    }
    if world.faults_left > 0 {
        let mut faults = Vec::new();
        (0..world.hosts.len()).for_each(|id| host_faults(world, id, &mut faults));
        link_faults(world, &mut faults);
        faults.extend((0..world.requests.len()).map(Fault::Repeat));
        if sabotage == Sabotage::ForgetGeneration && world.register_before.is_some() {
            faults.push(Fault::Forget);
        }
        actions.extend(faults.into_iter().map(Action::Fault));
    }
}

fn host_faults(world: &World, id: usize, faults: &mut Vec<Fault>) {
    let host = &world.hosts[id];
    if host.fate != Fate::Running {
        faults.push(Fault::Restart(id));
        return;
    }
    faults.push(Fault::Crash {
        host: id,
        told: false,
    });
    if world.link_of(id).is_some() {
        faults.push(Fault::Crash {
            host: id,
            told: true,
        });
    }
    faults.push(Fault::Sleep(id));
    faults.push(Fault::Stop(id));
    if host.guest.as_ref().is_some_and(|g| !g.is_recording()) {
        faults.push(Fault::Diverge(id));
    }
    if host.request.is_some() {
        faults.push(Fault::Timeout(id));
    }
    if let Some((link, end)) = world.link_of(id)
        && let Some(Parcel::Message(_)) = world.links[link].towards[end].queue.front()
    {
        faults.push(Fault::Drop(id));
        faults.push(Fault::Duplicate(id));
    }
}

fn link_faults(world: &World, faults: &mut Vec<Fault>) {
    for (index, link) in world.links.iter().enumerate() {
        let whole = link.towards.iter().all(|direction| !direction.dead);
        if link.open == [true; 2] && whole {
            for told in [[true, true], [true, false], [false, true], [false, false]] {
                faults.push(Fault::Cut(index, told));
            }
        }
    }
}
