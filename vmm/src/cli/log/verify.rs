//! `log verify`: whether a log is sound.

#![forbid(unsafe_code)]

use super::Failure;
use super::arguments::Look;
use super::output::Output;
use clap::Args;
use std::path::PathBuf;

/// Check every frame and record of a log, and the journal beside it, and change nothing.
///
/// A sound log can be replayed as far as its bytes go; whether the replay agrees with it, only
/// `understudy replay` tells.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy log verify /var/lib/understudy/web/log
    $ understudy log verify log --json | jq 'select(.damage)'

Every damaged place is named with file and offset. Ends with status 8 when there is one; an
unsynced tail, as a host that lost power leaves it, is shown but no damage.")]
pub(in crate::cli) struct Arguments {
    /// Directory of the log's segment files.
    dir: PathBuf,
    #[command(flatten)]
    look: Look,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let look = &arguments.look;
    let mut out = Output::open(false);
    let damage = inspect::verify::verify(&mut out, &arguments.dir, look.json, look.theme());
    out.close()?;
    super::conclude(&arguments.dir, &damage?)
}
