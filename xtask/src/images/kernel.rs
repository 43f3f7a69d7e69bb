//! The guest's kernel: Debian's source, our patches and configuration, and a look at the result.
//!
//! The build is reproducible: time, user, host and build number are fixed. A listed option that does
//! not survive configuration and an instruction that reads host state both fail the build.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::instructions;
use crate::cache::{Cache, Inputs};
use crate::run::workspace_root;
use crate::{packages, progress};

const PACKAGE: &str = "linux-source-6.1";
const TARBALL: &str = "/usr/src/linux-source-6.1.tar.xz";
/// Counts changes of the steps below that are not visible in the other inputs.
const STEPS_VERSION: &str = "1";
/// What makes the build reproducible.
const FIXED: &[&str] = &[
    "KBUILD_BUILD_TIMESTAMP=1970-01-01",
    "KBUILD_BUILD_USER=understudy",
    "KBUILD_BUILD_HOST=guest",
    "KBUILD_BUILD_VERSION=1",
];

/// Path of the uncompressed kernel; builds it when the cache has none.
///
/// # Errors
/// When a package is missing, a patch does not apply, or the build or the scan fails.
pub(super) fn build(cache: &Cache) -> Result<PathBuf> {
    let room = workspace_root().join("guest-images/kernel");
    let config = room.join("config");
    let patches = patches(&room.join("patches"))?;
    let mut inputs = Inputs::default()
        .text("steps", STEPS_VERSION)
        .text(PACKAGE, &packages::version(PACKAGE)?)
        .text("gcc", &packages::version("gcc")?)
        .file("config", &config)?;
    for patch in &patches {
        inputs = inputs.file(&name_of(patch), patch)?;
    }
    let entry = cache.entry_or_build("guest-kernel", &inputs, |directory| {
        compile(directory, &config, &patches)
    })?;
    Ok(entry.join("vmlinux"))
}

fn compile(directory: &Path, config: &Path, patches: &[PathBuf]) -> Result<()> {
    let log = directory.join("build.log");
    let source = directory.join("source");
    fs::create_dir(&source)?;
    let mut unpack = Command::new("tar");
    unpack
        .arg("-xf")
        .arg(TARBALL)
        .args(["--strip-components=1", "-C"])
        .arg(&source);
    progress::command("guest kernel: unpack the source", &mut unpack, &log)?;
    for patch in patches {
        let mut apply = Command::new("patch");
        apply
            .current_dir(&source)
            .args(["-p1", "--fuzz=0", "--force", "--input"])
            .arg(patch);
        progress::command(
            &format!("guest kernel: {}", name_of(patch)),
            &mut apply,
            &log,
        )?;
    }
    let mut configure = make(&source);
    configure
        .arg(format!("KCONFIG_ALLCONFIG={}", config.display()))
        .arg("allnoconfig");
    progress::command("guest kernel: configure", &mut configure, &log)?;
    check_config(
        &fs::read_to_string(config)?,
        &fs::read_to_string(source.join(".config"))?,
    )?;
    let mut compile = make(&source);
    compile.args(FIXED).arg("vmlinux");
    progress::command("guest kernel: compile (some minutes)", &mut compile, &log)?;
    let report = instructions::check(&[
        source.join("vmlinux"),
        source.join("arch/x86/entry/vdso/vdso64.so.dbg"),
    ])?;
    fs::write(directory.join("instructions.txt"), report)?;
    fs::rename(source.join("vmlinux"), directory.join("vmlinux"))?;
    fs::rename(source.join(".config"), directory.join("config"))?;
    fs::remove_dir_all(&source).context("cannot remove the kernel source")
}

fn make(source: &Path) -> Command {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut command = Command::new("make");
    command.current_dir(source).arg(format!("-j{jobs}"));
    // The caller's locale and flags must not reach the image.
    command
        .env("LC_ALL", "C")
        .env_remove("CFLAGS")
        .env_remove("MAKEFLAGS");
    command
}

/// Every line that we ask for must be in the result; Kconfig drops what it cannot satisfy silently.
fn check_config(wanted: &str, found: &str) -> Result<()> {
    let lost: Vec<&str> = wanted
        .lines()
        .filter(|line| line.starts_with("CONFIG_"))
        .filter(|line| !found.lines().any(|other| other == *line))
        .collect();
    if !lost.is_empty() {
        bail!(
            "guest-images/kernel/config: did not survive configuration: {}",
            lost.join(" ")
        );
    }
    Ok(())
}

fn patches(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("{}", directory.display()))?;
    let mut patches: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "patch")
        })
        .collect();
    patches.sort();
    Ok(patches)
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_was_dropped_is_named() {
        let found = "CONFIG_A=y\n# CONFIG_B is not set\n";
        assert!(check_config("# comment\nCONFIG_A=y\n", found).is_ok());
        let error = check_config("CONFIG_A=y\nCONFIG_B=y\n", found).unwrap_err();
        assert!(error.to_string().ends_with("CONFIG_B=y"), "{error}");
    }
}
