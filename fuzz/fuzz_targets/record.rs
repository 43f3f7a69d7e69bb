//! Any bytes as a batch of log records: what decodes encodes to the same bytes.
#![no_main]

use logging_channel::codec::{decode_records, encode_records};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(records) = decode_records(data) {
        assert_eq!(encode_records(&records).expect("what was decoded has a byte form"), data);
    }
});
