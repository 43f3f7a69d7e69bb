//! `understudy status`, `stop` and `handover`: talk to a running side through its control socket.

#![forbid(unsafe_code)]

use super::exit::{Exit, Failure};
use super::meter::Meter;
use super::unless_reader_left;
use clap::Args;
use serde::Deserialize as _;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vmm::config;
use vmm::replication::node::NodeStatus;
use vmm::replication::transfer_watch::{TransferPhase, TransferStatus};
use vmm::runtime::control_socket::{ANSWER_BYTES_MAX, Answer, Request};

mod wait;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Show what a side that runs on this host is doing.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy status --config guest.toml
    $ understudy status --socket /run/understudy/web.sock --json | jq .node.role

  Until the guest has a backup again, with a bar while its state is transferred:
    $ understudy status --config guest.toml --wait

Ends with status 7 when nothing runs there; --wait also with status 1 when there will be no backup: the
guest ended, or this side halted and does not stand by.")]
pub(super) struct StatusArguments {
    #[command(flatten)]
    target: Target,
    /// Wait until the guest has a backup that follows it.
    #[arg(long)]
    wait: bool,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

/// Stop a side that runs on this host. A backup, if there is one, goes live.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy stop --config guest.toml

Returns when the wish was passed on. Ends with status 7 when nothing runs there.")]
pub(super) struct StopArguments {
    #[command(flatten)]
    target: Target,
}

/// Hand a guest over to its backup, for maintenance of this host.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  On the primary's host:
    $ understudy handover --config guest.toml

The guest rests until the backup has all of it, the backup claims the next generation and goes live:
nothing is lost and nothing waits for a suspicion. This side never runs the guest again; started with
--standby it stands by to become the backup. Ends with status 1 when this side has no guest to hand
over, or no backup to hand it to, 7 when nothing runs there.")]
pub(super) struct HandoverArguments {
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Target {
    /// The virtual machine's file, for its [control] socket.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The control socket itself.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Target {
    pub(super) fn path(&self) -> Result<PathBuf, Failure> {
        match (&self.socket, &self.config) {
            (Some(socket), _) => Ok(socket.clone()),
            (None, Some(file)) => Ok(config::load(file)?.control_socket),
            (None, None) => Err(Failure::new(
                Exit::Usage,
                anyhow::anyhow!("--config or --socket is needed"),
            )),
        }
    }
}

pub(super) fn status(arguments: &StatusArguments) -> Result<(), Failure> {
    let path = arguments.target.path()?;
    let document = if arguments.wait {
        wait::until_protected(&path, &Meter::begin(!arguments.json))?
    } else {
        ask(&path, &Request::Status {})?.status.unwrap_or_default()
    };
    let text = if arguments.json {
        format!("{document}\n")
    } else {
        text_of(&document)?
    };
    unless_reader_left(io::stdout().write_all(text.as_bytes()))
}

pub(super) fn stop(arguments: &StopArguments) -> Result<(), Failure> {
    ask(&arguments.target.path()?, &Request::Stop {}).map(|_| ())
}

pub(super) fn handover(arguments: &HandoverArguments) -> Result<(), Failure> {
    let path = arguments.target.path()?;
    let document = ask(&path, &Request::Status {})?.status.unwrap_or_default();
    let role = document["node"]["role"].as_str().unwrap_or("starting");
    if role != "protected" {
        let error = anyhow::anyhow!("this side is {role}: only a primary with a backup hands over");
        let remedy = "`understudy status` on both hosts shows who has the guest";
        return Err(Failure::new(Exit::Failed, error).remedy(remedy));
    }
    ask(&path, &Request::Handover {}).map(|_| ())
}

pub(super) fn ask(path: &Path, request: &Request) -> Result<Answer, Failure> {
    let talk = || -> io::Result<Answer> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    };
    let answer = talk().map_err(|error| {
        let context = format!("no answer at the control socket {}", path.display());
        let remedy = "see whether the virtual machine runs on this host, and as which user";
        Failure::new(
            Exit::Unreachable,
            anyhow::Error::new(error).context(context),
        )
        .remedy(remedy)
    })?;
    match answer.error {
        None => Ok(answer),
        Some(error) => {
            Err(Failure::new(Exit::Failed, anyhow::anyhow!(error.message)).remedy(error.remedy))
        }
    }
}

fn text_of(document: &serde_json::Value) -> Result<String, Failure> {
    let of = |key: &str| document[key].as_str().unwrap_or("?").to_owned();
    let started_as = format!("{} (process {})", of("part"), document["pid"]);
    let clock = match document["clock"].as_str() {
        Some(clock) => clock_line(clock, document),
        None => "not settled yet".to_owned(),
    };
    let mut facts = vec![
        ("vm", of("vm")),
        ("started as", started_as),
        ("clock", clock),
        ("protection", of("protection")),
        ("confinement", of("confinement")),
    ];
    if document["node"].is_null() {
        facts.push(("state", "starting".into()));
    } else {
        let node = NodeStatus::deserialize(&document["node"]).map_err(|error| {
            let error = anyhow::Error::new(error).context("the status is of another version");
            Failure::new(Exit::Failed, error).remedy("use --json, or the same program version")
        })?;
        facts.extend(facts_of(&node));
    }
    if let Some(line) = snapshot_line(&document["snapshot"]) {
        facts.push(("snapshot", line));
    }
    let lives = &document["lives"];
    if lives["over"].as_u64().is_some_and(|over| over > 0) {
        let count = |key: &str| lives[key].as_u64().unwrap_or(0);
        let (over, diverged) = (count("over"), count("diverged"));
        let last = lives["last_end"].as_str().unwrap_or("?");
        let handed = count("handed_over");
        let text = format!("{over} ({diverged} diverged, {handed} handed over), the last: {last}");
        facts.push(("earlier lives", text));
    }
    let mut text = String::new();
    for (name, value) in facts {
        let _ = writeln!(text, "{name:<14} {value}");
    }
    Ok(text)
}

/// The last snapshot that was asked for.
fn snapshot_line(snapshot: &serde_json::Value) -> Option<String> {
    let phase = snapshot["phase"].as_str()?;
    let path = snapshot["path"].as_str().unwrap_or("?");
    Some(match snapshot["failure"]["message"].as_str() {
        Some(why) => format!("{path}: {phase}: {why}"),
        None => format!("{path}: {phase}, {} bytes", snapshot["bytes"]),
    })
}

fn clock_line(clock: &str, document: &serde_json::Value) -> String {
    let mut line = clock.to_owned();
    let margin = document["margin_branches"].as_u64();
    if let ("branches", Some(margin)) = (clock, margin) {
        let _ = write!(line, ", margin {margin} branches");
    }
    if let Some(why) = document["clock_why"].as_str() {
        let _ = write!(line, " ({why})");
    }
    line
}

fn facts_of(node: &NodeStatus) -> Vec<(&'static str, String)> {
    let link = match (node.linked, node.silence_ns) {
        (true, Some(silence)) => format!("up, last heard {:.1} ms ago", ms(silence)),
        (true, None) => "up".into(),
        (false, _) => "down".into(),
    };
    let p = node.pointers;
    let log = format!(
        "recorded {} sent {} acknowledged {} received {} replayed {} released {}",
        p.recorded, p.sent, p.acknowledged, p.received, p.replayed, p.released
    );
    let (lag, unacknowledged) = (ms(node.lag_ns), node.unacknowledged_bytes);
    let unreplayed = node.unreplayed_bytes;
    let lag =
        format!("{lag:.1} ms, {unacknowledged} bytes unacknowledged, {unreplayed} unreplayed");
    let c = node.counters;
    let counters = format!(
        "{} records, {} suspicions, {} claims, {} stalls, {} transfers, {} ignored messages",
        c.records, c.suspicions, c.claims, c.stalls, c.transfers, c.ignored_messages
    );
    let mut facts = vec![
        ("state", format!("{} ({:?})", node.title, node.role)),
        (
            "generation",
            format!("{} as {}", node.generation, node.holder),
        ),
        (
            "peer",
            node.peer.clone().unwrap_or_else(|| "none yet".into()),
        ),
        ("link", link),
        ("log", log),
        ("lag", lag),
        (
            "output gate",
            serde_json::to_string(&node.gate).unwrap_or_default(),
        ),
        ("counters", counters),
    ];
    if let Some((sent, taken)) = node.transfer {
        let text = format!("{sent} bytes of the state sent, {taken} taken in");
        facts.push(("transfer", text));
    }
    if let Some(last) = &node.last_transfer {
        facts.push(("last transfer", transfer_line(last)));
    }
    if let Some(claim) = node.claim {
        let (new, expected, attempts) = (claim.new, claim.expected, claim.attempts);
        facts.push((
            "claim",
            format!("{new} after {expected}, {attempts} requests"),
        ));
    }
    if let Some(reason) = &node.halted {
        facts.push(("halted", reason.clone()));
    }
    facts
}

/// How the last new backup was given the guest's state.
fn transfer_line(last: &TransferStatus) -> String {
    let (rounds, bytes) = (last.rounds, last.bytes);
    let so_far = format!("{rounds} rounds, {bytes} bytes");
    match (last.phase, &last.failure) {
        (_, Some(why)) => format!("failed: {why}; {so_far}"),
        (TransferPhase::Done, None) => {
            let [total, pause, waiting] = [last.total_ns, last.pause_ns, last.waiting_ns].map(ms);
            format!(
                "{so_far}, {total:.0} ms; the guest stood still for {pause:.1} ms, its output for {waiting:.1} ms"
            )
        }
        (phase, None) => format!("{phase:?}: {so_far}").to_lowercase(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}
