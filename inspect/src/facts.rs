//! What filters and tables may ask of a record: device, direction, size, packet.
//!
//! A packet is decoded at most once per record, and only when something asks.

#![forbid(unsafe_code)]

use crate::kind::Kind;
use crate::packet::Packet;
use logging_channel::codec::Placed;
use logging_channel::record::{OutputDevice, Record, RecordBody};
use std::cell::OnceCell;
use std::fmt;

/// A device of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The serial console.
    Console,
    /// The random generator.
    Rng,
    /// A network device.
    Net(u8),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Console => f.write_str("console"),
            Self::Rng => f.write_str("rng"),
            Self::Net(number) => write!(f, "net{number}"),
        }
    }
}

/// Which way something went, as seen from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the guest.
    In,
    /// From the guest.
    Out,
}

impl Direction {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// A record, and answers about it.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The record.
    pub record: &'a Record,
    /// Its kind.
    pub kind: Kind,
    packet_bytes: &'a [u8],
    packet: OnceCell<Option<Packet>>,
}

impl<'a> Facts<'a> {
    /// Facts about `record`.
    #[must_use]
    pub const fn of(record: &'a Record) -> Self {
        let packet_bytes: &[u8] = match &record.body {
            RecordBody::Packet { bytes, .. } => bytes.as_slice(),
            _ => &[],
        };
        Self::with_packet(record, packet_bytes)
    }

    /// Facts about a record that was decoded from `payload`, and a packet's bytes may have stayed there.
    #[must_use]
    pub fn placed(placed: &'a Placed, payload: &'a [u8]) -> Self {
        let packet_bytes = placed.packet(payload).unwrap_or_default();
        Self::with_packet(&placed.record, packet_bytes)
    }

    const fn with_packet(record: &'a Record, packet_bytes: &'a [u8]) -> Self {
        Self {
            record,
            kind: Kind::of(&record.body),
            packet_bytes,
            packet: OnceCell::new(),
        }
    }

    /// The device that something came to or from.
    #[must_use]
    pub const fn device(&self) -> Option<Device> {
        match &self.record.body {
            RecordBody::Console(_) => Some(Device::Console),
            RecordBody::Entropy(_) => Some(Device::Rng),
            RecordBody::Packet { device, .. } => Some(Device::Net(*device)),
            RecordBody::Output(output) => Some(match output.device {
                OutputDevice::Console => Device::Console,
                OutputDevice::Network(number) => Device::Net(number),
            }),
            _ => None,
        }
    }

    /// Which way it went.
    #[must_use]
    pub const fn direction(&self) -> Option<Direction> {
        match &self.record.body {
            RecordBody::Console(_) | RecordBody::Entropy(_) | RecordBody::Packet { .. } => {
                Some(Direction::In)
            }
            RecordBody::Output(_) => Some(Direction::Out),
            _ => None,
        }
    }

    /// Bytes that came or went. The log has the bytes that came; of those that went, length and
    /// checksum.
    #[must_use]
    pub const fn size(&self) -> Option<u64> {
        match &self.record.body {
            RecordBody::Output(output) => Some(output.length as u64),
            _ => match self.content() {
                Some(bytes) => Some(bytes.len() as u64),
                None => None,
            },
        }
    }

    /// The bytes that came.
    #[must_use]
    pub const fn content(&self) -> Option<&'a [u8]> {
        match &self.record.body {
            RecordBody::Console(bytes) | RecordBody::Entropy(bytes) => Some(bytes.as_slice()),
            RecordBody::Packet { .. } => Some(self.packet_bytes),
            _ => None,
        }
    }

    /// The received frame, decoded.
    pub fn packet(&self) -> Option<&Packet> {
        let decode = || match &self.record.body {
            RecordBody::Packet { .. } => Some(Packet::decode(self.packet_bytes)),
            _ => None,
        };
        self.packet.get_or_init(decode).as_ref()
    }
}
