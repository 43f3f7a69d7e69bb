//! `cargo xtask images`: everything that is booted or emulated, built once into the cache.
//!
//! Four artifacts: the guest's kernel, the guest's initial file system, the lab's host kernel, and the
//! emulator. Each is keyed by what it is made of; what is there is not built again. The
//! result is listed in `images.json` in the cache, which package `rig` reads.

mod cpio;
mod debian;
mod emulator;
mod host;
mod initramfs;
mod instructions;
mod kernel;
mod manifest;
mod programs;
pub(crate) use programs::static_binary;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::packages;

pub(crate) use manifest::Images;

/// Options of `cargo xtask images`.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Print the list as JSON (the same as images.json in the cache) instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Builds what is missing and prints what there is.
///
/// # Errors
/// As [`ensure`].
pub(crate) fn run(args: &Args) -> Result<()> {
    let images = ensure()?;
    if args.json {
        print!("{}", images.json()?);
        return Ok(());
    }
    println!();
    for (key, path) in images.files() {
        let digest = images.digests.get(key).map_or("", |digest| &digest[..12]);
        println!("{key:16} {digest:12}  {}", path.display());
    }
    println!("{:16} {} files", "host_modules", images.host_modules.len());
    println!("{:16} {}", "emulator_kind", images.emulator_kind);
    Ok(())
}

/// Installs missing packages, builds what the cache does not have, writes `images.json`.
///
/// # Errors
/// When a package cannot be installed or something cannot be built; says what and where its log is.
pub(crate) fn ensure() -> Result<Images> {
    let cache = Cache::open()?;
    let needed = [packages::GUEST_KERNEL, packages::INITRAMFS, packages::RIG];
    packages::ensure(needed.into_iter().flatten().copied())?;
    let guest_kernel = kernel::build(&cache).context("the guest's kernel")?;
    let guest_initramfs = initramfs::build(&cache).context("the guest's initial file system")?;
    let host = host::build(&cache).context("the lab's host kernel")?;
    let emulator = emulator::build(&cache).context("the lab's emulator")?;
    let images = Images {
        guest_kernel,
        guest_initramfs,
        host_kernel: host.kernel,
        host_modules: host.modules,
        emulator: emulator.program,
        emulator_kind: emulator.kind,
        busybox: PathBuf::from(initramfs::BUSYBOX),
        digests: BTreeMap::new(),
    }
    .with_digests()?;
    images.write(cache.root())?;
    Ok(images)
}
