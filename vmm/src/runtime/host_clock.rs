//! The one place where host time enters: a monotonic clock counted from process start.
//!
//! `CLOCK_BOOTTIME`, which goes on while the host is suspended: a side must notice the hour in which it did
//! not run, however it came about. `Instant` stands still then.

use logging_channel::host_time::HostTime;
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Reads the host's monotonic clock as [`HostTime`]. Copies share one origin.
#[derive(Debug, Clone, Copy)]
pub struct HostClock {
    /// Nanoseconds that the host's clock read at the origin.
    origin_ns: u64,
}

impl HostClock {
    /// A clock that reads zero now.
    #[must_use]
    pub fn start() -> Self {
        Self {
            origin_ns: boot_time_ns(),
        }
    }

    /// Host time now.
    #[must_use]
    pub fn now(&self) -> HostTime {
        HostTime(boot_time_ns().saturating_sub(self.origin_ns))
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

    /// The instant at which this clock reads `at`, or shortly after, if the host is not suspended meanwhile; now,
    /// when that is past.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the edge where host time enters"
    )]
    pub fn instant(&self, at: HostTime) -> Instant {
        let left = Duration::from_nanos(at.since(self.now()));
        // Read last: without a processor in between, the instant is late and not early.
        Instant::now() + left
    }
}

/// Since the host's start, suspended or not.
fn boot_time_ns() -> u64 {
    let read = clock_gettime(ClockId::Boottime);
    let (seconds, nanoseconds) = (read.tv_sec.unsigned_abs(), read.tv_nsec.unsigned_abs());
    seconds * 1_000_000_000 + nanoseconds
}
