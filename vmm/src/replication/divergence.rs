//! The first difference between a replay and its log, with evidence.
//!
//! A divergence is final for the copy that shows it: it never goes live (design section 1). What is
//! kept here is enough to say what differed, where, and which side had what.

#![forbid(unsafe_code)]

use logging_channel::execution_point::ExecutionPoint;
use logging_channel::record::{Digests, LogIndex};
use serde::Serialize;
use std::fmt;

/// The first mismatch found by the replayer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Divergence {
    /// The record that did not fit, or the one expected next.
    pub index: LogIndex,
    /// Where the log says it belongs.
    pub expected_point: ExecutionPoint,
    /// Where this copy was.
    pub found_point: ExecutionPoint,
    /// What differed.
    pub difference: Difference,
}

/// What differed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum Difference {
    /// The copy passed the record's point without stopping at it.
    Passed,
    /// Same point, other registers.
    Registers {
        /// Register check of the record.
        expected: u16,
        /// Register check of this copy.
        found: u16,
    },
    /// Digests at a Mark differ; the first differing section is named.
    Digests {
        /// `registers`, `devices` or `memory`.
        section: &'static str,
        /// The log's digests.
        expected: Digests,
        /// This copy's digests.
        found: Digests,
    },
    /// The copy produced other output than the log says, or none, or some where there was none.
    Output {
        /// The log's output.
        expected: String,
        /// This copy's output.
        found: String,
    },
    /// The log delivers input that this copy could not have asked for or taken.
    Input(&'static str),
    /// One side's guest ended, the other's did not.
    End {
        /// How it stands by the log.
        expected: String,
        /// How it stands here.
        found: String,
    },
    /// A state that the log carries does not fit this copy.
    State(String),
    /// Records are not consecutive.
    Gap {
        /// The index that was due.
        due: LogIndex,
    },
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "record {} at exit {} (this copy: exit {}): ",
            self.index.0, self.expected_point.exits, self.found_point.exits
        )?;
        match &self.difference {
            Difference::Passed => write!(f, "this copy ran past the record's point"),
            Difference::Registers { expected, found } => {
                write!(
                    f,
                    "registers differ: check {expected:#06x} in the log, {found:#06x} here"
                )
            }
            Difference::Digests {
                section,
                expected,
                found,
            } => {
                write!(
                    f,
                    "{section} differ: {expected:x?} in the log, {found:x?} here"
                )
            }
            Difference::Output { expected, found } => {
                write!(f, "output differs: {expected} in the log, {found} here")
            }
            Difference::State(cause) => write!(f, "the state in the log does not fit: {cause}"),
            Difference::Input(what) => write!(f, "input does not fit: {what}"),
            Difference::End { expected, found } => {
                write!(f, "guest {expected} in the log, {found} here")
            }
            Difference::Gap { due } => write!(f, "record {} was due", due.0),
        }
    }
}

/// Names the first section in which two sets of digests differ, if any.
#[must_use]
pub fn first_difference(expected: &Digests, found: &Digests) -> Option<&'static str> {
    if expected.registers != found.registers {
        Some("registers")
    } else if expected.devices != found.devices {
        Some("devices")
    } else if expected.memory.is_some() && expected.memory != found.memory {
        Some("memory")
    } else {
        None
    }
}
