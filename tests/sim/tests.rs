//! The simulation as a test: ten thousand seeds hold, and what is broken on purpose is found.

use rig::sim::sabotage::ALL;
use rig::sim::sweep::sweep;
use rig::sim::{Options, Sabotage, run};

/// Seeds in a normal run.
const SEEDS: u64 = 10_000;
/// Seeds within which a deliberate break must be found.
const SABOTAGE_SEEDS: u64 = 6_000;

#[test]
fn ten_thousand_seeds_hold() {
    let summary = sweep(0, SEEDS, Sabotage::None, || true).unwrap_or_else(|failure| {
        panic!(
            "seed {}: {}\nrepeat: {}",
            failure.seed, failure.violation, failure.command
        )
    });
    assert_eq!(summary.seeds, SEEDS);
    // The faults must matter: a plan that never reaches the interesting roles proves nothing.
    assert!(summary.went_live > SEEDS / 10, "{summary:?}");
    assert!(summary.went_on_alone > SEEDS / 10, "{summary:?}");
    assert!(summary.answered > SEEDS * 20, "{summary:?}");
}

#[test]
fn every_deliberate_break_is_found() {
    for sabotage in ALL {
        let failure = sweep(0, SABOTAGE_SEEDS, sabotage, || true).expect_err("must be found");
        println!("{sabotage:?}: seed {}: {}", failure.seed, failure.violation);
    }
}

#[test]
fn a_seed_repeats_itself_exactly() {
    for seed in 0..50 {
        let options = Options {
            seed,
            ..Options::default()
        };
        let (first, second) = (run(options), run(options));
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
    }
}
