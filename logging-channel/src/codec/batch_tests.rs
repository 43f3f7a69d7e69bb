use super::super::sample::{any_log, one_of_each, record, start, timers};
use super::*;
use crate::record::{EndReason, Output, OutputDevice};
use proptest::prelude::*;

/// Bytes of one record as hex, without the base of its batch.
fn hex_of(previous: &Record, record: &Record) -> String {
    let mut encoder = BatchEncoder::new();
    encoder.push(previous).expect("valid");
    let before = encoder.frame_bytes();
    encoder.push(record).expect("valid");
    hex(&encoder.frame[before..])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn wire_bytes(records: &[Record]) -> Vec<usize> {
    let mut encoder = BatchEncoder::new();
    let push = |record| match encoder.push(record) {
        Ok(Pushed::Added(length)) => length,
        other => panic!("{other:?}"),
    };
    records.iter().map(push).collect()
}

fn fault_of(result: Result<Vec<Record>, DecodeError>) -> (usize, Fault) {
    let error = result.expect_err("must be refused");
    (error.offset, error.fault)
}

#[test]
fn golden_bytes_of_every_kind() {
    let log = one_of_each();
    let golden = [
        // Timer: head, tag, check, time.
        "c801efbefba00f",
        // Console: and length, "ls\n".
        "0002efbe00036c730a",
        // Packet: device and length before the frame.
        concat!(
            "fb580203efbefb1027003c",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ),
        // Output: device, length, digest; no time.
        "0205efbe013c0df0feca",
        "0205efbe000101000000",
        // Entropy.
        "c404efbefbe803080707070707070707",
        // Mark without and with a digest of memory.
        "0006efbe01000000000000000200000000000000",
        "0226efbe030000000000000004000000000000000500000000000000",
        // Control: Generation(2).
        "0207efbe010102",
        // Progress.
        "0209efbe",
        // State: a piece, and the last one.
        "000aefbe03030104",
        "004aefbe03030104",
        // End: PowerOff.
        "0208efbe00",
    ];
    let found: Vec<String> = log
        .windows(2)
        .map(|pair| hex_of(&pair[0], &pair[1]))
        .collect();
    assert_eq!(found, golden);
}

#[test]
fn golden_bytes_of_a_batch_from_the_start() {
    let payload = encode_records(&one_of_each()[..1]).expect("valid");
    let golden = concat!(
        "00000000",                     // base: index, exits, branches, microseconds
        "0000efbe00",                   // head, tag, check, time
        "02766d",                       // vm
        "01",                           // generation
        "00",                           // clock
        "0d756e64657273747564792d7631", // CPU model
        "fc00000010",                   // memory
        "1111111111111111111111111111111111111111111111111111111111111111",
        "2222222222222222222222222222222222222222222222222222222222222222",
        "0d636f6e736f6c653d7474795330", // command line
        "020000000001",                 // MAC
        "fc00f15365",                   // wall clock
        "3333333333333333333333333333333333333333333333333333333333333333",
    );
    assert_eq!(hex(&payload), golden);
}

#[test]
fn golden_bytes_between_exits() {
    let mut at = record(9, 7, 300, RecordBody::Timer);
    at.point = ExecutionPoint {
        exits: 7,
        kind: PointKind::Between,
        branches: 1_000,
        rip: 0x40_1000,
        check: 0x1234,
    };
    let mut later = at.clone();
    later.index = LogIndex(10);
    later.point.branches = 1_200;
    later.point.rip = 0x40_0FFE;
    let first = encode_records(std::slice::from_ref(&at)).expect("valid");
    // Base; then head, tag, check, branches, rip (zigzag of 0x401000), time.
    assert_eq!(hex(&first), "0907fbe803fb2c010101341200fc0020800000");
    assert_eq!(hex_of(&at, &later), "01013412c80300");
    let mut exit = record(11, 8, 300, RecordBody::Timer);
    exit.point.branches = 1_201;
    assert_eq!(hex_of(&later, &exit), "0211efbe0100");
}

#[test]
fn sizes_keep_their_promises() {
    // Specification: timer <= 8 bytes, packet <= 16 beside its payload, output <= 12.
    let packet = RecordBody::Packet {
        device: 0,
        bytes: vec![0; 1_514],
    };
    let output = Output {
        device: OutputDevice::Network(0),
        length: 65_535,
        digest: u32::MAX,
    };
    let log = [
        record(5, 1_000, 0, RecordBody::Timer),
        record(6, 1_124, 64_999, RecordBody::Timer),
        record(7, 1_248, 129_998, packet),
        record(8, 1_372, 129_998, RecordBody::Output(output)),
        record(9, 1_373, 129_998 + 250, RecordBody::Timer),
    ];
    assert_eq!(wire_bytes(&log)[1..], [7, 11 + 1_514, 12, 5]);
}

#[test]
fn a_log_comes_back_with_places() {
    let log = one_of_each();
    let payload = encode_records(&log).expect("valid");
    assert_eq!(decode_records(&payload).expect("own bytes"), log);
    let decoder = BatchDecoder::new(&payload).expect("own bytes");
    let placed: Vec<Placed> = decoder.map(|placed| placed.expect("own bytes")).collect();
    let lengths: Vec<usize> = placed.iter().map(|placed| placed.length).collect();
    assert_eq!(lengths, wire_bytes(&log));
    let last = placed.last().expect("not empty");
    assert_eq!(last.offset + last.length, payload.len());
}

#[test]
fn encoder_refuses_what_breaks_the_log() {
    let timer = || record(5, 10, 1_000, RecordBody::Timer);
    let cases = [
        (
            record(7, 10, 1_000, RecordBody::Timer),
            "index 7 where 6 must follow",
        ),
        (record(6, 9, 1_000, RecordBody::Timer), "point is before"),
        (
            record(6, 10, 999, RecordBody::Timer),
            "guest time is before",
        ),
        (
            record(6, 10, 1_001, RecordBody::End(EndReason::Reset)),
            "does not move it",
        ),
        (
            record(6, 10, 1_000, RecordBody::Start(Box::new(start()))),
            "only have index 0",
        ),
        (
            record(6, 10, 1_000, RecordBody::Console(vec![0; 4_097])),
            "longer than 4096",
        ),
        (
            record(6, u64::MAX, 1_000, RecordBody::Timer),
            "exits overflows",
        ),
        (
            Record {
                point: ExecutionPoint {
                    rip: 1,
                    ..timer().point
                },
                ..record(6, 10, 1_000, RecordBody::Timer)
            },
            "instruction pointer",
        ),
    ];
    for (bad, reason) in cases {
        let mut encoder = BatchEncoder::new();
        encoder.push(&timer()).expect("valid");
        let before = encoder.frame.clone();
        let error = encoder.push(&bad).expect_err(reason).to_string();
        assert!(error.contains(reason), "{error:?} does not say {reason:?}");
        assert_eq!(encoder.frame, before, "a refused record left bytes behind");
    }
    let ended = [
        record(5, 10, 0, RecordBody::End(EndReason::Reset)),
        record(6, 10, 0, RecordBody::Timer),
    ];
    assert!(encode_records(&ended).is_err());
    assert_eq!(encode_records(&[]), Err(EncodeError::EmptyBatch));
    let full = record(u64::MAX, 10, 0, RecordBody::Timer);
    assert!(encode_records(&[full]).is_err());
}

#[test]
fn decoder_says_what_and_where() {
    let base = [5, 10, 0, 0];
    let batch = |record: &[u8]| [&base[..], record].concat();
    let truncated = |what| Fault::Truncated(what);
    assert_eq!(
        fault_of(decode_records(&[])),
        (0, truncated("base of the batch"))
    );
    assert_eq!(
        fault_of(decode_records(&base)),
        (4, truncated("a batch without records"))
    );
    let cases: [(&[u8], usize, Fault); 12] = [
        (&[0], 5, truncated("tag")),
        (&[0, 1, 0], 6, truncated("register check")),
        (&[0, 11, 0, 0], 5, Fault::UnknownTag(11)),
        (&[0, 10, 0, 0], 8, truncated("state")),
        (&[0, 0x41, 0, 0, 0], 5, Fault::UnknownTag(0x41)),
        (&[0, 0x21, 0, 0, 0], 5, Fault::UnknownTag(0x21)),
        (&[1, 0x11, 0, 0, 0, 0, 0], 5, Fault::UnknownTag(0x11)),
        (&[0, 0x11, 0, 0, 0, 0], 6, Fault::NotCanonical("branches")),
        (
            &[2, 1, 0, 0, 0],
            4,
            Fault::NotCanonical("the first record of a batch"),
        ),
        (&[251, 0, 0, 1, 0, 0, 0], 4, Fault::NotCanonical("head")),
        (&[0, 0, 0, 0, 0], 9, truncated("start")),
        (&[0, 8, 0, 0, 9], 8, Fault::Malformed("end")),
    ];
    for (bytes, offset, fault) in cases {
        assert_eq!(
            fault_of(decode_records(&batch(bytes))),
            (offset, fault),
            "{bytes:?}"
        );
    }
    // A claim of 2^62 bytes of console input: refused by its length, not tried.
    let claim = [&[0, 2, 0, 0, 0, 253][..], &(1_u64 << 62).to_le_bytes()].concat();
    let (offset, fault) = fault_of(decode_records(&batch(&claim)));
    assert_eq!(offset, 9);
    assert!(
        matches!(
            fault,
            Fault::TooLong {
                max: INPUT_BYTES_MAX,
                ..
            }
        ),
        "{fault}"
    );
}

#[test]
fn decoder_refuses_overflow() {
    let mut base = vec![5, 253];
    base.extend_from_slice(&u64::MAX.to_le_bytes());
    base.extend_from_slice(&[0, 0]);
    let twice = [&base[..], &[0, 1, 0, 0, 0], &[2, 1, 0, 0, 0]].concat();
    assert!(matches!(
        fault_of(decode_records(&twice)),
        (_, Fault::Overflow("exits"))
    ));
    let mut late = vec![5, 0, 0, 253];
    late.extend_from_slice(&(u64::MAX / 1_000 + 1).to_le_bytes());
    late.extend_from_slice(&[0, 1, 0, 0, 0]);
    assert_eq!(
        fault_of(decode_records(&late)),
        (0, Fault::Overflow("guest time"))
    );
    let mut last = vec![253];
    last.extend_from_slice(&u64::MAX.to_le_bytes());
    last.extend_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0]);
    let exhausted = Fault::Sequence(SequenceFault::IndexExhausted);
    assert_eq!(fault_of(decode_records(&last)).1, exhausted);
}

#[test]
fn a_full_batch_refuses_one_more_and_stays_whole() {
    let packet = |index| {
        let bytes = vec![index as u8; PACKET_BYTES_MAX];
        record(index, index, 0, RecordBody::Packet { device: 0, bytes })
    };
    let mut encoder = BatchEncoder::new();
    let mut count = 0;
    while encoder.push(&packet(count)).expect("valid") != Pushed::Full {
        count += 1;
    }
    assert_eq!(count, (PAYLOAD_BYTES_MAX / PACKET_BYTES_MAX) as u64);
    let (frame, first, next) = encoder.finish().expect("not empty");
    assert_eq!((first, next), (LogIndex(0), LogIndex(count)));
    let records = decode_records(&frame[HEADER_BYTES..]).expect("own bytes");
    assert_eq!(records.len() as u64, count);
}

#[test]
fn idle_guest_costs_little() {
    // 100 timers a second, 20 exits apart: the log of an idle guest, without marks.
    let payload = encode_records(&timers(1_000_000, 100)).expect("valid");
    assert!(payload.len() <= 20 + 100 * 7, "{} bytes", payload.len());
}

proptest! {
    #[test]
    fn any_log_comes_back(log in any_log()) {
        let payload = encode_records(&log).expect("valid");
        prop_assert_eq!(decode_records(&payload).expect("own bytes"), log);
    }

    #[test]
    fn any_bytes_have_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(records) = decode_records(&bytes) {
            prop_assert_eq!(encode_records(&records).expect("decoded"), bytes);
        }
    }

    #[test]
    fn damaged_batches_have_an_answer_and_one_form(
        log in any_log(),
        flips in proptest::collection::vec(any::<(proptest::sample::Index, u8)>(), 1..4),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut payload = encode_records(&log).expect("valid");
        for (at, with) in flips {
            let at = at.index(payload.len());
            payload[at] ^= with;
        }
        payload.truncate(cut.index(payload.len()) + 1);
        match decode_records(&payload) {
            Ok(records) => prop_assert_eq!(encode_records(&records).expect("decoded"), payload),
            Err(error) => prop_assert!(error.offset <= payload.len()),
        }
    }
}
