//! `cargo xtask check`: the read-only gate that every commit passes.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::run::{Tally, cargo, run as run_command};

/// Options of `cargo xtask check`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the house rules and the dependency policy (no compiler)
    #[arg(long)]
    pub(crate) tidy: bool,
}

/// Formatting, house rules, clippy, tests: cheapest first, all of them even after a failure.
///
/// # Errors
/// If any step failed; each has printed why.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.tidy {
        return crate::tidy::run();
    }
    let mut tally = Tally::default();
    steps(&mut tally);
    tally.finish()
}

/// The steps of the gate, for `test` as well.
pub(crate) fn steps(tally: &mut Tally) {
    tally.step("format", || {
        run_command(cargo().args(["fmt", "--all", "--check"]))
    });
    tally.step("tidy", crate::tidy::run);
    tally.step("clippy", || {
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
    });
    tally.tests("unit tests", pure_tests);
}

/// `cargo test` of everything that needs no machine: libraries, programs, and the integration tests
/// of all packages but `rig`, whose own boot emulated hosts (`cargo xtask kvm`).
fn pure_tests() -> Result<std::process::Command> {
    let output = cargo()
        .args(["metadata", "--format-version", "1", "--locked", "--no-deps"])
        .output()
        .context("cannot start cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let mut command = cargo();
    command.args([
        "test",
        "--workspace",
        "--locked",
        "--no-fail-fast",
        "--lib",
        "--bins",
    ]);
    let packages = metadata["packages"].as_array().into_iter().flatten();
    for package in packages.filter(|package| package["name"] != "rig") {
        let targets = package["targets"].as_array().into_iter().flatten();
        for target in targets.filter(|target| target["kind"][0] == "test") {
            command.args(["--test", target["name"].as_str().unwrap_or_default()]);
        }
    }
    Ok(command)
}
