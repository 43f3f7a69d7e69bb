//! The partition matrix: every link, every way of failing, together with every fault of a host.
//!
//! {primary-backup, primary-arbiter, backup-arbiter} x {cut, one-way, delay, duplicate} x {stop and
//! continue, kill -9, clock step}, on either host, at several distances in time, each with several
//! seeds for everything else. Unlike in `faults`, nothing is left to chance about what goes wrong.

use super::faults::{FAULTS_END_NS, Fault};
use super::{Options, Sabotage, run};

const MS: u64 = 1_000_000;
/// When the link fails: the pair is settled by then.
const LINK_NS: u64 = 400 * MS;
/// When the host's fault comes, after the link's: before it, with it, around the suspicion (120 ms), later.
const DISTANCES_MS: [i64; 7] = [-60, 0, 50, 119, 140, 200, 320];

/// Which link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// The logging channel.
    PrimaryBackup,
    /// The primary's way to the arbiter.
    PrimaryArbiter,
    /// The backup's way to the arbiter.
    BackupArbiter,
}

/// How it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failing {
    /// Nothing passes.
    Cut,
    /// Nothing passes in one direction: towards host 0 or the arbiter's answers, towards host 1.
    OneWay(usize),
    /// Everything is later than the other side waits.
    Delay,
    /// Everything arrives twice.
    Duplicate,
}

/// What happens to a host besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// SIGSTOP, and SIGCONT after this many milliseconds.
    StopAndContinue(u64),
    /// The process dies.
    Kill,
    /// The clock jumps ahead by ten seconds.
    ClockStep,
}

/// One cell, at one distance in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// Which link.
    pub between: Between,
    /// How it fails.
    pub failing: Failing,
    /// What happens to a host.
    pub happening: Happening,
    /// To which.
    pub host: usize,
    /// How long after the link's fault, in milliseconds.
    pub distance_ms: i64,
}

impl Cell {
    /// Its two faults, with their times.
    #[must_use]
    pub fn faults(&self) -> Vec<(u64, Fault)> {
        let at = LINK_NS.saturating_add_signed(self.distance_ms * MS.cast_signed());
        vec![(LINK_NS, self.link_fault()), (at, self.host_fault())]
    }

    fn link_fault(&self) -> Fault {
        let for_ns = FAULTS_END_NS - LINK_NS;
        let host = usize::from(self.between == Between::BackupArbiter);
        let by_ns = 250 * MS;
        match (self.between, self.failing) {
            (Between::PrimaryBackup, Failing::Cut) => Fault::Partition { for_ns },
            (Between::PrimaryBackup, Failing::OneWay(to)) => Fault::OneWay { to, for_ns },
            (Between::PrimaryBackup, Failing::Delay) => Fault::Slow { by_ns, for_ns },
            (Between::PrimaryBackup, Failing::Duplicate) => Fault::Twice { for_ns },
            (_, Failing::Cut) => Fault::ArbiterUnreachable { host, for_ns },
            (_, Failing::OneWay(_)) => Fault::ArbiterOneWay { host, for_ns },
            (_, Failing::Delay) => Fault::ArbiterSlow {
                host,
                by_ns,
                for_ns,
            },
            (_, Failing::Duplicate) => Fault::ArbiterTwice { host, for_ns },
        }
    }

    fn host_fault(&self) -> Fault {
        let host = self.host;
        match self.happening {
            Happening::StopAndContinue(ms) => Fault::Pause {
                host,
                for_ns: ms * MS,
            },
            Happening::Kill => Fault::Crash { host, told: true },
            Happening::ClockStep => Fault::ClockStep {
                host,
                by_ns: 10_000 * MS,
            },
        }
    }
}

/// All cells.
#[must_use]
pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    let links = [
        Between::PrimaryBackup,
        Between::PrimaryArbiter,
        Between::BackupArbiter,
    ];
    let ways = [
        Failing::Cut,
        Failing::OneWay(0),
        Failing::OneWay(1),
        Failing::Delay,
        Failing::Duplicate,
    ];
    let happenings = [
        Happening::StopAndContinue(90),
        Happening::StopAndContinue(450),
        Happening::Kill,
        Happening::ClockStep,
    ];
    for between in links {
        for failing in ways {
            // The way to the arbiter has one direction of its own: its answers.
            if between != Between::PrimaryBackup && failing == Failing::OneWay(1) {
                continue;
            }
            for happening in happenings {
                for host in 0..2 {
                    cells.extend(DISTANCES_MS.map(|distance_ms| Cell {
                        between,
                        failing,
                        happening,
                        host,
                        distance_ms,
                    }));
                }
            }
        }
    }
    cells
}

/// Runs every cell with `seeds` seeds, with something broken or not; how many runs there were.
///
/// # Errors
/// With the cell, the seed and what was broken.
pub fn sweep_matrix(seeds: u64, sabotage: Sabotage) -> Result<usize, String> {
    let mut runs = 0;
    for cell in cells() {
        for seed in 0..seeds {
            let options = Options {
                seed,
                sabotage,
                cell: Some(cell),
                trace: false,
            };
            run(options).map_err(|violation| format!("{cell:?}, seed {seed}: {violation}"))?;
            runs += 1;
        }
    }
    Ok(runs)
}
