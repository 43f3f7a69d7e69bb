//! `understudy fence-helper`: runs the fence command when its parent says so. Not for people.

#![forbid(unsafe_code)]

use super::exit::{Exit, Failure};
use clap::Args;
use std::io;
use std::time::Duration;
use vmm::confine::privileges::drop_capabilities;

/// Run the fence command for a side that cannot start programs itself; started by it.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy fence-helper --time-limit-s 10 -- /usr/local/sbin/fence < generations")]
pub(super) struct Arguments {
    /// Longest time for one run of the command.
    #[arg(long, value_name = "N")]
    time_limit_s: u64,
    /// The command.
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    drop_capabilities()?;
    let limit = Duration::from_secs(arguments.time_limit_s);
    vmm::runtime::fence_helper(&arguments.command, limit, io::stdin().lock(), io::stdout())
        .map_err(|error| Failure::new(Exit::Failed, error))
}
