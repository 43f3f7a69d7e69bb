//! `cargo xtask test`: everything that the README promises, in one command.

use anyhow::Result;

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out everything that boots a machine: gate and simulation only
    #[arg(long)]
    pub(crate) quick: bool,
}

/// Runs the gate.
pub(crate) fn run(_args: &Args) -> Result<()> {
    crate::check::run(&crate::check::Args { tidy: false })
}
