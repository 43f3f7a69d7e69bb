//! `cargo xtask check`: the read-only gate that every commit passes.

use anyhow::Result;

use crate::run::{cargo, run as run_command, section};

/// Options of `cargo xtask check`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the house rules and the dependency policy (no compiler)
    #[arg(long)]
    pub(crate) tidy: bool,
}

/// Formatting, house rules, clippy, tests: cheapest first.
///
/// # Errors
/// At the first step that fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.tidy {
        return crate::tidy::run();
    }
    section("format", || {
        run_command(cargo().args(["fmt", "--all", "--check"]))
    })?;
    section("tidy", crate::tidy::run)?;
    section("clippy", || {
        let args = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ];
        run_command(cargo().args(args))
    })?;
    section("unit tests", || {
        run_command(cargo().args(["test", "--workspace", "--locked"]))
    })
}
