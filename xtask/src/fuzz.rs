//! `cargo xtask fuzz TARGET`: one cargo-fuzz target of `fuzz/`.

use anyhow::Result;

use crate::run::{cargo, run as run_command};

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A target of `fuzz/`; without one, the targets are listed
    target: Option<String>,
    /// Seconds to run
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Runs the target for the given time.
pub(crate) fn run(args: &Args) -> Result<()> {
    let Some(target) = &args.target else {
        return run_command(cargo().args(["fuzz", "list"]));
    };
    let limit = format!("-max_total_time={}", args.seconds);
    run_command(cargo().args([
        "+nightly",
        "fuzz",
        "run",
        target.as_str(),
        "--",
        limit.as_str(),
    ]))
}
