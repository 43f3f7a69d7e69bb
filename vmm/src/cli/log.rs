//! `understudy log`: read-only looks at a log on disk, whole or damaged, finished or being written.
//!
//! Never modifies, decodes as much as it can, and says what it left out. Memory is that of one frame
//! and of the report.

#![forbid(unsafe_code)]

mod list;
mod stat;
#[cfg(test)]
mod tests;

use super::exit::{Exit, Failure};
use super::unless_reader_left;
use clap::{Args, Subcommand};
use logging_channel::record::RecordBody;
use logging_channel::segment::{LeftOut, Salvaged, Salvager, SegmentDamage};
use serde::Serialize;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Look at a log on disk: what it holds, and its records one by one.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Stat(StatArguments),
    Ls(ListArguments),
}

/// Count a log: records and bytes by kind, span, rate, generations, damage.
///
/// Bytes are those of the encoded records, as they travel and lie on disk; `overhead` is what frames
/// and segment headers add. Rates are per second of guest time.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy log stat /var/lib/understudy/web/log
    $ understudy log stat log --json | jq '.kinds.timer.bytes_per_record'

A log may be read while it is written. Ends with status 8 when it is damaged; a torn last frame, as
a killed process leaves it, is reported but no damage.")]
pub(super) struct StatArguments {
    /// Directory of the log's segment files.
    dir: PathBuf,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

/// List a log's records, one line each.
///
/// A line has the record's index, the execution point (synchronous exits, and for a point between
/// exits the branches retired and the instruction pointer), guest time in seconds, kind and content.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy log ls /var/lib/understudy/web/log | head
    $ understudy log ls log --from 1000 --to 1020
    $ understudy log ls log --kind packet --kind output --json

Ends with status 8 when the log is damaged; every hole has a line of its own.")]
pub(super) struct ListArguments {
    /// Directory of the log's segment files.
    dir: PathBuf,
    /// First index to list.
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    from: u64,
    /// First index not to list.
    #[arg(long, value_name = "INDEX", default_value_t = u64::MAX, hide_default_value = true)]
    to: u64,
    /// List only this kind; may be repeated.
    #[arg(long, value_name = "KIND", value_parser = KINDS)]
    kind: Vec<String>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

/// Names of the kinds of records.
const KINDS: [&str; 10] = [
    "start", "timer", "console", "packet", "entropy", "output", "mark", "progress", "control",
    "end",
];

const fn kind_of(body: &RecordBody) -> &'static str {
    match body {
        RecordBody::Start(_) => KINDS[0],
        RecordBody::Timer => KINDS[1],
        RecordBody::Console(_) => KINDS[2],
        RecordBody::Packet { .. } => KINDS[3],
        RecordBody::Entropy(_) => KINDS[4],
        RecordBody::Output(_) => KINDS[5],
        RecordBody::Mark(_) => KINDS[6],
        RecordBody::Progress => KINDS[7],
        RecordBody::Control(_) => KINDS[8],
        RecordBody::End(_) => KINDS[9],
    }
}

/// Bytes of a log that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Hole {
    file: PathBuf,
    offset: u64,
    bytes: u64,
    what: String,
    /// Only the end of a frame is missing.
    torn: bool,
}

impl From<&LeftOut> for Hole {
    fn from(left_out: &LeftOut) -> Self {
        Self {
            file: left_out.path.to_path_buf(),
            offset: left_out.offset,
            bytes: left_out.bytes,
            what: left_out.damage.to_string(),
            torn: matches!(left_out.damage, SegmentDamage::Torn { .. }),
        }
    }
}

/// Counts holes. A torn frame is damage only when something follows it.
#[derive(Debug, Default)]
struct Damage {
    count: u64,
    pending_torn: bool,
}

impl Damage {
    fn see(&mut self, item: &Salvaged) {
        self.count += u64::from(std::mem::take(&mut self.pending_torn));
        if let Salvaged::LeftOut(left_out) = item {
            match left_out.damage {
                SegmentDamage::Torn { .. } => self.pending_torn = true,
                _ => self.count += 1,
            }
        }
    }
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    let (dir, damage) = match command {
        Command::Stat(arguments) => (&arguments.dir, stat::run(arguments)?),
        Command::Ls(arguments) => (&arguments.dir, list::run(arguments)?),
    };
    if damage.count == 0 {
        return Ok(());
    }
    let error = anyhow::anyhow!(
        "the log in {} is damaged in {} places",
        dir.display(),
        damage.count
    );
    Err(Failure::new(Exit::Damaged, error)
        .remedy("what was readable is shown; nothing is ever replayed from a damaged log"))
}

/// Calls `each` with every frame and hole in `dir`, in order.
fn walk(dir: &Path, mut each: impl FnMut(&Salvaged) -> io::Result<()>) -> Result<Damage, Failure> {
    let mut salvager = Salvager::open(dir)?;
    let mut damage = Damage::default();
    let mut empty = true;
    while let Some(item) = salvager.next()? {
        empty = false;
        damage.see(&item);
        match each(&item) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Damage::default()),
            result => result?,
        }
    }
    if empty {
        let error = anyhow::anyhow!("there is no log in {}", dir.display());
        let remedy = "give the directory named by [log] dir in the configuration file";
        return Err(Failure::new(Exit::Failed, error).remedy(remedy));
    }
    Ok(damage)
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    unless_reader_left(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}
