//! The one place where host time enters: a monotonic clock counted from process start.

use logging_channel::host_time::HostTime;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Reads the host's monotonic clock as [`HostTime`]. Copies share one origin.
#[derive(Debug, Clone, Copy)]
pub struct HostClock {
    origin: Instant,
}

impl HostClock {
    /// A clock that reads zero now.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the edge where host time enters"
    )]
    pub fn start() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    /// Host time now.
    #[must_use]
    pub fn now(&self) -> HostTime {
        let ns = self.origin.elapsed().as_nanos();
        HostTime(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// Wall clock when this clock read zero, microseconds since 1970: what this host believes now, less the
    /// time since.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "for the journal, which no guest sees"
    )]
    pub fn wall_clock_us_at_zero(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let us = since.map_or(0, |since| since.as_micros());
        u64::try_from(us).map_or(0, |us| us.saturating_sub(self.now().0 / 1_000))
    }

    /// The instant at which this clock reads `at`.
    #[must_use]
    pub fn instant(&self, at: HostTime) -> Instant {
        self.origin + std::time::Duration::from_nanos(at.0)
    }
}
