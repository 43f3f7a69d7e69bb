//! The initramfs at the top of RAM.
//!
//! Page aligned and as high as possible, so that the kernel's early allocations behind its image
//! do not meet it. What it holds is the kernel's business; only its first bytes are looked at, to
//! tell a wrong file from a right one before the guest panics over it.

#![forbid(unsafe_code)]

use crate::machine::ram::GuestRam;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

/// The kernel takes an initramfs only below 2 GiB when it is given a 32-bit pointer.
const END_MAX: u64 = 0x8000_0000;
/// Room that the kernel needs behind its image for page tables before it moves the initramfs.
const KERNEL_SLACK_BYTES: u64 = 4 << 20;
/// First bytes of what Linux accepts.
const MAGICS: [(&[u8], &str); 8] = [
    (b"070701", "cpio"),
    (b"070702", "cpio"),
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x5d\0\0", "lzma"),
    (b"\x02\x21\x4c\x18", "lz4"),
];

/// The initramfs cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitramfsError {
    /// Not an archive.
    #[error(
        "it begins with {0:02x?}, which is neither a newc cpio archive nor a compressed one (gzip, zstd, xz, bzip2, lzma, lz4); make one with `find . | cpio -o -H newc`"
    )]
    Magic(Vec<u8>),
    /// Too large.
    #[error(
        "its {bytes} bytes do not fit between the kernel's end at {kernel_end:#x} and the end of guest memory at {memory_end:#x}; give the guest more memory"
    )]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// Where the kernel ends.
        kernel_end: u64,
        /// End of what it may use.
        memory_end: u64,
    },
}

/// Where it was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placed {
    /// Guest physical address.
    pub(super) address: u32,
    /// Length.
    pub(super) bytes: u32,
}

/// Copies the initramfs; `None` when there is none.
pub(super) fn place(
    memory: &GuestRam,
    initramfs: &[u8],
    kernel_end: u64,
) -> Result<Option<Placed>, InitramfsError> {
    if initramfs.is_empty() {
        return Ok(None);
    }
    if !MAGICS.iter().any(|(magic, _)| initramfs.starts_with(magic)) {
        return Err(InitramfsError::Magic(
            initramfs[..initramfs.len().min(6)].to_vec(),
        ));
    }
    let memory_end = (memory.last_addr().raw_value() + 1).min(END_MAX);
    let too_large = InitramfsError::TooLarge {
        bytes: initramfs.len(),
        kernel_end,
        memory_end,
    };
    let length = initramfs.len() as u64;
    let Some(address) = memory_end.checked_sub(length).map(|a| a & !0xfff) else {
        return Err(too_large);
    };
    if address < kernel_end.saturating_add(KERNEL_SLACK_BYTES) {
        return Err(too_large);
    }
    let (Ok(address32), Ok(bytes)) = (u32::try_from(address), u32::try_from(length)) else {
        return Err(too_large);
    };
    memory
        .write_slice(initramfs, GuestAddress(address))
        .map_err(|_| too_large)?;
    Ok(Some(Placed {
        address: address32,
        bytes,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 8 << 20)]).expect("8 MiB")
    }

    #[test]
    fn it_lies_at_the_top_on_a_page() {
        let mut archive = b"070701".to_vec();
        archive.resize(5000, 7);
        let memory = memory();
        let placed = place(&memory, &archive, 1 << 20)
            .expect("fits")
            .expect("some");
        assert_eq!(u64::from(placed.address), (8 << 20) - 0x2000);
        assert_eq!(placed.bytes, 5000);
        let byte: u8 = memory
            .read_obj(GuestAddress((8 << 20) - 0x2000))
            .expect("inside");
        assert_eq!(byte, b'0');
    }

    #[test]
    fn wrong_files_and_sizes_are_refused_with_the_reason() {
        let refused = place(&memory(), b"\x7fELF", 0).expect_err("elf");
        assert!(refused.to_string().contains("cpio"), "{refused}");
        let mut archive = b"070701".to_vec();
        archive.resize(3 << 20, 0);
        assert!(matches!(
            place(&memory(), &archive, 2 << 20),
            Err(InitramfsError::TooLarge { .. })
        ));
        archive.resize(9 << 20, 0);
        assert!(matches!(
            place(&memory(), &archive, 0),
            Err(InitramfsError::TooLarge { .. })
        ));
        assert!(matches!(
            place(&memory(), b"070701", u64::MAX),
            Err(InitramfsError::TooLarge { .. })
        ));
        assert_eq!(place(&memory(), b"", 0), Ok(None));
    }
}
