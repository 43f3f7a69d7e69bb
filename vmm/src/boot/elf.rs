//! As much of ELF64 as a Linux image needs: program headers, sections, symbols.
//!
//! Reads from a byte slice; every offset and count is checked against it, nothing is trusted and
//! nothing allocated beyond what the file's own length bounds. Source: System V ABI, gABI 4.1
//! chapters 4 and 5, and the AMD64 supplement.

#![forbid(unsafe_code)]

/// ELF header bytes.
const HEADER_BYTES: usize = 64;
/// Program header bytes.
const PROGRAM_HEADER_BYTES: usize = 56;
/// Section header bytes.
const SECTION_HEADER_BYTES: usize = 64;
/// Symbol bytes.
const SYMBOL_BYTES: usize = 24;
/// e_machine of x86-64.
const MACHINE_X86_64: u16 = 62;
/// A segment to be loaded.
const PT_LOAD: u32 = 1;
/// Symbol table.
const SHT_SYMTAB: u32 = 2;
/// Section without bytes in the file.
const SHT_NOBITS: u32 = 8;
/// Section that is code.
const SHF_EXECINSTR: u64 = 4;

/// A damaged or foreign ELF file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// No ELF at all.
    #[error("not an ELF file (an uncompressed vmlinux or a bzImage is needed)")]
    NotElf,
    /// For another machine.
    #[error("an ELF file, but not a 64-bit little-endian x86 executable")]
    Foreign,
    /// A structure lies outside the file.
    #[error("damaged ELF file: {what} at offset {offset:#x} lies outside its {length} bytes")]
    Outside {
        /// What was read.
        what: &'static str,
        /// Where.
        offset: u64,
        /// Length of the file.
        length: usize,
    },
}

/// A segment that is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Guest physical address.
    pub physical: u64,
    /// Bytes from the file.
    pub data: &'a [u8],
    /// Bytes in memory, at least those of the file; the rest is zero.
    pub memory_bytes: u64,
}

/// A section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section<'a> {
    /// Name.
    pub name: &'a str,
    /// Linear address.
    pub address: u64,
    /// Where its bytes start in the file.
    pub offset: usize,
    /// Its bytes; empty for sections that take no room in the file.
    pub data: &'a [u8],
    /// Whether it is marked as code.
    pub executable: bool,
    kind: u32,
    link: u32,
}

/// A symbol with a name and an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Name.
    pub name: &'a str,
    /// Linear address.
    pub address: u64,
}

/// A parsed file.
#[derive(Debug, Clone)]
pub struct Elf<'a> {
    bytes: &'a [u8],
    /// Entry point as the header has it; a physical address in vmlinux.
    pub entry: u64,
    /// Segments to load, in file order.
    pub segments: Vec<Segment<'a>>,
    /// Sections, in file order; empty when the file was stripped of them.
    pub sections: Vec<Section<'a>>,
}

impl<'a> Elf<'a> {
    /// Parses headers.
    ///
    /// # Errors
    /// When the file is damaged, with the place.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        if !bytes.starts_with(b"\x7fELF") {
            return Err(ElfError::NotElf);
        }
        let header = slice(bytes, 0, HEADER_BYTES as u64, "header")?;
        let executable = matches!(u16_at(header, 16), 2 | 3);
        if header[4] != 2 || header[5] != 1 || u16_at(header, 18) != MACHINE_X86_64 || !executable {
            return Err(ElfError::Foreign);
        }
        let mut elf = Self {
            bytes,
            entry: u64_at(header, 24),
            segments: Vec::new(),
            sections: Vec::new(),
        };
        elf.segments = elf.read_segments(header)?;
        elf.sections = elf.read_sections(header)?;
        Ok(elf)
    }

    fn table(
        &self,
        offset: u64,
        count: u16,
        entry: usize,
        stated: u16,
        what: &'static str,
    ) -> Result<std::slice::ChunksExact<'a, u8>, ElfError> {
        if count > 0 && usize::from(stated) != entry {
            return Err(ElfError::Foreign);
        }
        let table = slice(self.bytes, offset, u64::from(count) * entry as u64, what)?;
        Ok(table.chunks_exact(entry))
    }

    fn read_segments(&self, header: &[u8]) -> Result<Vec<Segment<'a>>, ElfError> {
        let (offset, size, count) = (u64_at(header, 32), u16_at(header, 54), u16_at(header, 56));
        let table = self.table(offset, count, PROGRAM_HEADER_BYTES, size, "program headers")?;
        let loaded = table.filter(|entry| u32_at(entry, 0) == PT_LOAD);
        loaded
            .map(|entry| {
                let data = slice(self.bytes, u64_at(entry, 8), u64_at(entry, 32), "segment")?;
                let memory_bytes = u64_at(entry, 40).max(data.len() as u64);
                Ok(Segment {
                    physical: u64_at(entry, 24),
                    data,
                    memory_bytes,
                })
            })
            .collect()
    }

    fn read_sections(&self, header: &[u8]) -> Result<Vec<Section<'a>>, ElfError> {
        let (offset, size, count) = (u64_at(header, 40), u16_at(header, 58), u16_at(header, 60));
        let table = self.table(offset, count, SECTION_HEADER_BYTES, size, "section headers")?;
        let names = match table.clone().nth(usize::from(u16_at(header, 62))) {
            Some(entry) if count > 0 => slice(
                self.bytes,
                u64_at(entry, 24),
                u64_at(entry, 32),
                "section names",
            )?,
            _ => &[],
        };
        table
            .map(|entry| {
                let kind = u32_at(entry, 4);
                let offset = u64_at(entry, 24);
                let data = if kind == SHT_NOBITS || kind == 0 {
                    &[][..]
                } else {
                    slice(self.bytes, offset, u64_at(entry, 32), "section")?
                };
                Ok(Section {
                    name: text(names, u32_at(entry, 0)),
                    address: u64_at(entry, 16),
                    offset: usize::try_from(offset).unwrap_or(usize::MAX),
                    data,
                    executable: u64_at(entry, 8) & SHF_EXECINSTR != 0,
                    kind,
                    link: u32_at(entry, 40),
                })
            })
            .collect()
    }

    /// Symbols, ascending by address; empty without a symbol table. At most one per 24 bytes of file.
    #[must_use]
    pub fn symbols(&self) -> Vec<Symbol<'a>> {
        let Some(table) = self.sections.iter().find(|s| s.kind == SHT_SYMTAB) else {
            return Vec::new();
        };
        let names = self
            .sections
            .get(table.link as usize)
            .map_or(&[][..], |s| s.data);
        let mut symbols: Vec<Symbol<'a>> = table
            .data
            .chunks_exact(SYMBOL_BYTES)
            .map(|entry| Symbol {
                name: text(names, u32_at(entry, 0)),
                address: u64_at(entry, 8),
            })
            .filter(|symbol| !symbol.name.is_empty() && symbol.address != 0)
            .collect();
        symbols.sort_by_key(|symbol| symbol.address);
        symbols
    }
}

/// The nearest symbol at or below `address` in an ascending list, and the distance from it.
#[must_use]
pub fn nearest<'a>(symbols: &[Symbol<'a>], address: u64) -> Option<(&'a str, u64)> {
    let after = symbols.partition_point(|symbol| symbol.address <= address);
    let symbol = symbols.get(after.checked_sub(1)?)?;
    Some((symbol.name, address - symbol.address))
}

fn slice<'a>(
    bytes: &'a [u8],
    offset: u64,
    length: u64,
    what: &'static str,
) -> Result<&'a [u8], ElfError> {
    let outside = ElfError::Outside {
        what,
        offset,
        length: bytes.len(),
    };
    let Some(end) = offset.checked_add(length) else {
        return Err(outside);
    };
    let (Ok(start), Ok(end)) = (usize::try_from(offset), usize::try_from(end)) else {
        return Err(outside);
    };
    bytes.get(start..end).ok_or(outside)
}

/// The zero-terminated text at `at`; empty when it is none.
fn text(names: &[u8], at: u32) -> &str {
    let tail = names.get(at as usize..).unwrap_or(&[]);
    let end = tail.iter().position(|&byte| byte == 0).unwrap_or(0);
    std::str::from_utf8(&tail[..end]).unwrap_or("")
}

/// Little-endian readers of fixed-size entries: the caller has checked that `at` is inside.
fn u16_at(entry: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([entry[at], entry[at + 1]])
}

fn u32_at(entry: &[u8], at: usize) -> u32 {
    u32::from(u16_at(entry, at)) | u32::from(u16_at(entry, at + 2)) << 16
}

fn u64_at(entry: &[u8], at: usize) -> u64 {
    u64::from(u32_at(entry, at)) | u64::from(u32_at(entry, at + 4)) << 32
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A vmlinux in miniature: one PT_LOAD at 1 MiB with `code`, sections `.text`, `.shstrtab`.
    pub(in crate::boot) fn miniature(code: &[u8]) -> Vec<u8> {
        with_sections(&[(".text", code, true)])
    }

    /// As [`miniature`], with sections of the caller's; the first is loaded and holds the entry.
    pub(in crate::boot) fn with_sections(sections: &[(&str, &[u8], bool)]) -> Vec<u8> {
        const BASE: u64 = 0x10_0000;
        let mut file = vec![0; HEADER_BYTES + PROGRAM_HEADER_BYTES];
        let mut names = vec![0];
        let mut headers = vec![0; SECTION_HEADER_BYTES];
        let entry = |name: usize, kind: u32, flags: u64, at: usize, length: usize| {
            let mut header = vec![0; SECTION_HEADER_BYTES];
            header[0..4].copy_from_slice(&(name as u32).to_le_bytes());
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[8..16].copy_from_slice(&flags.to_le_bytes());
            header[16..24].copy_from_slice(&(BASE + at as u64).to_le_bytes());
            header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(length as u64).to_le_bytes());
            header
        };
        for (name, data, executable) in sections {
            let flags = if *executable { SHF_EXECINSTR } else { 0 };
            headers.extend(entry(names.len(), 1, flags, file.len(), data.len()));
            names.extend(name.bytes().chain([0]));
            file.extend_from_slice(data);
        }
        headers.extend(entry(0, 3, 0, file.len(), names.len()));
        file.extend_from_slice(&names);
        let at = file.len();
        file.extend_from_slice(&headers);
        let first = sections.first().map_or(0, |s| s.1.len()) as u64;
        let start = (HEADER_BYTES + PROGRAM_HEADER_BYTES) as u64;
        file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00");
        file[16..20].copy_from_slice(&[2, 0, 62, 0]);
        file[24..32].copy_from_slice(&(BASE + start).to_le_bytes());
        file[32..40].copy_from_slice(&(HEADER_BYTES as u64).to_le_bytes());
        file[40..48].copy_from_slice(&(at as u64).to_le_bytes());
        file[54..56].copy_from_slice(&(PROGRAM_HEADER_BYTES as u16).to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        file[58..60].copy_from_slice(&(SECTION_HEADER_BYTES as u16).to_le_bytes());
        file[60..62].copy_from_slice(&(sections.len() as u16 + 2).to_le_bytes());
        file[62..64].copy_from_slice(&(sections.len() as u16 + 1).to_le_bytes());
        let ph = HEADER_BYTES;
        file[ph..ph + 4].copy_from_slice(&PT_LOAD.to_le_bytes());
        file[ph + 8..ph + 16].copy_from_slice(&start.to_le_bytes());
        file[ph + 24..ph + 32].copy_from_slice(&(BASE + start).to_le_bytes());
        file[ph + 32..ph + 40].copy_from_slice(&first.to_le_bytes());
        file[ph + 40..ph + 48].copy_from_slice(&(first + 16).to_le_bytes());
        file
    }

    #[test]
    fn headers_sections_and_segments_are_found() {
        let file = with_sections(&[(".text", &[0x90, 0xf4], true), (".data", b"abc", false)]);
        let elf = Elf::parse(&file).expect("valid");
        assert_eq!(elf.segments.len(), 1);
        assert_eq!(elf.segments[0].data, [0x90, 0xf4]);
        assert_eq!(elf.segments[0].memory_bytes, 18);
        assert_eq!(elf.segments[0].physical, elf.entry);
        let names: Vec<_> = elf
            .sections
            .iter()
            .map(|s| (s.name, s.executable))
            .collect();
        assert_eq!(
            names,
            [("", false), (".text", true), (".data", false), ("", false)]
        );
        assert!(elf.symbols().is_empty());
    }

    #[test]
    fn foreign_files_are_refused() {
        assert_eq!(Elf::parse(b"MZ").err(), Some(ElfError::NotElf));
        let mut file = miniature(&[0xf4]);
        file[18] = 183;
        assert_eq!(Elf::parse(&file).err(), Some(ElfError::Foreign));
    }

    #[test]
    fn nearest_symbol_is_the_one_at_or_below() {
        let symbols = [("a", 10), ("b", 20)].map(|(name, address)| Symbol { name, address });
        assert_eq!(nearest(&symbols, 9), None);
        assert_eq!(nearest(&symbols, 19), Some(("a", 9)));
        assert_eq!(nearest(&symbols, 20), Some(("b", 0)));
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(cut in 0usize..700, flips in prop::collection::vec((0usize..700, any::<u8>()), 0..8)) {
            let mut file = with_sections(&[(".text", &[0x90; 64], true), (".data", &[1; 32], false)]);
            for (at, value) in flips {
                if let Some(byte) = file.get_mut(at) { *byte = value; }
            }
            file.truncate(cut);
            if let Ok(elf) = Elf::parse(&file) {
                let total: usize = elf.segments.iter().map(|s| s.data.len()).sum();
                prop_assert!(total <= file.len() * elf.segments.len());
                let _symbols = elf.symbols();
            }
        }

        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0".to_vec();
            file.extend(noise);
            let _parsed = Elf::parse(&file);
        }
    }
}
