//! A small part of what `cargo xtask model` checks, for every `cargo test`.

use model::bounds::FINDS;
use model::check::{Pair, check};
use model::sabotage::Sabotage;
use model::world::Bounds;
use std::time::Duration;

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
