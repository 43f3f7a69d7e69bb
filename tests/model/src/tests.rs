//! A small part of what `cargo xtask model` checks, for every `cargo test`.

use model::action::prompt;
use model::bounds::FINDS;
use model::check::{Pair, check};
use model::histories::{Break, Clients, check_histories};
use model::invariants::{Broken, after};
use model::sabotage::Sabotage;
use model::step::{Stepper, boot};
use model::world::{Bounds, World};
use std::time::Duration;
use vmm::replication::role::Role;

const LIMIT: Duration = Duration::from_secs(600);

/// Few enough states for a build without optimisation.
const TINY: Bounds = Bounds {
    hosts: 2,
    faults: 0,
    outputs: 1,
    lagging: false,
};

#[test]
fn every_state_within_tiny_bounds_holds() {
    let pair = Pair {
        bounds: TINY,
        sabotage: Sabotage::None,
    };
    let verdict = check(pair, 2, LIMIT);
    assert!(verdict.complete, "{verdict:?}");
    assert!(verdict.broken.is_none(), "{verdict:?}");
    assert!(verdict.unseen.is_empty(), "{verdict:?}");
    assert!(verdict.states > 5_000, "{verdict:?}");
}

#[test]
fn every_deliberate_break_is_found() {
    for (sabotage, bounds) in FINDS {
        let verdict = check(Pair { bounds, sabotage }, 2, LIMIT);
        let broken = verdict.broken.expect("must be found");
        println!(
            "{sabotage:?}: {}, {} steps",
            broken.invariant,
            broken.steps.len()
        );
    }
}

/// No deliberate break leads there: what a host remembers and the arbiter's register would both have to be wrong.
#[test]
fn who_takes_part_in_something_older_than_the_host_has_seen_is_caught() {
    let mut world = World::new(TINY, Sabotage::None);
    boot(&mut world, Sabotage::None);
    let mut steps = Vec::new();
    while world.hosts[0].role() != Some(Role::Awaiting) {
        prompt(&world, &mut steps);
        let step = steps.drain(..).next().expect("the claim is under way");
        let sabotage = Sabotage::None;
        let world = &mut world;
        Stepper { world, sabotage }.act(&step);
    }
    after(&mut world, 0);
    assert_eq!(world.broken, None);
    world.host(0).mark = 2;
    after(&mut world, 0);
    assert_eq!(world.broken, Some(Broken::OlderGeneration));
}

/// Two clients race for a generation; the first asks twice, the second goes on to the next.
fn clients(broken: Break) -> Clients {
    Clients {
        claims: vec![vec![(0, 1), (0, 1)], vec![(0, 1), (1, 2)]],
        broken,
    }
}

#[test]
fn every_history_of_the_arbiters_clients_is_linearizable() {
    let states = check_histories(clients(Break::Nothing)).expect("holds");
    assert!(states > 500, "{states} states");
    println!("{states} states");
}

#[test]
fn an_arbiter_that_forgets_or_reads_stale_is_found() {
    for broken in [Break::Forget, Break::StaleRead] {
        let found = check_histories(clients(broken)).expect_err("must be found");
        assert!(!found.starts_with("never"), "{found}");
        println!("{broken:?}: {found}");
    }
}
