//! `images.json` in the cache: where everything is, for the rig and the product's tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use crate::cache::{digest_of_file, write_atomically};

/// File name in the cache directory.
const FILE: &str = "images.json";

/// Every image, by absolute path. Package `rig` reads the same keys.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Images {
    /// The guest's kernel, an uncompressed ELF file.
    pub(crate) guest_kernel: PathBuf,
    /// The guest's initial file system, an uncompressed cpio archive.
    pub(crate) guest_initramfs: PathBuf,
    /// Kernel of the emulated hosts.
    pub(crate) host_kernel: PathBuf,
    /// Its modules, in the order of insmod.
    pub(crate) host_modules: Vec<PathBuf>,
    /// QEMU's x86 system emulator.
    pub(crate) emulator: PathBuf,
    /// `patched` or `stock`.
    pub(crate) emulator_kind: &'static str,
    /// A static busybox.
    pub(crate) busybox: PathBuf,
    /// SHA-256 of each single file, by the key above.
    pub(crate) digests: BTreeMap<&'static str, String>,
}

impl Images {
    /// The single files, by key.
    pub(crate) fn files(&self) -> [(&'static str, &Path); 5] {
        [
            ("guest_kernel", &self.guest_kernel),
            ("guest_initramfs", &self.guest_initramfs),
            ("host_kernel", &self.host_kernel),
            ("emulator", &self.emulator),
            ("busybox", &self.busybox),
        ]
    }

    /// Fills in the digests.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(crate) fn with_digests(mut self) -> Result<Self> {
        let mut digests = BTreeMap::new();
        for (key, path) in self.files() {
            digests.insert(key, digest_of_file(path)?);
        }
        self.digests = digests;
        Ok(self)
    }

    /// As JSON.
    ///
    /// # Errors
    /// When a path is not UTF-8.
    pub(crate) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Writes `images.json` into `cache`, in one step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(&self, cache: &Path) -> Result<PathBuf> {
        let path = cache.join(FILE);
        write_atomically(&path, &self.json()?)?;
        Ok(path)
    }
}
