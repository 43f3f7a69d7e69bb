//! stateright over all of it: every state within the bounds.
//!
//! What is broken on purpose is looked for breadth first: the way there is then the shortest. What is not is
//! visited depth first, since the states that wait to be visited are what memory goes to: three hosts need
//! more than 18 GB breadth first.

#![forbid(unsafe_code)]

use crate::action::{Action, all};
use crate::invariants::Broken;
use crate::progress::{recovers, recovery};
use crate::report::Said;
use crate::sabotage::Sabotage;
use crate::step::{Stepper, boot};
use crate::world::{Bounds, World};
use stateright::{Checker, HasDiscoveries, Model, Path, Property};
use std::time::{Duration, Instant};
use vmm::replication::role::Role;

/// The protocol within bounds, as it is or with something broken.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// How much may happen.
    pub bounds: Bounds,
    /// What is broken on purpose.
    pub sabotage: Sabotage,
}

/// What must hold.
pub const INVARIANTS: [&str; 6] = [
    "at most one live executor",
    "no output that the survivor's past lacks",
    "the loser stays halted",
    "a winner's retry wins",
    "nobody takes part in a generation older than one its host has seen",
    "progress when faults end",
];

impl Model for Pair {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let mut world = World::new(self.bounds, self.sabotage);
        boot(&mut world, self.sabotage);
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_none() {
            all(world, self.sabotage, actions);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        let sabotage = self.sabotage;
        Stepper {
            world: &mut world,
            sabotage,
        }
        .act(&action);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let [one, output, loser, winner, older, progress] = INVARIANTS;
        vec![
            Property::always(one, |_, w: &World| w.broken != Some(Broken::OneExecutor)),
            Property::always(output, |_, w: &World| w.broken != Some(Broken::OutputRule)),
            Property::always(loser, |_, w: &World| w.broken != Some(Broken::LoserHalted)),
            Property::always(winner, |_, w: &World| w.broken != Some(Broken::WinnerWins)),
            Property::always(older, |_, w: &World| {
                w.broken != Some(Broken::OlderGeneration)
            }),
            Property::always(progress, |pair: &Self, w: &World| {
                recovers(w, pair.sabotage)
            }),
            Property::sometimes("a backup goes live", |_, w: &World| {
                w.hosts[1..].iter().any(|h| h.role() == Some(Role::Solo))
            }),
            Property::sometimes("a primary goes on alone", |_, w: &World| {
                w.hosts[0].role() == Some(Role::Solo)
            }),
            Property::sometimes("output leaves twice", |_, w: &World| {
                let last = |id: usize| w.hosts[id].released;
                last(0).is_some() && last(0) == last(1)
            }),
        ]
    }
}

/// How an invariant is broken.
#[derive(Debug, Clone)]
pub struct Counterexample {
    /// Which.
    pub invariant: &'static str,
    /// The way there; the shortest, if it was looked for breadth first.
    pub steps: Vec<Action>,
    /// The world there, or where it stands when time has passed without recovery.
    pub world: Box<World>,
}

impl Counterexample {
    fn new(invariant: &'static str, path: Path<World, Action>, sabotage: Sabotage) -> Self {
        let last = path.last_state().clone();
        Self {
            invariant,
            steps: path.into_actions(),
            world: match recovery(last.clone(), sabotage) {
                Err(stuck) if last.broken.is_none() => stuck,
                _ => Box::new(last),
            },
        }
    }
}

/// What a check found.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Different states visited.
    pub states: usize,
    /// Steps taken, also to states known already.
    pub steps: usize,
    /// Longest path.
    pub depth: usize,
    /// Whether every state within the bounds was visited.
    pub complete: bool,
    /// The invariant that does not hold, and the steps to where.
    pub broken: Option<Counterexample>,
    /// What ought to be possible and was never seen.
    pub unseen: Vec<&'static str>,
}

/// Visits every state, on `threads` threads, for `limit` at the most.
#[must_use]
#[allow(
    clippy::disallowed_methods,
    reason = "the operator's patience, outside the model"
)]
pub fn check(pair: Pair, threads: usize, limit: Duration) -> Verdict {
    let began = Instant::now();
    let checker = pair
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .timeout(limit);
    let mut said = Said::default();
    match pair.sabotage {
        Sabotage::None => {
            let checked = checker.spawn_dfs().report(&mut said).join();
            verdict(pair, &checked, began.elapsed() < limit)
        }
        _ => {
            let checked = checker.spawn_bfs().report(&mut said).join();
            verdict(pair, &checked, began.elapsed() < limit)
        }
    }
}

fn verdict(pair: Pair, checker: &impl Checker<Pair>, complete: bool) -> Verdict {
    let discoveries = checker.discoveries();
    let broken = INVARIANTS
        .into_iter()
        .find_map(|name| Some((name, discoveries.get(name)?)));
    let sometimes = pair
        .properties()
        .into_iter()
        .filter(|property| !property.expectation.discovery_is_failure());
    Verdict {
        states: checker.unique_state_count(),
        steps: checker.state_count(),
        depth: checker.max_depth(),
        complete,
        broken: broken.map(|(name, path)| Counterexample::new(name, path.clone(), pair.sabotage)),
        unseen: sometimes
            .map(|property| property.name)
            .filter(|name| !discoveries.contains_key(name))
            .collect(),
    }
}
