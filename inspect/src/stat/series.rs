//! Rates over guest time, in a fixed number of columns whatever the log's length.
//!
//! Columns begin narrow; when the log outgrows them, neighbours are added up and columns are twice as
//! wide. So one pass is enough, and no record is counted twice.

#![forbid(unsafe_code)]

use super::Timeline;
use serde::Serialize;
use std::fmt::Write;

/// Most columns.
const COLUMNS: usize = 64;
/// Width of a column at first, in microseconds.
const WIDTH_US: u64 = 1_000;

/// What is counted in a column.
const NAMES: [&str; 4] = ["records/s", "bytes/s", "received/s", "sent/s"];

/// What is counted of records at the same guest time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    time_us: u64,
    counts: [u64; NAMES.len()],
}

impl Moment {
    /// Adds `counts` at guest time `time_us`, in the order of [`NAMES`], to `moments`.
    pub(super) fn add(moments: &mut Vec<Self>, time_us: u64, counts: [u64; NAMES.len()]) {
        match moments.last_mut() {
            Some(last) if last.time_us == time_us => sum(&mut last.counts, &counts),
            _ => moments.push(Self { time_us, counts }),
        }
    }
}

fn sum(counts: &mut [u64; NAMES.len()], more: &[u64; NAMES.len()]) {
    counts
        .iter_mut()
        .zip(more)
        .for_each(|(count, more)| *count += more);
}

/// Counts per column.
#[derive(Debug, Serialize)]
pub(super) struct Series {
    /// Width of a column in microseconds of guest time.
    column_us: u64,
    /// Guest time at which the first begins.
    from_us: Option<u64>,
    /// Records, their bytes, packets received, packets sent; per column.
    columns: Vec<[u64; NAMES.len()]>,
}

impl Default for Series {
    fn default() -> Self {
        Self {
            column_us: WIDTH_US,
            from_us: None,
            columns: Vec::new(),
        }
    }
}

impl Series {
    /// Adds what was counted at a guest time, which should not decrease.
    pub(super) fn add(&mut self, moment: &Moment) {
        let from = *self.from_us.get_or_insert(moment.time_us);
        let since = moment.time_us.saturating_sub(from);
        while since / self.column_us >= COLUMNS as u64 {
            let pair = |pair: &[[u64; NAMES.len()]]| {
                let mut counts = [0; NAMES.len()];
                pair.iter().for_each(|column| sum(&mut counts, column));
                counts
            };
            self.columns = self.columns.chunks(2).map(pair).collect();
            self.column_us = self.column_us.saturating_mul(2);
        }
        let column = usize::try_from(since / self.column_us).unwrap_or(COLUMNS - 1);
        if self.columns.len() <= column {
            self.columns.resize(column + 1, [0; NAMES.len()]);
        }
        sum(&mut self.columns[column], &moment.counts);
    }

    /// The records of each column.
    pub(super) fn timeline(&self) -> Timeline {
        Timeline {
            from_us: self.from_us.unwrap_or(0),
            column_us: self.column_us,
            records: self.columns.iter().map(|[records, ..]| *records).collect(),
        }
    }

    /// A line per rate, drawn with blocks.
    #[expect(clippy::cast_precision_loss, reason = "a drawing for people")]
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if self.columns.len() < 2 {
            return text;
        }
        let seconds = self.column_us as f64 / 1e6;
        let _ = writeln!(text, "\nrates over guest time, {seconds} s a column");
        for (row, name) in NAMES.into_iter().enumerate() {
            let values: Vec<u64> = self.columns.iter().map(|column| column[row]).collect();
            let max = values.iter().copied().max().unwrap_or(0);
            let rate = max as f64 / seconds;
            let _ = writeln!(text, "{name:>12} {} max {rate:.0}", blocks(&values, max));
        }
        text
    }
}

/// One block per value; a blank for nothing at all.
fn blocks(values: &[u64], max: u64) -> String {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let block = |value: &u64| {
        let eighths = u128::from(*value) * 8;
        // Rounded up: something is never drawn as nothing.
        let height = eighths.div_ceil(u128::from(max.max(1)));
        BLOCKS[usize::try_from(height).unwrap_or(8).min(8)]
    };
    values.iter().map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn heights_are_in_proportion() {
        assert_eq!(blocks(&[0, 1, 4, 8], 8), " ▁▄█");
        assert_eq!(blocks(&[0, 1, 1000], 1000), " ▁█");
        assert_eq!(blocks(&[0], 0), " ");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_memory_is_bounded(
            mut times in prop::collection::vec(any::<u64>(), 1..50), bytes in 0u64..1000
        ) {
            times.sort_unstable();
            let mut moments = Vec::new();
            for time in &times {
                Moment::add(&mut moments, *time, [1, bytes, 1, 0]);
            }
            let mut series = Series::default();
            moments.iter().for_each(|moment| series.add(moment));
            let sum = |row: usize| series.columns.iter().map(|column| column[row]).sum::<u64>();
            prop_assert_eq!(sum(0), times.len() as u64);
            prop_assert_eq!(sum(1), times.len() as u64 * bytes);
            prop_assert_eq!((sum(2), sum(3)), (times.len() as u64, 0));
            prop_assert!(series.columns.len() <= COLUMNS);
        }
    }
}
