//! Which execution clock a pair runs on: what each side offers, and what follows from two offers.
//!
//! The clock is settled in the handshake, before the Start record exists: Hello carries the backup's
//! offer, Welcome the primary's, and both sides compute the same answer from both. What a side's
//! operator has set is never overruled: a setting that the other side cannot meet is a refusal. A
//! guest that runs already keeps its clock: its primary offers only that one.

#![forbid(unsafe_code)]

use crate::record::ClockKind;
use crate::record::limits::TEXT_BYTES_MAX;
use std::fmt;

/// What a side can and may run on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClockOffer {
    /// This one and no other: by its configuration, or because the guest runs on it already.
    Only(ClockKind),
    /// Set to `auto`, on a host whose counter was proven.
    Either,
    /// Set to `auto`, on a host whose counter cannot be trusted; why.
    NoCounter(String),
}

/// What a pair, or a guest without a backup, runs on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClockAgreement {
    /// The clock.
    pub kind: ClockKind,
    /// Why this one, for people.
    pub why: String,
}

impl ClockOffer {
    /// The offer of a host set to `auto` whose counter failed; a long reason is cut.
    #[must_use]
    pub fn no_counter(why: &str) -> Self {
        let cut = why
            .char_indices()
            .nth(WHY_CHARS_MAX)
            .map_or(why.len(), |(at, _)| at);
        Self::NoCounter(why[..cut].to_owned())
    }

    /// What a guest without a backup runs on.
    #[must_use]
    pub fn alone(&self) -> ClockAgreement {
        let (kind, why) = match self {
            Self::Only(kind) => (*kind, "by the configuration".to_owned()),
            Self::Either => (
                ClockKind::Branches,
                "this host's counter is exact".to_owned(),
            ),
            Self::NoCounter(why) => (ClockKind::Exits, format!("no branch clock here: {why}")),
        };
        ClockAgreement { kind, why }
    }
}

/// Longest reason in an offer, in characters: one of them is at most four bytes.
const WHY_CHARS_MAX: usize = 400;
const _: () = assert!(
    4 * WHY_CHARS_MAX + 64 <= TEXT_BYTES_MAX,
    "a refusal quotes it"
);

/// What a pair with these offers runs on; `None` when one side insists on what the other has not.
///
/// The answer is the same on both sides, words included.
#[must_use]
pub fn agree(primary: &ClockOffer, backup: &ClockOffer) -> Option<ClockAgreement> {
    use ClockOffer::{Either, NoCounter, Only};
    let (kind, why) = match (primary, backup) {
        (Only(ours), Only(theirs)) if ours == theirs => {
            (*ours, "both sides are set to it".to_owned())
        }
        (Only(ClockKind::Branches), NoCounter(_))
        | (NoCounter(_), Only(ClockKind::Branches))
        | (Only(_), Only(_)) => return None,
        (Only(kind), Either | NoCounter(_)) => (*kind, "the primary is set to it".to_owned()),
        (Either | NoCounter(_), Only(kind)) => (*kind, "the backup is set to it".to_owned()),
        (Either, Either) => (
            ClockKind::Branches,
            "both hosts' counters are exact".to_owned(),
        ),
        (NoCounter(why), Either) => (ClockKind::Exits, lacking("the primary's host", why)),
        (Either, NoCounter(why)) => (ClockKind::Exits, lacking("the backup's host", why)),
        (NoCounter(why), NoCounter(_)) => (ClockKind::Exits, lacking("neither host", why)),
    };
    Some(ClockAgreement { kind, why })
}

fn lacking(whose: &str, why: &str) -> String {
    let verb = if whose == "neither host" {
        "has"
    } else {
        "lacks"
    };
    format!("{whose} {verb} a counter to trust: {why}")
}

impl fmt::Display for ClockOffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only(kind) => f.write_str(kind.name()),
            Self::Either => f.write_str("auto"),
            Self::NoCounter(why) => write!(f, "auto without a counter ({why})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ClockKind::{Branches, Exits};

    fn offers() -> [ClockOffer; 4] {
        let none = ClockOffer::NoCounter("guest-branches: off".into());
        [
            ClockOffer::Only(Exits),
            ClockOffer::Only(Branches),
            ClockOffer::Either,
            none,
        ]
    }

    #[test]
    fn every_pair_of_offers_has_its_answer() {
        let expected = [
            [Some(Exits), None, Some(Exits), Some(Exits)],
            [None, Some(Branches), Some(Branches), None],
            [Some(Exits), Some(Branches), Some(Branches), Some(Exits)],
            [Some(Exits), None, Some(Exits), Some(Exits)],
        ];
        for (primary, row) in offers().iter().zip(expected) {
            for (backup, kind) in offers().iter().zip(row) {
                let agreed = agree(primary, backup);
                let found = agreed.as_ref().map(|agreed| agreed.kind);
                assert_eq!(found, kind, "{primary}, {backup}");
                assert!(agreed.is_none_or(|agreed| !agreed.why.is_empty()));
            }
        }
    }

    #[test]
    fn the_reason_names_the_host_and_what_it_lacks() {
        let [_, _, either, none] = offers();
        let why = |primary, backup| agree(primary, backup).expect("auto on both").why;
        assert_eq!(
            why(&either, &none),
            "the backup's host lacks a counter to trust: guest-branches: off"
        );
        assert_eq!(
            why(&none, &either),
            "the primary's host lacks a counter to trust: guest-branches: off"
        );
        assert_eq!(
            why(&none, &none),
            "neither host has a counter to trust: guest-branches: off"
        );
    }

    #[test]
    fn a_side_alone_takes_the_best_it_has() {
        let [exits, branches, either, none] = offers();
        let kind = |offer: &ClockOffer| offer.alone().kind;
        assert_eq!(
            [&exits, &branches, &either, &none].map(kind),
            [Exits, Branches, Branches, Exits]
        );
    }

    #[test]
    fn long_reasons_are_cut() {
        let ClockOffer::NoCounter(why) = ClockOffer::no_counter(&"ü".repeat(5_000)) else {
            panic!("no counter");
        };
        assert_eq!(why.chars().count(), WHY_CHARS_MAX);
        assert_eq!(
            ClockOffer::no_counter("short"),
            ClockOffer::NoCounter("short".into())
        );
    }
}
