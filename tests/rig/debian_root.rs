//! A clean Debian with Understudy's package installed, as a directory for a host's disk; and its systemd, started
//! in a host.
//!
//! debootstrap makes the Debian once and keeps it in the cache; every run installs the package of
//! `cargo xtask deb` in a copy. In a host systemd runs as the first process of a namespace of its own: the
//! host's kernel, devices and network are those of the lab. Device nodes get the owners and modes that udev
//! gives them on a real host, because udev does not run here.

use crate::agent::{Agent, Finished};
use crate::host::{STATE_DIR, run_tool};
use crate::images::cache_dir;
use crate::programs::checkout;
use crate::wait::until;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const RELEASE: &str = "bookworm";

/// Of Debian, beside its smallest set: what a host that runs guests has.
const PACKAGES: &str = "adduser,udev,systemd,systemd-sysv,iproute2,procps";

const SYSTEMD_LOG: &str = "/run/systemd.out";

/// Time for systemd to start, and for a unit; a few seconds on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(120);
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// Becomes the first process of a Debian on the host's disk.
const START: &str = "set -e
R=$1
mount --make-rprivate /
mount --bind $R $R
mount --rbind /dev $R/dev
mount -t proc proc $R/proc
mount -t sysfs -o ro sysfs $R/sys
mount -t cgroup2 cgroup2 $R/sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs $R/run
chroot $R chgrp kvm /dev/kvm
chmod 660 /dev/kvm
chmod 666 /dev/net/tun
cd $R
mount --move . /
exec chroot . /usr/bin/env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd
";

/// A copy of the clean Debian in `to`, with the package installed as `docs/installing.md` says.
///
/// # Errors
/// When there is no package, or one of Debian's tools fails.
pub fn with_package(to: &Path) -> Result<()> {
    let package = package()?;
    let clean = clean()?;
    run_tool(
        Command::new("cp")
            .args(["-a", "--reflink=auto"])
            .arg(clean)
            .arg(to),
    )?;
    fs::copy(package, to.join("tmp/understudy.deb"))?;
    inside(
        to,
        &["apt-get", "install", "-y", "-q", "/tmp/understudy.deb"],
    )?;
    inside(to, &["understudy", "--version"])?;
    let units = ["primary@web", "backup@web", "standby@web", "arbiter"];
    let units = units.map(|unit| format!("understudy-{unit}.service"));
    let verify = ["systemd-analyze", "verify", "--man=no"].into_iter();
    let said = inside(
        to,
        &verify
            .chain(units.iter().map(String::as_str))
            .collect::<Vec<_>>(),
    )?;
    ensure!(
        !said.contains("understudy"),
        "systemd-analyze finds fault with the units: {said}"
    );
    Ok(())
}

/// The newest package of this checkout.
fn package() -> Result<PathBuf> {
    let dir = checkout()?.join("target/deb");
    let packages = fs::read_dir(&dir).into_iter().flatten().flatten();
    let packages = packages.map(|entry| entry.path());
    packages
        .filter(|path| path.extension().is_some_and(|kind| kind == "deb"))
        .max_by_key(|path| path.metadata().and_then(|about| about.modified()).ok())
        .with_context(|| {
            format!(
                "no package in {}: run `cargo xtask deb` first",
                dir.display()
            )
        })
}

/// A Debian as debootstrap leaves it, in the cache. Made outside the rig's namespaces: there is no way to Debian's
/// archive from inside.
///
/// # Errors
/// When it has to be made and debootstrap fails.
pub fn clean() -> Result<PathBuf> {
    let clean = cache_dir()?.join(format!("debian-{RELEASE}-{}", PACKAGES.replace(',', "-")));
    if clean.is_dir() {
        return Ok(clean);
    }
    crate::progress::note("making a clean Debian (debootstrap; a minute, once)");
    let making = clean.with_extension("making");
    let _ = fs::remove_dir_all(&making);
    fs::create_dir_all(&making)?;
    run_tool(
        Command::new("debootstrap")
            .arg("--variant=minbase")
            .arg(format!("--include={PACKAGES}"))
            .arg(RELEASE)
            .arg(&making),
    )
    .context("debootstrap (Debian's package of that name)")?;
    inside(&making, &["apt-get", "clean"])?;
    fs::rename(&making, &clean)?;
    Ok(clean)
}

/// Runs a program in the Debian below `root`, on this machine; what it wrote to standard error.
///
/// # Errors
/// When it cannot be started or fails.
pub fn inside(root: &Path, argv: &[&str]) -> Result<String> {
    let mut command = Command::new("chroot");
    command.arg(root).args(argv).env_clear();
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    run_tool(&mut command)
}

/// The running systemd of a host.
#[derive(Debug)]
pub struct Debian<'a> {
    agent: &'a Agent,
    first_process: String,
}

impl<'a> Debian<'a> {
    /// Starts it and waits until it takes orders.
    ///
    /// # Errors
    /// When it does not; with what it said.
    pub fn start(agent: &'a Agent) -> Result<Self> {
        let script = "/run/start-debian";
        agent.put(script, 0o755, START.as_bytes())?;
        let argv = ["unshare", "-m", "-p", "-f", "sh", script, STATE_DIR];
        let pid = agent.spawn(&argv, SYSTEMD_LOG)?;
        let children = format!("/proc/{pid}/task/{pid}/children");
        let result = until("systemd to take orders", START_LIMIT, ASK_INTERVAL, || {
            let child = agent.exec(&["cat", &children], START_LIMIT)?.text();
            let debian = Self {
                agent,
                first_process: child.trim().to_owned(),
            };
            let asked = debian.run(&["systemctl", "is-system-running"])?;
            // As long as jobs are left it says "starting".
            let there = ["running", "degraded"].contains(&asked.text().trim());
            Ok(there.then_some(debian))
        });
        result.with_context(|| {
            let said = agent.exec(&["tail", "-n", "20", SYSTEMD_LOG], START_LIMIT);
            said.map(|done| done.text()).unwrap_or_default()
        })
    }

    /// One that was started before and whose first process is `first_process`.
    #[must_use]
    pub const fn running(agent: &'a Agent, first_process: String) -> Self {
        Self {
            agent,
            first_process,
        }
    }

    /// The number of its first process in the host.
    #[must_use]
    pub fn first_process(&self) -> &str {
        &self.first_process
    }

    /// Runs a program in it.
    ///
    /// # Errors
    /// When the host does not answer; not when the program fails.
    pub fn run(&self, argv: &[&str]) -> Result<Finished> {
        let enter = ["nsenter", "-t", &self.first_process, "-m", "-p", "-r"];
        self.agent.exec(&[&enter, argv].concat(), START_LIMIT)
    }

    /// Starts a unit, as an operator does.
    ///
    /// # Errors
    /// When systemd says that it failed; with the unit's last words.
    pub fn start_unit(&self, unit: &str) -> Result<()> {
        let started = self.run(&["systemctl", "start", unit])?.success();
        started.map(drop).with_context(|| self.journal(unit))
    }

    /// The end of what a unit said.
    #[must_use]
    pub fn journal(&self, unit: &str) -> String {
        let argv = ["journalctl", "--no-pager", "-n", "30", "-u", unit];
        self.run(&argv).map(|done| done.text()).unwrap_or_default()
    }
}
