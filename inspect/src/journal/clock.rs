//! Host time to guest time: where on a log's time axis something of its journal belongs.
//!
//! While a guest runs, the two go at the same rate; when it is stopped, guest time catches up afterwards. So
//! host time is guest time of the last record seen, and what passed since. Before the first record it stands.

#![forbid(unsafe_code)]

use logging_channel::journal::{Entry, What};

/// The last record whose host and guest time are known.
#[derive(Debug, Clone, Copy, Default)]
pub struct GuestClock {
    seen_us: u64,
    guest_time_us: u64,
    runs: bool,
}

impl GuestClock {
    /// Takes note of an entry, after what it says was placed.
    pub fn see(&mut self, entry: &Entry) {
        let (next, guest_time_us, seen_us) = match &entry.what {
            What::Role(standing) => (standing.next, standing.guest_time_us, standing.seen_us),
            What::Interval(interval) => (interval.next, interval.guest_time_us, interval.seen_us),
            What::Begun(_) | What::Happened(_) => return,
        };
        if next > 0 {
            *self = Self {
                seen_us,
                guest_time_us,
                runs: true,
            };
        }
    }

    /// Whether any record was seen.
    pub(super) const fn runs(&self) -> bool {
        self.runs
    }

    /// The guest time of host time `at_us`.
    #[must_use]
    pub const fn guest_time_us(&self, at_us: u64) -> u64 {
        if !self.runs {
            return 0;
        }
        if at_us >= self.seen_us {
            self.guest_time_us.saturating_add(at_us - self.seen_us)
        } else {
            self.guest_time_us.saturating_sub(self.seen_us - at_us)
        }
    }
}
