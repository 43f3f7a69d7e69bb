//! Many seeds, on all processors, until one fails.

use super::{Options, Sabotage, Stats, run};
use serde::Serialize;
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

thread_local! {
    static SEED: Cell<u64> = const { Cell::new(0) };
}

/// Many runs together.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Summary {
    /// Seeds that held.
    pub seeds: u64,
    /// Events handled.
    pub events: u64,
    /// Requests answered to clients.
    pub answered: u64,
    /// Runs in which a backup went live.
    pub went_live: u64,
    /// Runs in which a primary went on alone.
    pub went_on_alone: u64,
    /// States in the log that a backup went on from.
    pub states: u64,
    /// Running guests that were given to a new backup.
    pub transfers: u64,
    /// Longest time a client waited, over runs in which a backup went live, in milliseconds.
    pub silence_ms_max: u64,
}

impl Summary {
    fn add(&mut self, stats: &Stats) {
        self.seeds += 1;
        self.events += stats.events;
        self.answered += stats.answered;
        self.went_live += u64::from(stats.went_live);
        self.went_on_alone += u64::from(stats.went_on_alone);
        self.transfers += stats.transfers;
        self.states += stats.states;
        if stats.went_live {
            self.silence_ms_max = self.silence_ms_max.max(stats.silence_ns_max / 1_000_000);
        }
    }
}

/// A seed that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What was broken.
    pub violation: String,
    /// How to see it again.
    pub command: String,
}

/// How to repeat a seed.
#[must_use]
pub fn command(seed: u64, sabotage: Sabotage) -> String {
    match sabotage {
        Sabotage::None => format!("cargo xtask sim --seed {seed}"),
        broken => format!("cargo xtask sim --seed {seed} --sabotage {broken:?}"),
    }
}

/// Runs `count` seeds from `first` on, while `go_on` allows; the failure with the lowest seed found.
///
/// # Errors
/// With the failing seed.
pub fn sweep(
    first: u64,
    count: u64,
    sabotage: Sabotage,
    go_on: impl Fn() -> bool + Sync,
) -> Result<Summary, Failure> {
    name_the_seed_when_something_panics();
    let next = AtomicU64::new(first);
    let failed = AtomicBool::new(false);
    let found: Mutex<(Summary, Option<Failure>)> = Mutex::default();
    let worker = || {
        let mut own = Summary::default();
        while !failed.load(Ordering::Relaxed) && go_on() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first.saturating_add(count) {
                break;
            }
            SEED.set(seed);
            match run(Options {
                seed,
                sabotage,
                trace: false,
                cell: None,
            }) {
                Ok(stats) => own.add(&stats),
                Err(violation) => {
                    failed.store(true, Ordering::Relaxed);
                    let command = command(seed, sabotage);
                    keep_lowest(
                        &found,
                        Failure {
                            seed,
                            violation,
                            command,
                        },
                    );
                }
            }
        }
        merge(&found, &own);
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| {
            scope.spawn(worker);
        });
    });
    let (summary, failure) = found
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    failure.map_or(Ok(summary), Err)
}

fn keep_lowest(found: &Mutex<(Summary, Option<Failure>)>, failure: Failure) {
    let mut found = found
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if found
        .1
        .as_ref()
        .is_none_or(|known| failure.seed < known.seed)
    {
        found.1 = Some(failure);
    }
}

fn merge(found: &Mutex<(Summary, Option<Failure>)>, own: &Summary) {
    let mut found = found
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let all = &mut found.0;
    all.seeds += own.seeds;
    all.events += own.events;
    all.answered += own.answered;
    all.went_live += own.went_live;
    all.went_on_alone += own.went_on_alone;
    all.transfers += own.transfers;
    all.states += own.states;
    all.silence_ms_max = all.silence_ms_max.max(own.silence_ms_max);
}

/// An assertion of the product is a finding too: say which seed it was.
fn name_the_seed_when_something_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            before(info);
            eprintln!(
                "seed {}: {}",
                SEED.get(),
                command(SEED.get(), Sabotage::None)
            );
        }));
    });
}
