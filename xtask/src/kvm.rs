//! `cargo xtask kvm`: the tests of package `rig` that need KVM, on this machine or in the lab.

use std::process::Command;

use anyhow::Result;

use crate::run::{Passthrough, cargo, run as run_command};

/// Runs them with skips turned into failures; `args` go to the test program.
pub(crate) fn run(args: &Passthrough) -> Result<()> {
    run_command(&mut command(args)?)
}

/// The command behind it.
pub(crate) fn command(args: &Passthrough) -> Result<Command> {
    let mut command = cargo();
    command
        .env("REQUIRE", "rig")
        .args(["test", "--locked", "--package", "rig", "--test", "kvm"]);
    command
        .args(["--", "--nocapture", "--test-threads=1"])
        .args(&args.args);
    Ok(command)
}
