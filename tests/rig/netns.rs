//! The lab's network, inside the rig's own network namespace.
//!
//! ```text
//!   primary host ── svc-primary ┐                 ┌ crate::link ── namespace `arbiter`  10.77.0.3
//!   backup host  ── svc-backup  ┼── bridge svc ───┴ veth ── namespace `client`   10.77.0.4
//!   spare host   ── svc-spare   ┘
//!        (in each host: br0 = eth0 + tap0 of the guest, 10.77.0.1, .2 and .5; the guest is 10.77.0.10)
//!   primary host eth1 ──────── crate::link ──────── eth1 backup host     10.78.0.1, 10.78.0.2
//! ```
//!
//! Nothing here is removed by hand: it goes with the namespace ([`crate::isolation`]).

use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Addresses of the lab.
pub mod address {
    /// The primary's host on the service network.
    pub const PRIMARY: &str = "10.77.0.1";
    /// The backup's host on the service network.
    pub const BACKUP: &str = "10.77.0.2";
    /// The arbiter.
    pub const ARBITER: &str = "10.77.0.3";
    /// The rig itself, on the service bridge.
    pub const RIG: &str = "10.77.0.254";
    /// The spare host, which is on the service network only.
    pub const SPARE: &str = "10.77.0.5";
    /// The client.
    pub const CLIENT: &str = "10.77.0.4";
    /// The replicated guest.
    pub const GUEST: &str = "10.77.0.10";
    /// The primary's host on the log link.
    pub const PRIMARY_LOG: &str = "10.78.0.1";
    /// The backup's host on the log link.
    pub const BACKUP_LOG: &str = "10.78.0.2";
    /// Length of every network prefix.
    pub const PREFIX: &str = "24";
}

/// Where the rig keeps everything of a run; a tmpfs of its own.
const RUN_DIR: &str = "/run/rig";

/// Frames that may wait at a unix datagram socket. The kernel's default of 10 would make the log
/// link lose frames whenever the machine is busy, which no real link does.
const DATAGRAM_QUEUE: &str = "512";

/// The network of one lab.
#[derive(Debug)]
pub struct Network {
    run_dir: PathBuf,
}

impl Network {
    /// Builds bridge, namespaces and TAP devices. Only in the inside process.
    ///
    /// # Errors
    /// When `ip` (package iproute2) is missing or refuses.
    pub fn create() -> Result<Self> {
        if !crate::isolation::is_inside() {
            bail!("the network is built only in the rig's own namespaces");
        }
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=755", "rig", "/run"]))?;
        std::fs::create_dir_all("/run/netns")?;
        std::fs::create_dir_all(RUN_DIR)?;
        std::fs::write("/proc/sys/net/unix/max_dgram_qlen", DATAGRAM_QUEUE)
            .context("cannot lengthen the datagram queue")?;
        ip_batch(&format!(
            "link set lo up\n\
             link add svc type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n\
             addr add {}/{} dev svc\n\
             link set svc up\n",
            address::RIG,
            address::PREFIX
        ))?;
        for name in ["arbiter", "client"] {
            run(Command::new("ip").args(["netns", "add", name]))?;
        }
        ip_batch(
            "link add svc-client type veth peer name eth0 netns client\n\
             link set svc-client master svc up\n",
        )?;
        address_of("client", address::CLIENT)?;
        Ok(Self {
            run_dir: RUN_DIR.into(),
        })
    }

    /// Joins the namespace `arbiter` to the service bridge by two TAP devices, between which the rig
    /// carries the frames: `bridge_tap` stays on the bridge, `arbiter_tap` becomes the arbiter's `eth0`.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn join_arbiter(&self, bridge_tap: &str, arbiter_tap: &str) -> Result<()> {
        ip_batch(&format!(
            "link set {bridge_tap} master svc up\n\
             link set {arbiter_tap} netns arbiter name eth0\n"
        ))?;
        address_of("arbiter", address::ARBITER)
    }

    /// Makes a TAP device on the service bridge for a host.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn add_tap(&self, host: &str) -> Result<String> {
        let name = format!("svc-{host}");
        ip_batch(&format!(
            "tuntap add dev {name} mode tap\nlink set {name} master svc up\n"
        ))?;
        Ok(name)
    }

    /// Makes the namespace `host-NAME` for a host that is a part of this machine: `eth0` on the
    /// service bridge, joined to `tap0` by `br0`.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn add_host(&self, name: &str, service: &str) -> Result<()> {
        let namespace = format!("host-{name}");
        run(Command::new("ip").args(["netns", "add", &namespace]))?;
        ip_batch(&format!(
            "link add svc-{name} type veth peer name eth0 netns {namespace}\n\
             link set svc-{name} master svc up\n"
        ))?;
        let prefix = address::PREFIX;
        Namespace::named(&namespace).ip_batch(&format!(
            "link set lo up\n\
             link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n\
             link set eth0 master br0 up type bridge_slave learning off\n\
             tuntap add dev tap0 mode tap\n\
             link set tap0 master br0 up\n\
             addr add {service}/{prefix} dev br0\n\
             link set br0 up\n"
        ))
    }

    /// Moves the device `log_tap` into a host of [`Network::add_host`], as its `eth1`.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn add_log_link(&self, name: &str, log_tap: &str, log: &str) -> Result<()> {
        let namespace = format!("host-{name}");
        ip_batch(&format!("link set {log_tap} netns {namespace} name eth1\n"))?;
        Namespace::named(&namespace).ip_batch(&format!(
            "addr add {log}/{} dev eth1\nlink set eth1 up\n",
            address::PREFIX
        ))
    }

    /// Connects or disconnects one device of the service bridge (`svc-primary`, `svc-arbiter`, ...).
    ///
    /// # Errors
    /// When there is no such device.
    pub fn set_connected(&self, device: &str, connected: bool) -> Result<()> {
        let state = if connected { "up" } else { "down" };
        ip_batch(&format!("link set {device} {state}\n"))
    }

    /// Directory for sockets, disks and logs of this run.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }
}

/// A named network namespace.
#[derive(Debug, Clone)]
pub struct Namespace {
    path: PathBuf,
}

impl Namespace {
    /// The namespace called `name`.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            path: Path::new("/run/netns").join(name),
        }
    }

    /// A command that will run `program` in this namespace.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        let mut option = std::ffi::OsString::from("--net=");
        option.push(&self.path);
        command.arg(option).arg("--").arg(program);
        command
    }

    fn ip_batch(&self, script: &str) -> Result<()> {
        feed(self.command(Path::new("ip")).args(["-batch", "-"]), script)
    }
}

/// Gives `eth0` of a namespace its address.
fn address_of(name: &str, address: &str) -> Result<()> {
    Namespace::named(name).ip_batch(&format!(
        "link set lo up\naddr add {address}/{} dev eth0\nlink set eth0 up\n",
        address::PREFIX
    ))
}

fn ip_batch(script: &str) -> Result<()> {
    feed(Command::new("ip").args(["-batch", "-"]), script)
}

fn feed(command: &mut Command, input: &str) -> Result<()> {
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {what}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{what}: {}given:\n{input}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let what = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {what}"))?;
    if !output.status.success() {
        bail!(
            "{what}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
