//! `cargo xtask sim`: seeds of the whole-pair simulation, many or one.

use clap::Parser;
use rig::sim::matrix::sweep_matrix;
use rig::sim::sweep::{command, sweep};
use rig::sim::{Options, Sabotage, run};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Simulate the whole pair, the arbiter and a client from seeds; every invariant must hold.
#[derive(Parser)]
#[command(name = "cargo xtask sim")]
struct Args {
    /// Run this seed alone and print everything that happens
    #[arg(long, conflicts_with_all = ["seeds", "minutes", "json"])]
    seed: Option<u64>,
    /// Run this many seeds
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// Every cell of the partition matrix with this many seeds, instead of random faults
    #[arg(long, conflicts_with_all = ["seed", "seeds", "minutes", "json"])]
    matrix: Option<u64>,
    /// Begin with this seed
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Go on with new seeds for this many minutes, whatever --seeds says
    #[arg(long)]
    minutes: Option<u64>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Break something on purpose: the seeds must find it
    #[arg(long)]
    sabotage: Option<Sabotage>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let sabotage = args.sabotage.unwrap_or_default();
    match (args.seed, args.matrix) {
        (Some(seed), _) => one(seed, sabotage),
        (None, Some(seeds)) => matrix(seeds, sabotage),
        (None, None) => many(&args, sabotage),
    }
}

fn matrix(seeds: u64, sabotage: Sabotage) -> ExitCode {
    match sweep_matrix(seeds, sabotage) {
        Ok(runs) => {
            println!("the partition matrix holds: {runs} runs");
            ExitCode::SUCCESS
        }
        Err(violation) => {
            eprintln!("{violation}");
            ExitCode::FAILURE
        }
    }
}

fn one(seed: u64, sabotage: Sabotage) -> ExitCode {
    match run(Options {
        seed,
        sabotage,
        trace: true,
        cell: None,
    }) {
        Ok(stats) => {
            println!("seed {seed} holds: {stats:?}");
            ExitCode::SUCCESS
        }
        Err(violation) => {
            eprintln!(
                "seed {seed}: {violation}\nrepeat: {}",
                command(seed, sabotage)
            );
            ExitCode::FAILURE
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the operator's minutes, outside every simulation"
)]
fn many(args: &Args, sabotage: Sabotage) -> ExitCode {
    let began = Instant::now();
    let limit = args
        .minutes
        .map(|minutes| Duration::from_secs(minutes * 60));
    let seeds = if limit.is_some() {
        u64::MAX
    } else {
        args.seeds
    };
    let go_on = || limit.is_none_or(|limit| began.elapsed() < limit);
    match sweep(args.first, seeds, sabotage, go_on) {
        Ok(summary) if args.json => {
            println!(
                "{}",
                serde_json::json!({ "holds": true, "summary": summary })
            );
            ExitCode::SUCCESS
        }
        Ok(summary) => {
            println!(
                "{} seeds hold: {} events, {} requests answered; a backup went live in {}, \
                 a primary went on alone in {}; {} times a new backup got the state; {} states came with the log; longest silence with a backup gone live {} ms \
                 (arbiter outages included); {:.1} s",
                summary.seeds,
                summary.events,
                summary.answered,
                summary.went_live,
                summary.went_on_alone,
                summary.transfers,
                summary.states,
                summary.silence_ms_max,
                began.elapsed().as_secs_f64()
            );
            ExitCode::SUCCESS
        }
        Err(failure) => {
            if args.json {
                println!(
                    "{}",
                    serde_json::json!({ "holds": false, "failure": failure })
                );
            }
            eprintln!(
                "seed {}: {}\nrepeat: {}",
                failure.seed, failure.violation, failure.command
            );
            ExitCode::FAILURE
        }
    }
}
