//! `understudy doctor`: what this host's KVM can be trusted with.

#![forbid(unsafe_code)]

use super::exit::{Exit, Failure};
use super::unless_reader_left;
use clap::Args;
use std::io::{self, Write};
use vmm::doctor::{self, Thoroughness};

/// Find out by experiment whether this host can run replicated guests.
///
/// Runs tiny guests and compares what they do with what a processor must do. A failed probe says what
/// was expected and what was seen; a warning does not weigh. Takes a second or two.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy doctor
    $ understudy doctor --json | jq '.kvm[] | select(.verdict == \"fail\")'

Ends with status 6 when the host is not fit.")]
pub(super) struct Arguments {
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
    /// Stop at the first failed probe: enough for the verdict.
    #[arg(long)]
    fast: bool,
}

/// Runs the command.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let thoroughness = if arguments.fast {
        Thoroughness::FirstFailure
    } else {
        Thoroughness::Everything
    };
    let report = doctor::examine(thoroughness);
    let text = if arguments.json {
        let json = serde_json::to_string_pretty(&report);
        json.map_err(|error| Failure::new(Exit::Failed, error))? + "\n"
    } else {
        report.to_string()
    };
    unless_reader_left(io::stdout().lock().write_all(text.as_bytes()))?;
    if report.fit_for_linux() {
        return Ok(());
    }
    Err(Failure::new(
        Exit::HostUnfit,
        anyhow::anyhow!("this host cannot run replicated guests"),
    ))
}
