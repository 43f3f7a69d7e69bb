//! A debugger inside the guest: steps a program and stops it at breakpoints, over and over.
//!
//! The guest's processor then raises debug exceptions of its own, which record and replay must leave alone. What
//! was seen is hashed, so that a lost or doubled one shows on the console.

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::mem::offset_of;
use std::process::ExitCode;

/// Single steps before breakpoints have their turn.
const STEPS: u64 = 400;
/// Breakpoint hits before single steps have their turn.
const HITS: u64 = 100;
/// DR7: breakpoint 0 on execution, for this process.
const DR7_FIRST: i64 = 1;

/// Debugs process `pid`, which computes in a loop, for so many rounds of steps and hits.
pub(crate) fn run(pid: i32, rounds: u64) -> ExitCode {
    match debug(Pid::from_raw(pid), rounds) {
        Ok(seen) => {
            let traps = rounds * (STEPS + HITS);
            println!("witness: debugged {rounds} rounds, {traps} traps, digest {seen:016x}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("witness: cannot debug process {pid}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn debug(child: Pid, rounds: u64) -> Result<u64, Errno> {
    ptrace::seize(child, ptrace::Options::empty())?;
    ptrace::interrupt(child)?;
    waitpid(child, None)?;
    let mut seen = 0;
    for _ in 0..rounds {
        for _ in 0..STEPS {
            ptrace::step(child, None)?;
            seen = next(seen, trapped(child)?);
        }
        // Of the loop that it is in, wherever that is.
        let place = ptrace::getregs(child)?.rip;
        set(child, 0, place.cast_signed())?;
        set(child, 7, DR7_FIRST)?;
        for _ in 0..HITS {
            ptrace::cont(child, None)?;
            seen = next(seen, trapped(child)?);
        }
        set(child, 7, 0)?;
    }
    ptrace::detach(child, None)?;
    Ok(seen)
}

/// Waits for the trap; where it was.
fn trapped(child: Pid) -> Result<u64, Errno> {
    match waitpid(child, None)? {
        WaitStatus::Stopped(_, Signal::SIGTRAP) => Ok(ptrace::getregs(child)?.rip),
        _ => Err(Errno::ECHILD),
    }
}

fn set(child: Pid, register: usize, value: i64) -> Result<(), Errno> {
    let at = offset_of!(libc::user, u_debugreg) + 8 * register;
    ptrace::write_user(child, at as ptrace::AddressType, value)
}

/// Splitmix64's finaliser over what was seen so far and what is new.
fn next(seen: u64, rip: u64) -> u64 {
    let mut z = (seen ^ rip).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_depends_on_every_place_and_on_the_order() {
        let of = |places: &[u64]| places.iter().fold(0, |seen, place| next(seen, *place));
        assert_eq!(of(&[1, 2, 3]), of(&[1, 2, 3]));
        assert_ne!(of(&[1, 2, 3]), of(&[1, 3, 2]));
        assert_ne!(of(&[1, 2, 3]), of(&[1, 2]));
    }
}
