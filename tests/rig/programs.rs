//! The static programs that run inside an emulated host: `understudy` and `rig-agent`.
//!
//! A host's initial file system has no libraries, so both are linked statically, in a target
//! directory of their own so that ordinary builds stay warm.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target whose linker can make static programs from the glibc toolchain.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The built programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The product.
    pub understudy: PathBuf,
    /// The agent.
    pub agent: PathBuf,
}

impl Programs {
    /// Uses the programs in `$UNDERSTUDY_PROGRAMS` if that is set, else builds both (cargo decides
    /// what is stale) and shows cargo's own progress.
    ///
    /// # Errors
    /// When the build fails or a program is missing afterwards.
    pub fn build() -> Result<Self> {
        if let Some(dir) = std::env::var_os("UNDERSTUDY_PROGRAMS") {
            return Self::in_dir(Path::new(&dir));
        }
        let packages = ["-p", "understudy-vmm", "-p", "rig-agent"];
        Self::in_dir(&build_static(
            &packages,
            &["--bin", "understudy", "--bin", "rig-agent"],
        )?)
    }

    fn in_dir(dir: &Path) -> Result<Self> {
        let programs = Self {
            understudy: dir.join("understudy"),
            agent: dir.join("rig-agent"),
        };
        for program in [&programs.understudy, &programs.agent] {
            if !program.is_file() {
                bail!("{} is missing", program.display());
            }
        }
        Ok(programs)
    }
}

/// Builds the agent alone, for hosts that run nothing of the product.
///
/// # Errors
/// When the build fails.
pub fn agent_only() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("UNDERSTUDY_PROGRAMS") {
        return Ok(PathBuf::from(dir).join("rig-agent"));
    }
    Ok(build_static(&["-p", "rig-agent"], &["--bin", "rig-agent"])?.join("rig-agent"))
}

/// Builds static programs and returns the directory that they are in.
fn build_static(packages: &[&str], programs: &[&str]) -> Result<PathBuf> {
    let root = checkout()?;
    let target_dir = root.join("target/static");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(&root)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .args([
            "build",
            "--release",
            "--quiet",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&target_dir)
        .args(packages)
        .args(programs)
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the static build of {} failed", packages.join(" "));
    }
    Ok(target_dir.join(TARGET).join("release"))
}

/// The root of the checkout that this program was built from.
///
/// # Errors
/// When it is no longer there.
pub fn checkout() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.parent().context("the rig lies in the checkout")?;
    if !root.join("Cargo.toml").is_file() {
        bail!(
            "{} is not the checkout any more: build the rig again",
            root.display()
        );
    }
    Ok(root.to_owned())
}
