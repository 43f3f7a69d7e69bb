//! `cargo xtask fix`: the only command that rewrites files.

use anyhow::Result;

use crate::run::{cargo, run as run_command};

/// Applies clippy's machine-applicable suggestions, then formats.
pub(crate) fn run() -> Result<()> {
    run_command(cargo().args([
        "clippy",
        "--fix",
        "--allow-dirty",
        "--allow-staged",
        "--all-targets",
    ]))?;
    run_command(cargo().args(["fmt", "--all"]))
}
