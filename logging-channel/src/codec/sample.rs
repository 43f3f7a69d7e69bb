//! Records and logs for tests: one of each kind, and a proptest strategy for any valid log.

#![forbid(unsafe_code)]

use crate::execution_point::{ExecutionPoint, PointKind};
use crate::host_time::GuestTime;
use crate::record::{
    ClockKind, Control, Digests, EndReason, LogIndex, Output, OutputDevice, Record, RecordBody,
    Start,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// A Start body with a recognisable value in every field.
pub(crate) fn start() -> Start {
    Start {
        vm: "vm".into(),
        generation: 1,
        clock: ClockKind::Exits,
        cpu_model: "understudy-v1".into(),
        memory_bytes: 256 << 20,
        kernel_sha256: [0x11; 32],
        initramfs_sha256: [0x22; 32],
        cmdline: "console=ttyS0".into(),
        mac: [2, 0, 0, 0, 0, 1],
        wall_clock_s: 1_700_000_000,
        rng_seed: [0x33; 32],
    }
}

/// A record on the exit clock.
pub(crate) fn record(index: u64, exits: u64, time_us: u64, body: RecordBody) -> Record {
    Record {
        index: LogIndex(index),
        point: ExecutionPoint::at_exit(exits, 0xBEEF),
        guest_time: GuestTime::from_micros(time_us),
        body,
    }
}

/// A log with every kind of record, on the exit clock.
pub(crate) fn one_of_each() -> Vec<Record> {
    let output = Output {
        device: OutputDevice::Network(0),
        length: 60,
        digest: 0xCAFE_F00D,
    };
    let console = Output {
        device: OutputDevice::Console,
        length: 1,
        digest: 1,
    };
    let mark = Digests {
        registers: 1,
        devices: 2,
        memory: None,
    };
    let verified = Digests {
        registers: 3,
        devices: 4,
        memory: Some(5),
    };
    vec![
        record(0, 0, 0, RecordBody::Start(Box::new(start()))),
        record(1, 100, 4_000, RecordBody::Timer),
        record(2, 100, 4_000, RecordBody::Console(b"ls\n".to_vec())),
        record(
            3,
            400,
            14_000,
            RecordBody::Packet {
                device: 0,
                bytes: vec![0xAA; 60],
            },
        ),
        record(4, 401, 14_000, RecordBody::Output(output)),
        record(5, 402, 14_000, RecordBody::Output(console)),
        record(6, 500, 15_000, RecordBody::Entropy(vec![7; 8])),
        record(7, 500, 15_000, RecordBody::Mark(mark)),
        record(8, 501, 15_000, RecordBody::Mark(verified)),
        record(9, 502, 15_001, RecordBody::Control(Control::Generation(2))),
        record(10, 503, 15_001, RecordBody::Progress),
        record(11, 503, 15_001, state(false)),
        record(12, 503, 15_001, state(true)),
        record(13, 504, 15_001, RecordBody::End(EndReason::PowerOff)),
    ]
}

/// A piece of a state.
fn state(last: bool) -> RecordBody {
    RecordBody::State {
        last,
        bytes: vec![3, 1, 4],
    }
}

/// `count` timer records from index `first` on, 10 ms and 20 exits apart.
pub(crate) fn timers(first: u64, count: u64) -> Vec<Record> {
    (first..first + count)
        .map(|index| record(index, index * 20, index * 10_000, RecordBody::Timer))
        .collect()
}

fn any_body() -> impl Strategy<Value = RecordBody> {
    let device = prop_oneof![
        Just(OutputDevice::Console),
        any::<u8>().prop_map(OutputDevice::Network)
    ];
    let output = (device, any::<u32>(), any::<u32>()).prop_map(|(device, length, digest)| Output {
        device,
        length,
        digest,
    });
    let digests =
        any::<(u64, u64, Option<u64>)>().prop_map(|(registers, devices, memory)| Digests {
            registers,
            devices,
            memory,
        });
    prop_oneof![
        3 => Just(RecordBody::Timer),
        1 => Just(RecordBody::Progress),
        1 => vec(any::<u8>(), 0..40).prop_map(RecordBody::Console),
        1 => vec(any::<u8>(), 0..300).prop_map(RecordBody::Entropy),
        2 => (any::<u8>(), vec(any::<u8>(), 0..300))
            .prop_map(|(device, bytes)| RecordBody::Packet { device, bytes }),
        2 => output.prop_map(RecordBody::Output),
        1 => digests.prop_map(RecordBody::Mark),
        1 => any::<u64>().prop_map(|generation| {
            RecordBody::Control(Control::Generation(generation))
        }),
        1 => Just(RecordBody::Control(Control::PowerOff)),
        1 => (any::<bool>(), vec(any::<u8>(), 0..300))
            .prop_map(|(last, bytes)| RecordBody::State { last, bytes }),
    ]
}

/// One record's steps from the last: exits, between, branches, rip, check, microseconds, body.
type Step = (u64, bool, u64, u64, u16, u64, RecordBody);

fn any_step() -> impl Strategy<Value = Step> {
    let small_or_large = |large: u64| prop_oneof![4 => 0..300_u64, 1 => 0..large];
    let exits = small_or_large(1 << 40);
    let branches = small_or_large(1 << 40);
    let time_us = small_or_large(1 << 30);
    (
        exits,
        any::<bool>(),
        branches,
        any::<u64>(),
        any::<u16>(),
        time_us,
        any_body(),
    )
}

/// Any valid log of up to 40 records, from any index, on either clock.
pub(crate) fn any_log() -> impl Strategy<Value = Vec<Record>> {
    (0..1_u64 << 60, vec(any_step(), 1..40)).prop_map(|(first, steps)| {
        let mut point = ExecutionPoint::default();
        let mut time_us = 0;
        let mut log = Vec::new();
        for (index, (exits, between, branches, rip, check, us, body)) in (first..).zip(steps) {
            let still_between = exits == 0 && point.kind == PointKind::Between;
            let between = between || still_between;
            point = ExecutionPoint {
                exits: point.exits + exits,
                kind: if between {
                    PointKind::Between
                } else {
                    PointKind::Exit
                },
                branches: point.branches + branches,
                rip: if between { rip } else { 0 },
                check,
            };
            if crate::codec::RecordKind::of(&body).moves_time() {
                time_us += us;
            }
            let guest_time = GuestTime::from_micros(time_us);
            log.push(Record {
                index: LogIndex(index),
                point,
                guest_time,
                body,
            });
        }
        log
    })
}
