//! `understudy replay`: run a recorded guest again from its log, with every check a backup makes, and
//! look at it where it stops.

#![forbid(unsafe_code)]

mod state;

use super::exit::{Exit, Failure};
use super::guest::ConfigArgument;
use super::log::export;
use super::meter::Meter;
use super::unless_reader_left;
use clap::Args;
use inspect::export::pcapng::PcapngWriter;
use inspect::place::Place;
use logging_channel::record::{OutputDevice, Record, RecordBody};
use logging_channel::segment::{Salvaged, Salvager};
use state::State;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use vmm::clock::landing::{Crossing, LandingMethod};
use vmm::config;
use vmm::doctor;
use vmm::replication::executor::Produced;
use vmm::runtime::{
    self, LandingOptions, Observer, ReplayOptions, ReplayReport, Share, TrialOptions,
};

/// Margin of landings on a host whose proof fails: either it has no counter, which the replay says
/// when it needs one, or it lands late, which is a difference that names the place.
const MARGIN_BRANCHES_UNPROVEN: u64 = 128;

/// Run a recorded guest again from its log.
///
/// Needs the images that the log was made with (checked by digest). Every record's execution point and
/// registers, every output and every digest in the log are compared; the first difference is named.
/// With --until it stops in the middle, and registers, memory and code there can be shown.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy run --config guest.toml
    $ understudy replay --config guest.toml
    $ understudy replay --config guest.toml --console other-log
    $ understudy replay --config guest.toml --pcapng web.pcapng
    $ understudy replay --config guest.toml --until 12.5s --registers --disassemble 8
    $ understudy replay --config guest.toml --until exit:90210 --memory 0xffffffff81000000 64
    $ understudy replay --config guest.toml --until 60s --save minute.snapshot
    $ understudy replay --config guest.toml --from minute.snapshot --until 61s --registers
    $ understudy replay --config guest.toml --try-snapshots 20
    $ understudy replay --config guest.toml --json | jq .memory_digest
    $ understudy replay --config guest.toml --until 12.5s --gdb 127.0.0.1:1234
    $ gdb vmlinux -ex 'target remote 127.0.0.1:1234' -ex 'hbreak sys_write' -ex continue

--until N stops before record N, --until 12.5s before the first record at that guest time, both at the
point of the record before it; --until exit:N stops exactly there. Two replays of one log end with the
same digests. Ends with status 5 at a difference, 8 when the log is damaged.")]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Directory of the log; the file's [log] dir when left out.
    dir: Option<PathBuf>,
    /// Stop at this place: an index, `exit:N`, or a guest time as 1.5s or 300ms.
    #[arg(long, value_name = "PLACE")]
    until: Option<Place>,
    /// Begin with this snapshot instead of power-on.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Save the guest in a snapshot file, at the first place from --until on where the log has it settled
    /// (every `verify.settle_ms`, and where a new backup was given the state), and stop there.
    #[arg(long, value_name = "FILE", conflicts_with = "gdb")]
    save: Option<PathBuf>,
    /// At each of those places go on with another guest, built from what was saved of this one.
    #[arg(long, conflicts_with = "gdb")]
    through_snapshots: bool,
    /// At N of those places, chosen at random, build another guest from what was saved of this one; each
    /// replays to the end, too, and has to end like this one.
    #[arg(long, value_name = "N", conflicts_with_all = ["gdb", "through_snapshots"])]
    try_snapshots: Option<usize>,
    /// Chooses the places of --try-snapshots.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        requires = "try_snapshots"
    )]
    seed: u64,
    /// Only this share of them, as 1/2: for several hosts that have the same log.
    #[arg(long, value_name = "K/N", requires = "try_snapshots")]
    share: Option<Share>,
    /// Sabotage for drills: each of those guests differs in one bit of memory.
    #[arg(long, hide = true, requires = "try_snapshots")]
    spoil_snapshots: bool,
    /// Show the guest's console output.
    #[arg(long)]
    console: bool,
    /// Write the packets that came and went, whole, for Wireshark.
    #[arg(long, value_name = "FILE")]
    pcapng: Option<PathBuf>,
    /// Serve gdb at this address, as 127.0.0.1:1234, where the replay stops; from the beginning
    /// when there is no --until.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["pcapng", "console", "json"])]
    gdb: Option<SocketAddr>,
    #[command(flatten)]
    look: state::Look,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
    /// Sabotage for drills: from this count on the performance counter reads one too many.
    #[arg(long, hide = true, value_name = "BRANCHES")]
    counter_lies_after: Option<u64>,
    /// For drills: arm the counter this many branches short of a place, instead of doctor's choice.
    #[arg(long, hide = true, value_name = "BRANCHES")]
    margin: Option<u64>,
    /// For drills: land by single step, as a host without breakpoints does.
    #[arg(long, hide = true)]
    single_step: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = config::load(&arguments.config.config)?;
    let dir = match &arguments.dir {
        Some(dir) => dir.clone(),
        None => config.log()?.dir.clone(),
    };
    let options = ReplayOptions {
        config: &config,
        directory: &dir,
        landing: LandingOptions {
            method: landing_method(arguments),
            counter_lies_after: arguments.counter_lies_after,
        },
        until: arguments.until,
        from: arguments.from.as_deref(),
        save: arguments.save.as_deref(),
        through_snapshots: arguments.through_snapshots,
        trials: arguments.try_snapshots.map(|places| TrialOptions {
            places,
            seed: arguments.seed,
            share: arguments.share.unwrap_or(Share::ALL),
            spoiled: arguments.spoil_snapshots,
        }),
    };
    if let Some(address) = arguments.gdb {
        let listening = |address| tracing::info!("gdb may connect: target remote {address}");
        return Ok(runtime::serve_gdb(&options, address, listening)?);
    }
    let meter = Meter::begin(!arguments.console);
    let mut watcher = Watcher {
        console: arguments.console,
        capture: match &arguments.pcapng {
            Some(path) => Some(PcapngWriter::new(export::open(path)?)?),
            None => None,
        },
        all: meter.is_shown().then(|| records_in(&dir)).flatten(),
        meter,
    };
    let replayed = runtime::replay(&options, &mut watcher);
    watcher.meter.end();
    if let Some(capture) = watcher.capture {
        unless_reader_left(capture.finish().map(drop))?;
    }
    let mut replayed = replayed?;
    let state = State::look(&arguments.look, &mut replayed)?;
    let report = &replayed.report;
    let text = if arguments.json {
        json_of(report, &state).map_err(|error| Failure::new(Exit::Failed, error))?
    } else {
        text_of(report) + &state.text()
    };
    unless_reader_left(io::stdout().write_all(text.as_bytes()))?;
    match &report.divergence {
        None => Ok(()),
        Some(divergence) => {
            let error = anyhow::anyhow!("the replay differs from the log: {divergence}");
            Err(Failure::new(Exit::Diverged, error)
                .remedy("compare with `understudy log ls --from INDEX`; keep the log"))
        }
    }
}

/// How this host lands, unless a drill wants otherwise.
fn landing_method(arguments: &Arguments) -> LandingMethod {
    let mut method = doctor::branch_clock().unwrap_or(LandingMethod {
        margin: MARGIN_BRANCHES_UNPROVEN,
        crossing: Crossing::Breakpoint,
    });
    if let Some(margin) = arguments.margin {
        method.margin = margin;
    }
    if arguments.single_step {
        method.crossing = Crossing::SingleStep;
    }
    method
}

/// What is done with what the guest does.
struct Watcher {
    console: bool,
    capture: Option<PcapngWriter<Box<dyn Write>>>,
    meter: Meter,
    /// Records in the log, if anybody sees the meter and it could be found out.
    all: Option<u64>,
}

impl Observer for Watcher {
    fn record(&mut self, record: &Record, sent: Option<&Produced>) -> io::Result<()> {
        if let (Some(produced), true) = (sent, self.console)
            && produced.device == OutputDevice::Console
        {
            // Standard error, so that the report stays alone on standard output.
            let _ = io::stderr().write_all(&produced.bytes);
        }
        match &mut self.capture {
            Some(capture) => capture.record(record, sent.map(|produced| produced.bytes.as_slice())),
            None => Ok(()),
        }
    }

    fn progress(&mut self, records: u64) {
        tracing::debug!(records, "replayed");
        if let Some(all) = self.all {
            let doing = format!("replayed {records} of {all} records");
            self.meter.show(records, all, doing);
        }
    }
}

/// How many records a log has: one more than its last index, found in its last segment.
fn records_in(dir: &Path) -> Option<u64> {
    let last_segment = *Salvager::open(dir).ok()?.segments().last()?;
    let mut salvager = Salvager::open_at(dir, last_segment).ok()?;
    let mut all = None;
    while let Ok(Some(item)) = salvager.next() {
        if let Salvaged::Frame(frame) = item
            && let Some(placed) = frame.records.last()
        {
            all = Some(placed.record.index.0 + 1);
            if matches!(placed.record.body, RecordBody::End(_)) {
                break;
            }
        }
    }
    all
}

fn json_of(report: &ReplayReport, state: &State) -> serde_json::Result<String> {
    let mut value = serde_json::to_value(report)?;
    if let (Some(into), serde_json::Value::Object(more)) =
        (value.as_object_mut(), serde_json::to_value(state)?)
    {
        into.extend(more);
    }
    Ok(value.to_string() + "\n")
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
        .unwrap_or("open: the guest had not ended here");
    let ReplayReport {
        records,
        exits,
        marks,
        memory_digests,
        between,
        states,
        snapshots,
        ..
    } = report;
    format!(
        "replayed     {records} records, {exits} exits\n\
         compared     {marks} digests of registers and devices, {memory_digests} of all memory\n\
         landings     {between} inputs between exits, {states} states loaded, {snapshots} snapshots gone on from\n\
         guest time   {guest:.6} s\n\
         host time    {host:.3} s\n\
         end          {end}\n\
         registers    {:016x}\n\
         memory       {:016x}\n",
        report.registers_digest, report.memory_digest
    )
}
