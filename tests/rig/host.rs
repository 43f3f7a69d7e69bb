//! What every host of a lab can do, whether it is emulated or a part of this machine.
//!
//! | kind | what it is | when |
//! |---|---|---|
//! | [`crate::emulated_host`] | a QEMU process with its own Linux and kvm-amd | anywhere |
//! | [`crate::namespace_host`] | a process group in namespaces of its own | this machine's KVM is fit |
//!
//! Both give the product the same paths, interfaces and addresses, so that a drill cannot tell.

use crate::agent::Agent;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Where programs and images are in a host.
pub const PROGRAM_DIR: &str = "/run/host";

/// Where a host keeps what must outlive it: on the evidence disk.
pub const STATE_DIR: &str = "/run/host/state";

/// Time for a host to boot; an emulated one takes about 5 s on an idle machine.
pub const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// The performance counters that an emulated host has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Counters {
    /// Those of the emulator: exact and without skid in the patched one, none in Debian's.
    #[default]
    Usual,
    /// Overflows come late, by a random number of instructions up to this.
    Skid(u32),
    /// None at all.
    Absent,
}

/// A host that can be booted, talked to, paused and killed.
pub trait Host: std::fmt::Debug + Send {
    /// Its name.
    fn name(&self) -> &str;

    /// Its directory on this machine.
    fn dir(&self) -> &Path;

    /// Makes the evidence disk empty again. Only while the host is off.
    ///
    /// # Errors
    /// When it cannot be made.
    fn wipe_disk(&self) -> Result<()>;

    /// Makes the evidence disk a copy of the directory `from`. Only while the host is off.
    ///
    /// # Errors
    /// When it cannot be made, or the host has no disk of its own.
    fn fill_disk(&self, from: &Path) -> Result<()> {
        let _ = from;
        bail!("{} has no disk of its own", self.name())
    }

    /// Starts the host; it then boots by itself. Returns at once.
    ///
    /// # Errors
    /// When it is on already or cannot be started.
    fn power_on(&mut self) -> Result<()>;

    /// Waits until the host has booted and its agent answers; returns how long that took.
    ///
    /// # Errors
    /// When `limit` passes first or the host dies; the message holds its last words.
    fn wait_booted(&self, limit: Duration) -> Result<Duration>;

    /// The agent, for commands and files.
    ///
    /// # Errors
    /// When the host is off.
    fn agent(&self) -> Result<&Agent>;

    /// Whether the host is on (a paused one counts).
    fn is_on(&mut self) -> bool;

    /// Stops the host where it is: to everybody else it is silent.
    ///
    /// # Errors
    /// When the host is off.
    fn pause(&self) -> Result<()>;

    /// Lets a paused host go on as if no time had passed.
    ///
    /// # Errors
    /// When the host is off.
    fn resume(&self) -> Result<()>;

    /// Ends every program that a drill started in the host.
    ///
    /// # Errors
    /// When the host is off or does not obey.
    fn stop_everything(&self) -> Result<()>;

    /// The counters that it has, or will have from the next start on.
    fn counters(&self) -> Counters {
        Counters::Usual
    }

    /// Changes the counters from the next start on.
    ///
    /// # Errors
    /// When the host cannot have them.
    fn use_counters(&mut self, counters: Counters) -> Result<()> {
        match counters {
            Counters::Usual => Ok(()),
            _ => bail!("{} has the counters of this machine", self.name()),
        }
    }

    /// The host loses power. Harmless when it is off.
    fn kill(&mut self);

    /// Copies the evidence disk's files to `to`; works only while the host is off (killed).
    ///
    /// # Errors
    /// When the host is on or its disk cannot be read.
    fn read_disk(&mut self, to: &Path) -> Result<()>;

    /// Copies the state directory of a running host to `to`.
    ///
    /// # Errors
    /// When the host is off or its files cannot be read.
    fn read_state(&self, to: &Path) -> Result<()> {
        std::fs::create_dir_all(to)?;
        let limit = Duration::from_secs(30);
        let archive = self
            .agent()?
            .exec(&["tar", "-c", "-C", STATE_DIR, "."], limit)?
            .success()?;
        let file = to.join("state.tar");
        std::fs::write(&file, archive.stdout)?;
        run_tool(Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(to))?;
        std::fs::remove_file(file)?;
        Ok(())
    }
}

/// The end of one of a host's logs, for an error message.
pub(crate) fn last_words(file: &Path) -> String {
    const LINES: usize = 12;
    let text = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(LINES)..].join("\n  ");
    format!("the end of {}:\n  {end}", file.display())
}

/// Debian keeps file system tools in /sbin, which is not on everybody's path.
pub(crate) fn tool(name: &str) -> PathBuf {
    ["/usr/sbin", "/sbin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|file| file.exists())
        .unwrap_or_else(|| PathBuf::from(name))
}

/// Runs a program to its end; what it wrote to standard error.
pub(crate) fn run_tool(command: &mut Command) -> Result<String> {
    run_tool_as(command, &[0])
}

/// As [`run_tool`], where other exit statuses mean success too.
pub(crate) fn run_tool_as(command: &mut Command, good: &[i32]) -> Result<String> {
    let what = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {what}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output
        .status
        .code()
        .is_some_and(|code| good.contains(&code))
    {
        bail!("{what}: {}: {said}", output.status);
    }
    Ok(said)
}
