//! Packets as a pcapng file, for Wireshark and tshark.
//!
//! Format: draft-ietf-opsawg-pcapng, little-endian; one section, an interface per network device. Each
//! packet has a comment with its record and execution point, and flags with its direction as the guest
//! sees it; a sent one also when it was acknowledged and released, where a journal lists that. Times are the guest's own wall clock: that of power-on and the guest time since.
//!
//! The log has the bytes of frames that came, but only length and checksum of those that went. From a log
//! alone the latter are packets of captured length 0, which says so to every reader; a replay, which makes
//! them again, can give them whole.

#![forbid(unsafe_code)]

use crate::facts::Direction;
use crate::journal::releases::Releases;
use crate::line::PointText;
use logging_channel::record::{OutputDevice, Record, RecordBody};
use std::collections::BTreeMap;
use std::io::{self, Write};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// LINKTYPE_ETHERNET.
const ETHERNET: u16 = 1;

const OPTION_END: u16 = 0;
const OPTION_COMMENT: u16 = 1;
/// Of a section: the program that wrote it.
const SECTION_APPLICATION: u16 = 4;
/// Of an interface.
const INTERFACE_NAME: u16 = 2;
/// Of a packet; bits 0 and 1 are the direction.
const PACKET_FLAGS: u16 = 2;

/// What the section says about itself.
const REMARK: &str = "Times are the guest's clock, not a host's. Directions are as seen from the guest. \
                      Of sent packets a log has length and checksum only.";

/// Writes records and outputs as packets.
#[derive(Debug)]
pub struct PcapngWriter<W> {
    out: W,
    /// Interface number of each network device seen so far.
    interfaces: BTreeMap<u8, u32>,
    /// The guest's wall clock at power-on, microseconds since 1970.
    power_on_us: u64,
    block: Vec<u8>,
    /// When outputs were released, if there is a journal.
    releases: Option<Releases>,
}

impl<W: Write> PcapngWriter<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn new(out: W) -> io::Result<Self> {
        let mut writer = Self {
            out,
            interfaces: BTreeMap::new(),
            power_on_us: 0,
            block: Vec::new(),
            releases: None,
        };
        let block = &mut writer.block;
        block.extend(BYTE_ORDER_MAGIC.to_le_bytes());
        block.extend(1u16.to_le_bytes());
        block.extend(0u16.to_le_bytes());
        // The section's length: unknown.
        block.extend(u64::MAX.to_le_bytes());
        option(block, OPTION_COMMENT, REMARK.as_bytes());
        option(block, SECTION_APPLICATION, b"understudy");
        option(block, OPTION_END, b"");
        writer.end_block(SECTION_HEADER)?;
        Ok(writer)
    }

    /// Adds to sent packets when they were acknowledged and released.
    #[must_use]
    pub fn with_releases(mut self, releases: Releases) -> Self {
        self.releases = Some(releases);
        self
    }

    /// Takes a record: a Start sets the clock, a Packet is written whole, and an Output of a network
    /// device with `sent`, its bytes, when they are known. Others are passed over.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn record(&mut self, record: &Record, sent: Option<&[u8]>) -> io::Result<()> {
        match &record.body {
            RecordBody::Start(start) => {
                self.power_on_us = start.wall_clock_s.saturating_mul(1_000_000);
                Ok(())
            }
            RecordBody::Packet { device, bytes } => {
                self.packet(record, *device, Direction::In, bytes, bytes.len())
            }
            RecordBody::Output(output) => match output.device {
                OutputDevice::Console => Ok(()),
                OutputDevice::Network(device) => {
                    let length = usize::try_from(output.length).unwrap_or(usize::MAX);
                    let bytes = sent.unwrap_or_default();
                    self.packet(record, device, Direction::Out, bytes, length)
                }
            },
            _ => Ok(()),
        }
    }

    fn packet(
        &mut self,
        record: &Record,
        device: u8,
        direction: Direction,
        bytes: &[u8],
        length: usize,
    ) -> io::Result<()> {
        let interface = self.interface(device)?;
        let time = self
            .power_on_us
            .saturating_add(record.guest_time.as_micros());
        let word = |value: u64| {
            u32::try_from(value & 0xffff_ffff)
                .unwrap_or(0)
                .to_le_bytes()
        };
        let block = &mut self.block;
        block.extend(interface.to_le_bytes());
        block.extend(word(time >> 32));
        block.extend(word(time));
        block.extend(word(bytes.len() as u64));
        block.extend(word(length as u64));
        block.extend(bytes);
        pad(block);
        let mut comment = format!(
            "record {} point {} check {:04x}",
            record.index.0,
            PointText(&record.point),
            record.point.check
        );
        if let (Direction::Out, Some(releases)) = (direction, &mut self.releases)
            && let Some(released) = releases.of(record.index.0)?
        {
            let ms = |us: u64| us as f64 / 1e3;
            let (waited, at) = (ms(released.waited_us), ms(released.at_us));
            comment += &format!(
                "; acknowledged and released after {waited:.3} ms, at {at:.3} ms of host time"
            );
        }
        option(block, OPTION_COMMENT, comment.as_bytes());
        let flags: u32 = match direction {
            Direction::In => 1,
            Direction::Out => 2,
        };
        option(block, PACKET_FLAGS, &flags.to_le_bytes());
        option(block, OPTION_END, b"");
        self.end_block(ENHANCED_PACKET)
    }

    /// The interface of a device, described when it is first seen.
    fn interface(&mut self, device: u8) -> io::Result<u32> {
        if let Some(interface) = self.interfaces.get(&device) {
            return Ok(*interface);
        }
        let interface = u32::try_from(self.interfaces.len()).unwrap_or(0);
        self.interfaces.insert(device, interface);
        let block = &mut self.block;
        block.extend(ETHERNET.to_le_bytes());
        block.extend(0u16.to_le_bytes());
        // No limit on the captured length.
        block.extend(0u32.to_le_bytes());
        option(block, INTERFACE_NAME, format!("net{device}").as_bytes());
        option(block, OPTION_END, b"");
        self.end_block(INTERFACE_DESCRIPTION)?;
        Ok(interface)
    }

    /// Writes the block whose body was collected.
    fn end_block(&mut self, kind: u32) -> io::Result<()> {
        let length = u32::try_from(self.block.len() + 12).map_err(io::Error::other)?;
        self.out.write_all(&kind.to_le_bytes())?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&self.block)?;
        self.out.write_all(&length.to_le_bytes())?;
        self.block.clear();
        Ok(())
    }

    /// Flushes the file, and gives it back.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

fn option(block: &mut Vec<u8>, code: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    block.extend(code.to_le_bytes());
    block.extend(length.to_le_bytes());
    block.extend(&value[..length.into()]);
    pad(block);
}

/// Blocks and options are of 32-bit words.
fn pad(block: &mut Vec<u8>) {
    block.resize(block.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    fn sample_file() -> Vec<u8> {
        let mut writer = PcapngWriter::new(Vec::new()).unwrap();
        for record in sample::records(sample::bodies()) {
            writer.record(&record, None).unwrap();
        }
        let mut records = sample::records(sample::bodies());
        records[2].body = RecordBody::Output(logging_channel::record::Output {
            device: OutputDevice::Network(1),
            length: 50,
            digest: 0,
        });
        writer
            .record(&records[2], Some(&sample::udp(53, b"question")))
            .unwrap();
        writer.finish().unwrap()
    }

    /// Kinds and bodies of the blocks.
    fn blocks(mut file: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let mut blocks = Vec::new();
        while !file.is_empty() {
            let length = word(&file[4..]) as usize;
            assert_eq!(length % 4, 0);
            assert_eq!(word(&file[length - 4..]) as usize, length);
            blocks.push((word(file), file[8..length - 4].to_vec()));
            file = &file[length..];
        }
        blocks
    }

    #[test]
    fn blocks_are_framed_and_packets_have_time_direction_and_point() {
        let blocks = blocks(&sample_file());
        let kinds: Vec<u32> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [SECTION_HEADER, 1, 6, 6, 1, 6]);
        let received = &blocks[2].1;
        let time = 1_700_000_000_100_000u64;
        assert_eq!(received[4..8], ((time >> 32) as u32).to_le_bytes());
        assert_eq!(received[8..12], (time as u32).to_le_bytes());
        assert_eq!(received[12..16], received[16..20], "whole");
        let comment = b"record 1 point 10 check beef";
        assert!(
            received
                .windows(comment.len())
                .any(|window| window == comment)
        );
        let sent = &blocks[3].1;
        assert_eq!(
            sent[12..20],
            [0, 0, 0, 0, 60, 0, 0, 0],
            "no bytes, but a length"
        );
        assert_eq!(
            sent[sent.len() - 12..],
            [2, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0, 0],
            "outbound"
        );
        assert_eq!(blocks[5].1[..4], 1u32.to_le_bytes(), "another interface");
    }

    #[test]
    fn a_sent_packet_says_when_it_was_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        crate::journal::tests::write(dir.path(), "b.2");
        let releases = Releases::open(dir.path()).unwrap().unwrap();
        let mut writer = PcapngWriter::new(Vec::new())
            .unwrap()
            .with_releases(releases);
        for record in sample::records(sample::bodies()) {
            writer.record(&record, None).unwrap();
        }
        let file = writer.finish().unwrap();
        let said = b"record 2 point 20 check beef; acknowledged and released after 0.500 ms, at 1850.000 ms";
        assert!(file.windows(said.len()).any(|window| window == said));
    }

    /// With Debian's tshark where it is installed.
    #[test]
    fn tshark_reads_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), sample_file()).unwrap();
        let mut command = std::process::Command::new("tshark");
        command.arg("-r").arg(file.path());
        command.args(["-T", "fields", "-E", "separator=|"]);
        for field in [
            "frame.time_epoch",
            "frame.len",
            "frame.cap_len",
            "tcp.dstport",
            "udp.dstport",
            "frame.comment",
        ] {
            command.args(["-e", field]);
        }
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => {
                let required = std::env::var("REQUIRE").unwrap_or_default();
                assert!(!required.split(',').any(|name| name == "tshark"), "{error}");
                eprintln!("SKIP: no tshark here ({error}); Debian's package tshark has it");
                return;
            }
        };
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("1700000000.1"), "{text}");
        assert!(
            lines[0].ends_with("|59|59|80||record 1 point 10 check beef"),
            "{text}"
        );
        assert!(lines[1].contains("|60|0|||"), "{text}");
        assert!(lines[2].contains("|50|50||53|"), "{text}");
    }
}
