//! `cargo xtask model`: every interleaving of the go-live protocol within bounds.
#![forbid(unsafe_code)]

use clap::Parser;
use model::bounds::{FINDS, LARGE, QUICK};
use model::check::{Pair, Verdict, check};
use model::sabotage::Sabotage;
use model::world::Bounds;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Check the go-live protocol in every interleaving, within several bounds; with options, within those.
#[derive(Parser)]
#[command(name = "cargo xtask model")]
struct Args {
    /// Only small bounds, and all deliberate breaks
    #[arg(long, conflicts_with = "faults")]
    quick: bool,
    /// Hosts: one primary, the others backups
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=4))]
    hosts: u8,
    /// Faults of any kind, together
    #[arg(long)]
    faults: Option<u8>,
    /// Outputs that guests produce, together
    #[arg(long, default_value_t = 1)]
    outputs: u8,
    /// Guests' threads may be late with what their nodes offer, and with what they report
    #[arg(long)]
    lagging: bool,
    /// Give up on one set of bounds after this many seconds; what was not completed fails
    #[arg(long, default_value_t = 7_200)]
    seconds: u64,
    /// Break something on purpose: it must be found
    #[arg(long, requires = "faults")]
    sabotage: Option<Sabotage>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let (mut passed, mut failed) = (0, 0);
    let mut count = |good: bool| *(if good { &mut passed } else { &mut failed }) += 1;
    let limit = Duration::from_secs(args.seconds);
    if let Some(faults) = args.faults {
        let bounds = Bounds {
            hosts: usize::from(args.hosts),
            faults,
            outputs: args.outputs,
            lagging: args.lagging,
        };
        let sabotage = args.sabotage.unwrap_or_default();
        count(holds(&run(Pair { bounds, sabotage }, limit)));
    } else {
        let all: &[Bounds] = if args.quick { &QUICK } else { &LARGE };
        for bounds in all.iter().copied() {
            let sabotage = Sabotage::None;
            count(holds(&run(Pair { bounds, sabotage }, limit)));
        }
        for (sabotage, bounds) in FINDS {
            count(found(&run(Pair { bounds, sabotage }, limit)));
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "tells the operator how long it took, outside every model"
)]
fn run(pair: Pair, limit: Duration) -> Verdict {
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let verdict = check(pair, threads, limit);
    let broken = match pair.sabotage {
        Sabotage::None => String::new(),
        sabotage => format!("{sabotage:?}: "),
    };
    println!(
        "{broken}{}: {} states, {} steps, longest path {}, {:.1} s",
        pair.bounds,
        verdict.states,
        verdict.steps,
        verdict.depth,
        began.elapsed().as_secs_f64()
    );
    verdict
}

/// Whether everything was visited and holds; says what does not.
fn holds(verdict: &Verdict) -> bool {
    if let Some(broken) = &verdict.broken {
        println!("BROKEN: {}", broken.invariant);
        for (number, step) in broken.steps.iter().enumerate() {
            println!("{:>4}  {step:?}", number + 1);
        }
        println!("{:#?}", broken.world);
        return false;
    }
    for unseen in &verdict.unseen {
        println!("never seen: {unseen}");
    }
    if !verdict.complete {
        println!("not complete: the time was up");
    }
    verdict.complete
}

/// Whether a deliberate break was found.
fn found(verdict: &Verdict) -> bool {
    match &verdict.broken {
        Some(broken) => println!(
            "      found after {} steps: {}",
            broken.steps.len(),
            broken.invariant
        ),
        None => println!("NOT FOUND"),
    }
    verdict.broken.is_some()
}
