//! Names of the kinds of records, as filters, tables and JSON write them.

#![forbid(unsafe_code)]

use logging_channel::record::RecordBody;

/// A kind of record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Identity and initial conditions.
    Start,
    /// Guest time moved on.
    Timer,
    /// Console input.
    Console,
    /// A received frame.
    Packet,
    /// Random bytes given to the guest.
    Entropy,
    /// Something left the guest.
    Output,
    /// Digests of the guest's state.
    Mark,
    /// The guest was entered.
    Progress,
    /// A command.
    Control,
    /// The guest ended.
    End,
}

impl Kind {
    /// Every kind, in the order of their numbers in the format.
    pub const ALL: [Self; 10] = [
        Self::Start,
        Self::Timer,
        Self::Console,
        Self::Packet,
        Self::Entropy,
        Self::Output,
        Self::Mark,
        Self::Control,
        Self::End,
        Self::Progress,
    ];

    /// The kind of a record with this body.
    #[must_use]
    pub const fn of(body: &RecordBody) -> Self {
        match body {
            RecordBody::Start(_) => Self::Start,
            RecordBody::Timer => Self::Timer,
            RecordBody::Console(_) => Self::Console,
            RecordBody::Packet { .. } => Self::Packet,
            RecordBody::Entropy(_) => Self::Entropy,
            RecordBody::Output(_) => Self::Output,
            RecordBody::Mark(_) => Self::Mark,
            RecordBody::Progress => Self::Progress,
            RecordBody::Control(_) => Self::Control,
            RecordBody::End(_) => Self::End,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Timer => "timer",
            Self::Console => "console",
            Self::Packet => "packet",
            Self::Entropy => "entropy",
            Self::Output => "output",
            Self::Mark => "mark",
            Self::Progress => "progress",
            Self::Control => "control",
            Self::End => "end",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_again() {
        for kind in Kind::ALL {
            assert_eq!(Kind::named(kind.name()), Some(kind));
        }
        assert_eq!(Kind::named("Timer"), None);
    }
}
