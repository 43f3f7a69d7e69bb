//! Model-specific registers: which ones the guest reaches natively.
//!
//! The filter denies by default. KVM handles natively only registers that are pure guest state
//! (system call entry points, segment bases, EFER, PAT); every other access leaves the guest and is
//! answered by us, so that neither the host's processor nor its kernel's idea of an MSR (the
//! `ignore_msrs` parameter among others) can show through.
//!
//! What the others answer is `machine::msr`.

use kvm_bindings::{KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, kvm_enable_cap};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

use super::{KvmError, call};

/// First MSR, count, and bitmap of those handled natively.
const NATIVE: [(u32, u32, [u8; 1]); 4] = [
    (0x0000_0174, 3, [0b111]),    // SYSENTER_CS, ESP, EIP
    (0x0000_0277, 1, [0b1]),      // PAT
    (0xc000_0080, 5, [0b1_1111]), // EFER, STAR, LSTAR, CSTAR, SFMASK
    (0xc000_0100, 3, [0b111]),    // FS_BASE, GS_BASE, KERNEL_GS_BASE
];

/// Sends every MSR but the native ones to user space.
pub(super) fn install_filter(vm: &VmFd) -> Result<(), KvmError> {
    let capability = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        args: [u64::from(KVM_MSR_EXIT_REASON_FILTER), 0, 0, 0],
        ..kvm_enable_cap::default()
    };
    call("KVM_CAP_X86_USER_SPACE_MSR", vm.enable_cap(&capability))?;
    let ranges = NATIVE
        .each_ref()
        .map(|(base, msr_count, bitmap)| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: *base,
            msr_count: *msr_count,
            bitmap,
        });
    call(
        "KVM_X86_SET_MSR_FILTER",
        vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::cpu_state::MSRS;

    fn native(index: u32) -> bool {
        NATIVE.iter().any(|(base, count, bitmap)| {
            index
                .checked_sub(*base)
                .is_some_and(|i| i < *count && bitmap[i as usize / 8] >> (i % 8) & 1 == 1)
        })
    }

    #[test]
    fn native_msrs_are_exactly_the_saved_ones() {
        for msr in MSRS {
            assert!(native(msr.index), "{:#x} is saved but filtered", msr.index);
        }
        let saved_elsewhere = [0xc000_0080, 0xc000_0100, 0xc000_0101];
        for (base, count, _) in NATIVE {
            for index in base..base + count {
                assert!(
                    MSRS.iter().any(|m| m.index == index) || saved_elsewhere.contains(&index),
                    "{index:#x} is native but not saved"
                );
            }
        }
    }

    #[test]
    fn ticking_and_unknown_msrs_never_run_natively() {
        for index in [
            0x10,
            0x3b,
            0xe7,
            0xe8,
            0xc1,
            0x6e0,
            0x4b56_4d01,
            0xc001_0200,
        ] {
            assert!(!native(index), "{index:#x}");
        }
    }
}
