//! What a host that lost power leaves at the end of a log, and what is damage.

use super::format::{SEGMENT_HEADER_BYTES, segment_name};
use super::sync_point::SYNC_POINT_BYTES;
use super::tests::{
    VM, append_raw, append_timers, damage_of, read_all, salvage, segments, writer, written,
};
use super::*;
use crate::codec::EncodedLog;
use crate::codec::sample::timers;
use crate::host_time::HostTime;
use crate::record::LogIndex;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// As [`written`], and closed in order: a sync point is the last that is there.
fn closed(frames: u64, segment_bytes_max: u64) -> TempDir {
    let directory = written(frames, segment_bytes_max);
    let (mut writer, _) = writer(directory.path(), 1 << 20);
    append_timers(&mut writer, frames * 10, 10);
    writer.close().expect("synced");
    directory
}

#[test]
fn a_tail_cut_anywhere_is_recovered_to_the_last_whole_frame() {
    let whole = written(4, 250);
    let [first, last] = &segments(whole.path())[..] else {
        panic!("two segments");
    };
    let first_bytes = fs::read(first).expect("readable");
    let bytes = fs::read(last).expect("readable");
    let frame_bytes = (bytes.len() - SEGMENT_HEADER_BYTES) / 2;
    for cut_at in 0..bytes.len() {
        fs::write(first, &first_bytes).expect("written");
        fs::write(last, &bytes[..cut_at]).expect("written");
        let frames = cut_at.saturating_sub(SEGMENT_HEADER_BYTES) / frame_bytes;
        let sound = if cut_at < SEGMENT_HEADER_BYTES {
            0
        } else {
            SEGMENT_HEADER_BYTES + frames * frame_bytes
        };
        let torn = cut_at - sound;
        let refused = recover(whole.path(), VM, TailPolicy::Refuse);
        if torn > 0 || cut_at == 0 {
            let (path, offset, damage) = damage_of(refused.expect_err("a torn tail"));
            assert_eq!((&path, offset), (last, sound as u64), "cut at {cut_at}");
            assert_eq!(damage, SegmentDamage::Torn { bytes: torn as u64 });
            assert_eq!(
                fs::read(last).expect("readable").len(),
                cut_at,
                "refusing changes nothing"
            );
        } else {
            refused.expect("cut between frames");
        }
        let (mut writer, recovered) = writer(whole.path(), 250);
        let next = 20 + 10 * frames as u64;
        assert_eq!(recovered.next(), Some(LogIndex(next)), "cut at {cut_at}");
        assert_eq!(recovered.cut.map_or(0, |cut| cut.bytes), torn as u64);
        let log = EncodedLog::encode(&timers(next, 1)).expect("valid");
        writer.append(&log, HostTime(0)).expect("written");
        assert_eq!(read_all(whole.path()).expect("sound"), timers(0, next + 1));
    }
}

#[test]
fn zeros_at_the_end_are_a_torn_tail() {
    for zeros in [1, 9, 10, 4_096, 200_000] {
        let directory = written(3, 1 << 20);
        let path = directory.path().join(segment_name(LogIndex(0)));
        append_raw(&path, &vec![0; zeros]);
        let error = recover(directory.path(), VM, TailPolicy::Refuse).expect_err("zeros");
        let bytes = zeros as u64;
        assert_eq!(damage_of(error).2, SegmentDamage::ZeroTail { bytes });
        let recovered = recover(directory.path(), VM, TailPolicy::CutTorn).expect("cut");
        assert_eq!(recovered.cut.expect("cut").bytes, bytes);
        assert_eq!(read_all(directory.path()).expect("sound"), timers(0, 30));
    }
    let empty = tempfile::tempdir().expect("a temporary directory");
    fs::write(empty.path().join(segment_name(LogIndex(5))), [0; 100]).expect("written");
    let recovered = recover(empty.path(), VM, TailPolicy::CutTorn).expect("cut");
    assert_eq!(recovered.segments, []);
    assert_eq!(segments(empty.path()), Vec::<PathBuf>::new());
}

#[test]
fn every_flip_of_one_bit_before_the_last_sync_point_is_refused_and_never_cut() {
    let directory = closed(3, 250);
    for (path, synced) in segments(directory.path())
        .into_iter()
        .zip([0, SYNC_POINT_BYTES])
    {
        let bytes = fs::read(&path).expect("readable");
        for bit in 0..(bytes.len() - synced) * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &damaged).expect("written");
            let error = recover(directory.path(), VM, TailPolicy::CutTorn)
                .expect_err("a flipped bit was not seen");
            let (named, offset, _) = damage_of(error);
            assert_eq!(named, path, "bit {bit}");
            assert!(
                offset <= (bit / 8).max(SEGMENT_HEADER_BYTES) as u64 + 6,
                "bit {bit}: {offset}"
            );
            read_all(directory.path()).expect_err("a flipped bit was read over");
        }
        fs::write(&path, &bytes).expect("written");
    }
    recover(directory.path(), VM, TailPolicy::Refuse).expect("undamaged again");
}

/// Frames of ten timers, a sync after every second one; where each frame and sync point begins.
fn synced_now_and_then(frames: u64) -> (TempDir, PathBuf, Vec<(u64, u64)>) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (mut writer, _) = writer(directory.path(), 1 << 20);
    for frame in 0..frames {
        append_timers(&mut writer, frame * 10, 10);
        if frame % 2 == 1 {
            writer.sync().expect("synced");
        }
    }
    let path = directory.path().join(segment_name(LogIndex(0)));
    let mut reader = LogReader::open(directory.path());
    let mut places = Vec::new();
    while let Some(frame) = reader.next_frame().expect("sound") {
        places.push((frame.offset, frame.length as u64));
    }
    (directory, path, places)
}

/// What a host that lost power may leave of the bytes in `range`.
const LEFT_BEHIND: [fn(&mut [u8]); 3] = [
    |page| page.fill(0),
    |page| page.fill(0xA1),
    |page| page[0] ^= 1,
];

#[test]
fn a_hole_behind_the_last_sync_is_the_end_of_the_log_and_before_it_is_damage() {
    let (directory, path, places) = synced_now_and_then(7);
    let whole = fs::read(&path).expect("readable");
    // Six frames are synced; the seventh is not. A hole in any of them, with whatever is behind it.
    for spoil in LEFT_BEHIND {
        for (number, (offset, length)) in places.iter().enumerate() {
            let mut bytes = whole.clone();
            let (from, to) = (*offset as usize, (offset + length) as usize);
            spoil(&mut bytes[from..to - 1]);
            fs::write(&path, &bytes).expect("written");
            let records = timers(0, number as u64 * 10);
            let (_, holes) = salvage(directory.path());
            assert_eq!(holes.len(), 1, "frame {number}");
            assert_eq!(holes[0].unsynced, number == 6, "frame {number}");
            if number < 6 {
                read_all(directory.path()).expect_err("damage");
                recover(directory.path(), VM, TailPolicy::CutTorn).expect_err("damage");
                assert_eq!(fs::read(&path).expect("readable"), bytes, "changed");
                continue;
            }
            assert_eq!(read_all(directory.path()).expect("cut short"), records);
            recover(directory.path(), VM, TailPolicy::Refuse).expect_err("unsynced");
            let recovered = recover(directory.path(), VM, TailPolicy::CutTorn).expect("cut");
            assert_eq!(recovered.cut.map(|cut| cut.offset), Some(*offset));
            assert_eq!(read_all(directory.path()).expect("sound"), records);
        }
    }
}

#[test]
fn sound_frames_behind_an_unsynced_hole_are_cut_with_it() {
    let (directory, path, places) = synced_now_and_then(4);
    let (mut writer, _) = writer(directory.path(), 1 << 20);
    for frame in 4..8 {
        append_timers(&mut writer, frame * 10, 10);
    }
    let mut bytes = fs::read(&path).expect("readable");
    let (offset, length) = places[3];
    let behind = (offset + length) as usize + SYNC_POINT_BYTES;
    bytes[behind..behind + 20].fill(0);
    fs::write(&path, &bytes).expect("written");
    let (records, holes) = salvage(directory.path());
    assert_eq!(records, [timers(0, 40), timers(50, 30)].concat());
    assert!(holes.len() == 1 && holes[0].unsynced, "{holes:?}");
    assert_eq!(
        read_all(directory.path()).expect("cut short"),
        timers(0, 40)
    );
    drop(writer);
    let recovered = recover(directory.path(), VM, TailPolicy::CutTorn).expect("cut");
    assert_eq!(
        (recovered.records, recovered.last_segment_bytes),
        (40, behind as u64)
    );
    // A sync point of another place proves nothing about this one.
    append_raw(&path, &[0; 3]);
    append_raw(&path, &super::sync_point::encode(LogIndex(0), 5));
    recover(directory.path(), VM, TailPolicy::CutTorn).expect("cut again");
}

#[test]
fn an_unsynced_hole_of_a_segment_that_has_a_successor_is_damage() {
    let directory = written(4, 250);
    let first = segments(directory.path()).remove(0);
    let mut bytes = fs::read(&first).expect("readable");
    let end = bytes.len();
    bytes[end - 20..].fill(0);
    fs::write(&first, &bytes).expect("written");
    recover(directory.path(), VM, TailPolicy::CutTorn).expect_err("damage");
    read_all(directory.path()).expect_err("damage");
    let (_, holes) = salvage(directory.path());
    assert!(holes.iter().all(|hole| !hole.unsynced), "{holes:?}");
}

#[test]
fn what_was_appended_is_synced_in_time_without_another_append() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = WriterOptions {
        sync: SyncPolicy::EveryMs(10),
        ..WriterOptions::default()
    };
    let (mut writer, _) =
        SegmentWriter::open(directory.path(), VM, options, TailPolicy::Refuse).expect("new");
    assert_eq!(writer.sync_due(), None, "nothing to sync");
    let at = |ms| HostTime(0).plus_ms(ms);
    for (frame, now) in [100, 105, 109].into_iter().enumerate() {
        let log = EncodedLog::encode(&timers(frame as u64 * 10, 10)).expect("valid");
        writer.append(&log, at(now)).expect("written");
        assert_eq!(writer.sync_due(), Some(at(110)), "the first append counts");
    }
    let length = || {
        fs::metadata(&segments(directory.path())[0])
            .expect("there")
            .len()
    };
    let before = length();
    writer.sync_if_due(at(109)).expect("not due");
    assert_eq!(length(), before);
    writer.sync_if_due(at(110)).expect("synced");
    assert_eq!(length(), before + SYNC_POINT_BYTES as u64);
    assert_eq!(
        writer.sync_due(),
        None,
        "the sync point itself is no reason"
    );
}
