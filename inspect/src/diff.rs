//! The first difference between two logs, with what lies around it and a hint at the likely cause.
//!
//! Two sides of a pair have the same records up to a failover: one log is then the beginning of the
//! other, or they part at the record where a new generation began. Any other difference means that the two
//! logs are of different runs, or that a copy diverged. Records are compared by index, over damage.

#![forbid(unsafe_code)]

use crate::facts::Facts;
use crate::kind::Kind;
use crate::line::{Content, HoleText, PointText, Text};
use crate::source::{Damage, Hole, WalkError};
use crate::theme::Theme;
use logging_channel::record::{Control, Output, Record, RecordBody, Start};
use logging_channel::segment::{Salvaged, Salvager};
use serde::Serialize;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;

/// Records shown before the difference, and of each log from it on.
const AROUND_RECORDS: usize = 4;

/// How two logs relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// They have the same records.
    Equal,
    /// The first is the beginning of the second.
    FirstIsBeginning,
    /// The second is the beginning of the first.
    SecondIsBeginning,
    /// They part where one has a new generation: a failover.
    Fork,
    /// A record differs.
    Differ,
}

/// One thing in which two records differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Field {
    /// What.
    pub name: &'static str,
    /// In the first log.
    pub first: String,
    /// In the second.
    pub second: String,
}

/// What a comparison found.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// How the logs relate.
    pub relation: Relation,
    /// Records that are in both and equal.
    pub common: u64,
    /// Records that damage hides in one of them; they were not compared.
    pub hidden: u64,
    /// Index of the first record that differs, or of the first that only one log has.
    pub at: Option<u64>,
    /// In what it differs.
    pub fields: Vec<Field>,
    /// The likely cause.
    pub hint: Option<String>,
    /// Index of the last record with digests that both have.
    pub last_common_mark: Option<u64>,
    #[serde(skip)]
    before: VecDeque<Record>,
    #[serde(skip)]
    first: Vec<Record>,
    #[serde(skip)]
    second: Vec<Record>,
    #[serde(skip)]
    holes: Vec<Hole>,
}

/// Compares the logs in two directories.
///
/// # Errors
/// When there is no log in one of them, or a file cannot be read.
pub fn compare(first: &Path, second: &Path) -> Result<(Comparison, Damage), WalkError> {
    let (mut a, mut b) = (Records::open(first)?, Records::open(second)?);
    let mut found = Comparison {
        relation: Relation::Equal,
        common: 0,
        hidden: 0,
        at: None,
        fields: Vec::new(),
        hint: None,
        last_common_mark: None,
        before: VecDeque::new(),
        first: Vec::new(),
        second: Vec::new(),
        holes: Vec::new(),
    };
    let (mut left, mut right) = (a.next()?, b.next()?);
    loop {
        match (left, right) {
            (Some(one), Some(other)) if one.index < other.index => {
                found.hidden += 1;
                (left, right) = (a.next()?, Some(other));
            }
            (Some(one), Some(other)) if one.index > other.index => {
                found.hidden += 1;
                (left, right) = (Some(one), b.next()?);
            }
            (Some(one), Some(other)) if one == other => {
                found.agree(one);
                (left, right) = (a.next()?, b.next()?);
            }
            (one, other) => {
                found.part(one, other);
                break;
            }
        }
    }
    // The rest of both, for what lies around and for all of their damage.
    while let Some(record) = a.next()? {
        if !found.first.is_empty() && found.first.len() < AROUND_RECORDS {
            found.first.push(record);
        }
    }
    while let Some(record) = b.next()? {
        if !found.second.is_empty() && found.second.len() < AROUND_RECORDS {
            found.second.push(record);
        }
    }
    found.holes = [a.holes, b.holes].concat();
    let mut damage = a.damage;
    damage.count += b.damage.count;
    Ok((found, damage))
}

impl Comparison {
    fn agree(&mut self, record: Record) {
        self.common += 1;
        if matches!(record.body, RecordBody::Mark(_)) {
            self.last_common_mark = Some(record.index.0);
        }
        if self.before.len() == AROUND_RECORDS {
            self.before.pop_front();
        }
        self.before.push_back(record);
    }

    fn part(&mut self, first: Option<Record>, second: Option<Record>) {
        let index = |record: &Option<Record>| record.as_ref().map(|record| record.index.0);
        self.at = index(&first).or(index(&second));
        self.relation = match (&first, &second) {
            (None, None) => Relation::Equal,
            (None, Some(_)) => Relation::FirstIsBeginning,
            (Some(_), None) => Relation::SecondIsBeginning,
            (Some(one), Some(other)) => {
                self.fields = differences(one, other);
                self.hint = Some(hint(one, other).to_owned());
                if is_fork(one) || is_fork(other) {
                    Relation::Fork
                } else {
                    Relation::Differ
                }
            }
        };
        self.first.extend(first);
        self.second.extend(second);
    }

    /// Writes it for people; the logs are called by their directories.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn write(
        &self,
        out: &mut impl Write,
        first: &Path,
        second: &Path,
        theme: Theme,
    ) -> io::Result<()> {
        let (a, b, common) = (first.display(), second.display(), self.common);
        match (self.relation, self.at) {
            (Relation::FirstIsBeginning, Some(at)) => {
                writeln!(
                    out,
                    "{a} is the beginning of {b}: {common} equal records, {b} goes on at {at}"
                )?;
            }
            (Relation::SecondIsBeginning, Some(at)) => {
                writeln!(
                    out,
                    "{b} is the beginning of {a}: {common} equal records, {a} goes on at {at}"
                )?;
            }
            (Relation::Fork | Relation::Differ, Some(at)) => {
                let title =
                    format!("the logs differ from record {at} on, after {common} equal records");
                writeln!(out, "{}", theme.alarm(title))?;
            }
            _ => writeln!(out, "equal: {common} records")?,
        }
        if self.hidden > 0 {
            let hidden = self.hidden;
            writeln!(
                out,
                "{hidden} records are in one log only, where the other is damaged or begins later"
            )?;
        }
        for hole in &self.holes {
            writeln!(out, "{}", HoleText(hole, theme))?;
        }
        if self.fields.is_empty() {
            return Ok(());
        }
        for Field {
            name,
            first,
            second,
        } in &self.fields
        {
            writeln!(out, "  {name:<12} {first}  |  {second}")?;
        }
        if let Some(mark) = self.last_common_mark {
            writeln!(out, "  both agreed on all digests in record {mark}")?;
        }
        if let Some(hint) = &self.hint {
            writeln!(out, "  {} {hint}", theme.heading("hint:"))?;
        }
        let before = self.before.iter().map(|record| (' ', record));
        let first = self.first.iter().map(|record| ('<', record));
        let second = self.second.iter().map(|record| ('>', record));
        for (sign, record) in before.chain(first).chain(second) {
            writeln!(out, "{sign} {}", Text(&Facts::of(record), theme))?;
        }
        Ok(())
    }
}

/// Everything in which two records differ, most telling first.
fn differences(a: &Record, b: &Record) -> Vec<Field> {
    let mut fields = Vec::new();
    let mut field = |name, first: String, second: String| {
        if first != second {
            fields.push(Field {
                name,
                first,
                second,
            });
        }
    };
    let kind = |record: &Record| Kind::of(&record.body).name().to_owned();
    field("kind", kind(a), kind(b));
    field(
        "point",
        PointText(&a.point).to_string(),
        PointText(&b.point).to_string(),
    );
    let check = |record: &Record| format!("{:04x}", record.point.check);
    field("registers", check(a), check(b));
    let time = |record: &Record| format!("{} us", record.guest_time.as_micros());
    field("guest time", time(a), time(b));
    let (facts_a, facts_b) = (Facts::of(a), Facts::of(b));
    field(
        "content",
        Content(&facts_a).to_string(),
        Content(&facts_b).to_string(),
    );
    if let (Some(one), Some(other)) = (facts_a.content(), facts_b.content()) {
        let same = one
            .iter()
            .zip(other)
            .take_while(|(one, other)| one == other)
            .count();
        let byte = |bytes: &[u8]| {
            bytes
                .get(same)
                .map_or("end".into(), |byte| format!("{byte:02x} at {same}"))
        };
        field("bytes", byte(one), byte(other));
    }
    if let (RecordBody::Start(one), RecordBody::Start(other)) = (&a.body, &b.body) {
        for (name, one, other) in start_items(one, other) {
            field(name, one, other);
        }
    }
    fields
}

fn start_items(a: &Start, b: &Start) -> [(&'static str, String, String); 4] {
    let both = |name, value: fn(&Start) -> String| (name, value(a), value(b));
    [
        both("initramfs", |s| {
            crate::hex::Digits(&s.initramfs_sha256).to_string()
        }),
        both("mac", |s| crate::packet::mac_text(&s.mac)),
        both("wall clock", |s| s.wall_clock_s.to_string()),
        both("seed", |s| crate::hex::Digits(&s.rng_seed[..8]).to_string()),
    ]
}

const fn is_fork(record: &Record) -> bool {
    matches!(record.body, RecordBody::Control(Control::Generation(_)))
}

/// The likely cause of a difference, from its form.
fn hint(a: &Record, b: &Record) -> &'static str {
    match (&a.body, &b.body) {
        _ if is_fork(a) || is_fork(b) => {
            "one side went live or continued alone here: what the other has from here on was never acknowledged"
        }
        (RecordBody::Start(_), RecordBody::Start(_)) => {
            "two different runs: each has its own Start record, so nothing later can be compared"
        }
        (RecordBody::Output(one), RecordBody::Output(other)) => output_hint(one, other),
        (RecordBody::Mark(one), RecordBody::Mark(other)) if a.point == b.point => {
            match (
                one.registers == other.registers,
                one.devices == other.devices,
            ) {
                (true, true) => {
                    "memory only: something wrote to guest memory outside the guest and its log"
                }
                (true, false) => {
                    "devices only: a device's model read something that is not in the log"
                }
                (false, true) => {
                    "registers only: an instruction gave different results, as a time-stamp read would"
                }
                (false, false) => {
                    "registers and devices: look for the first difference between this and the last equal digests"
                }
            }
        }
        _ if a.point.order(&b.point).is_ne() => {
            "other points: the guest took another path, or the records are of two runs"
        }
        _ if a.point.check != b.point.check => {
            "other registers at the same point: an instruction before it gave different results"
        }
        _ if a.guest_time != b.guest_time => {
            "other times at the same point: two recorders, so two runs"
        }
        _ => "the same point was given different input: two recorders, so two runs",
    }
}

fn output_hint(one: &Output, other: &Output) -> &'static str {
    if one.length != other.length || one.device != other.device {
        "the guest sent something else: it took another path before this record"
    } else {
        "the guest sent other bytes of the same length: often a time, a random number or an address in them"
    }
}

/// The records of one log, over damage.
struct Records {
    salvager: Salvager,
    queue: VecDeque<Record>,
    damage: Damage,
    holes: Vec<Hole>,
}

/// Holes that are listed.
const HOLES_MAX: usize = 1_000;

impl Records {
    fn open(dir: &Path) -> Result<Self, WalkError> {
        let salvager = Salvager::open(dir)?;
        if salvager.segments().is_empty() {
            return Err(WalkError::NoLog(dir.to_owned()));
        }
        Ok(Self {
            salvager,
            queue: VecDeque::new(),
            damage: Damage::default(),
            holes: Vec::new(),
        })
    }

    fn next(&mut self) -> Result<Option<Record>, WalkError> {
        loop {
            if let Some(record) = self.queue.pop_front() {
                return Ok(Some(record));
            }
            let Some(item) = self.salvager.next()? else {
                return Ok(None);
            };
            self.damage.see(&item);
            match item {
                Salvaged::Frame(frame) => {
                    let records = frame.records.into_iter().map(|placed| placed.record);
                    self.queue.extend(records);
                }
                Salvaged::LeftOut(left_out) if self.holes.len() < HOLES_MAX => {
                    self.holes.push((&left_out).into());
                }
                Salvaged::LeftOut(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use logging_channel::execution_point::ExecutionPoint;

    fn compared(a: &[Record], b: &[Record]) -> (Comparison, String) {
        let (one, other) = (sample::log_of(a, 1 << 20), sample::log_of(b, 300));
        let (found, damage) = compare(one.dir(), other.dir()).unwrap();
        assert_eq!(damage.count, 0);
        let mut out = Vec::new();
        found
            .write(&mut out, Path::new("A"), Path::new("B"), Theme::plain())
            .unwrap();
        (found, String::from_utf8(out).unwrap())
    }

    #[test]
    fn equal_logs_and_beginnings_are_no_difference() {
        let records = sample::records(sample::bodies());
        let (found, text) = compared(&records, &records);
        assert_eq!(
            (found.relation, found.common),
            (Relation::Equal, 25),
            "{text}"
        );
        let (found, text) = compared(&records[..20], &records);
        assert_eq!(
            (found.relation, found.at),
            (Relation::FirstIsBeginning, Some(20)),
            "{text}"
        );
        let (found, text) = compared(&records, &records[..20]);
        assert_eq!(
            (found.relation, found.common),
            (Relation::SecondIsBeginning, 20),
            "{text}"
        );
    }

    #[test]
    fn every_field_of_the_first_different_record_is_named() {
        let records = sample::records(sample::bodies());
        let mut other = records.clone();
        for record in &mut other[5..] {
            record.point = ExecutionPoint::at_exit(record.point.exits + 1, 0xdead);
        }
        let (found, text) = compared(&records, &other);
        assert_eq!((found.relation, found.at), (Relation::Differ, Some(5)));
        let names: Vec<_> = found.fields.iter().map(|field| field.name).collect();
        assert_eq!(names, ["point", "registers"]);
        for part in [
            "differ from record 5 on",
            "another path",
            "\n<        5 ",
            "\n>        5 ",
            "\n         4 ",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }

    #[test]
    fn other_bytes_are_placed_and_a_failover_is_a_fork() {
        let records = sample::records(sample::bodies());
        let mut other = records.clone();
        other[1].body = RecordBody::Packet {
            device: 0,
            bytes: sample::tcp(4242, 80, b"hullo"),
        };
        let (found, text) = compared(&records, &other);
        assert!(
            found
                .fields
                .iter()
                .any(|f| f.name == "bytes" && f.first.ends_with("at 51")),
            "{text}"
        );
        let mut bodies = sample::bodies();
        bodies.truncate(15);
        bodies.push(RecordBody::Control(Control::Generation(4)));
        let (found, text) = compared(&records, &sample::records(bodies));
        assert_eq!(found.relation, Relation::Fork, "{text}");
        assert!(text.contains("never acknowledged"), "{text}");
    }

    #[test]
    fn damage_hides_records_but_not_differences() {
        let records = sample::records(sample::bodies());
        let (one, other) = (
            sample::log_of(&records, 1 << 20),
            sample::log_of(&records, 1 << 20),
        );
        one.flip_a_bit();
        let (found, damage) = compare(one.dir(), other.dir()).unwrap();
        assert!(damage.count > 0);
        assert_eq!(found.relation, Relation::Equal);
        assert_eq!(found.common + found.hidden, 25);
    }
}
