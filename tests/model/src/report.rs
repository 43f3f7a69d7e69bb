//! How far a check is, on standard error, every few seconds: a large one takes an hour.

#![forbid(unsafe_code)]

use crate::check::Pair;
use stateright::report::{ReportData, ReportDiscovery, Reporter};
use std::collections::BTreeMap;
use std::time::Duration;

/// Time between two lines, and before the first.
const EVERY: Duration = Duration::from_secs(10);

/// Time between two looks; a check that is over waits for the next.
const LOOK: Duration = Duration::from_millis(50);

/// What was said last.
#[derive(Debug, Default)]
pub struct Said {
    at: Duration,
}

impl Reporter<Pair> for Said {
    fn report_checking(&mut self, data: ReportData) {
        if data.done || data.duration < self.at + EVERY {
            return;
        }
        self.at = data.duration;
        let (seconds, states, steps) = (
            data.duration.as_secs(),
            data.unique_states,
            data.total_states,
        );
        eprintln!("  {seconds} s: {states} states so far, {steps} steps");
    }

    fn report_discoveries(&mut self, _: &Pair, _: BTreeMap<&'static str, ReportDiscovery<Pair>>) {
        // The verdict has them.
    }

    fn delay(&self) -> Duration {
        LOOK
    }
}
