//! The partition matrix with real hosts: a link fails in one of four ways, and meanwhile a process is
//! stopped, killed, or its host's clock jumps. Forty cells of it; the simulation walks all of them
//! (`sim::every_cell_of_the_partition_matrix_holds`).
//!
//! In every cell a client talks to the guest from beginning to end. When everything is mended, somebody must
//! serve it, at most one side may live, and nothing acknowledged may be lost or repeated.

use crate::Drill;
use anyhow::{Context, Result, bail, ensure};
use rig::artifacts;
use rig::lab::{Lab, Side};
use rig::link::{Direction, Impairment, Link};
use rig::observation::Load;
use rig::pair::VM;
use rig::progress::note;
use rig::scene::{PROGRESS_LIMIT, Scene};
use rig::wait::{now, pause, until};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

pub(crate) const DRILLS: &[Drill] = &[
    Drill {
        name: CELLS[0],
        shows: "14 cells of the partition matrix: the link between the hosts",
        run: |lab| walk(lab, Between::Hosts),
    },
    Drill {
        name: CELLS[1],
        shows: "13 cells of the partition matrix: the link between primary and arbiter",
        run: |lab| walk(lab, Between::ArbiterAnd(Side::Primary)),
    },
    Drill {
        name: CELLS[2],
        shows: "13 cells of the partition matrix: the link between backup and arbiter",
        run: |lab| walk(lab, Between::ArbiterAnd(Side::Backup)),
    },
];

/// Each takes minutes.
pub(crate) const CELLS: [&str; 3] = [
    "cells-primary-backup",
    "cells-primary-arbiter",
    "cells-backup-arbiter",
];

/// How long the link is bad: many times the timeout, and time to claim.
const BAD: Duration = Duration::from_secs(5);

/// How long a process is stopped: twice the timeout.
const STOPPED: Duration = Duration::from_secs(3);

/// Between the link's failure and the other fault: less than the timeout, so that both are news at once.
const BETWEEN_FAULTS: Duration = Duration::from_millis(500);

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(100);

/// Time for a command in a host.
const LIMIT: Duration = Duration::from_secs(30);

/// Added to every frame, one way: a round trip stays below the timeout, claims are slow.
const DELAY_US: u64 = 300_000;

/// Far enough in the past to upset whoever believes in wall clocks.
const BACK: &str = "2001-01-01 00:00:00";

/// And in the future.
const AHEAD: &str = "2037-01-01 00:00:00";

/// The link that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Between {
    Hosts,
    ArbiterAnd(Side),
}

/// How it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Cut,
    /// Nothing from the first, everything to it: the primary, or the arbiter's peer.
    FromFirst,
    /// The other way.
    ToFirst,
    Delay,
    Duplicate,
}

/// What else happens, to a side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Stop,
    Kill,
    Step,
}

/// One cell.
#[derive(Debug, Clone, Copy)]
struct Cell {
    between: Between,
    way: Way,
    what: What,
    to: Side,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let link = match self.between {
            Between::Hosts => "primary-backup".to_owned(),
            Between::ArbiterAnd(side) => format!("{side}-arbiter"),
        };
        let what = match self.what {
            What::Stop => "is stopped and continued",
            What::Kill => "is killed",
            What::Step => "has its clock stepped",
        };
        write!(f, "{link} {:?}, the {} {what}", self.way, self.to)
    }
}

/// The hosts' link: every way with everything, and both one-way failures.
const OF_HOSTS: [(Way, What, Side); 14] = [
    (Way::Cut, What::Stop, Side::Primary),
    (Way::Cut, What::Kill, Side::Backup),
    (Way::Cut, What::Step, Side::Primary),
    (Way::FromFirst, What::Stop, Side::Backup),
    (Way::FromFirst, What::Kill, Side::Primary),
    (Way::FromFirst, What::Step, Side::Backup),
    (Way::ToFirst, What::Stop, Side::Primary),
    (Way::ToFirst, What::Kill, Side::Backup),
    (Way::Delay, What::Stop, Side::Primary),
    (Way::Delay, What::Kill, Side::Primary),
    (Way::Delay, What::Step, Side::Backup),
    (Way::Duplicate, What::Stop, Side::Backup),
    (Way::Duplicate, What::Kill, Side::Primary),
    (Way::Duplicate, What::Step, Side::Primary),
];

/// A side's link to the arbiter: every way with everything, and an answer lost to whoever has to claim.
const OF_ARBITER: [(Way, What, Side); 13] = [
    (Way::Cut, What::Stop, Side::Primary),
    (Way::Cut, What::Kill, Side::Primary),
    (Way::Cut, What::Step, Side::Backup),
    (Way::FromFirst, What::Stop, Side::Backup),
    (Way::FromFirst, What::Kill, Side::Backup),
    (Way::FromFirst, What::Step, Side::Primary),
    (Way::ToFirst, What::Kill, Side::Primary),
    (Way::Delay, What::Stop, Side::Primary),
    (Way::Delay, What::Kill, Side::Backup),
    (Way::Delay, What::Step, Side::Primary),
    (Way::Duplicate, What::Stop, Side::Backup),
    (Way::Duplicate, What::Kill, Side::Primary),
    (Way::Duplicate, What::Step, Side::Backup),
];

fn cells(between: Between) -> Vec<Cell> {
    let list = match between {
        Between::Hosts => &OF_HOSTS[..],
        Between::ArbiterAnd(_) => &OF_ARBITER[..],
    };
    let cell = |(way, what, to)| Cell {
        between,
        way,
        what,
        to,
    };
    list.iter().copied().map(cell).collect()
}

/// Goes through the cells of a link, and on after one that fails.
fn walk(lab: &mut Lab, between: Between) -> Result<()> {
    let cells = cells(between);
    let mut failed = Vec::new();
    for (number, cell) in cells.iter().enumerate() {
        let began = now();
        let outcome = lab.reset().and_then(|()| one(lab, *cell));
        let took = began.elapsed().as_secs_f64();
        match outcome {
            Ok(told) => note(&format!("{:2} {cell}: {told} ({took:.1} s)", number + 1)),
            Err(error) => {
                let why = format!("{cell}: {error:#}");
                note(&format!("{:2} FAILED {why}", number + 1));
                artifacts::keep(lab, "cell", "cargo xtask drill cells-...", &why);
                failed.push(why);
            }
        }
    }
    if !failed.is_empty() {
        let (failed_count, count) = (failed.len(), cells.len());
        bail!("{failed_count} of {count} cells: {}", failed.join("; "));
    }
    Ok(())
}

/// What became of the pair in `cell`, in words.
fn one(lab: &mut Lab, cell: Cell) -> Result<String> {
    let options = lab.options();
    let mut scene = Scene::open(lab, &options, &Load::steady())?;
    scene.phase("bad")?;
    spoil(scene.lab, cell);
    pause(BETWEEN_FAULTS);
    strike(&scene, cell)?;
    pause(BAD);
    scene.lab.link.mend();
    scene.lab.arbiter_link.mend();
    scene.phase("mended")?;
    scene.wait_served().context("when all was mended")?;
    let (live, generation) = settled(&scene)?;
    let (register, holder) = scene.lab.arbiter.register(VM)?;
    ensure!(
        register == generation,
        "{live} lives in generation {generation}, the register has {register}, held by {holder}"
    );
    let (seen, _) = scene.close()?;
    let silence_ms = seen.phases.iter().map(|phase| phase.silence_ms);
    let silence_ms = silence_ms.fold(0.0, f64::max);
    Ok(format!(
        "{live} lives in generation {generation}, {} acknowledged, silent for {silence_ms:.0} ms at most",
        seen.acknowledged
    ))
}

fn spoil(lab: &Lab, cell: Cell) {
    let (link, only): (&Link, Option<Ipv4Addr>) = match cell.between {
        Between::Hosts => (&lab.link, None),
        Between::ArbiterAnd(side) => (&lab.arbiter_link, service_address(side)),
    };
    let cut = Impairment {
        cut: true,
        only,
        ..Impairment::default()
    };
    match cell.way {
        Way::Cut => link.impair_both(cut),
        Way::FromFirst => link.impair(Direction::ToBackup, cut),
        Way::ToFirst => link.impair(Direction::ToPrimary, cut),
        Way::Delay => link.impair_both(Impairment {
            delay_us: DELAY_US,
            only,
            ..Impairment::default()
        }),
        Way::Duplicate => link.impair_both(Impairment {
            duplicate_ppm: 1_000_000,
            only,
            ..Impairment::default()
        }),
    }
}

fn service_address(side: Side) -> Option<Ipv4Addr> {
    side.address().parse().ok()
}

/// Returns when the fault is over, but for a link's.
fn strike(scene: &Scene<'_>, cell: Cell) -> Result<()> {
    let agent = scene.lab.host(cell.to).agent()?;
    let pid = scene.pair.pid(cell.to)?.to_string();
    let run = |argv: &[&str]| agent.exec(argv, LIMIT)?.success().map(|_| ());
    match cell.what {
        What::Stop => {
            run(&["kill", "-STOP", &pid])?;
            pause(STOPPED);
            run(&["kill", "-CONT", &pid])
        }
        What::Kill => run(&["kill", "-KILL", &pid]),
        What::Step => {
            run(&["date", "-s", BACK])?;
            pause(STOPPED);
            run(&["date", "-s", AHEAD])
        }
    }
}

/// The one side that lives, and its generation; the other follows it or is over.
fn settled(scene: &Scene<'_>) -> Result<(Side, u64)> {
    let look = || {
        let status = |side| scene.pair.status(scene.lab, side).ok();
        let told = Side::BOTH.map(|side| (side, status(side)));
        let lives = |role: &str| matches!(role, "solo" | "protected");
        let quiet = |role: &str| matches!(role, "following" | "halted");
        let mut live = Vec::new();
        let mut unsettled = false;
        for (side, status) in told {
            // A process that is over answers nobody.
            let Some(status) = status else { continue };
            if lives(&status.role) {
                live.push((side, status.generation));
            } else if !quiet(&status.role) {
                unsettled = true;
            }
        }
        ensure!(live.len() < 2, "both sides live: {live:?}");
        Ok(live.pop().filter(|_| !unsettled))
    };
    until("one side to live", PROGRESS_LIMIT, INTERVAL, look)
}
