//! One emulated host: a QEMU process that can be booted, talked to, paused and killed.
//!
//! The emulator runs in a process group of its own; everything of one boot lies in the host's
//! directory: `serial.log` (its console), `emulator.log`, `agent.sock`, and `disk.raw`, the ext4 disk
//! that the host mounts at `/var/lib/understudy`. The disk outlives a kill as a real one outlives a
//! loss of power: what the host's kernel had written back (every tenth of a second) is there.
//!
//! Killing the emulator is the host losing power: nothing inside is told. Stopping it (SIGSTOP) is
//! a host that freezes and may come back.

use crate::agent::Agent;
use crate::images::Images;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where the evidence disk is mounted in a host.
pub const STATE_DIR: &str = "/var/lib/understudy";

/// Time for a host to boot; it takes about 5 s on an idle machine.
pub const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// Size of the evidence disk; the file is sparse.
const DISK_MIB: u64 = 512;

/// The processor that the lab emulates: AMD with SVM, and performance counters where the emulator
/// is the patched one.
const CPU_PATCHED: &str = "EPYC,+svm,+npt,+perfctr-core";
const CPU_STOCK: &str = "EPYC,+svm,+npt";

/// Options of a host's kernel. Without `no_timer_check` a host that gets little processor time while
/// it boots counts too few timer ticks and panics in setup_IO_APIC; without `tsc=reliable` it may
/// later take its clock for unstable for the same reason.
const KERNEL_OPTIONS: &str =
    "console=ttyS0 quiet panic=-1 nmi_watchdog=0 mitigations=off no_timer_check tsc=reliable";

/// A network interface of a host, in the order eth0, eth1.
#[derive(Debug, Clone)]
pub enum Nic {
    /// Attached to a TAP device of the namespace that the emulator runs in.
    Tap {
        /// The TAP's name.
        name: String,
        /// The interface's MAC address.
        mac: String,
    },
    /// Frames travel as datagrams between two unix sockets; a [`crate::link::Link`] has the far end.
    Datagram {
        /// The emulator's socket.
        local: PathBuf,
        /// The link's socket.
        remote: PathBuf,
        /// The interface's MAC address.
        mac: String,
    },
}

/// What a host is made of.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Its name, such as `primary`: also its directory and hostname.
    pub name: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The initial file system (see [`crate::initramfs`]).
    pub initramfs: PathBuf,
    /// Directory for everything of this host.
    pub dir: PathBuf,
    /// Network interfaces.
    pub nics: Vec<Nic>,
    /// Address with prefix length on the service network, if it is connected.
    pub address: Option<String>,
    /// Address with prefix length on the log link, if it is connected.
    pub log_address: Option<String>,
}

/// A host; it dies with this value.
#[derive(Debug)]
pub struct Host {
    config: HostConfig,
    images: Images,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    emulator: Child,
    agent: Agent,
    since: Instant,
}

impl Host {
    /// Prepares a host (its directory and an empty disk) without starting it.
    ///
    /// # Errors
    /// When the directory or the disk cannot be made.
    pub fn new(config: HostConfig, images: &Images) -> Result<Self> {
        std::fs::create_dir_all(&config.dir)?;
        let host = Self {
            config,
            images: images.clone(),
            running: None,
        };
        host.wipe_disk()?;
        Ok(host)
    }

    /// The host's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The host's directory on this machine.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.config.dir
    }

    /// Makes the evidence disk empty again. Only while the host is off.
    ///
    /// # Errors
    /// When `mke2fs` fails or is missing (package e2fsprogs).
    pub fn wipe_disk(&self) -> Result<()> {
        let disk = self.disk();
        File::create(&disk)?.set_len(DISK_MIB << 20)?;
        run_tool(
            Command::new(tool("mke2fs"))
                .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal"])
                .args(["-E", "lazy_itable_init=1"])
                .arg(disk),
        )
    }

    /// Starts the emulator; the host then boots by itself. Returns at once.
    ///
    /// # Errors
    /// When it runs already, or the emulator cannot be started.
    pub fn power_on(&mut self) -> Result<()> {
        if self.running.is_some() {
            bail!("{} is on already", self.config.name);
        }
        let socket = self.config.dir.join("agent.sock");
        let _ = std::fs::remove_file(&socket);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.config.dir.join("emulator.log"))?;
        let mut command = Command::new(&self.images.emulator);
        command.args(self.arguments(&socket));
        let mut emulator = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", self.images.emulator.display()))?;
        let since = crate::wait::now();
        let agent = match connect_when_listening(&socket, &mut emulator) {
            Ok(agent) => agent,
            Err(error) => {
                let _ = emulator.kill();
                let _ = emulator.wait();
                return Err(error.context(self.last_words("emulator.log")));
            }
        };
        self.running = Some(Running {
            emulator,
            agent,
            since,
        });
        Ok(())
    }

    /// Waits until the host has booted and its agent answers; returns how long that took.
    ///
    /// # Errors
    /// When `limit` passes first or the host dies; the message holds the end of its console.
    pub fn wait_booted(&self, limit: Duration) -> Result<Duration> {
        let running = self.running()?;
        let left = limit.saturating_sub(running.since.elapsed());
        running
            .agent
            .wait_ready(left)
            .with_context(|| format!("{} did not boot", self.config.name))
            .with_context(|| self.last_words("serial.log"))?;
        Ok(running.since.elapsed())
    }

    /// [`Host::power_on`] and [`Host::wait_booted`].
    ///
    /// # Errors
    /// As both.
    pub fn boot(&mut self, limit: Duration) -> Result<Duration> {
        self.power_on()?;
        self.wait_booted(limit)
    }

    /// The agent, for commands and files.
    ///
    /// # Errors
    /// When the host is off.
    pub fn agent(&self) -> Result<&Agent> {
        Ok(&self.running()?.agent)
    }

    /// Whether the emulator runs (a paused host counts).
    #[must_use]
    pub fn is_on(&mut self) -> bool {
        match &mut self.running {
            None => false,
            Some(running) => matches!(running.emulator.try_wait(), Ok(None)),
        }
    }

    /// Stops the host where it is: to everybody else it is silent.
    ///
    /// # Errors
    /// When the host is off.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets a paused host go on as if no time had passed.
    ///
    /// # Errors
    /// When the host is off.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// The host loses power. Harmless when it is off.
    pub fn kill(&mut self) {
        let _ = self.signal(Signal::KILL);
        if let Some(mut running) = self.running.take() {
            let _ = running.emulator.wait();
        }
    }

    /// Copies the evidence disk's files to `to`; works only while the host is off (killed).
    ///
    /// # Errors
    /// When the host is on, or `debugfs` fails or is missing (package e2fsprogs).
    pub fn read_disk(&mut self, to: &Path) -> Result<()> {
        if self.is_on() {
            bail!(
                "{} is on: its disk may change while it is read",
                self.config.name
            );
        }
        std::fs::create_dir_all(to)?;
        let request = format!("rdump / {}", to.display());
        run_tool(
            Command::new(tool("debugfs"))
                .args(["-R", &request])
                .arg(self.disk()),
        )
    }

    /// Copies the state directory of a running host to `to`.
    ///
    /// # Errors
    /// When the host is off or its files cannot be read.
    pub fn read_state(&self, to: &Path) -> Result<()> {
        std::fs::create_dir_all(to)?;
        let limit = Duration::from_secs(30);
        let archive = self
            .agent()?
            .exec(&["tar", "-c", "-C", STATE_DIR, "."], limit)?
            .success()?;
        let file = to.join("state.tar");
        std::fs::write(&file, archive.stdout)?;
        run_tool(Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(to))?;
        std::fs::remove_file(file)?;
        Ok(())
    }

    fn running(&self) -> Result<&Running> {
        self.running
            .as_ref()
            .with_context(|| format!("{} is off", self.config.name))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.running()?.emulator.id())
            .ok()
            .and_then(Pid::from_raw);
        Ok(kill_process_group(id.context("process id")?, signal)?)
    }

    fn disk(&self) -> PathBuf {
        self.config.dir.join("disk.raw")
    }

    fn arguments(&self, socket: &Path) -> Vec<String> {
        let config = &self.config;
        let mut append = format!("{KERNEL_OPTIONS} rig.name={}", config.name);
        for (key, value) in [("address", &config.address), ("log", &config.log_address)] {
            if let Some(value) = value {
                append.push_str(&format!(" rig.{key}={value}"));
            }
        }
        let cpu = if self.images.emulator_kind == "patched" {
            CPU_PATCHED
        } else {
            CPU_STOCK
        };
        let serial = config.dir.join("serial.log");
        let fixed = format!(
            "-accel tcg -cpu {cpu} -M pc -smp 1 -display none -nodefaults -no-reboot \
             -device virtio-serial-pci"
        );
        let mut arguments: Vec<String> = fixed.split_whitespace().map(String::from).collect();
        let mut add = |option: &str, value: String| arguments.extend([option.into(), value]);
        add("-m", config.memory_mib.to_string());
        add("-kernel", self.images.host_kernel.display().to_string());
        add("-initrd", config.initramfs.display().to_string());
        add("-append", append);
        add(
            "-chardev",
            format!("file,id=serial,append=on,path={}", serial.display()),
        );
        add("-serial", "chardev:serial".into());
        add(
            "-chardev",
            format!(
                "socket,id=agent,server=on,wait=off,path={}",
                socket.display()
            ),
        );
        add(
            "-device",
            format!("virtserialport,chardev=agent,name={}", rig_agent::PORT_NAME),
        );
        let disk = self.disk();
        add(
            "-drive",
            format!(
                "id=disk,if=none,format=raw,cache=unsafe,file={}",
                disk.display()
            ),
        );
        add("-device", "virtio-blk-pci,drive=disk".into());
        for (number, nic) in config.nics.iter().enumerate() {
            let (backend, mac) = nic_backend(number, nic);
            add("-netdev", backend);
            add(
                "-device",
                format!("virtio-net-pci,netdev=nic{number},mac={mac},romfile="),
            );
        }
        arguments
    }

    /// The end of one of the host's logs, for an error message.
    fn last_words(&self, log: &str) -> String {
        let file = self.config.dir.join(log);
        let text = std::fs::read(&file).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(12)..].join("\n  ");
        format!("the end of {}:\n  {end}", file.display())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
    }
}

fn nic_backend(number: usize, nic: &Nic) -> (String, &str) {
    match nic {
        Nic::Tap { name, mac } => (
            format!("tap,id=nic{number},ifname={name},script=no,downscript=no"),
            mac,
        ),
        Nic::Datagram { local, remote, mac } => (
            format!(
                "dgram,id=nic{number},local.type=unix,local.path={},remote.type=unix,remote.path={}",
                local.display(),
                remote.display()
            ),
            mac,
        ),
    }
}

/// The emulator makes its socket soon after it starts, or ends with a message.
fn connect_when_listening(socket: &Path, emulator: &mut Child) -> Result<Agent> {
    const TRIES_MAX: u32 = 500;
    for _ in 0..TRIES_MAX {
        if let Ok(agent) = Agent::connect(socket) {
            return Ok(agent);
        }
        if let Some(status) = emulator.try_wait()? {
            bail!("the emulator ended at once: {status}");
        }
        crate::wait::pause(Duration::from_millis(20));
    }
    bail!("the emulator does not listen at {}", socket.display())
}

/// Debian keeps file system tools in /sbin, which is not on everybody's path.
fn tool(name: &str) -> PathBuf {
    ["/usr/sbin", "/sbin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|file| file.exists())
        .unwrap_or_else(|| PathBuf::from(name))
}

fn run_tool(command: &mut Command) -> Result<()> {
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
