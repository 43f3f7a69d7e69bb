//! Any bytes as a frame and the message in it: what decodes encodes to the same bytes.
#![no_main]

use logging_channel::codec::{decode_message, encode_message};
use logging_channel::frame::{FrameKind, Frame, parse};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = parse(data);
    // Behind the checksum, which fuzzing would hardly find: the first byte chooses the kind.
    let Some((kind, payload)) = data.split_first() else { return };
    let Some(kind) = FrameKind::from_byte(*kind) else { return };
    if let Ok(message) = decode_message(Frame { kind, payload }) {
        let again = encode_message(&message).expect("what was decoded has a byte form");
        assert_eq!(parse(&again).expect("own frame").payload, payload);
    }
});
