//! A virtio driver for tests: the register sequence of Linux's virtio_mmio and virtio_ring, and ring
//! operations that can also be done wrong.

use super::Function;
use super::mmio::VirtioMmio;
use crate::devices::Device;
use crate::devices::conformance::Bench;
use vm_memory::{Bytes, GuestAddress};

/// Status bits.
pub(crate) const ACKNOWLEDGE: u32 = 1;
pub(crate) const DRIVER: u32 = 2;
pub(crate) const DRIVER_OK: u32 = 4;
pub(crate) const FEATURES_OK: u32 = 8;
pub(crate) const NEEDS_RESET: u32 = 64;

/// Descriptor flags.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;

/// Size of every queue in tests.
pub(crate) const QUEUE_SIZE: u16 = 8;

/// Where queue `index` lives: descriptors, available ring, used ring.
pub(crate) const fn addresses(index: u64) -> [u64; 3] {
    let base = 0x1000 * (index + 1);
    [base, base + 0x200, base + 0x400]
}

/// A descriptor: address, length, flags, next.
pub(crate) type Descriptor = (u64, u32, u16, u16);

/// Writes a 32-bit register.
pub(crate) fn write<F: Function>(
    device: &mut VirtioMmio<F>,
    bench: &mut Bench,
    offset: u64,
    value: u32,
) {
    device.write(offset, &value.to_le_bytes(), &mut bench.ctx());
}

/// Reads a 32-bit register.
pub(crate) fn read<F: Function>(device: &mut VirtioMmio<F>, bench: &mut Bench, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    device.read(offset, &mut bytes, &mut bench.ctx());
    u32::from_le_bytes(bytes)
}

/// virtio_dev_probe() up to FEATURES_OK, accepting everything.
pub(crate) fn negotiate<F: Function>(device: &mut VirtioMmio<F>, bench: &mut Bench) {
    write(device, bench, 0x070, 0);
    write(device, bench, 0x070, ACKNOWLEDGE);
    write(device, bench, 0x070, ACKNOWLEDGE | DRIVER);
    for half in [1, 0] {
        write(device, bench, 0x014, half);
        let offered = read(device, bench, 0x010);
        write(device, bench, 0x024, half);
        write(device, bench, 0x020, offered);
    }
    write(device, bench, 0x070, ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

/// vm_setup_vq().
pub(crate) fn set_up_queue<F: Function>(
    device: &mut VirtioMmio<F>,
    bench: &mut Bench,
    index: u32,
    addresses: [u64; 3],
) {
    write(device, bench, 0x030, index);
    assert_eq!(read(device, bench, 0x044), 0);
    write(device, bench, 0x038, u32::from(QUEUE_SIZE));
    for (offset, gpa) in [0x080, 0x090, 0x0a0].into_iter().zip(addresses) {
        write(device, bench, offset, gpa as u32);
        write(device, bench, offset + 4, (gpa >> 32) as u32);
    }
    write(device, bench, 0x044, 1);
}

/// Everything up to DRIVER_OK.
pub(crate) fn probe<F: Function>(device: &mut VirtioMmio<F>, bench: &mut Bench) {
    negotiate(device, bench);
    for index in 0..device.transport.ring_count() {
        set_up_queue(device, bench, index as u32, addresses(index as u64));
    }
    let status = read(device, bench, 0x070);
    write(device, bench, 0x070, status | DRIVER_OK);
}

/// Writes descriptor `at` of queue `queue`.
pub(crate) fn describe(bench: &Bench, queue: u64, at: u16, descriptor: Descriptor) {
    let (gpa, length, flags, next) = descriptor;
    let to = addresses(queue)[0] + 16 * u64::from(at);
    let m = &bench.memory;
    m.write_obj(gpa, GuestAddress(to)).expect("inside");
    m.write_obj(length, GuestAddress(to + 8)).expect("inside");
    m.write_obj(flags, GuestAddress(to + 12)).expect("inside");
    m.write_obj(next, GuestAddress(to + 14)).expect("inside");
}

/// Makes the chain at `head` available.
pub(crate) fn offer(bench: &Bench, queue: u64, head: u16) {
    let ring = addresses(queue)[1];
    let index: u16 = bench
        .memory
        .read_obj(GuestAddress(ring + 2))
        .expect("inside");
    let slot = ring + 4 + 2 * u64::from(index % QUEUE_SIZE);
    bench
        .memory
        .write_obj(head, GuestAddress(slot))
        .expect("inside");
    bench
        .memory
        .write_obj(index.wrapping_add(1), GuestAddress(ring + 2))
        .expect("inside");
}

/// Used index and the used element before it.
pub(crate) fn last_used(bench: &Bench, queue: u64) -> (u16, u32, u32) {
    let ring = addresses(queue)[2];
    let m = &bench.memory;
    let index: u16 = m.read_obj(GuestAddress(ring + 2)).expect("inside");
    let slot = ring + 4 + 8 * u64::from(index.wrapping_sub(1) % QUEUE_SIZE);
    (
        index,
        m.read_obj(GuestAddress(slot)).expect("inside"),
        m.read_obj(GuestAddress(slot + 4)).expect("inside"),
    )
}

/// Registers that random accesses should hit often.
pub(crate) fn registers() -> Vec<u64> {
    vec![
        0x000, 0x004, 0x010, 0x014, 0x020, 0x024, 0x030, 0x034, 0x038, 0x044, 0x050, 0x050, 0x050,
        0x060, 0x064, 0x070, 0x080, 0x084, 0x090, 0x094, 0x0a0, 0x0a4, 0x0b0, 0x0fc, 0x100, 0x106,
    ]
}
