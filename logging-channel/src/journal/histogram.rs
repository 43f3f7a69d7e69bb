//! Durations counted in buckets: exact below 16 us, then 16 buckets per power of two.
//!
//! So a quantile is at most a sixteenth too high, whatever the range, and histograms add up.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Buckets per power of two.
const FINE: u64 = 16;
const FINE_BITS: u32 = FINE.trailing_zeros();

/// Durations in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// The longest.
    pub max_us: u64,
    /// Number of a bucket and how often it was met; ascending, none empty.
    pub buckets: Vec<(u16, u64)>,
}

impl Histogram {
    /// Counts a duration.
    pub fn add(&mut self, us: u64) {
        self.max_us = self.max_us.max(us);
        self.count(bucket(us), 1);
    }

    /// Counts what `other` has counted.
    pub fn merge(&mut self, other: &Self) {
        self.max_us = self.max_us.max(other.max_us);
        for (bucket, times) in &other.buckets {
            self.count(*bucket, *times);
        }
    }

    fn count(&mut self, bucket: u16, times: u64) {
        match self.buckets.binary_search_by_key(&bucket, |(b, _)| *b) {
            Ok(at) => self.buckets[at].1 = self.buckets[at].1.saturating_add(times),
            Err(at) => self.buckets.insert(at, (bucket, times)),
        }
    }

    /// How many durations were counted.
    #[must_use]
    pub fn len(&self) -> u64 {
        let counts = self.buckets.iter().map(|(_, times)| *times);
        counts.fold(0, u64::saturating_add)
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// The duration that `per_mille` of a thousand do not exceed; at most a sixteenth too high. 0 of none.
    #[must_use]
    pub fn quantile_us(&self, per_mille: u64) -> u64 {
        let rank = u128::from(self.len()) * u128::from(per_mille.min(1_000));
        let rank = rank.div_ceil(1_000).max(1);
        let mut seen = 0_u128;
        for (bucket, times) in &self.buckets {
            seen += u128::from(*times);
            if seen >= rank {
                return longest(*bucket).min(self.max_us);
            }
        }
        self.max_us
    }
}

/// The bucket of a duration.
fn bucket(us: u64) -> u16 {
    if us < FINE {
        return us as u16;
    }
    let power = us.ilog2() - FINE_BITS;
    // 16 to 31 shifted by `power`; at most 60 powers of 16 buckets.
    let within = (us >> power) - FINE;
    (u64::from(power + 1) * FINE + within) as u16
}

/// The longest duration in a bucket; of a number that no duration has, the longest of all.
fn longest(bucket: u16) -> u64 {
    let bucket = u64::from(bucket);
    let (power, within) = (bucket / FINE, bucket % FINE);
    match power {
        0 => within,
        1..=60 => {
            let low = u128::from(FINE + within) << (power - 1);
            let width = 1_u128 << (power - 1);
            u64::try_from(low + width - 1).unwrap_or(u64::MAX)
        }
        _ => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_of_known_durations() {
        let mut histogram = Histogram::default();
        (1..=1_000).for_each(|us| histogram.add(us));
        assert_eq!(histogram.len(), 1_000);
        for (per_mille, exact) in [(500, 500), (900, 900), (990, 990), (999, 999), (1, 1)] {
            let found = histogram.quantile_us(per_mille);
            assert!(
                exact <= found && found <= exact + exact / 16,
                "{per_mille}: {found}"
            );
        }
        assert_eq!(histogram.quantile_us(1_000), 1_000);
        assert_eq!(Histogram::default().quantile_us(500), 0);
    }

    proptest! {
        #[test]
        fn a_bucket_holds_its_durations_and_is_narrow(us in any::<u64>(), shift in 0_u32..64) {
            let us = us >> shift;
            let top = longest(bucket(us));
            prop_assert!(us <= top && top - us <= us / FINE, "{us} in a bucket up to {top}");
            if us > 0 {
                prop_assert!(bucket(us - 1) <= bucket(us));
            }
        }

        #[test]
        fn merging_is_counting_both(a in prop::collection::vec(any::<u64>(), 0..50), b in prop::collection::vec(any::<u64>(), 0..50)) {
            let of = |values: &[u64]| {
                let mut histogram = Histogram::default();
                values.iter().for_each(|us| histogram.add(*us));
                histogram
            };
            let mut merged = of(&a);
            merged.merge(&of(&b));
            prop_assert_eq!(merged, of(&[a, b].concat()));
        }
    }
}
