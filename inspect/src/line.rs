//! A record as one line of text, or as one line of JSON.
//!
//! Text: index, execution point (exits; between exits also `+branches@rip`), register check, guest time
//! in seconds, kind, content. JSON has the same and more; its keys are an interface.

#![forbid(unsafe_code)]

use crate::digits;
use crate::facts::Facts;
use crate::hex::Digits;
use crate::packet::Packet;
use crate::repeats::Repeats;
use crate::source::Hole;
use crate::theme::Theme;
use logging_channel::execution_point::{ExecutionPoint, PointKind};
use logging_channel::record::{OutputDevice, Record, RecordBody};
use serde::Serialize;
use std::fmt::{self, Write as _};
use std::io;

/// Most bytes of console text that a line repeats.
const TEXT_BYTES_SHOWN: usize = 48;

/// A record as JSON.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    index: u64,
    exits: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    between: Option<Between>,
    check: u16,
    guest_time_us: u64,
    kind: &'static str,
    bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direction: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packet: Option<&'a Packet>,
    content: String,
}

#[derive(Debug, Serialize)]
struct Between {
    branches: u64,
    rip: u64,
}

impl<'a> Line<'a> {
    /// The line of a record that takes `bytes` bytes in the log.
    #[must_use]
    pub fn of(facts: &'a Facts<'_>, bytes: usize) -> Self {
        let Record {
            index,
            point,
            guest_time,
            body,
        } = facts.record;
        Self {
            index: index.0,
            exits: point.exits,
            between: (point.kind == PointKind::Between).then_some(Between {
                branches: point.branches,
                rip: point.rip,
            }),
            check: point.check,
            guest_time_us: guest_time.as_micros(),
            kind: facts.kind.name(),
            bytes,
            device: facts.device().map(|device| device.to_string()),
            direction: facts.direction().map(crate::facts::Direction::name),
            size: facts.size(),
            packet: facts.packet(),
            content: match body {
                RecordBody::Packet { .. } => {
                    facts.packet().map(Packet::to_string).unwrap_or_default()
                }
                _ => Content(facts).to_string(),
            },
        }
    }
}

/// Writes a record as JSON, and a line feed.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_json(out: &mut impl io::Write, facts: &Facts<'_>, bytes: usize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Line::of(facts, bytes))?;
    out.write_all(b"\n")
}

/// Writes a hole as JSON, and a line feed.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_hole_json(out: &mut impl io::Write, hole: &Hole) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &serde_json::json!({ "damage": hole }))?;
    out.write_all(b"\n")
}

/// A record as text.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a>(pub &'a Facts<'a>, pub Theme);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = Vec::new();
        self.push(&mut Repeats::default(), &mut line);
        f.write_str(&String::from_utf8_lossy(&line))
    }
}

impl Text<'_> {
    /// Appends the line, without a line feed, to `out`; `repeats` is that of the lines before.
    pub fn push(&self, repeats: &mut Repeats, out: &mut Vec<u8>) {
        let (facts, theme) = (self.0, self.1);
        let Record {
            index,
            point,
            guest_time,
            body,
        } = facts.record;
        digits::push_right(out, index.0, 8);
        out.push(b' ');
        match point.kind {
            PointKind::Exit => digits::push_right(out, point.exits, 10),
            PointKind::Between => {
                let point = format!("{:>10}", PointText(point).to_string());
                out.extend_from_slice(point.as_bytes());
            }
        }
        out.push(b' ');
        digits::push_hex(out, point.check.into(), 4);
        out.push(b' ');
        let us = guest_time.as_micros();
        repeats.time(us, out, |text| {
            digits::push_right(text, us / 1_000_000, 5);
            text.push(b'.');
            digits::push_zeros(text, us % 1_000_000, 6);
            text.push(b' ');
        });
        let name = facts.kind.name();
        theme.push_kind(out, facts.kind, name);
        if matches!(body, RecordBody::Timer | RecordBody::Progress) {
            return;
        }
        out.resize(out.len() + 9_usize.saturating_sub(name.len()), b' ');
        Content(facts).push(repeats, out);
    }
}

/// A hole as text.
#[derive(Debug, Clone, Copy)]
pub struct HoleText<'a>(pub &'a Hole, pub Theme);

impl fmt::Display for HoleText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hole = self.0;
        let word = if hole.unsynced { "unsynced" } else { "damaged" };
        let (file, offset, bytes) = (hole.file.display(), hole.offset, hole.bytes);
        let what = &hole.what;
        write!(
            f,
            "{} {file} byte {offset}: {bytes} bytes left out: {what}",
            self.1.alarm(format_args!("{word}:"))
        )
    }
}

/// An execution point as text.
#[derive(Debug, Clone, Copy)]
pub struct PointText<'a>(pub &'a ExecutionPoint);

impl fmt::Display for PointText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind {
            PointKind::Exit => write!(f, "{}", self.0.exits),
            PointKind::Between => {
                write!(f, "{}+{}@{:x}", self.0.exits, self.0.branches, self.0.rip)
            }
        }
    }
}

/// What a record says, beside where and when.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a>(pub &'a Facts<'a>);

impl fmt::Display for Content<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::new();
        self.push(&mut Repeats::default(), &mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

impl Content<'_> {
    /// Appends it to `out`: what most records are without `fmt`.
    fn push(&self, repeats: &mut Repeats, out: &mut Vec<u8>) {
        match &self.0.record.body {
            RecordBody::Packet { device, .. } => {
                out.extend_from_slice(b"net");
                digits::push(out, (*device).into());
                out.push(b' ');
                digits::push(out, self.0.size().unwrap_or(0));
                out.extend_from_slice(b" bytes ");
                if let Some(packet) = self.0.packet() {
                    packet.push(repeats, out);
                }
            }
            RecordBody::Output(output) => {
                match output.device {
                    OutputDevice::Console => out.extend_from_slice(b"console"),
                    OutputDevice::Network(number) => {
                        out.extend_from_slice(b"net");
                        digits::push(out, number.into());
                    }
                }
                out.push(b' ');
                digits::push(out, output.length.into());
                out.extend_from_slice(b" bytes crc32c ");
                digits::push_hex(out, output.digest.into(), 8);
            }
            RecordBody::Mark(digests) => {
                out.extend_from_slice(b"registers ");
                digits::push_hex(out, digests.registers, 16);
                out.extend_from_slice(b" devices ");
                digits::push_hex(out, digests.devices, 16);
                if let Some(memory) = digests.memory {
                    out.extend_from_slice(b" memory ");
                    digits::push_hex(out, memory, 16);
                }
            }
            body => {
                let mut text = String::new();
                // A String takes everything.
                let _ = seldom(&mut text, body);
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
}

fn seldom(f: &mut String, body: &RecordBody) -> fmt::Result {
    match body {
        RecordBody::Start(start) => write!(
            f,
            "vm {} generation {} clock {:?} memory {} MiB cpu {} kernel {} cmdline {:?}",
            start.vm,
            start.generation,
            start.clock,
            start.memory_bytes >> 20,
            start.cpu_model,
            Digits(&start.kernel_sha256[..8]),
            start.cmdline,
        ),
        RecordBody::Timer
        | RecordBody::Progress
        | RecordBody::Packet { .. }
        | RecordBody::Output(_)
        | RecordBody::Mark(_) => Ok(()),
        RecordBody::Console(bytes) => {
            let shown = &bytes[..bytes.len().min(TEXT_BYTES_SHOWN)];
            write!(f, "{} bytes \"{}\"", bytes.len(), shown.escape_ascii())
        }
        RecordBody::Entropy(bytes) => write!(f, "{} bytes", bytes.len()),
        RecordBody::Control(control) => write!(f, "{control:?}"),
        RecordBody::End(reason) => write!(f, "{reason:?}"),
        RecordBody::State { last, bytes } => {
            let which = if *last { ", the last piece" } else { "" };
            write!(f, "{} bytes{which}", bytes.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use logging_channel::host_time::GuestTime;
    use logging_channel::record::LogIndex;

    fn line(point: ExecutionPoint, body: RecordBody) -> String {
        let record = Record {
            index: LogIndex(7),
            point,
            guest_time: GuestTime::from_micros(1_000_020),
            body,
        };
        Text(&Facts::of(&record), Theme::plain()).to_string()
    }

    #[test]
    fn a_line_shows_everything() {
        let at_exit = ExecutionPoint::at_exit(120, 0xbeef);
        assert_eq!(
            line(at_exit, RecordBody::Console(b"ls\n".to_vec())),
            "       7        120 beef     1.000020 console  3 bytes \"ls\\n\""
        );
        let bytes = sample::tcp(4242, 80, b"hello");
        let between = ExecutionPoint {
            kind: PointKind::Between,
            branches: 9,
            rip: 0xff,
            ..at_exit
        };
        assert_eq!(
            line(between, RecordBody::Packet { device: 0, bytes }),
            "       7   120+9@ff beef     1.000020 packet   net0 59 bytes 10.0.0.1:4242 > 10.0.0.2:80 \
             tcp PSH,ACK seq 1000 ack 2000 win 512 len 5"
        );
        assert!(line(at_exit, RecordBody::Timer).ends_with(" timer"));
    }

    #[test]
    fn colours_change_nothing_but_colour() {
        for record in sample::records(sample::bodies()) {
            let facts = Facts::of(&record);
            let plain = Text(&facts, Theme::plain()).to_string();
            let mut coloured = Text(&facts, Theme::coloured()).to_string();
            assert_ne!(plain, coloured);
            while let Some(from) = coloured.find('\x1b') {
                let length = coloured[from..].find('m').unwrap();
                coloured.replace_range(from..=from + length, "");
            }
            assert_eq!(plain, coloured);
        }
    }

    #[test]
    fn json_has_the_packet() {
        let records = sample::records(sample::bodies());
        let mut out = Vec::new();
        write_json(&mut out, &Facts::of(&records[1]), 70).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json["packet"]["dst_port"], 80);
        assert_eq!(json["packet"]["proto"], "tcp");
        assert_eq!(
            (&json["device"], &json["direction"], &json["size"]),
            (&"net0".into(), &"in".into(), &59.into())
        );
    }
}
