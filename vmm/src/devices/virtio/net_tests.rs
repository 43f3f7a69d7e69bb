//! Tests of the network device and, through it, of the transport and the chains.

use super::super::mock_driver::{
    self as driver, ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, NEXT, QUEUE_SIZE,
    WRITE,
};
use super::*;
use crate::devices::Device;
use crate::devices::conformance::{Bench, Subject, conformance_tests};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

type NetDevice = VirtioMmio<Net>;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const RX: u64 = RECEIVE_QUEUE as u64;
const TX: u64 = TRANSMIT_QUEUE as u64;

impl Subject for NetDevice {
    fn fresh() -> Self {
        Self::new(Net::new(0, MAC), 5)
    }

    fn offsets() -> Vec<u64> {
        driver::registers()
    }

    fn set_up(&mut self, bench: &mut Bench) {
        driver::probe(self, bench);
        for at in 0..QUEUE_SIZE {
            let buffer = 0x8000 + 0x800 * u64::from(at);
            driver::describe(bench, RX, at, (buffer, 0x600, WRITE, 0));
            driver::offer(bench, RX, at);
            driver::describe(bench, TX, at, (buffer, 60, 0, 0));
            driver::offer(bench, TX, at);
        }
    }

    fn input(&mut self, bytes: &[u8], ctx: &mut DeviceContext<'_>) {
        self.receive(bytes, ctx);
    }
}

conformance_tests!(NetDevice);

fn live() -> (NetDevice, Bench) {
    let (mut net, mut bench) = (NetDevice::fresh(), Bench::new());
    driver::probe(&mut net, &mut bench);
    (net, bench)
}

fn notify(net: &mut NetDevice, bench: &mut Bench) {
    driver::write(net, bench, 0x050, TX as u32);
}

fn status(net: &mut NetDevice, bench: &mut Bench) -> u32 {
    driver::read(net, bench, 0x070)
}

#[test]
fn linux_probes_it() {
    let (mut net, mut bench) = (NetDevice::fresh(), Bench::new());
    let identity = [0x000, 0x004, 0x008].map(|at| driver::read(&mut net, &mut bench, at));
    assert_eq!(identity, [0x7472_6976, 2, 1]);
    driver::probe(&mut net, &mut bench);
    assert_eq!(
        status(&mut net, &mut bench),
        ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
    );
    let mut mac = [0; 6];
    for (at, byte) in mac.iter_mut().enumerate() {
        net.read(
            0x100 + at as u64,
            std::slice::from_mut(byte),
            &mut bench.ctx(),
        );
    }
    assert_eq!(mac, MAC);
    let mut link = [0; 2];
    net.read(0x106, &mut link, &mut bench.ctx());
    assert_eq!(link, [1, 0]);
    assert_eq!(net.misuse(), crate::devices::Misuse::default());
}

#[test]
fn features_that_were_not_offered_are_refused() {
    // Without VERSION_1, and with a bit that nobody offered.
    for (low, high) in [(0, 0), (1 << 5 | 1, 1)] {
        let (mut net, mut bench) = (NetDevice::fresh(), Bench::new());
        let mut write = |offset, value| driver::write(&mut net, &mut bench, offset, value);
        write(0x070, ACKNOWLEDGE | DRIVER);
        write(0x024, 0);
        write(0x020, low);
        write(0x024, 1);
        write(0x020, high);
        write(0x070, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(status(&mut net, &mut bench), ACKNOWLEDGE | DRIVER);
    }
}

#[test]
fn driver_ok_before_features_ok_breaks_the_device() {
    let (mut net, mut bench) = (NetDevice::fresh(), Bench::new());
    driver::write(
        &mut net,
        &mut bench,
        0x070,
        ACKNOWLEDGE | DRIVER | DRIVER_OK,
    );
    assert_ne!(status(&mut net, &mut bench) & NEEDS_RESET, 0);
    driver::write(&mut net, &mut bench, 0x070, 0);
    assert_eq!(status(&mut net, &mut bench), 0, "a reset mends it");
}

#[test]
fn a_frame_leaves() {
    let (mut net, mut bench) = live();
    let frame: Vec<u8> = (0..64).collect();
    bench
        .memory
        .write_slice(&frame, GuestAddress(0x9000))
        .expect("inside");
    driver::describe(&bench, TX, 0, (0x8000, 12, NEXT, 3));
    driver::describe(&bench, TX, 3, (0x9000, 40, NEXT, 1));
    driver::describe(&bench, TX, 1, (0x9028, 24, 0, 0));
    driver::offer(&bench, TX, 0);
    notify(&mut net, &mut bench);
    let sent = Effect::Transmit {
        device: 0,
        bytes: frame,
    };
    assert_eq!(bench.effects, [sent]);
    assert_eq!(driver::last_used(&bench, TX), (1, 0, 0));
    assert_eq!(bench.irq.levels(), 1 << 5);
    assert_eq!(driver::read(&mut net, &mut bench, 0x060), 1);
    driver::write(&mut net, &mut bench, 0x064, 1);
    assert_eq!(bench.irq.levels(), 0);
}

#[test]
fn interrupts_can_be_suppressed() {
    let (mut net, mut bench) = live();
    let flags = GuestAddress(driver::addresses(TX)[1]);
    bench.memory.write_obj(1u16, flags).expect("inside");
    driver::describe(&bench, TX, 0, (0x8000, 60, 0, 0));
    driver::offer(&bench, TX, 0);
    notify(&mut net, &mut bench);
    assert_eq!(bench.effects.len(), 1);
    assert_eq!(bench.irq.levels(), 0);
}

#[test]
fn a_frame_arrives() {
    let (mut net, mut bench) = live();
    assert!(!net.can_receive(&bench.memory));
    driver::describe(&bench, RX, 2, (0x8000, 0x100, WRITE, 0));
    driver::offer(&bench, RX, 2);
    assert!(net.can_receive(&bench.memory));
    net.receive(&[0xab; 60], &mut bench.ctx());
    assert_eq!(driver::last_used(&bench, RX), (1, 2, 72));
    let bytes = bench.memory_bytes();
    assert_eq!(bytes[0x8000..0x800c], RECEIVE_HEADER);
    assert_eq!(bytes[0x800c..0x8048], [0xab; 60]);
    assert_eq!(bytes[0x8048], 0);
    assert_eq!(bench.irq.levels(), 1 << 5);
    assert!(!net.can_receive(&bench.memory));
}

#[test]
fn a_frame_without_room_is_dropped_and_the_buffer_stays() {
    let (mut net, mut bench) = live();
    driver::describe(&bench, RX, 0, (0x8000, 40, WRITE, 0));
    driver::offer(&bench, RX, 0);
    net.receive(&[1; 60], &mut bench.ctx());
    assert_eq!(net.misuse().dropped_receive, 1);
    net.receive(&[1; 20], &mut bench.ctx());
    assert_eq!(driver::last_used(&bench, RX), (1, 0, 32));
}

#[test]
fn frames_too_short_or_too_long_come_back_unsent() {
    let (mut net, mut bench) = live();
    for (at, length) in [(0, 0), (1, 11), (2, 25)] {
        driver::describe(&bench, TX, at, (0x8000, length, 0, 0));
        driver::offer(&bench, TX, at);
    }
    // Longer than a frame can be: the same 32 KiB three times.
    driver::describe(&bench, TX, 3, (0x8000, 0x8000, NEXT, 4));
    driver::describe(&bench, TX, 4, (0x8000, 0x8000, NEXT, 5));
    driver::describe(&bench, TX, 5, (0x8000, 0x8000, 0, 0));
    driver::offer(&bench, TX, 3);
    notify(&mut net, &mut bench);
    assert_eq!(bench.effects, []);
    assert_eq!(net.misuse().bad_frame, 4);
    assert_eq!(driver::last_used(&bench, TX), (4, 3, 0));
    assert!(net.transport.is_live(), "the driver may go on");
}

#[test]
fn broken_chains_need_a_reset() {
    let broken: [&[driver::Descriptor]; 6] = [
        // A loop.
        &[(0x8000, 16, NEXT, 1), (0x8000, 16, NEXT, 0)],
        // Outside the table.
        &[(0x8000, 16, NEXT, QUEUE_SIZE)],
        // Outside memory.
        &[(Bench::MEMORY_BYTES as u64 - 8, 60, 0, 0)],
        // Around the end of the address space.
        &[(u64::MAX - 8, 60, 0, 0)],
        // Only the device may write: wrong for transmission.
        &[(0x8000, 60, WRITE, 0)],
        // An indirect table, which was not negotiated.
        &[(0x8000, 64, 4, 0)],
    ];
    for chain in broken {
        let (mut net, mut bench) = live();
        for (at, descriptor) in (0..).zip(chain) {
            driver::describe(&bench, TX, at, *descriptor);
        }
        driver::offer(&bench, TX, 0);
        notify(&mut net, &mut bench);
        assert_eq!(net.misuse().bad_chain, 1, "{chain:x?}");
        assert_ne!(status(&mut net, &mut bench) & NEEDS_RESET, 0);
        assert_eq!(driver::read(&mut net, &mut bench, 0x060), 2, "told so");
        let before = bench.memory_bytes();
        notify(&mut net, &mut bench);
        net.receive(&[0; 60], &mut bench.ctx());
        assert!(bench.memory_bytes() == before, "touches nothing any more");
        driver::probe(&mut net, &mut bench);
        assert!(net.transport.is_live(), "a reset mends it");
    }
}

#[test]
fn an_available_index_too_far_ahead_breaks_the_queue() {
    let (mut net, mut bench) = live();
    let index = GuestAddress(driver::addresses(TX)[1] + 2);
    bench
        .memory
        .write_obj(QUEUE_SIZE + 1, index)
        .expect("inside");
    notify(&mut net, &mut bench);
    assert_eq!(net.misuse().bad_queue, 1);
    assert_ne!(status(&mut net, &mut bench) & NEEDS_RESET, 0);
}

#[test]
fn bad_queue_addresses_are_refused() {
    let end = Bench::MEMORY_BYTES as u64;
    for addresses in [
        [0x1008, 0x1200, 0x1400],
        [0x1000, 0x1201, 0x1400],
        [0x1000, 0x1200, 0x1402],
        [end - 0x10, 0x1200, 0x1400],
        [0x1000, end - 2, 0x1400],
        [0x1000, 0x1200, end],
        [u64::MAX << 4, 0x1200, 0x1400],
    ] {
        let (mut net, mut bench) = (NetDevice::fresh(), Bench::new());
        driver::negotiate(&mut net, &mut bench);
        driver::set_up_queue(&mut net, &mut bench, 0, addresses);
        assert_eq!(
            driver::read(&mut net, &mut bench, 0x044),
            0,
            "{addresses:x?}"
        );
        assert_eq!(net.misuse().bad_queue, 1);
        assert_ne!(status(&mut net, &mut bench) & NEEDS_RESET, 0);
    }
}

#[test]
fn queues_that_do_not_exist_or_are_set_up_late() {
    let (mut net, mut bench) = live();
    driver::write(&mut net, &mut bench, 0x030, 7);
    assert_eq!(driver::read(&mut net, &mut bench, 0x034), 0);
    for (offset, value) in [(0x038, 4), (0x044, 1), (0x050, 7)] {
        driver::write(&mut net, &mut bench, offset, value);
    }
    driver::write(&mut net, &mut bench, 0x030, 0);
    driver::write(&mut net, &mut bench, 0x080, 0x2000);
    assert_eq!(net.misuse().bad_queue, 4);
    assert!(net.transport.is_live());
}

fn any_descriptor() -> impl Strategy<Value = driver::Descriptor> {
    let gpa = prop_oneof![
        4 => 0x8000..0xf000u64,
        // The rings themselves, and outside memory.
        1 => 0x1000..0x2800u64,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![4 => 0..2_000u32, 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0..4u16, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..QUEUE_SIZE, 1 => any::<u16>()];
    (gpa, length, flags, next)
}

proptest! {
    /// Whatever is in the rings: no panic, at most a queue's worth of frames per notification, each
    /// within limits, and a device that needs a reset says why.
    #[test]
    fn any_rings_at_all(
        descriptors in prop::collection::vec(any_descriptor(), usize::from(QUEUE_SIZE)),
        heads in prop::collection::vec(0..QUEUE_SIZE + 1, 0..10),
        queue in 0..2u64,
        frame in prop::collection::vec(any::<u8>(), 0..1_600),
    ) {
        let (mut net, mut bench) = live();
        for (at, descriptor) in (0..).zip(&descriptors) {
            driver::describe(&bench, queue, at, *descriptor);
        }
        for head in heads {
            driver::offer(&bench, queue, head);
        }
        notify(&mut net, &mut bench);
        net.receive(&frame, &mut bench.ctx());
        prop_assert!(bench.effects.len() <= usize::from(QUEUE_SIZE));
        for effect in &bench.effects {
            let Effect::Transmit { bytes, .. } = effect else {
                panic!("a network device only sends");
            };
            prop_assert!((FRAME_BYTES_MIN..=PACKET_BYTES_MAX).contains(&bytes.len()));
        }
        let misuse = net.misuse();
        let broken = status(&mut net, &mut bench) & NEEDS_RESET != 0;
        prop_assert_eq!(broken, misuse.bad_chain + misuse.bad_queue > 0);
    }
}
