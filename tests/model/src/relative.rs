//! A hasher that takes host times relative to one host's present.
//!
//! A node compares times only with its own present, so two states whose times differ by the same
//! amount behave alike. `HostTime` hashes through `write_i64`, and nothing else does. What lies
//! further back or ahead than every timeout is one and the same.

#![forbid(unsafe_code)]

use logging_channel::host_time::HostTime;
use std::hash::Hasher;

/// Above every interval of [`crate::world`]'s configuration, and of `START_PATIENCE_NS`.
pub const FAR_NS: i64 = 7_000_000_000;

/// Passes everything on, times relative to `now`.
pub struct Relative<'a, H: Hasher> {
    inner: &'a mut H,
    now: HostTime,
}

impl<'a, H: Hasher> Relative<'a, H> {
    /// A hasher for the state of a host whose clock shows `now`.
    pub const fn new(inner: &'a mut H, now: HostTime) -> Self {
        Self { inner, now }
    }
}

impl<H: Hasher> Hasher for Relative<'_, H> {
    fn finish(&self) -> u64 {
        self.inner.finish()
    }

    fn write(&mut self, bytes: &[u8]) {
        self.inner.write(bytes);
    }

    fn write_u8(&mut self, value: u8) {
        self.inner.write_u8(value);
    }

    fn write_u32(&mut self, value: u32) {
        self.inner.write_u32(value);
    }

    fn write_u64(&mut self, value: u64) {
        self.inner.write_u64(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.inner.write_usize(value);
    }

    fn write_i64(&mut self, time: i64) {
        let relative = time.saturating_sub(self.now.0.cast_signed());
        self.inner.write_i64(relative.clamp(-FAR_NS, FAR_NS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::{DefaultHasher, Hash};

    fn hash(now: u64, times: &[u64], other: u64) -> u64 {
        let mut inner = DefaultHasher::new();
        let mut relative = Relative::new(&mut inner, HostTime(now));
        for time in times {
            HostTime(*time).hash(&mut relative);
        }
        other.hash(&mut relative);
        inner.finish()
    }

    #[test]
    fn only_the_distance_of_times_counts() {
        assert_eq!(hash(100, &[90, 120], 7), hash(1_100, &[1_090, 1_120], 7));
        assert_ne!(hash(100, &[90, 120], 7), hash(100, &[91, 120], 7));
        assert_ne!(hash(100, &[90], 7), hash(1_100, &[1_090], 8));
    }

    #[test]
    fn long_ago_is_long_ago() {
        let far = FAR_NS.cast_unsigned();
        assert_eq!(hash(9 * far, &[0], 0), hash(9 * far, &[far], 0));
    }
}
