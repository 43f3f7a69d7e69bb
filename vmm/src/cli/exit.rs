//! How the program ends: one list of exit statuses, and errors with their remedy.
//!
//! The statuses are an interface (scripts, service managers): `docs/errors.md` lists them, a test
//! compares. A failure prints its whole chain of causes once, here.

#![forbid(unsafe_code)]

use arbiter::client::{AddressError, ClientError};
use arbiter::store::StoreError;
use logging_channel::segment::SegmentError;
use std::fmt::Write as _;
use std::process::ExitCode;
use vmm::config::ConfigError;

/// An exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Everything was done.
    Done = 0,
    /// Something failed that no other status names.
    Failed = 1,
    /// Wrong arguments; clap's own status.
    Usage = 2,
    /// The configuration file is not right.
    Configuration = 3,
    /// The arbiter or the peer refused: somebody else runs the guest, or the two sides differ.
    Refused = 4,
    /// The guest's copies differ.
    Diverged = 5,
    /// This host cannot run guests.
    HostUnfit = 6,
    /// Nobody answered: the arbiter, or a control socket.
    Unreachable = 7,
    /// A log or an arbiter's store is damaged.
    Damaged = 8,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    error: anyhow::Error,
    remedy: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit,
            error: error.into(),
            remedy: None,
        }
    }

    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The message, its causes, and the remedy, for a person.
    pub(crate) fn text(&self) -> String {
        let mut text = String::from("understudy: ");
        let mut last = String::new();
        for (number, cause) in self.error.chain().enumerate() {
            let cause = cause.to_string();
            // Libraries differ in whether an outer error repeats its cause.
            if number > 0 && last.ends_with(&cause) {
                continue;
            }
            let _ = write!(text, "{}{cause}", if number > 0 { ": " } else { "" });
            last = cause;
        }
        if let Some(remedy) = &self.remedy {
            let _ = write!(text, "\n  what to do: {remedy}");
        }
        text
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Exit::Failed, error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Configuration, error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let exit = match error {
            StoreError::Damaged { .. } | StoreError::Foreign { .. } => Exit::Damaged,
            _ => Exit::Failed,
        };
        let remedy = error.remedy();
        Self::new(exit, error).remedy(remedy)
    }
}

impl From<AddressError> for Failure {
    fn from(error: AddressError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let (exit, remedy) = match &error {
            ClientError::Unreachable { .. } => (
                Exit::Unreachable,
                "see whether `understudy arbiter` runs there and the network lets this host reach it",
            ),
            ClientError::NotAnArbiter { .. } => (Exit::Unreachable, "check the address"),
            ClientError::Rejected { .. } => (Exit::Failed, "see the message"),
            ClientError::Behind { .. } => (
                Exit::Refused,
                "check that this is the arbiter, with the store, that granted the generation",
            ),
        };
        Self::new(exit, error).remedy(remedy)
    }
}

impl From<SegmentError> for Failure {
    fn from(error: SegmentError) -> Self {
        let exit = match error {
            SegmentError::Damaged { .. } => Exit::Damaged,
            _ => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_documented() {
        let page = include_str!("../../../docs/errors.md");
        let statuses = [
            Exit::Done,
            Exit::Failed,
            Exit::Usage,
            Exit::Configuration,
            Exit::Refused,
            Exit::Diverged,
            Exit::HostUnfit,
            Exit::Unreachable,
            Exit::Damaged,
        ];
        for (number, exit) in statuses.into_iter().enumerate() {
            assert_eq!(exit as usize, number);
            let row = format!("| {number} | `{exit:?}` |");
            assert!(page.contains(&row), "docs/errors.md lacks a row {row}");
        }
    }

    #[test]
    fn causes_are_printed_once() {
        let inner = anyhow::anyhow!("the disk is full");
        let failure = Failure::new(
            Exit::Failed,
            inner.context("writing failed: the disk is full"),
        );
        assert_eq!(
            failure.text(),
            "understudy: writing failed: the disk is full"
        );
        let inner = anyhow::anyhow!("the disk is full");
        let failure = Failure::new(Exit::Failed, inner.context("writing failed")).remedy("free it");
        let expected = "understudy: writing failed: the disk is full\n  what to do: free it";
        assert_eq!(failure.text(), expected);
    }
}
