//! Probes of the processor that the guest sees: CPUID, privilege changes, faults, registers.

use super::Finding;
use super::tiny_guest::{Ring, SYSCALL_ENTRY, TinyGuest, VECTOR_PORT};
use crate::kvm::KvmError;
use crate::kvm::cpuid::{self, LEAVES, Leaf};
use crate::machine::cpu_state::CpuState;
use crate::machine::exit::VmExit;

/// Leaves that the model does not have and that must read as zero.
const ABSENT: [u32; 8] = [
    0x8,
    0xb,
    0xd,
    0x15,
    0x4000_0002,
    0x4000_0010,
    0x8000_0009,
    0x8000_001e,
];

/// The host offers every feature of the model.
pub(super) fn model_is_offered() -> Result<Finding, KvmError> {
    let kvm = kvm_ioctls::Kvm::new().map_err(KvmError::Open)?;
    cpuid::check_host(&kvm)?;
    Ok(Finding::Good(format!(
        "all features of {}",
        cpuid::CPU_MODEL
    )))
}

/// CPUID in ring 0.
pub(super) fn cpuid_in_ring_0() -> Result<Finding, KvmError> {
    cpuid_leaves(Ring::Kernel)
}

/// CPUID in ring 3.
pub(super) fn cpuid_in_ring_3() -> Result<Finding, KvmError> {
    cpuid_leaves(Ring::User)
}

fn cpuid_leaves(ring: Ring) -> Result<Finding, KvmError> {
    #[rustfmt::skip]
    let code = [
        0xe5, 0x21,       // in eax, 0x21: which leaf
        0x31, 0xc9,       // xor ecx, ecx
        0x0f, 0xa2,       // cpuid
        0xe6, 0x20,       // out 0x20, al
        0xeb, 0xf6,       // jmp start
    ];
    let mut guest = TinyGuest::new(&code, ring)?;
    let absent = ABSENT.map(|function| Leaf {
        function,
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: 0,
    });
    let mut wrong = Vec::new();
    for leaf in LEAVES.iter().chain(&absent) {
        let asked = guest.exit()?;
        if !matches!(asked, VmExit::PortRead { port: 0x21, .. }) {
            return Ok(Finding::Bad(format!("{asked:x?} instead of the next leaf")));
        }
        guest.answer(&leaf.function.to_le_bytes())?;
        let port = guest.port()?;
        let g = guest.cpu.general_registers()?;
        let seen = Leaf {
            function: leaf.function,
            eax: g.rax as u32,
            ebx: g.rbx as u32,
            ecx: g.rcx as u32,
            edx: g.rdx as u32,
        };
        if port != 0x20 || seen != *leaf {
            wrong.push(format!(
                "leaf {:#x} is {:08x} {:08x} {:08x} {:08x}, not {:08x} {:08x} {:08x} {:08x}",
                seen.function,
                seen.eax,
                seen.ebx,
                seen.ecx,
                seen.edx,
                leaf.eax,
                leaf.ebx,
                leaf.ecx,
                leaf.edx
            ));
        }
    }
    let asked = LEAVES.len() + ABSENT.len();
    match wrong.first() {
        None => Ok(Finding::Good(format!("all {asked} leaves are the model's"))),
        Some(first) => Ok(Finding::Bad(format!(
            "{} of {asked} differ: {first}",
            wrong.len()
        ))),
    }
}

/// Instructions that every kernel uses and that a partial emulator may lack.
pub(super) fn kernel_instructions() -> Result<Finding, KvmError> {
    #[rustfmt::skip]
    let sequences: [(&str, &[u8]); 7] = [
        ("POPCNT", &[0xf3, 0x48, 0x0f, 0xb8, 0xc3]),
        ("FXSAVE", &[0x0f, 0xae, 0x04, 0x24]),
        ("MOVUPS and PXOR", &[0x0f, 0x10, 0x04, 0x24, 0x66, 0x0f, 0xef, 0xc0]),
        ("CMPXCHG16B", &[0xf0, 0x48, 0x0f, 0xc7, 0x0c, 0x24]),
        ("CRC32", &[0xf2, 0x0f, 0x38, 0xf1, 0xc3]),
        ("REP MOVSB", &[0x31, 0xc9, 0x48, 0x89, 0xe6, 0x48, 0x89, 0xe7, 0xf3, 0xa4]),
        ("SWAPGS and INVLPG", &[0x0f, 0x01, 0xf8, 0x0f, 0x01, 0x3c, 0x24]),
    ];
    let mut failed = Vec::new();
    for (name, sequence) in sequences {
        // The sequence, then out 0x10, al.
        let code = [sequence, &[0xe6, 0x10]].concat();
        match TinyGuest::new(&code, Ring::Kernel)?.port() {
            Ok(0x10) => {}
            Ok(port) => failed.push(format!(
                "{name} raises vector {}",
                port.wrapping_sub(VECTOR_PORT)
            )),
            Err(error) => failed.push(format!("{name}: {error}")),
        }
    }
    // int3; out 0x10, al
    let mut guest = TinyGuest::new(&[0xcc, 0xe6, 0x10], Ring::Kernel)?;
    match (guest.port(), guest.port()) {
        (Ok(trap), Ok(0x10)) if trap == VECTOR_PORT + 3 => {}
        (Err(error), _) => failed.push(format!("INT3: {error}")),
        (seen, then) => failed.push(format!("INT3: {seen:x?}, then {then:x?}")),
    }
    Ok(if failed.is_empty() {
        Finding::Good("INT3, POPCNT, FXSAVE, SSE, CMPXCHG16B, CRC32, string moves, SWAPGS".into())
    } else {
        Finding::Bad(failed.join("; "))
    })
}

/// SYSCALL from ring 3 reaches ring 0 and SYSRET goes back.
pub(super) fn syscall() -> Result<Finding, KvmError> {
    // syscall; out 0x31, al
    let mut guest = TinyGuest::with_state(&[0x0f, 0x05, 0xe6, 0x31], Ring::User, |cpu| {
        set_msr(cpu, 0xc000_0081, 0x001b_0008_0000_0000);
        set_msr(cpu, 0xc000_0082, SYSCALL_ENTRY);
        set_msr(cpu, 0xc000_0084, 0x4_7700);
    })?;
    // out 0x30, al; sysretq
    guest.write(SYSCALL_ENTRY, &[0xe6, 0x30, 0x48, 0x0f, 0x07])?;
    let entered = guest.port()?;
    let kernel = guest.cpu.save()?.system;
    if entered != 0x30 || kernel.cs.selector & 3 != 0 || kernel.ss.dpl != 0 {
        return Ok(Finding::Bad(format!(
            "SYSCALL arrives at port {entered:#x} with CS {:#x} and privilege level {}",
            kernel.cs.selector, kernel.ss.dpl
        )));
    }
    let returned = guest.port()?;
    let user = guest.cpu.save()?.system;
    Ok(
        if returned == 0x31 && user.cs.selector == 0x2b && user.ss.dpl == 3 {
            Finding::Good("SYSCALL reaches ring 0, SYSRET returns to ring 3".into())
        } else {
            Finding::Bad(format!(
                "SYSRET arrives at port {returned:#x} with CS {:#x}",
                user.cs.selector
            ))
        },
    )
}

fn set_msr(cpu: &mut CpuState, index: u32, value: u64) {
    for msr in &mut cpu.msrs {
        if msr.index == index {
            msr.value = value;
        }
    }
}

/// With CR4.TSD set RDTSC in ring 3 is a #GP.
pub(super) fn time_stamp_disable() -> Result<Finding, KvmError> {
    // rdtsc; out 0x10, al
    let mut guest = TinyGuest::with_state(&[0x0f, 0x31, 0xe6, 0x10], Ring::User, |cpu| {
        cpu.system.cr4 |= 1 << 2;
    })?;
    Ok(match guest.port()? {
        port if port == VECTOR_PORT + 13 => Finding::Good("RDTSC in ring 3 faults".into()),
        0x10 => Finding::Bad("RDTSC in ring 3 runs although CR4.TSD is set".into()),
        port => Finding::Bad(format!("RDTSC in ring 3 leads to port {port:#x}")),
    })
}

/// XSAVE is not there, and cannot be switched on.
pub(super) fn xsave_absent() -> Result<Finding, KvmError> {
    #[rustfmt::skip]
    let code = [
        0x0f, 0x20, 0xe0,                   // mov rax, cr4
        0x0d, 0x00, 0x00, 0x04, 0x00,       // or eax, OSXSAVE
        0x0f, 0x22, 0xe0,                   // mov cr4, rax
        0xe6, 0x10,                         // out 0x10, al
    ];
    let switched = TinyGuest::new(&code, Ring::Kernel)?.port()?;
    // xor ecx, ecx; xgetbv; out 0x11, al
    let used = TinyGuest::new(&[0x31, 0xc9, 0x0f, 0x01, 0xd0, 0xe6, 0x11], Ring::Kernel)?.port()?;
    Ok(if (switched, used) == (VECTOR_PORT + 13, VECTOR_PORT + 6) {
        Finding::Good("CR4.OSXSAVE is a #GP, XGETBV a #UD".into())
    } else {
        Finding::Bad(format!(
            "ports {switched:#x} and {used:#x} instead of #GP and #UD"
        ))
    })
}

/// Instructions that CPUID does not offer but a processor may run all the same.
pub(super) fn hidden_instructions() -> Result<Finding, KvmError> {
    #[rustfmt::skip]
    let hidden: [(&str, &[u8]); 5] = [
        ("RDTSC", &[0x0f, 0x31]),
        ("RDTSCP", &[0x0f, 0x01, 0xf9]),
        ("RDRAND", &[0x0f, 0xc7, 0xf0]),
        ("RDSEED", &[0x0f, 0xc7, 0xf8]),
        ("RDPMC", &[0x31, 0xc9, 0x0f, 0x33]),
    ];
    let mut runs = Vec::new();
    for (name, bytes) in hidden {
        let code = [bytes, &[0xe6, 0x10]].concat();
        if matches!(TinyGuest::new(&code, Ring::Kernel)?.port(), Ok(0x10)) {
            runs.push(name);
        }
    }
    Ok(if runs.is_empty() {
        Finding::Good("none of RDTSC, RDTSCP, RDRAND, RDSEED, RDPMC runs".into())
    } else {
        let which = runs.join(", ");
        Finding::Note(format!(
            "{which} run natively: the kernel image is scanned for them"
        ))
    })
}

/// All registers can be read, written and read again; FPU registers are the guest's.
pub(super) fn registers_round_trip() -> Result<Finding, KvmError> {
    // movups xmm7, [rsp]; fld1; out 0x10, al; out 0x11, al
    let code = [0x0f, 0x10, 0x3c, 0x24, 0xd9, 0xe8, 0xe6, 0x10, 0xe6, 0x11];
    let mut guest = TinyGuest::new(&code, Ring::Kernel)?;
    guest.write(0x8_0000, &[0x42; 16])?;
    guest.port()?;
    let synced = guest.cpu.general_registers()?;
    guest.cpu.complete_io()?;
    let saved = guest.cpu.save()?;
    if saved.fpu.xmm[7] != [0x42; 16] || saved.fpu.st[0][7] != 0x80 {
        return Ok(Finding::Bad(format!(
            "FPU registers read as {:x?}",
            saved.fpu
        )));
    }
    if synced.rsp != saved.general.rsp || synced.rax != saved.general.rax {
        return Ok(Finding::Bad(
            "the run page and KVM_GET_REGS disagree".into(),
        ));
    }
    let mut other = TinyGuest::new(&code, Ring::User)?;
    other.cpu.restore(&saved)?;
    let again = other.cpu.save()?;
    if again.canonical() != saved.canonical() {
        return Ok(Finding::Bad(format!(
            "{saved:x?} was restored as {again:x?}"
        )));
    }
    let port = other.port()?;
    Ok(if port == 0x11 {
        Finding::Good("saved in one vCPU, restored in another, equal, goes on".into())
    } else {
        Finding::Bad(format!("a restored vCPU goes on at port {port:#x}"))
    })
}
