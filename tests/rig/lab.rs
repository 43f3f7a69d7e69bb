//! A whole lab: two hosts, the log link between them, the service network, the arbiter; a third host, for
//! drills that ask for it.
//!
//! A lab outlives many drills: [`Lab::reset`] brings it back to two booted, idle hosts, an arbiter
//! that has never heard of any virtual machine, and a whole network; only hosts that a drill killed
//! boot again, and the third one is off.

use crate::arbiter::Arbiter;
use crate::host::{BOOT_LIMIT, Counters, Host, STATE_DIR};
use crate::link::{Link, Port, TapPort};
use crate::netns::{Network, address};
use crate::pair::PairOptions;
use crate::prepare::Prepared;
use anyhow::Result;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

mod emulated;
mod namespaces;

/// A host and the link's port to it.
type Connected = (Box<dyn Host>, Arc<dyn Port>);

/// What hosts are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKind {
    /// QEMU processes with their own Linux.
    Emulated,
    /// Parts of this machine, whose KVM is fit.
    Namespaces,
}

impl HostKind {
    /// The name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Emulated => "lab",
            Self::Namespaces => "kvm",
        }
    }
}

/// Where the product is in a host.
pub const UNDERSTUDY: &str = "/run/host/understudy";

/// A busybox with all its applets, in a host.
pub const BUSYBOX: &str = "/run/host/busybox";

/// Where the guest's kernel is in a host.
pub const GUEST_KERNEL: &str = "/run/host/guest-kernel";

/// Where the guest's initramfs is in a host.
pub const GUEST_INITRAMFS: &str = "/run/host/guest-initramfs";

/// A host. The names say who starts in which role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Starts as the primary.
    Primary,
    /// Starts as the backup.
    Backup,
    /// The third host: off, until a drill asks for it ([`Lab::power_on_spare`]).
    Spare,
}

impl Side {
    /// The two that every lab has.
    pub const BOTH: [Self; 2] = [Self::Primary, Self::Backup];

    /// Those two and the third host.
    pub const ALL: [Self; 3] = [Self::Primary, Self::Backup, Self::Spare];

    /// The host's name, also the product's subcommand.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
            Self::Spare => "spare",
        }
    }

    /// The other one of the two that every lab has; the spare host is nobody's other, and is its own.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Primary => Self::Backup,
            Self::Backup => Self::Primary,
            Self::Spare => Self::Spare,
        }
    }

    /// On the service network.
    #[must_use]
    pub const fn address(self) -> &'static str {
        match self {
            Self::Primary => address::PRIMARY,
            Self::Backup => address::BACKUP,
            Self::Spare => address::SPARE,
        }
    }

    /// Where the logging channel reaches it: on the log link, or, for the host that is not on it, on the
    /// service network.
    #[must_use]
    pub const fn log_address(self) -> &'static str {
        match self {
            Self::Primary => address::PRIMARY_LOG,
            Self::Backup => address::BACKUP_LOG,
            Self::Spare => address::SPARE,
        }
    }

    /// Locally administered, so that no real interface has it.
    fn mac(self, interface: u8) -> String {
        let host = match self {
            Self::Primary => 1,
            Self::Backup => 2,
            Self::Spare => 3,
        };
        format!("02:75:73:00:{host:02x}:{interface:02x}")
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The lab. Everything in it ends with this value.
#[derive(Debug)]
pub struct Lab {
    /// The service network.
    pub network: Network,
    /// The log link.
    pub link: Link,
    /// The link between the service network, where both hosts are, and the arbiter: the arbiter is in
    /// the place of the backup.
    pub arbiter_link: Link,
    /// The arbiter; not started.
    pub arbiter: Arbiter,
    kind: HostKind,
    /// The guest's kernel here, with its symbols.
    guest_kernel: PathBuf,
    clock: String,
    confine: String,
    primary: Box<dyn Host>,
    backup: Box<dyn Host>,
    spare: Box<dyn Host>,
    /// Whether the spare host has been on since the last reset.
    spare_used: bool,
}

impl Lab {
    /// Builds the network, starts both hosts and waits until both have booted.
    ///
    /// # Errors
    /// When anything of it fails.
    pub fn start(prepared: &Prepared) -> Result<Self> {
        Self::start_with(prepared, HOST_MEMORY_MIB)
    }

    /// [`Lab::start`] with emulated hosts of so much memory.
    ///
    /// # Errors
    /// When anything of it fails.
    pub fn start_with(prepared: &Prepared, memory_mib: u32) -> Result<Self> {
        let network = Network::create()?;
        let arbiter_link = arbiter_link(&network)?;
        let programs = &prepared.programs;
        let arbiter = Arbiter::new(&programs.understudy, &network.run_dir().join("arbiter"))?;
        if prepared.hosts == HostKind::Emulated {
            emulated::prepare(&network, prepared)?;
        }
        let of_pair = |side| match prepared.hosts {
            HostKind::Emulated => emulated::of_pair(&network, prepared, memory_mib, side),
            HostKind::Namespaces => namespaces::of_pair(&network, prepared, side),
        };
        let (primary, primary_port) = of_pair(Side::Primary)?;
        let (backup, backup_port) = of_pair(Side::Backup)?;
        let spare = match prepared.hosts {
            HostKind::Emulated => emulated::one(&network, prepared, memory_mib, Side::Spare)?,
            HostKind::Namespaces => namespaces::one(&network, prepared, Side::Spare)?,
        };
        let link = Link::new(primary_port, backup_port, LINK_SEED)?;
        let mut lab = Self {
            network,
            link,
            arbiter_link,
            arbiter,
            kind: prepared.hosts,
            guest_kernel: prepared.images.guest_kernel.clone(),
            clock: PairOptions::default().clock,
            confine: PairOptions::default().confine,
            primary,
            backup,
            spare,
            spare_used: false,
        };
        lab.power_on_both()?;
        Ok(lab)
    }

    /// What the hosts are.
    #[must_use]
    pub const fn kind(&self) -> HostKind {
        self.kind
    }

    /// The guest's kernel on this machine, with its symbols.
    #[must_use]
    pub fn guest_kernel(&self) -> &Path {
        &self.guest_kernel
    }

    /// Has pairs run on this execution clock (`exits`, `branches` or `auto`) from now on.
    pub fn use_clock(&mut self, clock: &str) {
        clock.clone_into(&mut self.clock);
    }

    /// Has the sides' system calls judged so (`enforced`, `logged` or `off`) from now on.
    pub fn use_confinement(&mut self, confine: &str) {
        confine.clone_into(&mut self.confine);
    }

    /// How a pair is set up in this lab if nothing else is asked for.
    #[must_use]
    pub fn options(&self) -> PairOptions {
        PairOptions {
            clock: self.clock.clone(),
            confine: self.confine.clone(),
            ..PairOptions::default()
        }
    }

    /// A host.
    #[must_use]
    pub fn host(&self, side: Side) -> &dyn Host {
        match side {
            Side::Primary => &*self.primary,
            Side::Backup => &*self.backup,
            Side::Spare => &*self.spare,
        }
    }

    /// A host, to kill or boot it.
    pub fn host_mut(&mut self, side: Side) -> &mut dyn Host {
        match side {
            Side::Primary => &mut *self.primary,
            Side::Backup => &mut *self.backup,
            Side::Spare => &mut *self.spare,
        }
    }

    /// The hosts that have something to say of the present drill.
    #[must_use]
    pub fn sides(&self) -> Vec<Side> {
        let mut sides = Side::BOTH.to_vec();
        sides.extend(self.spare_used.then_some(Side::Spare));
        sides
    }

    /// Boots the third host, until the next [`Lab::reset`].
    ///
    /// # Errors
    /// When it does not boot.
    pub fn power_on_spare(&mut self) -> Result<()> {
        self.spare.wipe_disk()?;
        self.spare_used = true;
        self.spare.power_on()?;
        self.spare.wait_booted(BOOT_LIMIT).map(drop)
    }

    /// Brings everything back to the beginning.
    ///
    /// # Errors
    /// When a host does not boot or obey.
    pub fn reset(&mut self) -> Result<()> {
        self.arbiter.forget()?;
        self.link.mend();
        self.arbiter_link.mend();
        self.spare.kill();
        self.spare_used = false;
        for side in Side::BOTH {
            self.network.set_connected(&format!("svc-{side}"), true)?;
            let host = self.host_mut(side);
            if let Err(error) = clean(host) {
                // A drill that fails may leave a host that answers nobody; the next drill must not
                // pay for it.
                eprintln!("  {side}: {error:#}; the host is started anew");
                host.kill();
            }
            let unusual = host.counters() != Counters::Usual;
            host.use_counters(Counters::Usual)?;
            if unusual || !host.is_on() {
                host.kill();
                host.wipe_disk()?;
            }
        }
        self.power_on_both()
    }

    /// Starts a host anew with other counters, until the next [`Lab::reset`].
    ///
    /// # Errors
    /// When it cannot have them, or does not boot.
    pub fn reboot_with(&mut self, side: Side, counters: Counters) -> Result<()> {
        let host = self.host_mut(side);
        host.kill();
        host.use_counters(counters)?;
        host.wipe_disk()?;
        self.power_on_both()
    }

    /// Starts all three hosts anew with copies of the directory `from` on their disks.
    ///
    /// # Errors
    /// When they have no disks, or do not boot.
    pub fn reboot_filled(&mut self, from: &Path) -> Result<()> {
        self.spare_used = true;
        for side in self.sides() {
            let host = self.host_mut(side);
            host.kill();
            host.fill_disk(from)?;
            host.power_on()?;
        }
        let mut booted = self.sides().into_iter();
        booted.try_for_each(|side| self.host(side).wait_booted(BOOT_LIMIT).map(drop))
    }

    /// What `doctor` says of a host.
    ///
    /// # Errors
    /// When the host does not answer.
    pub fn doctor(&self, side: Side) -> Result<serde_json::Value> {
        let argv = [UNDERSTUDY, "doctor", "--json"];
        let told = self.host(side).agent()?.exec(&argv, DOCTOR_LIMIT)?;
        Ok(serde_json::from_slice(&told.stdout)?)
    }

    /// What `doctor` says of the counters of a host: the margin, or what is wrong.
    ///
    /// # Errors
    /// When the host does not answer.
    pub fn counters_of(&self, side: Side) -> Result<std::result::Result<u64, String>> {
        let report = self.doctor(side)?;
        if let Some(margin) = report["margin_branches"].as_u64() {
            return Ok(Ok(margin));
        }
        let probes = report["counters"].as_array().cloned().unwrap_or_default();
        let failed = probes.iter().find(|probe| probe["verdict"] == "fail");
        let said = failed.map_or_else(
            || "no probe failed".to_owned(),
            |probe| {
                let text = |key: &str| probe[key].as_str().unwrap_or_default().to_owned();
                format!("{}: {}", text("name"), text("evidence"))
            },
        );
        Ok(Err(said))
    }

    /// Boots whichever host is off; both at once if need be.
    fn power_on_both(&mut self) -> Result<()> {
        for side in Side::BOTH {
            if !self.host_mut(side).is_on() {
                self.host_mut(side).power_on()?;
            }
        }
        for side in Side::BOTH {
            self.host(side).wait_booted(BOOT_LIMIT)?;
        }
        Ok(())
    }

    /// Directory for sockets, disks and logs of this run.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        self.network.run_dir()
    }
}

fn arbiter_link(network: &Network) -> Result<Link> {
    let (on_bridge, inside) = ("svc-arbiter", "arbiter");
    let ports = (TapPort::create(on_bridge)?, TapPort::create(inside)?);
    network.join_arbiter(on_bridge, inside)?;
    Link::new(Arc::new(ports.0), Arc::new(ports.1), LINK_SEED)
}

/// Stops what runs in a host that is on, and empties its disk.
fn clean(host: &mut dyn Host) -> Result<()> {
    if !host.is_on() {
        return Ok(());
    }
    host.resume()?;
    host.stop_everything()?;
    let clean = format!("rm -rf {STATE_DIR}/* {GENERATION}");
    host.agent()?
        .exec(&["sh", "-c", &clean], CLEAN_LIMIT)?
        .success()?;
    Ok(())
}

/// Memory of an emulated host: the guest, its image twice over (the files and their copy in the initial file
/// system) and the log.
const HOST_MEMORY_MIB: u32 = 768;

/// Seed of the link's chances; a drill that impairs the link is repeatable as far as frames are.
const LINK_SEED: u64 = 1;

/// Time for all of `doctor`'s probes on an emulated host.
const DOCTOR_LIMIT: Duration = Duration::from_secs(120);

/// What a host remembers of a guest's generations, beside the control socket: a new arbiter begins anew.
const GENERATION: &str = "/run/host/understudy.generation";

/// Time to empty a host's disk.
const CLEAN_LIMIT: Duration = Duration::from_secs(20);
