//! One line per record.

#![forbid(unsafe_code)]

use super::{Damage, Failure, Hole, ListArguments, kind_of, walk};
use logging_channel::execution_point::{ExecutionPoint, PointKind};
use logging_channel::record::{OutputDevice, Record, RecordBody};
use logging_channel::segment::Salvaged;
use serde::Serialize;
use std::io::{self, BufWriter, Write};

/// Most bytes of console text that a line repeats.
const TEXT_BYTES_SHOWN: usize = 48;

/// A record as JSON.
#[derive(Debug, Serialize)]
struct Line<'a> {
    index: u64,
    exits: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    between: Option<Between>,
    guest_time_us: u64,
    kind: &'a str,
    bytes: usize,
    content: String,
}

#[derive(Debug, Serialize)]
struct Between {
    branches: u64,
    rip: u64,
}

pub(super) fn run(arguments: &ListArguments) -> Result<Damage, Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let damage = write_log(&mut out, arguments)?;
    super::unless_reader_left(out.flush())?;
    Ok(damage)
}

pub(super) fn write_log(
    out: &mut impl Write,
    arguments: &ListArguments,
) -> Result<Damage, Failure> {
    walk(&arguments.dir, |item| write_item(out, arguments, item))
}

fn write_item(out: &mut impl Write, arguments: &ListArguments, item: &Salvaged) -> io::Result<()> {
    let frame = match item {
        Salvaged::Frame(frame) => frame,
        Salvaged::LeftOut(left_out) => {
            let hole = Hole::from(left_out);
            if arguments.json {
                serde_json::to_writer(&mut *out, &serde_json::json!({ "damage": hole }))?;
                return writeln!(out);
            }
            let (file, offset) = (hole.file.display(), hole.offset);
            return writeln!(
                out,
                "-------- {file} byte {offset}: {} bytes left out: {}",
                hole.bytes, hole.what
            );
        }
    };
    for placed in &frame.records {
        let record = &placed.record;
        let kind = kind_of(&record.body);
        let wanted = arguments.kind.is_empty() || arguments.kind.iter().any(|name| name == kind);
        if !wanted || record.index.0 < arguments.from || record.index.0 >= arguments.to {
            continue;
        }
        let line = line_of(record, placed.length);
        if arguments.json {
            serde_json::to_writer(&mut *out, &line)?;
            writeln!(out)?;
        } else {
            writeln!(out, "{}", text_of(&line, &record.point))?;
        }
    }
    Ok(())
}

fn line_of(record: &Record, bytes: usize) -> Line<'static> {
    let point = &record.point;
    let between = match point.kind {
        PointKind::Exit => None,
        PointKind::Between => Some(Between {
            branches: point.branches,
            rip: point.rip,
        }),
    };
    Line {
        index: record.index.0,
        exits: point.exits,
        between,
        guest_time_us: record.guest_time.as_micros(),
        kind: kind_of(&record.body),
        bytes,
        content: content_of(&record.body),
    }
}

fn text_of(line: &Line<'_>, point: &ExecutionPoint) -> String {
    let place = match &line.between {
        None => format!("{}", line.exits),
        Some(between) => format!("{}+{}@{:x}", line.exits, between.branches, between.rip),
    };
    let (seconds, micros) = (
        line.guest_time_us / 1_000_000,
        line.guest_time_us % 1_000_000,
    );
    let text = format!(
        "{:>8} {place:>10} {:04x} {seconds:>5}.{micros:06} {:<8} {}",
        line.index, point.check, line.kind, line.content
    );
    text.trim_end().to_owned()
}

fn content_of(body: &RecordBody) -> String {
    match body {
        RecordBody::Start(start) => format!(
            "vm {} generation {} clock {:?} memory {} MiB cpu {} kernel {} cmdline {:?}",
            start.vm,
            start.generation,
            start.clock,
            start.memory_bytes >> 20,
            start.cpu_model,
            hex(&start.kernel_sha256[..8]),
            start.cmdline,
        ),
        RecordBody::Timer | RecordBody::Progress => String::new(),
        RecordBody::Console(bytes) => {
            let shown = &bytes[..bytes.len().min(TEXT_BYTES_SHOWN)];
            format!("{} bytes \"{}\"", bytes.len(), shown.escape_ascii())
        }
        RecordBody::Packet { device, bytes } => {
            format!("net{device} {} bytes {}", bytes.len(), ethernet(bytes))
        }
        RecordBody::Entropy(bytes) => format!("{} bytes", bytes.len()),
        RecordBody::Output(output) => {
            let device = match output.device {
                OutputDevice::Console => "console".to_owned(),
                OutputDevice::Network(number) => format!("net{number}"),
            };
            format!(
                "{device} {} bytes crc32c {:08x}",
                output.length, output.digest
            )
        }
        RecordBody::Mark(digests) => {
            let memory = digests
                .memory
                .map(|digest| format!(" memory {digest:016x}"));
            let (registers, devices) = (digests.registers, digests.devices);
            format!(
                "registers {registers:016x} devices {devices:016x}{}",
                memory.unwrap_or_default()
            )
        }
        RecordBody::Control(control) => format!("{control:?}"),
        RecordBody::End(reason) => format!("{reason:?}"),
    }
}

/// Addresses and type of an Ethernet frame.
fn ethernet(bytes: &[u8]) -> String {
    match bytes {
        [header @ .., _, _] if header.len() < 12 => "too short for Ethernet".into(),
        [] | [_] => "too short for Ethernet".into(),
        _ => {
            let mac = |bytes: &[u8]| {
                bytes
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect::<Vec<_>>()
                    .join(":")
            };
            format!(
                "{} > {} type {}",
                mac(&bytes[6..12]),
                mac(&bytes[..6]),
                hex(&bytes[12..14])
            )
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use logging_channel::host_time::GuestTime;
    use logging_channel::record::LogIndex;

    #[test]
    fn a_line_shows_everything() {
        let record = Record {
            index: LogIndex(7),
            point: ExecutionPoint::at_exit(120, 0xbeef),
            guest_time: GuestTime::from_micros(1_000_020),
            body: RecordBody::Console(b"ls\n".to_vec()),
        };
        let text = text_of(&line_of(&record, 9), &record.point);
        assert_eq!(
            text,
            "       7        120 beef     1.000020 console  3 bytes \"ls\\n\""
        );
    }

    #[test]
    fn frames_of_any_length_have_a_text() {
        for length in 0..20 {
            let text = ethernet(&vec![0xab; length]);
            assert_eq!(text.contains(" > "), length >= 14, "{length}: {text}");
        }
    }
}
