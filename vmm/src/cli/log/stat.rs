//! Counts over a whole log.

#![forbid(unsafe_code)]

use super::{Damage, Failure, Hole, StatArguments, kind_of, print, walk};
use logging_channel::codec::Placed;
use logging_channel::record::{Control, Record, RecordBody};
use logging_channel::segment::format::SEGMENT_HEADER_BYTES;
use logging_channel::segment::{ReadFrame, Salvaged};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Holes and generations that a report lists; more are only counted.
const LISTED_MAX: usize = 1_000;

#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize)]
struct Kind {
    records: u64,
    bytes: u64,
    /// Bytes that came from outside or left the guest: packets, console, entropy.
    payload_bytes: u64,
    bytes_per_record: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Place {
    index: u64,
    exits: u64,
    branches: u64,
    guest_time_us: u64,
}

impl Place {
    fn text(&self) -> String {
        let time = seconds(self.guest_time_us);
        format!(
            "record {} at exit {}, guest time {time:.6} s",
            self.index, self.exits
        )
    }
}

impl From<&Record> for Place {
    fn from(record: &Record) -> Self {
        Self {
            index: record.index.0,
            exits: record.point.exits,
            branches: record.point.branches,
            guest_time_us: record.guest_time.as_micros(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Generation {
    generation: u64,
    from: Place,
}

/// The report.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    directory: PathBuf,
    vm: Option<String>,
    clock: Option<String>,
    segments: u64,
    frames: u64,
    records: u64,
    /// Everything on disk: records, frame headers, segment headers.
    bytes: u64,
    overhead_bytes: u64,
    first: Option<Place>,
    last: Option<Place>,
    guest_time_us: u64,
    /// Per second of guest time; absent in a log without duration.
    records_per_s: Option<f64>,
    bits_per_s: Option<f64>,
    kinds: BTreeMap<&'static str, Kind>,
    generations: Vec<Generation>,
    /// How the guest ended, if the log says so.
    end: Option<String>,
    holes: Vec<Hole>,
    #[serde(skip)]
    file: Option<PathBuf>,
}

pub(super) fn run(arguments: &StatArguments) -> Result<Damage, Failure> {
    let (report, damage) = gather(&arguments.dir)?;
    if arguments.json {
        let text = serde_json::to_string_pretty(&report);
        let text = text.map_err(|error| Failure::new(super::Exit::Failed, error))?;
        print(&(text + "\n"))?;
    } else {
        print(&report.text())?;
    }
    Ok(damage)
}

pub(super) fn gather(dir: &Path) -> Result<(Report, Damage), Failure> {
    let mut report = Report {
        directory: dir.into(),
        ..Report::default()
    };
    let damage = walk(dir, |item| {
        match item {
            Salvaged::Frame(frame) => report.add_frame(frame),
            Salvaged::LeftOut(left_out) => report.add_hole(left_out.into()),
        }
        Ok(())
    })?;
    report.conclude();
    Ok((report, damage))
}

impl Report {
    fn add_file(&mut self, path: &Path) {
        if self.file.as_deref() != Some(path) {
            self.file = Some(path.into());
            self.segments += 1;
            self.bytes += SEGMENT_HEADER_BYTES as u64;
            self.overhead_bytes += SEGMENT_HEADER_BYTES as u64;
        }
    }

    fn add_hole(&mut self, hole: Hole) {
        self.add_file(&hole.file);
        if self.holes.len() < LISTED_MAX {
            self.holes.push(hole);
        }
    }

    fn add_frame(&mut self, frame: &ReadFrame) {
        self.add_file(&frame.path);
        self.frames += 1;
        self.bytes += frame.length as u64;
        let records: usize = frame.records.iter().map(|placed| placed.length).sum();
        self.overhead_bytes += (frame.length - records.min(frame.length)) as u64;
        for placed in &frame.records {
            self.add_record(placed);
        }
    }

    fn add_record(&mut self, placed: &Placed) {
        let record = &placed.record;
        self.records += 1;
        let kind = self.kinds.entry(kind_of(&record.body)).or_default();
        kind.records += 1;
        kind.bytes += placed.length as u64;
        let place = Place::from(record);
        let payload = match &record.body {
            RecordBody::Console(bytes) | RecordBody::Entropy(bytes) => bytes.len() as u64,
            RecordBody::Packet { bytes, .. } => bytes.len() as u64,
            RecordBody::Output(output) => u64::from(output.length),
            RecordBody::Start(start) => {
                self.vm = Some(start.vm.clone());
                self.clock = Some(format!("{:?}", start.clock).to_lowercase());
                self.add_generation(start.generation, &place);
                0
            }
            RecordBody::Control(Control::Generation(generation)) => {
                self.add_generation(*generation, &place);
                0
            }
            RecordBody::End(reason) => {
                self.end = Some(format!("{reason:?}"));
                0
            }
            _ => 0,
        };
        self.kinds
            .entry(kind_of(&record.body))
            .or_default()
            .payload_bytes += payload;
        self.first.get_or_insert_with(|| place.clone());
        self.last = Some(place);
    }

    fn add_generation(&mut self, generation: u64, from: &Place) {
        if self.generations.len() < LISTED_MAX {
            self.generations.push(Generation {
                generation,
                from: from.clone(),
            });
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "rates and means are for people")]
    fn conclude(&mut self) {
        for kind in self.kinds.values_mut() {
            kind.bytes_per_record = kind.bytes as f64 / kind.records.max(1) as f64;
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

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (name, value) in self.facts() {
            let _ = writeln!(text, "{name:<12} {value}");
        }
        text += &self.table();
        for hole in &self.holes {
            let word = if hole.torn { "torn" } else { "damaged" };
            let (file, offset, bytes) = (hole.file.display(), hole.offset, hole.bytes);
            let what = &hole.what;
            let _ = writeln!(
                text,
                "\n{word}: {file} byte {offset}: {bytes} bytes left out: {what}"
            );
        }
        text
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let unknown = || "unknown: the Start record is not here".to_owned();
        let (segments, frames) = (self.segments, self.frames);
        let mut facts = vec![
            ("log", self.directory.display().to_string()),
            ("vm", self.vm.clone().unwrap_or_else(unknown)),
            ("clock", self.clock.clone().unwrap_or_else(unknown)),
            (
                "on disk",
                format!(
                    "{} in {segments} segments, {frames} frames",
                    size(self.bytes)
                ),
            ),
            (
                "first",
                self.first.as_ref().map_or_else(String::new, Place::text),
            ),
            (
                "last",
                self.last.as_ref().map_or_else(String::new, Place::text),
            ),
        ];
        if let (Some(records), Some(bits)) = (self.records_per_s, self.bits_per_s) {
            let (span, mbit) = (seconds(self.guest_time_us), bits / 1e6);
            let span =
                format!("{span:.3} s of guest time: {records:.0} records/s, {mbit:.3} Mbit/s");
            facts.push(("span", span));
        }
        for Generation { generation, from } in &self.generations {
            facts.push((
                "generation",
                format!("{generation} from record {}", from.index),
            ));
        }
        let open = || "open: the guest had not ended".to_owned();
        facts.push(("end", self.end.clone().unwrap_or_else(open)));
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
            let each = format!("{:.2}", kind.bytes_per_record);
            text += &row(
                name,
                &records,
                &bytes,
                &each,
                &kind.payload_bytes.to_string(),
            );
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

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn size(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} bytes"),
        10_240..10_485_760 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}
