//! Durations counted in buckets: exact below 32 us, then 16 buckets per power of two.
//!
//! So a quantile is at most a sixteenth too high, whatever the range, and histograms add up. The counting
//! is hdrhistogram's, with one significant digit; here are the exact maximum and the form on disk.

#![forbid(unsafe_code)]

use hdrhistogram::Histogram as Counts;
use serde::{Deserialize, Serialize};

/// Digits that a bucket's durations share: the fewest that hdrhistogram has.
const SIGNIFICANT_DIGITS: u8 = 1;
/// Some 285 years: a longer duration counts as this.
const MAX_US: u64 = (1 << 53) - 1;

/// Durations in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "Wire", try_from = "Wire")]
pub struct Histogram {
    max_us: u64,
    // Boxed: entries are passed about.
    counts: Box<Counts<u64>>,
}

/// As in an entry: the longest duration, then each bucket's shortest one and how often it was met;
/// ascending, none empty.
#[derive(Serialize, Deserialize)]
struct Wire {
    max_us: u64,
    buckets: Vec<(u64, u64)>,
}

// Counts are whole numbers.
impl Eq for Histogram {}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            max_us: 0,
            counts: empty(),
        }
    }
}

/// Grows as far as the durations do: at most to some thousand counters.
fn empty() -> Box<Counts<u64>> {
    match Counts::new(SIGNIFICANT_DIGITS) {
        Ok(counts) => Box::new(counts),
        Err(_) => unreachable!("one digit is among those that there are"),
    }
}

impl Histogram {
    /// Counts a duration.
    pub fn add(&mut self, us: u64) {
        let us = us.min(MAX_US);
        self.max_us = self.max_us.max(us);
        *self.counts += us;
    }

    /// Counts what `other` has counted.
    pub fn merge(&mut self, other: &Self) {
        self.max_us = self.max_us.max(other.max_us);
        *self.counts += &*other.counts;
    }

    /// The longest; 0 of none.
    #[must_use]
    pub const fn max_us(&self) -> u64 {
        self.max_us
    }

    /// How many durations were counted.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.counts.len()
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// The duration that `per_mille` of a thousand do not exceed; at most a sixteenth too high. 0 of none.
    #[must_use]
    pub fn quantile_us(&self, per_mille: u64) -> u64 {
        let quantile = per_mille.min(1_000) as f64 / 1_000.0;
        self.counts.value_at_quantile(quantile).min(self.max_us)
    }
}

impl From<Histogram> for Wire {
    fn from(histogram: Histogram) -> Self {
        let met = histogram.counts.iter_recorded();
        let bucket = |at: u64| histogram.counts.lowest_equivalent(at);
        Self {
            max_us: histogram.max_us,
            buckets: met
                .map(|step| (bucket(step.value_iterated_to()), step.count_at_value()))
                .collect(),
        }
    }
}

impl TryFrom<Wire> for Histogram {
    type Error = &'static str;

    /// Of the forms of one histogram exactly one is taken: what is read can be written again.
    fn try_from(wire: Wire) -> Result<Self, Self::Error> {
        let mut histogram = Self::default();
        let (mut after, mut total) = (None, 0_u64);
        for (us, times) in wire.buckets {
            let after_it = after.is_none_or(|before| us > before);
            if us > MAX_US
                || times == 0
                || !after_it
                || histogram.counts.lowest_equivalent(us) != us
            {
                return Err("buckets out of order, empty or unknown");
            }
            total = total.checked_add(times).ok_or("more than can be counted")?;
            let counted = histogram.counts.record_n(us, times);
            counted.map_err(|_| "a duration that cannot be counted")?;
            after = Some(us);
        }
        let max_us = wire.max_us.min(MAX_US);
        if max_us != wire.max_us || histogram.counts.lowest_equivalent(max_us) != after.unwrap_or(0)
        {
            return Err("a maximum outside the last bucket");
        }
        histogram.max_us = wire.max_us;
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        values.iter().for_each(|us| histogram.add(*us));
        histogram
    }

    #[test]
    fn quantiles_of_known_durations() {
        let histogram = of(&(1..=1_000).collect::<Vec<_>>());
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

    #[test]
    fn other_forms_are_refused() {
        let form = |max_us, buckets: &[(u64, u64)]| {
            let buckets = buckets.to_vec();
            Histogram::try_from(Wire { max_us, buckets })
        };
        form(33, &[(1, 2), (32, 1)]).expect("sound");
        form(0, &[]).expect("sound");
        for (max_us, buckets) in [
            (33, &[(1, 0), (32, 1)][..]),
            (33, &[(32, 1), (1, 2)]),
            (33, &[(33, 1)]),
            (34, &[(32, 1)]),
            (1, &[]),
            (1, &[(0, u64::MAX), (1, 1)]),
            (1 << 53, &[(1 << 53, 1)]),
        ] {
            form(max_us, buckets).expect_err("taken");
        }
    }

    proptest! {
        #[test]
        fn a_bucket_is_narrow_and_comes_back(us in any::<u64>(), shift in 0_u32..64) {
            let us = (us >> shift).min(MAX_US);
            let histogram = of(&[us, u64::MAX]);
            let top = histogram.quantile_us(1);
            prop_assert!(us <= top && top - us <= us / 16, "{us} in a bucket up to {top}");
            let wire = Wire::from(histogram.clone());
            prop_assert_eq!(Histogram::try_from(wire), Ok(histogram));
        }

        #[test]
        fn merging_is_counting_both(a in prop::collection::vec(any::<u64>(), 0..50), b in prop::collection::vec(any::<u64>(), 0..50)) {
            let mut merged = of(&a);
            merged.merge(&of(&b));
            prop_assert_eq!(merged, of(&[a, b].concat()));
        }
    }
}
