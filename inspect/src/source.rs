//! Walks a log on disk: record by record, over damage, within a range, in constant memory.
//!
//! Segments before the range are passed over by their names or their first record. What is wrong
//! behind the last sync point is what a host that lost power, or a writer at work, leaves: shown, but no
//! damage.

#![forbid(unsafe_code)]

use crate::ahead;
use crate::pass::{self, Grain, Pass, Seen};
use crate::place::{Place, Range};
use logging_channel::codec::Placed;
use logging_channel::journal::Read;
use logging_channel::record::LogIndex;
use logging_channel::segment::{LeftOut, ReadFrame, Salvaged, Salvager, SegmentError};
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of a log that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hole {
    /// The segment.
    pub file: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// How many bytes were left out; 0 when frames are sound but records are missing before this place.
    pub bytes: u64,
    /// What is wrong with the first of them.
    pub what: String,
    /// It lies behind the last sync point of the log, where a host that lost power may leave anything;
    /// elsewhere it is damage.
    pub unsynced: bool,
}

impl From<&LeftOut> for Hole {
    fn from(left_out: &LeftOut) -> Self {
        Self {
            file: left_out.path.to_path_buf(),
            offset: left_out.offset,
            bytes: left_out.bytes,
            what: left_out.damage.to_string(),
            unsynced: left_out.unsynced,
        }
    }
}

impl Hole {
    /// What of a journal could not be read; `None` for an entry.
    pub(crate) fn in_journal(read: Read) -> Option<Self> {
        match read {
            Read::Entry(_) => None,
            Read::LeftOut {
                path,
                offset,
                bytes,
                damage,
                last,
            } => Some(Self {
                file: path,
                offset,
                bytes,
                what: damage.to_string(),
                unsynced: last,
            }),
        }
    }
}

/// Counts holes that are damage.
#[derive(Debug, Default)]
pub struct Damage {
    /// Places that are damaged.
    pub count: u64,
}

impl Damage {
    pub(crate) fn see(&mut self, item: &Salvaged) {
        if let Salvaged::LeftOut(left_out) = item {
            self.count += u64::from(!left_out.unsynced);
        }
    }
}

/// Why a log cannot be walked.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// There are no segments in the directory.
    #[error("there is no log in {}", .0.display())]
    NoLog(PathBuf),
    /// A file cannot be read.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// The journal cannot be read.
    #[error("cannot read the journal beside the log")]
    Journal(#[source] io::Error),
    /// A host time was given, and nothing knows it.
    #[error("there is no journal beside the log in {}, so host times are unknown", .0.display())]
    NoJournal(PathBuf),
    /// What was found cannot be written.
    #[error("cannot write the result")]
    Write(#[from] io::Error),
}

/// Something found on the way.
#[derive(Debug)]
pub enum Found<'a> {
    /// A record, and the frame that it lies in.
    Record(&'a Placed, &'a ReadFrame),
    /// Bytes that could not be read.
    Hole(Hole),
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Go on.
    On,
    /// Nothing further is of interest.
    Stop,
}

/// Gives `each` every frame and hole of the log in `dir`, in order.
///
/// # Errors
/// When there is no log, a file cannot be read, or as `each` says. A reader that left
/// ([`io::ErrorKind::BrokenPipe`]) ends the walk without an error.
pub fn walk_frames(
    dir: &Path,
    from: Option<Place>,
    mut each: impl FnMut(&Salvaged) -> io::Result<Step>,
) -> Result<Damage, WalkError> {
    let mut damage = Damage::default();
    let mut empty = true;
    ahead::each(open(dir, from)?, |item| {
        empty = false;
        damage.see(item);
        match each(item) {
            Ok(step) => Ok(step),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                damage = Damage::default();
                Ok(Step::Stop)
            }
            Err(error) => Err(error.into()),
        }
    })?;
    if empty {
        return Err(WalkError::NoLog(dir.to_owned()));
    }
    Ok(damage)
}

/// Makes `pass` over every record in `range`, and every hole met on the way, on all processors; gives `take`
/// each part in order. What `take` leaves of a part is used again, so it must leave it empty.
///
/// # Errors
/// As [`walk_frames`], with `take` for `each`.
pub fn walk_in_parts<P: Pass>(
    dir: &Path,
    range: Range,
    pass: &P,
    take: impl FnMut(&mut P::Part) -> io::Result<()>,
) -> Result<Damage, WalkError> {
    walk_in_grain(dir, range, Grain::USUAL, pass, take)
}

/// As [`walk_in_parts`], with the work divided like this.
pub(crate) fn walk_in_grain<P: Pass>(
    dir: &Path,
    range: Range,
    grain: Grain,
    pass: &P,
    take: impl FnMut(&mut P::Part) -> io::Result<()>,
) -> Result<Damage, WalkError> {
    let pass = Within { range, pass };
    let damage = pass::make(open(dir, range.from)?, grain, &pass, take)?;
    damage.ok_or_else(|| WalkError::NoLog(dir.to_owned()))
}

/// A pass that sees only records in `range`.
struct Within<'p, P> {
    range: Range,
    pass: &'p P,
}

impl<P: Pass> Pass for Within<'_, P> {
    type Part = P::Part;

    fn add(&self, part: &mut P::Part, seen: Seen<'_>) -> Step {
        if let Seen::Record(facts, _) = &seen {
            if self.range.begins_after(facts.record) {
                return Step::On;
            }
            if self.range.ends_before(facts.record) {
                return Step::Stop;
            }
        }
        self.pass.add(part, seen)
    }

    fn weight(&self, part: &P::Part) -> usize {
        self.pass.weight(part)
    }
}

/// Gives `each` every record in `range`, and every hole met on the way, in order.
///
/// # Errors
/// As [`walk_frames`].
pub fn walk(
    dir: &Path,
    range: Range,
    mut each: impl FnMut(Found<'_>) -> io::Result<Step>,
) -> Result<Damage, WalkError> {
    walk_frames(dir, range.from, |item| {
        let frame = match item {
            Salvaged::LeftOut(left_out) => return each(Found::Hole(left_out.into())),
            Salvaged::Frame(frame) => frame,
        };
        for placed in &frame.records {
            if range.begins_after(&placed.record) {
                continue;
            }
            if range.ends_before(&placed.record)
                || each(Found::Record(placed, frame))? == Step::Stop
            {
                return Ok(Step::Stop);
            }
        }
        Ok(Step::On)
    })
}

/// A reader that begins with the segment that holds `from`.
fn open(dir: &Path, from: Option<Place>) -> Result<Salvager, SegmentError> {
    let Some(from) = from else {
        return Salvager::open(dir);
    };
    let first = match from {
        Place::Index(index) => LogIndex(index),
        Place::Exit(_) | Place::TimeUs(_) => last_segment_before(dir, from)?,
    };
    Salvager::open_at(dir, first)
}

/// First index of the last segment whose first record is before `place`.
///
/// Points and guest time never decrease, so bisection finds it; a segment that cannot be read counts as
/// not before, which only makes the walk longer.
fn last_segment_before(dir: &Path, place: Place) -> Result<LogIndex, SegmentError> {
    let segments = Salvager::open(dir)?.segments();
    let mut before = LogIndex(0);
    let (mut low, mut high) = (0, segments.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let first = Salvager::open_at(dir, segments[middle])?.next()?;
        let earlier = match &first {
            Some(Salvaged::Frame(frame)) => {
                let placed = frame.records.first();
                placed.is_some_and(|placed| !place.reached_by(&placed.record))
            }
            _ => false,
        };
        if earlier {
            before = segments[middle];
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{self, Log};

    fn indices(log: &Log, from: Option<&str>, to: Option<&str>) -> Vec<u64> {
        let parse = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        let range = Range {
            from: parse(from),
            to: parse(to),
        };
        let mut seen = Vec::new();
        walk(log.dir(), range, |found| {
            if let Found::Record(placed, _) = found {
                seen.push(placed.record.index.0);
            }
            Ok(Step::On)
        })
        .unwrap();
        seen
    }

    #[test]
    fn ranges_by_index_exit_and_time_choose_the_same_records_in_any_segmentation() {
        for segment_bytes in [1 << 20, 400, 1] {
            let log = sample::log_in_segments(segment_bytes);
            let all: Vec<u64> = (0..25).collect();
            assert_eq!(indices(&log, None, None), all);
            assert_eq!(indices(&log, Some("5"), Some("8")), [5, 6, 7]);
            // Records have ten exits each, and timers a tenth of a second.
            assert_eq!(indices(&log, Some("exit:41"), Some("exit:71")), [5, 6, 7]);
            assert_eq!(indices(&log, Some("500ms"), Some("0.8s")), [5, 6, 7]);
            assert!(indices(&log, Some("99s"), None).is_empty());
        }
    }

    #[test]
    fn holes_are_found_beside_every_sound_record() {
        let log = sample::log_in_segments(400);
        let (file, middle) = log.flip_a_bit();
        let (mut records, mut holes) = (0, Vec::new());
        let damage = walk(log.dir(), Range::default(), |found| {
            match found {
                Found::Record(..) => records += 1,
                Found::Hole(hole) => holes.push(hole),
            }
            Ok(Step::On)
        });
        assert!(damage.unwrap().count > 0);
        assert!(records >= 23, "{records} of 25");
        let hole = &holes[0];
        assert_eq!(hole.file, file);
        assert!(
            hole.offset <= middle && middle < hole.offset + hole.bytes,
            "{hole:?}"
        );
    }

    #[test]
    fn zeros_behind_the_last_sync_point_are_unsynced_and_elsewhere_damage() {
        let log = sample::log_in_segments(400);
        let damage = |segment: &Path| {
            let mut bytes = std::fs::read(segment).unwrap();
            bytes.resize(bytes.len() + 5_000, 0);
            std::fs::write(segment, bytes).unwrap();
            let mut holes = Vec::new();
            let damage = walk(log.dir(), Range::default(), |found| {
                if let Found::Hole(hole) = found {
                    holes.push((hole.unsynced, hole.bytes));
                }
                Ok(Step::On)
            });
            (damage.unwrap().count, holes)
        };
        let segments = log.segments();
        assert_eq!(
            damage(&segments[segments.len() - 1]),
            (0, vec![(true, 5_000)])
        );
        assert_eq!(damage(&segments[0]).0, 1);
    }

    #[test]
    fn an_empty_directory_is_no_log() {
        let empty = tempfile::tempdir().unwrap();
        let error = walk(empty.path(), Range::default(), |_| Ok(Step::On)).unwrap_err();
        assert!(matches!(error, WalkError::NoLog(_)), "{error}");
    }
}
