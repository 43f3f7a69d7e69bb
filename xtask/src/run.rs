//! Running other programs on the project's behalf: cargo, and the binaries of package `rig`.
//!
//! Output always goes straight to the terminal, so that a failure is never hidden; a failed command is
//! an error that repeats the command line.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The target whose toolchain links static programs.
const TARGET: &str = "x86_64-unknown-linux-gnu";

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

/// What a program of package `rig` needs before it can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing.
    Nothing,
    /// The images, and the programs that run inside the hosts.
    Lab,
}

/// Makes what `binary` of package `rig` needs, builds it, and runs it with `args`.
///
/// # Errors
/// As [`rig_command`], or if the program fails.
pub(crate) fn rig_binary(binary: &str, needs: Needs, args: &[String]) -> Result<()> {
    let only_asked = args
        .iter()
        .any(|arg| matches!(arg.as_str(), "--help" | "-h" | "--list"));
    if needs == Needs::Lab && !only_asked {
        crate::images::ensure()?;
    }
    run(&mut rig_command(binary, needs, args)?)
}

/// Builds `binary` of package `rig`; the command runs it with `args`.
///
/// It is linked statically and released, like the product that runs inside the emulated hosts, so
/// that all of it is compiled once. Starting the program itself instead of `cargo run` leaves no
/// cargo between it and Ctrl-C.
///
/// # Errors
/// If it does not build.
pub(crate) fn rig_command(binary: &str, needs: Needs, args: &[String]) -> Result<Command> {
    let target_dir = workspace_root().join("target/static");
    let mut build = cargo();
    build.env("RUSTFLAGS", "-C target-feature=+crt-static");
    build.args([
        "build",
        "--locked",
        "--release",
        "--target",
        TARGET,
        "--target-dir",
    ]);
    build
        .arg(&target_dir)
        .args(["--package", "rig", "--bin", binary]);
    if needs == Needs::Lab {
        build.args(["--package", "understudy-vmm", "--bin", "understudy"]);
        build.args(["--package", "rig-agent", "--bin", "rig-agent"]);
    }
    run(&mut build)?;
    let programs = target_dir.join(TARGET).join("release");
    let mut command = Command::new(programs.join(binary));
    command.current_dir(workspace_root()).args(args);
    if needs == Needs::Lab {
        command.env("UNDERSTUDY_PROGRAMS", &programs);
    }
    Ok(command)
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

/// Counts what passed and failed over the sections of one command.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: usize,
    failed: usize,
    /// Names of the sections that failed.
    red: Vec<String>,
}

impl Tally {
    /// Runs one section; it counts as one test.
    pub(crate) fn step(&mut self, name: &str, step: impl FnOnce() -> Result<()>) -> bool {
        self.section(name, || {
            step().map(|()| Counts {
                passed: 1,
                failed: 0,
            })
        })
    }

    /// Runs a program whose own summaries (`N passed; M failed`) say how many tests there were.
    pub(crate) fn tests(&mut self, name: &str, make: impl FnOnce() -> Result<Command>) -> bool {
        self.section(name, || run_counting(&mut make()?))
    }

    fn section(&mut self, name: &str, step: impl FnOnce() -> Result<Counts>) -> bool {
        println!("\n=== {name}");
        let started = Instant::now();
        let counts = step().unwrap_or_else(|error| {
            println!("error: {error:#}");
            Counts {
                passed: 0,
                failed: 1,
            }
        });
        self.passed += counts.passed;
        self.failed += counts.failed;
        let verdict = if counts.failed == 0 { "ok" } else { "FAILED" };
        println!("=== {name}: {verdict}, {}", minutes(started.elapsed()));
        if counts.failed != 0 {
            self.red.push(name.to_owned());
        }
        counts.failed == 0
    }

    /// Prints the sum as the last line.
    ///
    /// # Errors
    /// If anything failed; names the sections.
    pub(crate) fn finish(self) -> Result<()> {
        for name in &self.red {
            println!("\nFAILED: {name} (its output is above)");
        }
        println!("\n{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 {
            Ok(())
        } else {
            bail!("failed: {}", self.red.join(", "))
        }
    }
}

/// Tests of one section.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
}

/// Runs `command`, passing its output on as it comes, and adds up the summaries in it. A command that
/// prints none counts as one; one that fails without naming a failed test, as one failure.
fn run_counting(command: &mut Command) -> Result<Counts> {
    let line = command_line(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let mut counts = Counts::default();
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output);
        let mut bytes = Vec::new();
        while output.read_until(b'\n', &mut bytes)? > 0 {
            let text = String::from_utf8_lossy(&bytes);
            print!("{text}");
            if let Some(summary) = summary(&text) {
                counts.passed += summary.passed;
                counts.failed += summary.failed;
            }
            bytes.clear();
        }
    }
    let status = child.wait()?;
    if !status.success() {
        println!("error: `{line}` failed: {status}");
        counts.failed = counts.failed.max(1);
    } else if counts == Counts::default() {
        counts.passed = 1;
    }
    Ok(counts)
}

/// Reads `N passed; M failed` or `N passed, M failed` out of a line.
fn summary(line: &str) -> Option<Counts> {
    let number_before = |word: &str| {
        let (before, _) = line.split_once(word)?;
        before.split_whitespace().next_back()?.parse().ok()
    };
    Some(Counts {
        passed: number_before(" passed")?,
        failed: number_before(" failed")?,
    })
}

/// A duration for people: `4.2 s`, `3 min 07 s`.
fn minutes(elapsed: Duration) -> String {
    match elapsed.as_secs() {
        0..60 => format!("{:.1} s", elapsed.as_secs_f64()),
        seconds => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::{Counts, Tally, minutes, summary};
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn summaries_of_cargo_and_of_our_own_programs() {
        let cargo = "test result: FAILED. 12 passed; 3 failed; 0 ignored; finished in 0.1s";
        assert_eq!(
            summary(cargo),
            Some(Counts {
                passed: 12,
                failed: 3
            })
        );
        assert_eq!(
            summary("9 passed, 0 failed\n"),
            Some(Counts {
                passed: 9,
                failed: 0
            })
        );
        assert_eq!(summary("the test passed and nothing failed"), None);
    }

    #[test]
    fn failures_are_counted_and_named() {
        let mut tally = Tally::default();
        assert!(tally.step("good", || Ok(())));
        assert!(!tally.step("bad", || anyhow::bail!("why")));
        let script = |text: &'static str| {
            move || {
                let mut command = Command::new("sh");
                command.args(["-c", text]);
                Ok(command)
            }
        };
        assert!(tally.tests("silent", script("true")));
        assert!(tally.tests("counted", script("echo 5 passed, 0 failed")));
        assert!(!tally.tests("died", script("echo 2 passed, 0 failed; exit 1")));
        assert_eq!((tally.passed, tally.failed), (1 + 1 + 5 + 2, 1 + 1));
        let error = tally.finish().expect_err("two sections failed");
        assert_eq!(error.to_string(), "failed: bad, died");
    }

    #[test]
    fn durations() {
        assert_eq!(minutes(Duration::from_millis(4_240)), "4.2 s");
        assert_eq!(minutes(Duration::from_secs(187)), "3 min 07 s");
    }
}
