//! Between KVM's register structures and [`CpuState`].
//!
//! FPU state goes through KVM_GET_XSAVE, not KVM_GET_FPU: the latter copies the kernel's save area
//! as it is, and XSAVEOPT/XSAVES leave *stale* registers there when a component is in its initial
//! state, so two equal guests would differ by when the host last switched tasks.
//! Event numbers that are no longer pending are dropped for the same reason.

use super::{KvmError, call, run_page};
use crate::machine::cpu_state::{
    CpuState, DebugRegisters, DescriptorTable, Events, FpuState, GeneralRegisters, MSRS, Msr,
    PendingException, Segment, SystemRegisters,
};
use kvm_bindings::{
    KVM_VCPUEVENT_VALID_PAYLOAD, KVM_VCPUEVENT_VALID_SHADOW, Msrs, kvm_debugregs, kvm_dtable,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

/// XSTATE_BV bits for x87 and SSE.
const XSTATE_X87_SSE: u32 = 0b11;
/// Word of the XSAVE header in the XSAVE area.
const XSTATE_BV_WORD: usize = 512 / 4;

pub(super) const fn general_from(regs: &kvm_regs) -> GeneralRegisters {
    GeneralRegisters {
        rax: regs.rax,
        rbx: regs.rbx,
        rcx: regs.rcx,
        rdx: regs.rdx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        rsp: regs.rsp,
        rbp: regs.rbp,
        r8: regs.r8,
        r9: regs.r9,
        r10: regs.r10,
        r11: regs.r11,
        r12: regs.r12,
        r13: regs.r13,
        r14: regs.r14,
        r15: regs.r15,
        rip: regs.rip,
        rflags: regs.rflags,
    }
}

pub(super) const fn general_into(general: &GeneralRegisters) -> kvm_regs {
    kvm_regs {
        rax: general.rax,
        rbx: general.rbx,
        rcx: general.rcx,
        rdx: general.rdx,
        rsi: general.rsi,
        rdi: general.rdi,
        rsp: general.rsp,
        rbp: general.rbp,
        r8: general.r8,
        r9: general.r9,
        r10: general.r10,
        r11: general.r11,
        r12: general.r12,
        r13: general.r13,
        r14: general.r14,
        r15: general.r15,
        rip: general.rip,
        rflags: general.rflags,
    }
}

fn segment_from(s: &kvm_segment) -> Segment {
    Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        kind: s.type_,
        dpl: s.dpl,
        present: s.present != 0,
        db: s.db != 0,
        s: s.s != 0,
        l: s.l != 0,
        g: s.g != 0,
        avl: s.avl != 0,
        unusable: s.unusable != 0,
    }
}

fn segment_into(s: &Segment) -> kvm_segment {
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.kind,
        present: s.present.into(),
        dpl: s.dpl,
        db: s.db.into(),
        s: s.s.into(),
        l: s.l.into(),
        g: s.g.into(),
        avl: s.avl.into(),
        unusable: s.unusable.into(),
        padding: 0,
    }
}

const fn table_from(t: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: t.base,
        limit: t.limit,
    }
}

const fn table_into(t: &DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: t.base,
        limit: t.limit,
        padding: [0; 3],
    }
}

fn system_from(s: &kvm_sregs) -> SystemRegisters {
    SystemRegisters {
        cs: segment_from(&s.cs),
        ds: segment_from(&s.ds),
        es: segment_from(&s.es),
        fs: segment_from(&s.fs),
        gs: segment_from(&s.gs),
        ss: segment_from(&s.ss),
        tr: segment_from(&s.tr),
        ldt: segment_from(&s.ldt),
        gdt: table_from(&s.gdt),
        idt: table_from(&s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
    }
}

/// IA32_APIC_BASE becomes 0: an enabled APIC would show in CPUID leaf 1.
fn system_into(s: &SystemRegisters) -> kvm_sregs {
    kvm_sregs {
        cs: segment_into(&s.cs),
        ds: segment_into(&s.ds),
        es: segment_into(&s.es),
        fs: segment_into(&s.fs),
        gs: segment_into(&s.gs),
        ss: segment_into(&s.ss),
        tr: segment_into(&s.tr),
        ldt: segment_into(&s.ldt),
        gdt: table_into(&s.gdt),
        idt: table_into(&s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: 0,
        interrupt_bitmap: [0; 4],
    }
}

fn events_from(e: &kvm_vcpu_events) -> Events {
    let exception = (e.exception.injected != 0 || e.exception.pending != 0).then(|| {
        let code = (e.exception.has_error_code != 0).then_some(e.exception.error_code);
        let payload = (e.exception_has_payload != 0).then_some(e.exception_payload);
        PendingException {
            vector: e.exception.nr,
            injected: e.exception.injected != 0,
            error_code: code,
            payload,
        }
    });
    Events {
        exception,
        interrupt: (e.interrupt.injected != 0).then_some(e.interrupt.nr),
        shadow: e.interrupt.shadow,
        nmi_masked: e.nmi.masked != 0,
    }
}

/// `payloads` says whether KVM distinguishes pending exceptions with payloads; without it (the
/// default) a pending exception is reported, and set, as injected.
fn events_into(events: &Events) -> kvm_vcpu_events {
    let mut e = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_SHADOW,
        ..kvm_vcpu_events::default()
    };
    if let Some(exception) = events.exception {
        e.exception.nr = exception.vector;
        e.exception.injected = exception.injected.into();
        e.exception.pending = (!exception.injected).into();
        e.exception.has_error_code = exception.error_code.is_some().into();
        e.exception.error_code = exception.error_code.unwrap_or(0);
        if let Some(payload) = exception.payload {
            e.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
            e.exception_has_payload = 1;
            e.exception_payload = payload;
        }
    }
    e.interrupt.injected = events.interrupt.is_some().into();
    e.interrupt.nr = events.interrupt.unwrap_or(0);
    e.interrupt.shadow = events.shadow;
    e.nmi.masked = events.nmi_masked.into();
    e
}

/// The legacy area as bytes (SDM volume 1, 10.5.1; the same as FXSAVE64).
fn fpu_from(xsave: &kvm_xsave) -> FpuState {
    let mut area = [0u8; 512];
    for (chunk, word) in area.chunks_exact_mut(4).zip(&xsave.region) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    let sixteen = |at: usize| {
        let mut register = [0u8; 16];
        register.copy_from_slice(&area[at..at + 16]);
        register
    };
    let quad = |at: usize| {
        let register = sixteen(at & !15);
        let half = if at & 8 == 0 {
            &register[..8]
        } else {
            &register[8..]
        };
        half.iter()
            .rev()
            .fold(0u64, |all, &byte| all << 8 | u64::from(byte))
    };
    FpuState {
        fcw: u16::from_le_bytes([area[0], area[1]]),
        fsw: u16::from_le_bytes([area[2], area[3]]),
        ftw: area[4],
        fop: u16::from_le_bytes([area[6], area[7]]),
        fip: quad(8),
        fdp: quad(16),
        mxcsr: u32::from_le_bytes([area[24], area[25], area[26], area[27]]),
        st: std::array::from_fn(|i| sixteen(32 + 16 * i)),
        xmm: std::array::from_fn(|i| sixteen(160 + 16 * i)),
    }
}

fn fpu_into(fpu: &FpuState) -> kvm_xsave {
    let mut area = [0u8; 512];
    area[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
    area[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
    area[4] = fpu.ftw;
    area[6..8].copy_from_slice(&fpu.fop.to_le_bytes());
    area[8..16].copy_from_slice(&fpu.fip.to_le_bytes());
    area[16..24].copy_from_slice(&fpu.fdp.to_le_bytes());
    area[24..28].copy_from_slice(&fpu.mxcsr.to_le_bytes());
    for (place, register) in area[32..]
        .chunks_exact_mut(16)
        .zip(fpu.st.iter().chain(&fpu.xmm))
    {
        place.copy_from_slice(register);
    }
    let mut xsave = kvm_xsave::default();
    for (word, chunk) in xsave.region.iter_mut().zip(area.chunks_exact(4)) {
        *word = chunk
            .iter()
            .rev()
            .fold(0, |all, &byte| all << 8 | u32::from(byte));
    }
    xsave.region[XSTATE_BV_WORD] = XSTATE_X87_SSE;
    xsave
}

/// #DB.
const VECTOR_DEBUG: u8 = 1;

/// Reads everything.
pub(super) fn save(fd: &VcpuFd) -> Result<CpuState, KvmError> {
    let regs = call("KVM_GET_REGS", fd.get_regs())?;
    let sregs = call("KVM_GET_SREGS", fd.get_sregs())?;
    let debug = debug_registers(fd)?;
    let events = call("KVM_GET_VCPU_EVENTS", fd.get_vcpu_events())?;
    let xsave = call("KVM_GET_XSAVE", fd.get_xsave())?;
    let mut msrs = msr_list(MSRS.iter().copied())?;
    let read = call("KVM_GET_MSRS", fd.get_msrs(&mut msrs))?;
    all_msrs("KVM_GET_MSRS", read, MSRS.len())?;
    Ok(CpuState {
        general: general_from(&regs),
        system: system_from(&sregs),
        debug,
        msrs: msrs
            .as_slice()
            .iter()
            .map(|m| Msr {
                index: m.index,
                value: m.data,
            })
            .collect(),
        fpu: fpu_from(&xsave),
        events: events_from(&events),
    })
}

/// CR4: global pages.
const CR4_PGE: u64 = 1 << 7;

/// Writes everything.
pub(super) fn restore(fd: &VcpuFd, state: &CpuState) -> Result<(), KvmError> {
    let system = system_into(&state.system);
    // Memory was replaced under the processor, page tables included. KVM flushes its translations when
    // a paging bit changes (`kvm_mmu_reset_context`, arch/x86/kvm/mmu/mmu.c), so one does.
    let mut other = system;
    other.cr4 ^= CR4_PGE;
    call("KVM_SET_SREGS", fd.set_sregs(&other))?;
    call("KVM_SET_SREGS", fd.set_sregs(&system))?;
    call("KVM_SET_REGS", fd.set_regs(&general_into(&state.general)))?;
    let msrs = msr_list(state.msrs.iter().copied())?;
    let written = call("KVM_SET_MSRS", fd.set_msrs(&msrs))?;
    all_msrs("KVM_SET_MSRS", written, state.msrs.len())?;
    call(
        "KVM_SET_XSAVE",
        run_page::set_xsave(fd, &fpu_into(&state.fpu)),
    )?;
    set_debug_registers(fd, &state.debug)?;
    // Last: KVM_SET_REGS drops pending exceptions.
    call(
        "KVM_SET_VCPU_EVENTS",
        fd.set_vcpu_events(&events_into(&state.events)),
    )
}

/// The guest's debug registers.
pub(super) fn debug_registers(fd: &VcpuFd) -> Result<DebugRegisters, KvmError> {
    let debug = call("KVM_GET_DEBUGREGS", fd.get_debug_regs())?;
    Ok(DebugRegisters {
        db: debug.db,
        dr6: debug.dr6,
        dr7: debug.dr7,
    })
}

fn set_debug_registers(fd: &VcpuFd, registers: &DebugRegisters) -> Result<(), KvmError> {
    let debug = kvm_debugregs {
        db: registers.db,
        dr6: registers.dr6,
        dr7: registers.dr7,
        ..kvm_debugregs::default()
    };
    call("KVM_SET_DEBUGREGS", fd.set_debug_regs(&debug))
}

/// Lets the next entry deliver a debug exception, with the debug registers like this.
pub(super) fn raise_debug(fd: &VcpuFd, registers: &DebugRegisters) -> Result<(), KvmError> {
    set_debug_registers(fd, registers)?;
    let mut events = call("KVM_GET_VCPU_EVENTS", fd.get_vcpu_events())?;
    events.exception.injected = 1;
    events.exception.pending = 0;
    events.exception.nr = VECTOR_DEBUG;
    events.exception.has_error_code = 0;
    call("KVM_SET_VCPU_EVENTS", fd.set_vcpu_events(&events))
}

/// One MSR's value.
pub(super) fn msr(fd: &VcpuFd, index: u32) -> Result<u64, KvmError> {
    let mut list = msr_list(std::iter::once(Msr { index, value: 0 }))?;
    let done = call("KVM_GET_MSRS", fd.get_msrs(&mut list))?;
    all_msrs("KVM_GET_MSRS", done, 1)?;
    Ok(list.as_slice().first().map_or(0, |entry| entry.data))
}

/// Replaces one MSR's value.
pub(super) fn set_msr(fd: &VcpuFd, msr: Msr) -> Result<(), KvmError> {
    let list = msr_list(std::iter::once(msr))?;
    let done = call("KVM_SET_MSRS", fd.set_msrs(&list))?;
    all_msrs("KVM_SET_MSRS", done, 1)
}

fn msr_list(msrs: impl Iterator<Item = Msr>) -> Result<Msrs, KvmError> {
    let entries: Vec<kvm_msr_entry> = msrs
        .map(|m| kvm_msr_entry {
            index: m.index,
            data: m.value,
            ..kvm_msr_entry::default()
        })
        .collect();
    Msrs::from_entries(&entries).map_err(|_| too_many("KVM_SET_MSRS"))
}

fn all_msrs(call: &'static str, done: usize, wanted: usize) -> Result<(), KvmError> {
    if done == wanted {
        Ok(())
    } else {
        Err(too_many(call))
    }
}

fn too_many(call: &'static str) -> KvmError {
    KvmError::Call {
        call,
        source: kvm_ioctls::Error::new(libc::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fpu_survives_the_xsave_form() {
        let mut fpu = FpuState {
            fip: 0x1122_3344_5566_7788,
            fdp: 9,
            mxcsr: 0x1fa0,
            ..FpuState::default()
        };
        fpu.xmm[15] = [7; 16];
        fpu.st[7][3] = 1;
        assert_eq!(fpu_from(&fpu_into(&fpu)), fpu);
    }

    #[test]
    fn system_registers_survive_and_the_apic_stays_off() {
        let segment = Segment {
            base: 1,
            limit: 2,
            selector: 3,
            kind: 11,
            ..Segment::default()
        };
        let system = SystemRegisters {
            cs: segment,
            cr3: 0x9000,
            ..SystemRegisters::default()
        };
        let raw = system_into(&system);
        assert_eq!(raw.apic_base, 0);
        assert_eq!(system_from(&raw), system);
    }

    #[test]
    fn numbers_of_past_events_are_dropped() {
        let mut raw = kvm_vcpu_events::default();
        raw.exception.nr = 14;
        raw.exception.error_code = 2;
        raw.interrupt.nr = 0x30;
        assert_eq!(events_from(&raw), Events::default());
        raw.interrupt.injected = 1;
        raw.exception.injected = 1;
        let events = events_from(&raw);
        assert_eq!(events.interrupt, Some(0x30));
        assert_eq!(events_from(&events_into(&events)), events);
    }
}
