//! The journal's report for people.

#![forbid(unsafe_code)]

use super::report::{Delays, JournalReport};
use std::fmt::Write;

/// Events that the text lists.
const EVENTS_SHOWN: usize = 24;
const US_PER_DAY: u64 = 86_400_000_000;

impl JournalReport {
    /// The report as text.
    #[must_use]
    pub fn text(&self) -> String {
        let seconds = (self.to_us - self.from_us) as f64 / 1e6;
        let (holder, from) = (&self.holder, self.time_of_day(self.from_us));
        let mut text =
            format!("\njournal of {holder}, {seconds:.3} s of host time from {from} UTC\n");
        for span in &self.roles {
            let (role, generation) = (span.role, span.generation);
            let ms = (span.to_us - span.from_us) as f64 / 1e3;
            let from = self.time_of_day(span.from_us);
            let records = match span.to_record {
                to if to > span.from_record => {
                    format!(", records {} to {}", span.from_record, to - 1)
                }
                _ => String::new(),
            };
            let live = if span.live { ", live" } else { "" };
            let _ = writeln!(
                text,
                "{from} {role:<18} generation {generation}{live}, {ms:.3} ms{records}"
            );
        }
        text += &self.delays();
        for (name, silence) in [
            ("a word of the peer", self.unheard),
            ("output leaving", self.unreleased),
        ] {
            if let Some(silence) = silence {
                let (ms, until) = (silence.us as f64 / 1e3, self.time_of_day(silence.until_us));
                let next = silence.next_record;
                let _ = writeln!(
                    text,
                    "longest time without {name}: {ms:.3} ms, over by {until}, before record {next}"
                );
            }
        }
        if !self.events.is_empty() {
            text += "\nwhat happened on this side\n";
        }
        // The last ones: an incident is near the end.
        let skipped = self.events.len().saturating_sub(EVENTS_SHOWN);
        if skipped > 0 {
            let _ = writeln!(text, "... {skipped} before these; `--json` has them");
        }
        for event in self.events.iter().skip(skipped) {
            let _ = writeln!(text, "{} {}", self.time_of_day(event.at_us), event.what);
        }
        if self.left_out_bytes > 0 {
            let word = if self.damaged_bytes > 0 {
                "damaged"
            } else {
                "unsynced"
            };
            let bytes = self.left_out_bytes;
            let _ = writeln!(text, "\n{word}: {bytes} bytes of the journal left out");
        }
        text
    }

    fn delays(&self) -> String {
        let rows = [
            ("acknowledgement", self.acknowledgement),
            ("lag", self.lag),
            ("gate", self.gate),
        ];
        let mut text = String::new();
        for (name, delays) in rows {
            let Some(Delays {
                count,
                p50_us,
                p90_us,
                p99_us,
                p999_us,
                max_us,
            }) = delays
            else {
                continue;
            };
            if text.is_empty() {
                let _ = writeln!(
                    text,
                    "\n{:<18} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
                    "delay, ms", "count", "p50", "p90", "p99", "p99.9", "max"
                );
            }
            let _ = write!(text, "{name:<18} {count:>9}");
            for us in [p50_us, p90_us, p99_us, p999_us, max_us] {
                let _ = write!(text, " {:>9.3}", us as f64 / 1e3);
            }
            text.push('\n');
        }
        text
    }

    /// The time of day, UTC, by the wall clock of the journal's host.
    fn time_of_day(&self, at_us: u64) -> String {
        let us = self.wall_clock_us.wrapping_add(at_us) % US_PER_DAY;
        let (s, us) = (us / 1_000_000, us % 1_000_000);
        format!("{:02}:{:02}:{:02}.{us:06}", s / 3_600, s / 60 % 60, s % 60)
    }
}
