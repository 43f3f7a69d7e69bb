//! One emulated host: a QEMU process that can be booted, talked to, paused and killed.
//!
//! The emulator runs in a process group of its own; everything of one boot lies in the host's
//! directory: `serial.log` (its console), `emulator.log`, `agent.sock`, and `disk.raw`, the ext4 disk
//! that the host mounts at [`crate::host::STATE_DIR`]. The disk outlives a kill as a real one outlives a
//! loss of power: what the host's kernel had written back (every tenth of a second) is there.
//!
//! Killing the emulator is the host losing power: nothing inside is told. Stopping it (SIGSTOP) is
//! a host that freezes and may come back.

use crate::agent::Agent;
use crate::host::{Counters, Host, last_words, run_tool, run_tool_as, tool};
use crate::images::Images;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Size of the evidence disk; the file is sparse.
const DISK_MIB: u64 = 512;

/// Processors of a host. Two make the emulator stop for good now and then: with more than one, a host kernel that
/// rewrites its own code (static keys; KVM does at every start of a guest) races with it in QEMU 7.2.
const HOST_PROCESSORS: u32 = 1;

/// The processor that the lab emulates: AMD with SVM, and performance counters where the emulator
/// is the patched one.
const CPU: &str = "EPYC,+svm,+npt";
const CPU_COUNTERS: &str = ",+perfctr-core";

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
pub struct EmulatedConfig {
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
pub struct EmulatedHost {
    config: EmulatedConfig,
    images: Images,
    counters: Counters,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    emulator: Child,
    agent: Agent,
    since: Instant,
}

impl EmulatedHost {
    /// Prepares a host (its directory and an empty disk) without starting it.
    ///
    /// # Errors
    /// When the directory or the disk cannot be made.
    pub fn new(config: EmulatedConfig, images: &Images) -> Result<Self> {
        std::fs::create_dir_all(&config.dir)?;
        let host = Self {
            config,
            images: images.clone(),
            counters: Counters::Usual,
            running: None,
        };
        host.wipe_disk()?;
        Ok(host)
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

    /// An empty file system, or one with what a directory holds.
    fn make_disk(&self, from: Option<&Path>) -> Result<()> {
        let disk = self.disk();
        File::create(&disk)?.set_len(DISK_MIB << 20)?;
        let mut command = Command::new(tool("mke2fs"));
        command.args(["-q", "-F", "-t", "ext4"]);
        command.args(["-E", "lazy_itable_init=1,lazy_journal_init=1"]);
        if let Some(from) = from {
            command.arg("-d").arg(from);
        }
        run_tool(command.arg(disk)).map(drop)
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
        let cpu = cpu(self.images.has_counters(), self.counters);
        let serial = config.dir.join("serial.log");
        let fixed = format!(
            "-accel tcg -cpu {cpu} -M pc -smp {HOST_PROCESSORS} -display none -nodefaults -no-reboot \
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

    fn last_words(&self, log: &str) -> String {
        last_words(&self.config.dir.join(log))
    }
}

impl Host for EmulatedHost {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn dir(&self) -> &Path {
        &self.config.dir
    }

    fn wipe_disk(&self) -> Result<()> {
        self.make_disk(None)
    }

    fn fill_disk(&self, from: &Path) -> Result<()> {
        self.make_disk(Some(from))
    }

    fn power_on(&mut self) -> Result<()> {
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
        let agent = match Agent::connect_when_listening(&socket, &mut emulator) {
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

    fn wait_booted(&self, limit: Duration) -> Result<Duration> {
        let running = self.running()?;
        running
            .agent
            .wait_ready(limit)
            .with_context(|| format!("{} did not boot", self.config.name))
            .with_context(|| self.last_words("serial.log"))?;
        Ok(running.since.elapsed())
    }

    fn agent(&self) -> Result<&Agent> {
        Ok(&self.running()?.agent)
    }

    fn is_on(&mut self) -> bool {
        match &mut self.running {
            None => false,
            Some(running) => matches!(running.emulator.try_wait(), Ok(None)),
        }
    }

    fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn stop_everything(&self) -> Result<()> {
        let all = "killall -9 understudy witness; true";
        self.agent()?
            .exec(&["sh", "-c", all], Duration::from_secs(20))?
            .success()
            .map(|_| ())
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn use_counters(&mut self, counters: Counters) -> Result<()> {
        if matches!(counters, Counters::Skid(_)) && !self.images.has_counters() {
            bail!("Debian's emulator has no counters that could skid");
        }
        self.counters = counters;
        Ok(())
    }

    fn kill(&mut self) {
        let _ = self.signal(Signal::KILL);
        if let Some(mut running) = self.running.take() {
            let _ = running.emulator.wait();
        }
    }

    fn read_disk(&mut self, to: &Path) -> Result<()> {
        if self.is_on() {
            bail!(
                "{} is on: its disk may change while it is read",
                self.config.name
            );
        }
        std::fs::create_dir_all(to)?;
        // Replays the journal, as the next boot would: status 1 says that it did.
        run_tool_as(
            Command::new(tool("e2fsck")).arg("-p").arg(self.disk()),
            &[0, 1],
        )?;
        let request = format!("rdump / {}", to.display());
        let said = run_tool(
            Command::new(tool("debugfs"))
                .args(["-R", &request])
                .arg(self.disk()),
        )?;
        // It copies nothing of a file that it cannot read, says so, and succeeds.
        let mut complaints = said.lines().filter(|line| !line.starts_with("debugfs "));
        match complaints.next() {
            None => Ok(()),
            Some(complaint) => bail!("debugfs {request}: {complaint}"),
        }
    }
}

impl Drop for EmulatedHost {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The `-cpu` of a host.
fn cpu(patched: bool, counters: Counters) -> String {
    match (patched, counters) {
        (true, Counters::Usual) => format!("{CPU}{CPU_COUNTERS}"),
        (true, Counters::Skid(most)) => {
            format!("{CPU}{CPU_COUNTERS},pmu-skid-min=0,pmu-skid-max={most}")
        }
        (true, Counters::Absent) => format!("{CPU},-perfctr-core"),
        (false, _) => CPU.to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_has_the_counters_asked_for() {
        assert_eq!(cpu(true, Counters::Usual), "EPYC,+svm,+npt,+perfctr-core");
        assert_eq!(cpu(true, Counters::Absent), "EPYC,+svm,+npt,-perfctr-core");
        let skidding = cpu(true, Counters::Skid(10));
        assert!(
            skidding.ends_with("pmu-skid-min=0,pmu-skid-max=10"),
            "{skidding}"
        );
        assert_eq!(cpu(false, Counters::Usual), "EPYC,+svm,+npt");
    }
}
