//! Kernel and modules of the lab's emulated hosts: Debian's cloud kernel, unpacked, not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::debian;
use crate::cache::{Cache, Inputs};
use crate::progress;

const METAPACKAGE: &str = "linux-image-cloud-amd64";
/// Modules that a host needs, in the order of insmod; ext4 is built in. `kvm-amd` wants `nested=0`: the
/// guest CPU model has no SVM, and Debian's default of 1 only adds work to every world switch.
const MODULES: &[&str] = &[
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_blk",
    "virtio_console",
    "irqbypass",
    "kvm",
    "kvm-amd",
    "tun",
    "llc",
    "stp",
    "bridge",
    "veth",
];

/// A host's kernel and its modules in the order of loading.
pub(super) struct HostKernel {
    pub(super) kernel: PathBuf,
    pub(super) modules: Vec<PathBuf>,
}

/// Finds or downloads them.
///
/// # Errors
/// When apt cannot find or download the package, or a module is not in it.
pub(super) fn build(cache: &Cache) -> Result<HostKernel> {
    let package = debian::dependency(METAPACKAGE, "linux-image-6")?;
    let inputs = Inputs::default()
        .text("package", &package)
        .text("version", &debian::candidate(&package)?)
        .text("modules", &MODULES.join(" "));
    let entry = cache.entry_or_build("host-kernel", &inputs, |directory| {
        let log = directory.join("build.log");
        let unpacked = debian::unpack_binary(&package, directory, &log)?;
        let version = package.trim_start_matches("linux-image-");
        let kernel = unpacked.join("boot").join(format!("vmlinuz-{version}"));
        fs::rename(&kernel, directory.join("vmlinuz"))
            .with_context(|| format!("{package} has no {}", kernel.display()))?;
        let files = module_files(&unpacked)?;
        for module in MODULES {
            copy_module(module, &files, directory, &log)?;
        }
        fs::remove_dir_all(unpacked).context("cannot remove the unpacked package")
    })?;
    let modules = MODULES
        .iter()
        .map(|module| entry.join(format!("{module}.ko")))
        .collect();
    Ok(HostKernel {
        kernel: entry.join("vmlinuz"),
        modules,
    })
}

/// Copies one module out of the package, uncompressed.
fn copy_module(module: &str, files: &[PathBuf], directory: &Path, log: &Path) -> Result<()> {
    let plain = format!("{module}.ko");
    let named = |path: &&PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name == plain.as_str() || name == format!("{plain}.xz").as_str()
    };
    let Some(found) = files.iter().find(named) else {
        bail!("Debian's cloud kernel has no module {module}");
    };
    let name = found.file_name().unwrap_or_default();
    let copy = directory.join(name);
    fs::copy(found, &copy).with_context(|| format!("cannot copy {}", found.display()))?;
    if copy.extension().is_some_and(|extension| extension == "xz") {
        let mut unpack = Command::new("xz");
        progress::command(
            &format!("unpack {module}"),
            unpack.arg("-d").arg(&copy),
            log,
        )?;
    }
    Ok(())
}

/// All module files below `lib/modules`, without following links.
fn module_files(unpacked: &Path) -> Result<Vec<PathBuf>> {
    let mut directories = vec![unpacked.join("lib/modules")];
    let mut files = Vec::new();
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory)
            .with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else if entry.file_name().to_string_lossy().contains(".ko") {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}
