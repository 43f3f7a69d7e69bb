//! The simulation as a test: ten thousand seeds hold, and what is broken on purpose is found.

use logging_channel::host_time::HostTime;
use logging_channel::record::ClockKind;
use rig::sim::host::start_record;
use rig::sim::matrix::sweep_matrix;
use rig::sim::sabotage::ALL;
use rig::sim::sweep::sweep;
use rig::sim::toy_cpu::ToyCpu;
use rig::sim::{Options, Sabotage, run};
use vmm::replication::engine::{Emitted, Engine, EngineConfig, EntropySource, Next, Offer};

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
    assert!(summary.transfers > SEEDS / 10, "{summary:?}");
    assert!(summary.states > SEEDS, "{summary:?}");
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
fn every_cell_of_the_partition_matrix_holds() {
    let runs = sweep_matrix(2, Sabotage::None).unwrap_or_else(|violation| panic!("{violation}"));
    assert!(runs > 1_300, "{runs} runs");
}

#[test]
fn the_partition_matrix_finds_what_is_broken() {
    for sabotage in [
        Sabotage::GoLiveWithoutClaim,
        Sabotage::ReleaseBeforeAcknowledgement,
        Sabotage::SkipTheRestOfTheLog,
    ] {
        let violation = sweep_matrix(2, sabotage).expect_err("must be found");
        println!("{sabotage:?}: {violation}");
    }
}

/// A backup may suspect, hear of its primary, and suspect again without any record in between: a node
/// that was told *drained* the first time has forgotten it, and must be told again (found by the model).
#[test]
fn an_engine_told_twice_to_finish_is_drained_twice() {
    let entropy = || -> EntropySource { Box::new(|count| vec![0; count]) };
    let cpu = || ToyCpu::new(1, u64::MAX);
    let now = HostTime(0);
    let start = start_record(1, ClockKind::Exits, 1);
    let recorder = Engine::recording(cpu(), start, EngineConfig::default(), entropy(), now);
    let Ok(mut recorder) = recorder;
    let records = recorder.take_outbox().into_iter().map(|item| match item {
        Emitted::Recorded { record, .. } => record,
        other => panic!("{other:?}"),
    });
    let Ok(mut backup) = Engine::replaying(cpu(), EngineConfig::default(), entropy());
    backup.offer(now, Offer::Records(records.collect()));
    for round in 0..2 {
        backup.offer(now, Offer::FinishLog);
        let Ok(next) = backup.poll(now);
        assert_eq!(next, Next::Wait { deadline: None });
        let drained = backup.take_outbox().contains(&Emitted::Drained);
        assert!(drained, "order {round}");
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
