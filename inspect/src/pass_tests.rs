//! What is made on several threads is what one thread finds, on sound logs and on damaged ones.

use super::*;
use crate::line::{HoleText, Text, write_hole_json, write_json};
use crate::place::{Place, Range};
use crate::repeats::Repeats;
use crate::sample::{self, Log};
use crate::source::{Found, walk, walk_in_grain};
use crate::stat::gather_in_grain;
use crate::theme::Theme;
use logging_channel::record::{Control, Digests, Output, OutputDevice, RecordBody};
use proptest::prelude::*;
use std::fs;
use std::io::Write as _;

/// One frame a block, and about ten.
const FINE: [Grain; 2] = [
    Grain {
        block_bytes: 1,
        part_bytes: 1,
        stretch_bytes_min: 1,
        calm_bytes: 0,
    },
    Grain {
        block_bytes: 400,
        part_bytes: 900,
        stretch_bytes_min: 1,
        calm_bytes: 100,
    },
];

/// No threads at all.
const ONE_THREAD: Grain = Grain {
    stretch_bytes_min: u64::MAX,
    ..FINE[0]
};

/// Records of all sorts, one to a frame, in segments of about 60.
fn log() -> Log {
    let mut bodies = sample::bodies();
    let end = bodies.pop();
    for number in 0..20_u8 {
        bodies.extend([
            RecordBody::Packet {
                device: number % 2,
                bytes: sample::tcp(number.into(), 80, &[number; 30]),
            },
            RecordBody::Output(Output {
                device: OutputDevice::Network(number),
                length: 70_000 * u32::from(number),
                digest: 7,
            }),
            RecordBody::Timer,
            RecordBody::Console(b"ls\n".to_vec()),
            RecordBody::Mark(Digests::default()),
            RecordBody::Progress,
            RecordBody::Control(Control::Generation(10 + u64::from(number))),
        ]);
    }
    bodies.extend(end);
    sample::log_of(&sample::records(bodies), 2_000)
}

/// What was listed, and what the last lines had.
type Lines = (Vec<u8>, Repeats);

/// Text and JSON.
struct Listing;

impl Pass for Listing {
    type Part = Lines;

    fn add(&self, lines: &mut Lines, seen: Seen<'_>) -> Step {
        let (text, repeats) = lines;
        match seen {
            Seen::Frame(_) => {}
            Seen::Record(facts, placed) => push(text, repeats, facts, placed),
            Seen::LeftOut(left_out) => push_hole(text, &left_out.into()),
        }
        Step::On
    }

    fn weight(&self, lines: &Lines) -> usize {
        lines.0.len()
    }
}

fn push(lines: &mut Vec<u8>, repeats: &mut Repeats, facts: &Facts<'_>, placed: &Placed) {
    Text(facts, Theme::plain()).push(repeats, lines);
    lines.push(b'\n');
    write_json(lines, facts, placed.length).unwrap();
}

fn push_hole(lines: &mut Vec<u8>, hole: &crate::source::Hole) {
    writeln!(lines, "{}", HoleText(hole, Theme::plain())).unwrap();
    write_hole_json(lines, hole).unwrap();
}

/// The listing and the number of damaged places, read by one thread after another.
fn expected(log: &Log, range: Range) -> (String, u64) {
    let mut lines = Vec::new();
    let damage = walk(log.dir(), range, |found| {
        match found {
            Found::Hole(hole) => push_hole(&mut lines, &hole),
            Found::Record(placed, _) => {
                // Every line on its own.
                let repeats = &mut Repeats::default();
                push(&mut lines, repeats, &Facts::of(&placed.record), placed);
            }
        }
        Ok(Step::On)
    });
    let damage = damage.map_or(u64::MAX, |damage| damage.count);
    (String::from_utf8(lines).unwrap(), damage)
}

fn made(log: &Log, range: Range, grain: Grain) -> (String, u64) {
    let mut lines = Vec::new();
    let damage = walk_in_grain(log.dir(), range, grain, &Listing, |part| {
        lines.append(&mut part.0);
        Ok(())
    });
    let damage = damage.map_or(u64::MAX, |damage| damage.count);
    (String::from_utf8(lines).unwrap(), damage)
}

fn check(log: &Log, range: Range) {
    let expected = expected(log, range);
    let counted = |grain| {
        let counted = gather_in_grain(log.dir(), grain);
        counted.map_or(String::new(), |(report, damage)| {
            serde_json::to_string(&report).unwrap() + &damage.count.to_string()
        })
    };
    let sums = counted(ONE_THREAD);
    for grain in FINE.into_iter().chain([Grain::USUAL]) {
        assert_eq!(made(log, range, grain), expected, "{grain:?}");
        assert_eq!(counted(grain), sums, "{grain:?}");
    }
}

/// Where the frames of the log lie: segment, offset, length.
fn frames(log: &Log) -> Vec<(Arc<Path>, usize, usize)> {
    let mut frames = Vec::new();
    let mut salvager = Salvager::open(log.dir()).unwrap();
    while let Some(item) = salvager.next().unwrap() {
        if let Salvaged::Frame(frame) = item {
            frames.push((frame.path, frame.offset as usize, frame.length));
        }
    }
    frames
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Damages the log as disks, crashes and people do.
fn damage(log: &Log, sort: u8, place: prop::sample::Index) {
    let segments = log.segments();
    let segment = &segments[place.index(segments.len())];
    let frames = frames(log);
    let last = segments.len() - 1;
    if frames.is_empty() {
        return;
    }
    let (file, offset, length) = &frames[place.index(frames.len())];
    match sort {
        0 => change(segment, |bytes| {
            if !bytes.is_empty() {
                let at = place.index(bytes.len());
                bytes[at] ^= 0x10;
            }
        }),
        1 => change(segment, |bytes| {
            bytes.truncate(place.index(bytes.len() + 1))
        }),
        2 => change(&segments[last], |bytes| bytes.resize(bytes.len() + 900, 0)),
        // A sound frame is missing: only the sequence tells.
        3 => change(file, |bytes| drop(bytes.drain(*offset..offset + length))),
        // A sound frame comes twice.
        4 => change(file, |bytes| {
            let again = bytes[*offset..offset + length].to_vec();
            drop(bytes.splice(*offset..*offset, again));
        }),
        5 => change(segment, |bytes| {
            bytes.insert(place.index(bytes.len() + 1), 0xa1)
        }),
        _ if last > 0 => fs::remove_file(segment).unwrap(),
        _ => {}
    }
}

#[test]
fn a_sound_log_is_made_in_any_grain() {
    let log = log();
    assert!(log.segments().len() > 3);
    assert!(expected(&log, Range::default()).1 == 0);
    check(&log, Range::default());
}

#[test]
fn a_missing_frame_is_seen_between_blocks() {
    let log = log();
    let (file, offset, length) = frames(&log).swap_remove(20);
    change(&file, |bytes| drop(bytes.drain(offset..offset + length)));
    // The record that is missing; sync points behind it are not where they say they are.
    let (_, damage) = made(&log, Range::default(), FINE[0]);
    assert!(damage >= 1);
    check(&log, Range::default());
}

#[test]
fn whoever_has_seen_enough_ends_the_pass() {
    let log = log();
    let mut taken = 0;
    let left = walk_in_grain(log.dir(), Range::default(), FINE[0], &Listing, |_| {
        taken += 1;
        match taken {
            0..50 => Ok(()),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    });
    assert_eq!((left.unwrap().count, taken), (0, 50));
    let full = walk_in_grain(log.dir(), Range::default(), FINE[0], &Listing, |_| {
        Err(io::ErrorKind::StorageFull.into())
    });
    assert!(matches!(full, Err(WalkError::Write(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn damage_is_the_same_as_on_one_thread(
        sorts in prop::collection::vec((0..7_u8, any::<prop::sample::Index>()), 0..4),
        from in prop::option::of(0..170_u64), to in prop::option::of(0..170_u64),
    ) {
        let log = log();
        for (sort, place) in sorts {
            damage(&log, sort, place);
        }
        let range = Range { from: from.map(Place::Index), to: to.map(Place::Index) };
        check(&log, range);
    }
}
