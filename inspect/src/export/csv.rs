//! Records as a table of comma-separated values (RFC 4180), for spreadsheets and data frames.

#![forbid(unsafe_code)]

use crate::facts::{Direction, Facts};
use crate::line::Content;
use logging_channel::execution_point::PointKind;
use std::fmt::Display;
use std::io::{self, Write};

/// Names of the columns, as the first line has them.
pub const COLUMNS: &str = "index,exits,between,branches,rip,check,guest_time_us,kind,bytes,device,\
                           direction,size,proto,src,src_port,dst,dst_port,content";

/// Writes the names of the columns.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_header(out: &mut impl Write) -> io::Result<()> {
    write!(out, "{COLUMNS}\r\n")
}

/// Writes a record that takes `bytes` bytes in the log.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_record(out: &mut impl Write, facts: &Facts<'_>, bytes: usize) -> io::Result<()> {
    let (record, point) = (facts.record, &facts.record.point);
    let between = point.kind == PointKind::Between;
    write!(
        out,
        "{},{},{},",
        record.index.0,
        point.exits,
        u8::from(between)
    )?;
    if between {
        write!(out, "{},{:#x},", point.branches, point.rip)?;
    } else {
        write!(out, "{},,", point.branches)?;
    }
    let (time, kind) = (record.guest_time.as_micros(), facts.kind.name());
    write!(out, "{},{time},{kind},{bytes},", point.check)?;
    cell(out, facts.device())?;
    cell(out, facts.direction().map(Direction::name))?;
    cell(out, facts.size())?;
    let packet = facts.packet();
    cell(out, packet.map(|packet| packet.proto.name()))?;
    cell(out, packet.and_then(|packet| packet.src))?;
    cell(out, packet.and_then(|packet| packet.src_port))?;
    cell(out, packet.and_then(|packet| packet.dst))?;
    cell(out, packet.and_then(|packet| packet.dst_port))?;
    write!(out, "{}\r\n", quoted(&Content(facts).to_string()))
}

/// A value that needs no quotes, or nothing; and a comma.
fn cell(out: &mut impl Write, value: Option<impl Display>) -> io::Result<()> {
    value.map_or(Ok(()), |value| write!(out, "{value}"))?;
    out.write_all(b",")
}

fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\r', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use logging_channel::record::RecordBody;

    #[test]
    fn every_row_has_every_column() {
        let mut bodies = sample::bodies();
        bodies.truncate(3);
        bodies.push(RecordBody::Console(b"echo \"a,b\"\n".to_vec()));
        let mut out = Vec::new();
        for record in sample::records(bodies) {
            write_record(&mut out, &Facts::of(&record), 7).unwrap();
        }
        let text = String::from_utf8(out).unwrap();
        let rows: Vec<&str> = text.split_terminator("\r\n").collect();
        assert_eq!(rows.len(), 4);
        let columns = COLUMNS.split(',').count();
        assert!(rows[1].starts_with(
            "1,10,0,0,,48879,100000,packet,7,net0,in,59,tcp,10.0.0.1,4242,10.0.0.2,80,"
        ));
        for row in &rows[..3] {
            let outside_quotes: String = row.split('"').step_by(2).collect();
            assert_eq!(outside_quotes.matches(',').count() + 1, columns, "{row}");
        }
        assert!(
            rows[3].ends_with(r#""11 bytes ""echo \""a,b\""\n""""#),
            "{}",
            rows[3]
        );
    }
}
