//! The processor as the 64-bit entry of Linux expects it, with its tables in low memory.
//!
//! boot.rst, "64-bit Boot Protocol": long mode with paging, identity mapping of the kernel, zero
//! page and command line, `__BOOT_CS` (0x10) flat and executable, `__BOOT_DS` (0x18) flat, RSI at the
//! zero page, interrupts off.

#![forbid(unsafe_code)]

use super::BootError;
use crate::machine::cpu_state::{CpuState, DescriptorTable, Segment, SystemRegisters};
use crate::machine::layout;
use crate::machine::ram::GuestRam;
use vm_memory::{Bytes, GuestAddress};

/// Null, null, `__BOOT_CS`, `__BOOT_DS`, 64-bit TSS (two entries).
const GDT: [u64; 6] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x0000_8b00_0000_0067,
    0,
];
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TR: u16 = 0x20;

/// CR0: PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 0x8005_0033;
/// CR4: PAE; the kernel sets the rest.
const CR4: u64 = 0x20;
/// EFER: LME, LMA.
const EFER: u64 = 0x500;

/// Present, writable.
const TABLE: u64 = 0x03;
/// Present, writable, 2 MiB page.
const LARGE_PAGE: u64 = 0x83;

/// Writes GDT and page tables, and makes the entry state.
pub(super) fn write(memory: &GuestRam, entry: u64) -> Result<CpuState, BootError> {
    let put = |address: u64, word: u64| {
        memory
            .write_obj(word, GuestAddress(address))
            .map_err(|e| BootError::Memory(e.to_string()))
    };
    for (i, descriptor) in (0..).zip(GDT) {
        put(layout::BOOT_GDT + 8 * i, descriptor)?;
    }
    let (pml4, pdpt) = (layout::PAGE_TABLES, layout::PAGE_TABLES + 0x1000);
    put(pml4, pdpt | TABLE)?;
    for gib in 0..4 {
        let directory = pdpt + 0x1000 * (gib + 1);
        put(pdpt + 8 * gib, directory | TABLE)?;
        for page in 0..512 {
            put(directory + 8 * page, (gib << 30 | page << 21) | LARGE_PAGE)?;
        }
    }
    Ok(state(entry, pml4))
}

fn state(entry: u64, cr3: u64) -> CpuState {
    let mut cpu = CpuState::default();
    cpu.general.rip = entry;
    cpu.general.rsi = layout::ZERO_PAGE;
    cpu.general.rsp = layout::BOOT_STACK;
    cpu.general.rbp = layout::BOOT_STACK;
    let flat = Segment {
        limit: u32::MAX,
        present: true,
        s: true,
        g: true,
        ..Segment::default()
    };
    let code = Segment {
        selector: BOOT_CS,
        kind: 11,
        l: true,
        ..flat
    };
    let data = Segment {
        selector: BOOT_DS,
        kind: 3,
        db: true,
        ..flat
    };
    let tr = Segment {
        selector: BOOT_TR,
        kind: 11,
        limit: 0x67,
        present: true,
        ..Segment::default()
    };
    let ldt = Segment {
        unusable: true,
        ..Segment::default()
    };
    cpu.system = SystemRegisters {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr,
        ldt,
        gdt: DescriptorTable {
            base: layout::BOOT_GDT,
            limit: (GDT.len() * 8 - 1) as u16,
        },
        idt: DescriptorTable::default(),
        cr0: CR0,
        cr3,
        cr4: CR4,
        efer: EFER,
        ..SystemRegisters::default()
    };
    cpu
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_four_gib_are_mapped_one_to_one() {
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("1 MiB");
        let cpu = write(&memory, 0x100_0000).expect("fits");
        let word = |address: u64| {
            memory
                .read_obj::<u64>(GuestAddress(address))
                .expect("inside")
        };
        for linear in [0u64, 0x100_0000, 0xd000_0000, 0xffff_ffff] {
            let pdpt = word(cpu.system.cr3 + 8 * (linear >> 39)) & !0xfff;
            let directory = word(pdpt + 8 * (linear >> 30 & 511)) & !0xfff;
            let page = word(directory + 8 * (linear >> 21 & 511));
            assert_eq!(page & 0x83, LARGE_PAGE);
            assert_eq!(page & !0x1f_ffff, linear & !0x1f_ffff);
        }
        assert_eq!(cpu.general.rsi, layout::ZERO_PAGE);
        assert_eq!(word(layout::BOOT_GDT + u64::from(BOOT_CS)), GDT[2]);
    }
}
