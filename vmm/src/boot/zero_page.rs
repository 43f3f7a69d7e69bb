//! The zero page (`struct boot_params`) and what it points to.
//!
//! Source: Documentation/x86/boot.rst and zero-page.rst. The memory map has the conventional RAM
//! below 640 KiB and everything from 1 MiB up; the space between is neither RAM nor device for the
//! guest. The random seed travels as a setup_data entry of type 9 (SETUP_RNG_SEED), which Linux
//! credits when `random.trust_bootloader=on`.

#![forbid(unsafe_code)]

use super::BootError;
use super::initramfs::Placed;
use crate::machine::layout;
use crate::machine::ram::GuestRam;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

/// Boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// `HdrS`.
const HEADER_MAGIC: u32 = 0x5372_6448;
/// 0xAA55 at offset 0x1fe.
const BOOT_FLAG: u16 = 0xaa55;
/// Protocol 2.15.
const PROTOCOL_VERSION: u16 = 0x020f;
/// loadflags: kernel is loaded high.
const LOADED_HIGH: u8 = 1;
/// E820 type RAM.
const E820_RAM: u32 = 1;
/// setup_data type of the random seed.
const SETUP_RNG_SEED: u32 = 9;

/// Writes zero page, command line and random seed.
pub(super) fn write(
    memory: &GuestRam,
    cmdline: &str,
    rng_seed: &[u8; 32],
    initramfs: Option<Placed>,
) -> Result<(), BootError> {
    super::cmdline::check_length(cmdline)?;
    let mut params = boot_params::default();
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.version = PROTOCOL_VERSION;
    params.hdr.loadflags = LOADED_HIGH;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = cmdline.len() as u32;
    params.hdr.setup_data = layout::SETUP_DATA;
    if let Some(placed) = initramfs {
        params.hdr.ramdisk_image = placed.address;
        params.hdr.ramdisk_size = placed.bytes;
    }
    let memory_end = memory.last_addr().raw_value() + 1;
    let ram = [
        (0, layout::LOW_RAM_END),
        (
            layout::HIGH_RAM_START,
            memory_end.saturating_sub(layout::HIGH_RAM_START),
        ),
    ];
    for (entry, (addr, size)) in params.e820_table.iter_mut().zip(ram) {
        *entry = boot_e820_entry {
            addr,
            size,
            r#type: E820_RAM,
        };
    }
    params.e820_entries = ram.len() as u8;
    let failed = |e: vm_memory::GuestMemoryError| BootError::Memory(e.to_string());
    memory
        .write_obj(params, GuestAddress(layout::ZERO_PAGE))
        .map_err(failed)?;
    let mut text = cmdline.as_bytes().to_vec();
    text.push(0);
    memory
        .write_slice(&text, GuestAddress(layout::CMDLINE))
        .map_err(failed)?;
    memory
        .write_slice(&seed_entry(rng_seed), GuestAddress(layout::SETUP_DATA))
        .map_err(failed)
}

/// struct setup_data: next, type, len, data.
fn seed_entry(seed: &[u8; 32]) -> Vec<u8> {
    let mut entry = 0u64.to_le_bytes().to_vec();
    entry.extend(SETUP_RNG_SEED.to_le_bytes());
    entry.extend((seed.len() as u32).to_le_bytes());
    entry.extend(seed);
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_finds_memory_command_line_initramfs_and_seed() {
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), 4 << 20)]).expect("4 MiB");
        let placed = Placed {
            address: 0x30_0000,
            bytes: 77,
        };
        write(&memory, "console=ttyS0", &[7; 32], Some(placed)).expect("fits");
        let at = |offset: u64| GuestAddress(layout::ZERO_PAGE + offset);
        let byte = |offset| memory.read_obj::<u8>(at(offset)).expect("inside");
        let word = |offset| memory.read_obj::<u32>(at(offset)).expect("inside");
        assert_eq!(byte(0x1e8), 2, "e820 entries");
        assert_eq!(memory.read_obj::<u64>(at(0x2d0)).expect("inside"), 0);
        assert_eq!(
            memory.read_obj::<u64>(at(0x2d8)).expect("inside"),
            layout::LOW_RAM_END
        );
        assert_eq!(
            memory.read_obj::<u64>(at(0x2d0 + 20)).expect("inside"),
            1 << 20
        );
        assert_eq!(
            memory.read_obj::<u64>(at(0x2d8 + 20)).expect("inside"),
            3 << 20
        );
        assert_eq!(word(0x202), HEADER_MAGIC);
        assert_eq!(byte(0x210), 0xff, "type_of_loader");
        assert_eq!(word(0x218), 0x30_0000, "ramdisk_image");
        assert_eq!(word(0x21c), 77, "ramdisk_size");
        let pointer = word(0x228);
        let mut text = [0; 14];
        memory
            .read_slice(&mut text, GuestAddress(pointer.into()))
            .expect("inside");
        assert_eq!(&text, b"console=ttyS0\0");
        let setup: u64 = memory.read_obj(at(0x250)).expect("inside");
        let mut entry = [0; 48];
        memory
            .read_slice(&mut entry, GuestAddress(setup))
            .expect("inside");
        assert_eq!(entry[8..16], [9, 0, 0, 0, 32, 0, 0, 0]);
        assert_eq!(entry[16..], [7; 32]);
    }

    #[test]
    fn a_long_command_line_is_refused() {
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), 4 << 20)]).expect("4 MiB");
        let long = "x".repeat(layout::CMDLINE_BYTES_MAX);
        assert!(matches!(
            write(&memory, &long, &[0; 32], None),
            Err(BootError::Cmdline(_))
        ));
    }
}
