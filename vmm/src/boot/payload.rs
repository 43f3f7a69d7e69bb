//! The vmlinux inside a bzImage.
//!
//! The setup header (boot.rst: `HdrS` at 0x202, `setup_sects`, `payload_offset`, `payload_length`)
//! says where the compressed kernel is; its first bytes say how it is compressed. gzip is unpacked;
//! the others are refused by name with the remedy. The result is bounded by [`UNPACKED_BYTES_MAX`]
//! whatever the image claims.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::io::Read;

/// Largest vmlinux that is accepted: debug kernels of distributions are below it.
pub const UNPACKED_BYTES_MAX: u64 = 512 << 20;

/// Compressions that Linux uses, by their first bytes.
const MAGICS: [(&[u8], &str); 7] = [
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"BZh", "bzip2"),
    (b"\x5d\0\0", "lzma"),
    (b"\x89LZO", "lzo"),
];

/// A compressed kernel that cannot be unpacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Neither vmlinux nor bzImage.
    #[error("it is neither an uncompressed vmlinux (ELF) nor a bzImage")]
    Unknown,
    /// Header values that do not fit the file.
    #[error("damaged bzImage: payload at {offset:#x} with {length} bytes lies outside the file")]
    Outside {
        /// Where the header says it starts.
        offset: u64,
        /// How long it says it is.
        length: u64,
    },
    /// A compression that is not built in.
    #[error(
        "its payload is compressed with {0}, which is not supported; use the uncompressed vmlinux (the kernel's scripts/extract-vmlinux makes one) or build with CONFIG_KERNEL_GZIP"
    )]
    Unsupported(&'static str),
    /// Unknown first bytes.
    #[error("its payload begins with {0:02x?}, which is no known compression")]
    Magic(Vec<u8>),
    /// The data does not unpack.
    #[error("damaged bzImage: its gzip payload does not unpack: {0}")]
    Damaged(String),
    /// Too large.
    #[error("its payload unpacks to more than {UNPACKED_BYTES_MAX} bytes")]
    TooLarge,
}

/// `kernel` itself when it is ELF, or the ELF file packed in it.
///
/// # Errors
/// When it is neither, damaged, or compressed in a way that is not supported.
pub fn unpack(kernel: &[u8]) -> Result<Cow<'_, [u8]>, PayloadError> {
    if kernel.starts_with(b"\x7fELF") {
        return Ok(Cow::Borrowed(kernel));
    }
    let payload = find(kernel)?;
    if payload.starts_with(b"\x7fELF") {
        return Ok(Cow::Borrowed(payload));
    }
    match MAGICS.iter().find(|(magic, _)| payload.starts_with(magic)) {
        Some((_, "gzip")) => gunzip(payload).map(Cow::Owned),
        Some((_, name)) => Err(PayloadError::Unsupported(name)),
        None => Err(PayloadError::Magic(
            payload[..payload.len().min(6)].to_vec(),
        )),
    }
}

/// The compressed bytes.
fn find(image: &[u8]) -> Result<&[u8], PayloadError> {
    let header = image.get(..0x250).ok_or(PayloadError::Unknown)?;
    if header[0x202..0x206] != *b"HdrS" || header[0x1fe..0x200] != [0x55, 0xaa] {
        return Err(PayloadError::Unknown);
    }
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    // Zero means four, for images from before the field existed.
    let sectors = if header[0x1f1] == 0 {
        4
    } else {
        u64::from(header[0x1f1])
    };
    let offset = (sectors + 1) * 512 + u64::from(word(0x248));
    let length = u64::from(word(0x24c));
    let outside = PayloadError::Outside { offset, length };
    let (Ok(start), Ok(end)) = (usize::try_from(offset), usize::try_from(offset + length)) else {
        return Err(outside);
    };
    image
        .get(start..end)
        .filter(|payload| !payload.is_empty())
        .ok_or(outside)
}

fn gunzip(payload: &[u8]) -> Result<Vec<u8>, PayloadError> {
    let mut vmlinux = Vec::new();
    // Behind the gzip stream lie four bytes with the unpacked size: GzDecoder stops before them.
    let mut decoder = flate2::read::GzDecoder::new(payload).take(UNPACKED_BYTES_MAX + 1);
    decoder
        .read_to_end(&mut vmlinux)
        .map_err(|e| PayloadError::Damaged(e.to_string()))?;
    if vmlinux.len() as u64 > UNPACKED_BYTES_MAX {
        return Err(PayloadError::TooLarge);
    }
    Ok(vmlinux)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// A bzImage with one setup sector and `payload`.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x1fe..0x206].copy_from_slice(b"\x55\xaa\0\0HdrS");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend([0xcc; 16]);
        image.extend(payload);
        image
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("to memory");
        let mut packed = encoder.finish().expect("to memory");
        packed.extend((bytes.len() as u32).to_le_bytes());
        packed
    }

    #[test]
    fn elf_passes_and_gzip_is_unpacked() {
        assert_eq!(
            unpack(b"\x7fELF...").expect("as is").as_ref(),
            b"\x7fELF..."
        );
        let packed = image(&gzip(b"\x7fELF inside"));
        assert_eq!(
            unpack(&packed).expect("unpacks").as_ref(),
            b"\x7fELF inside"
        );
    }

    #[test]
    fn other_compressions_are_refused_by_name() {
        let refused = unpack(&image(b"\xfd7zXZ\0....")).expect_err("xz");
        assert_eq!(refused, PayloadError::Unsupported("xz"));
        assert!(refused.to_string().contains("CONFIG_KERNEL_GZIP"));
        assert!(matches!(
            unpack(&image(b"what")),
            Err(PayloadError::Magic(_))
        ));
        assert_eq!(unpack(b"hello"), Err(PayloadError::Unknown));
    }

    #[test]
    fn a_payload_outside_the_file_is_refused() {
        let mut packed = image(&gzip(b"x"));
        packed[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(unpack(&packed), Err(PayloadError::Outside { .. })));
    }

    proptest! {
        #[test]
        fn damaged_images_never_panic(cut in 0usize..1200, flips in prop::collection::vec((0usize..1200, any::<u8>()), 0..6)) {
            let mut packed = image(&gzip(&[7; 400]));
            for (at, value) in flips {
                if let Some(byte) = packed.get_mut(at) { *byte = value; }
            }
            packed.truncate(cut);
            if let Ok(unpacked) = unpack(&packed) {
                prop_assert!(unpacked.len() as u64 <= UNPACKED_BYTES_MAX);
            }
        }
    }
}
