//! The simulation as a test: ten thousand seeds hold, and what is broken on purpose is found.

use logging_channel::host_time::HostTime;
use logging_channel::record::{ClockKind, Control, LogIndex, Record, RecordBody};
use rig::sim::host::start_record;
use rig::sim::matrix::sweep_matrix;
use rig::sim::sabotage::ALL;
use rig::sim::sweep::sweep;
use rig::sim::toy_cpu::{ToyCpu, encode_request};
use rig::sim::{Options, Sabotage, run};
use vmm::replication::engine::{
    Emitted, Engine, EngineConfig, EntropySource, FILE_ATTEMPTS, Next, Offer,
};
use vmm::replication::executor::Input;

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

/// Runs a recorder that gets a packet now and then; its records, and the state that it was asked for.
fn recorded(
    engine: &mut Engine<ToyCpu>,
    from: u64,
    file: bool,
) -> (Vec<Record>, Option<(LogIndex, Vec<u8>)>) {
    let (mut records, mut state) = (Vec::new(), None);
    for round in from..from + 200 {
        let now = HostTime(round * 1_000_000);
        if round % 7 == 0 {
            let bytes = encode_request(round);
            engine.offer(now, Offer::Input(Input::Packet { device: 0, bytes }));
        }
        if file && round == from + 100 {
            let attempt = FILE_ATTEMPTS + 1;
            engine.offer(now, Offer::Snapshot { attempt });
        }
        let Ok(next) = engine.poll(now);
        for item in engine.take_outbox() {
            match item {
                Emitted::Recorded { record, .. } => records.push(record),
                Emitted::Snapshot { next, parts, .. } => state = Some((next, parts.concat())),
                _ => {}
            }
        }
        if next == Next::Run {
            let Ok(()) = engine.execute();
        }
    }
    (records, state)
}

/// Replays records from `next` on; every check of a backup is made.
fn replays(next: LogIndex, cpu: ToyCpu, records: Vec<Record>) {
    let entropy: EntropySource = Box::new(|_| Vec::new());
    let last = records.last().expect("some").index;
    let Ok(mut copy) = Engine::replaying_from(next, cpu, EngineConfig::default(), entropy);
    copy.offer(HostTime(0), Offer::Records(records));
    copy.offer(HostTime(0), Offer::FinishLog);
    while copy.poll(HostTime(0)) == Ok(Next::Run) {
        let Ok(()) = copy.execute();
    }
    let ends = copy.take_outbox();
    let far = |item: &Emitted| matches!(item, Emitted::Replayed { next, .. } if *next > last);
    assert!(
        ends.iter().any(far) && ends.contains(&Emitted::Drained),
        "{ends:?}"
    );
}

/// The recorded guest goes on as if nothing had been; the saved one has a life of its own.
#[test]
fn a_guest_saved_in_its_run_is_gone_on_with_and_replayed() {
    let entropy = || -> EntropySource { Box::new(|count| vec![1; count]) };
    let config = EngineConfig::default();
    let start = start_record(1, ClockKind::Exits, 1);
    let cpu = || ToyCpu::new(5, u64::MAX);
    let Ok(mut engine) = Engine::recording(cpu(), start, config, entropy(), HostTime(0));
    let (records, state) = recorded(&mut engine, 0, true);
    let (next, state) = state.expect("the state was said");
    assert!(records.len() as u64 > next.0, "it went on");
    replays(LogIndex(0), cpu(), records);
    let saved = || ToyCpu::decode(&state).expect("complete");
    let now = HostTime(1_000_000_000);
    let Ok(mut engine) = Engine::resuming(next, 3, saved(), config, entropy(), now);
    let (records, _) = recorded(&mut engine, 1_000, false);
    let first = &records[0];
    let begins = RecordBody::Control(Control::Generation(3));
    assert_eq!((first.index, &first.body), (next, &begins));
    assert!(records.len() > 50, "{}", records.len());
    replays(next, saved(), records);
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
