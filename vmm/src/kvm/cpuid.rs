//! The guest's processor model, leaf by leaf, as constants of ours.
//!
//! Nothing of the host reaches the guest through CPUID: the answer of KVM_GET_SUPPORTED_CPUID holds
//! the APIC id of whichever host CPU asked, cache sizes, and features that come and go with kernels
//! and microcode. It is used for one thing only: to refuse a host that lacks a bit the model has.
//!
//! The model: x86-64 baseline with SSE3 to SSE4.2, POPCNT, CX16, LAHF (x86-64-v2). Deliberately
//! absent: TSC and RDTSCP (time only moves by log records), APIC and x2APIC (8259 pair), XSAVE and
//! all that needs it (XINUSE is set speculatively on some processors), RDRAND and RDSEED (entropy
//! comes from records), the PMU, MONITOR/MWAIT, TSX, MCE/MCA/MTRR (host-dependent MSR banks), HTT and
//! topology leaves, VME (of use in 16-bit code only, and emulated hosts lack it).
//!
//! Vendor, family and model are those of AMD's first EPYC (17h, 01h). One constant for all hosts,
//! because the vendor decides which MSRs, errata and patch-ups Linux uses; this one because the
//! emulated hosts of the lab show it and because Linux needs no MSR of it that we cannot answer with a
//! constant. On an Intel host the guest therefore does not know about Intel-only flaws: use hosts
//! that are not affected by Meltdown and L1TF, or add `pti=on` to the command line.
//!
//! KVM itself changes two bits of leaf 1 at run time, APIC (from IA32_APIC_BASE, which we set to
//! disabled) and OSXSAVE (from CR4): both stay 0. `doctor` reads every leaf back from inside a guest.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use super::{KvmError, call};

/// Name and revision of the model; part of the Start record and compared by the handshake. Any
/// change to the table below changes it.
pub const CPU_MODEL: &str = "understudy-v1.1";

/// One answer of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// EAX on entry.
    pub function: u32,
    /// EAX on return.
    pub eax: u32,
    /// EBX on return.
    pub ebx: u32,
    /// ECX on return.
    pub ecx: u32,
    /// EDX on return.
    pub edx: u32,
}

/// Family 17h, model 01h, stepping 2.
const SIGNATURE: u32 = 0x0080_0f12;
/// `AuthenticAMD` in EBX, ECX, EDX.
const VENDOR: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65];
/// `KVMKVMKVM\0\0\0` in EBX, ECX, EDX.
const KVM_SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];
/// KVM_FEATURE_CLOCKSOURCE2: pvclock through MSRs 0x4b564d00 and 0x4b564d01.
const KVM_FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
/// KVM_FEATURE_CLOCKSOURCE_STABLE_BIT: the stable flag in the pvclock page can be trusted.
const KVM_FEATURE_CLOCKSOURCE_STABLE: u32 = 1 << 24;
/// Leaf 1 ECX: we are a hypervisor. KVM need not list it as supported.
const HYPERVISOR: u32 = 1 << 31;

/// Leaf 1 ECX: bit and name.
const ECX_1: [(u32, &str); 6] = [
    (0, "SSE3"),
    (9, "SSSE3"),
    (13, "CX16"),
    (19, "SSE4.1"),
    (20, "SSE4.2"),
    (23, "POPCNT"),
];
/// Leaf 1 EDX: bit and name.
const EDX_1: [(u32, &str); 16] = [
    (0, "FPU"),
    (2, "DE"),
    (3, "PSE"),
    (5, "MSR"),
    (6, "PAE"),
    (8, "CX8"),
    (11, "SEP"),
    (13, "PGE"),
    (15, "CMOV"),
    (16, "PAT"),
    (17, "PSE36"),
    (19, "CLFLUSH"),
    (23, "MMX"),
    (24, "FXSR"),
    (25, "SSE"),
    (26, "SSE2"),
];
/// Leaf 0x80000001 ECX.
const ECX_81: [(u32, &str); 1] = [(0, "LAHF_LM")];
/// Leaf 0x80000001 EDX beyond the copies of leaf 1.
const EDX_81: [(u32, &str); 3] = [(11, "SYSCALL"), (20, "NX"), (29, "LM")];
/// Bits of leaf 1 EDX that AMD repeats in leaf 0x80000001 EDX.
const EDX_81_COPIES: u32 = 0x0183_f3ff;

const fn mask<const N: usize>(bits: [(u32, &str); N]) -> u32 {
    let mut all = 0;
    let mut i = 0;
    while i < N {
        all |= 1 << bits[i].0;
        i += 1;
    }
    all
}

const FEATURES_ECX_1: u32 = mask(ECX_1);
const FEATURES_EDX_1: u32 = mask(EDX_1);

/// Four bytes of the brand string as CPUID returns them.
const fn brand_word(text: &[u8; 48], at: usize) -> u32 {
    u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]])
}

const BRAND: &[u8; 48] = b"Understudy virtual processor v1.1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

const fn brand_leaf(function: u32, at: usize) -> Leaf {
    Leaf {
        function,
        eax: brand_word(BRAND, at),
        ebx: brand_word(BRAND, at + 4),
        ecx: brand_word(BRAND, at + 8),
        edx: brand_word(BRAND, at + 12),
    }
}

const fn leaf(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> Leaf {
    Leaf {
        function,
        eax,
        ebx,
        ecx,
        edx,
    }
}

/// The whole model, ascending. Leaves that are not here read as zero.
pub const LEAVES: [Leaf; 19] = [
    leaf(0, 7, VENDOR[0], VENDOR[1], VENDOR[2]),
    // EBX: CLFLUSH line of 8 quadwords, one logical processor, APIC id 0.
    leaf(
        1,
        SIGNATURE,
        0x0001_0800,
        FEATURES_ECX_1 | HYPERVISOR,
        FEATURES_EDX_1,
    ),
    leaf(2, 0, 0, 0, 0),
    leaf(3, 0, 0, 0, 0),
    leaf(4, 0, 0, 0, 0),
    leaf(5, 0, 0, 0, 0),
    leaf(6, 0, 0, 0, 0),
    leaf(7, 0, 0, 0, 0),
    leaf(
        0x4000_0000,
        0x4000_0001,
        KVM_SIGNATURE[0],
        KVM_SIGNATURE[1],
        KVM_SIGNATURE[2],
    ),
    leaf(
        0x4000_0001,
        KVM_FEATURE_CLOCKSOURCE2 | KVM_FEATURE_CLOCKSOURCE_STABLE,
        0,
        0,
        0,
    ),
    leaf(0x8000_0000, 0x8000_0008, VENDOR[0], VENDOR[1], VENDOR[2]),
    leaf(
        0x8000_0001,
        SIGNATURE,
        0,
        mask(ECX_81),
        mask(EDX_81) | FEATURES_EDX_1 & EDX_81_COPIES,
    ),
    brand_leaf(0x8000_0002, 0),
    brand_leaf(0x8000_0003, 16),
    brand_leaf(0x8000_0004, 32),
    // L1 TLBs and caches, L2 TLBs and cache, as EPYC has them: Linux prints and sizes by them.
    leaf(
        0x8000_0005,
        0xff40_ff40,
        0xff40_ff40,
        0x2008_0140,
        0x4004_0140,
    ),
    leaf(0x8000_0006, 0x2600_6400, 0x6600_6400, 0x0200_6140, 0),
    leaf(0x8000_0007, 0, 0, 0, 0),
    // 40 physical and 48 linear address bits.
    leaf(0x8000_0008, 0x0000_3028, 0, 0, 0),
];

/// The host cannot run the guest CPU model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this host cannot run the guest CPU model {CPU_MODEL}: KVM offers no {}; use a processor with x86-64-v2 or unmask these features",
    .0.join(", ")
)]
pub struct MissingFeatures(pub Vec<&'static str>);

/// Checks that the host supports every feature of the model.
///
/// # Errors
/// Lists what is missing.
pub fn check_host(kvm: &Kvm) -> Result<(), KvmError> {
    let supported = call(
        "KVM_GET_SUPPORTED_CPUID",
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES),
    )?;
    Ok(check_supported(supported.as_slice())?)
}

fn check_supported(supported: &[kvm_cpuid_entry2]) -> Result<(), MissingFeatures> {
    let find = |function| {
        supported
            .iter()
            .find(|e| e.function == function && e.index == 0)
    };
    let (ecx_1, edx_1) = find(1).map_or((0, 0), |e| (e.ecx, e.edx));
    let (ecx_81, edx_81) = find(0x8000_0001).map_or((0, 0), |e| (e.ecx, e.edx));
    let mut missing = Vec::new();
    let mut need = |have: u32, bits: &[(u32, &'static str)]| {
        missing.extend(
            bits.iter()
                .filter(|(bit, _)| have >> bit & 1 == 0)
                .map(|(_, name)| *name),
        );
    };
    need(ecx_1, &ECX_1);
    need(edx_1, &EDX_1);
    need(ecx_81, &ECX_81);
    need(edx_81, &EDX_81);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(MissingFeatures(missing))
    }
}

/// The model in the form of KVM_SET_CPUID2.
pub(super) fn table() -> Result<CpuId, KvmError> {
    let entries: Vec<kvm_cpuid_entry2> = LEAVES
        .iter()
        .map(|leaf| kvm_cpuid_entry2 {
            function: leaf.function,
            eax: leaf.eax,
            ebx: leaf.ebx,
            ecx: leaf.ecx,
            edx: leaf.edx,
            ..kvm_cpuid_entry2::default()
        })
        .collect();
    CpuId::from_entries(&entries).map_err(|_| KvmError::Call {
        call: "KVM_SET_CPUID2",
        source: kvm_ioctls::Error::new(libc::E2BIG),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(function: u32) -> Leaf {
        *LEAVES
            .iter()
            .find(|l| l.function == function)
            .expect("leaf")
    }

    #[test]
    fn forbidden_features_are_absent() {
        let one = find(1);
        for (bit, name) in [
            (1, "PCLMULQDQ"),
            (3, "MONITOR"),
            (5, "VMX"),
            (12, "FMA"),
            (21, "x2APIC"),
            (24, "TSC-deadline"),
            (25, "AES"),
            (26, "XSAVE"),
            (27, "OSXSAVE"),
            (28, "AVX"),
            (30, "RDRAND"),
        ] {
            assert_eq!(one.ecx >> bit & 1, 0, "{name}");
        }
        for (bit, name) in [
            (4, "TSC"),
            (7, "MCE"),
            (9, "APIC"),
            (12, "MTRR"),
            (14, "MCA"),
        ] {
            assert_eq!(one.edx >> bit & 1, 0, "{name}");
            assert_eq!(find(0x8000_0001).edx >> bit & 1, 0, "{name} in 0x80000001");
        }
        assert_eq!(find(0x8000_0001).edx >> 27 & 1, 0, "RDTSCP");
        assert_eq!(find(7), leaf(7, 0, 0, 0, 0), "RDSEED, RTM, HLE, FSGSBASE");
    }

    #[test]
    fn leaves_are_ascending_and_consistent() {
        assert!(LEAVES.is_sorted_by(|a, b| a.function < b.function));
        assert_eq!(find(0).eax, 7);
        assert_eq!(find(0x8000_0000).eax, 0x8000_0008);
        let bytes: Vec<u8> = VENDOR.iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(
            [&bytes[..4], &bytes[8..], &bytes[4..8]].concat(),
            b"AuthenticAMD"[..].to_vec()
        );
        assert_eq!(table().expect("fits").as_slice().len(), LEAVES.len());
    }

    #[test]
    fn a_host_without_needed_features_is_refused_by_name() {
        let full = [1u32, 0x8000_0001].map(|function| kvm_cpuid_entry2 {
            function,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..kvm_cpuid_entry2::default()
        });
        assert_eq!(check_supported(&full), Ok(()));
        let mut lacking = full;
        lacking[0].ecx &= !(1 << 23);
        lacking[1].edx &= !(1 << 20);
        assert_eq!(
            check_supported(&lacking),
            Err(MissingFeatures(vec!["POPCNT", "NX"]))
        );
        let text = MissingFeatures(vec!["POPCNT", "NX"]).to_string();
        assert!(text.contains("POPCNT, NX"), "{text}");
        assert_eq!(check_supported(&[]).expect_err("nothing").0.len(), 26);
    }
}
