//! Small logs and packets for tests.

use etherparse::PacketBuilder;
use logging_channel::codec::EncodedLog;
use logging_channel::execution_point::ExecutionPoint;
use logging_channel::host_time::{GuestTime, HostTime};
use logging_channel::record::{
    ClockKind, Control, EndReason, LogIndex, Output, OutputDevice, Record, RecordBody, Start,
};
use logging_channel::segment::{SegmentWriter, SyncPolicy, TailPolicy, WriterOptions};
use std::path::{Path, PathBuf};

fn ethernet_ip() -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv4(
        [10, 0, 0, 1],
        [10, 0, 0, 2],
        64,
    )
}

pub(crate) fn tcp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let packet = ethernet_ip().tcp(from, to, 1000, 512).ack(2000).psh();
    packet.write(&mut bytes, payload).unwrap();
    bytes
}

pub(crate) fn udp(to: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ethernet_ip()
        .udp(5353, to)
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

pub(crate) fn ping() -> Vec<u8> {
    let mut bytes = Vec::new();
    let packet = ethernet_ip().icmpv4_echo_request(7, 1);
    packet.write(&mut bytes, b"ping").unwrap();
    bytes
}

pub(crate) fn arp() -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend([2, 0, 0, 0, 0, 1, 10, 0, 0, 1]);
    bytes.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
    bytes
}

pub(crate) fn start() -> Start {
    Start {
        vm: "web".into(),
        generation: 3,
        clock: ClockKind::Exits,
        cpu_model: "understudy-v1".into(),
        memory_bytes: 64 << 20,
        kernel_sha256: [0x11; 32],
        initramfs_sha256: [0x22; 32],
        cmdline: "console=ttyS0".into(),
        mac: [2, 0, 0, 0, 0, 2],
        wall_clock_s: 1_700_000_000,
        rng_seed: [0; 32],
    }
}

/// Start, a TCP packet, an output, twenty timers, a new generation, the end.
pub(crate) fn bodies() -> Vec<RecordBody> {
    let mut bodies = vec![
        RecordBody::Start(Box::new(start())),
        RecordBody::Packet {
            device: 0,
            bytes: tcp(4242, 80, b"hello"),
        },
        RecordBody::Output(Output {
            device: OutputDevice::Network(0),
            length: 60,
            digest: 0xabcd,
        }),
    ];
    bodies.extend(std::iter::repeat_n(RecordBody::Timer, 20));
    bodies.push(RecordBody::Control(Control::Generation(4)));
    bodies.push(RecordBody::End(EndReason::PowerOff));
    bodies
}

/// Records of these bodies: ten exits apart, and a tenth of a second where time may move.
pub(crate) fn records(bodies: Vec<RecordBody>) -> Vec<Record> {
    let mut time_us = 0;
    let record = |(index, body): (u64, RecordBody)| {
        if matches!(
            body,
            RecordBody::Timer | RecordBody::Packet { .. } | RecordBody::Console(_)
        ) {
            time_us = index * 100_000;
        }
        Record {
            index: LogIndex(index),
            point: ExecutionPoint::at_exit(index * 10, 0xbeef),
            guest_time: GuestTime::from_micros(time_us),
            body,
        }
    };
    (0u64..).zip(bodies).map(record).collect()
}

/// A log on disk.
pub(crate) struct Log(tempfile::TempDir);

impl Log {
    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn segments(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir()).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }

    /// Flips a bit in the middle of the first segment; the file and the byte.
    pub(crate) fn flip_a_bit(&self) -> (PathBuf, u64) {
        let file = self.segments().remove(0);
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        (file, middle as u64)
    }
}

/// The log of [`bodies`], one frame per record.
pub(crate) fn log_in_segments(segment_bytes_max: u64) -> Log {
    log_of(&records(bodies()), segment_bytes_max)
}

pub(crate) fn log_of(records: &[Record], segment_bytes_max: u64) -> Log {
    let directory = tempfile::tempdir().unwrap();
    let options = WriterOptions {
        sync: SyncPolicy::Never,
        segment_bytes_max,
        keep_bytes: None,
    };
    let opened = SegmentWriter::open(directory.path(), "web", options, TailPolicy::Refuse);
    let (mut writer, _) = opened.unwrap();
    for record in records {
        for log in EncodedLog::encode_all(std::slice::from_ref(record)).unwrap() {
            writer.append(&log, HostTime(0)).unwrap();
        }
    }
    writer.close().unwrap();
    Log(directory)
}
