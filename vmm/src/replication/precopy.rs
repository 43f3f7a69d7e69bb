//! When to stop the guest for the rest of its state: rounds of copying while it runs.
//!
//! Every round sends the pages that were written since the one before; the guest goes on writing
//! meanwhile. What is left when it is stopped decides how long the pause is, so the guest is stopped
//! only when that is little. A guest that writes faster than the link carries is slowed, more with
//! every round that did not help, and what counts as little grows in steps up to a bound. If even
//! that is never reached, the transfer is given up and the guest goes on alone: the pause is bounded,
//! whatever the guest does.
//!
//! Pure: it is told what was found, and says what to do. Left out: reading pages (`runtime::transfer`).

#![forbid(unsafe_code)]

/// Bounds of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrecopyConfig {
    /// Pages that may be left for the pause at first.
    pub rest_pages: u64,
    /// Pages that may be left for the pause at the most, after many rounds.
    pub rest_pages_max: u64,
    /// Rounds before the transfer is given up.
    pub rounds_max: u32,
    /// Longest pause of the processor in each mark interval, nanoseconds.
    pub pause_ns_max: u64,
}

impl Default for PrecopyConfig {
    /// 1 MiB at first, 8 MiB at the most: a few milliseconds of copying.
    fn default() -> Self {
        Self {
            rest_pages: 256,
            rest_pages_max: 2_048,
            rounds_max: 40,
            pause_ns_max: 40_000_000,
        }
    }
}

/// Rounds after which the bound on the rest is doubled.
const ROUNDS_PER_STEP: u32 = 4;

/// What to do about the pages that a round found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Send them while the guest runs, with this pause of the processor in each mark interval.
    Send {
        /// Nanoseconds; 0 for none.
        pause_ns: u64,
    },
    /// They are few: send them, then stop the guest for what it writes until then.
    Finish,
    /// The guest writes too fast.
    GiveUp,
}

/// The rounds of one transfer.
#[derive(Debug, Clone)]
pub struct Precopy {
    config: PrecopyConfig,
    rounds: u32,
    before: u64,
    pause_ns: u64,
}

impl Precopy {
    /// Before the first round, which sends all of memory.
    #[must_use]
    pub const fn new(config: PrecopyConfig) -> Self {
        Self {
            config,
            rounds: 0,
            before: u64::MAX,
            pause_ns: 0,
        }
    }

    /// Rounds so far.
    #[must_use]
    pub const fn rounds(&self) -> u32 {
        self.rounds
    }

    /// A round found `pages` to send.
    pub fn scanned(&mut self, pages: u64) -> Step {
        let steps = (self.rounds / ROUNDS_PER_STEP).min(63);
        let enough = self
            .config
            .rest_pages
            .saturating_mul(1 << steps)
            .min(self.config.rest_pages_max);
        self.rounds += 1;
        // The first round is all of memory, however little that is.
        if self.rounds > 1 && pages <= enough {
            return Step::Finish;
        }
        if self.rounds > self.config.rounds_max {
            return Step::GiveUp;
        }
        // Less than a quarter gained: the guest keeps up with us.
        if self.rounds > 2 && pages > self.before / 4 * 3 {
            let slower = (self.pause_ns * 2).max(self.config.pause_ns_max / 16);
            self.pause_ns = slower.min(self.config.pause_ns_max);
        }
        self.before = pages;
        Step::Send {
            pause_ns: self.pause_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FREE: Step = Step::Send { pause_ns: 0 };

    #[test]
    fn an_idle_guest_takes_two_rounds() {
        let mut precopy = Precopy::new(PrecopyConfig::default());
        assert_eq!(precopy.scanned(16_384), FREE);
        assert_eq!(precopy.scanned(40), Step::Finish);
    }

    #[test]
    fn a_guest_that_slows_down_is_left_alone() {
        let mut precopy = Precopy::new(PrecopyConfig::default());
        for pages in [16_384, 8_000, 4_000, 2_000, 1_000] {
            assert_eq!(precopy.scanned(pages), FREE);
        }
        assert_eq!(precopy.scanned(500), Step::Finish);
    }

    #[test]
    fn a_guest_that_writes_too_fast_is_slowed_and_in_the_end_given_up() {
        let config = PrecopyConfig::default();
        let mut precopy = Precopy::new(config);
        let mut pauses = Vec::new();
        let last = loop {
            match precopy.scanned(16_384) {
                Step::Send { pause_ns } => pauses.push(pause_ns),
                other => break other,
            }
        };
        assert_eq!(last, Step::GiveUp);
        assert_eq!(pauses.len(), 40);
        assert!(pauses.is_sorted(), "{pauses:?}");
        assert_eq!(pauses.last(), Some(&config.pause_ns_max));
    }

    proptest! {
        #[test]
        fn it_ends_and_the_rest_is_bounded(found in proptest::collection::vec(0..100_000_u64, 50)) {
            let config = PrecopyConfig::default();
            let mut precopy = Precopy::new(config);
            for pages in found {
                match precopy.scanned(pages) {
                    Step::Send { pause_ns } => prop_assert!(pause_ns <= config.pause_ns_max),
                    Step::Finish => {
                        prop_assert!(pages <= config.rest_pages_max);
                        return Ok(());
                    }
                    Step::GiveUp => {
                        prop_assert!(precopy.rounds() > config.rounds_max);
                        return Ok(());
                    }
                }
            }
            prop_assert!(false, "never ended");
        }
    }
}
