//! The node's loop: carries events to the sans-I/O [`Node`] and carries out its commands.
//!
//! One task owns the node. Whatever may take long happens elsewhere and comes back as an event: the
//! vCPU (its own thread), the peer's connection (`link_task`), a claim (a task), disk (`log_thread`),
//! the terminal (`backend::console`). The loop itself never waits for anything but the next event.

use super::control_socket::{AnswerError, Wish};
use super::doom::Doom;
use super::generation_mark::GenerationMark;
use super::held_frames::HeldFrames;
use super::host_clock::HostClock;
use super::link_task::LinkEvent;
use super::log_thread::LogThread;
use super::network::Network;
use super::sabotage::Spoiler;
use super::saving::{Saver, SavingEvent};
use super::transfer::{Transfer, TransferEvent};
use super::transfer_progress::TransferProgress;
use super::vcpu_thread::VcpuReport;
use super::wake::{Wake, next_part, next_wish, sleep_until};
use crate::backend::console::{Console, ConsoleEvent};
use crate::kvm::dirty::DirtyLog;
use crate::kvm::kick::Kicker;
use crate::replication::engine::{Emitted, Offer};
use crate::replication::executor::{Input, Produced};
use crate::replication::journal::Observer;
use crate::replication::node::{
    ArbiterReply, HaltReason, Node, NodeCommand, NodeEvent, NodeStatus, Note,
};
use crate::replication::role::Role;
use crate::replication::transfer_watch::TransferWatch;
use crate::snapshot::part;
use logging_channel::host_time::HostTime;
use logging_channel::message::Message;
use logging_channel::record::{ClockKind, EndReason, OutputDevice};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use tokio::sync::{mpsc, watch};

/// Frames taken from the TAP before other events get their turn.
const FRAMES_PER_TURN_MAX: usize = 64;

/// Shortest time between two publications of the status.
const STATUS_INTERVAL_NS: u64 = 20_000_000;

/// Console bytes given to the guest at once: half of the 16550's FIFO.
const CONSOLE_INPUT_BYTES: usize = 8;

/// How a node's life ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeEnd {
    /// The guest ended and everything it sent has left.
    Ended(EndReason),
    /// This copy never runs again.
    Halted(HaltReason),
}

/// Asks the arbiter; the answer comes back through the sender.
pub(super) type Claimant = Box<dyn Fn(u64, u64, mpsc::Sender<ArbiterReply>) + Send>;

/// Wishes of an operator, for one life of the process after the other.
pub(super) type Wishes = Arc<tokio::sync::Mutex<mpsc::Receiver<Wish>>>;

/// Starts the vCPU thread of a primary under a generation, on a clock.
pub(super) type StartGuest = Box<dyn FnMut(u64, ClockKind) + Send>;

/// Everything around the node.
pub(super) struct Ports {
    /// Clock shared with the vCPU thread.
    pub(super) clock: HostClock,
    /// To the vCPU thread.
    pub(super) offers: std::sync::mpsc::Sender<Offer>,
    /// Gets the vCPU out of the guest, once it exists.
    pub(super) kicker: Arc<OnceLock<Kicker>>,
    /// The pages that the guest writes, once it exists.
    pub(super) dirty: Arc<OnceLock<Arc<DirtyLog>>>,
    /// From the vCPU thread.
    pub(super) vcpu: mpsc::Receiver<VcpuReport>,
    /// From the link.
    pub(super) link: mpsc::Receiver<LinkEvent>,
    /// Asks the connecting task of a backup for another connection.
    pub(super) reconnect: mpsc::Sender<()>,
    /// The guest's network.
    pub(super) network: Network,
    /// The newest generation that this host has seen.
    pub(super) mark: Option<Arc<GenerationMark>>,
    /// The guest's console.
    pub(super) console: Console,
    /// From the console.
    pub(super) typed: mpsc::UnboundedReceiver<ConsoleEvent>,
    /// The log on disk.
    pub(super) log: Option<LogThread>,
    /// Sabotage.
    pub(super) spoiler: Spoiler,
    /// Sabotage.
    pub(super) doom: Doom,
    /// Puts the guest's state into files.
    pub(super) saver: Saver,
    /// Asks the arbiter.
    pub(super) claimant: Claimant,
    /// Starts the guest.
    pub(super) start_guest: StartGuest,
    /// Where the status goes.
    pub(super) status: watch::Sender<Option<NodeStatus>>,
    /// Asks for a connection to whoever stands by, once this side runs the guest alone.
    pub(super) invite: mpsc::Sender<()>,
    /// What an operator wants; of all lives of this process.
    pub(super) wishes: Wishes,
}

/// The loop's state.
pub(super) struct NodeTask {
    node: Node,
    /// Sees what the node sees, for the journal.
    observer: Observer,
    /// The same, for the status.
    transfers: TransferWatch,
    /// Says in the program's log how far it is.
    progress: TransferProgress,
    ports: Ports,
    /// Number and queue of the connection in use.
    link: Option<(u64, mpsc::UnboundedSender<Message>)>,
    wake_at: Option<HostTime>,
    /// Whether this side was the only one when it was last looked at.
    alone: bool,
    /// Whether this side records, so that input has somewhere to go.
    recording: bool,
    /// Input for a guest that does not live here yet.
    held: HeldFrames,
    answers: (mpsc::Sender<ArbiterReply>, mpsc::Receiver<ArbiterReply>),
    published_at: Option<HostTime>,
    /// The state of the guest on its way to a new backup.
    transfer: Option<Transfer>,
    /// Pauses of the processor in each mark interval, nanoseconds: for the backup's sake, and for whoever
    /// copies pages.
    pauses: [u64; 2],
    end: Option<NodeEnd>,
}

/// Why the processor is slowed.
#[derive(Debug, Clone, Copy)]
enum Slowed {
    Behind,
    Copied,
}

impl NodeTask {
    /// A loop around `node`.
    #[must_use]
    pub(super) fn new(node: Node, ports: Ports) -> Self {
        let answers = mpsc::channel(4);
        Self {
            node,
            observer: Observer::default(),
            transfers: TransferWatch::default(),
            progress: TransferProgress::default(),
            ports,
            link: None,
            wake_at: None,
            alone: false,
            recording: false,
            held: HeldFrames::default(),
            answers,
            published_at: None,
            transfer: None,
            pauses: [0; 2],
            end: None,
        }
    }

    /// Runs until the guest ended or this side halted.
    pub(super) async fn run(mut self) -> NodeEnd {
        self.handle(NodeEvent::Start);
        loop {
            if let Some(end) = self.end.take() {
                self.publish();
                self.close().await;
                return end;
            }
            self.publish();
            let wake = self.next().await;
            self.dispatch(wake);
        }
    }

    async fn next(&mut self) -> Wake {
        let takes_emitted = self.node.accepts_emitted();
        let takes_part = self.transfer.is_some() && self.node.wants_part();
        let timer = self
            .wake_at
            .map(|at| tokio::time::Instant::from_std(self.ports.clock.instant(at)));
        // What the pair's safety hangs on comes first; what the guest and its clients do takes turns,
        // so that neither a busy guest nor a flood of frames keeps the other waiting.
        tokio::select! {
            biased;
            Some(event) = self.ports.link.recv() => Wake::Link(event),
            () = sleep_until(timer), if timer.is_some() => Wake::Timer,
            Some(answer) = self.answers.1.recv() => Wake::Answer(answer),
            Some(wish) = next_wish(&self.ports.wishes) => Wake::Wish(wish),
            wake = async { tokio::select! {
                report = self.ports.vcpu.recv(), if takes_emitted => Wake::Vcpu(report),
                Some(typed) = self.ports.typed.recv() => Wake::Typed(typed),
                frames = self.ports.network.receive(FRAMES_PER_TURN_MAX) => Wake::Frames(frames),
                Some(event) = next_part(&mut self.transfer), if takes_part => Wake::Transfer(event),
                event = self.ports.saver.next() => Wake::Saving(event),
            }} => wake,
        }
    }

    fn dispatch(&mut self, wake: Wake) {
        match wake {
            Wake::Vcpu(report) => self.vcpu_reported(report),
            Wake::Link(event) => self.link_event(event),
            Wake::Answer(reply) => self.handle(NodeEvent::Arbiter(reply)),
            Wake::Frames(frames) => self.frames_arrived(frames),
            Wake::Typed(ConsoleEvent::Input(bytes)) => self.typed(&bytes),
            Wake::Transfer(event) => self.transfer_event(event),
            Wake::Saving(event) => self.saving_event(event),
            Wake::Wish(Wish::Handover) => self.handle(NodeEvent::OperatorHandover),
            Wake::Wish(Wish::Snapshot { path, answer }) => {
                // Whoever asked may have gone.
                let _ = answer.send(self.begin_snapshot(path));
            }
            Wake::Typed(ConsoleEvent::Quit) | Wake::Wish(Wish::Stop) => {
                self.handle(NodeEvent::OperatorStop)
            }
            Wake::Timer => {
                self.wake_at = None;
                self.handle(NodeEvent::Tick);
            }
        }
    }

    fn transfer_event(&mut self, event: TransferEvent) {
        let Some(transfer) = &self.transfer else {
            return;
        };
        let attempt = transfer.attempt;
        match event {
            TransferEvent::Part(bytes) => {
                self.transfers.sent(part::pages_in(&bytes));
                self.handle(NodeEvent::TransferPart { attempt, bytes });
            }
            TransferEvent::Round { number, pages } => {
                self.transfers.round(number, pages);
                self.ports.doom.round(number);
            }
            TransferEvent::Throttle { pause_ns } => {
                self.transfers.slowed(pause_ns);
                self.slow(Slowed::Copied, pause_ns);
            }
            TransferEvent::Ready => self.handle(NodeEvent::TransferReady { attempt }),
            TransferEvent::Failed(cause) => {
                self.handle(NodeEvent::TransferFailed { attempt, cause });
            }
        }
    }

    fn begin_snapshot(&mut self, path: PathBuf) -> Result<u64, AnswerError> {
        let refused = |message: String, remedy: &str| AnswerError {
            message,
            remedy: remedy.to_owned(),
        };
        let (Some(dirty), Some(clock), true) = (
            self.ports.dirty.get(),
            self.node.clock(),
            self.node.can_be_saved(),
        ) else {
            let title = self.node.role().title();
            return Err(refused(
                format!("this side is {title}: only the side that runs the guest can save it"),
                "ask on the host where `understudy status` says primary or solo",
            ));
        };
        if self.transfer.is_some() {
            return Err(refused(
                "a new backup is being given the guest's state".to_owned(),
                "ask again when `understudy status` shows no transfer",
            ));
        }
        self.ports.saver.begin(path, clock, Arc::clone(dirty))
    }

    fn saving_event(&mut self, event: SavingEvent) {
        match event {
            SavingEvent::Throttle { pause_ns } => self.slow(Slowed::Copied, pause_ns),
            SavingEvent::Ready { attempt } => self.engine(Offer::Snapshot { attempt }),
            SavingEvent::Ended(result) => {
                self.ports.saver.ended(result);
                self.slow(Slowed::Copied, 0);
            }
        }
    }

    /// Two may want the guest slower; the one that wants more has its way.
    fn slow(&mut self, why: Slowed, pause_ns: u64) {
        let before = self.pauses.into_iter().max();
        self.pauses[why as usize] = pause_ns;
        let [behind, copied] = self.pauses;
        let pause_ns = behind.max(copied);
        if before != Some(pause_ns) {
            self.offer(Offer::Throttle { pause_ns });
        }
    }

    fn begin_transfer(&mut self, attempt: u64) {
        if self
            .ports
            .saver
            .give_up("a new backup is given the guest's state")
        {
            self.slow(Slowed::Copied, 0);
        }
        let started = match self.ports.dirty.get() {
            Some(dirty) => Transfer::start(attempt, Arc::clone(dirty)),
            None => Err(std::io::Error::other("the guest is not there yet")),
        };
        // A new backup that waits for a state which nobody reads would wait for ever.
        self.transfer = Some(started.unwrap_or_else(|error| Transfer::failed(attempt, error)));
    }

    fn end_transfer(&mut self) {
        if self.transfer.take().is_some() {
            self.slow(Slowed::Copied, 0);
        }
    }

    fn vcpu_reported(&mut self, report: Option<VcpuReport>) {
        match report {
            Some(VcpuReport::Emitted(mut items)) => {
                self.ports.saver.take_state(&mut items);
                self.ports.doom.emitted(&items);
                self.note_emitted(&items);
                self.handle(NodeEvent::Emitted(items));
            }
            Some(VcpuReport::Paused { attempt, pause_ns }) => {
                self.transfers.paused(attempt, pause_ns);
            }
            Some(VcpuReport::Failed(cause)) => self.handle(NodeEvent::EngineFailed(cause)),
            // The thread ended after it said why: the node is over or about to be.
            None => self.handle(NodeEvent::EngineFailed("the vCPU thread ended".to_owned())),
        }
    }

    /// Keeps our own records on disk, and notices when this side begins to record.
    fn note_emitted(&mut self, items: &[Emitted]) {
        if items.iter().any(|item| matches!(item, Emitted::Live)) {
            self.begin_recording();
        }
        if let Some(log) = &mut self.ports.log {
            log.emitted(self.node.generation(), items);
        }
    }

    fn link_event(&mut self, event: LinkEvent) {
        let current = self.link.as_ref().map(|(number, _)| *number);
        match event {
            LinkEvent::Connected { number, .. } if self.link.is_some() => {
                // Its writer is dropped, which closes it: there is a connection already.
                tracing::info!(number, "a second connection is closed");
            }
            LinkEvent::Connected { number, writer } => {
                self.link = Some((number, writer));
                self.handle(NodeEvent::PeerConnected);
            }
            LinkEvent::Said { number, message } if current == Some(number) => {
                if let (Some(log), Message::Log(records)) = (&mut self.ports.log, &message) {
                    log.append(records.clone());
                }
                self.held.heard();
                self.handle(NodeEvent::PeerMessage(message));
            }
            LinkEvent::Gone { number, cause } if current == Some(number) => {
                tracing::info!(%cause, "connection ended");
                self.link = None;
                self.handle(NodeEvent::PeerDisconnected);
                self.reconnect();
            }
            LinkEvent::Said { .. } | LinkEvent::Gone { .. } => {}
        }
    }

    /// The connection is gone: a side that needs one asks for another.
    fn reconnect(&mut self) {
        let wanted = match self.node.role() {
            Role::Joining => &self.ports.reconnect,
            Role::Solo => &self.ports.invite,
            _ => return,
        };
        // The task that connects keeps one request at the most; not every side has one.
        let _ = wanted.try_send(());
    }

    /// The guest lives here: input reaches it, and first what waited for that.
    fn begin_recording(&mut self) {
        self.recording = true;
        let held = self.held.take(self.ports.clock.now());
        if !held.is_empty() {
            tracing::info!(
                frames = held.len(),
                "frames that arrived before the guest lived here"
            );
            self.frames_arrived(held);
        }
    }

    fn frames_arrived(&mut self, frames: Vec<Vec<u8>>) {
        if frames.is_empty() {
            return;
        }
        if !self.recording {
            return self.held.keep(self.ports.clock.now(), frames);
        }
        for bytes in frames {
            self.offer(Offer::Input(Input::Packet { device: 0, bytes }));
        }
        self.kick_for_input();
    }

    fn typed(&mut self, bytes: &[u8]) {
        if !self.recording {
            return;
        }
        for piece in bytes.chunks(CONSOLE_INPUT_BYTES) {
            self.offer(Offer::Input(Input::Console(piece.to_vec())));
        }
        self.kick_for_input();
    }

    /// Input is worth a kick on the branch clock; with the exit clock it waits for an exit.
    fn kick_for_input(&self) {
        if self.node.clock() == Some(ClockKind::Branches) {
            self.kick();
        }
    }

    fn kick(&self) {
        if let Some(kicker) = self.ports.kicker.get() {
            kicker.kick();
        }
    }

    fn offer(&self, offer: Offer) {
        // A vCPU thread that is gone has said why; there is nobody to offer anything to.
        let _ = self.ports.offers.send(offer);
    }

    fn handle(&mut self, event: NodeEvent) {
        let now = self.ports.clock.now();
        self.observer.event(now, &event);
        self.transfers.event(now, &event);
        let commands = self.node.handle(now, event);
        let generation = self.node.generation();
        if let Some(mark) = &self.ports.mark {
            mark.raise(generation);
        }
        self.ports.network.decided(generation, now);
        for command in commands {
            self.observer.command(now, &command);
            self.transfers.command(now, &command);
            self.carry_out(command);
        }
        let entries = self.observer.after(now, &self.node);
        if let Some(log) = &mut self.ports.log {
            log.note(entries);
        }
        self.ports.saver.look(&self.node);
        self.ports.doom.look(&self.node);
        let alone = self.node.role() == Role::Solo;
        if alone && !self.alone {
            self.reconnect();
        }
        self.alone = alone;
    }

    fn carry_out(&mut self, command: NodeCommand) {
        match command {
            NodeCommand::Send(message) => self.send(message),
            NodeCommand::CloseLink { reason } => {
                tracing::info!(%reason, "closing the connection");
                self.link = None;
                self.reconnect();
            }
            NodeCommand::Claim { expected, new } => {
                (self.ports.claimant)(expected, new, self.answers.0.clone());
            }
            NodeCommand::Release(output) => self.release(output),
            NodeCommand::Engine(offer) => self.engine(offer),
            NodeCommand::StartGuest { generation, clock } => {
                self.held.heard();
                self.begin_recording();
                // An earlier life of this guest may have ended on the other host.
                self.attach();
                (self.ports.start_guest)(generation, clock);
            }
            NodeCommand::BeginTransfer { attempt } => self.begin_transfer(attempt),
            NodeCommand::EndTransfer => self.end_transfer(),
            NodeCommand::Announce => {
                self.attach();
                self.begin_recording();
            }
            NodeCommand::Halted { reason } => self.over(NodeEnd::Halted(reason)),
            NodeCommand::Ended(reason) => self.over(NodeEnd::Ended(reason)),
            NodeCommand::WakeAt(at) => self.wake_at = Some(at),
            NodeCommand::Note(note) => {
                self.ports.doom.noted(&note);
                log_note(&note);
            }
        }
    }

    /// The guest lives here from now on.
    fn attach(&mut self) {
        self.ports.network.raise(self.node.generation());
        self.ports.network.announce(self.ports.clock.now());
    }

    fn over(&mut self, end: NodeEnd) {
        self.ports.network.seal();
        self.end = Some(end);
    }

    fn send(&mut self, message: Message) {
        if let Some((_, writer)) = &self.link {
            // A writer that is gone is reported by the reader as the connection's end.
            let _ = writer.send(message);
        }
    }

    fn engine(&mut self, mut offer: Offer) {
        if let Offer::Throttle { pause_ns } = offer {
            return self.slow(Slowed::Behind, pause_ns);
        }
        self.ports.spoiler.pass(&mut offer);
        self.ports.doom.offered(&offer);
        // Records are looked at when the engine comes to a stop by itself; anything else is urgent.
        let urgent = !matches!(offer, Offer::Records(_) | Offer::Input(_) | Offer::Load(_));
        self.offer(offer);
        if urgent {
            self.kick();
        }
    }

    fn release(&mut self, output: Produced) {
        match output.device {
            OutputDevice::Console => self.ports.console.write(output.bytes),
            OutputDevice::Network(_) => {
                let now = self.ports.clock.now();
                self.ports.network.transmit(&output.bytes, now);
            }
        }
    }

    /// Publishes the status, but not for every packet.
    fn publish(&mut self) {
        let now = self.ports.clock.now();
        let fresh = self
            .published_at
            .is_some_and(|at| now.since(at) < STATUS_INTERVAL_NS);
        if (fresh && self.end.is_none()) || self.ports.status.is_closed() {
            return;
        }
        self.published_at = Some(now);
        let mut status = self.node.status(now);
        status.last_transfer = self.transfers.status().cloned();
        let taken = status.transfer.map(|(arrived, _)| arrived);
        if let Some(line) = self.progress.look(now, self.transfers.status(), taken) {
            tracing::info!("{line}");
        }
        self.ports.status.send_replace(Some(status));
    }

    /// Lets what is queued leave: the goodbye, the log, the console.
    async fn close(mut self) {
        if let Some((_, writer)) = self.link.take() {
            drop(writer);
            // The writer task flushes and closes; give it the time of a round trip.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        if let Some(mut log) = self.ports.log.take() {
            log.note(self.observer.finish(self.ports.clock.now()));
            log.close();
        }
        self.ports.saver.close().await;
        drop(self.ports.console);
    }
}

fn log_note(note: &Note) {
    match note {
        Note::PeerSuspected { .. } | Note::ArbiterSilent { .. } | Note::Stalled { .. } => {
            tracing::warn!(?note);
        }
        Note::StrayAnswer => tracing::debug!(?note),
        _ => tracing::info!(?note),
    }
}
