//! Suspicion of a silent peer, from heard-from times and a clock that the caller supplies.
//!
//! Silence of [`DetectorConfig::timeout_ns`] raises suspicion, with one exception: a detector that
//! was itself stopped (SIGSTOP, a stalled host) finds a long silence of which it heard nothing only
//! because it did not listen. Every caller therefore reports each moment at which it runs through
//! [`FailureDetector::observe`]; a gap longer than half the timeout is a *stall*, and after one the
//! peer is given a fresh interval of half the timeout before it may be suspected.
//!
//! Suspicion is only ever a reason to ask the arbiter. A wrong suspicion costs protection, never
//! correctness. A host that stalls again and again never suspects anybody: it is in no state to
//! judge. What is left out: what a suspicion leads to (`vmm::replication::node`).

#![forbid(unsafe_code)]

use crate::host_time::HostTime;

/// How often heartbeats go out and how long silence may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DetectorConfig {
    /// Time between two heartbeats of one side, nanoseconds.
    pub heartbeat_interval_ns: u64,
    /// Silence after which the peer is suspected, nanoseconds. At least three intervals.
    pub timeout_ns: u64,
}

impl Default for DetectorConfig {
    fn default() -> Self {
        Self {
            heartbeat_interval_ns: 20_000_000,
            timeout_ns: 120_000_000,
        }
    }
}

impl DetectorConfig {
    /// Whether one lost or late heartbeat is still short of a suspicion.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.heartbeat_interval_ns > 0
            && self.timeout_ns >= self.heartbeat_interval_ns.saturating_mul(3)
    }

    /// Longest time between two observations that is not a stall of our own.
    #[must_use]
    pub const fn stall_ns_max(&self) -> u64 {
        self.timeout_ns / 2
    }
}

/// Watches one peer on one connection.
#[derive(Debug, Clone, Hash)]
pub struct FailureDetector {
    config: DetectorConfig,
    heard_at: HostTime,
    observed_at: HostTime,
    grace_until: HostTime,
    patient_until: HostTime,
}

/// How long a peer may be silent while both sides are still being set up, nanoseconds: images are
/// read, guest memory is filled, and nothing was promised to anybody yet.
pub const START_PATIENCE_NS: u64 = 5_000_000_000;

impl FailureDetector {
    /// A detector that counts `now` as the first sign of life.
    ///
    /// # Panics
    /// When `config` is not sound; configuration is checked before it comes here.
    #[must_use]
    pub fn new(config: DetectorConfig, now: HostTime) -> Self {
        assert!(
            config.is_sound(),
            "the timeout must be at least three heartbeat intervals"
        );
        Self {
            config,
            heard_at: now,
            observed_at: now,
            grace_until: now,
            patient_until: now,
        }
    }

    /// A detector for a pair that is being set up: patient until [`FailureDetector::settle`].
    ///
    /// # Panics
    /// As [`FailureDetector::new`].
    #[must_use]
    pub fn starting(config: DetectorConfig, now: HostTime) -> Self {
        Self {
            patient_until: now.plus_ns(START_PATIENCE_NS),
            ..Self::new(config, now)
        }
    }

    /// The guest runs on both sides: from here on silence counts in full.
    pub fn settle(&mut self, now: HostTime) {
        if self.patient_until > now {
            self.patient_until = now;
            self.heard_at = self.heard_at.max(now);
        }
    }

    /// The caller runs. Returns the length of our own stall in nanoseconds, if there was one.
    pub fn observe(&mut self, now: HostTime) -> Option<u64> {
        let gap_ns = now.since(self.observed_at);
        self.observed_at = self.observed_at.max(now);
        if gap_ns <= self.config.stall_ns_max() {
            return None;
        }
        self.grace_until = now.plus_ns(self.config.stall_ns_max());
        Some(gap_ns)
    }

    /// Something arrived from the peer.
    pub fn heard(&mut self, now: HostTime) {
        self.heard_at = self.heard_at.max(now);
    }

    /// Whether the peer has been silent for too long. Call [`FailureDetector::observe`] first.
    #[must_use]
    pub fn suspects(&self, now: HostTime) -> bool {
        now >= self.suspicion_at()
    }

    /// When suspicion will arise if nothing more is heard.
    #[must_use]
    pub fn suspicion_at(&self) -> HostTime {
        self.heard_at
            .plus_ns(self.config.timeout_ns)
            .max(self.grace_until)
            .max(self.patient_until)
    }

    /// Whether this side has only just woken from a stall: what it hears now may be old.
    #[must_use]
    pub fn in_grace(&self, now: HostTime) -> bool {
        now < self.grace_until
    }

    /// When the present grace ends, if there is one.
    #[must_use]
    pub fn grace_ends(&self, now: HostTime) -> Option<HostTime> {
        self.in_grace(now).then_some(self.grace_until)
    }

    /// Nanoseconds since the peer was last heard.
    #[must_use]
    pub const fn silence_ns(&self, now: HostTime) -> u64 {
        now.since(self.heard_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_pair_that_is_set_up_is_given_time_until_it_settles() {
        let config = DetectorConfig::default();
        let mut d = FailureDetector::starting(config, at(0));
        assert!(!d.suspects(at(4_999)));
        assert!(d.suspects(at(5_000)));
        d.settle(at(1_000));
        assert_eq!(d.suspicion_at(), at(1_120));
        d.settle(at(1_100));
        assert_eq!(d.suspicion_at(), at(1_120), "only the first time");
    }

    fn at(ms: u64) -> HostTime {
        HostTime(ms * MS)
    }

    /// Observes every 20 ms from `from_ms` to `to_ms`; the time of the first suspicion.
    fn tick_until_suspicion(d: &mut FailureDetector, from_ms: u64, to_ms: u64) -> Option<u64> {
        (from_ms..=to_ms).step_by(20).find(|ms| {
            d.observe(at(*ms));
            d.suspects(at(*ms))
        })
    }

    #[test]
    fn silence_of_the_timeout_is_suspected() {
        let mut d = FailureDetector::new(DetectorConfig::default(), at(0));
        assert_eq!(tick_until_suspicion(&mut d, 0, 1_000), Some(120));
        assert_eq!(d.silence_ns(at(120)), 120 * MS);
    }

    #[test]
    fn hearing_restarts_the_wait() {
        let mut d = FailureDetector::new(DetectorConfig::default(), at(0));
        assert_eq!(tick_until_suspicion(&mut d, 0, 100), None);
        d.heard(at(100));
        assert_eq!(d.suspicion_at(), at(220));
        assert_eq!(tick_until_suspicion(&mut d, 120, 1_000), Some(220));
    }

    #[test]
    fn own_stall_gives_the_peer_a_fresh_interval() {
        let mut d = FailureDetector::new(DetectorConfig::default(), at(0));
        assert_eq!(d.observe(at(20)), None);
        assert_eq!(d.observe(at(5_000)), Some(4_980 * MS));
        assert!(d.in_grace(at(5_000)));
        assert!(!d.suspects(at(5_000)));
        assert_eq!(d.grace_ends(at(5_000)), Some(at(5_060)));
        assert_eq!(tick_until_suspicion(&mut d, 5_000, 6_000), Some(5_060));
    }

    #[test]
    fn heard_during_the_grace_prevents_suspicion() {
        let mut d = FailureDetector::new(DetectorConfig::default(), at(0));
        d.observe(at(5_000));
        d.heard(at(5_010));
        assert_eq!(d.suspicion_at(), at(5_130));
    }

    #[test]
    fn a_gap_of_exactly_half_the_timeout_is_no_stall() {
        let mut d = FailureDetector::new(DetectorConfig::default(), at(0));
        assert_eq!(d.observe(at(60)), None);
        assert_eq!(d.observe(HostTime(120 * MS + 1)), Some(60 * MS + 1));
    }

    #[test]
    fn time_never_runs_backwards_inside() {
        let mut d = FailureDetector::new(DetectorConfig::default(), at(100));
        d.heard(at(50));
        assert_eq!(d.observe(at(50)), None);
        assert_eq!(d.suspicion_at(), at(220));
    }

    #[test]
    #[should_panic(expected = "three heartbeat intervals")]
    fn an_unsound_configuration_is_refused() {
        let config = DetectorConfig {
            heartbeat_interval_ns: 50 * MS,
            timeout_ns: 120 * MS,
        };
        let _ = FailureDetector::new(config, at(0));
    }
}
