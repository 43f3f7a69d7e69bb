//! The rules of the logging channel: who says what, when, and what is not allowed.
//!
//! ```text
//!  backup                                primary
//!    | ------------ Hello ---------------> |   compares protocol and identity
//!    | <----------- Welcome -------------- |   or Refused, naming the first item that differs
//!    | <----------- Part ----------------- |   only if the guest runs already: its state, as far
//!    | ------------ Taken ---------------> |   as the window allows, and at last
//!    | <----------- Complete ------------- |   the index from which the log follows
//!    | <----------- Log ------------------ |   consecutive records from 0, or from that index
//!    | ------------ Ack -----------------> |   cumulative, for every Log frame
//!    | <--------- Heartbeat -------------> |   both ways, the primary's with `released`
//!    | <---------- Goodbye --------------> |   an orderly end
//! ```
//!
//! One session lives as long as one connection; a broken one is never resumed. Both sides are
//! sans-I/O: `handle(now, event)` returns commands, in the order in which they must be carried out.
//! A peer that breaks the rules is answered with `Close` and the rule it broke; what closing means
//! (a suspicion) is decided by `vmm::replication::node`, as is everything about roles.

#![forbid(unsafe_code)]

pub mod backup;
pub mod primary;

use crate::clock_agreement::{ClockAgreement, ClockOffer, agree};
use crate::message::{Hello, Identity, PROTOCOL_VERSION, Refused};
use crate::pointers::PointerError;

/// Why a session closes its connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CloseReason {
    /// The identities differ.
    #[error("{item} differs: {ours} here, {theirs} there")]
    IdentityDiffers {
        /// What differs.
        item: String,
        /// The primary's value.
        ours: String,
        /// The backup's value.
        theirs: String,
    },
    /// The primary is one of the past.
    #[error("the primary has generation {generation}, this host has seen {newest}")]
    OlderGeneration {
        /// The primary's.
        generation: u64,
        /// What this host has seen.
        newest: u64,
    },
    /// A message that this state does not allow.
    #[error("{message} not allowed while {state}")]
    Unexpected {
        /// Kind of message.
        message: &'static str,
        /// State of the session.
        state: &'static str,
    },
    /// An index that cannot be right.
    #[error(transparent)]
    Pointer(#[from] PointerError),
    /// A Log frame without records.
    #[error("empty log frame")]
    EmptyLog,
    /// Pieces of a state are missing, or the peer took in what it was not sent.
    #[error("state transfer: {0} bytes here, {1} there")]
    PartsDiffer(u64, u64),
    /// We ended it.
    #[error("this side said goodbye")]
    SaidGoodbye,
    /// The peer ended it.
    #[error("the peer said goodbye")]
    PeerSaidGoodbye,
}

/// The kind of a message, for diagnostics.
#[must_use]
pub const fn message_name(message: &crate::message::Message) -> &'static str {
    use crate::message::Message;
    match message {
        Message::Hello(_) => "Hello",
        Message::Welcome(_) => "Welcome",
        Message::Refused(_) => "Refused",
        Message::Log(_) => "Log",
        Message::Ack(_) => "Ack",
        Message::Heartbeat(_) => "Heartbeat",
        Message::Goodbye(_) => "Goodbye",
        Message::Part(_) => "Part",
        Message::Complete(_) => "Complete",
        Message::Taken(_) => "Taken",
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Compares what the backup would run with what the primary runs: the first item that differs.
#[must_use]
pub fn compare(ours: &Identity, hello: &Hello) -> Option<Refused> {
    if hello.protocol != PROTOCOL_VERSION {
        return Some(Refused {
            item: "protocol".to_owned(),
            ours: PROTOCOL_VERSION.to_string(),
            theirs: hello.protocol.to_string(),
        });
    }
    compare_identities(ours, &hello.identity)
}

/// The first item in which two guests differ.
#[must_use]
pub fn compare_identities(ours: &Identity, theirs: &Identity) -> Option<Refused> {
    let items: [(&str, String, String); 7] = [
        ("vm", ours.vm.clone(), theirs.vm.clone()),
        (
            "cpu_model",
            ours.cpu_model.clone(),
            theirs.cpu_model.clone(),
        ),
        (
            "memory_bytes",
            ours.memory_bytes.to_string(),
            theirs.memory_bytes.to_string(),
        ),
        (
            "kernel_sha256",
            hex(&ours.kernel_sha256),
            hex(&theirs.kernel_sha256),
        ),
        (
            "initramfs_sha256",
            hex(&ours.initramfs_sha256),
            hex(&theirs.initramfs_sha256),
        ),
        ("cmdline", ours.cmdline.clone(), theirs.cmdline.clone()),
        ("mac", hex(&ours.mac), hex(&theirs.mac)),
    ];
    items
        .into_iter()
        .find(|(_, ours, theirs)| ours != theirs)
        .map(|(item, ours, theirs)| Refused {
            item: item.to_owned(),
            ours,
            theirs,
        })
}

/// What the pair runs on; refused when one side insists on a clock that the other has not.
///
/// # Errors
/// The refusal that the primary sends, in its own view.
pub fn settle_clock(primary: &ClockOffer, backup: &ClockOffer) -> Result<ClockAgreement, Refused> {
    agree(primary, backup).ok_or_else(|| Refused {
        item: "clock".to_owned(),
        ours: primary.to_string(),
        theirs: backup.to_string(),
    })
}

impl From<&Refused> for CloseReason {
    fn from(refused: &Refused) -> Self {
        Self::IdentityDiffers {
            item: refused.item.clone(),
            ours: refused.ours.clone(),
            theirs: refused.theirs.clone(),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use crate::clock_agreement::ClockOffer;
    use crate::execution_point::ExecutionPoint;
    use crate::host_time::{GuestTime, HostTime};
    use crate::message::{Hello, Identity, PROTOCOL_VERSION};
    use crate::record::{LogIndex, Record, RecordBody};

    pub(crate) fn identity() -> Identity {
        Identity {
            vm: "web".into(),
            cpu_model: "understudy-v1".into(),
            memory_bytes: 64 << 20,
            kernel_sha256: [1; 32],
            initramfs_sha256: [2; 32],
            cmdline: "console=ttyS0".into(),
            mac: [2, 0, 0, 0, 0, 1],
        }
    }

    pub(crate) fn hello() -> Hello {
        Hello {
            protocol: PROTOCOL_VERSION,
            holder: "b".into(),
            identity: identity(),
            clocks: ClockOffer::Either,
        }
    }

    pub(crate) fn timer(index: u64) -> Record {
        Record {
            index: LogIndex(index),
            point: ExecutionPoint::at_exit(index, 0),
            guest_time: GuestTime::ZERO,
            body: RecordBody::Timer,
        }
    }

    pub(crate) fn at(ms: u64) -> HostTime {
        HostTime(ms * 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{hello, identity};
    use super::*;

    #[test]
    fn equal_identities_match() {
        assert_eq!(compare(&identity(), &hello()), None);
    }

    #[test]
    fn the_first_difference_is_named() {
        let mut hello = hello();
        hello.identity.mac[5] = 9;
        let refused = compare(&identity(), &hello).expect("differs");
        assert_eq!(refused.item, "mac");
        assert_eq!(
            (refused.ours.as_str(), refused.theirs.as_str()),
            ("020000000001", "020000000009")
        );
        hello.identity.memory_bytes = 1;
        assert_eq!(
            compare(&identity(), &hello).expect("differs").item,
            "memory_bytes"
        );
        hello.protocol = 99;
        let refused = compare(&identity(), &hello).expect("differs");
        assert_eq!(
            (refused.item.as_str(), refused.theirs.as_str()),
            ("protocol", "99")
        );
    }

    #[test]
    fn every_item_of_the_identity_counts() {
        type Change = fn(&mut Hello);
        let changes: [(&str, Change); 7] = [
            ("vm", |h| h.identity.vm.push('x')),
            ("cpu_model", |h| h.identity.cpu_model.push('x')),
            ("memory_bytes", |h| h.identity.memory_bytes += 1),
            ("kernel_sha256", |h| h.identity.kernel_sha256[31] ^= 1),
            ("initramfs_sha256", |h| h.identity.initramfs_sha256[0] ^= 1),
            ("cmdline", |h| h.identity.cmdline.push('x')),
            ("mac", |h| h.identity.mac[0] ^= 1),
        ];
        for (item, change) in changes {
            let mut hello = hello();
            change(&mut hello);
            assert_eq!(compare(&identity(), &hello).expect(item).item, item);
        }
    }
}
