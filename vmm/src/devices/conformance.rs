//! Tests that every device must pass: `conformance_tests!(name, make)` makes a module of them.
//!
//! A device is driven through the bus, through guest time and through whatever input its kind takes
//! ([`Subject`]). Two devices in equal states, in equal surroundings, must do the same.

use super::digest::digest_of;
use super::irq::IrqLines;
use super::{Device, DeviceContext, Effect};
use crate::devices::ram::GuestRam;
use logging_channel::host_time::GuestTime;
use proptest::prelude::*;
use serde_json::Value;
use vm_memory::{Bytes, GuestAddress};

/// What surrounds a device under test.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) now: GuestTime,
    pub(crate) irq: IrqLines,
    pub(crate) effects: Vec<Effect>,
    pub(crate) memory: GuestRam,
}

impl Bench {
    /// Guest memory of the bench in bytes.
    pub(crate) const MEMORY_BYTES: usize = 0x1_0000;

    pub(crate) fn new() -> Self {
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), Self::MEMORY_BYTES)])
            .expect("a small mapping");
        Self {
            now: GuestTime::ZERO,
            irq: IrqLines::default(),
            effects: Vec::new(),
            memory,
        }
    }

    pub(crate) fn ctx(&mut self) -> DeviceContext<'_> {
        DeviceContext {
            now: self.now,
            irq: &mut self.irq,
            effects: &mut self.effects,
            memory: &self.memory,
        }
    }

    pub(crate) fn memory_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; Self::MEMORY_BYTES];
        self.memory
            .read_slice(&mut bytes, GuestAddress(0))
            .expect("all of it");
        bytes
    }

    /// An independent copy, memory included.
    fn fork(&self) -> Self {
        let copy = Self::new();
        copy.memory
            .write_slice(&self.memory_bytes(), GuestAddress(0))
            .expect("all of it");
        Self {
            now: self.now,
            irq: self.irq,
            effects: self.effects.clone(),
            ..copy
        }
    }

    fn outcome(&self) -> (GuestTime, IrqLines, Vec<Effect>, Vec<u8>) {
        (
            self.now,
            self.irq,
            self.effects.clone(),
            self.memory_bytes(),
        )
    }
}

/// A device that can be put through the tests.
pub(crate) trait Subject: Device {
    /// A device after power-on.
    fn fresh() -> Self;

    /// Register offsets that random accesses prefer.
    fn offsets() -> Vec<u64>;

    /// Brings the device to where it can do its work.
    fn set_up(&mut self, _bench: &mut Bench) {}

    /// Guest time has moved.
    fn advance(&mut self, _ctx: &mut DeviceContext<'_>) {}

    /// Input of the device's kind.
    fn input(&mut self, _bytes: &[u8], _ctx: &mut DeviceContext<'_>) {}
}

/// One thing that happens to a device.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    Read { offset: u64, size: usize },
    Write { offset: u64, data: Vec<u8> },
    Time { us: u64 },
    Input { bytes: Vec<u8> },
    Memory { gpa: u64, value: u16 },
}

fn any_offset(preferred: Vec<u64>) -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => prop::sample::select(preferred),
        1 => 0..0x200u64,
        1 => prop_oneof![Just(0xfff), Just(u64::MAX), Just(u64::MAX - 3), any::<u64>()],
    ]
}

fn any_data() -> impl Strategy<Value = Vec<u8>> {
    let small = prop::sample::select(vec![
        0u32, 1, 2, 3, 4, 8, 0x10, 0x11, 0x34, 0x38, 0xb0, 0xff,
    ]);
    prop_oneof![
        3 => any::<u8>().prop_map(|b| vec![b]),
        3 => small.prop_map(|v| v.to_le_bytes().to_vec()),
        1 => any::<[u8; 2]>().prop_map(Vec::from),
        2 => any::<[u8; 4]>().prop_map(Vec::from),
        1 => any::<[u8; 8]>().prop_map(Vec::from),
    ]
}

pub(crate) fn any_actions<S: Subject>() -> impl Strategy<Value = Vec<Action>> {
    let us = prop_oneof![0..2_000u64, 0..3_000_000u64, Just(86_400_000_000)];
    let action = prop_oneof![
        3 => (any_offset(S::offsets()), prop::sample::select(vec![1, 2, 4, 8]))
            .prop_map(|(offset, size)| Action::Read { offset, size }),
        6 => (any_offset(S::offsets()), any_data())
            .prop_map(|(offset, data)| Action::Write { offset, data }),
        2 => us.prop_map(|us| Action::Time { us }),
        1 => prop::collection::vec(any::<u8>(), 0..100).prop_map(|bytes| Action::Input { bytes }),
        1 => (0..0x4000u64, any::<u16>()).prop_map(|(gpa, value)| Action::Memory { gpa, value }),
    ];
    prop::collection::vec(action, 0..60)
}

/// Performs `action`; a read's buffer holds `filler` before.
fn perform<S: Subject>(device: &mut S, bench: &mut Bench, action: &Action, filler: u8) -> Vec<u8> {
    match action {
        Action::Read { offset, size } => {
            let mut data = vec![filler; *size];
            device.read(*offset, &mut data, &mut bench.ctx());
            return data;
        }
        Action::Write { offset, data } => device.write(*offset, data, &mut bench.ctx()),
        Action::Time { us } => {
            bench.now = GuestTime::from_micros(bench.now.as_micros() + us);
            device.advance(&mut bench.ctx());
        }
        Action::Input { bytes } => device.input(bytes, &mut bench.ctx()),
        Action::Memory { gpa, value } => {
            let at = GuestAddress(gpa & !1);
            bench.memory.write_obj(*value, at).expect("inside");
        }
    }
    Vec::new()
}

fn worked<S: Subject>(actions: &[Action]) -> (S, Bench) {
    let (mut device, mut bench) = (S::fresh(), Bench::new());
    device.set_up(&mut bench);
    for action in actions {
        perform(&mut device, &mut bench, action, 0);
    }
    (device, bench)
}

/// Save, restore into a fresh device: equal digests, and from there equal behaviour. Reads write
/// every byte, or the different fillers would show.
pub(crate) fn restored_behaves_the_same<S: Subject>(before: &[Action], after: &[Action]) {
    let (mut device, mut bench) = worked::<S>(before);
    let saved = device.save();
    let (mut copy, mut copy_bench) = (S::fresh(), bench.fork());
    copy.restore(&saved).expect("its own state");
    assert_eq!(digest_of(&copy.save()), digest_of(&saved));
    assert_eq!(copy_bench.irq, bench.irq, "restoring drives no line");
    for action in after {
        let ours = perform(&mut device, &mut bench, action, 0xaa);
        let theirs = perform(&mut copy, &mut copy_bench, action, 0x55);
        assert_eq!(ours, theirs, "{action:?}");
        assert_eq!(digest_of(&device.save()), digest_of(&copy.save()));
    }
    assert_eq!(bench.outcome(), copy_bench.outcome());
}

/// Every number, flag and list in the state as JSON, as a path.
fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                leaves(field, &format!("{path}/{name}"), found);
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                leaves(item, &format!("{path}/{at}"), found);
            }
        }
        _ => found.push(path.to_owned()),
    }
}

/// Changes one leaf of the state. `None` when the result is not a state at all.
fn altered<S: Device>(state: &S::State, path: &str, new: &Value) -> Option<S::State> {
    let mut json = serde_json::to_value(state).expect("plain data");
    *json.pointer_mut(path)? = new.clone();
    serde_json::from_value(json).ok()
}

fn leaves_of<S: Device>(state: &S::State) -> Vec<(String, Value)> {
    let json = serde_json::to_value(state).expect("plain data");
    let mut paths = Vec::new();
    leaves(&json, "", &mut paths);
    let value_at = |path: &String| json.pointer(path).cloned().unwrap_or(Value::Null);
    paths.iter().map(|p| (p.clone(), value_at(p))).collect()
}

fn neighbours(value: &Value) -> Vec<Value> {
    match value {
        Value::Bool(flag) => vec![Value::Bool(!flag)],
        Value::Number(number) => {
            let n = number.as_i64().unwrap_or(0);
            // Whatever bits are valid, flipping one of eight changes something that is.
            (0..8).map(|bit| Value::from(n ^ 1 << bit)).collect()
        }
        Value::Null => vec![Value::from(1)],
        _ => Vec::new(),
    }
}

/// No part of the state is ornamental: if a changed state is accepted at all, it is kept as given
/// and has another digest.
pub(crate) fn every_field_counts<S: Subject>(actions: &[Action]) {
    let (device, _) = worked::<S>(actions);
    let saved = device.save();
    for (path, value) in leaves_of::<S>(&saved) {
        for new in neighbours(&value) {
            let Some(state) = altered::<S>(&saved, &path, &new) else {
                continue;
            };
            let mut copy = S::fresh();
            if copy.restore(&state).is_ok() {
                assert_eq!(copy.save(), state, "{path} = {new}");
                assert_ne!(digest_of(&state), digest_of(&saved), "{path} = {new}");
            }
        }
    }
}

/// A state that nobody saved is refused, or the device lives with it.
pub(crate) fn garbage_is_refused_or_survived<S: Subject>(
    before: &[Action],
    pick: usize,
    extreme: i128,
    after: &[Action],
) {
    let (device, mut bench) = worked::<S>(before);
    let saved = device.save();
    let all = leaves_of::<S>(&saved);
    let Some((path, _)) = all.get(pick % all.len().max(1)) else {
        return;
    };
    let as_number = |n: i128| {
        u64::try_from(n)
            .map(Value::from)
            .or_else(|_| i64::try_from(n).map(Value::from))
    };
    let Ok(number) = as_number(extreme) else {
        return;
    };
    let Some(state) = altered::<S>(&saved, path, &number) else {
        return;
    };
    let mut copy = S::fresh();
    if copy.restore(&state).is_ok() {
        for action in after {
            perform(&mut copy, &mut bench, action, 0);
        }
    }
}

/// Numbers at the edges of the integer types.
pub(crate) fn any_extreme() -> impl Strategy<Value = i128> {
    let edges = [8u32, 16, 31, 32, 63, 64].map(|bits| 1i128 << bits);
    let around = edges.into_iter().flat_map(|e| [e - 1, e, -e]);
    prop_oneof![
        prop::sample::select(around.collect::<Vec<_>>()),
        (0..512i128),
    ]
}

/// The suite for one device.
macro_rules! conformance_tests {
    ($subject:ty) => {
        mod conformance {
            #[allow(unused_imports)]
            use super::*;
            use crate::devices::conformance as suite;

            proptest::proptest! {
                #![proptest_config(proptest::prelude::ProptestConfig {
                    cases: 128, ..Default::default()
                })]

                #[test]
                fn restored_behaves_the_same(
                    before in suite::any_actions::<$subject>(),
                    after in suite::any_actions::<$subject>(),
                ) {
                    suite::restored_behaves_the_same::<$subject>(&before, &after);
                }

                #[test]
                fn garbage_is_refused_or_survived(
                    before in suite::any_actions::<$subject>(),
                    pick in 0..10_000usize,
                    extreme in suite::any_extreme(),
                    after in suite::any_actions::<$subject>(),
                ) {
                    suite::garbage_is_refused_or_survived::<$subject>(
                        &before, pick, extreme, &after,
                    );
                }
            }

            proptest::proptest! {
                #![proptest_config(proptest::prelude::ProptestConfig {
                    cases: 16, ..Default::default()
                })]

                #[test]
                fn every_field_counts(actions in suite::any_actions::<$subject>()) {
                    suite::every_field_counts::<$subject>(&actions);
                }
            }
        }
    };
}
pub(crate) use conformance_tests;
