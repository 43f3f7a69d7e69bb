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

/// Runs the target for the given time: with the nightly toolchain where there is one, otherwise with
/// the installed one and `RUSTC_BOOTSTRAP` (see `fuzz/README.md`).
pub(crate) fn run(args: &Args) -> Result<()> {
    let Some(target) = &args.target else {
        return run_command(cargo().args(["fuzz", "list"]));
    };
    let nightly = Command::new("rustup")
        .args(["run", "nightly", "cargo", "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    let mut command = if nightly {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "cargo", "fuzz", "run"]);
        command
    } else {
        let mut command = cargo();
        command.env("RUSTC_BOOTSTRAP", "1");
        command.args(["fuzz", "run", "--sanitizer", "none"]);
        command
    };
    let limit = format!("-max_total_time={}", args.seconds);
    command.current_dir(workspace_root());
    run_command(command.args([target, "--", &limit]))
}
