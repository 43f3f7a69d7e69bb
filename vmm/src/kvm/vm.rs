//! One virtual machine on KVM: capabilities checked and set, memory given, one vCPU created.
//!
//! Everything that could let the host's state into the guest is switched off here or refused: no
//! in-kernel interrupt controller or PIT is created, the guest PMU is disabled, MSRs are filtered.
//! Left out: what runs on the vCPU (`vcpu`), devices (`machine`).

use super::dirty::DirtyLog;
use super::{KvmError, call, cpuid, guest_memory, msr, vcpu::Vcpu};
use crate::machine::layout;
use crate::machine::ram::GuestRam;
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_PMU_CAPABILITY, KVM_CAP_SET_GUEST_DEBUG, KVM_PMU_CAP_DISABLE,
    KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT, KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS,
    KVM_X86_QUIRK_OUT_7E_INC_RIP, kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::sync::Arc;

/// API version that every KVM since 2007 reports.
const KVM_API_VERSION: i32 = 12;

/// Old behaviours of KVM that only matter to old guests, and would let MWAIT pass silently.
const QUIRKS_OFF: u32 = KVM_X86_QUIRK_OUT_7E_INC_RIP
    | KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT
    | KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS;

/// A virtual machine with its memory.
///
/// Field order matters: the VM's descriptor is closed before the memory it maps goes away.
pub struct Vm {
    fd: Arc<VmFd>,
    kvm: Kvm,
    memory: GuestRam,
}

impl Vm {
    /// Creates a VM around `memory`.
    ///
    /// # Errors
    /// When KVM is absent, lacks a capability, or the host's processor lacks a feature of the guest
    /// CPU model.
    pub fn new(memory: GuestRam) -> Result<Self, KvmError> {
        let kvm = open()?;
        cpuid::check_host(&kvm)?;
        Self::create(kvm, memory)
    }

    /// Creates a VM without looking at the host's processor: for `doctor`, which reports it.
    pub(crate) fn unchecked(memory: GuestRam) -> Result<Self, KvmError> {
        Self::create(open()?, memory)
    }

    fn create(kvm: Kvm, memory: GuestRam) -> Result<Self, KvmError> {
        let fd = call("KVM_CREATE_VM", kvm.create_vm())?;
        // Where KVM on Intel keeps three pages of its own, and one more for real mode.
        call(
            "KVM_SET_TSS_ADDR",
            fd.set_tss_address(layout::KVM_TSS as usize),
        )?;
        disable_guest_pmu(&fd)?;
        disable_quirks(&fd)?;
        msr::install_filter(&fd)?;
        guest_memory::register(&fd, &memory)?;
        let fd = Arc::new(fd);
        Ok(Self { fd, kvm, memory })
    }

    /// Guest memory.
    #[must_use]
    pub const fn memory(&self) -> &GuestRam {
        &self.memory
    }

    /// A handle to the dirty log, for any thread.
    #[must_use]
    pub fn dirty_log(&self) -> DirtyLog {
        DirtyLog::new(Arc::clone(&self.fd), self.memory.clone())
    }

    /// Creates the one vCPU, with the fixed CPU model. Call on the thread that will run it.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn create_vcpu(&self) -> Result<Vcpu, KvmError> {
        let fd = call("KVM_CREATE_VCPU", self.fd.create_vcpu(0))?;
        let sync_regs = self.kvm.check_extension_int(Cap::SyncRegs);
        Vcpu::new(fd, self.fd.run_size(), sync_regs)
    }
}

/// Opens `/dev/kvm` and checks what every VM needs.
fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(KvmError::Open)?;
    if kvm.get_api_version() != KVM_API_VERSION {
        return Err(KvmError::Missing("the stable KVM interface (version 12)"));
    }
    let needed = [
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
        (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
        (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
        (Cap::Xsave, "KVM_CAP_XSAVE"),
        (
            Cap::X86UserSpaceMsr,
            "KVM_CAP_X86_USER_SPACE_MSR (Linux 5.10)",
        ),
        (Cap::X86MsrFilter, "KVM_CAP_X86_MSR_FILTER (Linux 5.10)"),
    ];
    for (capability, name) in needed {
        if !kvm.check_extension(capability) {
            return Err(KvmError::Missing(name));
        }
    }
    if kvm.check_extension_raw(u64::from(KVM_CAP_SET_GUEST_DEBUG)) <= 0 {
        return Err(KvmError::Missing("KVM_CAP_SET_GUEST_DEBUG"));
    }
    Ok(kvm)
}

/// Without it RDPMC and the counter MSRs stay #GP through the CPU model and the filter alone, so
/// an older kernel is accepted.
fn disable_guest_pmu(vm: &VmFd) -> Result<(), KvmError> {
    let offered = vm.check_extension_raw(u64::from(KVM_CAP_PMU_CAPABILITY));
    if offered <= 0 || offered.unsigned_abs() & KVM_PMU_CAP_DISABLE == 0 {
        return Ok(());
    }
    let capability = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [u64::from(KVM_PMU_CAP_DISABLE), 0, 0, 0],
        ..kvm_enable_cap::default()
    };
    call("KVM_CAP_PMU_CAPABILITY", vm.enable_cap(&capability))
}

fn disable_quirks(vm: &VmFd) -> Result<(), KvmError> {
    let offered = vm.check_extension_raw(u64::from(KVM_CAP_DISABLE_QUIRKS2));
    let off = u32::try_from(offered).unwrap_or(0) & QUIRKS_OFF;
    if off == 0 {
        return Ok(());
    }
    let capability = kvm_enable_cap {
        cap: KVM_CAP_DISABLE_QUIRKS2,
        args: [u64::from(off), 0, 0, 0],
        ..kvm_enable_cap::default()
    };
    call("KVM_CAP_DISABLE_QUIRKS2", vm.enable_cap(&capability))
}
