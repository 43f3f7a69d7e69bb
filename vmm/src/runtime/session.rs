//! One run of one side, from a configuration to its end.

use super::arbiter_claim::claimant;
use super::connecting::{Beginning, Connecting};
use super::control_socket::Wish;
use super::doom::{Doom, Moment};
use super::evidence::EvidencePlace;
use super::fence::Fencer;
use super::generation_mark::{GenerationMark, MarkError};
use super::guest::{Blueprint, GuestError};
use super::host_clock::HostClock;
use super::lives::Lives;
use super::log_thread::LogThread;
use super::network::Network;
use super::node_task::{NodeEnd, NodeTask, Ports, StartGuest};
use super::sabotage::Spoiler;
use super::saving::{Saver, SnapshotBoard};
use super::secure::arbiter_dial;
use super::snapshot_file::{self, Loaded};
use super::tap_fence::TapFence;
use super::vcpu_start::{Task, VcpuStart, spawn};
use super::vcpu_thread::OUTBOX_BATCHES_MAX;
use crate::backend::console::{Console, ConsoleEvent, ConsoleMode};
use crate::backend::tap::{Tap, TapError};
use crate::clock::landing::LandingMethod;
use crate::config::{self, Config, ConfigError};
use crate::confine::filter::confine_process;
use crate::confine::privileges::drop_capabilities;
use crate::confine::{ConfineError, Confinement};
use crate::kvm::KvmError;
use crate::replication::engine::EngineConfig;
use crate::replication::go_live::RetryConfig;
use crate::replication::node::{Node, NodeConfig, NodeStatus, Part};
use crate::snapshot::file::SnapshotError;
use arbiter::client::{AddressError, ArbiterClient, RetryPolicy};
use arbiter::register::{Holder, Invalid};
use logging_channel::clock_agreement::ClockOffer;
use logging_channel::journal::entry::{Begun, text};
use logging_channel::journal::{Entry, JournalWriter, What};
use logging_channel::record::ClockKind;
use logging_channel::segment::SegmentError;
use logging_channel::segment::recovery::TailPolicy;
use logging_channel::segment::writer::{SegmentWriter, SyncPolicy};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tls::TlsError;
use tokio::sync::{mpsc, watch};

/// Bytes of output that may wait for acknowledgement before the guest is stopped.
const GATE_BYTES_MAX: usize = 16 << 20;

/// When the journal is made durable, where the log is at every append.
const JOURNAL_SYNC_MS: u64 = 1_000;

/// Why a side could not run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The configuration lacks something that this command needs.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The guest cannot be built.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The TAP interface.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The log on disk.
    #[error(transparent)]
    Log(#[from] SegmentError),
    /// System calls or capabilities.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address where the primary listens.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// This host's certificate is not one of those that may have the role.
    #[error(
        "this host's certificate names {names:?}, none of which may be {role}: see [tls] {role}"
    )]
    Role {
        /// Names in the certificate.
        names: Vec<String>,
        /// `primary` or `backup`.
        role: &'static str,
    },
    /// The newest generation that this host has seen.
    #[error(transparent)]
    Mark(#[from] MarkError),
    /// The arbiter's address.
    #[error(transparent)]
    Arbiter(#[from] AddressError),
    /// A name.
    #[error("the holder's name: {0}")]
    Holder(#[from] Invalid),
    /// The directory already holds a log.
    #[error("{0} already holds a log; move it away, or name another [log] dir")]
    LogNotEmpty(String),
    /// Nothing to replay.
    #[error("{0} holds no log")]
    NoLog(String),
    /// A snapshot file.
    #[error("{path}: {source}")]
    Snapshot {
        /// Which.
        path: String,
        /// What is wrong.
        source: SnapshotError,
    },
    /// A snapshot of a guest on a clock that this host may not or cannot use.
    #[error("{path} was saved on the clock {theirs}, and this host is set to {ours}", theirs = theirs.name())]
    SnapshotClock {
        /// The file.
        path: String,
        /// Its guest's clock.
        theirs: ClockKind,
        /// This host's.
        ours: ClockOffer,
    },
    /// No place that can be saved.
    #[error("the log has no place there that can be saved")]
    NothingSettled,
    /// The log's beginning is missing.
    #[error("the log begins at record {0}, not at its Start record")]
    NoStart(u64),
    /// Something of the host.
    #[error("cannot {operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

/// What a command knows beside the configuration.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// This host's name at the arbiter; a number unique to the process is added.
    pub host: String,
    /// Clocks that this host was found fit for and may use.
    pub clocks: ClockOffer,
    /// How this host lands on the branch clock.
    pub landing: LandingMethod,
    /// Where the status is published.
    pub status: watch::Sender<Option<NodeStatus>>,
    /// How strictly system calls are judged.
    pub confinement: Confinement,
    /// Sabotage for drills: from this record on a packet of the first life is spoiled, once.
    pub diverge_from: Option<u64>,
    /// Sabotage for drills: die at this moment of a transfer.
    pub die_at: Option<Moment>,
    /// What became of earlier lives of this process.
    pub lives: watch::Sender<Lives>,
    /// Where the last snapshot is shown.
    pub snapshots: SnapshotBoard,
    /// Go on from this snapshot instead of power-on.
    pub from: Option<PathBuf>,
    /// What an operator wants.
    pub wishes: Arc<tokio::sync::Mutex<mpsc::Receiver<Wish>>>,
}

/// The holder's name: the host's, made unique to this life of this process.
fn holder(options: &RunOptions, life: u32) -> Result<Holder, Invalid> {
    let process = std::process::id();
    Holder::new(match life {
        0 => format!("{}.{process}", options.host),
        _ => format!("{}.{process}.{life}", options.host),
    })
}

async fn claims(
    config: &Config,
    process: &Process,
    holder: &Holder,
    beginning: Beginning,
) -> Result<super::node_task::Claimant, RuntimeError> {
    if beginning == Beginning::Alone {
        return Ok(Box::new(|_, _, _| {}));
    }
    // The node repeats; a claim of one try answers soon either way.
    let policy = RetryPolicy {
        tries_max: 1,
        ..RetryPolicy::default()
    };
    let client = ArbiterClient::dialled(config.arbiter()?, policy, arbiter_dial(config)?)?;
    if !client.warm().await {
        tracing::warn!(arbiter = client.url(), "arbiter not reached yet");
    }
    let vm = config.vm.name.clone();
    let (fencer, after) = (process.fencer.clone(), beginning.after_generation());
    Ok(claimant(client, vm, holder.clone(), fencer, after))
}

/// What all lives of a process have in common.
#[derive(Debug)]
pub(super) struct Process {
    /// Its nice value before the first life.
    nice: i32,
    /// Whether another life may follow: it needs the capabilities that this one could give up.
    lives_on: bool,
    /// The operator's fence. Its helper is started before the first life confines the process.
    fencer: Option<Fencer>,
    /// The newest generation that this host has seen; none for a guest that knows of none.
    mark: Option<Arc<GenerationMark>>,
}

impl Process {
    /// The process before its first life. `claims` tells whether it ever asks the arbiter.
    ///
    /// # Errors
    /// When the fence's helper cannot be started, or another process runs this virtual machine here.
    pub(super) fn begin(
        config: &Config,
        options: &RunOptions,
        claims: bool,
        lives_on: bool,
    ) -> Result<Self, RuntimeError> {
        let fence = config.fence.as_ref().filter(|_| claims);
        let vm = config.vm.name.as_str();
        let mark = claims.then(|| GenerationMark::beside(&config.control_socket));
        Ok(Self {
            mark: mark.transpose()?.map(Arc::new),
            nice: rustix::process::getpriority_process(None).unwrap_or_default(),
            lives_on,
            fencer: fence
                .map(|fence| Fencer::start(fence, vm, &options.host))
                .transpose()?,
        })
    }
}

/// Wires everything around a node and runs it to its end. `life` counts the lives of this process.
pub(super) async fn live(
    config: &Config,
    options: &RunOptions,
    life: u32,
    beginning: Beginning,
    process: &Process,
) -> Result<NodeEnd, RuntimeError> {
    let part = beginning.part();
    let holder = holder(options, life)?;
    let mut connecting = Connecting::start(config, beginning).await?;
    let claimant = claims(config, process, &holder, beginning).await?;
    let clock = HostClock::start();
    let blueprint = Arc::new(Blueprint::read(config, options.landing)?);
    let loaded = load(options, &blueprint)?;
    let newest = process.mark.as_ref().map_or(0, |mark| mark.newest());
    let node_config = node_config(config, options, &holder, part, &blueprint, newest);
    let node = Node::new(resumed(node_config, loaded.as_deref()));
    let (typed_sender, typed) = mpsc::unbounded_channel();
    let (offers, offered) = std::sync::mpsc::channel();
    let (reports, vcpu) = mpsc::channel(OUTBOX_BATCHES_MAX);
    let kicker = Arc::new(OnceLock::new());
    let dirty = Arc::new(OnceLock::new());
    let vcpu_start = VcpuStart {
        blueprint: Arc::clone(&blueprint),
        offers: offered,
        reports,
        kicker: Arc::clone(&kicker),
        dirty: Arc::clone(&dirty),
        clock,
        engine: engine_config(config),
        confinement: options.confinement,
        nice: process.nice,
    };
    let mut vcpu_start = Some(vcpu_start);
    if part == Part::Backup {
        spawn(vcpu_start.take(), Task::Replay)?;
    }
    confine(options, life)?;
    let directory = log_directory(config, beginning);
    let log = log(config, directory, clock, options.confinement, &holder)?;
    let ports = Ports {
        clock,
        offers,
        kicker,
        dirty,
        vcpu,
        link: connecting.link,
        reconnect: connecting.reconnect,
        invite: connecting.invite,
        network: network(config)?,
        mark: process.mark.clone(),
        console: console(config, typed_sender)?,
        typed,
        log,
        spoiler: Spoiler::new(options.diverge_from.filter(|_| life == 0)),
        doom: Doom::new(options.die_at),
        saver: Saver::new(blueprint.identity().clone(), options.snapshots.clone()),
        claimant,
        start_guest: start_guest(vcpu_start, loaded, process.lives_on),
        status: options.status.clone(),
        wishes: Arc::clone(&options.wishes),
    };
    set_nice(process.nice - NODE_ADVANTAGE);
    if part == Part::Backup && !process.lives_on {
        give_up_capabilities();
    }
    let end = NodeTask::new(node, ports).run().await;
    connecting.tasks.shutdown().await;
    Ok(end)
}

/// The snapshot to go on from, if this host can.
fn load(options: &RunOptions, blueprint: &Blueprint) -> Result<Option<Box<Loaded>>, RuntimeError> {
    let Some(path) = &options.from else {
        return Ok(None);
    };
    let loaded = snapshot_file::load(path, blueprint)?;
    let clock = loaded.about.clock;
    if logging_channel::clock_agreement::agree(&ClockOffer::Only(clock), &options.clocks).is_none()
    {
        return Err(RuntimeError::SnapshotClock {
            path: path.display().to_string(),
            theirs: clock,
            ours: options.clocks.clone(),
        });
    }
    Ok(Some(Box::new(loaded)))
}

/// With the generation and the clock that a saved guest has.
fn resumed(config: NodeConfig, loaded: Option<&Loaded>) -> NodeConfig {
    match loaded {
        None => config,
        Some(loaded) => NodeConfig {
            generation: loaded.about.generation,
            clocks: ClockOffer::Only(loaded.about.clock),
            ..config
        },
    }
}

/// Once, for ever: later lives, and their threads, begin with it.
fn confine(options: &RunOptions, life: u32) -> Result<(), ConfineError> {
    match life {
        0 => confine_process(options.confinement),
        _ => Ok(()),
    }
}

/// Starts the vCPU's thread of a primary, when the pair has agreed on a clock.
fn start_guest(
    mut vcpu_start: Option<VcpuStart>,
    mut loaded: Option<Box<Loaded>>,
    lives_on: bool,
) -> StartGuest {
    Box::new(move |generation, clock| {
        let task = match loaded.take() {
            Some(loaded) => Task::Resume(loaded),
            None => Task::Record(generation, clock),
        };
        if let Err(error) = spawn(vcpu_start.take(), task) {
            tracing::error!(%error, "the vCPU thread could not be started");
        }
        if !lives_on {
            give_up_capabilities();
        }
    })
}

/// How much nicer everybody else is to the node's thread, in nice values.
const NODE_ADVANTAGE: i32 = 10;

/// The node answers the peer and releases output: it must not wait behind the guest's processor for
/// its turn, or a host with few processors looks dead. Threads inherit what their parent has, so the
/// vCPU's thread puts itself back. Without the right to do so everything stays as it is.
pub(super) fn set_nice(nice: i32) {
    if let Err(error) = rustix::process::setpriority_process(None, nice) {
        tracing::debug!(%error, nice, "a thread keeps its priority");
    }
}

/// From here on this thread needs none: the TAP is open, its priority set, and the vCPU's thread, which
/// inherits what its parent has, is started.
fn give_up_capabilities() {
    if let Err(error) = drop_capabilities() {
        tracing::warn!(%error, "a thread keeps its capabilities");
    }
}

fn node_config(
    config: &Config,
    options: &RunOptions,
    holder: &Holder,
    part: Part,
    blueprint: &Blueprint,
    newest_generation: u64,
) -> NodeConfig {
    let channel = config.channel.clone();
    NodeConfig {
        part,
        holder: holder.as_str().to_owned(),
        identity: blueprint.identity().clone(),
        clocks: options.clocks.clone(),
        detector: channel
            .as_ref()
            .map_or_else(Default::default, |c| c.detector),
        flow: channel.as_ref().map_or_else(Default::default, |c| c.flow),
        retry: RetryConfig::default(),
        gate_bytes_max: GATE_BYTES_MAX,
        generation: 0,
        newest_generation,
    }
}

fn engine_config(config: &Config) -> EngineConfig {
    let default = EngineConfig::default();
    EngineConfig {
        mark_interval_ns: config
            .channel
            .as_ref()
            .map_or(default.mark_interval_ns, |c| c.mark_interval_ns),
        verify_memory_every: config.verify_memory_every,
        stall_ns: config.stall_ns,
        settle_interval_ns: config.settle_ns,
        ..default
    }
}

fn network(config: &Config) -> Result<Network, RuntimeError> {
    let network = config.network.as_ref();
    let tap = network.map(|n| Tap::open(&n.tap)).transpose()?;
    // As the node: a sign of life before the decision was at most a heartbeat old.
    let detector = config.channel.as_ref().map(|channel| channel.detector);
    let stale_ns = detector.map(|d| d.timeout_ns.saturating_sub(d.heartbeat_interval_ns));
    let fence = TapFence::new(stale_ns);
    Network::new(tap, config.vm.mac, network, fence).map_err(|source| RuntimeError::Io {
        operation: "watch the TAP interface",
        source,
    })
}

fn console(
    config: &Config,
    typed: mpsc::UnboundedSender<ConsoleEvent>,
) -> Result<Console, RuntimeError> {
    let mode = match &config.console {
        config::Console::Stdio => ConsoleMode::Stdio,
        config::Console::Socket(path) => ConsoleMode::Socket(path.clone()),
        config::Console::File(path) => ConsoleMode::File(path.clone()),
        config::Console::None => ConsoleMode::None,
    };
    let on_event = Box::new(move |event| {
        // The node is over: nobody listens to the console any more.
        let _ = typed.send(event);
    });
    Console::open(&mode, on_event).map_err(|source| RuntimeError::Io {
        operation: "open the console",
        source,
    })
}

/// A fresh log: a run begins at its own record, whatever an earlier run left is kept out of its way. A
/// standby, which may live again and again, has a directory for each life.
/// Where this life keeps its log, if it does.
fn log_directory(config: &Config, beginning: Beginning) -> Option<PathBuf> {
    let log = config.log.as_ref()?;
    Some(match beginning {
        Beginning::Standby { .. } => fresh_directory(&log.dir),
        _ => log.dir.clone(),
    })
}

fn log(
    config: &Config,
    directory: Option<PathBuf>,
    clock: HostClock,
    confinement: Confinement,
    holder: &Holder,
) -> Result<Option<LogThread>, RuntimeError> {
    let (Some(log), Some(dir)) = (&config.log, directory) else {
        return Ok(None);
    };
    let vm = config.vm.name.as_str();
    let (writer, recovered) = SegmentWriter::open(&dir, vm, log.options, TailPolicy::Refuse)?;
    if recovered.next().is_some_and(|next| next.0 > 0) {
        return Err(RuntimeError::LogNotEmpty(dir.display().to_string()));
    }
    let begun = Begun {
        vm: vm.to_owned(),
        holder: text(holder.as_str()),
        wall_clock_us: clock.wall_clock_us_at_zero(),
    };
    let journal = journal(&dir, begun, log.options.sync);
    let evidence = EvidencePlace {
        directory: dir,
        vm: vm.to_owned(),
        holder: text(holder.as_str()),
    };
    let thread = LogThread::start(writer, journal, evidence, clock, confinement);
    let unstarted = |source| RuntimeError::Io {
        operation: "start the log thread",
        source,
    };
    thread.map(Some).map_err(unstarted)
}

/// The journal beside the log. A run goes on without one.
fn journal(dir: &Path, begun: Begun, sync: SyncPolicy) -> Option<JournalWriter> {
    let sync_ms = match sync {
        SyncPolicy::Never => None,
        SyncPolicy::EveryMs(ms) => Some(ms),
        SyncPolicy::Always => Some(JOURNAL_SYNC_MS),
    };
    let (vm, what) = (begun.vm.clone(), What::Begun(begun));
    let begun = Entry { at_us: 0, what };
    let sync_ns = sync_ms.map(|ms| ms.saturating_mul(1_000_000));
    JournalWriter::open(dir, &vm, begun, sync_ns)
        .inspect_err(|error| tracing::warn!(%error, "no journal is kept beside the log"))
        .ok()
}

/// The first of `dir/standby-1`, `dir/standby-2`, ... that is not there yet.
fn fresh_directory(dir: &Path) -> PathBuf {
    let numbered = (1_u64..).map(|n| dir.join(format!("standby-{n}")));
    let mut free = numbered.skip_while(|path| path.exists());
    free.next().unwrap_or_else(|| dir.to_owned())
}
