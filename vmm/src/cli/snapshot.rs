//! `understudy snapshot`: put the state of a running guest into a file.

#![forbid(unsafe_code)]

use super::exit::{Exit, Failure};
use super::meter::{self, Meter};
use super::status::{Target, ask};
use super::unless_reader_left;
use clap::Args;
use serde::Deserialize as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use vmm::runtime::control_socket::Request;
use vmm::runtime::{SnapshotPhase, SnapshotStatus};

/// Put the state of a running guest into a file.
///
/// The guest goes on while its memory is copied, and is stopped for what is left, as when it is given to a new
/// backup. With a backup, the file gets its name when that has the log up to the saved point: then
/// nobody who goes live is without it.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  On the host that runs the guest, the primary or the survivor:
    $ understudy snapshot --config guest.toml /var/backups/web.snapshot

  Go on from it later, when nothing runs that guest any more:
    $ understudy run --config guest.toml --from /var/backups/web.snapshot

  Replay what followed, from a log of the time or from that of the later run:
    $ understudy replay --config guest.toml --from /var/backups/web.snapshot

The running side writes the file, as its own user; one that is there is replaced when the new one is whole. The
file holds all of the guest's memory: keep it as the guest's secrets are kept. Ends with status 1 when there is
no snapshot, 7 when nothing runs there.")]
pub(super) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Where to put it.
    file: PathBuf,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let socket = arguments.target.path()?;
    let path = std::path::absolute(&arguments.file)?;
    let request = Request::Snapshot { path };
    let number = ask(&socket, &request)?.snapshot.unwrap_or_default();
    let status = follow(&socket, number, &Meter::begin(!arguments.json))?;
    if let Some(failure) = status.failure {
        let error = anyhow::anyhow!("no snapshot was made: {}", failure.message);
        return Err(Failure::new(Exit::Failed, error).remedy(failure.remedy));
    }
    let text = if arguments.json {
        serde_json::to_string(&status).map_err(|error| Failure::new(Exit::Failed, error))? + "\n"
    } else {
        text_of(&status)
    };
    unless_reader_left(io::stdout().write_all(text.as_bytes()))
}

/// Waits until it is done or failed.
fn follow(socket: &Path, number: u64, meter: &Meter) -> Result<SnapshotStatus, Failure> {
    loop {
        let document = ask(socket, &Request::Status {})?.status.unwrap_or_default();
        let status = SnapshotStatus::deserialize(&document["snapshot"]).map_err(|error| {
            let error = anyhow::Error::new(error).context("the status is of another version");
            Failure::new(Exit::Failed, error).remedy("use the same program version")
        })?;
        if status.number != number {
            let error = anyhow::anyhow!("another snapshot was begun meanwhile");
            return Err(Failure::new(Exit::Failed, error).remedy("see whether the file is there"));
        }
        if matches!(status.phase, SnapshotPhase::Done | SnapshotPhase::Failed) {
            meter.end();
            return Ok(status);
        }
        meter.tell(progress(&status));
        meter::pause();
    }
}

fn progress(status: &SnapshotStatus) -> String {
    let doing = match status.phase {
        SnapshotPhase::Copying => format!("copying, round {}", status.round),
        SnapshotPhase::Pausing => "stopping the guest for the rest".to_owned(),
        SnapshotPhase::Waiting => "waiting until the backup has the log".to_owned(),
        SnapshotPhase::Writing => "writing".to_owned(),
        SnapshotPhase::Done => "done".to_owned(),
        SnapshotPhase::Failed => "failed".to_owned(),
    };
    format!("{doing}, {} MiB written", status.bytes >> 20)
}

fn text_of(status: &SnapshotStatus) -> String {
    let (path, bytes, rounds) = (status.path.display(), status.bytes, status.round);
    let next = status.next.unwrap_or_default();
    format!("{path}: the guest before record {next}, {bytes} bytes, {rounds} rounds\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_is_said() {
        let mut status = SnapshotStatus {
            number: 1,
            path: "/a".into(),
            phase: SnapshotPhase::Copying,
            round: 2,
            bytes: 5 << 20,
            next: None,
            failure: None,
        };
        assert_eq!(progress(&status), "copying, round 2, 5 MiB written");
        (status.phase, status.next) = (SnapshotPhase::Done, Some(70));
        let text = "/a: the guest before record 70, 5242880 bytes, 2 rounds\n";
        assert_eq!(text_of(&status), text);
    }
}
