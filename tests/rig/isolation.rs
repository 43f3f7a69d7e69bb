//! Everything that the rig starts lives in namespaces that end with the rig.
//!
//! A rig program runs twice. The **outside** process is the one that the user started: it builds
//! what is needed, then starts itself again through `unshare` in fresh network, mount and process
//! namespaces (and a user namespace when it is not root), and waits. The **inside** process is the
//! first process of its process namespace: when it ends, however it ends, the kernel kills every
//! emulator and helper; the network devices, mounts and the run directory (a tmpfs) vanish with the
//! namespaces. The inside process ends at once when the outside one does, because its standard input
//! is a pipe that the outside holds: so not even SIGKILL of the outside leaves anything behind.
//!
//! ```text
//! user ── outside (SIGINT, SIGTERM: let go of the pipe, wait) ── unshare ── inside = PID 1 ── hosts
//!                └────────────── pipe: end of file means exit ──────────────┘
//! ```

use anyhow::{Context, Result, bail};
use rustix::process::{geteuid, setpriority_process, setsid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio, exit};

/// Set for the inside process.
const INSIDE: &str = "UNDERSTUDY_RIG_INSIDE";

/// Nice value of the inside process; -20 is the most that there is.
const PREFERRED_NICE: i32 = -15;

/// Exit status after a signal, as a shell reports SIGINT.
const INTERRUPTED: i32 = 130;

/// Whether this is the inside process.
#[must_use]
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs this program again, isolated, with the same arguments and `environment` added; returns how
/// it ended.
///
/// # Errors
/// When this machine allows no namespaces; says what would help.
pub fn run_inside(environment: &[(&str, &Path)]) -> Result<ExitStatus> {
    let program = std::env::current_exe()?;
    let mut command = unshare()?;
    command
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1");
    for (name, value) in environment {
        command.env(name, value);
    }
    let mut child = command
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run unshare")?;
    let lifeline = child.stdin.take();
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut lifeline = lifeline;
            for _ in signals.forever() {
                drop(lifeline.take());
            }
        })?;
    Ok(child.wait()?)
}

/// Asks the kernel to prefer this process and all that it will start: hosts that answer each other
/// within milliseconds are part of what is shown, also on a machine that compiles something else.
/// Linux weighs sessions first and processes within them second (sched_autogroup), hence a session
/// of our own and both values. Without the privilege nothing changes.
pub fn prefer_this_process() {
    let _ = setsid();
    let _ = std::fs::write("/proc/self/autogroup", PREFERRED_NICE.to_string());
    let _ = setpriority_process(None, PREFERRED_NICE);
}

/// Makes the inside process end when the outside one does. Call first thing inside.
///
/// # Errors
/// When the watching thread cannot be started.
pub fn end_with_the_outside() -> Result<()> {
    let mut lifeline = File::open("/dev/stdin").context("no standard input")?;
    std::thread::Builder::new()
        .name("lifeline".into())
        .spawn(move || {
            let _ = lifeline.read(&mut [0; 1]);
            end_now();
        })?;
    Ok(())
}

#[allow(
    clippy::disallowed_methods,
    reason = "the kernel cleans up all there is"
)]
fn end_now() -> ! {
    exit(INTERRUPTED)
}

/// The command that makes the namespaces, as root directly, else through a user namespace, else
/// through sudo.
fn unshare() -> Result<Command> {
    let namespaces = ["--net", "--mount", "--pid", "--fork", "--kill-child=KILL"];
    if geteuid().is_root() {
        let mut command = Command::new("unshare");
        command.args(namespaces);
        return Ok(command);
    }
    let tun = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .is_ok();
    let user = ["--user", "--map-root-user"];
    if tun
        && succeeds(
            Command::new("unshare")
                .args(user)
                .args(namespaces)
                .arg("true"),
        )
    {
        let mut command = Command::new("unshare");
        command.args(user).args(namespaces);
        return Ok(command);
    }
    if succeeds(Command::new("sudo").args(["-n", "true"])) {
        let mut command = Command::new("sudo");
        command.args(["-n", "-E", "unshare"]).args(namespaces);
        return Ok(command);
    }
    bail!(
        "the lab needs network namespaces and TAP devices: run as root, or allow both to users \
         (sysctl kernel.unprivileged_userns_clone=1, chmod 666 /dev/net/tun)"
    )
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
