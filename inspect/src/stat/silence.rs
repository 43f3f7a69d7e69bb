//! The longest times in which nothing of a sort happened.
//!
//! What a client sees as a silence is a stretch without a packet sent. A stretch in which guest time
//! itself moved by a jump is the guest's processor not running: a host that was stopped, or died.

#![forbid(unsafe_code)]

use super::Position;
use serde::Serialize;

/// A stretch of guest time without any of what is named.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Silence {
    /// What did not happen.
    pub(super) of: &'static str,
    /// How long, in microseconds of guest time.
    pub(super) us: u64,
    /// The last before it.
    pub(super) from: Position,
    /// The first after it.
    pub(super) to: Position,
}

/// What is watched.
const WATCHED: [&str; 3] = ["records", "packets received", "packets sent"];

/// The longest silence of each sort so far.
#[derive(Debug, Default)]
pub(super) struct Silences {
    first: [Option<Position>; WATCHED.len()],
    last: [Option<Position>; WATCHED.len()],
    longest: [Option<Silence>; WATCHED.len()],
}

impl Silences {
    /// Takes the next record into account.
    pub(super) fn add(&mut self, position: &Position, received: bool, sent: bool) {
        for (sort, happened) in [true, received, sent].into_iter().enumerate() {
            if !happened {
                continue;
            }
            match self.last[sort].replace(*position) {
                Some(last) => self.between(sort, last, *position),
                None => self.first[sort] = Some(*position),
            }
        }
    }

    /// Takes into account what was found behind all that was seen.
    pub(super) fn append(&mut self, next: &Self) {
        for sort in 0..WATCHED.len() {
            let Some(first) = next.first[sort] else {
                continue;
            };
            match self.last[sort] {
                Some(last) => self.between(sort, last, first),
                None => self.first[sort] = Some(first),
            }
            self.last[sort] = next.last[sort];
            if let Some(silence) = next.longest[sort] {
                self.between(sort, silence.from, silence.to);
            }
        }
    }

    /// Keeps the longest, of several the first.
    fn between(&mut self, sort: usize, from: Position, to: Position) {
        let us = to.guest_time_us.saturating_sub(from.guest_time_us);
        if us > self.longest[sort].map_or(0, |longest| longest.us) {
            let of = WATCHED[sort];
            self.longest[sort] = Some(Silence { of, us, from, to });
        }
    }

    /// The longest of each sort.
    pub(super) fn longest(&self) -> Vec<Silence> {
        self.longest.iter().flatten().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_of_each_sort_is_found() {
        let mut silences = Silences::default();
        for (index, (time, received, sent)) in [
            (0, false, true),
            (10, true, false),
            (400, false, false),
            (410, false, true),
            (420, true, true),
        ]
        .into_iter()
        .enumerate()
        {
            let position = Position {
                index: index as u64,
                exits: 0,
                branches: 0,
                guest_time_us: time,
            };
            silences.add(&position, received, sent);
        }
        let found: Vec<_> = silences
            .longest()
            .iter()
            .map(|s| (s.of, s.us, s.from.index, s.to.index))
            .collect();
        let expected = [
            ("records", 390, 1, 2),
            ("packets received", 410, 1, 4),
            ("packets sent", 410, 0, 3),
        ];
        assert_eq!(found, expected);
    }
}
