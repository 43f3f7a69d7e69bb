//! Counts of some of a log's records, to be added up in the log's order.

#![forbid(unsafe_code)]

use super::series::Moment;
use super::silence::Silences;
use super::{Generation, LISTED_MAX, Position, Tally};
use crate::facts::Facts;
use crate::kind::Kind;
use crate::pass::{Pass, Seen};
use crate::source::{Hole, Step};
use logging_channel::codec::Placed;
use logging_channel::record::{Control, OutputDevice, RecordBody};
use logging_channel::segment::LeftOut;
use std::path::Path;
use std::sync::Arc;

/// Counts of some records.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// The first and the last segment, and how many there are.
    pub(super) first_file: Option<Arc<Path>>,
    pub(super) file: Option<Arc<Path>>,
    pub(super) segments: u64,
    pub(super) frames: u64,
    pub(super) records: u64,
    pub(super) tallies: [Tally; Kind::ALL.len()],
    pub(super) first: Option<Position>,
    pub(super) last: Option<Position>,
    /// The last record that still belongs to the generation before.
    pub(super) before: Option<Position>,
    /// Those that begin here.
    pub(super) generations: Vec<Generation>,
    pub(super) vm: Option<String>,
    pub(super) clock: Option<String>,
    pub(super) end: Option<String>,
    pub(super) silences: Silences,
    pub(super) moments: Vec<Moment>,
    pub(super) left_out_bytes: u64,
    pub(super) holes: Vec<Hole>,
}

/// Counts.
pub(super) struct Counting;

impl Pass for Counting {
    type Part = Part;

    fn add(&self, part: &mut Part, seen: Seen<'_>) -> Step {
        match seen {
            Seen::Frame(file) => {
                part.add_file(file);
                part.frames += 1;
            }
            Seen::Record(facts, placed) => part.add_record(facts, placed),
            Seen::LeftOut(left_out) => part.add_hole(left_out),
        }
        Step::On
    }

    fn weight(&self, part: &Part) -> usize {
        part.moments.len() * size_of::<Moment>() + part.generations.len() * size_of::<Generation>()
    }
}

impl Part {
    fn add_file(&mut self, file: &Arc<Path>) {
        let known = |known: &Arc<Path>| Arc::ptr_eq(known, file) || known == file;
        if !self.file.as_ref().is_some_and(known) {
            self.first_file.get_or_insert_with(|| Arc::clone(file));
            self.file = Some(Arc::clone(file));
            self.segments += 1;
        }
    }

    fn add_hole(&mut self, left_out: &LeftOut) {
        self.add_file(&left_out.path);
        self.left_out_bytes += left_out.bytes;
        if self.holes.len() < LISTED_MAX {
            self.holes.push(left_out.into());
        }
    }

    fn add_record(&mut self, facts: &Facts<'_>, placed: &Placed) {
        let record = facts.record;
        self.records += 1;
        let tally = &mut self.tallies[facts.kind as usize];
        tally.records += 1;
        tally.bytes += placed.length as u64;
        tally.payload_bytes += facts.size().unwrap_or(0);
        let position = Position::from(record);
        match &record.body {
            RecordBody::Start(start) => {
                self.vm = Some(start.vm.clone());
                self.clock = Some(format!("{:?}", start.clock).to_lowercase());
                self.add_generation(start.generation, position);
            }
            RecordBody::Control(Control::Generation(generation)) => {
                self.add_generation(*generation, position);
            }
            RecordBody::End(reason) => self.end = Some(format!("{reason:?}")),
            _ => {}
        }
        let received = matches!(record.body, RecordBody::Packet { .. });
        let sent =
            matches!(&record.body, RecordBody::Output(o) if o.device != OutputDevice::Console);
        let counts = [1, placed.length as u64, received.into(), sent.into()];
        Moment::add(&mut self.moments, position.guest_time_us, counts);
        self.silences.add(&position, received, sent);
        match self.generations.last_mut() {
            Some(generation) => generation.to = position,
            None => self.before = Some(position),
        }
        self.first.get_or_insert(position);
        self.last = Some(position);
    }

    fn add_generation(&mut self, generation: u64, from: Position) {
        if self.generations.len() < LISTED_MAX {
            self.generations.push(Generation {
                generation,
                from,
                to: from,
                live: None,
            });
        }
    }
}
