use super::super::sample::{any_log, one_of_each, timers};
use super::*;
use crate::frame::FrameError;
use proptest::prelude::*;

fn identity() -> Identity {
    Identity {
        vm: "vm".into(),
        cpu_model: "understudy-v1".into(),
        memory_bytes: 256 << 20,
        kernel_sha256: [0x11; 32],
        initramfs_sha256: [0x22; 32],
        cmdline: "quiet".into(),
        mac: [2, 0, 0, 0, 0, 1],
    }
}

fn one_of_each_message() -> Vec<Message> {
    let (item, ours, theirs) = ("cmdline".into(), "quiet".into(), "loud".into());
    vec![
        Message::Hello(Hello {
            protocol: PROTOCOL_VERSION,
            holder: "b".into(),
            identity: identity(),
            clocks: ClockOffer::NoCounter("skid".into()),
        }),
        Message::Welcome(Welcome {
            holder: "a".into(),
            generation: 1,
            begins: Begins::WithStart,
            clocks: ClockOffer::Only(ClockKind::Branches),
        }),
        Message::Refused(Refused { item, ours, theirs }),
        Message::Log(timers(3, 2)),
        Message::Ack(Ack {
            received: LogIndex(300),
            replayed: LogIndex(200),
            replayed_exits: 70_000,
        }),
        Message::Heartbeat(Heartbeat {
            released: LogIndex(250),
        }),
        Message::Goodbye(Goodbye::GuestEnded),
        Message::Goodbye(Goodbye::Stopped),
        Message::Goodbye(Goodbye::Diverged),
        Message::Goodbye(Goodbye::HandedOver),
        Message::Part(vec![1, 2, 3]),
        Message::Complete(Complete {
            first_index: LogIndex(300),
            bytes: 70_000,
        }),
        Message::Taken(Taken { bytes: 70_000 }),
    ]
}

fn decode(frame: &[u8]) -> Message {
    decode_message(frame::parse(frame).expect("own frame")).expect("own payload")
}

#[test]
fn golden_bytes_of_every_message() {
    let golden = [
        concat!(
            "a1016b0000976446046b",
            "03016202766d0d756e64657273747564792d7631fc00000010",
            "1111111111111111111111111111111111111111111111111111111111111111",
            "2222222222222222222222222222222222222222222222222222222222222222",
            "0571756965740200000000010204736b6964",
        ),
        "a102060000f9652f2fa6016101000001",
        "a1031300008d0745c9d407636d646c696e65057175696574046c6f7564",
        "a10412000084c5e54f99033c00fb30750001efbe002801efbefb1027",
        "a105090000dc163c7d4cfb2c01c8fc70110100",
        "a106010000b786550c13fa",
        "a107010000a161d9ba3200",
        "a107010000a1625ad1c001",
        "a107010000a196a981d302",
        "a107010000a1952aea2103",
        "a108030000a5a7fa2c4b010203",
        "a1090800005f2e4ae646fb2c01fc70110100",
        "a10a050000f4f3ed4bc0fc70110100",
    ];
    let hex = |message: &Message| -> String {
        let frame = encode_message(message).expect("valid");
        frame.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let found: Vec<String> = one_of_each_message().iter().map(hex).collect();
    assert_eq!(found, golden);
}

#[test]
fn every_message_comes_back() {
    for message in one_of_each_message() {
        assert_eq!(decode(&encode_message(&message).expect("valid")), message);
    }
}

#[test]
fn texts_are_bounded_both_ways() {
    let mut identity = identity();
    identity.cmdline = "x".repeat(TEXT_BYTES_MAX + 1);
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        holder: "b".into(),
        identity,
        clocks: ClockOffer::Either,
    };
    let error = encode_message(&Message::Hello(hello)).expect_err("too long");
    assert_eq!(
        error.to_string(),
        "cmdline of 4097 bytes is longer than 4096"
    );

    let mut payload = Vec::new();
    let holder = &"x".repeat(TEXT_BYTES_MAX + 1);
    leaf::put(
        &mut payload,
        WireWelcome {
            holder,
            generation: 1,
            begins: Begins::WithTransfer,
            clocks: WireClockOffer::Either,
        },
    );
    let welcome = Frame {
        kind: FrameKind::Welcome,
        payload: &payload,
    };
    let error = decode_message(welcome).expect_err("too long");
    assert_eq!(
        error.to_string(),
        "at payload byte 0: holder of 4097 bytes is longer than 4096"
    );
}

#[test]
fn a_hello_of_another_protocol_is_named_before_it_is_read() {
    let (ours, theirs) = (PROTOCOL_VERSION, 1);
    let old = Frame {
        kind: FrameKind::Hello,
        payload: &[1, 1, b'b', 0xff],
    };
    let fault = Fault::OtherProtocol { ours, theirs };
    assert_eq!(decode_message(old), Err(DecodeError { offset: 0, fault }));
}

#[test]
fn trailing_bytes_are_refused() {
    let heartbeat = Frame {
        kind: FrameKind::Heartbeat,
        payload: &[7, 0],
    };
    let fault = Fault::TrailingBytes(1);
    assert_eq!(
        decode_message(heartbeat),
        Err(DecodeError { offset: 1, fault })
    );
}

#[test]
fn a_log_is_encoded_once() {
    let log = one_of_each();
    let encoded = EncodedLog::encode(&log).expect("valid");
    assert_eq!(
        (encoded.first(), encoded.next()),
        (LogIndex(0), LogIndex(log.len() as u64))
    );
    let frame = frame::parse(encoded.bytes()).expect("own frame");
    assert_eq!(frame.payload, encoded.payload());
    assert_eq!(EncodedLog::from_frame(frame), Ok(encoded.clone()));
    assert_eq!(
        &encode_message(&Message::Log(log)).expect("valid")[..],
        &encoded.bytes()[..]
    );
}

#[test]
fn a_long_log_is_spread_over_frames() {
    let packet = |mut record: Record| {
        record.body = crate::record::RecordBody::Packet {
            device: 0,
            bytes: vec![1; 60_000],
        };
        record
    };
    let log: Vec<Record> = timers(7, 40).into_iter().map(packet).collect();
    assert_eq!(EncodedLog::encode(&log), Err(EncodeError::BatchTooLong));
    let frames = EncodedLog::encode_all(&log).expect("valid");
    assert_eq!(frames.len(), 3);
    let mut found = Vec::new();
    for frame in &frames {
        assert_eq!(frame.first().0, 7 + found.len() as u64);
        let Message::Log(records) = decode(frame.bytes()) else {
            panic!("a log")
        };
        found.extend(records);
        assert_eq!(frame.next().0, 7 + found.len() as u64);
    }
    assert_eq!(found, log);
    assert_eq!(EncodedLog::encode_all(&[]), Ok(Vec::new()));
}

#[test]
fn every_flip_of_one_bit_in_a_framed_batch_is_refused() {
    let encoded = EncodedLog::encode(&one_of_each()).expect("valid");
    for bit in 0..encoded.bytes().len() * 8 {
        let mut damaged = encoded.bytes().to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = frame::parse(&damaged).expect_err("a flipped bit was not seen");
        assert!(
            !matches!(error, FrameError::Incomplete { .. }),
            "bit {bit}: {error}"
        );
    }
}

proptest! {
    #[test]
    fn any_log_message_comes_back(log in any_log()) {
        let message = Message::Log(log);
        prop_assert_eq!(decode(&encode_message(&message).expect("valid")), message);
    }

    #[test]
    fn any_payload_has_an_answer(
        kind in 1..11_u8,
        payload in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let kind = FrameKind::from_byte(kind).expect("all of 1 to 10");
        if let Ok(message) = decode_message(Frame { kind, payload: &payload }) {
            let again = encode_message(&message).expect("decoded");
            prop_assert_eq!(&again[HEADER_BYTES..], payload);
        }
    }

    #[test]
    fn damaged_messages_have_an_answer(
        which in 0..13_usize,
        flips in proptest::collection::vec(any::<(proptest::sample::Index, u8)>(), 1..4),
    ) {
        let frame = encode_message(&one_of_each_message()[which]).expect("valid");
        let kind = frame::parse(&frame).expect("own frame").kind;
        let mut payload = frame[HEADER_BYTES..].to_vec();
        for (at, with) in flips {
            let at = at.index(payload.len());
            payload[at] ^= with;
        }
        if let Ok(message) = decode_message(Frame { kind, payload: &payload }) {
            let again = encode_message(&message).expect("decoded");
            prop_assert_eq!(&again[HEADER_BYTES..], payload);
        }
    }
}

#[test]
fn the_examples_of_the_page_are_real() {
    let page = include_str!("../../../docs/formats/log.md");
    // What the page shows in hexadecimal, without its spaces and explanations.
    let hex_words = |line: &str| -> String {
        let shown = line.split("  ").next().unwrap_or_default();
        shown.split(' ').collect()
    };
    let shown: Vec<String> = page.lines().map(hex_words).collect();
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };

    let released = LogIndex(7);
    let beat = encode_message(&Message::Heartbeat(Heartbeat { released })).expect("valid");
    assert!(shown.contains(&hex(&beat)), "{}", hex(&beat));

    let batch = EncodedLog::encode(&timers(3, 2)).expect("valid");
    assert!(shown.concat().contains(&hex(batch.payload())));

    let vm_hash = crate::file_header::vm_hash("vm");
    let first = LogIndex(0);
    let header = crate::segment::format::SegmentHeader { first, vm_hash }.encode();
    assert!(shown.contains(&hex(&header)), "{}", hex(&header));
}
