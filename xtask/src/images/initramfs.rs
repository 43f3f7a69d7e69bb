//! The guest's initial file system: busybox, the witness, the start script, pages for httpd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::programs::static_binary;
use crate::cache::{Cache, Inputs};
use crate::progress;
use crate::run::workspace_root;

/// Where Debian's busybox-static puts its program.
pub(super) const BUSYBOX: &str = "/bin/busybox";
/// Counts changes of the layout below.
const LAYOUT_VERSION: &str = "1";
/// Size of `/srv/www/1m.bin`.
const DOWNLOAD_BYTES: usize = 1 << 20;
/// Directories that the start script mounts on or programs expect.
const DIRECTORIES: &[&str] = &["dev", "proc", "run", "srv", "sys", "tmp"];

/// Path of the archive; builds it when the cache has none.
///
/// # Errors
/// When a program cannot be built or read.
pub(super) fn build(cache: &Cache) -> Result<PathBuf> {
    let room = workspace_root().join("guest-images/initramfs");
    let (start, page) = (room.join("start"), room.join("index.html"));
    let witness = static_binary("witness", "witness")?;
    let inputs = Inputs::default()
        .text("layout", LAYOUT_VERSION)
        .file("busybox", Path::new(BUSYBOX))?
        .file("witness", &witness)?
        .file("start", &start)?
        .file("index.html", &page)?;
    let entry = cache.entry_or_build("guest-initramfs", &inputs, |directory| {
        let mut archive = Archive::default();
        for path in DIRECTORIES {
            archive.directory(path);
        }
        archive.file("bin/busybox", 0o755, read(Path::new(BUSYBOX))?);
        for applet in applets()? {
            archive.symlink(&format!("bin/{applet}"), "busybox");
        }
        archive.file("bin/witness", 0o755, stripped(&witness, directory)?);
        archive.symlink("init", "bin/witness");
        archive.file("etc/start", 0o755, read(&start)?);
        archive.file("srv/www/index.html", 0o644, read(&page)?);
        archive.file("srv/www/1m.bin", 0o644, download());
        fs::write(directory.join("initramfs.cpio"), archive.bytes())
            .context("cannot write the archive")
    })?;
    Ok(entry.join("initramfs.cpio"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The program without symbols: the guest keeps its whole file system in memory.
fn stripped(program: &Path, directory: &Path) -> Result<Vec<u8>> {
    let copy = directory.join("stripped");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&copy).arg(program);
    progress::command(
        "guest initramfs: strip",
        &mut strip,
        &directory.join("build.log"),
    )?;
    let bytes = read(&copy)?;
    fs::remove_file(copy).context("cannot remove the copy")?;
    Ok(bytes)
}

/// The names that busybox answers to.
fn applets() -> Result<Vec<String>> {
    let output = Command::new(BUSYBOX)
        .arg("--list")
        .output()
        .with_context(|| format!("cannot run {BUSYBOX}"))?;
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(names
        .lines()
        .filter(|name| *name != "busybox")
        .map(str::to_owned)
        .collect())
}

/// Bytes that do not compress and are always the same (xorshift64).
fn download() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(DOWNLOAD_BYTES);
    while bytes.len() < DOWNLOAD_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}
