//! The commands on a small log on disk: what they end with.

use super::arguments::{Choice, Look};
use super::*;
use clap::Parser;
use logging_channel::codec::EncodedLog;
use logging_channel::execution_point::ExecutionPoint;
use logging_channel::host_time::{GuestTime, HostTime};
use logging_channel::record::{EndReason, LogIndex, Record, RecordBody};
use logging_channel::segment::{SegmentWriter, SyncPolicy, TailPolicy, WriterOptions};

pub(super) struct Writer {
    writer: SegmentWriter,
    next: u64,
}

impl Writer {
    pub(super) fn new(dir: &Path) -> Self {
        let options = WriterOptions {
            sync: SyncPolicy::Never,
            segment_bytes_max: 600,
            keep_bytes: None,
        };
        let (writer, _) = SegmentWriter::open(dir, "web", options, TailPolicy::Refuse).unwrap();
        Self { writer, next: 0 }
    }

    pub(super) fn append(&mut self, body: RecordBody) {
        let index = self.next;
        self.next += 1;
        let record = Record {
            index: LogIndex(index),
            point: ExecutionPoint::at_exit(index * 10, 0xbeef),
            guest_time: GuestTime::from_micros(0),
            body,
        };
        for log in EncodedLog::encode_all(&[record]).unwrap() {
            self.writer.append(&log, HostTime(0)).unwrap();
        }
    }
}

pub(super) fn log() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    for _ in 0..40 {
        writer.append(RecordBody::Timer);
    }
    writer.append(RecordBody::Console(b"ls -l\n".to_vec()));
    writer.append(RecordBody::End(EndReason::PowerOff));
    writer.writer.close().unwrap();
    dir
}

fn flip_a_bit(dir: &Path) {
    let entry = std::fs::read_dir(dir).unwrap().next().unwrap().unwrap();
    let mut bytes = std::fs::read(entry.path()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(entry.path(), bytes).unwrap();
}

/// Runs `understudy log WORDS`, where `DIR` stands for the directory; the exit status.
fn status(words: &str, dir: &Path) -> Exit {
    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }
    let dir = dir.display().to_string();
    let words = words.split(' ').map(|word| word.replace("DIR", &dir));
    let cli = Cli::try_parse_from(std::iter::once("log".to_owned()).chain(words)).unwrap();
    run(&cli.command).map_or_else(|failure| failure.exit, |()| Exit::Done)
}

const COMMANDS: [&str; 10] = [
    "stat DIR",
    "ls DIR --json",
    "verify DIR",
    "show DIR 3 -n 100",
    "grep ls DIR",
    "export DIR --csv /dev/null",
    "export DIR --pcapng /dev/null",
    "export DIR --perfetto /dev/null --filter timer",
    "diff DIR DIR",
    "follow DIR --from 0 --json",
];

#[test]
fn a_sound_log_ends_with_status_0_and_a_damaged_one_with_8() {
    let dir = log();
    for command in COMMANDS {
        assert_eq!(status(command, dir.path()), Exit::Done, "{command}");
    }
    flip_a_bit(dir.path());
    for command in COMMANDS {
        assert_eq!(status(command, dir.path()), Exit::Damaged, "{command}");
    }
}

#[test]
fn what_is_not_there_is_said() {
    let dir = log();
    assert_eq!(status("show DIR 99", dir.path()), Exit::Failed);
    assert_eq!(status("grep nothing DIR", dir.path()), Exit::Failed);
    let empty = tempfile::tempdir().unwrap();
    for command in &COMMANDS[..9] {
        assert_eq!(status(command, empty.path()), Exit::Failed, "{command}");
    }
}

#[test]
fn following_shows_the_last_records_and_then_each_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    for _ in 0..50 {
        writer.append(RecordBody::Timer);
    }
    let mut out = Vec::new();
    let mut to_write = vec![RecordBody::End(EndReason::PowerOff), RecordBody::Timer];
    let choice = Choice::default();
    let look = Look::default();
    follow::write(&mut out, dir.path(), 2, &choice, &look, || {
        writer.append(to_write.pop().expect("the End record ends it"));
        Ok(true)
    })
    .unwrap();
    let text = String::from_utf8(out).unwrap();
    let indices = text
        .lines()
        .map(|line| line.split_whitespace().next().unwrap());
    assert_eq!(
        indices.collect::<Vec<_>>(),
        ["48", "49", "50", "51"],
        "{text}"
    );
}
