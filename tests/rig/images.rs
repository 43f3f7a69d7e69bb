//! Where the lab's kernels, modules and emulator are: `images.json`, written by `cargo xtask images`.
//!
//! The cache lies outside the checkout, in `$UNDERSTUDY_CACHE` or `~/.cache/understudy`.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The contents of `images.json`; every path is absolute.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Images {
    /// Kernel that the replicated guest runs (uncompressed ELF or bzImage).
    pub guest_kernel: PathBuf,
    /// Its initramfs.
    pub guest_initramfs: PathBuf,
    /// Kernel of the emulated hosts.
    pub host_kernel: PathBuf,
    /// Modules of that kernel, in the order of loading.
    pub host_modules: Vec<PathBuf>,
    /// QEMU's system emulator.
    pub emulator: PathBuf,
    /// `patched` (performance counters, breakpoints) or `stock`.
    #[serde(default = "stock")]
    pub emulator_kind: String,
    /// A static busybox.
    pub busybox: PathBuf,
}

fn stock() -> String {
    "stock".into()
}

impl Images {
    /// Reads `images.json` from `$UNDERSTUDY_IMAGES` (a file) or the cache.
    ///
    /// # Errors
    /// When it is missing or damaged, or names a file that is not there; says what to run.
    pub fn load() -> Result<Self> {
        let file = Self::file()?;
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("{}: run `cargo xtask images` first", file.display()))?;
        let images: Self = serde_json::from_str(&text)
            .with_context(|| format!("{}: not an image list", file.display()))?;
        images.verify(&file)?;
        Ok(images)
    }

    /// Whether the emulated hosts have performance counters.
    #[must_use]
    pub fn has_counters(&self) -> bool {
        self.emulator_kind == "patched"
    }

    /// Where the list is: `$UNDERSTUDY_IMAGES`, or `images.json` in the cache.
    ///
    /// # Errors
    /// As [`cache_dir`].
    pub fn file() -> Result<PathBuf> {
        match std::env::var_os("UNDERSTUDY_IMAGES") {
            Some(file) => Ok(std::path::absolute(file)?),
            None => Ok(cache_dir()?.join("images.json")),
        }
    }

    fn verify(&self, listed_in: &Path) -> Result<()> {
        let single = [
            &self.guest_kernel,
            &self.guest_initramfs,
            &self.host_kernel,
            &self.emulator,
            &self.busybox,
        ];
        for file in single.into_iter().chain(&self.host_modules) {
            if !file.is_file() {
                bail!(
                    "{} lists {}, which is not there: run `cargo xtask images` again",
                    listed_in.display(),
                    file.display()
                );
            }
        }
        Ok(())
    }
}

/// The directory for everything that is built once and kept: `$UNDERSTUDY_CACHE` or
/// `~/.cache/understudy`.
///
/// # Errors
/// When neither `UNDERSTUDY_CACHE` nor `HOME` is set.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("UNDERSTUDY_CACHE") {
        return Ok(PathBuf::from(dir));
    }
    let home = std::env::var_os("HOME").context("neither UNDERSTUDY_CACHE nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache/understudy"))
}
