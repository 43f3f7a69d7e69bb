//! One record at length: where it lies, what it says, its bytes.

#![forbid(unsafe_code)]

use crate::facts::Facts;
use crate::hex::{Digits, Dump};
use crate::line::{Content, PointText};
use crate::theme::Theme;
use logging_channel::codec::Placed;
use logging_channel::record::{RecordBody, Start};
use logging_channel::segment::ReadFrame;
use std::io::{self, Write};

/// Writes everything about a record.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_record(
    out: &mut impl Write,
    placed: &Placed,
    frame: &ReadFrame,
    theme: Theme,
) -> io::Result<()> {
    let record = &placed.record;
    let facts = Facts::of(record);
    let (offset, length) = frame.place_of(placed);
    let title = format!("record {} {}", record.index.0, facts.kind.name());
    writeln!(out, "{}", theme.heading(title))?;
    let mut row = |name: &str, value: String| writeln!(out, "  {name:<11} {value}");
    row(
        "file",
        format!("{} byte {offset}, {length} bytes", frame.path.display()),
    )?;
    row(
        "point",
        format!(
            "{} register check {:04x}",
            PointText(&record.point),
            record.point.check
        ),
    )?;
    let us = record.guest_time.as_micros();
    row(
        "guest time",
        format!("{}.{:06} s", us / 1_000_000, us % 1_000_000),
    )?;
    if let (Some(device), Some(direction), Some(size)) =
        (facts.device(), facts.direction(), facts.size())
    {
        let direction = direction.name();
        row("device", format!("{device}, {direction}, {size} bytes"))?;
    }
    match &record.body {
        RecordBody::Start(start) => write_start(out, start)?,
        RecordBody::Packet { .. } => write_packet(out, &facts)?,
        RecordBody::Output(output) => {
            writeln!(out, "  crc32c      {:08x}", output.digest)?;
            writeln!(
                out,
                "  (the bytes are not in the log: `understudy replay` makes them again)"
            )?;
        }
        RecordBody::Timer | RecordBody::Progress => {}
        RecordBody::Console(_) | RecordBody::Entropy(_) => {}
        RecordBody::Mark(_)
        | RecordBody::Control(_)
        | RecordBody::End(_)
        | RecordBody::State { .. } => {
            writeln!(out, "  content     {}", Content(&facts))?;
        }
    }
    if let Some(bytes) = facts.content() {
        write!(out, "{}", Dump { bytes, base: 0 })?;
    }
    Ok(())
}

fn write_start(out: &mut impl Write, start: &Start) -> io::Result<()> {
    let mut row = |name: &str, value: String| writeln!(out, "  {name:<11} {value}");
    row("vm", start.vm.clone())?;
    row("generation", start.generation.to_string())?;
    row("clock", format!("{:?}", start.clock).to_lowercase())?;
    row("cpu model", start.cpu_model.clone())?;
    row("memory", format!("{} MiB", start.memory_bytes >> 20))?;
    row("kernel", Digits(&start.kernel_sha256).to_string())?;
    row("initramfs", Digits(&start.initramfs_sha256).to_string())?;
    row("cmdline", start.cmdline.escape_default().to_string())?;
    row("mac", crate::packet::mac_text(&start.mac))?;
    row(
        "wall clock",
        format!("{} s since 1970 at power-on", start.wall_clock_s),
    )
}

fn write_packet(out: &mut impl Write, facts: &Facts<'_>) -> io::Result<()> {
    let Some(packet) = facts.packet() else {
        return Ok(());
    };
    if let Some((src, dst)) = packet.mac {
        let mac = crate::packet::mac_text;
        writeln!(out, "  ethernet    {} > {}", mac(&src), mac(&dst))?;
    }
    writeln!(out, "  packet      {packet}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::Range;
    use crate::sample;
    use crate::source::{Found, Step, walk};

    #[test]
    fn a_record_is_shown_with_its_place_and_bytes() {
        let log = sample::log_in_segments(1 << 20);
        let mut out = Vec::new();
        walk(log.dir(), Range::default(), |found| {
            if let Found::Record(placed, frame) = found {
                write_record(&mut out, placed, frame, Theme::plain())?;
            }
            Ok(Step::On)
        })
        .unwrap();
        let text = String::from_utf8(out).unwrap();
        for part in [
            "record 0 start\n",
            "cmdline     console=ttyS0\n",
            "record 1 packet\n",
            "packet      10.0.0.1:4242 > 10.0.0.2:80 tcp",
            "hello|",
            "Generation(4)",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }
}
