//! System call filters (seccomp), one for the process and a narrower one per thread.
//!
//! Filters add up: a call passes when every filter of its thread lets it pass. New programs can be
//! started by none. `clone3` takes its flags from memory, where no filter sees them: it is answered
//! with `ENOSYS`, and the C library uses `clone`. Where a thread may not open files, `openat` is answered
//! with `EACCES`: the C library tries it by itself.

#![forbid(unsafe_code)]

use super::calls;
use super::{ConfineError, Confinement};
use libc::{c_int, c_long};
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// What an ioctl's request is masked with to see what it is of.
const IOCTL_TYPE_MASK: u64 = 0xff00;

/// A thread with a list of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    /// Runs the guest; has everything open that it needs.
    Vcpu,
    /// Writes the log.
    Log,
    /// Kicks the vCPU.
    Watchdog,
}

impl Thread {
    const fn name(self) -> &'static str {
        match self {
            Self::Vcpu => "the vCPU thread",
            Self::Log => "the log thread",
            Self::Watchdog => "the watchdog thread",
        }
    }

    fn list(self) -> List {
        let calls = match self {
            Self::Vcpu => calls::VCPU,
            Self::Log => calls::LOG,
            Self::Watchdog => &[],
        };
        let refused = match self {
            Self::Vcpu | Self::Watchdog => calls::NO_FILES,
            Self::Log => &[],
        };
        let ioctls = match self {
            Self::Vcpu => &[calls::IOCTL_KVM, calls::IOCTL_PERF][..],
            Self::Log | Self::Watchdog => &[],
        };
        // The vCPU's thread starts its watchdog before it is confined, and ends it afterwards.
        List {
            calls: [calls::RUNTIME, calls, refused].concat(),
            ioctls: ioctls.to_vec(),
            refused,
        }
    }
}

/// What passes.
struct List {
    calls: Vec<c_long>,
    /// Types of ioctl requests.
    ioctls: Vec<u8>,
    /// Of `calls`, those that a second filter answers with an error.
    refused: &'static [c_long],
}

impl List {
    fn process() -> Self {
        let all = [calls::RUNTIME, calls::VCPU, calls::LOG, calls::PROCESS];
        let calls = all.concat();
        Self {
            calls: calls
                .into_iter()
                .filter(|call| *call != libc::SYS_ioctl)
                .collect(),
            ioctls: vec![
                calls::IOCTL_KVM,
                calls::IOCTL_PERF,
                calls::IOCTL_TERMINAL_AND_TUN,
            ],
            refused: &[],
        }
    }

    fn program(&self, otherwise: SeccompAction) -> Result<BpfProgram, Error> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            self.calls.iter().map(|call| (*call, Vec::new())).collect();
        let ioctl = |kind: &u8| {
            let condition = SeccompCondition::new(
                1,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::MaskedEq(IOCTL_TYPE_MASK),
                u64::from(*kind) << 8,
            )?;
            SeccompRule::new(vec![condition])
        };
        if !self.ioctls.is_empty() {
            let kinds: Result<Vec<_>, _> = self.ioctls.iter().map(ioctl).collect();
            rules.insert(libc::SYS_ioctl, kinds?);
        }
        let filter =
            SeccompFilter::new(rules, otherwise, SeccompAction::Allow, TargetArch::x86_64)?;
        Ok(filter.try_into()?)
    }
}

/// All pass but `calls`, which are answered with `action`.
fn without(calls: &[c_long], action: SeccompAction) -> Result<BpfProgram, Error> {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, action, TargetArch::x86_64)?.try_into()?)
}

const fn error(errno: c_int) -> SeccompAction {
    SeccompAction::Errno(errno.unsigned_abs())
}

const fn action(confinement: Confinement) -> Option<SeccompAction> {
    match confinement {
        Confinement::Enforced => Some(SeccompAction::KillProcess),
        Confinement::Logged => Some(SeccompAction::Log),
        Confinement::Off => None,
    }
}

/// Confines all threads that there are and will be.
///
/// # Errors
/// When the kernel does not take the filter.
pub fn confine_process(confinement: Confinement) -> Result<(), ConfineError> {
    let failed = |source| ConfineError::Filter {
        thread: "the process",
        source,
    };
    let Some(otherwise) = action(confinement) else {
        return Ok(());
    };
    let program = List::process().program(otherwise).map_err(failed)?;
    let absent = error(libc::ENOSYS);
    let clone3 = without(&[libc::SYS_clone3], absent).map_err(failed)?;
    seccompiler::apply_filter_all_threads(&clone3).map_err(failed)?;
    seccompiler::apply_filter_all_threads(&program).map_err(failed)
}

/// Confines the calling thread, for ever.
///
/// # Errors
/// When the kernel does not take the filter.
pub fn confine_thread(confinement: Confinement, thread: Thread) -> Result<(), ConfineError> {
    let failed = |source| ConfineError::Filter {
        thread: thread.name(),
        source,
    };
    let Some(otherwise) = action(confinement) else {
        return Ok(());
    };
    let list = thread.list();
    if !list.refused.is_empty() {
        let answer = match confinement {
            Confinement::Enforced => error(libc::EACCES),
            Confinement::Logged | Confinement::Off => SeccompAction::Log,
        };
        let refused = without(list.refused, answer).map_err(failed)?;
        seccompiler::apply_filter(&refused).map_err(failed)?;
    }
    let program = list.program(otherwise).map_err(failed)?;
    seccompiler::apply_filter(&program).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Command, Stdio};

    /// Names what the child does.
    const CHILD: &str = "CONFINE_TEST_CHILD";

    /// Not a test by itself: the process of the others, which start this very program again.
    #[test]
    fn child_process() {
        let Ok(what) = std::env::var(CHILD) else {
            return;
        };
        let enforced = Confinement::Enforced;
        let null = std::fs::File::open("/dev/null").unwrap();
        match what.as_str() {
            "vcpu-stays" => {
                confine_thread(enforced, Thread::Vcpu).unwrap();
                std::io::Read::read(&mut &null, &mut [0]).unwrap();
                drop(vec![0u8; 10 << 20]);
            }
            "vcpu-opens" => {
                confine_thread(enforced, Thread::Vcpu).unwrap();
                let opened = std::fs::File::open("/dev/null").map_err(|error| error.kind());
                assert_eq!(opened.err(), Some(std::io::ErrorKind::PermissionDenied));
                allocator_gives_memory_back();
            }
            "vcpu-changes-files" => {
                confine_thread(enforced, Thread::Vcpu).unwrap();
                let _ = std::fs::rename("/nonexistent/a", "/nonexistent/b");
            }
            "vcpu-tun" => {
                confine_thread(enforced, Thread::Vcpu).unwrap();
                let _ = rustix::termios::tcgetwinsize(&null);
            }
            "vcpu-connects" => {
                confine_thread(enforced, Thread::Vcpu).unwrap();
                let _ = std::net::TcpStream::connect("127.0.0.1:1");
            }
            "log-connects" => {
                confine_thread(enforced, Thread::Log).unwrap();
                let _ = std::net::TcpStream::connect("127.0.0.1:1");
            }
            "process-stays" => {
                confine_process(enforced).unwrap();
                let _ = std::net::TcpStream::connect("127.0.0.1:1");
                let _ = rustix::termios::tcgetwinsize(&null);
                std::thread::spawn(|| std::fs::File::open("/dev/null").unwrap())
                    .join()
                    .unwrap();
            }
            "process-executes" => {
                confine_process(enforced).unwrap();
                let _ = Command::new("true").exec();
            }
            "logged-executes" => {
                confine_process(Confinement::Logged).unwrap();
                let why = Command::new("sh").args(["-c", "echo survived >&2"]).exec();
                panic!("{why}");
            }
            other => panic!("{other}"),
        }
        std::io::Write::write_all(&mut std::io::stderr(), b"survived\n").unwrap();
        // Nothing of the test program's end is on any list.
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
            .unwrap();
    }

    /// In an arena of a thread's own, of which the C library looks up how it may be made smaller.
    fn allocator_gives_memory_back() {
        let pieces: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 100 << 10]).collect();
        drop(pieces);
    }

    /// Whether the child came to its end, and the signal that killed it.
    fn child(what: &str) -> (bool, Option<i32>) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "confine::filter::tests::child_process",
                "--nocapture",
            ])
            .args(["--test-threads", "1"])
            .env(CHILD, what)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let survived = String::from_utf8_lossy(&output.stderr).contains("survived");
        (survived, output.status.signal())
    }

    #[test]
    fn a_thread_that_leaves_its_list_takes_the_process_with_it() {
        for killed in [
            "vcpu-changes-files",
            "vcpu-tun",
            "vcpu-connects",
            "log-connects",
            "process-executes",
        ] {
            assert_eq!(child(killed), (false, Some(libc::SIGSYS)), "{killed}");
        }
        for lives in [
            "vcpu-opens",
            "vcpu-stays",
            "process-stays",
            "logged-executes",
        ] {
            assert!(child(lives).0, "{lives}");
        }
    }
}
