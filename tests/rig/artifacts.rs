//! What a failure leaves behind: everything of the run, and the command to repeat it.
//!
//! The run's own directory vanishes with its namespaces; on failure it is copied below
//! `target/rig/` of the checkout first. Emulated disks and the initial file system stay out.

use crate::evidence;
use crate::lab::{Lab, Side};
use crate::programs::checkout;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Kept failures of one name; the oldest numbers are used first and then refused.
const KEPT_MAX: u32 = 1_000;

/// Copies logs and disks' files of a failed run and says how to repeat it. Best effort: what cannot
/// be copied is left out, the failure itself must not be hidden.
pub fn keep(lab: &mut Lab, name: &str, command: &str, report: &str) -> Option<PathBuf> {
    let dir = fresh_dir(name).ok()?;
    let _ = std::fs::write(
        dir.join("report.txt"),
        format!("{report}\n\nagain: {command}\n"),
    );
    for side in Side::BOTH {
        let _ = lab.host(side).resume();
    }
    if let Err(error) = evidence::collect(lab, &dir) {
        let _ = std::fs::write(dir.join("evidence-error.txt"), format!("{error:#}\n"));
    }
    for side in Side::BOTH {
        let to = dir.join(side.name());
        let _ = std::fs::create_dir_all(&to);
        for file in ["serial.log", "emulator.log"] {
            let _ = std::fs::copy(lab.host(side).dir().join(file), to.join(file));
        }
    }
    let _ = std::fs::copy(lab.arbiter.log(), dir.join("arbiter.log"));
    Some(dir)
}

fn fresh_dir(name: &str) -> Result<PathBuf> {
    let root = checkout()?.join("target/rig");
    std::fs::create_dir_all(&root)?;
    let number = (1..KEPT_MAX).find(|number| !numbered(&root, name, *number).exists());
    let dir = numbered(&root, name, number.unwrap_or(KEPT_MAX));
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn numbered(root: &Path, name: &str, number: u32) -> PathBuf {
    root.join(format!("{name}.{number}"))
}
