//! The connection between the two hosts: ordered and whole like TCP, until it breaks.
//!
//! A connection may be slow or stand still; when it breaks, what was not delivered is lost, and each
//! end learns of it at a time of its own. A dead host tells nobody.

use super::random::Random;
use logging_channel::message::Message;
use std::collections::VecDeque;

/// What travels in one direction.
#[derive(Debug, Clone)]
pub enum Parcel {
    /// A message.
    Message(Box<Message>),
    /// Nothing follows.
    End,
}

/// One connection; endpoint 0 is the primary's host.
#[derive(Debug)]
pub struct Link {
    /// Distinguishes this connection from the ones before.
    pub id: u64,
    /// Whether each end still uses it.
    pub open: [bool; 2],
    /// Towards each end.
    queue: [VecDeque<Parcel>; 2],
    arrives_at: [u64; 2],
}

impl Link {
    /// A fresh connection.
    #[must_use]
    pub fn new(id: u64) -> Self {
        Self {
            id,
            open: [true; 2],
            queue: Default::default(),
            arrives_at: [0; 2],
        }
    }

    /// Puts `parcel` on the way to end `to`; when it arrives, never before the one before it.
    pub fn send(&mut self, now: u64, to: usize, parcel: Parcel, delay_ns: u64) -> u64 {
        self.queue[to].push_back(parcel);
        self.arrives_at[to] = self.arrives_at[to].max(now + delay_ns);
        self.arrives_at[to]
    }

    /// What arrives next at end `to`.
    pub fn receive(&mut self, to: usize) -> Option<Parcel> {
        self.queue[to].pop_front()
    }

    /// The connection breaks: of what is under way to `to`, a random suffix is lost.
    pub fn cut(&mut self, to: usize, random: &mut Random) {
        let kept = random.range(0, self.queue[to].len() as u64);
        self.queue[to].truncate(usize::try_from(kept).unwrap_or(0));
    }
}
