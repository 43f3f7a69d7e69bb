//! A position in guest execution, and its total order.
//!
//! Two kinds of point exist. At an **exit point** the guest has just left the processor through its
//! `exits`-th synchronous exit and has not been entered again: the exit clock can name only these.
//! **Between** exits the branch clock names an instruction by the conditional branches retired
//! since the guest's start and the instruction pointer. Register check values make a wrong arrival
//! visible at once; they take no part in the order.
//!
//! Design section 2. What this file leaves out: how a point is reached (`vmm::clock`).

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// Whether a point lies at a synchronous exit or after re-entry, before the next one.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum PointKind {
    /// At the synchronous exit that `exits` counts, before the guest is entered again.
    #[default]
    Exit,
    /// After that entry, before the next synchronous exit (branch clock only).
    Between,
}

/// A position in guest execution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExecutionPoint {
    /// Synchronous exits so far; 0 is the state before the first entry.
    pub exits: u64,
    /// At the exit, or between it and the next.
    pub kind: PointKind,
    /// Conditional branches retired in guest mode so far; always 0 with the exit clock.
    pub branches: u64,
    /// Guest instruction pointer. 0 when unknown: it travels only for [`PointKind::Between`].
    pub rip: u64,
    /// Low 16 bits of the digest of the general registers, RIP and RFLAGS.
    pub check: u16,
}

impl ExecutionPoint {
    /// The exit point number `exits` with register check `check`, on the exit clock.
    #[must_use]
    pub const fn at_exit(exits: u64, check: u16) -> Self {
        Self {
            exits,
            kind: PointKind::Exit,
            branches: 0,
            rip: 0,
            check,
        }
    }

    /// The part of the point that is ordered.
    #[must_use]
    pub const fn position(&self) -> Position {
        Position {
            exits: self.exits,
            kind: self.kind,
            branches: self.branches,
            rip: self.rip,
        }
    }

    /// Compares positions; register checks take no part.
    #[must_use]
    pub fn order(&self, other: &Self) -> Ordering {
        let key = |p: &Self| (p.exits, p.kind, p.branches);
        key(self).cmp(&key(other))
    }
}

/// An [`ExecutionPoint`] without its check value.
///
/// Not `Ord`: two positions between the same exits with equal branch counts but different `rip` are
/// distinct, yet their order is not known from these numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// See [`ExecutionPoint::exits`].
    pub exits: u64,
    /// See [`ExecutionPoint::kind`].
    pub kind: PointKind,
    /// See [`ExecutionPoint::branches`].
    pub branches: u64,
    /// See [`ExecutionPoint::rip`].
    pub rip: u64,
}
