//! `cargo xtask fuzz TARGET`: one cargo-fuzz target of `fuzz/`.

use std::process::Command;

use anyhow::Result;

use crate::run::{cargo, run as run_command, workspace_root};

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
    let mut command = Command::new("rustup");
    command
        .current_dir(workspace_root())
        .args(["run", "nightly", "cargo", "fuzz", "run"]);
    run_command(command.args([target, "--", &limit]))
}
