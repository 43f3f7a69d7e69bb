//! `log diff`: the first difference between two logs.

#![forbid(unsafe_code)]

use super::Failure;
use super::arguments::Look;
use super::output::Output;
use crate::cli::exit::Exit;
use crate::cli::unless_reader_left;
use clap::Args;
use inspect::diff::{Relation, compare};
use std::io::{self, Write};
use std::path::PathBuf;

/// Compare two logs, such as those of the two sides of a pair, and show where they part.
///
/// Shows the first record that differs, in what, the records around it, and a hint at the cause. After a
/// failover one log is the beginning of the other, or they part where the new generation begins; both
/// are no difference. What the dead primary logged beyond was never acknowledged.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy log diff primary/log backup/log
    $ understudy log diff before after --json | jq .hint

Ends with status 5 when a record differs, 8 when a log is damaged.")]
pub(in crate::cli) struct Arguments {
    /// Directory of the first log's segment files.
    first: PathBuf,
    /// Directory of the second's.
    second: PathBuf,
    #[command(flatten)]
    look: Look,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments {
        first,
        second,
        look,
    } = arguments;
    let (found, damage) = compare(first, second)?;
    let mut out = Output::open(false);
    let written = if look.json {
        let written = serde_json::to_writer(&mut out, &found).map_err(io::Error::from);
        written.and_then(|()| out.write_all(b"\n"))
    } else {
        found.write(&mut out, first, second, look.theme())
    };
    unless_reader_left(written)?;
    out.close()?;
    if let (Relation::Differ, Some(at)) = (found.relation, found.at) {
        let error = anyhow::anyhow!("the logs differ from record {at} on");
        let remedy = "keep both; `understudy replay` tells which of them the guest follows";
        return Err(Failure::new(Exit::Diverged, error).remedy(remedy));
    }
    super::conclude(first, &damage)
}
