//! Frames for the guest that reach a backup while the other side is silent.
//!
//! When a host dies its port of the switch goes down, and frames for the guest are flooded to all ports
//! until the guest is announced elsewhere: the backup gets them before it lives. Thrown away, they
//! come again when the sender's timer runs out, for the second or third time by then and so after
//! twice or four times as long (RFC 6298, section 5.5). Held back and given to the guest as
//! soon as it lives here, the first repetition is answered: a network may delay what it carries.
//!
//! Held is only what arrived since the other side was last heard, because until then it was the other
//! side that got it; only for so long, and only so much: the oldest goes first.

#![forbid(unsafe_code)]

use logging_channel::host_time::HostTime;
use std::collections::VecDeque;

/// Most bytes held.
const BYTES_MAX: usize = 1 << 20;

/// Most frames held: as many as the guest's receive queue takes.
const FRAMES_MAX: usize = 256;

/// Longest time that a frame is held: a guest that lives only after minutes, because the arbiter was away,
/// has no use for what was sent when they began.
const HELD_NS_MAX: u64 = 2_000_000_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct HeldFrames {
    frames: VecDeque<(HostTime, Vec<u8>)>,
    bytes: usize,
}

impl HeldFrames {
    /// The other side was heard: what arrived before is its own business.
    pub(super) fn heard(&mut self) {
        self.frames.clear();
        self.bytes = 0;
    }

    /// Holds `frames`, which arrived at `now`.
    pub(super) fn keep(&mut self, now: HostTime, frames: Vec<Vec<u8>>) {
        for frame in frames {
            self.bytes += frame.len();
            self.frames.push_back((now, frame));
        }
        while self.frames.len() > FRAMES_MAX || self.bytes > BYTES_MAX {
            let Some((_, oldest)) = self.frames.pop_front() else {
                return;
            };
            self.bytes -= oldest.len();
        }
    }

    /// The guest lives here at `now`: what it gets, in the order of arrival.
    pub(super) fn take(&mut self, now: HostTime) -> Vec<Vec<u8>> {
        let held = std::mem::take(self).frames.into_iter();
        held.filter(|(at, _)| now.since(*at) <= HELD_NS_MAX)
            .map(|(_, frame)| frame)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS_NS: u64 = 1_000_000;

    #[test]
    fn only_what_arrived_since_the_other_side_was_heard() {
        let mut held = HeldFrames::default();
        held.keep(HostTime(1), vec![vec![1]]);
        held.heard();
        held.keep(HostTime(2), vec![vec![2], vec![3]]);
        held.keep(HostTime(3), vec![vec![4]]);
        assert_eq!(held.take(HostTime(MS_NS)), [[2], [3], [4]]);
        assert!(held.take(HostTime(MS_NS)).is_empty(), "given once");
    }

    #[test]
    fn nothing_is_held_for_long() {
        let mut held = HeldFrames::default();
        held.keep(HostTime(0), vec![vec![1]]);
        held.keep(HostTime(MS_NS), vec![vec![2]]);
        assert_eq!(held.take(HostTime(HELD_NS_MAX + MS_NS)), [[2]]);
    }

    #[test]
    fn a_flood_pushes_out_the_oldest() {
        let mut held = HeldFrames::default();
        for number in 0..=255 {
            held.keep(HostTime(0), vec![vec![number]]);
        }
        held.keep(HostTime(0), vec![vec![7; 3]]);
        let taken = held.take(HostTime(0));
        assert_eq!(taken.len(), FRAMES_MAX);
        assert_eq!((&taken[0][..], &taken[255][..]), (&[1][..], &[7, 7, 7][..]));
        held.keep(HostTime(0), vec![vec![0; BYTES_MAX]]);
        held.keep(HostTime(0), vec![vec![9]]);
        assert_eq!(held.take(HostTime(0)), [[9]]);
        held.keep(HostTime(0), vec![vec![0; BYTES_MAX + 1]]);
        assert_eq!((held.frames.len(), held.bytes), (0, 0));
    }
}
