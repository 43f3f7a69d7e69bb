//! What the files of a log and of its journal have in common: how they begin, and how they are called.
//!
//! ```text
//!  0            8         12             20           28          32
//!  +------------+---------+--------------+------------+-----------+---------
//!  | magic      | version | number       | VM name    | CRC-32C   | content
//!  |            | u32 LE  | u64 LE       | FNV-1a 64  | of 0..28  |
//!  +------------+---------+--------------+------------+-----------+---------
//! ```
//!
//! A file's name is its number in 20 decimal digits and a suffix, so that names sort as the content does.
//! The name's hash keeps files of two VMs apart that were put in one directory; it is no protection
//! against anyone. What the number counts belongs to each kind of file.

#![forbid(unsafe_code)]

/// Bytes of a file before its content.
pub const FILE_HEADER_BYTES: usize = 32;

const VERSION_OFFSET: usize = 8;
const CRC_OFFSET: usize = 28;
const NAME_DIGITS: usize = 20;

/// One kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileKind {
    /// The first bytes of each.
    pub magic: [u8; 8],
    /// The version that is written, and the only one that is read.
    pub version: u32,
    /// What its names end in, dot included.
    pub suffix: &'static str,
}

/// What differs between the headers of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHeader {
    /// Number of the file.
    pub number: u64,
    /// [`vm_hash`] of the VM's name.
    pub vm_hash: u64,
}

/// Why bytes are not a header of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderFault {
    /// They begin with these.
    Magic([u8; 8]),
    /// The check does not match.
    Crc,
    /// Sound, of this version.
    Version(u32),
}

impl HeaderFault {
    /// Offset at which it shows.
    #[must_use]
    pub const fn offset(self) -> u64 {
        match self {
            Self::Magic(_) => 0,
            Self::Crc => CRC_OFFSET as u64,
            Self::Version(_) => VERSION_OFFSET as u64,
        }
    }
}

impl FileKind {
    /// The bytes of a header.
    #[must_use]
    pub fn encode(&self, header: FileHeader) -> [u8; FILE_HEADER_BYTES] {
        let mut bytes = [0; FILE_HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.magic);
        bytes[VERSION_OFFSET..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..20].copy_from_slice(&header.number.to_le_bytes());
        bytes[20..CRC_OFFSET].copy_from_slice(&header.vm_hash.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
        bytes[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header in `bytes`.
    ///
    /// # Errors
    /// Why it is none of this kind.
    pub fn decode(&self, bytes: &[u8; FILE_HEADER_BYTES]) -> Result<FileHeader, HeaderFault> {
        let magic = word(bytes, 0);
        if magic != self.magic {
            return Err(HeaderFault::Magic(magic));
        }
        let expected = crc32c::crc32c(&bytes[..CRC_OFFSET]).to_le_bytes();
        if expected != bytes[CRC_OFFSET..] {
            return Err(HeaderFault::Crc);
        }
        let [version @ .., _, _, _, _] = word(bytes, VERSION_OFFSET);
        let version = u32::from_le_bytes(version);
        if version != self.version {
            return Err(HeaderFault::Version(version));
        }
        Ok(FileHeader {
            number: u64::from_le_bytes(word(bytes, 12)),
            vm_hash: u64::from_le_bytes(word(bytes, 20)),
        })
    }

    /// The name of a file.
    #[must_use]
    pub fn name(&self, number: u64) -> String {
        format!("{number:0NAME_DIGITS$}{}", self.suffix)
    }

    /// The number of the file called `name`; `None` for the name of anything else.
    #[must_use]
    pub fn parse_name(&self, name: &str) -> Option<u64> {
        let digits = name.strip_suffix(self.suffix)?;
        let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
        if digits.len() != NAME_DIGITS || !all_digits {
            return None;
        }
        digits.parse().ok()
    }
}

fn word(bytes: &[u8; FILE_HEADER_BYTES], at: usize) -> [u8; 8] {
    std::array::from_fn(|byte| bytes[at + byte])
}

/// FNV-1a, 64 bits, of the VM's name.
#[must_use]
pub fn vm_hash(vm: &str) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    vm.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: FileKind = FileKind {
        magic: *b"UNDRTEST",
        version: 2,
        suffix: ".test",
    };
    const HEADER: FileHeader = FileHeader {
        number: 7,
        vm_hash: 9,
    };

    #[test]
    fn a_header_comes_back() {
        assert_eq!(KIND.decode(&KIND.encode(HEADER)), Ok(HEADER));
        // FNV-1a 64 of "a": the algorithm's published test vector.
        assert_eq!(vm_hash("a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn every_flip_of_one_bit_is_refused() {
        for bit in 0..FILE_HEADER_BYTES * 8 {
            let mut bytes = KIND.encode(HEADER);
            bytes[bit / 8] ^= 1 << (bit % 8);
            KIND.decode(&bytes).expect_err("a flipped bit was not seen");
        }
    }

    #[test]
    fn another_version_and_another_kind_are_named() {
        let later = FileKind { version: 3, ..KIND };
        let fault = KIND.decode(&later.encode(HEADER));
        assert_eq!(fault, Err(HeaderFault::Version(3)));
        let magic = *b"UNDROTHR";
        let other = FileKind { magic, ..KIND };
        let fault = KIND.decode(&other.encode(HEADER));
        assert_eq!(fault, Err(HeaderFault::Magic(magic)));
    }

    #[test]
    fn names_are_exact() {
        assert_eq!(KIND.name(42), "00000000000000000042.test");
        for number in [0, 42, u64::MAX] {
            assert_eq!(KIND.parse_name(&KIND.name(number)), Some(number));
        }
        for other in [
            "42.test",
            "00000000000000000042",
            "99999999999999999999.test",
            "+0000000000000000042.test",
        ] {
            assert_eq!(KIND.parse_name(other), None, "{other}");
        }
    }
}
