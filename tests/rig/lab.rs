//! A whole lab: two hosts, the log link between them, the service network, the arbiter.
//!
//! A lab outlives many drills: [`Lab::reset`] brings it back to two booted, idle hosts, an arbiter
//! that has never heard of any virtual machine, and a whole network; only hosts that a drill killed
//! boot again.

use crate::arbiter::Arbiter;
use crate::host::{BOOT_LIMIT, Host, HostConfig, Nic, STATE_DIR};
use crate::images::Images;
use crate::initramfs::{self, Contents};
use crate::link::{DatagramPort, Link};
use crate::netns::{Network, address};
use crate::programs::Programs;
use anyhow::Result;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where the product is in a host.
pub const UNDERSTUDY: &str = "/bin/understudy";

/// Where the guest's kernel is in a host.
pub const GUEST_KERNEL: &str = "/images/guest-kernel";

/// Where the guest's initramfs is in a host.
pub const GUEST_INITRAMFS: &str = "/images/guest-initramfs";

/// Memory of a host: the guest, its image twice over (the files and their copy in the initial file
/// system) and the log.
const HOST_MEMORY_MIB: u32 = 768;

/// One of the two hosts. The names say who starts in which role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Starts as the primary.
    Primary,
    /// Starts as the backup.
    Backup,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Primary, Self::Backup];

    /// The host's name, also the product's subcommand.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
        }
    }

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Primary => Self::Backup,
            Self::Backup => Self::Primary,
        }
    }

    const fn addresses(self) -> (&'static str, &'static str) {
        match self {
            Self::Primary => (address::PRIMARY, address::PRIMARY_LOG),
            Self::Backup => (address::BACKUP, address::BACKUP_LOG),
        }
    }

    /// Locally administered, so that no real interface has it.
    fn mac(self, interface: u8) -> String {
        let host = match self {
            Self::Primary => 1,
            Self::Backup => 2,
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
    /// The arbiter; not started.
    pub arbiter: Arbiter,
    primary: Host,
    backup: Host,
}

impl Lab {
    /// Builds the network, starts both hosts and waits until both have booted.
    ///
    /// # Errors
    /// When anything of it fails.
    pub fn start(images: &Images, programs: &Programs) -> Result<Self> {
        let network = Network::create()?;
        let run_dir = network.run_dir().to_owned();
        let initramfs = run_dir.join("host.cpio");
        build_initramfs(&initramfs, images, programs)?;
        let mut ports = Vec::new();
        let mut hosts = Vec::new();
        for side in Side::BOTH {
            let dir = run_dir.join(side.name());
            std::fs::create_dir_all(&dir)?;
            let (nic, ours) = (dir.join("log-nic.sock"), dir.join("log-link.sock"));
            ports.push(Arc::new(DatagramPort::bind(&ours, &nic)?));
            let tap = network.add_tap(side.name())?;
            let (service, log) = side.addresses();
            let config = HostConfig {
                name: side.name().into(),
                memory_mib: HOST_MEMORY_MIB,
                initramfs: initramfs.clone(),
                dir,
                nics: vec![
                    Nic::Tap {
                        name: tap,
                        mac: side.mac(0),
                    },
                    Nic::Datagram {
                        local: nic,
                        remote: ours,
                        mac: side.mac(1),
                    },
                ],
                address: Some(format!("{service}/{}", address::PREFIX)),
                log_address: Some(format!("{log}/{}", address::PREFIX)),
            };
            hosts.push(Host::new(config, images)?);
        }
        let (Some(backup_port), Some(primary_port)) = (ports.pop(), ports.pop()) else {
            anyhow::bail!("two hosts have two ports");
        };
        let (Some(backup), Some(primary)) = (hosts.pop(), hosts.pop()) else {
            anyhow::bail!("a lab has two hosts");
        };
        let link = Link::new(primary_port, backup_port, LINK_SEED)?;
        let arbiter = Arbiter::new(&programs.understudy, &run_dir.join("arbiter"))?;
        let mut lab = Self {
            network,
            link,
            arbiter,
            primary,
            backup,
        };
        lab.power_on_both()?;
        Ok(lab)
    }

    /// A host.
    #[must_use]
    pub const fn host(&self, side: Side) -> &Host {
        match side {
            Side::Primary => &self.primary,
            Side::Backup => &self.backup,
        }
    }

    /// A host, to kill or boot it.
    pub const fn host_mut(&mut self, side: Side) -> &mut Host {
        match side {
            Side::Primary => &mut self.primary,
            Side::Backup => &mut self.backup,
        }
    }

    /// Brings everything back to the beginning.
    ///
    /// # Errors
    /// When a host does not boot or obey.
    pub fn reset(&mut self) -> Result<()> {
        self.arbiter.forget()?;
        self.link.mend();
        for side in Side::BOTH {
            self.network.set_connected(&format!("svc-{side}"), true)?;
            let host = self.host_mut(side);
            if host.is_on() {
                host.resume()?;
                // Everything that a drill started, and then its files.
                let clean = format!("killall -9 understudy witness; rm -rf {STATE_DIR}/*; true");
                host.agent()?
                    .exec(&["sh", "-c", &clean], CLEAN_LIMIT)?
                    .success()?;
            } else {
                host.kill();
                host.wipe_disk()?;
            }
        }
        self.power_on_both()
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

/// Seed of the link's chances; a drill that impairs the link is repeatable as far as frames are.
const LINK_SEED: u64 = 1;

/// Time to stop everything in a host.
const CLEAN_LIMIT: Duration = Duration::from_secs(20);

fn build_initramfs(to: &Path, images: &Images, programs: &Programs) -> Result<()> {
    let files: Vec<(String, PathBuf, bool)> = vec![
        (UNDERSTUDY.into(), programs.understudy.clone(), true),
        (GUEST_KERNEL.into(), images.guest_kernel.clone(), false),
        (
            GUEST_INITRAMFS.into(),
            images.guest_initramfs.clone(),
            false,
        ),
    ];
    let contents = Contents {
        busybox: &images.busybox,
        modules: &images.host_modules,
        agent: &programs.agent,
        files: &files,
    };
    initramfs::build(to, &contents)
}
