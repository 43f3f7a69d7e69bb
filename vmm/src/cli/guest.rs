//! `understudy run`, `primary`, `backup`: one side of a virtual machine, from start to end.

#![forbid(unsafe_code)]

use super::exit::{Exit, Failure};
use clap::{Args, ValueEnum};
use logging_channel::clock_agreement::ClockOffer;
use logging_channel::record::{ClockKind, EndReason};
use std::future::Future;
use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc, watch};
use vmm::clock::landing::LandingMethod;
use vmm::config::{self, ClockChoice, Config};
use vmm::confine::privileges::become_user;
use vmm::confine::{ConfineError, Confinement};
use vmm::doctor;
use vmm::replication::node::{HaltReason, NodeStatus};
use vmm::runtime::control_socket::{ControlError, ControlSocket, Wish};
use vmm::runtime::{
    self, GuestError, Lives, Moment, NodeEnd, RunOptions, RuntimeError, SnapshotStatus,
};
use vmm::snapshot::file::SnapshotError;

/// Longest part of the host's name that goes into the holder's name.
const HOST_BYTES_MAX: usize = 64;

/// Run a guest on this host alone, without a backup.
///
/// With a section [log] in its file, the run is recorded there and can be replayed.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy run --config guest.toml
    $ understudy status --config guest.toml
    $ understudy replay --config guest.toml
    $ understudy run --config guest.toml --from monday.snapshot

SIGTERM or SIGINT stops the guest at once, like pulling its plug. Ends with status 0 when the guest
powered itself off or was stopped, 1 when it crashed.")]
pub(super) struct RunArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Go on from this snapshot (`understudy snapshot`, `understudy replay --save`) instead of power-on.
    ///
    /// The guest's clock goes on from where it was. Nothing may run that guest any more: there would be two
    /// with one address.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    #[command(flatten)]
    confine: ConfineArguments,
}

/// Start a guest as the primary of a pair.
///
/// Claims the virtual machine at the arbiter, listens at [channel] address, starts the guest when a
/// backup with the same configuration has connected, and lets output leave only when the backup holds
/// the log that led to it. When the backup is lost, it claims the next generation and goes on alone.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  The first start of a virtual machine:
    $ understudy primary --config guest.toml

  A later start; the arbiter says what the last generation was:
    $ understudy arbiter show --url https://10.0.0.9:7070 web ...
    $ understudy primary --config guest.toml --after-generation 2

Ends with status 0 when the guest ended, 4 when the arbiter refused: somebody else holds the guest,
and this side must not be started again by itself.")]
pub(super) struct PrimaryArguments {
    #[command(flatten)]
    config: ConfigArgument,
    #[command(flatten)]
    confine: ConfineArguments,
    /// The last generation that this virtual machine had, as `arbiter show` tells.
    #[arg(long, value_name = "N", default_value_t = 0)]
    after_generation: u64,
    #[command(flatten)]
    afterwards: Afterwards,
    #[command(flatten)]
    doom: DoomArgument,
}

/// Follow a primary, and go live when it is lost.
///
/// Connects to [channel] address, replays the primary's log as it arrives, and when the primary falls
/// silent, finishes the log, claims the next generation at the arbiter and takes over the guest's
/// network and console.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy backup --config guest.toml
    $ understudy status --config guest.toml --json

The file is the same as the primary's; what differs is named and refused (status 4). Ends with status
0 when the guest ended, 4 when the primary or the arbiter refused, 5 when this copy diverged.")]
pub(super) struct BackupArguments {
    #[command(flatten)]
    config: ConfigArgument,
    #[command(flatten)]
    confine: ConfineArguments,
    #[command(flatten)]
    afterwards: Afterwards,
    /// Sabotage for drills: from this record on a bit of a packet differs, once
    #[arg(long, hide = true, value_name = "RECORD")]
    diverge_from: Option<u64>,
    #[command(flatten)]
    doom: DoomArgument,
}

/// Stand by for a guest that has lost its backup.
///
/// Listens until a side that runs the guest alone invites it ([channel] standbys in that side's file
/// names this address), takes over the running guest's state, and from then on is its backup. When that
/// is over, it stands by again.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  On a third host, or on the repaired first one, with the same file:
    $ understudy standby --config guest.toml --listen 10.1.0.3:7072

A copy that diverged, was handed over or refused by the arbiter is never used again; the process stands
by for a new one, and `understudy status` counts them. Ends with status 0 when the guest ended.")]
pub(super) struct StandbyArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Where to listen for whoever runs the guest alone.
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    #[command(flatten)]
    confine: ConfineArguments,
    #[command(flatten)]
    doom: DoomArgument,
}

/// Sabotage for drills.
#[derive(Debug, Args)]
struct DoomArgument {
    /// Die at this moment of a transfer: `round:2`, `state`, `held:5`, `piece:3`, `whole`, `records:1`
    #[arg(long, hide = true, value_name = "MOMENT")]
    die_at: Option<Moment>,
}

/// What to do when the guest is over here.
#[derive(Debug, Args)]
struct Afterwards {
    /// Stand by at this address when this copy was handed over, diverged, or lost against the other
    /// side, instead of ending; as `understudy standby --listen`.
    #[arg(long, value_name = "IP:PORT")]
    standby: Option<SocketAddr>,
}

/// What a side may do to its host once it runs.
#[derive(Debug, Args)]
struct ConfineArguments {
    /// Become this user before anything is opened; files and /dev/kvm must be accessible to it.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// System calls outside the list of a thread: kill the process, note them in the kernel's log, or
    /// look at none.
    #[arg(long, value_enum, default_value_t = Confine::Enforced)]
    confine: Confine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Confine {
    Enforced,
    Logged,
    Off,
}

impl ConfineArguments {
    /// Becomes the user; says how strict to be.
    fn begin(&self) -> Result<Confinement, Failure> {
        if let Some(user) = &self.user {
            become_user(user)?;
        }
        Ok(match self.confine {
            Confine::Enforced => Confinement::Enforced,
            Confine::Logged => Confinement::Logged,
            Confine::Off => Confinement::Off,
        })
    }
}

impl From<ConfineError> for Failure {
    fn from(error: ConfineError) -> Self {
        let remedy = match &error {
            ConfineError::Filter { .. } => {
                "run a kernel with CONFIG_SECCOMP_FILTER, or give --confine off"
            }
            ConfineError::NoUser(_) => "make the user, or name another with --user",
            ConfineError::Become { .. } => "start as root, or as that user",
            ConfineError::Capabilities(_) => "see the message",
        };
        Self::new(Exit::Failed, error).remedy(remedy)
    }
}

/// The configuration file of the virtual machine.
#[derive(Debug, Args)]
pub(super) struct ConfigArgument {
    /// The virtual machine's file; docs/examples/guest.toml shows every key.
    #[arg(long, value_name = "FILE")]
    pub(super) config: PathBuf,
}

pub(super) fn run(arguments: &RunArguments) -> Result<(), Failure> {
    let config = config::load(&arguments.config.config)?;
    let confinement = arguments.confine.begin()?;
    let from = arguments.from.clone();
    in_runtime(side(&config, "run", confinement, |options| {
        runtime::run(&config, RunOptions { from, ..options })
    }))
}

pub(super) fn primary(arguments: &PrimaryArguments) -> Result<(), Failure> {
    let config = config::load(&arguments.config.config)?;
    let (after, standby) = (arguments.after_generation, arguments.afterwards.standby);
    let die_at = arguments.doom.die_at;
    let confinement = arguments.confine.begin()?;
    in_runtime(side(&config, "primary", confinement, |options| {
        let options = RunOptions { die_at, ..options };
        runtime::primary(&config, options, after, standby)
    }))
}

pub(super) fn backup(arguments: &BackupArguments) -> Result<(), Failure> {
    let config = config::load(&arguments.config.config)?;
    let standby = arguments.afterwards.standby;
    let (diverge_from, die_at) = (arguments.diverge_from, arguments.doom.die_at);
    let confinement = arguments.confine.begin()?;
    in_runtime(side(&config, "backup", confinement, |options| {
        let options = RunOptions {
            diverge_from,
            die_at,
            ..options
        };
        runtime::backup(&config, options, standby)
    }))
}

pub(super) fn standby(arguments: &StandbyArguments) -> Result<(), Failure> {
    let config = config::load(&arguments.config.config)?;
    let (address, die_at) = (arguments.listen, arguments.doom.die_at);
    let confinement = arguments.confine.begin()?;
    in_runtime(side(&config, "standby", confinement, |options| {
        let options = RunOptions { die_at, ..options };
        runtime::standby(&config, options, address)
    }))
}

fn in_runtime(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(work)
}

/// Runs one side with its control socket, and signals that stop it.
async fn side<F>(
    config: &Config,
    part: &'static str,
    confinement: Confinement,
    start: impl FnOnce(RunOptions) -> F,
) -> Result<(), Failure>
where
    F: Future<Output = Result<NodeEnd, RuntimeError>>,
{
    let (publish, status) = watch::channel(None);
    let (stop, wishes) = mpsc::channel(1);
    let (lives, earlier) = watch::channel(Lives::default());
    let (snapshots, last_snapshot) = watch::channel(None);
    let (clocks, landing) = clocks_of(config.clock)?;
    let margin = landing.margin;
    let options = RunOptions {
        host: holder_name()?,
        clocks,
        landing,
        status: publish,
        confinement,
        diverge_from: None,
        die_at: None,
        lives,
        snapshots,
        from: None,
        wishes: Arc::new(Mutex::new(wishes)),
    };
    let socket = ControlSocket::bind(&config.control_socket).await?;
    let vm = config.vm.name.as_str().to_owned();
    let about = About {
        vm,
        part,
        margin,
        protection: config.protection.name(),
        confinement,
    };
    let serving = socket.serve(
        move || document(&about, &status, &earlier, &last_snapshot),
        stop.clone(),
    );
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let signals = async {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("told to stop");
            // Full means that a wish to stop is on its way already.
            let _ = stop.try_send(Wish::Stop);
        }
    };
    tracing::info!(vm = config.vm.name.as_str(), part, clocks = %options.clocks, "starting");
    let end = tokio::select! {
        end = start(options) => end?,
        () = serving => unreachable_end(),
        () = signals => unreachable_end(),
    };
    conclude(end)
}

/// Neither the control socket nor the signals ever end.
fn unreachable_end() -> NodeEnd {
    NodeEnd::Halted(HaltReason::Stopped)
}

/// What does not change while a side runs.
struct About {
    vm: String,
    part: &'static str,
    margin: u64,
    protection: &'static str,
    confinement: Confinement,
}

/// What `status` answers.
fn document(
    about: &About,
    status: &watch::Receiver<Option<NodeStatus>>,
    lives: &watch::Receiver<Lives>,
    snapshot: &watch::Receiver<Option<SnapshotStatus>>,
) -> serde_json::Value {
    let status = status.borrow();
    let node = status.as_ref();
    serde_json::json!({
        "vm": about.vm,
        "part": about.part,
        "pid": std::process::id(),
        "clock": node.and_then(|node| node.clock.as_deref()),
        "clock_why": node.and_then(|node| node.clock_why.as_deref()),
        "margin_branches": about.margin,
        "protection": about.protection,
        "confinement": about.confinement.name(),
        "lives": *lives.borrow(),
        "snapshot": *snapshot.borrow(),
        "node": node,
    })
}

fn conclude(end: NodeEnd) -> Result<(), Failure> {
    let reason = match end {
        NodeEnd::Ended(EndReason::Crash) => {
            let error = anyhow::anyhow!("the guest crashed (triple fault, or halted for good)");
            return Err(Failure::new(Exit::Failed, error).remedy("look at the guest's console"));
        }
        NodeEnd::Ended(reason) => {
            tracing::info!(?reason, "the guest ended");
            return Ok(());
        }
        NodeEnd::Halted(reason) => reason,
    };
    let (exit, remedy) = match &reason {
        HaltReason::Stopped => {
            tracing::info!("stopped");
            return Ok(());
        }
        HaltReason::HandedOver => {
            tracing::info!("the guest was handed over to the backup");
            return Ok(());
        }
        HaltReason::Refused { .. } => (
            Exit::Refused,
            "the guest belongs to that holder; `understudy arbiter show` tells the generation",
        ),
        HaltReason::OlderGeneration { .. } => (
            Exit::Refused,
            "`understudy arbiter show` tells the generation; if the arbiter was made anew on purpose, remove the \
             file .generation beside the control socket",
        ),
        HaltReason::PeerRefused { .. } => (
            Exit::Refused,
            "make both hosts the same: one file, the same images",
        ),
        HaltReason::Diverged(_) => (
            Exit::Diverged,
            "keep the logs of both sides; `understudy standby` makes a new backup of the running guest",
        ),
        HaltReason::NothingReceived => (Exit::Unreachable, "start the pair again"),
        HaltReason::HostFailed(_) => (Exit::Failed, "see the message"),
    };
    Err(Failure::new(exit, reason).remedy(remedy))
}

/// Which clocks this side can run on, and how it lands (with a margin of 0 without a
/// counter). The branch clock is proven on this host each time, which takes about a second.
fn clocks_of(choice: ClockChoice) -> Result<(ClockOffer, LandingMethod), Failure> {
    let no_landing = LandingMethod::default();
    match choice {
        ClockChoice::Exits => Ok((ClockOffer::Only(ClockKind::Exits), no_landing)),
        ClockChoice::Branches => {
            let landing = branch_clock()?;
            Ok((ClockOffer::Only(ClockKind::Branches), landing))
        }
        ClockChoice::Auto => match doctor::branch_clock() {
            Ok(landing) => Ok((ClockOffer::Either, landing)),
            Err(why) => {
                tracing::info!(%why, "the branch clock cannot be trusted here");
                Ok((ClockOffer::no_counter(&why), no_landing))
            }
        },
    }
}

/// How this host lands; a failure that says what to do when it cannot.
pub(super) fn branch_clock() -> Result<LandingMethod, Failure> {
    doctor::branch_clock().map_err(|why| {
        let error = anyhow::anyhow!("the branch clock cannot be trusted on this host: {why}");
        Failure::new(Exit::HostUnfit, error)
            .remedy("`understudy doctor` has the details; set [clock] kind = \"exits\" or \"auto\"")
    })
}

/// The host's name and a random number. A process number alone is not enough: a host that was
/// restarted gives the same numbers again, and the arbiter would take the new process for the old.
pub(super) fn holder_name() -> Result<String, Failure> {
    let mut random = [0; 8];
    std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random))?;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Ok(format!(
        "{}.{:016x}",
        plain_host_name(&host),
        u64::from_le_bytes(random)
    ))
}

fn plain_host_name(host: &str) -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let name: String = host.chars().filter(plain).take(HOST_BYTES_MAX).collect();
    if name.is_empty() { "host".into() } else { name }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        let remedy = match &error {
            ControlError::InUse { .. } => "`understudy status` shows it; stop it first",
            ControlError::NotASocket { .. } => "move it away, or give another [control] socket",
            ControlError::Io { .. } => "give a [control] socket in a directory that can be written",
        };
        Self::new(Exit::Failed, error).remedy(remedy)
    }
}

/// A snapshot that cannot be read, or a log that has no place to make one.
fn snapshot_failure(error: RuntimeError) -> Failure {
    let (exit, remedy) = match &error {
        RuntimeError::Snapshot {
            source: SnapshotError::Io { .. },
            ..
        } => (
            Exit::Failed,
            "see that the file can be read or written there",
        ),
        RuntimeError::Snapshot { .. } => (
            Exit::Damaged,
            "make another with `understudy snapshot` or `understudy replay --save`",
        ),
        _ => (
            Exit::Failed,
            "record with [verify] settle_ms, or name an earlier place with --until",
        ),
    };
    Failure::new(exit, error).remedy(remedy)
}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Self {
        use vmm::kvm::KvmError;
        let unfit = "`understudy doctor` says what this host lacks";
        match error {
            RuntimeError::Config(error) => error.into(),
            RuntimeError::Log(error) => error.into(),
            RuntimeError::Kvm(error) | RuntimeError::Guest(GuestError::Kvm(error)) => {
                let exit = match error {
                    KvmError::Open(_) | KvmError::Missing(_) | KvmError::Cpu(_) => Exit::HostUnfit,
                    _ => Exit::Failed,
                };
                Self::new(exit, error).remedy(unfit)
            }
            error @ RuntimeError::Guest(GuestError::NoCounter) => {
                Self::new(Exit::HostUnfit, error).remedy("set [clock] kind = \"exits\"")
            }
            error @ RuntimeError::Guest(GuestError::OtherGuest { .. }) => {
                Self::new(Exit::Refused, error).remedy("use the files that the log was made with")
            }
            error @ RuntimeError::SnapshotClock { .. } => Self::new(Exit::Refused, error).remedy(
                "set [clock] kind to that clock; for `branches` on a host whose counter `understudy doctor` proves",
            ),
            error @ RuntimeError::NoStart(_) => Self::new(Exit::Failed, error)
                .remedy("give the snapshot that the log goes on from, with --from"),
            error @ (RuntimeError::Snapshot { .. } | RuntimeError::NothingSettled) => {
                snapshot_failure(error)
            }
            error @ RuntimeError::Guest(_) => Self::new(Exit::Configuration, error),
            RuntimeError::Confine(error) => error.into(),
            RuntimeError::Tls(error) => error.into(),
            error @ RuntimeError::Mark(_) => Self::new(Exit::Failed, error).remedy(
                "see whether another process runs this guest here; a damaged file can be removed",
            ),
            error @ RuntimeError::Role { .. } => Self::new(Exit::Configuration, error)
                .remedy("use the certificate of this host, or add its name to the list"),
            error => Self::new(Exit::Failed, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_become_holders() {
        assert_eq!(plain_host_name("host-a\n"), "host-a");
        assert_eq!(plain_host_name(" \"\n"), "host");
        let name = format!("{}.4194304", holder_name().unwrap());
        assert!(arbiter::register::Holder::new(name).is_ok());
        assert_ne!(holder_name().unwrap(), holder_name().unwrap());
    }

    #[test]
    fn ends_have_their_status() {
        let exit = |end| conclude(end).map_or_else(|failure| failure.exit, |()| Exit::Done);
        assert_eq!(exit(NodeEnd::Ended(EndReason::PowerOff)), Exit::Done);
        assert_eq!(exit(NodeEnd::Ended(EndReason::Crash)), Exit::Failed);
        assert_eq!(exit(NodeEnd::Halted(HaltReason::Stopped)), Exit::Done);
        assert_eq!(exit(NodeEnd::Halted(HaltReason::HandedOver)), Exit::Done);
        let refused = HaltReason::Refused {
            generation: 2,
            holder: "b".into(),
        };
        assert_eq!(exit(NodeEnd::Halted(refused)), Exit::Refused);
        assert_eq!(
            exit(NodeEnd::Halted(HaltReason::Diverged("x".into()))),
            Exit::Diverged
        );
    }
}
