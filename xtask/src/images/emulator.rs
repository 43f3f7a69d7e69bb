//! The lab's emulator: QEMU from Debian's source with the patch of `tests/lab/emulator`.
//!
//! When it cannot be compiled, Debian's own binary serves as a fallback, with a warning: it has no
//! performance counters and an SVM emulation that now and then delivers an interrupt window one
//! instruction late, so that about one replay in ten diverges.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::debian;
use crate::cache::{Cache, Inputs};
use crate::run::workspace_root;
use crate::{packages, progress};

/// Version of the source that the patch was made for.
const UPSTREAM_VERSION: &str = "7.2";
const PATCH: &str = "qemu-7.2-amd-pmu.patch";
const PROGRAM: &str = "qemu-system-x86_64";
const STOCK: &str = "/usr/bin/qemu-system-x86_64";
/// Counts changes of the steps below.
const STEPS_VERSION: &str = "1";

/// The emulator that there is.
pub(super) struct Emulator {
    pub(super) program: PathBuf,
    /// `patched` or `stock`.
    pub(super) kind: &'static str,
}

/// Finds or builds the emulator.
///
/// # Errors
/// When it can neither be built nor installed from Debian.
pub(super) fn build(cache: &Cache) -> Result<Emulator> {
    packages::ensure(packages::EMULATOR_FIRMWARE.iter().copied())?;
    match patched(cache) {
        Ok(program) => Ok(Emulator {
            program,
            kind: "patched",
        }),
        Err(error) => {
            eprintln!("\nWARNING: the patched emulator could not be built: {error:#}\n");
            eprintln!(
                "WARNING: falling back to Debian's {STOCK}. It lacks performance counters and\n\
                 WARNING: hardware breakpoints, and about one replay in ten diverges because it\n\
                 WARNING: delivers some interrupts one instruction late. Drills may fail for that reason.\n"
            );
            packages::ensure(packages::EMULATOR_STOCK.iter().copied())
                .context("no emulator: neither built nor installed")?;
            Ok(Emulator {
                program: PathBuf::from(STOCK),
                kind: "stock",
            })
        }
    }
}

fn patched(cache: &Cache) -> Result<PathBuf> {
    let room = workspace_root().join("tests/lab/emulator");
    let (patch, configure) = (room.join(PATCH), room.join("configure.sh"));
    let inputs = Inputs::default()
        .text("steps", STEPS_VERSION)
        .text("qemu", UPSTREAM_VERSION)
        .file("patch", &patch)?
        .file("configure", &configure)?;
    // The libraries it is linked with come with the packages that build it.
    packages::ensure(packages::EMULATOR_BUILD.iter().copied())?;
    let entry = cache.entry_or_build("emulator", &inputs, |directory| {
        compile(directory, &patch, &configure)
    })?;
    let program = entry.join(PROGRAM);
    let runs = Command::new(&program).arg("--version").output();
    let works = runs.is_ok_and(|output| output.status.success());
    anyhow::ensure!(
        works,
        "{} does not run: remove its directory and try again",
        program.display()
    );
    Ok(program)
}

fn compile(directory: &Path, patch: &Path, configure: &Path) -> Result<()> {
    let log = directory.join("build.log");
    let source = debian::unpack_source("qemu", directory, &log)?;
    let mut apply = Command::new("patch");
    apply
        .current_dir(&source)
        .args(["-p1", "--force", "--input"])
        .arg(patch);
    progress::command("emulator: patch", &mut apply, &log)?;
    let build = directory.join("build");
    let mut prepare = Command::new("sh");
    prepare.arg(configure).arg(&source).arg(&build);
    progress::command("emulator: configure", &mut prepare, &log)?;
    let mut ninja = Command::new("ninja");
    ninja.arg("-C").arg(&build).arg(PROGRAM);
    progress::command("emulator: compile (some minutes)", &mut ninja, &log)?;
    let mut strip = Command::new("strip");
    strip
        .arg("-o")
        .arg(directory.join(PROGRAM))
        .arg(build.join(PROGRAM));
    progress::command("emulator: strip", &mut strip, &log)?;
    for path in [source, build] {
        fs::remove_dir_all(path).context("cannot remove the emulator's source")?;
    }
    debian::remove_downloads(directory)
}
