//! `cargo xtask check`: the read-only gate that every commit passes.

use anyhow::Result;

use crate::run::{cargo, run as run_command};

/// Options of `cargo xtask check`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Formatting, clippy, tests.
pub(crate) fn run(_args: &Args) -> Result<()> {
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    run_command(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    run_command(cargo().args(["test", "--workspace"]))
}
