//! The one place where host time enters: a monotonic clock counted from process start.

use logging_channel::host_time::HostTime;
use std::time::Instant;

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

    /// The instant at which this clock reads `at`.
    #[must_use]
    pub fn instant(&self, at: HostTime) -> Instant {
        self.origin + std::time::Duration::from_nanos(at.0)
    }
}
