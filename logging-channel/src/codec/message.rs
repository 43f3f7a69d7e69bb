//! Messages of the channel to frames and back, and log frames that are encoded once.

#![forbid(unsafe_code)]

use super::batch::{BatchDecoder, BatchEncoder, Pushed, decode_records};
use super::error::{DecodeError, EncodeError, Fault};
use super::leaf::{self, Input};
use super::wire::check_text;
use crate::clock_agreement::ClockOffer;
use crate::frame::{self, Frame, FrameKind, HEADER_BYTES, PAYLOAD_BYTES_MAX};
use crate::message::{
    Ack, Begins, Complete, Goodbye, Heartbeat, Hello, Identity, Message, PART_BYTES_MAX,
    PROTOCOL_VERSION, Refused, Taken, Welcome,
};
use crate::record::{ClockKind, LogIndex, Record, limits::TEXT_BYTES_MAX};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

// Hello has the most texts: holder, vm, cpu_model, cmdline and why there is no counter.
const _: () = assert!(
    5 * TEXT_BYTES_MAX + 1_024 <= PAYLOAD_BYTES_MAX,
    "texts fit one frame"
);

/// The whole frame of `message`.
///
/// # Errors
/// When it breaks a limit, or is a `Log` whose records break a rule of the log.
pub fn encode_message(message: &Message) -> Result<Vec<u8>, EncodeError> {
    if let Message::Log(records) = message {
        return Ok(EncodedLog::encode(records)?.bytes.into());
    }
    let mut buffer = frame::begin();
    put_payload(&mut buffer, message).map_err(EncodeError::Message)?;
    frame::finish(frame_kind(message), &mut buffer)
        .expect("texts are bounded so that every message fits one frame");
    Ok(buffer)
}

/// The message in `frame`.
///
/// # Errors
/// What is wrong with the payload, and where.
pub fn decode_message(frame: Frame<'_>) -> Result<Message, DecodeError> {
    let mut input = Input::new(frame.payload);
    let message = match frame.kind {
        FrameKind::Log => return decode_records(frame.payload).map(Message::Log),
        FrameKind::Hello => {
            check_protocol(frame.payload)?;
            Message::Hello(input.leaf::<WireHello<'_>>("hello")?.into_live()?)
        }
        FrameKind::Welcome => {
            Message::Welcome(input.leaf::<WireWelcome<'_>>("welcome")?.into_live()?)
        }
        FrameKind::Refused => {
            Message::Refused(input.leaf::<WireRefused<'_>>("refused")?.into_live()?)
        }
        FrameKind::Ack => Message::Ack(input.leaf::<WireAck>("ack")?.into_live()),
        FrameKind::Heartbeat => {
            let wire: WireHeartbeat = input.leaf("heartbeat")?;
            Message::Heartbeat(Heartbeat {
                released: LogIndex(wire.released),
            })
        }
        FrameKind::Goodbye => Message::Goodbye(input.leaf::<Goodbye>("goodbye")?),
        FrameKind::Part => return decode_part(frame.payload),
        FrameKind::Complete => {
            let wire: WireComplete = input.leaf("complete")?;
            Message::Complete(Complete {
                first_index: LogIndex(wire.first_index),
                bytes: wire.bytes,
            })
        }
        FrameKind::Taken => Message::Taken(input.leaf::<Taken>("taken")?),
    };
    input.finish()?;
    Ok(message)
}

/// Names a peer of another version before its bytes are read as if they were of this one.
fn check_protocol(hello: &[u8]) -> Result<(), DecodeError> {
    let (ours, theirs) = (PROTOCOL_VERSION, Input::new(hello).leaf("hello")?);
    match ours == theirs {
        true => Ok(()),
        false => Input::fail(0, Fault::OtherProtocol { ours, theirs }),
    }
}

/// The kind of frame that carries `message`.
#[must_use]
pub const fn frame_kind(message: &Message) -> FrameKind {
    match message {
        Message::Hello(_) => FrameKind::Hello,
        Message::Welcome(_) => FrameKind::Welcome,
        Message::Refused(_) => FrameKind::Refused,
        Message::Log(_) => FrameKind::Log,
        Message::Ack(_) => FrameKind::Ack,
        Message::Heartbeat(_) => FrameKind::Heartbeat,
        Message::Goodbye(_) => FrameKind::Goodbye,
        Message::Part(_) => FrameKind::Part,
        Message::Complete(_) => FrameKind::Complete,
        Message::Taken(_) => FrameKind::Taken,
    }
}

fn put_payload(out: &mut Vec<u8>, message: &Message) -> Result<(), Fault> {
    match message {
        Message::Log(_) => unreachable!("a log is encoded by EncodedLog"),
        Message::Hello(hello) => leaf::put(out, WireHello::from_live(hello)?),
        Message::Welcome(welcome) => leaf::put(out, WireWelcome::from_live(welcome)?),
        Message::Refused(refused) => leaf::put(out, WireRefused::from_live(refused)?),
        Message::Ack(ack) => leaf::put(out, WireAck::from_live(ack)),
        Message::Heartbeat(beat) => leaf::put(
            out,
            WireHeartbeat {
                released: beat.released.0,
            },
        ),
        Message::Goodbye(goodbye) => leaf::put(out, goodbye),
        Message::Part(bytes) => {
            check_part(bytes)?;
            out.extend_from_slice(bytes);
        }
        Message::Complete(complete) => leaf::put(
            out,
            WireComplete {
                first_index: complete.first_index.0,
                bytes: complete.bytes,
            },
        ),
        Message::Taken(taken) => leaf::put(out, taken),
    }
    Ok(())
}

/// A part's payload is its bytes, as they are.
fn decode_part(payload: &[u8]) -> Result<Message, DecodeError> {
    check_part(payload).map_err(whole)?;
    Ok(Message::Part(payload.to_vec()))
}

fn check_part(bytes: &[u8]) -> Result<(), Fault> {
    if bytes.is_empty() || bytes.len() > PART_BYTES_MAX {
        return Err(Fault::Malformed("a part of a state, by its length"));
    }
    Ok(())
}

/// A `Log` frame, made once: the same bytes go to the peer and into a segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedLog {
    bytes: Bytes,
    first: LogIndex,
    next: LogIndex,
}

impl EncodedLog {
    /// The frame of `records`.
    ///
    /// # Errors
    /// When there are none, they break a rule of the log, or do not fit one frame.
    pub fn encode(records: &[Record]) -> Result<Self, EncodeError> {
        let mut encoder = BatchEncoder::new();
        for record in records {
            if encoder.push(record)? == Pushed::Full {
                return Err(EncodeError::BatchTooLong);
            }
        }
        Self::from_batch(encoder)
    }

    /// As few frames as hold `records`, in order; none for none.
    ///
    /// # Errors
    /// When the records break a rule of the log.
    pub fn encode_all(records: &[Record]) -> Result<Vec<Self>, EncodeError> {
        let mut frames = Vec::new();
        let mut encoder = BatchEncoder::new();
        for record in records {
            while encoder.push(record)? == Pushed::Full {
                frames.push(Self::from_batch(std::mem::take(&mut encoder))?);
            }
        }
        if !encoder.is_empty() {
            frames.push(Self::from_batch(encoder)?);
        }
        Ok(frames)
    }

    /// The frame that `encoder` has built.
    ///
    /// # Errors
    /// When nothing was added to it.
    pub fn from_batch(encoder: BatchEncoder) -> Result<Self, EncodeError> {
        let (frame, first, next) = encoder.finish()?;
        Ok(Self {
            bytes: frame.into(),
            first,
            next,
        })
    }

    /// A received `Log` frame, to be kept as it came.
    ///
    /// # Errors
    /// When `frame` is not a `Log` frame or its payload is not a batch.
    pub fn from_frame(frame: Frame<'_>) -> Result<Self, DecodeError> {
        if frame.kind != FrameKind::Log {
            return Input::fail(0, Fault::Malformed("a frame that is not a log"));
        }
        let mut decoder = BatchDecoder::new(frame.payload)?;
        let first = decoder.next_index();
        decoder.try_for_each(|placed| placed.map(drop))?;
        let mut buffer = frame::begin();
        buffer.extend_from_slice(frame.payload);
        frame::finish(frame.kind, &mut buffer).expect("it was a frame before");
        Ok(Self {
            bytes: buffer.into(),
            first,
            next: decoder.next_index(),
        })
    }

    /// The whole frame.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The payload without the frame's header.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }

    /// Index of the first record.
    #[must_use]
    pub const fn first(&self) -> LogIndex {
        self.first
    }

    /// Index after the last record.
    #[must_use]
    pub const fn next(&self) -> LogIndex {
        self.next
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct WireIdentity<'a> {
    vm: &'a str,
    cpu_model: &'a str,
    memory_bytes: u64,
    kernel_sha256: [u8; 32],
    initramfs_sha256: [u8; 32],
    cmdline: &'a str,
    mac: [u8; 6],
}

#[derive(Debug, Serialize, Deserialize)]
struct WireHello<'a> {
    protocol: u32,
    holder: &'a str,
    #[serde(borrow)]
    identity: WireIdentity<'a>,
    #[serde(borrow)]
    clocks: WireClockOffer<'a>,
}

#[derive(Debug, Serialize, Deserialize)]
enum WireClockOffer<'a> {
    Only(ClockKind),
    Either,
    NoCounter(&'a str),
}

impl<'a> WireClockOffer<'a> {
    fn from_live(offer: &'a ClockOffer) -> Self {
        match offer {
            ClockOffer::Only(kind) => Self::Only(*kind),
            ClockOffer::Either => Self::Either,
            ClockOffer::NoCounter(why) => Self::NoCounter(why),
        }
    }

    fn into_live(self) -> ClockOffer {
        match self {
            Self::Only(kind) => ClockOffer::Only(kind),
            Self::Either => ClockOffer::Either,
            Self::NoCounter(why) => ClockOffer::NoCounter(why.to_owned()),
        }
    }

    fn check(&self) -> Result<(), Fault> {
        match self {
            Self::Only(_) | Self::Either => Ok(()),
            Self::NoCounter(why) => check_text("no counter", why),
        }
    }
}

impl<'a> WireHello<'a> {
    fn from_live(hello: &'a Hello) -> Result<Self, Fault> {
        let identity = &hello.identity;
        let wire = Self {
            protocol: hello.protocol,
            holder: &hello.holder,
            identity: WireIdentity {
                vm: &identity.vm,
                cpu_model: &identity.cpu_model,
                memory_bytes: identity.memory_bytes,
                kernel_sha256: identity.kernel_sha256,
                initramfs_sha256: identity.initramfs_sha256,
                cmdline: &identity.cmdline,
                mac: identity.mac,
            },
            clocks: WireClockOffer::from_live(&hello.clocks),
        };
        wire.check()?;
        Ok(wire)
    }

    fn into_live(self) -> Result<Hello, DecodeError> {
        self.check().map_err(whole)?;
        let identity = self.identity;
        Ok(Hello {
            protocol: self.protocol,
            holder: self.holder.to_owned(),
            identity: Identity {
                vm: identity.vm.to_owned(),
                cpu_model: identity.cpu_model.to_owned(),
                memory_bytes: identity.memory_bytes,
                kernel_sha256: identity.kernel_sha256,
                initramfs_sha256: identity.initramfs_sha256,
                cmdline: identity.cmdline.to_owned(),
                mac: identity.mac,
            },
            clocks: self.clocks.into_live(),
        })
    }

    fn check(&self) -> Result<(), Fault> {
        check_text("holder", self.holder)?;
        check_text("vm", self.identity.vm)?;
        check_text("cpu_model", self.identity.cpu_model)?;
        check_text("cmdline", self.identity.cmdline)?;
        self.clocks.check()
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct WireWelcome<'a> {
    holder: &'a str,
    generation: u64,
    begins: Begins,
    #[serde(borrow)]
    clocks: WireClockOffer<'a>,
}

impl<'a> WireWelcome<'a> {
    fn from_live(welcome: &'a Welcome) -> Result<Self, Fault> {
        let wire = Self {
            holder: &welcome.holder,
            generation: welcome.generation,
            begins: welcome.begins,
            clocks: WireClockOffer::from_live(&welcome.clocks),
        };
        wire.check()?;
        Ok(wire)
    }

    fn into_live(self) -> Result<Welcome, DecodeError> {
        self.check().map_err(whole)?;
        Ok(Welcome {
            holder: self.holder.to_owned(),
            generation: self.generation,
            begins: self.begins,
            clocks: self.clocks.into_live(),
        })
    }

    fn check(&self) -> Result<(), Fault> {
        check_text("holder", self.holder)?;
        self.clocks.check()
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct WireRefused<'a> {
    item: &'a str,
    ours: &'a str,
    theirs: &'a str,
}

impl<'a> WireRefused<'a> {
    fn from_live(refused: &'a Refused) -> Result<Self, Fault> {
        let wire = Self {
            item: &refused.item,
            ours: &refused.ours,
            theirs: &refused.theirs,
        };
        wire.check()?;
        Ok(wire)
    }

    fn into_live(self) -> Result<Refused, DecodeError> {
        self.check().map_err(whole)?;
        Ok(Refused {
            item: self.item.to_owned(),
            ours: self.ours.to_owned(),
            theirs: self.theirs.to_owned(),
        })
    }

    fn check(&self) -> Result<(), Fault> {
        check_text("item", self.item)?;
        check_text("ours", self.ours)?;
        check_text("theirs", self.theirs)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct WireAck {
    received: u64,
    replayed: u64,
    replayed_exits: u64,
}

impl WireAck {
    const fn from_live(ack: &Ack) -> Self {
        Self {
            received: ack.received.0,
            replayed: ack.replayed.0,
            replayed_exits: ack.replayed_exits,
        }
    }

    const fn into_live(self) -> Ack {
        Ack {
            received: LogIndex(self.received),
            replayed: LogIndex(self.replayed),
            replayed_exits: self.replayed_exits,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct WireHeartbeat {
    released: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct WireComplete {
    first_index: u64,
    bytes: u64,
}

/// A fault of a message that is one item from its first byte on.
const fn whole(fault: Fault) -> DecodeError {
    DecodeError { offset: 0, fault }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
