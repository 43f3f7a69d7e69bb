//! Sabotage for drills: this process dies at a chosen moment of a state transfer, as by SIGKILL.
//!
//! A kill from outside cannot be aimed: a round lasts milliseconds. Nothing is told to anybody, nothing
//! is flushed.

use crate::replication::engine::{Emitted, FILE_ATTEMPTS, Offer};
use crate::replication::node::{Node, Note};
use logging_channel::record::LogIndex;
use rustix::process::{Signal, getpid, kill_process};
use std::str::FromStr;

/// When to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Sender: this round begins, from 1.
    Round(u32),
    /// Sender: the guest was stopped for the rest of the state, which nobody else has.
    State,
    /// Sender: the new backup has so many records behind the state.
    Held(u64),
    /// Receiver: so many pieces of the state came.
    Piece(u64),
    /// Receiver: the state is whole, and nobody was told.
    Whole,
    /// Receiver: so many records behind the state came.
    Records(u64),
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) = text.split_once(':').unwrap_or((text, "1"));
        let count: u32 = number.parse().map_err(|_| format!("{number}: no number"))?;
        Ok(match name {
            "round" => Self::Round(count),
            "state" => Self::State,
            "held" => Self::Held(count.into()),
            "piece" => Self::Piece(count.into()),
            "whole" => Self::Whole,
            "records" => Self::Records(count.into()),
            _ => return Err(format!("{name}: no moment of a transfer")),
        })
    }
}

/// Waits for the moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Doom {
    at: Option<Moment>,
    pieces: u64,
    /// Whether this side was given a whole state.
    whole: bool,
    records: u64,
    /// First record behind the state that this side gave away.
    given: Option<LogIndex>,
}

impl Doom {
    /// Dies at `at`; never without one.
    pub(super) fn new(at: Option<Moment>) -> Self {
        Self {
            at,
            ..Self::default()
        }
    }

    /// A round begins.
    pub(super) fn round(&self, number: u32) {
        self.die_if(self.at == Some(Moment::Round(number)));
    }

    /// The engine says something that the node has not heard.
    pub(super) fn emitted(&self, items: &[Emitted]) {
        let state = |item: &Emitted| matches!(item, Emitted::Snapshot { attempt, .. } if *attempt < FILE_ATTEMPTS);
        self.die_if(self.at == Some(Moment::State) && items.iter().any(state));
    }

    /// The node says something.
    pub(super) fn noted(&mut self, note: &Note) {
        if let Note::TransferDone { next, .. } = note {
            self.given = Some(*next);
        }
    }

    /// The node has done something.
    pub(super) fn look(&self, node: &Node) {
        if let (Some(Moment::Held(count)), Some(next)) = (self.at, self.given) {
            self.die_if(node.may_show(LogIndex(next.0 + count)));
        }
    }

    /// The engine is to be given something.
    pub(super) fn offered(&mut self, offer: &Offer) {
        self.count(offer);
        self.die_if(self.is_due());
    }

    fn count(&mut self, offer: &Offer) {
        match offer {
            Offer::Load(_) => self.pieces += 1,
            Offer::Begin { .. } => self.whole = true,
            Offer::Records(records) if self.whole => self.records += records.len() as u64,
            _ => {}
        }
    }

    const fn is_due(&self) -> bool {
        match self.at {
            Some(Moment::Piece(count)) => self.pieces >= count,
            Some(Moment::Whole) => self.whole,
            Some(Moment::Records(count)) => self.records >= count,
            _ => false,
        }
    }

    fn die_if(&self, now: bool) {
        if now {
            tracing::warn!(at = ?self.at, "sabotage: this process dies");
            // There is nobody to tell a failure to.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logging_channel::record::ClockKind;

    #[test]
    fn a_receiver_dies_at_its_moment_and_not_before() {
        let begin = Offer::Begin {
            next: LogIndex(9),
            clock: ClockKind::Exits,
        };
        let offers = [Offer::Load(Vec::new()), Offer::Load(Vec::new()), begin];
        for (moment, due_at) in [
            ("piece:2", Some(1)),
            ("whole", Some(2)),
            ("records:1", None),
        ] {
            let mut doom = Doom::new(Some(moment.parse().unwrap()));
            let found = offers.iter().position(|offer| {
                doom.count(offer);
                doom.is_due()
            });
            assert_eq!(found, due_at, "{moment}");
        }
        assert!("round:x".parse::<Moment>().is_err() && "never".parse::<Moment>().is_err());
        assert_eq!("round:3".parse(), Ok(Moment::Round(3)));
    }
}
