//! Addresses and interrupt lines of the guest's machine, checked at compile time.
//!
//! The map is that of a bare PC without ACPI: RAM from 0 with the usual hole below 1 MiB, ISA
//! ports, virtio-mmio windows above RAM's ceiling. The kernel learns of the virtio devices from its
//! command line (`virtio_mmio.device=`).

#![forbid(unsafe_code)]

/// Smallest guest memory, MiB.
pub const MEMORY_MIB_MIN: u64 = 32;
/// Largest guest memory, MiB: RAM stays below the virtio windows.
pub const MEMORY_MIB_MAX: u64 = 3_072;

/// End of conventional memory reported to the guest.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// Start of extended memory.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// Boot-time GDT.
pub const BOOT_GDT: u64 = 0x500;
/// Zero page (boot_params).
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Initial page tables: PML4, PDPT, four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// setup_data list (RNG seed).
pub const SETUP_DATA: u64 = 0x1_0000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line with its terminating zero.
pub const CMDLINE_BYTES_MAX: usize = 4_096;

/// Three pages KVM needs for itself, out of the guest's way (KVM_SET_TSS_ADDR).
pub const KVM_TSS: u64 = 0xfffb_d000;

/// Power-off port, where PIIX4 chipsets have their PM1a control register. Our guest kernel
/// (`guest-images/kernel/patches/0004`) writes [`POWER_OFF_VALUE`] there, 16 bits wide.
pub const POWER_OFF_PORT: u16 = 0x604;
/// Sleep enable with sleep type 0 (soft off).
pub const POWER_OFF_VALUE: u16 = 0x2000;

/// First virtio-mmio window.
pub const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
/// Size of each window.
pub const VIRTIO_MMIO_STRIDE: u64 = 0x1000;

/// 8254 channel 0.
pub const IRQ_PIT: u8 = 0;
/// The cascaded 8259.
pub const IRQ_CASCADE: u8 = 2;
/// First serial port.
pub const IRQ_SERIAL: u8 = 4;
/// RTC.
pub const IRQ_RTC: u8 = 8;
/// virtio-net.
pub const IRQ_NET: u8 = 5;
/// virtio-rng.
pub const IRQ_RNG: u8 = 10;
/// virtio-blk.
pub const IRQ_BLOCK: u8 = 11;

/// virtio-net window.
pub const NET_MMIO: u64 = VIRTIO_MMIO_BASE;
/// virtio-rng window.
pub const RNG_MMIO: u64 = VIRTIO_MMIO_BASE + VIRTIO_MMIO_STRIDE;

const _: () = {
    assert!(MEMORY_MIB_MAX << 20 <= VIRTIO_MMIO_BASE);
    assert!(PAGE_TABLES + 6 * 0x1000 <= SETUP_DATA);
    assert!(CMDLINE + CMDLINE_BYTES_MAX as u64 <= LOW_RAM_END);
};

/// The part of the kernel command line that tells Linux where the virtio devices are.
#[must_use]
pub fn virtio_cmdline() -> String {
    let devices = [(NET_MMIO, IRQ_NET), (RNG_MMIO, IRQ_RNG)];
    devices
        .map(|(gpa, irq)| format!("virtio_mmio.device=4K@{gpa:#x}:{irq}"))
        .join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn linux_is_told_of_both_devices() {
        assert_eq!(
            super::virtio_cmdline(),
            "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:10"
        );
    }
}
