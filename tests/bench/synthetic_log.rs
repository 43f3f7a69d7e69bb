//! A log of a busy server to measure the tools with: most bytes are packets, as in a log that grows to
//! gigabytes.

use anyhow::Result;
use logging_channel::codec::EncodedLog;
use logging_channel::execution_point::ExecutionPoint;
use logging_channel::host_time::{GuestTime, HostTime};
use logging_channel::record::{
    ClockKind, Digests, LogIndex, Output, OutputDevice, Record, RecordBody, Start,
};
use logging_channel::segment::{SegmentWriter, SyncPolicy, TailPolicy, WriterOptions};
use std::path::Path;

/// Writes a log of at least so many bytes below `dir`.
pub(crate) fn write(dir: &Path, bytes_wanted: u64) -> Result<()> {
    let options = WriterOptions {
        sync: SyncPolicy::Never,
        ..WriterOptions::default()
    };
    let (mut writer, _) = SegmentWriter::open(dir, "web", options, TailPolicy::Refuse)?;
    let (mut index, mut bytes) = (0, 0);
    while bytes < bytes_wanted {
        // As the node writes them: about as many records as come in a few milliseconds.
        let batch: Vec<Record> = (index..index + 64).map(record).collect();
        index += 64;
        for log in EncodedLog::encode_all(&batch)? {
            bytes += log.payload().len() as u64;
            writer.append(&log, HostTime(0))?;
        }
    }
    Ok(writer.close()?)
}

fn record(index: u64) -> Record {
    let body = match index % 16 {
        _ if index == 0 => RecordBody::Start(Box::new(start())),
        0 => RecordBody::Timer,
        1..=8 => RecordBody::Packet {
            device: 0,
            bytes: packet(index),
        },
        9..=12 => RecordBody::Output(Output {
            device: OutputDevice::Network(0),
            length: 1_514,
            digest: u32::try_from(index.wrapping_mul(0x9e37_79b9) & 0xffff_ffff).unwrap_or(0),
        }),
        13 => RecordBody::Mark(Digests {
            registers: index.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            devices: index.wrapping_mul(0xc2b2_ae3d_27d4_eb4f),
            memory: None,
        }),
        _ => RecordBody::Progress,
    };
    Record {
        index: LogIndex(index),
        point: ExecutionPoint::at_exit(index * 3, u16::try_from(index & 0xffff).unwrap_or(0)),
        guest_time: GuestTime::from_micros(index / 16 * 400),
        body,
    }
}

/// A TCP segment of 500 to 1,460 bytes over IPv4.
fn packet(index: u64) -> Vec<u8> {
    let payload = 500 + usize::try_from(index.wrapping_mul(2_654_435_761) % 961).unwrap_or(0);
    let total = u16::try_from(payload + 40).unwrap_or(u16::MAX);
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    bytes.extend(total.to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend([0x9c, 0x40, 0x1b, 0x58]);
    bytes.extend(
        u32::try_from(index & 0xffff_ffff)
            .unwrap_or(0)
            .to_be_bytes(),
    );
    bytes.extend([0, 0, 0, 1, 0x50, 0x18, 2, 0, 0, 0, 0, 0]);
    bytes.resize(
        bytes.len() + payload,
        u8::try_from(index & 0xff).unwrap_or(0),
    );
    bytes
}

fn start() -> Start {
    Start {
        vm: "web".into(),
        generation: 1,
        clock: ClockKind::Exits,
        cpu_model: "understudy-v1".into(),
        memory_bytes: 256 << 20,
        kernel_sha256: [1; 32],
        initramfs_sha256: [2; 32],
        cmdline: "console=ttyS0".into(),
        mac: [2, 0, 0, 0, 0, 2],
        wall_clock_s: 1_700_000_000,
        rng_seed: [3; 32],
    }
}
