//! `log stat`: counts over a whole log.

#![forbid(unsafe_code)]

use super::Failure;
use super::output::Output;
use crate::cli::exit::Exit;
use crate::cli::unless_reader_left;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;

/// Count a log: records and bytes by kind, span, rates, silences, generations, damage.
///
/// Bytes are those of the encoded records, as they travel and lie on disk; `overhead` is what frames
/// and segment headers add. Rates are per second of guest time. Who was live in a generation, the
/// percentiles of the gate's delay, of acknowledgements and of the backup's lag, and what happened on
/// this side are from the journal beside the log, in host time; a log without one says so.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy log stat /var/lib/understudy/web/log
    $ understudy log stat log --json | jq '.kinds.timer.bytes_per_record'
    $ understudy log stat log --json | jq '.journal.gate, .journal.lag'
    $ understudy log stat log --json | jq '.silences[] | select(.of == \"packets sent\")'

A log may be read while it is written. Ends with status 8 when it is damaged; an unsynced tail,
as a host that lost power leaves it, is shown but no damage.")]
pub(in crate::cli) struct Arguments {
    /// Directory of the log's segment files.
    dir: PathBuf,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (report, damage) = inspect::stat::gather(&arguments.dir)?;
    let text = if arguments.json {
        let text = serde_json::to_string(&report);
        text.map_err(|error| Failure::new(Exit::Failed, error))? + "\n"
    } else {
        report.text()
    };
    let mut out = Output::open(false);
    unless_reader_left(out.write_all(text.as_bytes()))?;
    out.close()?;
    super::conclude(&arguments.dir, &damage)
}
