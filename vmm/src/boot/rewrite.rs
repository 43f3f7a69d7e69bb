//! Replaces time-stamp counter reads in a kernel image, for kernels without our patches.
//!
//! In the kernel RDTSC becomes `in al, TRAP_PORT`: a two-byte instruction of equal length that
//! leaves the guest, where the machine can set RAX and RDX to a value that is a function of the
//! execution point. In the vDSO, which runs in user mode where ports fault, it becomes a constant.
//! RDTSCP has one byte more: the kernel form gets a NOP, the vDSO form sets EDX too. ECX (TSC_AUX)
//! is left as it was, which is as good as any value: the CPU model has no RDTSCP.
//!
//! Left out: deciding to use it. An image is either refused by `scan` or rewritten, then scanned
//! again; only the second form changes what the image's digest in the Start record stands for, so
//! both sides must do the same.

#![forbid(unsafe_code)]

use super::scan::{Finding, Forbidden};

/// Port whose one-byte read stands for RDTSC; unused on a PC.
pub const TRAP_PORT: u8 = 0x5c;

/// in al, imm8.
const KERNEL_RDTSC: [u8; 2] = [0xe4, TRAP_PORT];
/// in al, imm8; nop.
const KERNEL_RDTSCP: [u8; 3] = [0xe4, TRAP_PORT, 0x90];
/// xor eax, eax: EDX keeps what the program had there, which replay has too.
const VDSO_RDTSC: [u8; 2] = [0x31, 0xc0];
/// xor eax, eax; cdq.
const VDSO_RDTSCP: [u8; 3] = [0x31, 0xc0, 0x99];

/// A finding that cannot be rewritten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot rewrite: {0}")]
pub struct CannotRewrite(pub String);

/// Rewrites every refused finding of a scan of `vmlinux` in place and says how many there were.
///
/// # Errors
/// When a finding is uncertain or the bytes are not those of the scan.
pub fn rewrite(vmlinux: &mut [u8], findings: &[Finding]) -> Result<usize, CannotRewrite> {
    let refused: Vec<_> = findings
        .iter()
        .filter(|f| f.instruction.refused())
        .collect();
    for finding in &refused {
        let (old, new): (&[u8], &[u8]) = match (finding.instruction, finding.vdso) {
            (Forbidden::Rdtscp, false) => (&[0x0f, 0x01, 0xf9], &KERNEL_RDTSCP),
            (Forbidden::Rdtscp, true) => (&[0x0f, 0x01, 0xf9], &VDSO_RDTSCP),
            (_, false) => (&[0x0f, 0x31], &KERNEL_RDTSC),
            (_, true) => (&[0x0f, 0x31], &VDSO_RDTSC),
        };
        let end = finding.offset.saturating_add(old.len());
        let place = vmlinux
            .get_mut(finding.offset..end)
            .filter(|place| *place == old);
        match place {
            Some(place) if finding.certain => place.copy_from_slice(new),
            _ => return Err(CannotRewrite(finding.to_string())),
        }
    }
    Ok(refused.len())
}

#[cfg(test)]
mod tests {
    use super::super::elf::tests::with_sections;
    use super::super::scan::{refuse, scan};
    use super::*;

    #[test]
    fn kernel_and_vdso_forms_differ_and_nothing_is_left() {
        let vdso = with_sections(&[(".text", &[0x0f, 0x31, 0x0f, 0x01, 0xf9, 0xc3], true)]);
        let text = [0x0f, 0x31, 0x0f, 0x01, 0xf9, 0xc3];
        let mut file = with_sections(&[(".text", &text, true), (".data", &vdso, false)]);
        let findings = scan(&file).expect("elf");
        assert_eq!(rewrite(&mut file, &findings), Ok(4));
        let again = scan(&file).expect("elf");
        assert_eq!(refuse(&again), Ok(()));
        let bytes = |f: &Finding, n| file[f.offset..f.offset + n].to_vec();
        assert_eq!(bytes(&findings[0], 2), [0xe4, TRAP_PORT]);
        assert_eq!(bytes(&findings[1], 3), [0xe4, TRAP_PORT, 0x90]);
        assert_eq!(bytes(&findings[2], 2), [0x31, 0xc0]);
        assert_eq!(bytes(&findings[3], 3), [0x31, 0xc0, 0x99]);
    }

    #[test]
    fn uncertain_or_changed_places_are_refused() {
        let mut file = with_sections(&[(".text", &[0x0f, 0x31, 0xc3], true)]);
        let mut findings = scan(&file).expect("elf");
        findings[0].certain = false;
        assert!(rewrite(&mut file, &findings).is_err());
        findings[0].certain = true;
        findings[0].offset += 1;
        assert!(rewrite(&mut file, &findings).is_err());
        findings[0].offset = usize::MAX;
        assert!(rewrite(&mut file, &findings).is_err());
    }
}
