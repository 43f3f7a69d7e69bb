//! Time as the host and the guest know it, always supplied by the caller.
//!
//! Nothing in the protocol reads a clock: state machines are given a [`HostTime`], and guest time
//! changes only when a log record says so. Both are plain nanosecond counts so that a simulation
//! can hand out whatever it likes.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use std::hash::{Hash, Hasher};

/// Monotonic host time in nanoseconds since an arbitrary origin of the process.
///
/// Never sent to the other host and never visible to the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostTime(pub u64);

/// Through [`Hasher::write_i64`], which nothing else here uses: a model checker's hasher can tell
/// times from other numbers and take them relative to the present.
impl Hash for HostTime {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_i64(self.0.cast_signed());
    }
}

impl HostTime {
    /// This time plus `ns`, saturating.
    #[must_use]
    pub const fn plus_ns(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }

    /// This time plus `ms` milliseconds, saturating.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        self.plus_ns(ms.saturating_mul(1_000_000))
    }

    /// Nanoseconds from `earlier` to this time; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Guest time in nanoseconds since the guest's power-on, a multiple of 1,000.
///
/// The granularity is one microsecond so that a timer record stays small on the wire: 10 ms is two
/// bytes of microseconds, but four of nanoseconds.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct GuestTime(u64);

impl GuestTime {
    /// Power-on.
    pub const ZERO: Self = Self(0);

    /// The guest time `us` microseconds after power-on.
    #[must_use]
    pub const fn from_micros(us: u64) -> Self {
        Self(us.saturating_mul(1_000))
    }

    /// The guest time `ns` nanoseconds after power-on, rounded down to a microsecond.
    #[must_use]
    pub const fn from_nanos(ns: u64) -> Self {
        Self(ns / 1_000 * 1_000)
    }

    /// Whole microseconds since power-on.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0 / 1_000
    }

    /// Nanoseconds since power-on.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
}
