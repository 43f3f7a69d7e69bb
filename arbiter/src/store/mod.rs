//! Where registers live: a trait, three implementations, and the suite that all must pass.
//!
//! Contract of [`Store::claim`]: claims on one virtual machine are answered one after the other, in
//! an order that respects real time (linearizable); an answer `Granted` is given only when the grant
//! survives any crash that follows, power loss included. After an error the claimant does not know
//! whether it was granted, and asks again.

#![forbid(unsafe_code)]

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod crash_tests;
mod embedded;
#[cfg(test)]
mod embedded_tests;
mod etcd;
#[cfg(test)]
mod etcd_tests;
mod memory;

pub use embedded::EmbeddedStore;
pub use etcd::EtcdStore;
pub use memory::MemoryStore;

use crate::register::{Claim, Outcome, Register, VMS_MAX, VmName};
use std::path::PathBuf;

/// Keeps one register per virtual machine.
pub trait Store: Send + Sync + 'static {
    /// Tests and sets the register of `vm`; durable before it returns. May block on the disk.
    ///
    /// # Errors
    /// When there is no room for another virtual machine, or the store fails.
    fn claim(&self, vm: &VmName, claim: &Claim) -> Result<Outcome, StoreError>;

    /// The register of `vm`; the default register when it was never claimed.
    ///
    /// # Errors
    /// When the store fails.
    fn read(&self, vm: &VmName) -> Result<Register, StoreError>;

    /// All registers that were ever claimed, by name. At most [`VMS_MAX`].
    ///
    /// # Errors
    /// When the store fails.
    fn list(&self) -> Result<Vec<(VmName, Register)>, StoreError>;

    /// The newest [`HISTORY_MAX`](crate::register::HISTORY_MAX) claims granted for `vm`, oldest first;
    /// the last is the register's. For operators: no decision depends on it.
    ///
    /// # Errors
    /// When the store fails.
    fn history(&self, vm: &VmName) -> Result<Vec<Claim>, StoreError>;
}

/// Why a store cannot be used, or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing at this path.
    #[error("there is no arbiter store at {path}")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// [`EmbeddedStore::create`] found something at its path.
    #[error("{path} exists already")]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// Another process has it open.
    #[error("the arbiter store {path} is in use by another process")]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// A file of something else.
    #[error("{path} is not an arbiter store: {found}")]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// What it is instead.
        found: String,
    },
    /// Written by another version of this program.
    #[error("the arbiter store {path} has format {found}, this program knows format {known}")]
    Version {
        /// Which file.
        path: PathBuf,
        /// Format of the file.
        found: u64,
        /// Format of this program.
        known: u64,
    },
    /// Bytes that this program did not write.
    #[error("the arbiter store {path} is damaged: {found}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// No room for another virtual machine.
    #[error("the arbiter keeps {VMS_MAX} virtual machines already")]
    Full,
    /// The cluster that keeps the registers does not answer; it may again.
    #[error("{url} does not answer: {last}")]
    Unavailable {
        /// Its address.
        url: String,
        /// What happened to the last try.
        last: String,
    },
    /// The cluster that keeps the registers answers what no arbiter wrote.
    #[error("{url} cannot be used: {found}")]
    Cluster {
        /// Its address.
        url: String,
        /// What is wrong.
        found: String,
    },
    /// Reading or writing failed.
    #[error("the arbiter store {path} cannot be {operation}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// `opened`, `created`, `read`, `written`.
        operation: &'static str,
        /// What the database or the system said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// What the operator can do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Missing { .. } => {
                "check the path and that its disk is mounted; only for a new arbiter, add --create"
            }
            Self::Exists { .. } => "open it without creating, or choose another path",
            Self::InUse { .. } => "stop the other arbiter first; a store has one process at a time",
            Self::Foreign { .. } => "give the path of an arbiter store",
            Self::Version { .. } => "run the version of the program that wrote it",
            Self::Damaged { .. } => {
                "restore nothing older than the last grant: an old copy may grant a generation \
                 twice. Stop every pair that uses this arbiter, create a new store, and start each \
                 virtual machine with a generation above any it had"
            }
            Self::Unavailable { .. } => "see whether the cluster has a majority of its members",
            Self::Cluster { .. } => "check the cluster's address and the prefix of its keys",
            Self::Full => "run another arbiter for further virtual machines",
            Self::Io { .. } => {
                "look at the disk (space, permissions, errors), then start the arbiter again; \
                 grants that were answered are safe"
            }
        }
    }
}
