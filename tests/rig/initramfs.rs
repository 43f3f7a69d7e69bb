//! Builds the initial file system of an emulated host: a `newc` cpio archive.
//!
//! Format: the Linux kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`. Only
//! directories and regular files are written; busybox makes its own links when the host starts.
//! Both hosts of a pair boot the same archive; what differs is on their kernel command lines.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Header and data of an entry are padded to this many bytes.
const ALIGNMENT: usize = 4;

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;

/// Writes a cpio archive, entry by entry.
struct Archive<W: Write> {
    to: W,
    directories: BTreeSet<PathBuf>,
    inode: u32,
}

impl<W: Write> Archive<W> {
    fn new(to: W) -> Self {
        Self {
            to,
            directories: BTreeSet::new(),
            inode: 0,
        }
    }

    fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        if let Some(parent) = Path::new(path).parent() {
            self.directory(parent)?;
        }
        self.entry(path, REGULAR | mode, bytes)
    }

    fn directory(&mut self, path: &Path) -> io::Result<()> {
        if path.as_os_str().is_empty() || !self.directories.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        self.entry(&path.to_string_lossy(), DIRECTORY, &[])
    }

    fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.to.flush()
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let oversized = |_| io::Error::new(io::ErrorKind::InvalidInput, "file too large for cpio");
        let size = u32::try_from(bytes.len()).map_err(oversized)?;
        let name_size = u32::try_from(name.len() + 1).map_err(oversized)?;
        self.inode += 1;
        // inode, mode, uid, gid, links, mtime, size, device and rdevice (major, minor), name, check
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        let head_bytes = header.len() + name.len() + 1;
        self.to.write_all(header.as_bytes())?;
        self.to.write_all(name.as_bytes())?;
        self.to
            .write_all(&[0; ALIGNMENT][..1 + padding(head_bytes)])?;
        self.to.write_all(bytes)?;
        self.to.write_all(&[0; ALIGNMENT][..padding(bytes.len())])
    }
}

fn padding(length: usize) -> usize {
    length.next_multiple_of(ALIGNMENT) - length
}

/// What goes into a host's initial file system besides busybox, modules and the agent.
#[derive(Debug, Clone)]
pub struct Contents<'a> {
    /// Static busybox.
    pub busybox: &'a Path,
    /// Kernel modules, in the order of loading.
    pub modules: &'a [PathBuf],
    /// The static agent.
    pub agent: &'a Path,
    /// More files: absolute path in the host, where to read it here, whether it is a program.
    pub files: &'a [(String, PathBuf, bool)],
}

/// Writes the archive to `to`.
///
/// # Errors
/// When a file cannot be read or the archive cannot be written.
pub fn build(to: &Path, contents: &Contents<'_>) -> Result<()> {
    let file = File::create(to).with_context(|| format!("cannot create {}", to.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    for directory in [
        "proc",
        "sys",
        "dev",
        "tmp",
        "run",
        "bin",
        "etc",
        "run/host/state",
    ] {
        archive.directory(Path::new(directory))?;
    }
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.file("etc/inittab", 0o644, INITTAB.as_bytes())?;
    archive.file("bin/busybox", 0o755, &read(contents.busybox)?)?;
    archive.file("bin/rig-agent", 0o755, &read(contents.agent)?)?;
    let mut order = String::new();
    for module in contents.modules {
        let name = module
            .file_name()
            .context("a module without a name")?
            .to_string_lossy();
        archive.file(&format!("modules/{name}"), 0o644, &read(module)?)?;
        order.push_str(&format!("{name}\n"));
    }
    archive.file("modules/order", 0o644, order.as_bytes())?;
    for (path, source, program) in contents.files {
        let mode = if *program { 0o755 } else { 0o644 };
        archive.file(path.trim_start_matches('/'), mode, &read(source)?)?;
    }
    archive
        .finish()
        .with_context(|| format!("cannot write {}", to.display()))
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// First program of a host. Modules that fail get a second try: an order that is slightly off works.
/// Written-back pages reach the evidence disk within about a tenth of a second, so that a kill
/// loses little of the log and nothing waits for the disk.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
ln -s /bin/busybox /run/host/busybox
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/net /dev/pts
mount -t tmpfs tmpfs /tmp
load() {
  again=
  for m in $*; do
    case $m in kvm-amd.ko) insmod /modules/$m nested=0 ;; *) insmod /modules/$m ;; esac || again=\"$again $m\"
  done 2>/dev/null
}
load $(cat /modules/order); load $again
for word in $(cat /proc/cmdline); do
  case $word in rig.*=*) key=${word%%=*}; eval \"rig_${key#rig.}='${word#*=}'\" ;; esac
done
hostname $rig_name
echo 10 > /proc/sys/vm/dirty_writeback_centisecs
echo 10 > /proc/sys/vm/dirty_expire_centisecs
[ -b /dev/vda ] && mount -t ext4 -o noatime,commit=1 /dev/vda /run/host/state
ip link set lo up
if [ -n \"$rig_address\" ]; then
  brctl addbr br0
  ip link set eth0 up promisc on; brctl addif br0 eth0
  echo 0 > /sys/class/net/eth0/brport/learning
  tunctl -t tap0 >/dev/null
  ip link set tap0 up; brctl addif br0 tap0
  ip addr add $rig_address dev br0; ip link set br0 up
fi
[ -n \"$rig_log\" ] && { ip addr add $rig_log dev eth1; ip link set eth1 up; }
exec /bin/busybox init
";

/// What busybox init keeps running.
const INITTAB: &str = "::respawn:/bin/rig-agent\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_parents_come_first() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.file("a/b/c", 0o644, b"12345").unwrap();
        archive.finish().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let place = |what: &str| text.find(what).unwrap();
        assert!(place("a\0") < place("a/b\0") && place("a/b\0") < place("a/b/c\0"));
        assert_eq!(bytes.len() % ALIGNMENT, 0);
        let starts: Vec<_> = text
            .match_indices("070701")
            .map(|(at, _)| at % ALIGNMENT)
            .collect();
        assert_eq!(starts, [0, 0, 0, 0]);
    }
}
