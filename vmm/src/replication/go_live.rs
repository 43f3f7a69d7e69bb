//! One claim at the arbiter, repeated until it is answered.
//!
//! A claim has at most one request under way. Unreachable means wait: the claim is repeated after a
//! pause that doubles up to a bound, for ever, because nobody else may decide. The arbiter answers
//! a repeated claim of its winner as it did the first time, so a lost reply costs nothing.
//! What a grant leads to is `node`; what is drained before a claim is `engine`.

#![forbid(unsafe_code)]

use logging_channel::host_time::HostTime;
use serde::{Deserialize, Serialize};

/// Pauses between repetitions of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RetryConfig {
    /// After the first failure, nanoseconds.
    pub first_ns: u64,
    /// The longest, nanoseconds.
    pub pause_ns_max: u64,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            first_ns: 50_000_000,
            pause_ns_max: 500_000_000,
        }
    }
}

/// A claim that has not been decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim {
    expected: u64,
    new: u64,
    attempts: u32,
    pause_ns: u64,
    retry_at: Option<HostTime>,
    config: RetryConfig,
}

/// A claim as an operator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimStatus {
    /// The generation it follows.
    pub expected: u64,
    /// The generation it asks for.
    pub new: u64,
    /// Requests sent so far.
    pub attempts: u32,
}

impl Claim {
    /// The claim of the generation after `expected`; its first request is under way.
    #[must_use]
    pub const fn after(expected: u64, config: RetryConfig) -> Self {
        Self {
            expected,
            new: expected + 1,
            attempts: 1,
            pause_ns: config.first_ns,
            retry_at: None,
            config,
        }
    }

    /// The generation that must be current for the claim to succeed.
    #[must_use]
    pub const fn expected(&self) -> u64 {
        self.expected
    }

    /// The generation claimed.
    #[must_use]
    pub const fn new_generation(&self) -> u64 {
        self.new
    }

    /// The request under way got no decision: how long to pause before the next.
    pub fn undecided(&mut self, now: HostTime) -> u64 {
        let pause_ns = self.pause_ns;
        self.retry_at = Some(now.plus_ns(pause_ns));
        self.pause_ns = pause_ns.saturating_mul(2).min(self.config.pause_ns_max);
        pause_ns
    }

    /// Whether to send the request again now; if so, it is under way.
    pub fn retry_due(&mut self, now: HostTime) -> bool {
        let due = self.retry_at.is_some_and(|at| now >= at);
        if due {
            self.retry_at = None;
            self.attempts = self.attempts.saturating_add(1);
        }
        due
    }

    /// When the next request is due, if none is under way.
    #[must_use]
    pub const fn retry_at(&self) -> Option<HostTime> {
        self.retry_at
    }

    /// For the status.
    #[must_use]
    pub const fn status(&self) -> ClaimStatus {
        ClaimStatus {
            expected: self.expected,
            new: self.new,
            attempts: self.attempts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> HostTime {
        HostTime(ms * 1_000_000)
    }

    #[test]
    fn the_pause_doubles_up_to_its_bound() {
        let mut claim = Claim::after(1, RetryConfig::default());
        assert_eq!((claim.expected(), claim.new_generation()), (1, 2));
        let mut now = 0;
        for pause_ms in [50, 100, 200, 400, 500, 500] {
            assert!(!claim.retry_due(at(now)), "one request at a time");
            assert_eq!(claim.undecided(at(now)), pause_ms * 1_000_000);
            assert_eq!(claim.retry_at(), Some(at(now + pause_ms)));
            assert!(!claim.retry_due(at(now + pause_ms - 1)));
            now += pause_ms;
            assert!(claim.retry_due(at(now)));
        }
        assert_eq!(claim.status().attempts, 7);
    }
}
