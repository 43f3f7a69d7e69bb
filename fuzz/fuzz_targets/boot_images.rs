//! Bytes as a kernel image and an initramfs: an error with a reason, or a guest that is laid out inside
//! its memory. Never a panic, never memory beyond the limits, whatever sizes the images state.
#![no_main]

use vmm::devices::ram::GuestRam;
use vmm::boot::{self, BootSource, cmdline};
use vmm::kvm::guest_memory::{self, Backing};

/// The smallest guest that the configuration allows.
const MEMORY_MIB: u64 = 32;

libfuzzer_sys::fuzz_target!(
    init: { memory(); },
    |bytes: &[u8]| {
        // The first two bytes say how long the initramfs is, which then stands at the end.
        let Some((head, images)) = bytes.split_first_chunk::<2>() else { return };
        let initramfs_bytes = usize::from(u16::from_le_bytes(*head)).min(images.len());
        let (kernel, initramfs) = images.split_at(images.len() - initramfs_bytes);
        let Ok(line) = cmdline::compose(&cmdline::STANDARD_DEVICES, "") else { return };
        let source = BootSource { kernel, initramfs, cmdline: &line, rng_seed: &[7; 32] };
        match boot::prepare(memory(), &source) {
            Ok(cpu) => assert!(cpu.general.rip < MEMORY_MIB << 20, "entered outside memory"),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
);

fn memory() -> &'static GuestRam {
    static MEMORY: std::sync::OnceLock<GuestRam> = std::sync::OnceLock::new();
    MEMORY.get_or_init(|| {
        let backing = Backing { populate: false, lock: false };
        guest_memory::allocate(MEMORY_MIB, backing).expect("32 MiB")
    })
}
