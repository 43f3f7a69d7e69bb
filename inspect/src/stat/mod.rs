//! Counts over a whole log, in one pass and bounded memory.
//!
//! Times are guest time: the log has no other. When records were acknowledged, how long output waited, how far the
//! backup was behind and who was live is in the journal beside it, in host time; without one it is unknown.

#![forbid(unsafe_code)]

mod part;
mod series;
mod silence;
mod text;

use crate::journal::JournalReport;
use crate::kind::Kind;
use crate::pass::Grain;
use crate::place::Range;
use crate::source::{Damage, Hole, WalkError, walk_in_grain};
use logging_channel::record::Record;
use logging_channel::segment::bytes_on_disk;
use part::{Counting, Part};
use serde::Serialize;
use series::Series;
use silence::{Silence, Silences};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Holes and generations that a report lists; more are only counted.
const LISTED_MAX: usize = 1_000;

/// Records of one kind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize)]
struct Tally {
    records: u64,
    bytes: u64,
    /// Bytes that came from outside or left the guest: packets, console, entropy.
    payload_bytes: u64,
    bytes_per_record: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Position {
    index: u64,
    exits: u64,
    branches: u64,
    guest_time_us: u64,
}

impl From<&Record> for Position {
    fn from(record: &Record) -> Self {
        Self {
            index: record.index.0,
            exits: record.point.exits,
            branches: record.point.branches,
            guest_time_us: record.guest_time.as_micros(),
        }
    }
}

/// A generation, and the part of the log that it recorded.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Generation {
    generation: u64,
    from: Position,
    /// Its last record.
    to: Position,
    /// Who ran the guest in it, if there is a journal that knows.
    live: Option<String>,
}

/// The report.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    directory: PathBuf,
    vm: Option<String>,
    clock: Option<String>,
    segments: u64,
    frames: u64,
    records: u64,
    /// Everything on disk: records, and the rest, which is headers of frames and segments, sync points.
    bytes: u64,
    overhead_bytes: u64,
    /// Bytes that could not be read.
    left_out_bytes: u64,
    first: Option<Position>,
    last: Option<Position>,
    guest_time_us: u64,
    /// Per second of guest time; absent in a log without duration.
    records_per_s: Option<f64>,
    bits_per_s: Option<f64>,
    kinds: BTreeMap<&'static str, Tally>,
    generations: Vec<Generation>,
    silences: Vec<Silence>,
    rates: Series,
    /// How the guest ended, if the log says so.
    end: Option<String>,
    holes: Vec<Hole>,
    /// What the journal beside the log says; null without one.
    journal: Option<JournalReport>,
    #[serde(skip)]
    file: Option<Arc<Path>>,
    #[serde(skip)]
    tallies: [Tally; Kind::ALL.len()],
    #[serde(skip)]
    measured: Silences,
}

/// Counts the log in `dir`.
///
/// # Errors
/// When there is no log, or a file cannot be read.
pub fn gather(dir: &Path) -> Result<(Report, Damage), WalkError> {
    gather_in_grain(dir, Grain::USUAL)
}

/// As [`gather`], with the work divided like this.
pub(crate) fn gather_in_grain(dir: &Path, grain: Grain) -> Result<(Report, Damage), WalkError> {
    let mut report = Report {
        directory: dir.into(),
        ..Report::default()
    };
    let damage = walk_in_grain(dir, Range::default(), grain, &Counting, |part| {
        report.add(part);
        Ok(())
    })?;
    report.bytes = bytes_on_disk(dir)?;
    report.journal = crate::journal::gather(dir).map_err(WalkError::Journal)?;
    report.conclude();
    Ok((report, damage))
}

/// Records over guest time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timeline {
    /// Guest time at which the first column begins, microseconds.
    pub from_us: u64,
    /// Width of a column, microseconds.
    pub column_us: u64,
    /// Records in each.
    pub records: Vec<u64>,
}

impl Report {
    /// Index of the last record; none in a log without any.
    #[must_use]
    pub fn last_index(&self) -> Option<u64> {
        self.last.map(|last| last.index)
    }

    /// Records over guest time, in at most 64 columns.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.rates.timeline()
    }

    /// Adds what was counted behind all that was added before, and leaves `part` empty.
    fn add(&mut self, part: &mut Part) {
        // A segment may go on from one part to the next.
        let again = part.first_file.is_some() && part.first_file == self.file;
        self.segments += part.segments - u64::from(again);
        self.file = part.file.take().or(self.file.take());
        self.frames += part.frames;
        self.records += part.records;
        for (tally, more) in self.tallies.iter_mut().zip(&part.tallies) {
            tally.records += more.records;
            tally.bytes += more.bytes;
            tally.payload_bytes += more.payload_bytes;
        }
        self.add_generations(part);
        self.first = self.first.or(part.first);
        self.last = part.last.or(self.last);
        self.vm = part.vm.take().or(self.vm.take());
        self.clock = part.clock.take().or(self.clock.take());
        self.end = part.end.take().or(self.end.take());
        self.measured.append(&part.silences);
        for moment in &part.moments {
            self.rates.add(moment);
        }
        self.left_out_bytes += part.left_out_bytes;
        let room = LISTED_MAX - self.holes.len();
        self.holes.extend(part.holes.drain(..).take(room));
        let mut moments = std::mem::take(&mut part.moments);
        moments.clear();
        *part = Part {
            moments,
            ..Part::default()
        };
    }

    fn add_generations(&mut self, part: &Part) {
        if let (Some(generation), Some(before)) = (self.generations.last_mut(), part.before) {
            generation.to = before;
        }
        for generation in &part.generations {
            let full = self.generations.len() == LISTED_MAX;
            match self.generations.last_mut() {
                // Only counted, with the last that is listed.
                Some(last) if full => last.to = generation.to,
                _ => self.generations.push(generation.clone()),
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "rates and means are for people")]
    fn conclude(&mut self) {
        let records: u64 = self.tallies.iter().map(|tally| tally.bytes).sum();
        self.overhead_bytes = self.bytes.saturating_sub(records + self.left_out_bytes);
        for kind in Kind::ALL {
            let mut tally = self.tallies[kind as usize];
            if tally.records > 0 {
                tally.bytes_per_record = tally.bytes as f64 / tally.records as f64;
                self.kinds.insert(kind.name(), tally);
            }
        }
        self.silences = self.measured.longest();
        if let Some(journal) = &self.journal {
            for generation in &mut self.generations {
                generation.live = journal.live_in(generation.generation).map(str::to_owned);
            }
        }
        if let (Some(first), Some(last)) = (&self.first, &self.last) {
            self.guest_time_us = last.guest_time_us.saturating_sub(first.guest_time_us);
        }
        if self.guest_time_us > 0 {
            let seconds = self.guest_time_us as f64 / 1e6;
            self.records_per_s = Some(self.records as f64 / seconds);
            self.bits_per_s = Some(self.bytes as f64 * 8.0 / seconds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use logging_channel::segment::sync_point::SYNC_POINT_BYTES;

    #[test]
    fn a_whole_log_is_counted() {
        let log = sample::log_in_segments(1 << 20);
        let (report, damage) = gather(log.dir()).unwrap();
        assert_eq!(damage.count, 0, "{}", report.text());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["vm"], "web");
        assert_eq!(json["records"], 25);
        assert_eq!(json["frames"], 25);
        let length = std::fs::metadata(&log.segments()[0]).unwrap().len();
        assert_eq!(json["bytes"], length);
        assert_eq!(json["guest_time_us"], 2_200_000);
        assert_eq!(json["kinds"]["timer"]["records"], 20);
        assert_eq!(json["kinds"]["packet"]["payload_bytes"], 59);
        assert_eq!(json["generations"][1]["generation"], 4);
        assert_eq!(json["generations"][0]["to"]["index"], 22);
        assert_eq!(json["end"], "PowerOff");
        assert!(json["journal"].is_null());
        let kinds = json["kinds"].as_object().unwrap();
        let sum: u64 = kinds
            .values()
            .filter_map(|kind| kind["bytes"].as_u64())
            .sum();
        assert_eq!(length, sum + json["overhead_bytes"].as_u64().unwrap());
        let text = report.text();
        for part in [
            "2.200 s of guest time",
            "generation   3 from record 0 to 22",
            "generation   4 from record 23 to 24",
            "end          PowerOff",
            "journal      none: ",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }

    #[test]
    fn the_journal_beside_a_log_says_who_was_live() {
        let log = sample::log_in_segments(1 << 20);
        crate::journal::tests::write(log.dir(), "b.2");
        let (report, damage) = gather(log.dir()).unwrap();
        assert_eq!(damage.count, 0);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["generations"][0]["live"], "a.1");
        assert_eq!(json["generations"][1]["live"], "b.2");
        assert_eq!(json["journal"]["gate"]["count"], 3);
        let text = report.text();
        assert!(text.contains("2.200000 s, live on b.2"), "{text}");
        assert!(text.contains("\njournal of b.2"), "{text}");
    }

    #[test]
    fn an_unsynced_tail_is_shown_and_no_damage() {
        let log = sample::log_in_segments(1 << 20);
        let segment = &log.segments()[0];
        let length = std::fs::metadata(segment).unwrap().len();
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(segment)
            .unwrap();
        file.set_len(length - SYNC_POINT_BYTES as u64 - 3).unwrap();
        let (report, damage) = gather(log.dir()).unwrap();
        assert_eq!(damage.count, 0);
        let text = report.text();
        assert!(text.contains("\nunsynced: "), "{text}");
        assert!(text.contains("open: the guest had not ended"), "{text}");
    }

    #[test]
    fn damage_is_shown_with_its_place() {
        let log = sample::log_in_segments(1 << 20);
        let (file, _) = log.flip_a_bit();
        let (report, damage) = gather(log.dir()).unwrap();
        assert!(damage.count > 0);
        let place = format!("\ndamaged: {} byte ", file.display());
        assert!(report.text().contains(&place), "{}", report.text());
    }
}
