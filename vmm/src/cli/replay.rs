//! `understudy replay`: run a recorded guest again from its log, with every check a backup makes.

#![forbid(unsafe_code)]

use super::exit::{Exit, Failure};
use super::guest::ConfigArgument;
use super::unless_reader_left;
use clap::Args;
use std::io::{self, Write};
use std::path::PathBuf;
use vmm::config;
use vmm::doctor;
use vmm::runtime::{self, LandingOptions, ReplayReport};

/// Margin of landings on a host whose proof fails: either it has no counter, which the replay says
/// when it needs one, or it lands late, which is a difference that names the place.
const MARGIN_BRANCHES_UNPROVEN: u64 = 128;

/// Run a recorded guest again from its log.
///
/// Needs the images that the log was made with (checked by digest). Every record's execution point and
/// registers, every output and every digest in the log are compared; the first difference is named.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy run --config guest.toml
    $ understudy replay --config guest.toml
    $ understudy replay --config guest.toml --console other-log
    $ understudy replay --config guest.toml --json | jq .memory_digest

Two replays of one log end with the same digests. Ends with status 5 at a difference, 8 when the log
is damaged.")]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Directory of the log; the file's [log] dir when left out.
    dir: Option<PathBuf>,
    /// Show the guest's console output.
    #[arg(long)]
    console: bool,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
    /// Sabotage for drills: from this count on the performance counter reads one too many.
    #[arg(long, hide = true, value_name = "BRANCHES")]
    counter_lies_after: Option<u64>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = config::load(&arguments.config.config)?;
    let dir = match &arguments.dir {
        Some(dir) => dir.clone(),
        None => config.log()?.dir.clone(),
    };
    let show = arguments.console;
    let console = |bytes: &[u8]| {
        if show {
            // Standard error, so that the report stays alone on standard output.
            let _ = io::stderr().write_all(bytes);
        }
    };
    let progress = |records| tracing::debug!(records, "replayed");
    let margin = doctor::branch_clock_margin().unwrap_or(MARGIN_BRANCHES_UNPROVEN);
    let landing = LandingOptions {
        margin,
        counter_lies_after: arguments.counter_lies_after,
    };
    let report = runtime::replay(&config, &dir, landing, console, progress)?;
    let text = if arguments.json {
        serde_json::to_string(&report).map_err(|error| Failure::new(Exit::Failed, error))? + "\n"
    } else {
        text_of(&report)
    };
    unless_reader_left(io::stdout().write_all(text.as_bytes()))?;
    match report.divergence {
        None => Ok(()),
        Some(divergence) => {
            let error = anyhow::anyhow!("the replay differs from the log: {divergence}");
            Err(Failure::new(Exit::Diverged, error)
                .remedy("compare with `understudy log ls --from INDEX`; keep the log"))
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn text_of(report: &ReplayReport) -> String {
    let (guest, host) = (
        report.guest_time_us as f64 / 1e6,
        report.host_time_us as f64 / 1e6,
    );
    let end = report
        .end
        .as_deref()
        .unwrap_or("open: the log does not say");
    let ReplayReport {
        records,
        exits,
        marks,
        memory_digests,
        between,
        ..
    } = report;
    format!(
        "replayed     {records} records, {exits} exits\n\
         compared     {marks} digests of registers and devices, {memory_digests} of all memory\n\
         landings     {between} inputs between exits\n\
         guest time   {guest:.6} s\n\
         host time    {host:.3} s\n\
         end          {end}\n\
         registers    {:016x}\n\
         memory       {:016x}\n",
        report.registers_digest, report.memory_digest
    )
}
