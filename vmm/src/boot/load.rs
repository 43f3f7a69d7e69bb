//! Copies the segments of an uncompressed kernel to their physical addresses.
//!
//! Invariants: segments lie in extended memory (the boot structures are below 1 MiB and must not be
//! overwritten), inside RAM, and the entry point inside one of them. Memory is fresh, so that the
//! zero part of a segment (BSS) needs no writing.

#![forbid(unsafe_code)]

use super::elf::Elf;
use crate::machine::layout;
use crate::machine::ram::GuestRam;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

/// Where the kernel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedKernel {
    /// Physical address of the first instruction.
    pub entry: u64,
    /// First byte behind the kernel and its BSS.
    pub end: u64,
}

/// The kernel does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Nothing to load.
    #[error("it has no segment to load")]
    Empty,
    /// A segment outside usable memory.
    #[error(
        "a segment of {bytes} bytes at {physical:#x} does not fit guest memory {:#x}..{memory_end:#x}; give the guest more memory",
        layout::HIGH_RAM_START
    )]
    Outside {
        /// Physical address.
        physical: u64,
        /// Length in memory.
        bytes: u64,
        /// End of guest memory.
        memory_end: u64,
    },
    /// The entry point is not in a segment.
    #[error("its entry point {0:#x} is outside all segments")]
    Entry(u64),
}

/// Loads the image.
///
/// # Errors
/// When it does not fit guest memory.
pub fn load(memory: &GuestRam, image: &Elf<'_>) -> Result<LoadedKernel, LoadError> {
    let memory_end = memory.last_addr().raw_value() + 1;
    let mut end = 0;
    let mut entry_found = false;
    for segment in &image.segments {
        let (physical, bytes) = (segment.physical, segment.memory_bytes);
        let outside = LoadError::Outside {
            physical,
            bytes,
            memory_end,
        };
        let Some(segment_end) = physical.checked_add(bytes) else {
            return Err(outside);
        };
        if physical < layout::HIGH_RAM_START || segment_end > memory_end {
            return Err(outside);
        }
        memory
            .write_slice(segment.data, GuestAddress(physical))
            .map_err(|_| outside)?;
        entry_found |= (physical..segment_end).contains(&image.entry);
        end = end.max(segment_end);
    }
    if end == 0 {
        return Err(LoadError::Empty);
    }
    if !entry_found {
        return Err(LoadError::Entry(image.entry));
    }
    Ok(LoadedKernel {
        entry: image.entry,
        end,
    })
}

#[cfg(test)]
mod tests {
    use super::super::elf::tests::miniature;
    use super::*;

    fn memory() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 2 << 20)]).expect("2 MiB")
    }

    #[test]
    fn code_lands_at_its_physical_address() {
        let file = miniature(&[0x90, 0xf4]);
        let memory = memory();
        let kernel = load(&memory, &Elf::parse(&file).expect("elf")).expect("fits");
        let code: [u8; 2] = memory.read_obj(GuestAddress(kernel.entry)).expect("inside");
        assert_eq!(code, [0x90, 0xf4]);
        assert_eq!(kernel.end, kernel.entry + 18);
    }

    #[test]
    fn segments_outside_memory_are_refused() {
        let file = miniature(&[0x90]);
        for physical in [0u64, 0x7000, 0xf_ffff, 2 << 20, u64::MAX - 3] {
            let mut elf = Elf::parse(&file).expect("elf");
            elf.segments[0].physical = physical;
            let refused = load(&memory(), &elf);
            assert!(
                matches!(refused, Err(LoadError::Outside { .. })),
                "{physical:#x}"
            );
        }
        let mut elf = Elf::parse(&file).expect("elf");
        elf.segments[0].memory_bytes = u64::MAX;
        assert!(matches!(
            load(&memory(), &elf),
            Err(LoadError::Outside { .. })
        ));
    }

    #[test]
    fn entry_must_be_loaded() {
        let file = miniature(&[0x90]);
        let mut elf = Elf::parse(&file).expect("elf");
        elf.entry = 0x1000;
        assert_eq!(load(&memory(), &elf), Err(LoadError::Entry(0x1000)));
        elf.segments.clear();
        assert_eq!(load(&memory(), &elf), Err(LoadError::Empty));
    }
}
