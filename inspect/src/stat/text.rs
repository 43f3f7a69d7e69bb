//! The report for people.

#![forbid(unsafe_code)]

use super::{Generation, Position, Report};
use crate::line::HoleText;
use crate::theme::Theme;
use std::fmt::Write;

/// Holes that the text lists.
const HOLES_SHOWN: usize = 10;

impl Report {
    /// The report as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, value) in self.facts() {
            let _ = writeln!(text, "{name:<12} {value}");
        }
        text += &self.table();
        text += &self.rates.text();
        if !self.silences.is_empty() {
            text += "\nlongest time without\n";
        }
        for silence in &self.silences {
            let (ms, at) = (silence.us as f64 / 1e3, seconds(silence.from.guest_time_us));
            let (from, to) = (silence.from.index, silence.to.index);
            let _ = writeln!(
                text,
                "{:>18} {ms:>10.3} ms from {at:.6} s, records {from} to {to}",
                silence.of
            );
        }
        if let Some(journal) = &self.journal {
            text += &journal.text();
        }
        for hole in self.holes.iter().take(HOLES_SHOWN) {
            let _ = writeln!(text, "\n{}", HoleText(hole, Theme::plain()));
        }
        if self.holes.len() > HOLES_SHOWN {
            let more = self.holes.len() - HOLES_SHOWN;
            let _ = writeln!(text, "\n... and {more} more; `log verify` lists them all");
        }
        text
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let unknown = || "unknown: the Start record is not here".to_owned();
        let place = |place: &Option<Position>| place.as_ref().map_or_else(String::new, position);
        let (size, segments, frames) = (size(self.bytes), self.segments, self.frames);
        let mut facts = vec![
            ("log", self.directory.display().to_string()),
            ("vm", self.vm.clone().unwrap_or_else(unknown)),
            ("clock", self.clock.clone().unwrap_or_else(unknown)),
            (
                "on disk",
                format!("{size} in {segments} segments, {frames} frames"),
            ),
            ("first", place(&self.first)),
            ("last", place(&self.last)),
        ];
        if let (Some(records), Some(bits)) = (self.records_per_s, self.bits_per_s) {
            let (span, mbit) = (seconds(self.guest_time_us), bits / 1e6);
            let span =
                format!("{span:.3} s of guest time: {records:.0} records/s, {mbit:.3} Mbit/s");
            facts.push(("span", span));
        }
        for Generation {
            generation,
            from,
            to,
            live,
        } in &self.generations
        {
            let (begin, end) = (seconds(from.guest_time_us), seconds(to.guest_time_us));
            let (from, to) = (from.index, to.index);
            let live = live
                .as_ref()
                .map_or_else(String::new, |who| format!(", live on {who}"));
            let value = format!(
                "{generation} from record {from} to {to}, {begin:.6} s to {end:.6} s{live}"
            );
            facts.push(("generation", value));
        }
        let open = || "open: the guest had not ended".to_owned();
        facts.push(("end", self.end.clone().unwrap_or_else(open)));
        if self.journal.is_none() {
            let none = "none: lag, the gate's delay and who was live are unknown";
            facts.push(("journal", none.to_owned()));
        }
        facts
    }

    fn table(&self) -> String {
        let row = |name: &str, records: &str, bytes: &str, each: &str, payload: &str| {
            let line = format!("{name:<10} {records:>10} {bytes:>12} {each:>10} {payload:>12}");
            line.trim_end().to_owned() + "\n"
        };
        let mut text = "\n".to_owned() + &row("kind", "records", "bytes", "each", "payload");
        for (name, kind) in &self.kinds {
            let (records, bytes) = (kind.records.to_string(), kind.bytes.to_string());
            let (each, payload) = (
                format!("{:.2}", kind.bytes_per_record),
                kind.payload_bytes.to_string(),
            );
            text += &row(name, &records, &bytes, &each, &payload);
        }
        text += &row("overhead", "", &self.overhead_bytes.to_string(), "", "");
        text += &row(
            "all",
            &self.records.to_string(),
            &self.bytes.to_string(),
            "",
            "",
        );
        text
    }
}

fn position(position: &Position) -> String {
    let time = seconds(position.guest_time_us);
    let (index, exits) = (position.index, position.exits);
    format!("record {index} at exit {exits}, guest time {time:.6} s")
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} bytes"),
        10_240..10_485_760 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}
