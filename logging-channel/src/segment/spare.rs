//! The memory of frames that were looked at, used again for the next ones: a reader of gigabytes then asks
//! the allocator for nothing.
//!
//! What is kept is bounded in number and size. Left out: which frames are read, and when.

#![forbid(unsafe_code)]

use super::format::SegmentDamage;
use super::scan::walk_batch;
use crate::codec::{BatchDecoder, DecodeError, Placed, Sequence};
use crate::record::RecordBody;

/// Room made for the records of a frame at once; most have fewer, and the others grow.
const RECORDS_EXPECTED: usize = 64;
/// Lists, and packets, that are kept for use.
const SPARE_LISTS_MAX: usize = 256;
const SPARE_PACKETS_MAX: usize = 4_096;
/// Longer packets are few, and not kept.
const SPARE_PACKET_BYTES_MAX: usize = 2_048;

/// Memory of frames that were looked at, for the next ones.
#[derive(Debug, Default)]
pub(super) struct Spare {
    /// Packets are read without their bytes.
    without_packets: bool,
    lists: Vec<Vec<Placed>>,
    packets: Vec<Vec<u8>>,
}

impl Spare {
    /// For a reader that has the payloads: packets are read without their bytes.
    pub(super) fn without_packets() -> Self {
        Self {
            without_packets: true,
            ..Self::default()
        }
    }

    fn list(&mut self) -> Vec<Placed> {
        let list = self.lists.pop();
        list.unwrap_or_else(|| Vec::with_capacity(RECORDS_EXPECTED))
    }

    /// A decoder of `payload` that uses the buffers.
    pub(super) fn decoder<'a>(
        &mut self,
        payload: &'a [u8],
    ) -> Result<BatchDecoder<'a>, DecodeError> {
        let decoder = BatchDecoder::new(payload)?.without_packets(self.without_packets);
        Ok(decoder.with_spare(std::mem::take(&mut self.packets)))
    }

    /// The decoder is done.
    pub(super) fn done(&mut self, decoder: BatchDecoder<'_>) {
        self.packets = decoder.into_spare();
    }

    /// Takes back the records of a frame.
    pub(super) fn keep(&mut self, mut records: Vec<Placed>) {
        for placed in records.drain(..) {
            if let RecordBody::Packet { bytes, .. } = placed.record.body
                && self.packets.len() < SPARE_PACKETS_MAX
                && (1..=SPARE_PACKET_BYTES_MAX).contains(&bytes.capacity())
            {
                self.packets.push(bytes);
            }
        }
        if self.lists.len() < SPARE_LISTS_MAX && records.capacity() <= RECORDS_EXPECTED {
            self.lists.push(records);
        }
    }
}

/// Decodes a batch that must follow `sequence`; an error's offset counts from the frame's beginning.
pub(super) fn read_batch(
    payload: &[u8],
    sequence: &mut Sequence,
    spare: &mut Spare,
) -> Result<Vec<Placed>, (u64, SegmentDamage)> {
    let mut records = spare.list();
    walk_batch(payload, sequence, spare, |placed| {
        records.push(placed);
    })?;
    Ok(records)
}
