//! A log as a timeline for the Perfetto UI, in the JSON form of Chrome's trace events.
//!
//! Tracks: generations, the vCPU's stretches of guest time with their exits, timers, packets received
//! and sent, console, entropy, marks; and counters of exits and log bytes. The time axis is guest time. From the
//! journal beside the log, if there is one, come roles, going live, transfers, acknowledgements, and the delays
//! (`trace_journal`); without it there are no tracks of those.

#![forbid(unsafe_code)]

use crate::facts::Facts;
use crate::line::Content;
use logging_channel::record::{Control, OutputDevice, Record, RecordBody};
use serde_json::{Value, json};
use std::io::{self, Write};

/// A track of the timeline, in the order of showing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Track {
    Generations = 1,
    Vcpu,
    Timers,
    Received,
    Sent,
    Console,
    Entropy,
    Marks,
    Control,
    Role,
    GoingLive,
    Transfers,
    Acks,
    Released,
}

/// Those of records; the others are there when there is a journal.
const TRACKS: [(Track, &str); 9] = [
    (Track::Generations, "generations"),
    (Track::Vcpu, "vCPU"),
    (Track::Timers, "timers"),
    (Track::Received, "packets received"),
    (Track::Sent, "packets sent"),
    (Track::Console, "console"),
    (Track::Entropy, "entropy"),
    (Track::Marks, "marks"),
    (Track::Control, "control"),
];

/// Writes records as trace events.
#[derive(Debug)]
pub struct TraceWriter<W> {
    out: W,
    first: bool,
    generation: Option<(u64, u64)>,
    /// Guest time and exits where time last moved.
    moved: Option<(u64, u64)>,
    last_us: u64,
    log_bytes: u64,
}

impl<W: Write> TraceWriter<W> {
    /// Begins a file about the log called `name`.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn new(mut out: W, name: &str) -> io::Result<Self> {
        out.write_all(b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n")?;
        let mut writer = Self {
            out,
            first: true,
            generation: None,
            moved: None,
            last_us: 0,
            log_bytes: 0,
        };
        writer.event(
            &json!({"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": name}}),
        )?;
        for (track, name) in TRACKS {
            writer.describe(track, name)?;
        }
        Ok(writer)
    }

    /// Names a track.
    pub(super) fn describe(&mut self, track: Track, name: &str) -> io::Result<()> {
        let tid = track as usize;
        let args = json!({"name": name});
        self.event(&json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": args}))?;
        let args = json!({"sort_index": tid});
        self.event(
            &json!({"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": tid, "args": args}),
        )
    }

    /// Takes the next record, which takes `bytes` bytes in the log.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn record(&mut self, facts: &Facts<'_>, bytes: usize) -> io::Result<()> {
        let record = facts.record;
        let time = record.guest_time.as_micros();
        self.log_bytes += bytes as u64;
        self.stretch(record)?;
        self.last_us = time;
        let track = match &record.body {
            RecordBody::Start(start) => return self.begin_generation(start.generation, time),
            RecordBody::Control(Control::Generation(generation)) => {
                return self.begin_generation(*generation, time);
            }
            RecordBody::Progress => return Ok(()),
            RecordBody::Timer => Track::Timers,
            RecordBody::Packet { .. } => Track::Received,
            RecordBody::Output(output) if output.device != OutputDevice::Console => Track::Sent,
            RecordBody::Output(_) | RecordBody::Console(_) => Track::Console,
            RecordBody::Entropy(_) => Track::Entropy,
            RecordBody::Mark(_) | RecordBody::State { .. } => Track::Marks,
            RecordBody::Control(_) | RecordBody::End(_) => Track::Control,
        };
        let name = match facts.packet() {
            Some(packet) => packet.proto.name(),
            None => facts.kind.name(),
        };
        let (exits, content) = (record.point.exits, Content(facts).to_string());
        self.event(
            &json!({"ph": "i", "s": "t", "name": name, "pid": 1, "tid": track as usize, "ts": time,
            "args": {"record": record.index.0, "exits": exits, "content": content}}),
        )
    }

    /// A slice of the vCPU's track whenever guest time has moved, and the counters.
    fn stretch(&mut self, record: &Record) -> io::Result<()> {
        let (time, exits) = (record.guest_time.as_micros(), record.point.exits);
        let Some((from, from_exits)) = self.moved else {
            self.moved = Some((time, exits));
            return Ok(());
        };
        if time <= from {
            return Ok(());
        }
        self.moved = Some((time, exits));
        let name = format!("{} exits", exits.saturating_sub(from_exits));
        self.event(
            &json!({"ph": "X", "name": name, "pid": 1, "tid": Track::Vcpu as usize, "ts": from,
            "dur": time - from, "args": {"from_exit": from_exits, "to_exit": exits,
            "to_record": record.index.0}}),
        )?;
        let log_bytes = self.log_bytes;
        self.event(
            &json!({"ph": "C", "name": "exits", "pid": 1, "ts": time, "args": {"exits": exits}}),
        )?;
        self.event(
            &json!({"ph": "C", "name": "log bytes", "pid": 1, "ts": time,
            "args": {"bytes": log_bytes}}),
        )
    }

    fn begin_generation(&mut self, generation: u64, time: u64) -> io::Result<()> {
        self.end_generation(time)?;
        self.generation = Some((generation, time));
        Ok(())
    }

    fn end_generation(&mut self, time: u64) -> io::Result<()> {
        let Some((generation, from)) = self.generation.take() else {
            return Ok(());
        };
        self.event(
            &json!({"ph": "X", "name": format!("generation {generation}"), "pid": 1,
            "tid": Track::Generations as usize, "ts": from, "dur": time.saturating_sub(from)}),
        )
    }

    pub(super) fn event(&mut self, event: &Value) -> io::Result<()> {
        if !std::mem::take(&mut self.first) {
            self.out.write_all(b",\n")?;
        }
        serde_json::to_writer(&mut self.out, event).map_err(io::Error::from)
    }

    /// Ends the file, and gives it back.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_generation(self.last_us)?;
        self.out.write_all(b"\n]}\n")?;
        self.out.flush()?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn slices_cover_the_log_and_records_are_instants() {
        let mut writer = TraceWriter::new(Vec::new(), "web").unwrap();
        for record in sample::records(sample::bodies()) {
            writer.record(&Facts::of(&record), 10).unwrap();
        }
        let trace: Value = serde_json::from_slice(&writer.finish().unwrap()).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let of = |phase: &str, track: Track| {
            let wanted = |event: &&Value| event["ph"] == phase && event["tid"] == track as usize;
            events.iter().filter(wanted).collect::<Vec<_>>()
        };
        assert_eq!(of("i", Track::Timers).len(), 20);
        assert_eq!(of("i", Track::Received)[0]["name"], "tcp");
        assert_eq!(of("i", Track::Sent).len(), 1);
        let generations = of("X", Track::Generations);
        assert_eq!(generations.len(), 2);
        assert_eq!(generations[0]["dur"], 2_200_000);
        let stretches = of("X", Track::Vcpu);
        let sum: u64 = stretches
            .iter()
            .filter_map(|slice| slice["dur"].as_u64())
            .sum();
        assert_eq!(sum, 2_200_000);
        for pair in stretches.windows(2) {
            let end = pair[0]["ts"].as_u64().unwrap() + pair[0]["dur"].as_u64().unwrap();
            assert_eq!(pair[1]["ts"], end, "neither gap nor overlap");
        }
    }
}
