//! Running other programs on the project's behalf: cargo, and the binaries of package `rig`.
//!
//! Output always goes straight to the terminal, so that a failure is never hidden; a failed command is
//! an error that repeats the command line.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Arguments that are handed unchanged to the program behind a command.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(disable_help_flag = true)]
pub(crate) struct Passthrough {
    /// Arguments for the program; `--help` lists its own options
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    pub(crate) args: Vec<String>,
}

/// The root of the checkout (the directory above this package's).
pub(crate) fn workspace_root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or(package.clone(), PathBuf::from)
}

/// The cargo that started us, so that toolchain overrides such as `cargo +stable xtask` hold throughout.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root());
    command
}

/// Runs `command` to its end with our own stdin, stdout and stderr.
///
/// # Errors
/// If it cannot be started or does not exit with status 0; the message has the whole command line.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = command_line(command);
    let status = command
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Builds a binary of package `rig` and runs it with `args`.
///
/// The product itself is built first, because the rig starts it as a process of its own.
///
/// # Errors
/// As [`run`].
pub(crate) fn rig_binary(binary: &str, args: &[String]) -> Result<()> {
    run(cargo().args(["build", "--package", "rig", "--bin", binary]))?;
    run(cargo()
        .args(["run", "--quiet", "--package", "rig", "--bin", binary, "--"])
        .args(args))
}

/// The command as one would type it; program paths are shortened to their names.
pub(crate) fn command_line(command: &Command) -> String {
    let program = PathBuf::from(command.get_program());
    let name = program
        .file_name()
        .unwrap_or(program.as_os_str())
        .to_string_lossy()
        .into_owned();
    std::iter::once(name)
        .chain(
            command
                .get_args()
                .map(OsStr::to_string_lossy)
                .map(|arg| arg.into_owned()),
        )
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs one step under a heading and says how long it took.
///
/// # Errors
/// The step's own, with its name.
pub(crate) fn section<T>(name: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("=== {name}");
    let started = std::time::Instant::now();
    let result = step();
    let verdict = if result.is_ok() { "ok" } else { "FAILED" };
    println!(
        "=== {name}: {verdict}, {:.1} s",
        started.elapsed().as_secs_f64()
    );
    result.with_context(|| format!("{name} failed"))
}
