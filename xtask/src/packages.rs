//! Debian packages: which are missing, and their installation.
//!
//! Nothing is installed without being named first. As root apt-get runs directly, otherwise through
//! sudo; `UNDERSTUDY_NO_INSTALL=1` turns installation into an error that has the command to type.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::run::{command_line, run};

/// To compile the guest's kernel.
pub(crate) const GUEST_KERNEL: &[&str] = &[
    "linux-source-6.1",
    "gcc",
    "libc6-dev",
    "make",
    "binutils",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "patch",
    "xz-utils",
];
/// For the guest's and the hosts' user land.
pub(crate) const INITRAMFS: &[&str] = &["busybox-static"];
/// To compile the emulator.
pub(crate) const EMULATOR_BUILD: &[&str] = &[
    "dpkg-dev",
    "gcc",
    "libc6-dev",
    "ninja-build",
    "meson",
    "pkg-config",
    "python3",
    "patch",
    "binutils",
    "flex",
    "bison",
    "libglib2.0-dev",
    "libpixman-1-dev",
    "libslirp-dev",
    "libattr1-dev",
    "libcap-ng-dev",
    "zlib1g-dev",
    "libfdt-dev",
    "xz-utils",
];
/// To run it: libraries come with the above, firmware with these.
pub(crate) const EMULATOR_FIRMWARE: &[&str] = &["seabios", "qemu-system-data", "ipxe-qemu"];
/// Used when the emulator cannot be compiled.
pub(crate) const EMULATOR_STOCK: &[&str] = &["qemu-system-x86"];
/// For the rig: bridges and namespaces, evidence disks, load.
pub(crate) const RIG: &[&str] = &[
    "iproute2",
    "e2fsprogs",
    "curl",
    "wrk",
    "kmod",
    "zstd",
    "tshark",
    "gdb",
];

/// For tests that the gate runs: the arbiter's registers in a real etcd cluster.
pub(crate) const GATE: &[&str] = &["etcd-server", "util-linux"];

/// Installs those of `packages` that are missing. Says which before it does.
///
/// # Errors
/// When this is no Debian system, installation is forbidden, there is no way to become root, or
/// apt-get fails; always with the command that would do it.
pub(crate) fn ensure<'a>(packages: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("missing Debian packages: {}", missing.join(" "));
    let by_hand = format!(
        "apt-get install --no-install-recommends {}",
        missing.join(" ")
    );
    if std::env::var_os("UNDERSTUDY_NO_INSTALL").is_some() {
        bail!("UNDERSTUDY_NO_INSTALL is set; as root: {by_hand}");
    }
    if !lists_present() {
        apt_get(&["update"]).with_context(|| format!("as root: apt-get update && {by_hand}"))?;
    }
    if install(&missing).is_err() {
        eprintln!("apt-get install failed; trying once more with fresh package lists");
        apt_get(&["update"]).with_context(|| format!("as root: apt-get update && {by_hand}"))?;
        install(&missing).with_context(|| format!("as root: {by_hand}"))?;
    }
    Ok(())
}

/// The installed version of a package.
///
/// # Errors
/// When it is not installed or dpkg-query is not there.
pub(crate) fn version(package: &str) -> Result<String> {
    let output = query(&["-W", "-f", "${Version}", package])?;
    if output.trim().is_empty() {
        bail!("package {package} is not installed");
    }
    Ok(output.trim().to_owned())
}

/// Refreshes apt's package lists.
///
/// # Errors
/// When apt-get fails.
pub(crate) fn update_lists() -> Result<()> {
    apt_get(&["update"])
}

fn missing<'a>(packages: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>> {
    let wanted: BTreeSet<&str> = packages.into_iter().collect();
    let mut arguments = vec!["-W", "-f", "${Package} ${db:Status-Status}\n"];
    arguments.extend(&wanted);
    Ok(not_installed(&wanted, &query(&arguments)?))
}

fn not_installed(wanted: &BTreeSet<&str>, listing: &str) -> Vec<String> {
    let installed: BTreeSet<&str> = listing
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    wanted
        .difference(&installed)
        .map(|name| (*name).to_owned())
        .collect()
}

/// dpkg-query's output. It fails when one of the packages is unknown, which is an answer too.
fn query(arguments: &[&str]) -> Result<String> {
    let output = Command::new("dpkg-query")
        .args(arguments)
        .stderr(Stdio::null())
        .output()
        .context(
            "cannot run dpkg-query: the lab is built from Debian 12's packages, on a Debian system",
        )?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn lists_present() -> bool {
    let Ok(entries) = std::fs::read_dir("/var/lib/apt/lists") else {
        return false;
    };
    entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

fn install(packages: &[String]) -> Result<()> {
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages.iter().map(String::as_str));
    apt_get(&arguments)
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = as_root("apt-get")?;
    command
        .args(["-o", "DPkg::Lock::Timeout=300", "-q"])
        .args(arguments);
    eprintln!("running: {}", command_line(&command));
    run(&mut command)
}

fn as_root(program: &str) -> Result<Command> {
    let settings = ["DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"];
    let mut command = if is_root()? {
        Command::new("env")
    } else if Path::new("/usr/bin/sudo").exists() {
        let mut sudo = Command::new("/usr/bin/sudo");
        sudo.arg("env");
        sudo
    } else {
        bail!("not root, and there is no sudo");
    };
    command.args(settings).arg(program);
    Ok(command)
}

/// True when this process may do what root does.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc")?;
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    Ok(ids.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_that_dpkg_does_not_call_installed_are_missing() {
        let wanted = BTreeSet::from(["a", "b", "c", "d"]);
        let listing = "a installed\nb config-files\nd not-installed\n";
        assert_eq!(not_installed(&wanted, listing), ["b", "c", "d"]);
    }
}
