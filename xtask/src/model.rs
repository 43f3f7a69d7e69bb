//! `cargo xtask model`: builds and runs `model` of package `rig-model`.

use std::process::Command;

use crate::run::{Passthrough, cargo, run as run_command, workspace_root};

/// Hands `args` to `model`.
pub(crate) fn run(args: &Passthrough) -> anyhow::Result<()> {
    run_command(&mut command(&args.args)?)
}

/// Builds `model`; the command runs it with `args`.
///
/// # Errors
/// If it does not build.
pub(crate) fn command(args: &[String]) -> anyhow::Result<Command> {
    let target_dir = workspace_root().join("target");
    let mut build = cargo();
    build.args(["build", "--locked", "--release", "--package", "rig-model"]);
    run_command(build.arg("--target-dir").arg(&target_dir))?;
    let mut command = Command::new(target_dir.join("release/model"));
    command.current_dir(workspace_root()).args(args);
    Ok(command)
}
