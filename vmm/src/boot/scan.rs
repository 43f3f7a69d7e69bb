//! Finds instructions in a kernel image through which the host's state would reach the guest.
//!
//! Stock KVM cannot trap RDTSC and RDTSCP in ring 0 (design section 1), so no image that holds one
//! may run: [`refuse`] says where each is. RDRAND, RDSEED and RDPMC are reported but not refused:
//! Linux uses them only when CPUID offers them, and the CPU model does not.
//!
//! What is scanned: every section marked executable (`.text`, `.init.text`,
//! `.altinstr_replacement`, ...), and the vDSO images that lie as data in the kernel and that it
//! maps into every process.
//!
//! How: the opcode bytes are looked for first (few places match); around each match the code is
//! decoded from the symbol before it, so that the bytes `0f 31` inside a constant are told from the
//! instruction. Where decoding goes astray the match counts as found: a false alarm is better than
//! a silent divergence. Code that computes or copies instructions at run time is not seen.

#![forbid(unsafe_code)]

use super::elf::{self, Elf, ElfError, Section, Symbol};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use std::fmt;

/// Findings named in an error; the rest are counted.
const NAMED_MAX: usize = 12;

/// The instruction found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forbidden {
    /// RDTSC.
    Rdtsc,
    /// RDTSCP.
    Rdtscp,
    /// RDRAND.
    Rdrand,
    /// RDSEED.
    Rdseed,
    /// RDPMC.
    Rdpmc,
}

impl Forbidden {
    /// Whether an image that holds it may not run. The others are hidden by the CPU model.
    #[must_use]
    pub const fn refused(self) -> bool {
        matches!(self, Self::Rdtsc | Self::Rdtscp)
    }

    const fn of(mnemonic: Mnemonic) -> Option<Self> {
        match mnemonic {
            Mnemonic::Rdtsc => Some(Self::Rdtsc),
            Mnemonic::Rdtscp => Some(Self::Rdtscp),
            Mnemonic::Rdrand => Some(Self::Rdrand),
            Mnemonic::Rdseed => Some(Self::Rdseed),
            Mnemonic::Rdpmc => Some(Self::Rdpmc),
            _ => None,
        }
    }

    /// What the opcode bytes at `at` would be.
    fn at(code: &[u8], at: usize) -> Option<Self> {
        match (code.get(at + 1)?, code.get(at + 2)) {
            (0x31, _) => Some(Self::Rdtsc),
            (0x33, _) => Some(Self::Rdpmc),
            (0x01, Some(0xf9)) => Some(Self::Rdtscp),
            (0xc7, Some(0xf0..=0xf7)) => Some(Self::Rdrand),
            (0xc7, Some(0xf8..=0xff)) => Some(Self::Rdseed),
            _ => None,
        }
    }
}

/// One place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which instruction.
    pub instruction: Forbidden,
    /// Section; for a vDSO `vDSO in SECTION: ITS SECTION`.
    pub section: String,
    /// Linear address, in a vDSO the offset in its image.
    pub address: u64,
    /// Offset of the opcode's first byte (0x0f) in the file.
    pub offset: usize,
    /// Nearest symbol and distance, where the image has symbols.
    pub symbol: Option<(String, u64)>,
    /// Whether it lies in a vDSO, that is, runs in user mode.
    pub vdso: bool,
    /// False when the surroundings did not decode as code.
    pub certain: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{:?}", self.instruction).to_uppercase();
        write!(f, "{name} in {} at {:#x}", self.section, self.address)?;
        if let Some((symbol, distance)) = &self.symbol {
            write!(f, " ({symbol}+{distance:#x})")?;
        }
        if self.certain {
            Ok(())
        } else {
            write!(f, " (surroundings do not decode)")
        }
    }
}

/// The image holds instructions that may not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "it reads the time-stamp counter in {count} places, which cannot be intercepted and would make the two sides differ: {named}; use a kernel with our patches (`cargo xtask images` builds one)"
)]
pub struct TimeStampUse {
    /// How many places.
    pub count: usize,
    /// The first of them.
    pub named: String,
}

/// Scans an uncompressed image.
///
/// # Errors
/// When it is no ELF file that we can read.
pub fn scan(vmlinux: &[u8]) -> Result<Vec<Finding>, ElfError> {
    let image = Elf::parse(vmlinux)?;
    let symbols = image.symbols();
    let mut findings = Vec::new();
    for section in &image.sections {
        if section.executable {
            let place = Place {
                name: section.name,
                vdso: false,
                offset: section.offset,
            };
            scan_code(section, &symbols, &place, &mut findings);
        } else {
            scan_for_vdso(section, &mut findings);
        }
    }
    Ok(findings)
}

/// Refuses an image that reads the time-stamp counter.
///
/// # Errors
/// Names section, address and nearest symbol of each place.
pub fn refuse(findings: &[Finding]) -> Result<(), TimeStampUse> {
    let refused: Vec<_> = findings
        .iter()
        .filter(|f| f.instruction.refused())
        .collect();
    if refused.is_empty() {
        return Ok(());
    }
    let mut named: Vec<String> = refused
        .iter()
        .take(NAMED_MAX)
        .map(ToString::to_string)
        .collect();
    if refused.len() > NAMED_MAX {
        named.push(format!("and {} more", refused.len() - NAMED_MAX));
    }
    Err(TimeStampUse {
        count: refused.len(),
        named: named.join("; "),
    })
}

/// Where a piece of code lies.
struct Place<'a> {
    name: &'a str,
    vdso: bool,
    /// Of the code's first byte in the file.
    offset: usize,
}

/// Looks for opcode bytes, then decodes from the symbol before them.
fn scan_code(
    section: &Section<'_>,
    symbols: &[Symbol<'_>],
    place: &Place<'_>,
    findings: &mut Vec<Finding>,
) {
    let code = section.data;
    let mut sweep = Sweep {
        at: 0,
        astray: false,
    };
    let mut from = 0;
    while let Some(at) = next_candidate(code, from) {
        from = at + 1;
        let Some(bytes) = Forbidden::at(code, at) else {
            continue;
        };
        let address = section.address.wrapping_add(at as u64);
        let start = elf::nearest(symbols, address)
            .and_then(|(_, distance)| at.checked_sub(usize::try_from(distance).ok()?))
            .unwrap_or(0);
        sweep.resume(start);
        let decoded = sweep.decode_to(code, section.address, at);
        let astray = sweep.astray;
        let instruction = decoded.or(astray.then_some(bytes));
        let Some(instruction) = instruction else {
            continue;
        };
        let symbol = elf::nearest(symbols, address);
        findings.push(Finding {
            instruction,
            section: place.name.to_owned(),
            address,
            offset: place.offset + at,
            symbol: symbol.map(|(name, distance)| (name.to_owned(), distance)),
            vdso: place.vdso,
            certain: decoded.is_some(),
        });
    }
}

fn next_candidate(code: &[u8], from: usize) -> Option<usize> {
    let tail = code.get(from..)?;
    memchr::memchr_iter(0x0f, tail)
        .map(|at| from + at)
        .find(|&at| Forbidden::at(code, at).is_some())
}

/// A linear decode that remembers how far it is, so that a section without symbols is decoded once.
struct Sweep {
    at: usize,
    /// Something since the last symbol did not decode.
    astray: bool,
}

impl Sweep {
    /// Starts anew at a symbol, unless the sweep is already past it.
    fn resume(&mut self, start: usize) {
        if start > self.at {
            *self = Self {
                at: start,
                astray: false,
            };
        }
    }

    /// Decodes up to the instruction that holds the byte at `target`.
    fn decode_to(&mut self, code: &[u8], address: u64, target: usize) -> Option<Forbidden> {
        let ip = address.wrapping_add(self.at as u64);
        let tail = code.get(self.at..)?;
        let mut decoder = Decoder::with_ip(64, tail, ip, DecoderOptions::NONE);
        let start = self.at;
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            let begin = start + decoder.position();
            if begin > target {
                return None;
            }
            decoder.decode_out(&mut instruction);
            self.astray |= instruction.is_invalid();
            let end = start + decoder.position();
            if (begin..end).contains(&target) {
                self.at = begin;
                return Forbidden::of(instruction.mnemonic());
            }
        }
        None
    }
}

/// Finds shared objects that lie as data in a section.
fn scan_for_vdso(section: &Section<'_>, findings: &mut Vec<Finding>) {
    let data = section.data;
    let mut at = 0;
    while let Some(found) = find_elf(data, at) {
        at = found + 4;
        let bytes = &data[found..];
        let Ok(image) = Elf::parse(bytes) else {
            scan_foreign(section, found, findings);
            continue;
        };
        for code in image.sections.iter().filter(|s| s.executable) {
            let name = format!("vDSO in {}: {}", section.name, code.name);
            let place = Place {
                name: &name,
                vdso: true,
                offset: section.offset + found + code.offset,
            };
            scan_code(code, &image.symbols(), &place, findings);
        }
    }
}

fn find_elf(data: &[u8], from: usize) -> Option<usize> {
    memchr::memmem::find(data.get(from..)?, b"\x7fELF").map(|at| from + at)
}

/// A 32-bit vDSO (CONFIG_IA32_EMULATION): not decoded, so that any match in it counts.
fn scan_foreign(section: &Section<'_>, at: usize, findings: &mut Vec<Finding>) {
    /// A vDSO image has a few pages.
    const IMAGE_BYTES_MAX: usize = 0x8000;
    let image = &section.data[at..section.data.len().min(at + IMAGE_BYTES_MAX)];
    let is_i386 = image.len() > 52 && image[4] == 1 && image[18] == 3 && image[19] == 0;
    if !is_i386 {
        return;
    }
    let mut from = 0;
    while let Some(found) = next_candidate(image, from) {
        from = found + 1;
        let Some(instruction) = Forbidden::at(image, found).filter(|i| i.refused()) else {
            continue;
        };
        findings.push(Finding {
            instruction,
            section: format!("32-bit vDSO in {}", section.name),
            address: found as u64,
            offset: section.offset + at + found,
            symbol: None,
            vdso: true,
            certain: false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::elf::tests::{miniature, with_sections};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn instructions_are_found_with_section_address_and_offset() {
        let file = miniature(&[
            0x90, 0x0f, 0x31, 0x90, 0x0f, 0x01, 0xf9, 0x48, 0x0f, 0xc7, 0xf0, 0xc3,
        ]);
        let findings = scan(&file).expect("elf");
        let seen: Vec<_> = findings.iter().map(|f| f.instruction).collect();
        assert_eq!(
            seen,
            [Forbidden::Rdtsc, Forbidden::Rdtscp, Forbidden::Rdrand]
        );
        assert_eq!(file[findings[0].offset..][..2], [0x0f, 0x31]);
        assert!(findings.iter().all(|f| f.certain && f.section == ".text"));
        let refused = refuse(&findings).expect_err("two of them");
        assert_eq!(refused.count, 2);
        assert!(
            refused.to_string().contains("RDTSC in .text at 0x100079"),
            "{refused}"
        );
    }

    #[test]
    fn the_same_bytes_inside_a_constant_are_no_finding() {
        // mov eax, 0x31310f0f; ret
        let file = miniature(&[0xb8, 0x0f, 0x0f, 0x31, 0x31, 0xc3]);
        assert_eq!(scan(&file).expect("elf"), []);
        assert_eq!(refuse(&[]), Ok(()));
    }

    #[test]
    fn where_decoding_goes_astray_a_match_counts() {
        // An invalid opcode, then a mov whose constant holds the bytes.
        let file = miniature(&[0x06, 0xb8, 0x0f, 0x0f, 0x31, 0x31, 0xc3]);
        let findings = scan(&file).expect("elf");
        assert_eq!(findings.len(), 1);
        assert!(!findings[0].certain);
        assert!(refuse(&findings).is_err());
    }

    #[test]
    fn a_vdso_that_lies_as_data_is_scanned() {
        let vdso = with_sections(&[(".text", &[0x0f, 0x31, 0xc3], true)]);
        let mut data = b"\x7fELF is only a string".to_vec();
        data.extend(&vdso);
        let file = with_sections(&[(".text", &[0xc3], true), (".data", &data, false)]);
        let findings = scan(&file).expect("elf");
        assert_eq!(findings.len(), 1);
        assert!(findings[0].vdso);
        assert_eq!(findings[0].section, "vDSO in .data: .text");
        assert_eq!(file[findings[0].offset..][..2], [0x0f, 0x31]);
    }

    proptest! {
        #[test]
        fn damaged_images_never_panic(
            code in prop::collection::vec(any::<u8>(), 0..200),
            data in prop::collection::vec(any::<u8>(), 0..200),
            cut in 0usize..1200,
            flips in prop::collection::vec((0usize..1200, any::<u8>()), 0..6),
        ) {
            let inner = with_sections(&[(".text", &code, true)]);
            let mut outer = data;
            outer.extend(inner);
            let mut file = with_sections(&[(".text", &code, true), (".rodata", &outer, false)]);
            for (at, value) in flips {
                if let Some(byte) = file.get_mut(at) { *byte = value; }
            }
            file.truncate(cut);
            if let Ok(findings) = scan(&file) {
                for finding in findings {
                    prop_assert_eq!(file[finding.offset], 0x0f);
                }
            }
        }
    }
}
