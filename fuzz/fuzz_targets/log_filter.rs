//! A filter expression and, behind a zero byte, a frame: any text is read or refused, what is shown reads
//! the same, and a filter and its negation never agree on any packet.
#![no_main]

use inspect::facts::Facts;
use inspect::filter::Filter;
use logging_channel::execution_point::ExecutionPoint;
use logging_channel::host_time::GuestTime;
use logging_channel::record::{LogIndex, Record, RecordBody};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (text, frame) = match data.iter().position(|byte| *byte == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[][..]),
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let filter = match text.parse::<Filter>() {
        Ok(filter) => filter,
        Err(error) => {
            assert!((1..=text.chars().count() + 1).contains(&error.column));
            return;
        }
    };
    if let Ok(again) = filter.to_string().parse::<Filter>() {
        assert_eq!(again, filter);
    }
    let bytes = frame.to_vec();
    let record = Record {
        index: LogIndex(1),
        point: ExecutionPoint::at_exit(1, 0),
        guest_time: GuestTime::from_micros(1),
        body: RecordBody::Packet { device: 0, bytes },
    };
    let facts = Facts::of(&record);
    let passes = filter.passes(&facts);
    assert_ne!(Filter::Not(Box::new(filter)).passes(&facts), passes);
});
