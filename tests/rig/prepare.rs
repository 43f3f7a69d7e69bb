//! The first half of every program of the rig: build what is needed, then go inside.
//!
//! See [`crate::isolation`] for the two processes. Outside, missing images and programs are built
//! with the project's own commands, so that `cargo xtask demo` works on a fresh checkout.

use crate::images::Images;
use crate::lab::HostKind;
use crate::programs::{Programs, checkout};
use crate::{client, isolation, progress, traffic};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What the inside process works with.
#[derive(Debug)]
pub struct Prepared {
    /// Kernels, modules, emulator.
    pub images: Images,
    /// Static programs.
    pub programs: Programs,
    /// What the hosts are to be.
    pub hosts: HostKind,
}

/// Which process this is.
#[derive(Debug)]
pub enum Stage {
    /// Inside, with everything at hand: do the work.
    Inside(Box<Prepared>),
    /// The work was done by another process, which ended like this.
    Done(ExitCode),
}

/// Call first in `main`, after the arguments are known to be good. Returns in the inside process to
/// do the work, and in every other one when there is nothing left to do.
///
/// # Errors
/// When something cannot be built or this machine allows no isolation.
pub fn stage() -> Result<Stage> {
    if isolation::is_inside() {
        isolation::prefer_this_process();
        isolation::end_with_the_outside()?;
        return Ok(Stage::Inside(Box::new(Prepared {
            images: Images::load()?,
            programs: Programs::build()?,
            hosts: host_kind()?,
        })));
    }
    build_images_if_missing()?;
    let programs = progress::step("building the static programs", Programs::build)?;
    let dir = programs
        .understudy
        .parent()
        .map_or_else(PathBuf::new, Path::to_owned);
    let images_file = Images::file()?;
    let hosts = match choose_hosts(&programs.understudy) {
        HostKind::Namespaces => Path::new("kvm"),
        HostKind::Emulated => Path::new("lab"),
    };
    let environment = [
        ("UNDERSTUDY_PROGRAMS", dir.as_path()),
        ("UNDERSTUDY_IMAGES", images_file.as_path()),
        (HOSTS, hosts),
    ];
    let status = isolation::run_inside(&environment)?;
    let code = status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1);
    Ok(Stage::Done(ExitCode::from(code)))
}

/// If this process was started as the client or as traffic, runs it to its end.
///
/// # Errors
/// As [`client::run_if_asked`].
pub fn was_client() -> Result<bool> {
    Ok(client::run_if_asked()? || traffic::run_if_asked()?)
}

fn build_images_if_missing() -> Result<()> {
    if Images::load().is_ok() {
        return Ok(());
    }
    if std::env::var_os("UNDERSTUDY_IMAGES").is_some() {
        // Somebody named a list: building another one would not help.
        return Images::load().map(|_| ());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    eprintln!("  the images are missing: building them (once)");
    let status = Command::new(cargo)
        .current_dir(checkout()?)
        .args(["xtask", "images"])
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("`cargo xtask images` failed");
    }
    Images::load().map(|_| ())
}

/// Says what hosts are to be: `lab` or `kvm`. Set by the user to force one.
const HOSTS: &str = "UNDERSTUDY_HOSTS";

fn host_kind() -> Result<HostKind> {
    match std::env::var(HOSTS).as_deref() {
        Ok("kvm") => Ok(HostKind::Namespaces),
        Ok("lab") => Ok(HostKind::Emulated),
        other => bail!("{HOSTS} must be `lab` or `kvm`, not {other:?}"),
    }
}

/// The lab, unless the user or the product's own doctor says that this machine's KVM is fit.
fn choose_hosts(understudy: &Path) -> HostKind {
    if let Ok(kind) = host_kind() {
        return kind;
    }
    let doctor = Command::new(understudy)
        .args(["doctor", "--json", "--fast"])
        .output();
    let fit = doctor.is_ok_and(|output| {
        let report = serde_json::from_slice::<serde_json::Value>(&output.stdout);
        report.is_ok_and(|report| report["fit"] == serde_json::Value::Bool(true))
    });
    if fit {
        HostKind::Namespaces
    } else {
        HostKind::Emulated
    }
}
