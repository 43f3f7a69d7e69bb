//! Model-specific registers that the MSR filter takes away from KVM: what a read returns and
//! whether a write is accepted. Nothing here is a host value.
//!
//! The table holds what Linux touches on a machine without APIC, TSC and performance counters.
//! Everything else does not exist: #GP, which Linux's `rdmsr_safe` expects.

#![forbid(unsafe_code)]

use logging_channel::host_time::GuestTime;

/// What an MSR is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Msr {
    /// Counts nanoseconds of guest time; writes are ignored.
    GuestNanoseconds,
    /// Reads as this constant; writes are ignored.
    Constant(u64),
}

/// The table.
const fn lookup(index: u32) -> Option<Msr> {
    Some(match index {
        // IA32_TIME_STAMP_COUNTER, IA32_MPERF, IA32_APERF: all tick once per nanosecond, so that
        // their ratio is that of a processor at its nominal speed.
        0x10 | 0xe7 | 0xe8 => Msr::GuestNanoseconds,
        // IA32_PLATFORM_ID, IA32_TSC_ADJUST, IA32_BIOS_SIGN_ID (microcode revision), FSB frequency.
        0x17 | 0x3b | 0x8b | 0xcd => Msr::Constant(0),
        // MSR_PLATFORM_INFO, IA32_MTRRCAP (no MTRRs), IA32_MCG_CAP and IA32_MCG_STATUS (no banks).
        0xce | 0xfe | 0x179 | 0x17a => Msr::Constant(0),
        // IA32_MISC_ENABLE: fast strings.
        0x1a0 => Msr::Constant(1),
        // IA32_MTRR_DEF_TYPE: disabled.
        0x2ff => Msr::Constant(0),
        // IA32_TSC_DEADLINE: there is no APIC timer.
        0x6e0 => Msr::Constant(0),
        // AMD SYSCFG, HWCR, NB_CFG, INT_PENDING, OSVW length and status, DC_CFG, LS_CFG, DE_CFG,
        // BU_CFG2.
        0xc001_0010 | 0xc001_0015 | 0xc001_001f | 0xc001_0055 | 0xc001_0140 | 0xc001_0141
        | 0xc001_1020 | 0xc001_1022 | 0xc001_1029 | 0xc001_102a => Msr::Constant(0),
        _ => return None,
    })
}

/// What a read returns at guest time `now`; `None` when the register does not exist.
#[must_use]
pub const fn read(index: u32, now: GuestTime) -> Option<u64> {
    match lookup(index) {
        Some(Msr::GuestNanoseconds) => Some(now.as_nanos()),
        Some(Msr::Constant(value)) => Some(value),
        None => None,
    }
}

/// Whether a write is accepted, and then ignored.
#[must_use]
pub const fn accepts_write(index: u32) -> bool {
    lookup(index).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tsc_is_guest_time() {
        let now = GuestTime::from_micros(3);
        assert_eq!(read(0x10, now), Some(3_000));
        assert!(accepts_write(0x10));
    }

    #[test]
    fn an_unknown_register_does_not_exist() {
        assert_eq!(read(0xdead, GuestTime::ZERO), None);
        assert!(!accepts_write(0xdead));
    }
}
