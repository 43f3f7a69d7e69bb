//! Bytes as what an unfriendly guest does to its devices: accesses, memory writes, time, input. Two
//! machines with the same history stay equal, though one of them is saved and restored on the way.
#![no_main]

use logging_channel::host_time::GuestTime;
use vm_memory::{Bytes, GuestAddress};
use vmm::devices::ram::GuestRam;
use vmm::devices::Effect;
use vmm::machine::exit::{Answer, VmExit};
use vmm::machine::input::Input;
use vmm::machine::{Handled, Machine, MachineConfig, layout};

const MEMORY_BYTES: usize = 0x1_0000;
const STEPS_MAX: usize = 512;
const CONFIG: MachineConfig = MachineConfig {
    mac: [2, 0, 0, 0, 0, 1],
    wall_clock_s: 1_760_000_000,
};

enum Step {
    Exit(VmExit),
    Memory { gpa: u64, value: u32 },
    Apply { us: u64, input: Input },
    Interrupt,
    Restore,
}

/// The next step; fields come from fixed places, so that mutations stay local.
fn step(bytes: &mut &[u8]) -> Option<Step> {
    let ([op, size, b0, b1, b2, b3, b4, b5], rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    let low = u16::from_le_bytes([*b0, *b1]);
    let value = [*b2, *b3, *b4, *b5];
    let word = u32::from_le_bytes(value);
    let size = 1u8 << (size % 3);
    let window = layout::NET_MMIO + u64::from(low % 0x1200);
    let some = |byte: u8| vec![byte; usize::from(*b3)];
    Some(match op % 12 {
        0 => Step::Exit(VmExit::PortRead {
            port: low,
            size,
            count: 1 + u32::from(*b2 % 4),
        }),
        1 | 2 => Step::Exit(VmExit::PortWrite {
            port: low,
            size,
            data: value[..size as usize].to_vec(),
        }),
        3 => Step::Exit(VmExit::MmioRead {
            gpa: window,
            length: size,
        }),
        4..=6 => Step::Exit(VmExit::MmioWrite {
            gpa: window & !3,
            data: value.to_vec(),
        }),
        7 => Step::Memory {
            gpa: u64::from(low),
            value: word,
        },
        8 => Step::Apply {
            us: u64::from(word),
            input: Input::Timer,
        },
        9 => {
            let input = match b2 % 3 {
                0 => Input::Console(some(*b4)),
                1 => Input::Packet {
                    device: 0,
                    bytes: some(*b4),
                },
                _ => Input::Entropy(some(*b4)),
            };
            Step::Apply {
                us: u64::from(low),
                input,
            }
        }
        10 => Step::Exit(VmExit::MsrWrite {
            index: 0x4b56_4d00 + u32::from(b2 & 1),
            value: u64::from(low),
        }),
        _ if b2 & 1 == 0 => Step::Interrupt,
        _ => Step::Restore,
    })
}

fn machine() -> Machine {
    let memory = GuestRam::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]);
    Machine::new(&CONFIG, memory.expect("a small mapping"))
}

fn perform(machine: &mut Machine, step: &Step) -> (Option<Handled>, Vec<Effect>, Option<u8>) {
    match step {
        Step::Exit(exit) => {
            let handled = machine.handle(exit);
            match (exit, &handled.answer) {
                (VmExit::PortRead { size, count, .. }, Answer::Data(data)) => {
                    assert_eq!(data.len(), usize::from(*size) * *count as usize);
                }
                (VmExit::MmioRead { length, .. }, Answer::Data(data)) => {
                    assert_eq!(data.len(), usize::from(*length));
                }
                (VmExit::PortRead { .. } | VmExit::MmioRead { .. }, other) => panic!("{other:?}"),
                _ => {}
            }
            return (Some(handled), Vec::new(), None);
        }
        Step::Memory { gpa, value } => {
            let _ = machine.memory().write_obj(*value, GuestAddress(*gpa));
        }
        Step::Apply { us, input } => {
            let time = GuestTime::from_micros(machine.now().as_micros() + us);
            return (None, machine.apply(time, input), None);
        }
        Step::Interrupt => {
            let vector = machine.pending_interrupt();
            if vector.is_some() {
                assert_eq!(Some(machine.acknowledge_interrupt()), vector);
            }
            return (None, Vec::new(), vector);
        }
        Step::Restore => {}
    }
    (None, Vec::new(), None)
}

fn memory_of(machine: &Machine) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY_BYTES];
    machine
        .memory()
        .read_slice(&mut bytes, GuestAddress(0))
        .expect("all of it");
    bytes
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (mut ours, mut theirs) = (machine(), machine());
    let mut rest = data;
    for _ in 0..STEPS_MAX {
        let Some(step) = step(&mut rest) else { break };
        assert_eq!(perform(&mut ours, &step), perform(&mut theirs, &step));
        if matches!(step, Step::Restore) {
            let state = theirs.save();
            theirs = Machine::new(&CONFIG, theirs.memory().clone());
            theirs.restore(&state).expect("its own state");
        }
    }
    assert_eq!(ours.digest().first_difference(&theirs.digest()), None);
    assert_eq!(ours.next_deadline(), theirs.next_deadline());
    assert!(memory_of(&ours) == memory_of(&theirs));
});
