//! KVM_INTERRUPT: an external interrupt into a vCPU whose interrupt controller is ours.
//!
//! kvm-ioctls has no wrapper for it. Legal only when the last exit left
//! `ready_for_interrupt_injection` set and RFLAGS.IF is on ([`super::vcpu::Vcpu::can_inject`]); KVM
//! takes it at the next entry and keeps it in the vCPU's events until then.

#![expect(unsafe_code, reason = "kvm-ioctls does not wrap KVM_INTERRUPT")]

use kvm_bindings::{KVMIO, kvm_interrupt};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

mod number {
    use super::{KVMIO, ioctl_iow_nr, kvm_interrupt};
    ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
}

/// Queues `vector` for the next entry.
pub(super) fn inject(vcpu: &VcpuFd, vector: u8) -> Result<(), kvm_ioctls::Error> {
    let interrupt = kvm_interrupt {
        irq: u32::from(vector),
    };
    // SAFETY: `vcpu` is a vCPU file descriptor and KVM_INTERRUPT reads exactly one `kvm_interrupt`.
    let status = unsafe { ioctl_with_ref(vcpu, number::KVM_INTERRUPT(), &interrupt) };
    if status < 0 {
        Err(kvm_ioctls::Error::last())
    } else {
        Ok(())
    }
}
