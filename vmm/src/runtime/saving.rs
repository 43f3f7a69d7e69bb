//! The state of a running guest, put into a file while the guest goes on.
//!
//! ```text
//!   copying ──little left──► pausing ──state said──► waiting ──backup has the log to it──► writing ──► done
//!      └───────────────────────┴── given up, or the file cannot be written ──┴──► failed
//! ```
//!
//! A thread copies pages as a transfer does and writes them beside the file's name. The rest is said by the
//! recorder at a point, between two records. What a file shows has been seen outside: so it gets its name
//! only when nobody can go live without the log that led to it. The pair knows nothing of it but the
//! record Settle, which is in every log.
//!
//! One at a time, and none beside a transfer: a backup comes first. Left out: who asks (`control_socket`),
//! rounds (`transfer`), the file (`snapshot_file`).

use super::control_socket::AnswerError;
use super::snapshot_file;
use super::transfer::{self, Ended, Say, TransferEvent};
use crate::kvm::dirty::DirtyLog;
use crate::replication::engine::{Emitted, FILE_ATTEMPTS};
use crate::replication::node::Node;
use crate::snapshot::file::{About, SnapshotError, SnapshotWriter};
use logging_channel::message::Identity;
use logging_channel::record::{ClockKind, LogIndex};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::watch;

/// What the thread says and the node has not heard.
const EVENTS_MAX: usize = 8;

/// How far a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotPhase {
    /// Pages are copied while the guest writes others.
    Copying,
    /// The guest is stopped for the rest at its next point.
    Pausing,
    /// All is known; the backup does not have the log to that point yet.
    Waiting,
    /// The rest is written and made durable.
    Writing,
    /// The file is there.
    Done,
    /// There is no file.
    Failed,
}

/// The last snapshot that was asked for, as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// Counts those of the process.
    pub number: u64,
    /// Where it goes.
    pub path: PathBuf,
    /// How far it is.
    pub phase: SnapshotPhase,
    /// Rounds of copying begun.
    pub round: u32,
    /// Bytes of the state written.
    pub bytes: u64,
    /// First index of the log that is not part of it, once it is said.
    pub next: Option<u64>,
    /// Why it failed, and what to do.
    pub failure: Option<AnswerError>,
}

/// Where [`SnapshotStatus`] is shown.
pub type SnapshotBoard = watch::Sender<Option<SnapshotStatus>>;

/// What the thread tells the node.
#[derive(Debug)]
pub(super) enum SavingEvent {
    /// The guest is to be slowed, or not any more.
    Throttle {
        /// Pause in each mark interval, nanoseconds.
        pause_ns: u64,
    },
    /// The guest's state is wanted, under this number.
    Ready {
        /// For the engine.
        attempt: u64,
    },
    /// The thread is done.
    Ended(Result<(), AnswerError>),
}

/// What is left when the guest was stopped.
#[derive(Debug, PartialEq, Eq)]
struct Rest {
    generation: u64,
    next: LogIndex,
    parts: Vec<Vec<u8>>,
}

/// A snapshot being made. Without it the thread ends, and its file is gone.
struct Saving {
    number: u64,
    events: Receiver<SavingEvent>,
    to_thread: mpsc::Sender<Rest>,
    /// Said, and not for everybody's eyes yet.
    held: Option<Rest>,
    /// It is with the thread.
    given: bool,
    thread: JoinHandle<()>,
}

/// Makes snapshots, one at a time.
pub(super) struct Saver {
    identity: Identity,
    board: SnapshotBoard,
    running: Option<Saving>,
}

impl Saver {
    /// Nothing asked for yet in this life.
    pub(super) fn new(identity: Identity, board: SnapshotBoard) -> Self {
        Self {
            identity,
            board,
            running: None,
        }
    }

    /// Starts the thread; the snapshot's number.
    ///
    /// # Errors
    /// When one is being made, or there can be no thread.
    pub(super) fn begin(
        &mut self,
        path: PathBuf,
        clock: ClockKind,
        dirty: Arc<DirtyLog>,
    ) -> Result<u64, AnswerError> {
        let attempt = |number| FILE_ATTEMPTS + number;
        self.begin_with(path, clock, move |number, work| {
            let copy = |say: Say<'_>| transfer::copy(&dirty, attempt(number), say);
            work(&copy);
            transfer::stop(&dirty, attempt(number));
        })
    }

    fn begin_with(
        &mut self,
        path: PathBuf,
        clock: ClockKind,
        thread: impl FnOnce(u64, &dyn Fn(Copy<'_>)) + Send + 'static,
    ) -> Result<u64, AnswerError> {
        if self.running.is_some() {
            return Err(refusal(
                "a snapshot is being made already",
                "ask again when it is done: `understudy status` shows it",
            ));
        }
        let number = self.board.borrow().as_ref().map_or(0, |last| last.number) + 1;
        self.board.send_replace(Some(SnapshotStatus {
            number,
            path: path.clone(),
            phase: SnapshotPhase::Copying,
            round: 0,
            bytes: 0,
            next: None,
            failure: None,
        }));
        let (to_node, events) = channel(EVENTS_MAX);
        let (to_thread, rest) = mpsc::channel();
        let job = Job {
            number,
            path,
            about: About {
                identity: self.identity.clone(),
                generation: 0,
                next: 0,
                clock,
            },
            board: self.board.clone(),
            to_node,
            rest,
        };
        let started = std::thread::Builder::new()
            .name("snapshot".to_owned())
            .spawn(move || thread(number, &|copy| job.run(copy)));
        let thread = started.map_err(|error| {
            let failure = refusal(&format!("cannot start a thread: {error}"), "ask again");
            fail(&self.board, number, failure.clone());
            failure
        })?;
        self.running = Some(Saving {
            number,
            events,
            to_thread,
            held: None,
            given: false,
            thread,
        });
        Ok(number)
    }

    /// What the thread says next; never, when there is none.
    pub(super) async fn next(&mut self) -> SavingEvent {
        match &mut self.running {
            Some(saving) => saving.events.recv().await.unwrap_or_else(|| {
                let gone = refusal("the thread ended without a word", "ask again");
                SavingEvent::Ended(Err(gone))
            }),
            None => std::future::pending().await,
        }
    }

    /// The thread is done.
    pub(super) fn ended(&mut self, result: Result<(), AnswerError>) {
        let Some(saving) = self.running.take() else {
            return;
        };
        let number = saving.number;
        match result {
            Ok(()) => {
                update(&self.board, number, |status| {
                    status.phase = SnapshotPhase::Done;
                });
                tracing::info!(number, "the snapshot is written");
            }
            Err(failure) => {
                tracing::warn!(number, why = %failure.message, "no snapshot");
                fail(&self.board, number, failure);
            }
        }
    }

    /// Takes the state that was said for a file out of what the engine emitted.
    pub(super) fn take_state(&mut self, items: &mut Vec<Emitted>) {
        let for_a_file = |item: &mut Emitted| matches!(item, Emitted::Snapshot { attempt, .. } if *attempt >= FILE_ATTEMPTS);
        for item in items.extract_if(.., for_a_file) {
            let Emitted::Snapshot {
                attempt,
                next,
                parts,
            } = item
            else {
                continue;
            };
            let Some(saving) = &mut self.running else {
                continue;
            };
            // One that was given up may still be said.
            if attempt == FILE_ATTEMPTS + saving.number {
                saving.held = Some(Rest {
                    generation: 0,
                    next,
                    parts,
                });
                update(&self.board, saving.number, |status| {
                    status.phase = SnapshotPhase::Waiting;
                    status.next = Some(next.0);
                });
            }
        }
    }

    /// Has the rest written when it may be seen.
    pub(super) fn look(&mut self, node: &Node) {
        let Some(saving) = &mut self.running else {
            return;
        };
        let Some(mut rest) = saving.held.take_if(|rest| node.may_show(rest.next)) else {
            return;
        };
        rest.generation = node.generation();
        saving.given = true;
        update(&self.board, saving.number, |status| {
            status.phase = SnapshotPhase::Writing;
        });
        // A thread that is gone has said why.
        let _ = saving.to_thread.send(rest);
    }

    /// There is something more important; whether there was anything to give up.
    pub(super) fn give_up(&mut self, why: &str) -> bool {
        let given_up = self.running.take_if(|saving| !saving.given);
        if let Some(saving) = &given_up {
            tracing::warn!(number = saving.number, why, "the snapshot is given up");
            let remedy = "ask again; `understudy status` shows who has the guest";
            fail(&self.board, saving.number, refusal(why, remedy));
        }
        given_up.is_some()
    }

    /// The guest is over here: what has all it needs is still written.
    pub(super) async fn close(&mut self) {
        let why = "the guest ended, or left this host";
        if let Some(saving) = self.running.take_if(|saving| !saving.given) {
            let number = saving.number;
            fail(&self.board, number, refusal(why, "see `understudy status`"));
            let thread = saving.thread;
            drop((saving.events, saving.to_thread));
            // It removes what it has written; its result is empty.
            let _ = thread.join();
        }
        while self.running.is_some() {
            if let SavingEvent::Ended(result) = self.next().await {
                self.ended(result);
            }
        }
    }
}

/// Reads the guest, round by round.
type Copy<'a> = &'a dyn Fn(Say<'_>) -> Result<(), Ended>;

/// What the thread has.
struct Job {
    number: u64,
    path: PathBuf,
    about: About,
    board: SnapshotBoard,
    to_node: Sender<SavingEvent>,
    rest: mpsc::Receiver<Rest>,
}

/// Why there will be no file.
enum Fault {
    GivenUp,
    Guest(String),
    File(SnapshotError),
}

impl From<SnapshotError> for Fault {
    fn from(error: SnapshotError) -> Self {
        Self::File(error)
    }
}

impl Job {
    fn run(&self, copy: Copy<'_>) {
        let path = self.path.display();
        let result = match self.write(copy) {
            Ok(()) => Ok(()),
            // Whoever gave it up has said so.
            Err(Fault::GivenUp) => return,
            Err(Fault::Guest(cause)) => {
                let remedy = "ask again when the guest does less";
                Err(refusal(&cause, remedy))
            }
            Err(Fault::File(error)) => Err(refusal(
                &format!("{path}: {error}"),
                "give a place that the side's user may write, with room for the guest's memory",
            )),
        };
        // A node that is gone does not want to know.
        let _ = self.to_node.blocking_send(SavingEvent::Ended(result));
    }

    fn write(&self, copy: Copy<'_>) -> Result<(), Fault> {
        let out = snapshot_file::begin(&self.path)?;
        let mut writer = SnapshotWriter::begin(out, &self.about)?;
        let mut fault = None;
        let put = |part: &[u8], writer: &mut SnapshotWriter<_>| {
            self.note(|status| status.bytes += part.len() as u64);
            writer.part(part)
        };
        let copied = copy(&mut |event| match event {
            _ if self.to_node.is_closed() => Err(Ended::Dropped),
            TransferEvent::Part(part) => put(&part, &mut writer).map_err(|error| {
                fault = Some(Fault::File(error));
                Ended::Dropped
            }),
            TransferEvent::Round { number, .. } => {
                self.note(|status| status.round = number);
                Ok(())
            }
            TransferEvent::Throttle { pause_ns } => self.say(SavingEvent::Throttle { pause_ns }),
            TransferEvent::Ready => {
                self.note(|status| status.phase = SnapshotPhase::Pausing);
                let attempt = FILE_ATTEMPTS + self.number;
                self.say(SavingEvent::Ready { attempt })
            }
            TransferEvent::Failed(cause) => Err(Ended::Failed(cause)),
        });
        match (copied, fault) {
            (Ok(()), _) => {}
            (Err(_), Some(fault)) => return Err(fault),
            (Err(Ended::Dropped), None) => return Err(Fault::GivenUp),
            (Err(Ended::Failed(cause)), None) => return Err(Fault::Guest(cause)),
        }
        let rest = self.rest.recv().map_err(|_| Fault::GivenUp)?;
        for part in &rest.parts {
            put(part, &mut writer)?;
        }
        let out = writer.finish_at(rest.generation, rest.next.0)?;
        Ok(snapshot_file::publish(out, &self.path)?)
    }

    fn say(&self, event: SavingEvent) -> Result<(), Ended> {
        let said = self.to_node.blocking_send(event);
        said.map_err(|_| Ended::Dropped)
    }

    fn note(&self, change: impl FnOnce(&mut SnapshotStatus)) {
        update(&self.board, self.number, change);
    }
}

/// Changes what is shown of snapshot `number`; nothing, when another is shown.
fn update(board: &SnapshotBoard, number: u64, change: impl FnOnce(&mut SnapshotStatus)) {
    board.send_if_modified(|shown| match shown {
        Some(status) if status.number == number => {
            change(status);
            true
        }
        _ => false,
    });
}

fn fail(board: &SnapshotBoard, number: u64, failure: AnswerError) {
    update(board, number, |status| {
        status.phase = SnapshotPhase::Failed;
        status.failure = Some(failure);
    });
}

fn refusal(message: &str, remedy: &str) -> AnswerError {
    AnswerError {
        message: message.to_owned(),
        remedy: remedy.to_owned(),
    }
}

#[cfg(test)]
#[path = "saving_tests.rs"]
mod tests;
