//! The page that a vCPU shares with KVM (`struct kvm_run`): exit details that kvm-ioctls does not
//! hand out, and the places where answers go.
//!
//! Invariant: a union field is read or written only while `exit_reason` names it; `Vcpu` keeps
//! that as its pending answer. Also KVM_SET_XSAVE, which kvm-ioctls marks unsafe because of
//! dynamically enabled features: we enable none.

#![expect(
    unsafe_code,
    reason = "kvm_run holds a union and data behind the struct"
)]

use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR,
    kvm_run, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

/// Shape of a port access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PortAccess {
    /// 1, 2 or 4.
    pub(super) size: u8,
    /// Accesses.
    pub(super) count: u32,
    /// Where the data lies, from the start of the page.
    offset: u64,
}

/// The port access of the current exit.
pub(super) fn port_access(run: &kvm_run) -> Option<PortAccess> {
    if run.exit_reason != KVM_EXIT_IO {
        return None;
    }
    // SAFETY: the exit reason, set by the kernel, says that `io` is the live field.
    let io = unsafe { run.__bindgen_anon_1.io };
    Some(PortAccess {
        size: io.size,
        count: io.count,
        offset: io.data_offset,
    })
}

/// Writes the answer of a port read. False when `data` has the wrong length.
pub(super) fn answer_port(vcpu: &mut VcpuFd, run_bytes: usize, data: &[u8]) -> bool {
    let run = vcpu.get_kvm_run();
    let Some(access) = port_access(run) else {
        return false;
    };
    let length = usize::from(access.size) * access.count as usize;
    let Ok(offset) = usize::try_from(access.offset) else {
        return false;
    };
    if data.len() != length || offset.checked_add(length).is_none_or(|end| end > run_bytes) {
        return false;
    }
    let base: *mut u8 = std::ptr::from_mut(run).cast();
    // SAFETY: `base` points at the vCPU's mapping of `run_bytes` bytes, and `offset` is inside it.
    let place = unsafe { base.add(offset) };
    // SAFETY: the check above keeps the copy inside the mapping; KVM touches the area only during
    // KVM_RUN, and `vcpu` is borrowed mutably.
    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), place, length) };
    true
}

/// Writes the answer of a memory read. False when `data` has the wrong length.
pub(super) fn answer_mmio(vcpu: &mut VcpuFd, data: &[u8]) -> bool {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_MMIO {
        return false;
    }
    // SAFETY: the exit reason says that `mmio` is the live field.
    let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
    let Some(place) = mmio.data.get_mut(..mmio.len as usize) else {
        return false;
    };
    if place.len() != data.len() {
        return false;
    }
    place.copy_from_slice(data);
    true
}

/// Writes the answer of an MSR access: `None` makes it a #GP.
pub(super) fn answer_msr(vcpu: &mut VcpuFd, value: Option<u64>) -> bool {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_X86_RDMSR && run.exit_reason != KVM_EXIT_X86_WRMSR {
        return false;
    }
    let read = run.exit_reason == KVM_EXIT_X86_RDMSR;
    // SAFETY: the exit reason says that `msr` is the live field.
    let msr = unsafe { &mut run.__bindgen_anon_1.msr };
    msr.error = u8::from(value.is_none());
    if read {
        msr.data = value.unwrap_or(0);
    }
    true
}

/// Sub-error and details of KVM_EXIT_INTERNAL_ERROR.
pub(super) fn internal_error(run: &kvm_run) -> Option<(u32, Vec<u64>)> {
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return None;
    }
    // SAFETY: the exit reason says that `internal` is the live field.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let count = (internal.ndata as usize).min(internal.data.len());
    Some((internal.suberror, internal.data[..count].to_vec()))
}

/// KVM_SET_XSAVE.
pub(super) fn set_xsave(vcpu: &VcpuFd, xsave: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: no dynamically enabled XSAVE feature exists in our guests (arch_prctl is never
    // called), so KVM reads at most the 4,096 bytes of `kvm_xsave`.
    unsafe { vcpu.set_xsave(xsave) }
}
