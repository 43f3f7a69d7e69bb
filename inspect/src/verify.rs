//! Whether a log is sound, and the journal beside it: every frame, record and sequence rule checked, nothing changed.

#![forbid(unsafe_code)]

use crate::line::HoleText;
use crate::source::{Damage, Hole, Step, WalkError, walk_frames};
use crate::theme::Theme;
use logging_channel::journal::JournalReader;
use logging_channel::record::RecordBody;
use logging_channel::segment::Salvaged;
use serde::Serialize;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

/// What a check found.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Sound segments and parts of segments were read from this many files.
    pub segments: u64,
    /// Sound frames.
    pub frames: u64,
    /// Sound records.
    pub records: u64,
    /// Index of the first.
    pub first: Option<u64>,
    /// Index of the last.
    pub last: Option<u64>,
    /// Whether the log says how the guest ended.
    pub ended: bool,
    /// Sound entries of the journal beside it.
    pub journal_entries: u64,
    /// Bytes that were left out, an unsynced tail among them.
    pub left_out_bytes: u64,
    /// Places that are damaged; an unsynced tail is none.
    pub damaged: u64,
}

/// Checks the log in `dir` and the journal beside it; every hole is written to `out` as it is found, and
/// the verdict at the end.
///
/// # Errors
/// When there is no log, a file cannot be read, or `out` cannot be written.
pub fn verify(
    out: &mut impl Write,
    dir: &Path,
    json: bool,
    theme: Theme,
) -> Result<Damage, WalkError> {
    let mut verdict = Verdict::default();
    let mut file = None;
    let mut damage = walk_frames(dir, None, |item| {
        let path = match item {
            Salvaged::Frame(frame) => {
                verdict.frames += 1;
                verdict.records += frame.records.len() as u64;
                for placed in &frame.records {
                    let record = &placed.record;
                    verdict.first.get_or_insert(record.index.0);
                    verdict.last = Some(record.index.0);
                    verdict.ended |= matches!(record.body, RecordBody::End(_));
                }
                &frame.path
            }
            Salvaged::LeftOut(left_out) => {
                verdict.left_out_bytes += left_out.bytes;
                write_hole(out, &left_out.into(), json, theme)?;
                &left_out.path
            }
        };
        if file.as_ref() != Some(path) {
            file = Some(path.clone());
            verdict.segments += 1;
        }
        Ok(Step::On)
    })?;
    let mut journal = JournalReader::open(dir).map_err(WalkError::Journal)?;
    while let Some(read) = journal.next_read().map_err(WalkError::Journal)? {
        match Hole::in_journal(read) {
            None => verdict.journal_entries += 1,
            Some(hole) => {
                verdict.left_out_bytes += hole.bytes;
                damage.count += u64::from(!hole.unsynced);
                write_hole(out, &hole, json, theme)?;
            }
        }
    }
    verdict.damaged = damage.count;
    if json {
        serde_json::to_writer(&mut *out, &verdict).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{verdict}")?;
    }
    Ok(damage)
}

fn write_hole(out: &mut impl Write, hole: &Hole, json: bool, theme: Theme) -> io::Result<()> {
    if json {
        crate::line::write_hole_json(out, hole)
    } else {
        writeln!(out, "{}", HoleText(hole, theme))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            segments,
            frames,
            records,
            ..
        } = self;
        let word = match self.damaged {
            0 => "sound",
            _ => "damaged",
        };
        write!(
            f,
            "{word}: {segments} segments, {frames} frames, {records} records"
        )?;
        if let (Some(first), Some(last)) = (self.first, self.last) {
            write!(f, ", {first} to {last}")?;
        }
        if !self.ended {
            f.write_str("; it does not say how the guest ended")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use logging_channel::journal::format::{JOURNAL_HEADER_BYTES, journal_name};
    use logging_channel::segment::sync_point::SYNC_POINT_BYTES;

    fn text(log: &sample::Log) -> (String, u64) {
        let mut out = Vec::new();
        let damage = verify(&mut out, log.dir(), false, Theme::plain()).unwrap();
        (String::from_utf8(out).unwrap(), damage.count)
    }

    #[test]
    fn a_sound_log_is_sound() {
        let (text, damage) = text(&sample::log_in_segments(400));
        assert_eq!(damage, 0);
        assert!(
            text.starts_with("sound: ") && text.contains("25 records, 0 to 24"),
            "{text}"
        );
    }

    #[test]
    fn every_flipped_bit_is_found_and_the_rest_is_read() {
        let log = sample::log_in_segments(1 << 20);
        let segment = log.segments().remove(0);
        let whole = std::fs::read(&segment).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&segment, bytes).unwrap();
            let (text, damage) = text(&log);
            // Of the last sync point there is no other witness: it is shown, as an unsynced tail.
            let witnessed = at < whole.len() - SYNC_POINT_BYTES;
            assert_eq!(damage > 0, witnessed, "byte {at}: {text}");
            assert!(
                text.contains(&segment.display().to_string()),
                "byte {at}: {text}"
            );
        }
    }

    #[test]
    fn a_flipped_bit_of_the_journal_is_found() {
        let log = sample::log_in_segments(1 << 20);
        crate::journal::tests::write(log.dir(), "b.2");
        let (sound, damage) = text(&log);
        assert_eq!(damage, 0, "{sound}");
        let file = log.dir().join(journal_name(0));
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[JOURNAL_HEADER_BYTES + 8] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let (text, damage) = text(&log);
        assert_eq!(damage, 1, "{text}");
        let place = format!("{} byte {JOURNAL_HEADER_BYTES}", file.display());
        assert!(text.contains(&place), "{text}");
    }

    #[test]
    fn a_foreign_file_is_damage_at_its_beginning() {
        let log = sample::log_in_segments(1 << 20);
        std::fs::write(
            &log.segments()[0],
            b"#!/bin/sh\necho this is no log, and long enough\n",
        )
        .unwrap();
        let (text, damage) = text(&log);
        assert!(damage > 0 && text.contains("byte 0"), "{text}");
    }
}
