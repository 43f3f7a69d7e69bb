//! Progress: from here on without faults, the guest is served, unless every copy of it is gone.
//!
//! Time passes evenly, everything under way arrives promptly, broken connections can be made again,
//! and the guest wants to produce one more output. Within a bounded number of rounds it must leave.
//! Where it does not, nobody may be left in a state that only passes, and whoever gave up needs a
//! reason: the arbiter's choice is dead, or the log had not begun.

#![forbid(unsafe_code)]

use crate::action::{Action, Fault, prompt};
use crate::host::{Fate, Host};
use crate::sabotage::Sabotage;
use crate::step::Stepper;
use crate::world::World;
use vmm::replication::node::HaltReason;
use vmm::replication::role::Role;

/// Rounds of even time; a suspicion takes three, a claim one, and both may be needed twice.
const ROUNDS_MAX: usize = 24;
/// Steps within one round.
const STEPS_MAX: usize = 400;

/// Whether `world` recovers.
#[must_use]
pub fn recovers(world: &World, sabotage: Sabotage) -> bool {
    world.broken.is_some() || world.unfaithful || recovery(world.clone(), sabotage).is_ok()
}

/// Lets time pass without faults; the world as it stands in the end, if nobody serves without excuse.
///
/// # Errors
/// With that world.
pub fn recovery(mut world: World, sabotage: Sabotage) -> Result<(), Box<World>> {
    let before = world.released.len();
    world.faults_left = 0;
    world.outputs_left = 0;
    for _ in 0..ROUNDS_MAX {
        if !promptly(&mut world, sabotage) {
            return Err(Box::new(world));
        }
        if world.released.len() > before && settled(&world) {
            return Ok(());
        }
        for id in 0..world.hosts.len() {
            round(&mut world, id, sabotage);
        }
    }
    if promptly(&mut world, sabotage) && excused(&world) {
        Ok(())
    } else {
        Err(Box::new(world))
    }
}

/// One turn of a host's own: its timer, its guest, its impatience.
fn round(world: &mut World, id: usize, sabotage: Sabotage) {
    let act = |world: &mut World, action: Action| {
        Stepper { world, sabotage }.act(&action);
    };
    if world.hosts[id].fate != Fate::Running {
        return;
    }
    if id > 0 && world.may_connect(id) {
        act(world, Action::Connect(id));
    }
    let lost = world.hosts[id].request.is_some();
    if lost {
        act(world, Action::Fault(Fault::Timeout(id)));
    }
    if world.hosts[id].may_produce() && world.hosts[id].guest_is_short() {
        act(world, Action::Produce(id));
    }
    if world.hosts[id].wake_at.is_some() {
        act(world, Action::Tick(id));
    }
}

/// Does all that can be done at once. False when there is no end to it.
fn promptly(world: &mut World, sabotage: Sabotage) -> bool {
    let mut actions = Vec::new();
    for _ in 0..STEPS_MAX {
        actions.clear();
        prompt(world, &mut actions);
        let Some(action) = actions.first() else {
            return true;
        };
        Stepper { world, sabotage }.act(action);
    }
    false
}

/// Whether nobody is on the way somewhere.
fn settled(world: &World) -> bool {
    let partner = |role: Role| world.hosts.iter().any(|host| host.role() == Some(role));
    world
        .hosts
        .iter()
        .filter_map(|host| host.role())
        .all(|role| match role {
            Role::Solo | Role::Halted | Role::Ended => true,
            Role::Protected => partner(Role::Following),
            Role::Following => partner(Role::Protected),
            Role::Awaiting => !partner(Role::Joining),
            Role::Joining => !partner(Role::Awaiting),
            Role::Idle | Role::Starting | Role::Contested | Role::Finishing | Role::GoingLive => {
                false
            }
        })
}

/// Whether it is right that nobody serves.
fn excused(world: &World) -> bool {
    let serving = world
        .hosts
        .iter()
        .any(|host| matches!(host.role(), Some(Role::Solo | Role::Protected)));
    !serving && settled(world) && world.hosts.iter().all(|host| may_rest(world, host))
}

fn may_rest(world: &World, host: &Host) -> bool {
    match &host.fate {
        Fate::Halted(HaltReason::Refused { .. }) => !chosen_is_well(world),
        Fate::Halted(_) | Fate::Crashed | Fate::Ended | Fate::Running => true,
    }
}

/// Whether the process that the arbiter chose last runs.
fn chosen_is_well(world: &World) -> bool {
    world.hosts.iter().any(|host| {
        let name = host.node.status(host.now).holder;
        host.fate == Fate::Running && world.register.holder().is_some_and(|h| h.as_str() == name)
    })
}
