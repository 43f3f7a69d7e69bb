//! What a failure leaves behind: everything of the run, and the command to repeat it.
//!
//! The run's own directory vanishes with its namespaces; on failure it is copied below
//! `target/rig/` of the checkout first. Emulated disks and the initial file system stay out.

use crate::evidence;
use crate::host::last_words;
use crate::lab::{Lab, Side};
use crate::netns::Namespace;
use crate::programs::checkout;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Kept failures of one name; the oldest numbers are used first and then refused.
const KEPT_MAX: u32 = 1_000;

/// Of the monitor, in its host's state directory.
const MESSAGES: &str = "understudy.out";

/// Time for a host to answer.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// Copies logs and disks' files of a failed run and says how to repeat it. Best effort: what cannot
/// be copied is left out, the failure itself must not be hidden.
pub fn keep(lab: &mut Lab, name: &str, command: &str, report: &str) -> Option<PathBuf> {
    let dir = fresh_dir(name).ok()?;
    let _ = std::fs::write(
        dir.join("report.txt"),
        format!("{report}\n\nagain: {command}\n"),
    );
    for side in lab.sides() {
        let _ = lab.host(side).resume();
    }
    keep_network(lab, &dir);
    if let Err(error) = evidence::collect(lab, &dir) {
        let _ = std::fs::write(dir.join("evidence-error.txt"), format!("{error:#}\n"));
    }
    for side in lab.sides() {
        let to = dir.join(side.name());
        let _ = std::fs::create_dir_all(&to);
        for file in ["serial.log", "emulator.log"] {
            let _ = std::fs::copy(lab.host(side).dir().join(file), to.join(file));
        }
    }
    let _ = std::fs::copy(lab.arbiter.log(), dir.join("arbiter.log"));
    Some(dir)
}

/// How each program's messages end in what was kept, for a report whose reader has nothing else.
#[must_use]
pub fn last_messages(dir: &Path) -> String {
    let files = Side::ALL.map(|side| dir.join(side.name()).join(MESSAGES));
    let said = files.iter().filter(|file| file.exists());
    said.map(|file| last_words(file))
        .collect::<Vec<_>>()
        .join("\n")
}

/// What everybody on the service network believes about where the others are.
fn keep_network(lab: &Lab, dir: &Path) {
    let ask = "ip -s link; ip neigh; bridge fdb show";
    let client = Namespace::named("client");
    for (name, mut command) in [
        ("network-rig.txt", Command::new("sh")),
        ("network-client.txt", client.command(Path::new("sh"))),
    ] {
        if let Ok(output) = command.args(["-c", ask]).output() {
            let _ = std::fs::write(dir.join(name), output.stdout);
        }
    }
    for side in lab.sides() {
        let ask = "ip -s link; brctl showmacs br0; cat /proc/net/arp; ps; dmesg | tail -30";
        let asked = lab.host(side).agent();
        if let Ok(done) = asked.and_then(|agent| agent.exec(&["sh", "-c", ask], ASK_LIMIT)) {
            let _ = std::fs::write(dir.join(format!("network-{side}.txt")), done.stdout);
        }
    }
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
