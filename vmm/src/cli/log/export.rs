//! `log export`: a log in the form of other programs.

#![forbid(unsafe_code)]

use super::Failure;
use super::arguments::{Choice, FILTER_HELP};
use crate::cli::unless_reader_left;
use clap::Args;
use inspect::export::csv;
use inspect::export::pcapng::PcapngWriter;
use inspect::export::trace::TraceWriter;
use inspect::facts::Facts;
use inspect::journal::releases::Releases;
use inspect::source::{Damage, Found, Step, WalkError, walk};
use logging_channel::codec::Placed;
use logging_channel::record::RecordBody;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Write a log in the form of other programs: packet capture, timeline, table.
///
/// All times are guest time; a timeline also has what the journal beside the log knows, placed by
/// the records seen at the time; a packet capture adds the guest's wall clock at power-on. Of packets that
/// left the guest a log has only length and checksum: they are in the capture without bytes, and
/// only a replay makes them again.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
    $ understudy log export log --pcapng web.pcapng && wireshark web.pcapng
    $ understudy log export log --pcapng - --filter 'port == 80 or output' | tshark -r -
    $ understudy log export log --perfetto web.json    (open it at ui.perfetto.dev)
    $ understudy log export log --csv - --kind packet | head

{FILTER_HELP}

Ends with status 8 when the log is damaged; what was readable is in the file."))]
pub(in crate::cli) struct Arguments {
    /// Directory of the log's segment files.
    dir: PathBuf,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    choice: Choice,
}

/// Where to, and in which form; `-` is standard output.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Form {
    /// Packets, for Wireshark and tshark.
    #[arg(long, value_name = "FILE")]
    pcapng: Option<PathBuf>,
    /// A timeline, for the Perfetto UI (JSON trace events).
    #[arg(long, value_name = "FILE")]
    perfetto: Option<PathBuf>,
    /// A table of all records.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { dir, form, .. } = arguments;
    let damage = if let Some(path) = &form.pcapng {
        let mut writer = PcapngWriter::new(open(path)?)?;
        if let Some(releases) = Releases::open(dir)? {
            writer = writer.with_releases(releases);
        }
        let damage = each(arguments, |_, placed| writer.record(&placed.record, None));
        unless_reader_left(writer.finish().map(drop))?;
        damage
    } else if let Some(path) = &form.perfetto {
        let name = format!("understudy log {}", dir.display());
        let mut writer = TraceWriter::new(open(path)?, &name)?;
        let mut times: Option<(u64, u64)> = None;
        let damage = each(arguments, |facts, placed| {
            let us = placed.record.guest_time.as_micros();
            times = Some((times.map_or(us, |(first, _)| first), us));
            writer.record(facts, placed.length)
        });
        // The journal goes beyond the last record, a range does not.
        let within = times.filter(|_| arguments.choice.from.or(arguments.choice.to).is_some());
        unless_reader_left(writer.journal(dir, within))?;
        unless_reader_left(writer.finish().map(drop))?;
        damage
    } else if let Some(path) = &form.csv {
        let mut out = open(path)?;
        unless_reader_left(csv::write_header(&mut out))?;
        let damage = each(arguments, |facts, placed| {
            csv::write_record(&mut out, facts, placed.length)
        });
        unless_reader_left(out.flush())?;
        damage
    } else {
        Ok(Damage::default())
    };
    super::conclude(dir, &damage?)
}

/// Gives `write` every record that is wanted. A Start always is: it has the clock and the generation.
fn each(
    arguments: &Arguments,
    mut write: impl FnMut(&Facts<'_>, &Placed) -> io::Result<()>,
) -> Result<Damage, WalkError> {
    let Choice { from, .. } = arguments.choice;
    if from.is_some() {
        // The clock of power-on lies before the range.
        let start = inspect::place::Range::default();
        walk(&arguments.dir, start, |found| {
            if let Found::Record(placed, _) = found
                && matches!(placed.record.body, RecordBody::Start(_))
            {
                write(&Facts::of(&placed.record), placed)?;
            }
            Ok(Step::Stop)
        })?;
    }
    let range = arguments.choice.range(&arguments.dir)?;
    walk(&arguments.dir, range, |found| {
        if let Found::Record(placed, _) = found {
            let facts = Facts::of(&placed.record);
            let start = matches!(placed.record.body, RecordBody::Start(_));
            if start || arguments.choice.wants(&facts) {
                write(&facts, placed)?;
            }
        }
        Ok(Step::On)
    })
}

/// The file to write; `-` is standard output.
pub(in crate::cli) fn open(path: &Path) -> Result<Box<dyn Write>, Failure> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(BufWriter::new(io::stdout())));
    }
    let file = File::create(path).map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("cannot write {}", path.display()));
        Failure::new(crate::cli::exit::Exit::Failed, error)
    })?;
    Ok(Box::new(BufWriter::new(file)))
}
