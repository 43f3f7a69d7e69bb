//! One run of one side, from a configuration to its end.

use super::arbiter_claim::claimant;
use super::control_socket::Wish;
use super::fence::Fencer;
use super::guest::{Blueprint, GuestError};
use super::host_clock::HostClock;
use super::link_task;
use super::lives::Lives;
use super::loader::Loader;
use super::log_thread::LogThread;
use super::network::Network;
use super::node_task::{NodeEnd, NodeTask, Ports};
use super::secure::{self, arbiter_dial};
use super::vcpu_thread::{OUTBOX_BATCHES_MAX, VcpuEnd, VcpuReport, drive};
use super::watchdog::{StretchMeter, Watchdog, WatchdogConfig};
use crate::backend::console::{Console, ConsoleEvent, ConsoleMode};
use crate::backend::tap::{Tap, TapError};
use crate::clock::landing::LandingMethod;
use crate::config::{self, Config, ConfigError};
use crate::confine::filter::{Thread, confine_process, confine_thread};
use crate::confine::privileges::drop_capabilities;
use crate::confine::{ConfineError, Confinement};
use crate::kvm::KvmError;
use crate::kvm::dirty::DirtyLog;
use crate::kvm::kick::Kicker;
use crate::replication::engine::{Emitted, Engine, EngineConfig, EntropySource, Offer};
use crate::replication::go_live::RetryConfig;
use crate::replication::node::{Node, NodeConfig, NodeStatus, Part};
use arbiter::client::{AddressError, ArbiterClient, RetryPolicy};
use arbiter::register::{Holder, Invalid};
use logging_channel::clock_agreement::ClockOffer;
use logging_channel::record::{ClockKind, LogIndex, Record, RecordBody};
use logging_channel::segment::SegmentError;
use logging_channel::segment::recovery::TailPolicy;
use logging_channel::segment::writer::SegmentWriter;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};
use tls::TlsError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Bytes of output that may wait for acknowledgement before the guest is stopped.
const GATE_BYTES_MAX: usize = 16 << 20;

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
    /// What became of earlier lives of this process.
    pub lives: watch::Sender<Lives>,
    /// What an operator wants.
    pub wishes: Arc<tokio::sync::Mutex<mpsc::Receiver<Wish>>>,
}

/// How a life of this process begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning {
    /// Unreplicated.
    Alone,
    /// Claims the generation after this one, and starts the guest when a backup is there.
    Primary {
        /// 0 for a virtual machine that was never started.
        after_generation: u64,
    },
    /// Follows the primary at the channel's address.
    Backup,
    /// Waits here for whoever runs the guest alone.
    Standby {
        /// Where it listens.
        address: SocketAddr,
    },
}

impl Beginning {
    const fn part(self) -> Part {
        match self {
            Self::Alone => Part::Alone,
            Self::Primary { after_generation } => Part::Primary { after_generation },
            Self::Backup | Self::Standby { .. } => Part::Backup,
        }
    }
}

impl Beginning {
    /// The generation that a primary's first claim follows; 0 for everybody else.
    const fn after_generation(self) -> u64 {
        match self {
            Self::Primary { after_generation } => after_generation,
            _ => 0,
        }
    }
}

/// The tasks that make connections, ended when the life is over.
struct Connecting {
    link: mpsc::Receiver<link_task::LinkEvent>,
    reconnect: mpsc::Sender<()>,
    invite: mpsc::Sender<()>,
    tasks: JoinSet<()>,
}

impl Connecting {
    async fn start(config: &Config, beginning: Beginning) -> Result<Self, RuntimeError> {
        let (events, link) = mpsc::channel(link_task::EVENTS_MAX);
        let (reconnect, again) = mpsc::channel(1);
        let (invite, wanted) = mpsc::channel(1);
        let numbers = link_task::Numbers::default();
        let mut tasks = JoinSet::new();
        let door = match beginning {
            Beginning::Alone => None,
            Beginning::Primary { .. } => Some(secure::channel_door(config).await?),
            Beginning::Standby { address } => Some(secure::standby_door(config, address).await?),
            Beginning::Backup => {
                let (primary, dial) = (config.channel()?.address, secure::channel_dial(config)?);
                let (events, numbers) = (events.clone(), numbers.clone());
                tasks.spawn(link_task::connect(primary, dial, events, again, numbers));
                None
            }
        };
        if let Some(door) = door {
            tasks.spawn(link_task::listen(door, events.clone(), numbers.clone()));
        }
        let standbys = config.channel.as_ref().map(|c| c.standbys.clone());
        if let Some(standbys) = standbys.filter(|s| !s.is_empty() && beginning != Beginning::Alone)
        {
            let dial = secure::standby_dial(config)?;
            tasks.spawn(link_task::invite(standbys, dial, events, wanted, numbers));
        }
        Ok(Self {
            link,
            reconnect,
            invite,
            tasks,
        })
    }
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
    options: &RunOptions,
    holder: Holder,
    start_after: u64,
) -> Result<super::node_task::Claimant, RuntimeError> {
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
    let fencer = config
        .fence
        .as_ref()
        .map(|fence| Fencer::start(fence, vm.as_str(), &options.host))
        .transpose()?;
    Ok(claimant(client, vm, holder, fencer, start_after))
}

/// What all lives of a process have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Process {
    /// Its nice value before the first life.
    pub(super) nice: i32,
    /// Whether another life may follow: it needs the capabilities that this one could give up.
    pub(super) lives_on: bool,
}

/// Wires everything around a node and runs it to its end. `life` counts the lives of this process.
pub(super) async fn live(
    config: &Config,
    options: &RunOptions,
    life: u32,
    beginning: Beginning,
    process: Process,
) -> Result<NodeEnd, RuntimeError> {
    let part = beginning.part();
    let holder = holder(options, life)?;
    let mut connecting = Connecting::start(config, beginning).await?;
    let claimant: super::node_task::Claimant = match beginning {
        Beginning::Alone => Box::new(|_, _, _| {}),
        _ => {
            claims(
                config,
                options,
                holder.clone(),
                beginning.after_generation(),
            )
            .await?
        }
    };
    let clock = HostClock::start();
    let blueprint = Arc::new(Blueprint::read(config, options.landing)?);
    let node = Node::new(node_config(config, options, &holder, part, &blueprint));
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
        spawn(vcpu_start.take(), None)?;
    }
    let confinement = options.confinement;
    confine_process(confinement)?;
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
        console: console(config, typed_sender)?,
        typed,
        log: log(config, beginning, clock, confinement)?,
        claimant,
        start_guest: Box::new(move |generation, clock| {
            if let Err(error) = spawn(vcpu_start.take(), Some((generation, clock))) {
                tracing::error!(%error, "the vCPU thread could not be started");
            }
            if !process.lives_on {
                give_up_capabilities();
            }
        }),
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

/// How much nicer everybody else is to the node's thread, in nice values.
const NODE_ADVANTAGE: i32 = 10;

/// The node answers the peer and releases output: it must not wait behind the guest's processor for
/// its turn, or a host with few processors looks dead. Threads inherit what their parent has, so the
/// vCPU's thread puts itself back. Without the right to do so everything stays as it is.
fn set_nice(nice: i32) {
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
        ..default
    }
}

fn network(config: &Config) -> Result<Network, RuntimeError> {
    let tap = config
        .network
        .as_ref()
        .map(|n| Tap::open(&n.tap))
        .transpose()?;
    let announce = config
        .network
        .as_ref()
        .map_or_else(Vec::new, |n| n.announce.clone());
    Network::new(tap, config.vm.mac, announce).map_err(|source| RuntimeError::Io {
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
fn log(
    config: &Config,
    beginning: Beginning,
    clock: HostClock,
    confinement: Confinement,
) -> Result<Option<LogThread>, RuntimeError> {
    let Some(log) = &config.log else {
        return Ok(None);
    };
    let vm = config.vm.name.as_str();
    let dir = match beginning {
        Beginning::Standby { .. } => fresh_directory(&log.dir),
        _ => log.dir.clone(),
    };
    let (writer, recovered) = SegmentWriter::open(&dir, vm, log.options, TailPolicy::Refuse)?;
    if recovered.next().is_some_and(|next| next.0 > 0) {
        return Err(RuntimeError::LogNotEmpty(dir.display().to_string()));
    }
    let thread =
        LogThread::start(writer, clock, confinement).map_err(|source| RuntimeError::Io {
            operation: "start the log thread",
            source,
        })?;
    Ok(Some(thread))
}

/// The first of `dir/standby-1`, `dir/standby-2`, ... that is not there yet.
fn fresh_directory(dir: &Path) -> PathBuf {
    let numbered = (1_u64..).map(|n| dir.join(format!("standby-{n}")));
    let mut free = numbered.skip_while(|path| path.exists());
    free.next().unwrap_or_else(|| dir.to_owned())
}

/// What the vCPU thread begins with.
struct VcpuStart {
    blueprint: Arc<Blueprint>,
    offers: Receiver<Offer>,
    reports: mpsc::Sender<VcpuReport>,
    kicker: Arc<OnceLock<Kicker>>,
    dirty: Arc<OnceLock<Arc<DirtyLog>>>,
    clock: HostClock,
    engine: EngineConfig,
    confinement: Confinement,
    /// Nice value of its thread.
    nice: i32,
}

/// Starts the vCPU thread: to record under a generation on a clock, or to replay what will be offered.
fn spawn(start: Option<VcpuStart>, record: Option<(u64, ClockKind)>) -> Result<(), RuntimeError> {
    let Some(start) = start else { return Ok(()) };
    std::thread::Builder::new()
        .name("vcpu".to_owned())
        .spawn(move || start.run(record))
        .map(|_detached| ())
        .map_err(|source| RuntimeError::Io {
            operation: "start the vCPU thread",
            source,
        })
}

impl VcpuStart {
    fn run(self, record: Option<(u64, ClockKind)>) {
        set_nice(self.nice);
        let outcome = match record {
            Some((generation, clock)) => self.record(generation, clock),
            None => self.replay(),
        };
        if let Err(error) = outcome {
            // A node that is gone needs no report.
            let _ = self
                .reports
                .blocking_send(VcpuReport::Failed(error.to_string()));
        }
    }

    fn record(&self, generation: u64, clock: ClockKind) -> Result<(), RuntimeError> {
        let start = self.blueprint.start(generation, clock)?;
        let guest = self.blueprint.build(&start)?;
        let now = self.clock.now();
        let engine = Engine::recording(guest.executor, start, self.engine, entropy()?, now)?;
        self.drive(engine, guest.kicker, guest.dirty, clock)
    }

    fn replay(&self) -> Result<(), RuntimeError> {
        let mut loader = Loader::new(&self.blueprint);
        loop {
            // The node is gone: nobody needs this copy.
            let Ok(offer) = self.offers.recv() else {
                return Ok(());
            };
            match offer {
                Offer::Records(records) => return self.replay_from_start(records),
                Offer::Load(part) => {
                    let loaded = loader.load(&part)?;
                    if !self.report(loaded) {
                        return Ok(());
                    }
                }
                Offer::Unload => loader.unload(),
                Offer::Begin { next, clock } => {
                    return self.replay_from_state(loader, next, clock);
                }
                Offer::Halt => return Ok(()),
                _ => {}
            }
        }
    }

    fn report(&self, emitted: Emitted) -> bool {
        let report = VcpuReport::Emitted(vec![emitted]);
        self.reports.blocking_send(report).is_ok()
    }

    fn replay_from_start(&self, records: Vec<Record>) -> Result<(), RuntimeError> {
        let Some(RecordBody::Start(start)) = records.first().map(|record| &record.body) else {
            return Err(RuntimeError::NoStart(
                records.first().map_or(0, |record| record.index.0),
            ));
        };
        let (guest, clock) = (self.blueprint.build(start)?, start.clock);
        let mut engine = Engine::replaying(guest.executor, self.engine, entropy()?)?;
        engine.offer(self.clock.now(), Offer::Records(records));
        self.drive(engine, guest.kicker, guest.dirty, clock)
    }

    fn replay_from_state(
        &self,
        loader: Loader<'_>,
        next: LogIndex,
        clock: ClockKind,
    ) -> Result<(), RuntimeError> {
        let guest = loader.finish(clock)?;
        let engine = Engine::replaying_from(next, clock, guest.executor, self.engine, entropy()?)?;
        self.drive(engine, guest.kicker, guest.dirty, clock)
    }

    fn drive(
        &self,
        mut engine: Engine<super::kvm_executor::KvmExecutor>,
        kicker: Kicker,
        dirty: Arc<DirtyLog>,
        clock: ClockKind,
    ) -> Result<(), RuntimeError> {
        let meter = Arc::new(StretchMeter::default());
        let watch = WatchdogConfig {
            confinement: self.confinement,
            interval_ns: self.engine.mark_interval_ns,
            anywhere: clock == ClockKind::Branches,
        };
        let _watchdog = Watchdog::start(Arc::clone(&meter), kicker.clone(), self.clock, watch)
            .map_err(|source| RuntimeError::Io {
                operation: "start the watchdog",
                source,
            })?;
        // The guest's memory is mapped, the counter open, the watchdog started: nothing else is needed.
        drop_capabilities()?;
        confine_thread(self.confinement, Thread::Vcpu)?;
        // Set once: the thread is started once.
        let _ = self.kicker.set(kicker);
        let _ = self.dirty.set(dirty);
        match drive(&mut engine, &self.offers, &self.reports, self.clock, &meter) {
            VcpuEnd::Failed(error) => Err(error.into()),
            VcpuEnd::Stopped | VcpuEnd::NodeGone => Ok(()),
        }
    }
}

/// Random bytes for the guest, from a descriptor that is opened before the thread is confined.
fn entropy() -> Result<EntropySource, RuntimeError> {
    let random = std::fs::File::open("/dev/urandom").map_err(|source| RuntimeError::Io {
        operation: "open /dev/urandom",
        source,
    })?;
    Ok(Box::new(move |count| {
        let mut bytes = vec![0; count];
        if let Err(error) = (&random).read_exact(&mut bytes) {
            tracing::error!(%error, "no random bytes for the guest");
            bytes.clear();
        }
        bytes
    }))
}
