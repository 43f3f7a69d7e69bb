//! Batches: the payload of a `Log` frame.
//!
//! ```text
//! batch  = base record+
//! base   = index exits branches time_us               of the first record, four varints
//! record = head tag check [branches [rip]] [time] body
//!   head     varint  2 * (exits - exits before) + (1 if between exits)
//!   tag      byte    kind, plus TAG_BRANCHES, TAG_MEMORY and TAG_LAST
//!   check    2 bytes register check, raw
//!   branches varint  difference; between exits always, at an exit when TAG_BRANCHES says so
//!   rip      varint  zigzag difference to the last rip of the batch, at first to 0; between only
//!   time     varint  difference in microseconds; not for Output, Mark, Progress, End, State
//! ```
//!
//! Invariants: a batch has at least one record and fits one frame; the first record's differences
//! are zero; TAG_BRANCHES never goes with a difference of zero. Bodies are in `wire`.

#![forbid(unsafe_code)]

use super::error::{DecodeError, EncodeError, Fault};
use super::leaf::{self, Input};
use super::sequence::{Sequence, SequenceFault};
use super::wire::{
    RecordKind, TAG_BRANCHES, TAG_KIND, TAG_LAST, TAG_MEMORY, WireBase, WireControl, WireDigests,
    WireEnd, WireOutput, WireStart, check_length,
};
use crate::execution_point::{ExecutionPoint, PointKind};
use crate::frame::{self, FrameKind, HEADER_BYTES, PAYLOAD_BYTES_MAX};
use crate::host_time::GuestTime;
use crate::record::limits::{INPUT_BYTES_MAX, PACKET_BYTES_MAX, RECORD_BYTES_MAX, STATE_BYTES_MAX};
use crate::record::{LogIndex, Record, RecordBody};

// Four varints of at most nine bytes, and one record.
const _: () = assert!(
    36 + RECORD_BYTES_MAX <= PAYLOAD_BYTES_MAX,
    "one record fits one frame"
);

/// The batch of `records`, as the payload of a `Log` frame.
///
/// # Errors
/// When there are none, when they break a rule of the log, or do not fit one frame.
pub fn encode_records(records: &[Record]) -> Result<Vec<u8>, EncodeError> {
    let mut encoder = BatchEncoder::new();
    for record in records {
        if encoder.push(record)? == Pushed::Full {
            return Err(EncodeError::BatchTooLong);
        }
    }
    let (mut frame, _, _) = encoder.finish()?;
    Ok(frame.split_off(HEADER_BYTES))
}

/// The records of a batch.
///
/// # Errors
/// What is wrong with `payload`, and where; nothing is decoded then.
pub fn decode_records(payload: &[u8]) -> Result<Vec<Record>, DecodeError> {
    BatchDecoder::new(payload)?
        .map(|placed| Ok(placed?.record))
        .collect()
}

/// What became of a record given to [`BatchEncoder::push`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It is in the batch and takes this many bytes there (beside the base).
    Added(usize),
    /// It does not fit: finish this batch and begin another.
    Full,
}

/// Builds one `Log` frame, record by record.
#[derive(Debug, Clone)]
pub struct BatchEncoder {
    frame: Vec<u8>,
    sequence: Sequence,
    previous: Previous,
    first: LogIndex,
}

/// What the next record's differences refer to.
#[derive(Debug, Clone, Copy, Default)]
struct Previous {
    exits: u64,
    branches: u64,
    rip: u64,
    time_us: u64,
}

impl Previous {
    const fn of_base(base: &WireBase) -> Self {
        Self {
            exits: base.exits,
            branches: base.branches,
            rip: 0,
            time_us: base.time_us,
        }
    }

    fn advance(&mut self, record: &Record) {
        self.exits = record.point.exits;
        self.branches = record.point.branches;
        self.time_us = record.guest_time.as_micros();
        if record.point.kind == PointKind::Between {
            self.rip = record.point.rip;
        }
    }
}

impl Default for BatchEncoder {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchEncoder {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self {
            frame: frame::begin(),
            sequence: Sequence::default(),
            previous: Previous::default(),
            first: LogIndex(0),
        }
    }

    /// Whether nothing was added yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sequence.next().is_none()
    }

    /// Length of the frame so far, header included.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        self.frame.len()
    }

    /// Adds `record`.
    ///
    /// # Errors
    /// When the record breaks a rule of the log; the batch is then unchanged.
    pub fn push(&mut self, record: &Record) -> Result<Pushed, EncodeError> {
        let (before, mut sequence) = (self.frame.len(), self.sequence);
        let refuse = |fault| EncodeError::Record {
            index: record.index,
            fault,
        };
        sequence
            .admit(record)
            .map_err(|fault| refuse(fault.into()))?;
        let previous = self.previous;
        if self.is_empty() {
            let base = WireBase {
                index: record.index.0,
                exits: record.point.exits,
                branches: record.point.branches,
                time_us: record.guest_time.as_micros(),
            };
            leaf::put(&mut self.frame, base);
            self.previous = Previous::of_base(&base);
            self.first = record.index;
        }
        let start = self.frame.len();
        let written = put_record(&mut self.frame, &self.previous, record);
        let length = self.frame.len() - start;
        if written.is_err() || self.frame.len() > HEADER_BYTES + PAYLOAD_BYTES_MAX {
            self.frame.truncate(before);
            self.previous = previous;
            return written.map_err(refuse).map(|()| Pushed::Full);
        }
        self.sequence = sequence;
        self.previous.advance(record);
        Ok(Pushed::Added(length))
    }

    /// The frame, the first record's index, and the index after the last one's.
    ///
    /// # Errors
    /// [`EncodeError::EmptyBatch`] when nothing was added.
    pub(super) fn finish(mut self) -> Result<(Vec<u8>, LogIndex, LogIndex), EncodeError> {
        let next = self.sequence.next().ok_or(EncodeError::EmptyBatch)?;
        frame::finish(FrameKind::Log, &mut self.frame).map_err(|_| EncodeError::BatchTooLong)?;
        Ok((self.frame, self.first, next))
    }
}

fn put_record(out: &mut Vec<u8>, previous: &Previous, record: &Record) -> Result<(), Fault> {
    let kind = RecordKind::of(&record.body);
    let between = record.point.kind == PointKind::Between;
    // Sequence has admitted the record: none of these differences is negative.
    let exits = record.point.exits - previous.exits;
    let branches = record.point.branches - previous.branches;
    let head = exits.checked_mul(2).ok_or(Fault::Overflow("exits"))? + u64::from(between);
    let mut tag = kind as u8;
    if !between && branches != 0 {
        tag |= TAG_BRANCHES;
    }
    if let RecordBody::Mark(digests) = &record.body
        && digests.memory.is_some()
    {
        tag |= TAG_MEMORY;
    }
    if let RecordBody::State { last: true, .. } = &record.body {
        tag |= TAG_LAST;
    }
    leaf::put(out, head);
    out.push(tag);
    out.extend_from_slice(&record.point.check.to_le_bytes());
    if between || branches != 0 {
        leaf::put(out, branches);
    }
    if between {
        leaf::put(out, record.point.rip.wrapping_sub(previous.rip) as i64);
    }
    if kind.moves_time() {
        leaf::put(out, record.guest_time.as_micros() - previous.time_us);
    }
    put_body(out, &record.body)
}

fn put_body(out: &mut Vec<u8>, body: &RecordBody) -> Result<(), Fault> {
    match body {
        RecordBody::Timer | RecordBody::Progress => {}
        RecordBody::Start(start) => leaf::put(out, WireStart::from_live(start)?),
        RecordBody::Console(bytes) => put_limited(out, "console input", bytes, INPUT_BYTES_MAX)?,
        RecordBody::Entropy(bytes) => put_limited(out, "entropy", bytes, INPUT_BYTES_MAX)?,
        RecordBody::Packet { device, bytes } => {
            out.push(*device);
            put_limited(out, "packet", bytes, PACKET_BYTES_MAX)?;
        }
        RecordBody::Output(output) => leaf::put(out, WireOutput::from_live(*output)),
        RecordBody::Mark(digests) => {
            leaf::put(out, WireDigests::from_live(digests));
            if let Some(memory) = digests.memory {
                out.extend_from_slice(&memory.to_le_bytes());
            }
        }
        RecordBody::Control(control) => leaf::put::<WireControl>(out, *control),
        RecordBody::End(reason) => leaf::put::<WireEnd>(out, *reason),
        RecordBody::State { bytes, .. } => put_limited(out, "state", bytes, STATE_BYTES_MAX)?,
    }
    Ok(())
}

fn put_limited(
    out: &mut Vec<u8>,
    what: &'static str,
    bytes: &[u8],
    max: usize,
) -> Result<(), Fault> {
    check_length(what, bytes.len(), max)?;
    leaf::put_bytes(out, bytes);
    Ok(())
}

/// A decoded record and where in the payload it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The record.
    pub record: Record,
    /// First of its bytes in the payload.
    pub offset: usize,
    /// Their number.
    pub length: usize,
    /// Bytes of a packet that were passed over: all of them, see [`BatchDecoder::without_packets`].
    pub passed_over: usize,
}

impl Placed {
    /// The bytes of its packet, if it is one; `payload` is that which it was decoded from.
    #[must_use]
    pub fn packet<'a>(&'a self, payload: &'a [u8]) -> Option<&'a [u8]> {
        let RecordBody::Packet { bytes, .. } = &self.record.body else {
            return None;
        };
        let end = self.offset + self.length;
        // They are the last of the record.
        Some(match self.passed_over {
            0 => bytes,
            passed_over => payload.get(end - passed_over..end).unwrap_or_default(),
        })
    }
}

/// Decodes a batch record by record; after an error it yields nothing more.
#[derive(Debug, Clone)]
pub struct BatchDecoder<'a> {
    input: Input<'a>,
    sequence: Sequence,
    previous: Previous,
    next: LogIndex,
    failed: bool,
    /// Buffers of packets that were looked at, for the next ones.
    spare: Vec<Vec<u8>>,
    /// Packets are given without their bytes.
    without_packets: bool,
    /// Of the present record, bytes passed over.
    passed_over: usize,
}

impl<'a> BatchDecoder<'a> {
    /// Reads the base of the batch in `payload`.
    ///
    /// # Errors
    /// When there is no sound base, or no record after it.
    pub fn new(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut input = Input::new(payload);
        let base: WireBase = input.leaf("base of the batch")?;
        if base.time_us > u64::MAX / 1_000 {
            return Input::fail(0, Fault::Overflow("guest time"));
        }
        if input.is_empty() {
            return Input::fail(input.offset(), Fault::Truncated("a batch without records"));
        }
        Ok(Self {
            input,
            sequence: Sequence::default(),
            previous: Previous::of_base(&base),
            next: LogIndex(base.index),
            failed: false,
            spare: Vec::new(),
            without_packets: false,
            passed_over: 0,
        })
    }

    /// Passes over the bytes of packets: for those who only count them.
    #[must_use]
    pub const fn without_packets(mut self, without: bool) -> Self {
        self.without_packets = without;
        self
    }

    /// Uses these buffers for packets before it allocates.
    #[must_use]
    pub fn with_spare(mut self, spare: Vec<Vec<u8>>) -> Self {
        self.spare = spare;
        self
    }

    /// The buffers that were not used.
    #[must_use]
    pub fn into_spare(self) -> Vec<Vec<u8>> {
        self.spare
    }

    /// Index of the record that [`Iterator::next`] would give.
    #[must_use]
    pub const fn next_index(&self) -> LogIndex {
        self.next
    }

    /// Where the records given so far end: each of them follows the one before it.
    #[must_use]
    pub const fn sequence(&self) -> Sequence {
        self.sequence
    }

    fn record(&mut self) -> Result<Placed, DecodeError> {
        let offset = self.input.offset();
        let first = self.sequence.next().is_none();
        let head = self.input.varint("head")?;
        let tag_offset = self.input.offset();
        let tag = self.input.byte("tag")?;
        let known = RecordKind::from_tag(tag)
            .filter(|kind| tag & !(TAG_KIND | allowed_flags(*kind, head)) == 0);
        let Some(kind) = known else {
            return Input::fail(tag_offset, Fault::UnknownTag(tag));
        };
        let (point, guest_time) = self.place(head, tag, kind)?;
        let moved = (
            self.previous.exits,
            self.previous.branches,
            self.previous.time_us,
        ) != (point.exits, point.branches, guest_time.as_micros());
        if first && moved {
            return Input::fail(offset, Fault::NotCanonical("the first record of a batch"));
        }
        let body = self.body(tag, kind)?;
        let record = Record {
            index: self.next,
            point,
            guest_time,
            body,
        };
        let admitted = self.sequence.admit(&record);
        let length = self.input.offset() - offset;
        if length > RECORD_BYTES_MAX {
            let (length, max) = (length as u64, RECORD_BYTES_MAX);
            return Input::fail(
                offset,
                Fault::TooLong {
                    what: "record",
                    length,
                    max,
                },
            );
        }
        admitted.or_else(|fault: SequenceFault| Input::fail(offset, fault))?;
        self.previous.advance(&record);
        self.next = record.index.next();
        Ok(Placed {
            record,
            offset,
            length,
            passed_over: std::mem::take(&mut self.passed_over),
        })
    }

    /// Reads what lies between a record's tag and its body.
    fn place(
        &mut self,
        head: u64,
        tag: u8,
        kind: RecordKind,
    ) -> Result<(ExecutionPoint, GuestTime), DecodeError> {
        let offset = self.input.offset();
        let between = head & 1 == 1;
        let overflow = |what| DecodeError {
            offset,
            fault: Fault::Overflow(what),
        };
        let check = u16::from_le_bytes(self.input.array("register check")?);
        let mut point = ExecutionPoint {
            exits: self
                .previous
                .exits
                .checked_add(head / 2)
                .ok_or_else(|| overflow("exits"))?,
            kind: if between {
                PointKind::Between
            } else {
                PointKind::Exit
            },
            branches: self.previous.branches,
            rip: 0,
            check,
        };
        if between || tag & TAG_BRANCHES != 0 {
            let moved = self.input.varint("branches")?;
            if !between && moved == 0 {
                return Input::fail(offset, Fault::NotCanonical("branches"));
            }
            let branches = point.branches.checked_add(moved);
            point.branches = branches.ok_or_else(|| overflow("branches"))?;
        }
        if between {
            let moved: i64 = self.input.leaf("instruction pointer")?;
            point.rip = self.previous.rip.wrapping_add(moved as u64);
        }
        let mut time_us = self.previous.time_us;
        if kind.moves_time() {
            let moved = self.input.varint("guest time")?;
            let sum = time_us
                .checked_add(moved)
                .filter(|us| *us <= u64::MAX / 1_000);
            time_us = sum.ok_or_else(|| overflow("guest time"))?;
        }
        Ok((point, GuestTime::from_micros(time_us)))
    }

    fn body(&mut self, tag: u8, kind: RecordKind) -> Result<RecordBody, DecodeError> {
        let (input, spare) = (&mut self.input, &mut self.spare);
        let offset = input.offset();
        let at = |fault| DecodeError { offset, fault };
        Ok(match kind {
            RecordKind::Timer => RecordBody::Timer,
            RecordKind::Progress => RecordBody::Progress,
            RecordKind::Start => {
                let wire: WireStart<'_> = input.leaf("start")?;
                RecordBody::Start(Box::new(wire.into_live().map_err(at)?))
            }
            RecordKind::Console => {
                RecordBody::Console(input.bytes("console input", INPUT_BYTES_MAX)?.to_vec())
            }
            RecordKind::Entropy => {
                RecordBody::Entropy(input.bytes("entropy", INPUT_BYTES_MAX)?.to_vec())
            }
            RecordKind::Packet => {
                let device = input.byte("network device")?;
                let packet = input.bytes("packet", PACKET_BYTES_MAX)?;
                let mut bytes = Vec::new();
                if self.without_packets {
                    self.passed_over = packet.len();
                } else {
                    bytes = spare.pop().unwrap_or_default();
                    bytes.clear();
                    bytes.extend_from_slice(packet);
                }
                RecordBody::Packet { device, bytes }
            }
            RecordKind::Output => {
                let wire = WireOutput::read(input)?;
                RecordBody::Output(wire.into_live().map_err(at)?)
            }
            RecordKind::Mark => {
                let wire: WireDigests = input.leaf("digests")?;
                let memory = match tag & TAG_MEMORY {
                    0 => None,
                    _ => Some(input.leaf("memory digest")?),
                };
                RecordBody::Mark(wire.into_live(memory))
            }
            RecordKind::Control => RecordBody::Control(input.leaf::<WireControl>("control")?),
            RecordKind::End => RecordBody::End(input.leaf::<WireEnd>("end")?),
            RecordKind::State => RecordBody::State {
                last: tag & TAG_LAST != 0,
                bytes: input.bytes("state", STATE_BYTES_MAX)?.to_vec(),
            },
        })
    }
}

/// Flags that a record of `kind` with this head may have in its tag.
const fn allowed_flags(kind: RecordKind, head: u64) -> u8 {
    let at_exit = if head & 1 == 0 { TAG_BRANCHES } else { 0 };
    let of_kind = match kind {
        RecordKind::Mark => TAG_MEMORY,
        RecordKind::State => TAG_LAST,
        _ => 0,
    };
    at_exit | of_kind
}

impl Iterator for BatchDecoder<'_> {
    type Item = Result<Placed, DecodeError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.input.is_empty() {
            return None;
        }
        let placed = self.record();
        self.failed = placed.is_err();
        Some(placed)
    }
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
