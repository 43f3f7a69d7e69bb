//! A small log on disk, whole, cut short and damaged.

use super::list::write_log;
use super::stat::gather;
use super::*;
use logging_channel::codec::EncodedLog;
use logging_channel::execution_point::ExecutionPoint;
use logging_channel::host_time::{GuestTime, HostTime};
use logging_channel::record::{
    ClockKind, Control, EndReason, LogIndex, Output, OutputDevice, Record, Start,
};
use logging_channel::segment::{SegmentWriter, SyncPolicy, TailPolicy, WriterOptions};

fn bodies() -> Vec<RecordBody> {
    let start = Start {
        vm: "web".into(),
        generation: 3,
        clock: ClockKind::Exits,
        cpu_model: "understudy-v1".into(),
        memory_bytes: 64 << 20,
        kernel_sha256: [0x11; 32],
        initramfs_sha256: [0x22; 32],
        cmdline: "console=ttyS0".into(),
        mac: [2, 0, 0, 0, 0, 1],
        wall_clock_s: 1,
        rng_seed: [0; 32],
    };
    let output = Output {
        device: OutputDevice::Network(0),
        length: 60,
        digest: 0xabcd,
    };
    let mut bodies = vec![
        RecordBody::Start(Box::new(start)),
        RecordBody::Packet {
            device: 0,
            bytes: vec![0xab; 60],
        },
        RecordBody::Output(output),
    ];
    bodies.extend(std::iter::repeat_n(RecordBody::Timer, 20));
    bodies.push(RecordBody::Control(Control::Generation(4)));
    bodies.push(RecordBody::End(EndReason::PowerOff));
    bodies
}

/// A log of one frame per record, and the path of its only segment.
fn written() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let options = WriterOptions {
        sync: SyncPolicy::Never,
        ..WriterOptions::default()
    };
    let (mut writer, _) =
        SegmentWriter::open(directory.path(), "web", options, TailPolicy::Refuse).unwrap();
    let mut time_us = 0;
    for (index, body) in (0u64..).zip(bodies()) {
        // Guest time moves only where something from outside is applied.
        if matches!(body, RecordBody::Timer | RecordBody::Packet { .. }) {
            time_us = index * 100_000;
        }
        let record = Record {
            index: LogIndex(index),
            point: ExecutionPoint::at_exit(index * 10, 0xbeef),
            guest_time: GuestTime::from_micros(time_us),
            body,
        };
        for log in EncodedLog::encode_all(&[record]).unwrap() {
            writer.append(&log, HostTime(0)).unwrap();
        }
    }
    let segment = std::fs::read_dir(directory.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    (directory, segment)
}

fn listed(dir: &Path, from: u64, kind: &[&str], json: bool) -> (String, u64) {
    let kind = kind.iter().map(|&kind| kind.to_owned()).collect();
    let arguments = ListArguments {
        dir: dir.into(),
        from,
        to: u64::MAX,
        kind,
        json,
    };
    let mut out = Vec::new();
    let damage = write_log(&mut out, &arguments).unwrap();
    (String::from_utf8(out).unwrap(), damage.count)
}

#[test]
fn a_whole_log_is_counted() {
    let (directory, segment) = written();
    let (report, damage) = gather(directory.path()).unwrap();
    assert_eq!(damage.count, 0, "{}", report.text());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["vm"], "web");
    assert_eq!(json["records"], 25);
    assert_eq!(json["frames"], 25);
    assert_eq!(json["bytes"], std::fs::metadata(segment).unwrap().len());
    assert_eq!(json["guest_time_us"], 2_200_000);
    assert_eq!(json["kinds"]["timer"]["records"], 20);
    assert_eq!(json["kinds"]["packet"]["payload_bytes"], 60);
    assert_eq!(json["generations"][1]["generation"], 4);
    assert_eq!(json["end"], "PowerOff");
    let sum: u64 = json["kinds"]
        .as_object()
        .unwrap()
        .values()
        .map(|k| k["bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(
        Some(sum),
        json["bytes"]
            .as_u64()
            .zip(json["overhead_bytes"].as_u64())
            .map(|(b, o)| b - o)
    );
    let text = report.text();
    for part in [
        "2.200 s of guest time",
        "generation   4 from record 23",
        "end          PowerOff",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
}

#[test]
fn records_are_listed_and_chosen() {
    let (directory, _) = written();
    let (text, _) = listed(directory.path(), 0, &[], false);
    assert_eq!(text.lines().count(), 25);
    let (text, _) = listed(directory.path(), 2, &["packet", "output", "end"], false);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(
        lines[0].ends_with("output   net0 60 bytes crc32c 0000abcd"),
        "{}",
        lines[0]
    );
    let (text, _) = listed(directory.path(), 24, &[], true);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["kind"], &json["index"]), (&"end".into(), &24.into()));
}

#[test]
fn a_torn_tail_is_shown_and_no_damage() {
    let (directory, segment) = written();
    let length = std::fs::metadata(&segment).unwrap().len();
    std::fs::OpenOptions::new()
        .write(true)
        .open(&segment)
        .unwrap()
        .set_len(length - 3)
        .unwrap();
    let (report, damage) = gather(directory.path()).unwrap();
    assert_eq!(damage.count, 0);
    assert!(report.text().contains("\ntorn: "), "{}", report.text());
    assert!(report.text().contains("open: the guest had not ended"));
}

#[test]
fn damage_is_shown_with_its_place() {
    let (directory, segment) = written();
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let (report, damage) = gather(directory.path()).unwrap();
    assert!(damage.count > 0);
    assert!(report.text().contains("\ndamaged: "), "{}", report.text());
    let (text, count) = listed(directory.path(), 0, &[], false);
    assert_eq!(count, damage.count);
    assert!(text.contains("bytes left out"), "{text}");
    let stat = Command::Stat(StatArguments {
        dir: directory.path().into(),
        json: true,
    });
    assert_eq!(run(&stat).unwrap_err().exit, Exit::Damaged);
}

#[test]
fn no_log_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let failure = gather(directory.path()).unwrap_err();
    assert!(
        failure.text().contains("there is no log in"),
        "{}",
        failure.text()
    );
}
