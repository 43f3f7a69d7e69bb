//! Sabotage for drills: one bit of a packet differs on its way to this copy's guest.
//!
//! Nothing else knows of it: the log on disk and the session have the record as it came.

#![forbid(unsafe_code)]

use crate::replication::engine::Offer;
use logging_channel::record::{Record, RecordBody};

/// Second byte of an Ethernet frame's type: a guest that looks at frames at all cannot overlook it.
const ETHER_TYPE_BYTE: usize = 13;

/// Shorter ones may carry nothing but an acknowledgement, and the next makes good for a lost one.
const LENGTH_MIN: usize = 100;

/// Spoils one packet, and then nothing more.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spoiler {
    /// First record that it may be; none: nothing is spoiled.
    from_record: Option<u64>,
}

impl Spoiler {
    /// Spoils a packet of record `from_record` or later; nothing without one.
    pub(super) const fn new(from_record: Option<u64>) -> Self {
        Self { from_record }
    }

    /// Spoils the first packet that is late and long enough.
    pub(super) fn pass(&mut self, offer: &mut Offer) {
        let (Some(from), Offer::Records(records)) = (self.from_record, offer) else {
            return;
        };
        let late = |record: &&mut Record| record.index.0 >= from;
        for record in records.iter_mut().filter(late) {
            if let RecordBody::Packet { bytes, .. } = &mut record.body
                && bytes.len() >= LENGTH_MIN
                && let Some(byte) = bytes.get_mut(ETHER_TYPE_BYTE)
            {
                *byte ^= 0x10;
                tracing::warn!(
                    index = record.index.0,
                    "sabotage: a bit of this packet is wrong"
                );
                self.from_record = None;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logging_channel::execution_point::ExecutionPoint;
    use logging_channel::host_time::GuestTime;
    use logging_channel::record::LogIndex;

    #[test]
    fn one_packet_is_spoiled_and_no_other() {
        // The first that is late enough is too short.
        let length = |index| if index == 2 { 66 } else { 130 };
        let packet = |index| Record {
            index: LogIndex(index),
            point: ExecutionPoint::default(),
            guest_time: GuestTime::ZERO,
            body: RecordBody::Packet {
                device: 0,
                bytes: vec![8; length(index)],
            },
        };
        let records: Vec<_> = (0..4).map(packet).collect();
        let mut spoiler = Spoiler::new(Some(2));
        let mut offer = Offer::Records(records.clone());
        spoiler.pass(&mut offer);
        let Offer::Records(passed) = &offer else {
            panic!("{offer:?}");
        };
        let changed: Vec<_> = (0..4).filter(|at| passed[*at] != records[*at]).collect();
        assert_eq!(changed, [3]);
        let mut again = Offer::Records(records.clone());
        spoiler.pass(&mut again);
        assert_eq!(again, Offer::Records(records));
    }
}
