//! Probes of exits: ports, memory, HLT, MSRs, kicks, and what an exit costs.

use super::Finding;
use super::tiny_guest::{CODE, Ring, TinyGuest, VECTOR_PORT};
use crate::kvm::KvmError;
use crate::kvm::vcpu::RunOutcome;
use crate::machine::exit::{Answer, VmExit};
use rustix::time::{ClockId, clock_gettime};

/// Exits timed by [`exit_cost`].
const TIMED_EXITS: u32 = 2_000;
/// An exit above this is a software KVM or an emulated host.
const SLOW_EXIT_NS: u64 = 10_000;

/// A byte goes out, one comes in and goes out again; a string of four words.
pub(super) fn port_io() -> Result<Finding, KvmError> {
    #[rustfmt::skip]
    let code = [
        0xb0, 0x5a,             // mov al, 0x5a
        0xe6, 0x10,             // out 0x10, al
        0xe4, 0x11,             // in al, 0x11
        0xe6, 0x12,             // out 0x12, al
        0x66, 0xba, 0x13, 0x00, // mov dx, 0x13
        0xbe, 0x00, 0x00, 0x01, 0x00, // mov esi, 0x10000
        0xb9, 4, 0, 0, 0,       // mov ecx, 4
        0xfc, 0xf3, 0x66, 0x6f, // cld; rep outsw
        0xf4,                   // hlt
    ];
    let mut guest = TinyGuest::new(&code, Ring::Kernel)?;
    let first = guest.exit()?;
    let second = guest.exit()?;
    guest.answer(&[0xa5])?;
    let third = guest.exit()?;
    let written = |port, byte| VmExit::PortWrite {
        port,
        size: 1,
        data: vec![byte],
    };
    let read = VmExit::PortRead {
        port: 0x11,
        size: 1,
        count: 1,
    };
    if (&first, &second, &third) != (&written(0x10, 0x5a), &read, &written(0x12, 0xa5)) {
        return Ok(Finding::Bad(format!(
            "unexpected accesses {first:x?}, {second:x?}, {third:x?}"
        )));
    }
    let mut string = Vec::new();
    let mut exits = 0;
    loop {
        match guest.exit()? {
            VmExit::PortWrite {
                port: 0x13,
                size: 2,
                data,
            } => string.extend(data),
            VmExit::Halt => break,
            other => {
                return Ok(Finding::Bad(format!(
                    "unexpected {other:x?} in a string write"
                )));
            }
        }
        exits += 1;
    }
    if string == code[..8] {
        Ok(Finding::Good(format!(
            "single and string accesses ({exits} exits for 4 words)"
        )))
    } else {
        Ok(Finding::Bad(format!(
            "a string write brought {string:02x?}"
        )))
    }
}

/// Eight bytes to and from an address without memory.
pub(super) fn memory_io() -> Result<Finding, KvmError> {
    #[rustfmt::skip]
    let code = [
        0xbb, 0x00, 0x00, 0x00, 0xd0, // mov ebx, 0xd0000000
        0x48, 0x8b, 0x03,             // mov rax, [rbx]
        0x48, 0x89, 0x43, 0x08,       // mov [rbx + 8], rax
        0xf4,                         // hlt
    ];
    let mut guest = TinyGuest::new(&code, Ring::Kernel)?;
    let read = guest.exit()?;
    if read
        != (VmExit::MmioRead {
            gpa: 0xd000_0000,
            length: 8,
        })
    {
        return Ok(Finding::Bad(format!("{read:x?} instead of a read")));
    }
    let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
    guest.answer(&bytes)?;
    let write = guest.exit()?;
    if write
        == (VmExit::MmioWrite {
            gpa: 0xd000_0008,
            data: bytes.to_vec(),
        })
    {
        Ok(Finding::Good("8-byte read and write".into()))
    } else {
        Ok(Finding::Bad(format!("{write:x?} instead of the write")))
    }
}

/// HLT leaves the guest and goes on behind itself.
pub(super) fn halt() -> Result<Finding, KvmError> {
    let code = [0xf4, 0xe6, 0x10];
    let mut guest = TinyGuest::new(&code, Ring::Kernel)?;
    let exit = guest.exit()?;
    if exit != VmExit::Halt {
        return Ok(Finding::Bad(format!("{exit:x?} instead of HLT")));
    }
    let port = guest.port()?;
    Ok(if port == 0x10 {
        Finding::Good("HLT exits and resumes".into())
    } else {
        Finding::Bad(format!("port {port:#x} behind HLT"))
    })
}

/// A guest that spins comes back when another thread kicks it.
pub(super) fn kick() -> Result<Finding, KvmError> {
    let mut guest = TinyGuest::new(&[0xeb, 0xfe], Ring::Kernel)?;
    let kicker = guest.cpu.kicker();
    let thread = std::thread::spawn(move || kicker.kick());
    let outcome = guest.cpu.run()?;
    let joined = thread.join().is_ok();
    let rip = guest.cpu.general_registers()?.rip;
    Ok(if outcome == RunOutcome::Kicked && joined && rip == CODE {
        Finding::Good("a signal ends KVM_RUN between instructions".into())
    } else {
        Finding::Bad(format!("{outcome:x?} at {rip:#x}"))
    })
}

/// Filtered MSRs come to us, an unknown one faults, a native one does not exit.
pub(super) fn msr_filter() -> Result<Finding, KvmError> {
    #[rustfmt::skip]
    let code = [
        0xb9, 0x10, 0x00, 0x00, 0x00, // mov ecx, IA32_TSC
        0x0f, 0x32,                   // rdmsr
        0xe6, 0x10,                   // out 0x10, al
        0xb9, 0x01, 0x4d, 0x56, 0x4b, // mov ecx, 0x4b564d01
        0x0f, 0x30,                   // wrmsr
        0xb9, 0x82, 0x00, 0x00, 0xc0, // mov ecx, LSTAR
        0x0f, 0x30,                   // wrmsr
        0x0f, 0x32,                   // rdmsr
        0xe6, 0x11,                   // out 0x11, al
        0xb9, 0xe7, 0x00, 0x00, 0x00, // mov ecx, IA32_MPERF
        0x0f, 0x32,                   // rdmsr
    ];
    let mut guest = TinyGuest::new(&code, Ring::Kernel)?;
    let read = guest.exit()?;
    if read != (VmExit::MsrRead { index: 0x10 }) {
        return Ok(Finding::Bad(format!("IA32_TSC is not filtered: {read:x?}")));
    }
    guest.cpu.answer(Answer::Msr(0x1122_3344_0000_0055))?;
    let port = guest.port()?;
    guest.cpu.complete_io()?;
    let general = guest.cpu.general_registers()?;
    if (port, general.rax, general.rdx) != (0x10, 0x55, 0x1122_3344) {
        return Ok(Finding::Bad(format!(
            "our MSR value arrived as {general:x?}"
        )));
    }
    let write = guest.exit()?;
    if write
        != (VmExit::MsrWrite {
            index: 0x4b56_4d01,
            value: 0x1122_3344_0000_0055,
        })
    {
        return Ok(Finding::Bad(format!(
            "the pvclock MSR is not filtered: {write:x?}"
        )));
    }
    // LSTAR is not canonical with that value: #GP. Give it one that is.
    guest.cpu.complete_io()?;
    let mut general = guest.cpu.general_registers()?;
    general.rdx = 0;
    guest.cpu.set_general_registers(&general)?;
    let native = guest.port()?;
    if native != 0x11 {
        return Ok(Finding::Bad(format!(
            "LSTAR is not native: port {native:#x}"
        )));
    }
    let unknown = guest.exit()?;
    guest.cpu.answer(Answer::MsrFault)?;
    let fault = guest.port()?;
    Ok(
        if unknown == (VmExit::MsrRead { index: 0xe7 }) && fault == VECTOR_PORT + 13 {
            Finding::Good("ticking MSRs come to us, #GP on request, LSTAR native".into())
        } else {
            Finding::Bad(format!("{unknown:x?}, then port {fault:#x} instead of #GP"))
        },
    )
}

/// Host time of a port exit.
pub(super) fn exit_cost() -> Result<Finding, KvmError> {
    // out 0x10, al; jmp back
    let mut guest = TinyGuest::new(&[0xe6, 0x10, 0xeb, 0xfc], Ring::Kernel)?;
    guest.port()?;
    let start = monotonic_ns();
    for _ in 0..TIMED_EXITS {
        guest.port()?;
    }
    let each = monotonic_ns().saturating_sub(start) / u64::from(TIMED_EXITS);
    let text = format!("{}.{} us for a port exit", each / 1_000, each % 1_000 / 100);
    Ok(if each < SLOW_EXIT_NS {
        Finding::Good(text)
    } else {
        Finding::Note(format!("{text}: a software KVM or an emulated host"))
    })
}

/// Host time, to tell what things cost.
pub(super) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
