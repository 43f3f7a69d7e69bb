use super::format::{SEGMENT_HEADER_BYTES, segment_name};
use super::*;
use crate::codec::sample::{any_log, one_of_each, timers};
use crate::codec::{EncodedLog, encode_message};
use crate::host_time::HostTime;
use crate::message::{Heartbeat, Message};
use crate::record::{LogIndex, Record};
use proptest::prelude::*;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub(super) const VM: &str = "vm";

pub(super) fn options(segment_bytes_max: u64) -> WriterOptions {
    WriterOptions {
        segment_bytes_max,
        sync: SyncPolicy::Never,
        keep_bytes: None,
    }
}

pub(super) fn writer(directory: &Path, segment_bytes_max: u64) -> (SegmentWriter, Recovered) {
    SegmentWriter::open(
        directory,
        VM,
        options(segment_bytes_max),
        TailPolicy::CutTorn,
    )
    .expect("a sound log")
}

/// Writes `frames` frames of ten timers each, in segments of at most `segment_bytes_max`; nothing is synced.
pub(super) fn written(frames: u64, segment_bytes_max: u64) -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (mut writer, _) = writer(directory.path(), segment_bytes_max);
    for frame in 0..frames {
        append_timers(&mut writer, frame * 10, 10);
    }
    directory
}

pub(super) fn append_timers(writer: &mut SegmentWriter, first: u64, count: u64) {
    let log = EncodedLog::encode(&timers(first, count)).expect("valid");
    writer.append(&log, HostTime(0)).expect("written");
}

pub(super) fn read_all(directory: &Path) -> Result<Vec<Record>, SegmentError> {
    let mut reader = LogReader::open(directory);
    let mut records = Vec::new();
    while let Some(record) = reader.next_record()? {
        records.push(record);
    }
    Ok(records)
}

pub(super) fn segments(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("listed");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("listed").path()).collect();
    paths.sort();
    paths
}

pub(super) fn append_raw(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().append(true).open(path).expect("opened");
    file.write_all(bytes).expect("written");
}

pub(super) fn damage_of(error: SegmentError) -> (PathBuf, u64, SegmentDamage) {
    match error {
        SegmentError::Damaged {
            path,
            offset,
            damage,
        } => (path, offset, damage),
        other => panic!("not damage: {other}"),
    }
}

pub(super) fn salvage(directory: &Path) -> (Vec<Record>, Vec<LeftOut>) {
    let mut salvager = Salvager::open(directory).expect("listed");
    let (mut records, mut holes) = (Vec::new(), Vec::new());
    while let Some(found) = salvager.next().expect("readable") {
        match found {
            Salvaged::Frame(frame) => records.extend(frame.records.into_iter().map(|p| p.record)),
            Salvaged::LeftOut(hole) => holes.push(hole),
        }
    }
    (records, holes)
}

#[test]
fn golden_segment() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (mut writer, recovered) = writer(directory.path(), 1 << 20);
    assert_eq!((recovered.next(), recovered.records), (None, 0));
    let log = EncodedLog::encode(&one_of_each()).expect("valid");
    writer.append(&log, HostTime(0)).expect("written");
    let path = directory.path().join("00000000000000000000.log");
    let bytes = fs::read(&path).expect("readable");
    let header: String = bytes[..SEGMENT_HEADER_BYTES]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    // Magic, version, first index, FNV-1a of "vm", CRC-32C.
    let golden = concat!(
        "554e445253544459",
        "02000000",
        "0000000000000000",
        "ecdb70b50737cf08",
        "1f078bf8"
    );
    assert_eq!(header, golden);
    assert_eq!(
        &bytes[SEGMENT_HEADER_BYTES..],
        &log.bytes()[..],
        "the very frame of the channel"
    );
    assert_eq!(read_all(directory.path()).expect("sound"), one_of_each());
}

#[test]
fn rolls_and_continues_where_it_ended() {
    let directory = written(7, 250);
    assert_eq!(segments(directory.path()).len(), 4);
    assert_eq!(read_all(directory.path()).expect("sound"), timers(0, 70));
    let (mut writer, recovered) = writer(directory.path(), 250);
    assert_eq!(
        (recovered.next(), recovered.records),
        (Some(LogIndex(70)), 70)
    );
    assert_eq!(recovered.cut, None);
    let gap = EncodedLog::encode(&timers(71, 1)).expect("valid");
    let error = writer.append(&gap, HostTime(0)).expect_err("a gap");
    assert!(
        matches!(
            error,
            SegmentError::NotNext {
                expected: LogIndex(70),
                ..
            }
        ),
        "{error}"
    );
    let next = EncodedLog::encode(&timers(70, 10)).expect("valid");
    writer.append(&next, HostTime(0)).expect("written");
    assert_eq!(read_all(directory.path()).expect("sound"), timers(0, 80));
    assert_eq!(
        segments(directory.path()).len(),
        4,
        "the last segment had room"
    );
}

#[test]
fn a_second_writer_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let _first = writer(directory.path(), 250);
    let second = SegmentWriter::open(directory.path(), VM, options(250), TailPolicy::Refuse);
    assert!(matches!(second, Err(SegmentError::InUse { .. })));
}

#[test]
fn syncs_as_told() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for sync in [
        SyncPolicy::Never,
        SyncPolicy::EveryMs(10),
        SyncPolicy::Always,
    ] {
        let directory = directory.path().join(format!("{sync:?}"));
        let options = WriterOptions {
            segment_bytes_max: 250,
            sync,
            keep_bytes: None,
        };
        let (mut writer, _) =
            SegmentWriter::open(&directory, VM, options, TailPolicy::Refuse).expect("new");
        for frame in 0..4 {
            let log = EncodedLog::encode(&timers(frame * 10, 10)).expect("valid");
            let now = HostTime(0).plus_ms(frame * 7);
            writer.append(&log, now).expect("written");
        }
        writer
            .sync_if_due(HostTime(0).plus_ms(100))
            .expect("synced");
        assert_eq!(writer.sync_due(), None);
        writer.close().expect("synced");
        assert_eq!(read_all(&directory).expect("sound").len(), 40);
    }
}

#[test]
fn reports_where_records_are() {
    let directory = written(2, 1 << 20);
    let mut reader = LogReader::open(directory.path());
    let path = directory.path().join(segment_name(LogIndex(0)));
    let bytes = fs::read(&path).expect("readable");
    let mut at = SEGMENT_HEADER_BYTES as u64;
    while let Some(frame) = reader.next_frame().expect("sound") {
        assert_eq!((&*frame.path, frame.offset), (&*path, at));
        at += frame.length as u64;
        let last = frame.records.last().expect("not empty");
        let (offset, length) = frame.place_of(last);
        assert_eq!(offset + length as u64, at);
    }
    assert_eq!(at, bytes.len() as u64);
}

#[test]
fn refuses_what_does_not_belong() {
    let directory = written(4, 250);
    let paths = segments(directory.path());
    let refuse = |tail| {
        recover(directory.path(), VM, tail)
            .map_err(damage_of)
            .expect_err("damage")
    };

    let error = recover(directory.path(), "other", TailPolicy::CutTorn).expect_err("another VM");
    assert_eq!(damage_of(error).2, SegmentDamage::OtherVm);

    let first = fs::read(&paths[0]).expect("readable");
    fs::write(&paths[0], &first[..first.len() - 1]).expect("written");
    let (path, _, damage) = refuse(TailPolicy::CutTorn);
    assert_eq!(path, paths[0], "only the last segment may be torn");
    assert!(matches!(damage, SegmentDamage::Torn { .. }), "{damage}");
    let read = read_all(directory.path()).expect_err("torn in the middle");
    assert!(matches!(damage_of(read).2, SegmentDamage::Torn { .. }));
    fs::write(&paths[0], &first).expect("written");

    let misnamed = directory.path().join(segment_name(LogIndex(21)));
    fs::rename(&paths[1], &misnamed).expect("renamed");
    let (name, header) = (LogIndex(21), LogIndex(20));
    assert_eq!(
        refuse(TailPolicy::CutTorn).2,
        SegmentDamage::Name { name, header }
    );
    fs::rename(&misnamed, &paths[1]).expect("renamed");

    let beat = Message::Heartbeat(Heartbeat::default());
    append_raw(&paths[1], &encode_message(&beat).expect("valid"));
    let (path, _, damage) = refuse(TailPolicy::CutTorn);
    assert_eq!(path, paths[1]);
    assert!(matches!(damage, SegmentDamage::FrameKind(_)), "{damage}");
}

#[test]
fn a_missing_segment_is_a_gap() {
    let directory = written(6, 250);
    let paths = segments(directory.path());
    fs::remove_file(&paths[1]).expect("removed");
    let gap = SegmentDamage::Gap {
        expected: LogIndex(20),
        found: LogIndex(40),
    };
    let error = recover(directory.path(), VM, TailPolicy::CutTorn).expect_err("a gap");
    assert_eq!(damage_of(error), (paths[2].clone(), 12, gap.clone()));
    assert_eq!(
        damage_of(read_all(directory.path()).expect_err("a gap")).2,
        gap
    );
    let (records, holes) = salvage(directory.path());
    assert_eq!(records, [timers(0, 20), timers(40, 20)].concat());
    assert_eq!(holes.len(), 1);
    assert_eq!((&holes[0].damage, holes[0].bytes), (&gap, 0));
}

#[test]
fn a_live_reader_follows_the_writer() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut reader = LogReader::open(directory.path());
    assert_eq!(reader.next_record().expect("empty"), None);
    let (mut writer, _) = writer(directory.path(), 250);
    for frame in 0..9 {
        let log = EncodedLog::encode(&timers(frame * 10, 10)).expect("valid");
        writer.append(&log, HostTime(0)).expect("written");
        for record in timers(frame * 10, 10) {
            assert_eq!(reader.next_record().expect("sound"), Some(record));
        }
        assert_eq!(reader.next_record().expect("at the end"), None);
    }
}

#[test]
fn a_live_reader_waits_for_the_rest_of_a_frame() {
    let whole = written(1, 1 << 20);
    let name = segment_name(LogIndex(0));
    let bytes = fs::read(whole.path().join(&name)).expect("readable");
    let live = tempfile::tempdir().expect("a temporary directory");
    let path = live.path().join(&name);
    fs::write(&path, []).expect("written");
    let mut reader = LogReader::open(live.path());
    for byte in &bytes {
        assert_eq!(reader.next_frame().expect("not damage"), None);
        append_raw(&path, &[*byte]);
    }
    let frame = reader.next_frame().expect("sound").expect("whole now");
    assert_eq!(frame.records.len(), 10);
}

#[test]
fn a_live_reader_forgets_a_write_that_was_taken_back() {
    let directory = written(1, 1 << 20);
    let path = directory.path().join(segment_name(LogIndex(0)));
    let sound = fs::read(&path).expect("readable");
    let mut reader = LogReader::open(directory.path());
    reader
        .next_frame()
        .expect("sound")
        .expect("the first frame");
    let [taken_back, other] = [timers(10, 20), timers(10, 10)]
        .map(|records| EncodedLog::encode(&records).expect("valid"));
    append_raw(&path, &taken_back.bytes()[..30]);
    assert_eq!(reader.next_frame().expect("not damage"), None);
    fs::write(&path, &sound).expect("written");
    append_raw(&path, other.bytes());
    let frame = reader
        .next_frame()
        .expect("sound")
        .expect("the other frame");
    assert_eq!(frame.records.len(), 10);
}

#[test]
fn salvage_passes_over_damage_and_says_so() {
    let directory = written(5, 1 << 20);
    let path = directory.path().join(segment_name(LogIndex(0)));
    let mut bytes = fs::read(&path).expect("readable");
    let mut reader = LogReader::open(directory.path());
    let mut frames = Vec::new();
    while let Some(frame) = reader.next_frame().expect("sound") {
        frames.push((frame.offset, frame.length as u64));
    }
    let (second, last) = (frames[1], frames[4]);
    bytes[second.0 as usize + 20] ^= 1;
    bytes.truncate(bytes.len() - 3);
    fs::write(&path, &bytes).expect("written");
    let (records, holes) = salvage(directory.path());
    assert_eq!(records, [timers(0, 10), timers(20, 20)].concat());
    let places: Vec<_> = holes.iter().map(|hole| (hole.offset, hole.bytes)).collect();
    assert_eq!(places, [second, (last.0, last.1 - 3)]);
}

#[test]
fn salvage_reads_behind_a_damaged_header() {
    let directory = written(4, 250);
    let paths = segments(directory.path());
    let mut bytes = fs::read(&paths[1]).expect("readable");
    bytes[13] ^= 1;
    fs::write(&paths[1], &bytes).expect("written");
    let (records, holes) = salvage(directory.path());
    assert_eq!(records, timers(0, 40));
    assert_eq!(
        (holes.len(), holes[0].bytes),
        (1, SEGMENT_HEADER_BYTES as u64)
    );
    assert_eq!(holes[0].damage, SegmentDamage::HeaderCrc);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_log_comes_back_from_disk(log in any_log(), split in any::<proptest::sample::Index>()) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (mut writer, _) = writer(directory.path(), 300);
        let split = split.index(log.len());
        for part in [&log[..split], &log[split..]] {
            if !part.is_empty() {
                let frame = EncodedLog::encode(part).expect("valid");
                writer.append(&frame, HostTime(0)).expect("written");
            }
        }
        prop_assert_eq!(read_all(directory.path()).expect("sound"), log);
    }

    #[test]
    fn any_segment_bytes_have_an_answer(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        sound_header in any::<bool>(),
        frames in 0..3_usize,
    ) {
        let whole = written(2, 1 << 20);
        let path = whole.path().join(segment_name(LogIndex(0)));
        let sound = fs::read(&path).expect("readable");
        if sound_header {
            let half = (sound.len() - SEGMENT_HEADER_BYTES) / 2;
            bytes.splice(..0, sound[..SEGMENT_HEADER_BYTES + frames * half].iter().copied());
        }
        fs::write(&path, &bytes).expect("written");
        let (records, holes) = salvage(whole.path());
        if sound_header {
            prop_assert!(records.len() >= frames * 10);
        }
        let strict = recover(whole.path(), VM, TailPolicy::Refuse);
        prop_assert_eq!(strict.is_ok(), holes.is_empty() && bytes.len() >= SEGMENT_HEADER_BYTES);
        if let Ok(recovered) = recover(whole.path(), VM, TailPolicy::CutTorn) {
            prop_assert_eq!(recovered.records as usize, records.len());
        }
    }
}

#[test]
fn old_segments_are_removed_down_to_the_bound_but_never_the_last_two() {
    for (keep, expected) in [(None, 10), (Some(1_000), 4), (Some(0), 2)] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let options = WriterOptions {
            keep_bytes: keep,
            ..options(250)
        };
        for half in 0..2 {
            // A log that is written on knows of the segments that were there.
            let opened = SegmentWriter::open(directory.path(), VM, options, TailPolicy::Refuse);
            let (mut writer, _) = opened.expect("sound");
            for frame in half * 10..half * 10 + 10 {
                append_timers(&mut writer, frame * 10, 10);
            }
        }
        let there = segments(directory.path());
        assert_eq!(there.len(), expected, "{keep:?}");
        let bytes: u64 = there
            .iter()
            .map(|path| fs::metadata(path).expect("there").len())
            .sum();
        assert!(keep.is_none_or(|keep| bytes <= keep.max(500)), "{bytes}");
        let records = read_all(directory.path()).expect("sound");
        assert_eq!(records.last(), timers(199, 1).first());
    }
}
