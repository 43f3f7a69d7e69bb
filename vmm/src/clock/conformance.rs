//! What every execution clock must do, shown on a guest of paper: one suite, the same for the exit clock and
//! for the branch clock, with hosts that skid, signal late, or cross by single step.
//!
//! A guest is recorded under kicks and inputs at random moments and replayed on a host with other luck. It must
//! be served at points that never go backwards, arrive at each of them again, produce the same outputs, and
//! end with the same digests; it must never run past the last point that the log has named; and a count
//! that is off by one must be found.

mod paper_guest;

use super::landing::{Crossing, LandingMethod};
use crate::replication::divergence::Divergence;
use crate::replication::engine::{Emitted, Engine, EngineConfig, EntropySource, Next, Offer};
use crate::replication::executor::{Executor, Input};
use logging_channel::codec::{EncodedLog, decode_records};
use logging_channel::execution_point::{ExecutionPoint, PointKind};
use logging_channel::host_time::HostTime;
use logging_channel::record::{ClockKind, Digests, EndReason, Record, RecordBody, Start};
use paper_guest::{Host, PaperGuest, mix};

/// Different luck of the hosts.
const SEEDS: u64 = 12;
/// Times the recorder is asked what to do.
const ROUNDS: u64 = 300;
/// Polls after which a replay counts as stuck.
const POLLS_MAX: u64 = 100_000;

/// A clock as the suite sees it.
#[derive(Debug, Clone, Copy)]
struct Clock {
    kind: ClockKind,
    /// See [`EngineConfig`].
    stall_ns: Option<u64>,
    recording: Host,
    replaying: Host,
}

fn exit_clock() -> Clock {
    Clock {
        kind: ClockKind::Exits,
        stall_ns: None,
        recording: Host::default(),
        replaying: Host::default(),
    }
}

/// The exit clock with State records where the guest makes no exits.
fn exit_clock_with_states() -> Clock {
    Clock {
        stall_ns: Some(15_000),
        ..exit_clock()
    }
}

/// The branch clock, replayed on a host that overruns by up to `skid` instructions.
fn branch_clock(crossing: Crossing, skid: u64, late_signals: bool) -> Clock {
    // Every instruction could be a branch: a margin of the skid is enough, and one more for the arming.
    let landing = Some(LandingMethod {
        margin: skid + 1,
        crossing,
    });
    let host = Host {
        landing,
        skid,
        late_signals,
        lies_from: None,
    };
    Clock {
        kind: ClockKind::Branches,
        stall_ns: None,
        recording: host,
        replaying: host,
    }
}

fn clocks() -> Vec<Clock> {
    let mut clocks = vec![exit_clock(), exit_clock_with_states()];
    for crossing in [Crossing::Breakpoint, Crossing::SingleStep] {
        for skid in [0, 1, 10, 100] {
            clocks.extend([false, true].map(|late| branch_clock(crossing, skid, late)));
        }
    }
    clocks
}

fn entropy() -> EntropySource {
    Box::new(|count| vec![0; count])
}

fn start(clock: ClockKind) -> Start {
    Start {
        vm: "paper".into(),
        generation: 1,
        clock,
        cpu_model: "paper".into(),
        memory_bytes: 64,
        kernel_sha256: [0; 32],
        initramfs_sha256: [0; 32],
        cmdline: String::new(),
        mac: [0; 6],
        wall_clock_s: 0,
        rng_seed: [0; 32],
    }
}

fn config(clock: Clock) -> EngineConfig {
    EngineConfig {
        mark_interval_ns: 100_000,
        verify_memory_every: Some(2),
        inbox_bytes_max: 4_096,
        stall_ns: clock.stall_ns,
        settle_interval_ns: Some(1_000_000),
        forget_interval_ns: 200_000,
    }
}

/// Records a guest, under inputs at random moments, to its commanded end.
fn record(clock: Clock, seed: u64) -> (Vec<Record>, Digests) {
    let mut now = HostTime(0);
    let guest = PaperGuest::new(clock.recording, seed);
    let engine = Engine::recording(guest, start(clock.kind), config(clock), entropy(), now);
    let mut engine = engine.expect("an honest counter");
    let mut records = Vec::new();
    for round in 0.. {
        let chance = mix(seed ^ mix(round));
        now = HostTime(now.0 + 1_000 + chance % 20_000);
        if round == ROUNDS {
            engine.offer(now, Offer::PowerOff);
        } else if chance.is_multiple_of(5) {
            let bytes = chance.to_le_bytes().to_vec();
            engine.offer(now, Offer::Input(Input::Packet { device: 0, bytes }));
        }
        let next = engine.poll(now).expect("an honest counter");
        records.extend(
            engine
                .take_outbox()
                .into_iter()
                .filter_map(|item| match item {
                    Emitted::Recorded { record, .. } => Some(record),
                    _ => None,
                }),
        );
        match next {
            Next::Run => engine.execute().expect("an honest counter"),
            Next::Wait { .. } => {}
            Next::Stopped => break,
        }
        assert!(round < 10 * ROUNDS, "the guest cannot be ended");
    }
    let digests = engine.executor().digests(true).expect("an honest counter");
    (records, digests)
}

/// What came of a replay.
#[derive(Debug)]
enum Outcome {
    Ended(EndReason, Digests),
    Diverged(Box<Divergence>),
    Stuck,
}

/// Replays `records`, a few at a time, and looks that the guest never runs past what it was given.
fn replay(clock: Clock, seed: u64, records: &[Record]) -> Outcome {
    let guest = PaperGuest::new(clock.replaying, mix(seed));
    let engine = Engine::replaying(guest, config(clock), entropy());
    let mut engine = engine.expect("the first read is honest");
    let now = HostTime(0);
    let mut rest = records;
    let mut horizon = ExecutionPoint::default();
    for poll in 0..POLLS_MAX {
        let next = match engine.poll(now) {
            Ok(next) => next,
            Err(error) => panic!("{error}"),
        };
        for item in engine.take_outbox() {
            match item {
                Emitted::Diverged(divergence) => return Outcome::Diverged(divergence),
                Emitted::Ended(reason) => {
                    let digests = engine.executor().digests(true).expect("plain data");
                    return Outcome::Ended(reason, digests);
                }
                _ => {}
            }
        }
        match next {
            Next::Run => engine.execute().unwrap_or_else(|error| panic!("{error}")),
            Next::Wait { .. } if rest.is_empty() => return Outcome::Stuck,
            Next::Wait { .. } => {
                let few = (1 + mix(seed ^ poll) % 4).min(rest.len() as u64);
                let (given, left) = rest.split_at(few as usize);
                horizon = given.last().map_or(horizon, |record| record.point);
                engine.offer(now, Offer::Records(given.to_vec()));
                rest = left;
            }
            Next::Stopped => return Outcome::Stuck,
        }
        if clock.replaying.lies_from.is_none() {
            let reached = match clock.kind {
                ClockKind::Branches => engine.executor().true_branches() <= horizon.branches,
                // A State record names a point beyond its own.
                ClockKind::Exits => engine.point().exits <= horizon.exits + 1,
            };
            assert!(reached, "past {horizon:?}, the last point known");
        }
    }
    Outcome::Stuck
}

fn is_input(record: &Record) -> bool {
    matches!(record.body, RecordBody::Timer | RecordBody::Packet { .. })
}

#[test]
fn points_never_go_backwards_and_have_bytes() {
    for clock in clocks() {
        for seed in 0..SEEDS {
            let (records, _) = record(clock, seed);
            assert!(
                records
                    .windows(2)
                    .all(|pair| pair[0].point.order(&pair[1].point).is_le())
            );
            let log = EncodedLog::encode(&records).expect("a log");
            assert_eq!(
                decode_records(log.payload()).expect("its own bytes"),
                records
            );
        }
    }
}

#[test]
fn inputs_land_between_exits_where_the_clock_can_name_places_there() {
    for clock in clocks() {
        let between = (0..SEEDS)
            .flat_map(|seed| record(clock, seed).0)
            .filter(|record| is_input(record) && record.point.kind == PointKind::Between)
            .count();
        match clock.kind {
            ClockKind::Exits => assert_eq!(between, 0),
            ClockKind::Branches => assert!(between as u64 > 10 * SEEDS, "{between}: {clock:?}"),
        }
    }
}

#[test]
fn every_replay_arrives_at_every_point_and_ends_alike() {
    for clock in clocks() {
        for seed in 0..SEEDS {
            let (records, recorded) = record(clock, seed);
            match replay(clock, seed, &records) {
                Outcome::Ended(EndReason::Commanded, replayed) => assert_eq!(replayed, recorded),
                other => panic!("seed {seed}, {clock:?}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_guest_without_exits_is_taken_on_by_its_state() {
    let clock = exit_clock_with_states();
    let is_last = |record: &&Record| matches!(record.body, RecordBody::State { last: true, .. });
    let served = |clock| -> (usize, usize) {
        let logs: Vec<_> = (0..SEEDS).flat_map(|seed| record(clock, seed).0).collect();
        let states = logs.iter().filter(is_last).count();
        (states, logs.iter().filter(|r| is_input(r)).count())
    };
    let ((states, inputs), (none, fewer)) = (served(clock), served(exit_clock()));
    assert!(states as u64 > 10 * SEEDS, "{states}");
    assert_eq!(none, 0);
    assert!(inputs > fewer, "{inputs}, and {fewer} without states");
}

/// Sabotage: a state that lacks what the guest wrote, a cut one, and one that is not there at all.
#[test]
fn a_state_that_is_not_all_there_is_caught() {
    let clock = exit_clock_with_states();
    let (mut caught, mut tried) = (0, 0);
    for seed in 0..SEEDS {
        let (records, _) = record(clock, seed);
        for cut in [0, 8, 16] {
            let mut records = records.clone();
            let state = records
                .iter_mut()
                .find_map(|record| match &mut record.body {
                    RecordBody::State { bytes, .. } => Some(bytes),
                    _ => None,
                });
            let Some(bytes) = state else { continue };
            if cut == 0 {
                bytes[0] ^= 1;
            } else {
                bytes.truncate(bytes.len() - cut);
            }
            tried += 1;
            caught += u64::from(matches!(
                replay(clock, seed, &records),
                Outcome::Diverged(_)
            ));
        }
    }
    assert!(tried >= SEEDS, "{tried}");
    assert_eq!(caught, tried);
}

#[test]
fn breakpoints_and_single_steps_replay_the_same_log() {
    let breakpoints = branch_clock(Crossing::Breakpoint, 10, true);
    let steps = branch_clock(Crossing::SingleStep, 10, true);
    for seed in 0..SEEDS {
        let (records, recorded) = record(breakpoints, seed);
        let outcome = replay(steps, seed, &records);
        assert!(matches!(outcome, Outcome::Ended(_, replayed) if replayed == recorded));
    }
}

/// Sabotage: whichever clock it is, a count that is off by one from somewhere on is found.
#[test]
fn a_clock_that_lies_by_one_is_caught() {
    for clock in clocks() {
        for seed in 0..SEEDS {
            let (records, _) = record(clock, seed);
            let last = records.last().map(|record| record.point).expect("records");
            let counted = match clock.kind {
                ClockKind::Exits => last.exits,
                ClockKind::Branches => last.branches,
            };
            let mut liar = clock;
            liar.replaying.lies_from = Some(1 + mix(seed) % (counted / 2));
            match replay(liar, seed, &records) {
                Outcome::Diverged(divergence) => assert!(divergence.index.0 > 0),
                other => panic!("seed {seed}, {clock:?}: {other:?}"),
            }
        }
    }
}

/// Sabotage: a margin that the skid exceeds is an overshoot, never a wrong arrival.
#[test]
fn a_margin_smaller_than_the_skid_is_caught() {
    let sound = branch_clock(Crossing::Breakpoint, 100, false);
    let mut caught = 0;
    for seed in 0..SEEDS {
        let (records, recorded) = record(sound, seed);
        let mut hasty = sound;
        hasty.replaying.landing = Some(LandingMethod {
            margin: 1,
            crossing: Crossing::Breakpoint,
        });
        hasty.replaying.lies_from = Some(u64::MAX);
        match replay(hasty, seed, &records) {
            Outcome::Diverged(_) => caught += 1,
            Outcome::Ended(_, replayed) => assert_eq!(replayed, recorded),
            Outcome::Stuck => panic!("seed {seed} is stuck"),
        }
    }
    assert!(caught > SEEDS / 2, "{caught} of {SEEDS}");
}
