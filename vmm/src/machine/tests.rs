//! The machine as Linux uses it, and as an unfriendly guest does.

use super::exit::{Answer, VmExit};
use super::input::Input;
use super::{Handled, Machine, MachineConfig, layout, pvclock};
use crate::devices::Effect;
use crate::devices::ram::GuestRam;
use logging_channel::host_time::GuestTime;
use logging_channel::record::EndReason;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

const MEMORY_BYTES: usize = 0x4_0000;
const CONFIG: MachineConfig = MachineConfig {
    mac: [2, 0, 0, 0, 0, 1],
    wall_clock_s: 1_760_000_000,
};

fn machine() -> Machine {
    let memory = GuestRam::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]);
    Machine::new(&CONFIG, memory.expect("a small mapping"))
}

fn out(machine: &mut Machine, port: u16, value: u8) -> Handled {
    machine.handle(&VmExit::PortWrite {
        port,
        size: 1,
        data: vec![value],
    })
}

fn port_in(machine: &mut Machine, port: u16, size: u8, count: u32) -> Vec<u8> {
    match machine
        .handle(&VmExit::PortRead { port, size, count })
        .answer
    {
        Answer::Data(data) => data,
        other => panic!("a read is answered with data, not {other:?}"),
    }
}

/// init_8259A(), all lines unmasked.
fn initialise_pic(machine: &mut Machine) {
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x30),
        (0x21, 0x04),
        (0x21, 0x01),
        (0xa0, 0x11),
        (0xa1, 0x38),
        (0xa1, 0x02),
        (0xa1, 0x01),
    ] {
        out(machine, port, value);
    }
}

#[test]
fn the_timer_ticks_through_the_controllers() {
    let mut machine = machine();
    initialise_pic(&mut machine);
    for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        out(&mut machine, port, value);
    }
    assert_eq!(machine.pending_interrupt(), None);
    let due = machine.next_deadline().expect("periodic");
    assert_eq!(due, GuestTime::from_micros(10_001));
    machine.apply(due, &Input::Timer);
    assert_eq!(machine.now(), due);
    assert_eq!(machine.pending_interrupt(), Some(0x30));
    assert_eq!(machine.acknowledge_interrupt(), 0x30);
    assert_eq!(machine.pending_interrupt(), None);
    out(&mut machine, 0x20, 0x60);
    assert!(machine.next_deadline() > Some(due));
}

#[test]
fn time_never_goes_back() {
    let mut machine = machine();
    machine.set_time(GuestTime::from_micros(10));
    machine.set_time(GuestTime::from_micros(3));
    assert_eq!(machine.now(), GuestTime::from_micros(10));
}

#[test]
fn console_both_ways() {
    let mut machine = machine();
    initialise_pic(&mut machine);
    out(&mut machine, 0x3fc, 0x0b);
    out(&mut machine, 0x3f9, 0x01);
    let said = machine.handle(&VmExit::PortWrite {
        port: 0x3f8,
        size: 1,
        data: b"hi".to_vec(),
    });
    assert_eq!(said.effects, [Effect::Console(b'h'), Effect::Console(b'i')]);
    let typed = Input::Console(b"ls\n".to_vec());
    assert!(machine.accepts(&typed));
    machine.apply(GuestTime::from_micros(1), &typed);
    assert_eq!(machine.pending_interrupt(), Some(0x34));
    assert_eq!(port_in(&mut machine, 0x3f8, 1, 3), b"ls\n", "INS");
}

#[test]
fn wide_accesses_are_split_and_unclaimed_ports_float() {
    let mut machine = machine();
    assert_eq!(port_in(&mut machine, 0x2f8, 4, 2), [0xff; 8]);
    // Index and data of the RTC in one write, as the ISA bus would deliver it.
    machine.handle(&VmExit::PortWrite {
        port: 0x70,
        size: 2,
        data: vec![0x0f, 0x5a],
    });
    assert_eq!(port_in(&mut machine, 0x70, 2, 1), [0xff, 0x5a]);
    assert_eq!(port_in(&mut machine, 0xffff, 4, 1), [0xff; 4]);
    let unclaimed = machine.handle(&VmExit::MmioRead {
        gpa: 0xfee0_0030,
        length: 8,
    });
    assert_eq!(unclaimed.answer, Answer::Data(vec![0xff; 8]));
}

#[test]
fn the_guest_ends() {
    let power_off = VmExit::PortWrite {
        port: layout::POWER_OFF_PORT,
        size: 2,
        data: layout::POWER_OFF_VALUE.to_le_bytes().to_vec(),
    };
    assert_eq!(machine().handle(&power_off).end, Some(EndReason::PowerOff));
    assert_eq!(out(&mut machine(), 0xf4, 0).end, Some(EndReason::PowerOff));
    assert_eq!(out(&mut machine(), 0x64, 0xfe).end, Some(EndReason::Reset));
    let shutdown = machine().handle(&VmExit::Shutdown);
    assert_eq!(shutdown.end, Some(EndReason::Crash));
    let halt = machine().handle(&VmExit::Halt);
    assert!(halt.halted && halt.end.is_none());
}

#[test]
fn registers_of_the_clock_and_others() {
    let mut machine = machine();
    machine.set_time(GuestTime::from_micros(2));
    let mut write = |index, value| machine.handle(&VmExit::MsrWrite { index, value }).answer;
    assert_eq!(write(pvclock::MSR_SYSTEM_TIME, 0x1001), Answer::None);
    assert_eq!(
        write(pvclock::MSR_SYSTEM_TIME, 1 << 40 | 1),
        Answer::MsrFault
    );
    assert_eq!(write(0x10, 5), Answer::None);
    assert_eq!(write(0xdead, 5), Answer::MsrFault);
    let shown = |machine: &Machine| machine.memory().read_obj::<u64>(GuestAddress(0x1010));
    assert_eq!(shown(&machine).expect("inside"), 2_000);
    machine.set_time(GuestTime::from_micros(9));
    assert_eq!(shown(&machine).expect("inside"), 9_000);
    let mut read = |index| machine.handle(&VmExit::MsrRead { index }).answer;
    assert_eq!(read(pvclock::MSR_SYSTEM_TIME), Answer::Msr(0x1001));
    assert_eq!(read(0x10), Answer::Msr(9_000));
    assert_eq!(read(0xdead), Answer::MsrFault);
}

#[test]
fn packets_without_a_driver_are_dropped() {
    let mut machine = machine();
    for device in [0, 1] {
        let bytes = vec![0; 60];
        let packet = Input::Packet { device, bytes };
        assert_eq!(machine.accepts(&packet), device == 0);
        machine.apply(GuestTime::ZERO, &packet);
    }
    assert!(!machine.accepts(&Input::Entropy(vec![1])));
    let misuse = machine.misuse().map(|(name, m)| (name, m.dropped_receive));
    assert!(misuse.contains(&("net", 1)));
}

#[test]
fn a_clock_page_outside_memory_is_not_restored() {
    let mut ours = machine();
    let enable = VmExit::MsrWrite {
        index: pvclock::MSR_SYSTEM_TIME,
        value: MEMORY_BYTES as u64 - 0xfff,
    };
    assert_eq!(ours.handle(&enable).answer, Answer::None);
    let memory = GuestRam::from_ranges(&[(GuestAddress(0), MEMORY_BYTES / 2)]);
    let mut smaller = Machine::new(&CONFIG, memory.expect("a small mapping"));
    let refused = smaller.restore(&ours.save()).expect_err("no such page");
    assert_eq!(refused.device, "clock");
}

#[test]
fn a_difference_is_named() {
    let (ours, mut theirs) = (machine(), machine());
    assert_eq!(ours.digest().combined(), theirs.digest().combined());
    out(&mut theirs, 0x3ff, 0x77);
    let (ours, theirs) = (ours.digest(), theirs.digest());
    assert_eq!(ours.first_difference(&theirs), Some("serial"));
    assert_ne!(ours.combined(), theirs.combined());
}

#[derive(Debug, Clone)]
enum Step {
    Exit(VmExit),
    Input(u64, Input),
    Interrupt,
}

fn any_port() -> impl Strategy<Value = u16> {
    let chips = [
        0x20..0x22,
        0x40..0x44,
        0x60..0x65,
        0x70..0x72,
        0xa0..0xa2,
        0x3f8..0x400,
        0x4d0..0x4d2,
    ];
    let claimed: Vec<u16> = chips.into_iter().flatten().collect();
    prop_oneof![9 => prop::sample::select(claimed), 1 => any::<u16>()]
}

fn any_gpa() -> impl Strategy<Value = u64> {
    let window = layout::NET_MMIO..layout::RNG_MMIO + 0x200;
    prop_oneof![4 => window.prop_map(|gpa| gpa & !3), 1 => any::<u64>()]
}

fn any_exit() -> impl Strategy<Value = VmExit> {
    let size = || prop::sample::select(vec![1u8, 2, 4]);
    let bytes = || prop::collection::vec(any::<u8>(), 1..9);
    let msr = prop::sample::select(vec![
        pvclock::MSR_WALL_CLOCK,
        pvclock::MSR_SYSTEM_TIME,
        0x10,
    ]);
    prop_oneof![
        3 => (any_port(), size(), 1..4u32)
            .prop_map(|(port, size, count)| VmExit::PortRead { port, size, count }),
        5 => (any_port(), size(), 1..3usize, any::<[u8; 8]>()).prop_map(|(port, size, count, b)| {
            let data = b[..count * usize::from(size)].to_vec();
            VmExit::PortWrite { port, size, data }
        }),
        2 => (any_gpa(), 1..9u8).prop_map(|(gpa, length)| VmExit::MmioRead { gpa, length }),
        3 => (any_gpa(), bytes()).prop_map(|(gpa, data)| VmExit::MmioWrite { gpa, data }),
        1 => (msr, any::<u64>()).prop_map(|(index, v)| {
            VmExit::MsrWrite { index, value: v % (MEMORY_BYTES as u64 + 8) }
        }),
        1 => any::<u32>().prop_map(|index| VmExit::MsrRead { index }),
        1 => Just(VmExit::Halt),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..80);
    let input = prop_oneof![
        Just(Input::Timer),
        bytes().prop_map(Input::Console),
        bytes().prop_map(Input::Entropy),
        (0..2u8, bytes()).prop_map(|(device, bytes)| Input::Packet { device, bytes }),
    ];
    prop_oneof![
        6 => any_exit().prop_map(Step::Exit),
        2 => (0..2_000_000u64, input).prop_map(|(us, input)| Step::Input(us, input)),
        1 => Just(Step::Interrupt),
    ]
}

fn perform(machine: &mut Machine, step: &Step) -> (Option<Handled>, Vec<Effect>, Option<u8>) {
    match step {
        Step::Exit(exit) => (Some(machine.handle(exit)), Vec::new(), None),
        Step::Input(us, input) => {
            let time = GuestTime::from_micros(machine.now().as_micros() + us);
            (None, machine.apply(time, input), None)
        }
        Step::Interrupt => {
            let vector = machine.pending_interrupt();
            if vector.is_some() {
                assert_eq!(Some(machine.acknowledge_interrupt()), vector);
            }
            (None, Vec::new(), vector)
        }
    }
}

fn answers_what_was_asked(exit: &VmExit, answer: &Answer) -> bool {
    match (exit, answer) {
        (VmExit::PortRead { size, count, .. }, Answer::Data(data)) => {
            data.len() == usize::from(*size) * *count as usize
        }
        (VmExit::MmioRead { length, .. }, Answer::Data(data)) => data.len() == usize::from(*length),
        (VmExit::MsrRead { .. }, Answer::Msr(_) | Answer::MsrFault) => true,
        (VmExit::MsrWrite { .. }, Answer::None | Answer::MsrFault) => true,
        (VmExit::PortWrite { .. } | VmExit::MmioWrite { .. } | VmExit::Halt, answer) => {
            *answer == Answer::None
        }
        _ => false,
    }
}

fn memory_of(machine: &Machine) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY_BYTES];
    let all = machine.memory().read_slice(&mut bytes, GuestAddress(0));
    all.expect("all of it");
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..Default::default() })]

    /// What recording and replay rest on: equal exits and inputs make equal machines. One of the two
    /// is saved and restored in the middle.
    #[test]
    fn equal_histories_make_equal_machines(
        before in prop::collection::vec(any_step(), 0..40),
        after in prop::collection::vec(any_step(), 0..40),
    ) {
        let (mut ours, mut theirs) = (machine(), machine());
        for step in &before {
            prop_assert_eq!(perform(&mut ours, step), perform(&mut theirs, step));
        }
        let mut restored = Machine::new(&CONFIG, theirs.memory().clone());
        restored.restore(&theirs.save()).expect("its own state");
        for step in &after {
            let handled = perform(&mut ours, step);
            if let (Step::Exit(exit), (Some(handled), ..)) = (step, &handled) {
                prop_assert!(answers_what_was_asked(exit, &handled.answer));
            }
            prop_assert_eq!(handled, perform(&mut restored, step));
            prop_assert_eq!(ours.digest().first_difference(&restored.digest()), None);
        }
        prop_assert_eq!(ours.next_deadline(), restored.next_deadline());
        prop_assert!(memory_of(&ours) == memory_of(&restored));
    }
}
