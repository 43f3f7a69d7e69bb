//! What a side can still do to its host once it runs: system calls per thread, user, capabilities.
//!
//! A guest that takes over its vCPU thread finds a process that cannot start programs, a thread that
//! cannot open files or sockets, and no capabilities. Everything is taken away in the order in which it
//! is no longer needed: the user first, system calls of the whole process before the guest's memory is
//! there, those of a thread when it has what it needs, capabilities last.
//!
//! A system call outside the list kills the process: for a pair that is a failover. `Logged` lets it
//! pass and has the kernel note it (`dmesg`), to find what a list lacks. Threats: `docs/threat-model.md`.

mod calls;
pub mod filter;
pub mod privileges;

use std::fmt;

/// How strictly system calls are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Confinement {
    /// A call outside the list kills the process.
    #[default]
    Enforced,
    /// It passes, and the kernel notes it.
    Logged,
    /// Nobody looks.
    Off,
}

impl Confinement {
    /// The name in arguments and in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::Logged => "logged",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a side cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The kernel did not take a filter.
    #[error("the kernel does not take the filter of {thread}: {source}")]
    Filter {
        /// Whose filter.
        thread: &'static str,
        /// Why not.
        source: seccompiler::Error,
    },
    /// No such user.
    #[error("there is no user {0:?} in /etc/passwd")]
    NoUser(String),
    /// The user cannot be changed to.
    #[error("cannot become user {user:?}: {source}")]
    Become {
        /// Which.
        user: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Capabilities cannot be given up.
    #[error("cannot give up capabilities: {0}")]
    Capabilities(std::io::Error),
}
