//! The one virtual processor: enter, leave, answer, inject, read and write registers.
//!
//! ```text
//!            run()                       run()
//!   ready ----------> Exit(read) -- answer(Data) --> ready
//!     ^  \--> Exit(write | halt | window) ----------> ready   (answer(None) is optional)
//!     |   \-> Kicked ------------------------------> ready   (not an exit, never counted)
//!     +------- complete_io() finishes the last access without entering the guest
//! ```
//!
//! Invariants: a read must be answered before the next `run`; a window is requested only at an
//! exit, so that its opening is a function of guest state; registers read at an exit are those
//! before the pending access completes (its result is not in RAX yet), the same on record and
//! replay.
//!
//! An interrupt is injected only where no access is left unfinished that may fault:
//! [`Vcpu::can_inject`] says why.
//!
//! The general registers come with every exit through KVM_SYNC_REGS where the host has it, so that
//! [`Vcpu::check`] costs no system call.

use super::exit::{self, BadExit, Raw};
use super::guest_debug::{self, Beside};
use super::kick::{self, Armed, Kicker};
use super::{KvmError, call, cpuid, interrupt, run_page, state};
use crate::machine::cpu_state::{CpuState, DebugRegisters, GeneralRegisters, Msr};
use crate::machine::exit::{Answer, VmExit};
use kvm_bindings::{
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP, KVM_SYNC_X86_REGS, kvm_enable_cap, kvm_guest_debug,
};
use kvm_ioctls::{SyncReg, VcpuFd};

/// Why [`Vcpu::run`] came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunOutcome {
    /// A synchronous exit.
    Exit(VmExit),
    /// A kick or another signal; the guest is between instructions, nothing is counted.
    Kicked,
    /// A breakpoint or single step asked for with [`Vcpu::debug`]: not an exit either.
    Debug {
        /// Linear address of the next instruction.
        pc: u64,
        /// Which condition: bit 14 single step, bits 0-3 breakpoint.
        dr6: u64,
    },
}

/// How the guest is stopped between exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Debugging {
    /// Not at all.
    Off,
    /// After one instruction.
    SingleStep,
    /// Before the instruction at this linear address.
    Breakpoint(u64),
    /// The same, with the guest's own breakpoints in force.
    Beside(Beside),
    /// Before an instruction at any of these.
    Breakpoints([Option<u64>; 4]),
}

/// What the last exit still waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pending {
    Nothing,
    PortRead,
    MmioRead,
    MsrRead,
    MsrWrite,
}

/// A vCPU. Belongs to the thread that created it.
pub struct Vcpu {
    /// Dropped before `fd`: points into its run page.
    armed: Armed,
    fd: VcpuFd,
    run_bytes: usize,
    pending: Pending,
    /// The last access is finished by the next entry only, and may fault there.
    unfinished: bool,
    /// Whether the run page carries the general registers, and whether they are current.
    sync_regs: bool,
    synced: bool,
}

impl Vcpu {
    pub(super) fn new(
        mut fd: VcpuFd,
        run_bytes: usize,
        sync_capability: i32,
    ) -> Result<Self, KvmError> {
        call("KVM_SET_CPUID2", fd.set_cpuid2(&cpuid::table()?))?;
        enforce_pv_features(&fd);
        let sync_regs =
            u32::try_from(sync_capability).is_ok_and(|mask| mask & KVM_SYNC_X86_REGS != 0);
        if sync_regs {
            fd.set_sync_valid_reg(SyncReg::Register);
        }
        let armed = kick::arm(&mut fd).map_err(KvmError::Kick)?;
        let pending = Pending::Nothing;
        Ok(Self {
            armed,
            fd,
            run_bytes,
            pending,
            unfinished: false,
            sync_regs,
            synced: false,
        })
    }

    /// A handle with which any thread makes `run` return [`RunOutcome::Kicked`].
    #[must_use]
    pub fn kicker(&self) -> Kicker {
        self.armed.kicker()
    }

    /// Enters the guest until the next exit, kick or debug stop.
    ///
    /// # Errors
    /// When the last read was not answered, or KVM cannot go on.
    pub fn run(&mut self) -> Result<RunOutcome, KvmError> {
        match self.enter()? {
            Raw::Interrupted => {
                self.armed.acknowledge();
                Ok(RunOutcome::Kicked)
            }
            Raw::Debug { pc, dr6 } => Ok(RunOutcome::Debug { pc, dr6 }),
            raw => Ok(RunOutcome::Exit(self.exit(raw)?)),
        }
    }

    fn enter(&mut self) -> Result<Raw, KvmError> {
        if matches!(
            self.pending,
            Pending::PortRead | Pending::MmioRead | Pending::MsrRead
        ) {
            return Err(self.misfit("nothing"));
        }
        self.pending = Pending::Nothing;
        self.unfinished = false;
        let raw = match self.fd.run() {
            Ok(exit) => exit::decode(exit),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Raw::Interrupted,
            Err(source) => {
                return Err(KvmError::Call {
                    call: "KVM_RUN",
                    source,
                });
            }
        };
        self.synced = self.sync_regs;
        Ok(raw)
    }

    /// Completes an exit with what only the run page knows, and notes what it waits for.
    fn exit(&mut self, raw: Raw) -> Result<VmExit, KvmError> {
        let exit = match raw {
            Raw::Exit(exit) => exit,
            Raw::PortRead(port) => {
                let shape = self.port_shape()?;
                VmExit::PortRead {
                    port,
                    size: shape.size,
                    count: shape.count,
                }
            }
            Raw::PortWrite(port, data) => VmExit::PortWrite {
                port,
                size: self.port_shape()?.size,
                data,
            },
            Raw::Internal => return Err(self.internal_error()),
            Raw::Bad(bad) => return Err(bad.into()),
            Raw::Interrupted | Raw::Debug { .. } => {
                return Err(BadExit::Unexpected("a stop that is no exit".into()).into());
            }
        };
        self.pending = match exit {
            VmExit::PortRead { .. } => Pending::PortRead,
            VmExit::MmioRead { .. } => Pending::MmioRead,
            VmExit::MsrRead { .. } => Pending::MsrRead,
            VmExit::MsrWrite { .. } => Pending::MsrWrite,
            _ => Pending::Nothing,
        };
        self.unfinished = matches!(self.pending, Pending::PortRead | Pending::MmioRead);
        if self.pending == Pending::MsrWrite {
            // Accepted unless the machine says otherwise.
            run_page::answer_msr(&mut self.fd, Some(0));
        }
        Ok(exit)
    }

    fn port_shape(&mut self) -> Result<run_page::PortAccess, KvmError> {
        run_page::port_access(self.fd.get_kvm_run())
            .ok_or_else(|| BadExit::Unexpected("port access without a shape".into()).into())
    }

    fn internal_error(&mut self) -> KvmError {
        let (suberror, details) =
            run_page::internal_error(self.fd.get_kvm_run()).unwrap_or_default();
        let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
        BadExit::Internal {
            suberror,
            rip,
            details,
        }
        .into()
    }

    /// Gives the guest what its last exit asked for. It takes effect at the next entry.
    ///
    /// # Errors
    /// When `answer` does not fit what was asked: a bug of the caller, the guest has no part in it.
    pub fn answer(&mut self, answer: Answer) -> Result<(), KvmError> {
        let fits = match (self.pending, &answer) {
            (Pending::PortRead, Answer::Data(data)) => {
                run_page::answer_port(&mut self.fd, self.run_bytes, data)
            }
            (Pending::MmioRead, Answer::Data(data)) => run_page::answer_mmio(&mut self.fd, data),
            (Pending::MsrRead, Answer::Msr(value)) => {
                run_page::answer_msr(&mut self.fd, Some(*value))
            }
            (Pending::MsrRead | Pending::MsrWrite, Answer::MsrFault) => {
                run_page::answer_msr(&mut self.fd, None)
            }
            (Pending::Nothing | Pending::MsrWrite, Answer::None) => true,
            _ => false,
        };
        if !fits {
            return Err(self.misfit(&format!("{answer:?}")));
        }
        self.unfinished |= answer == Answer::MsrFault;
        self.pending = Pending::Nothing;
        Ok(())
    }

    fn misfit(&self, answer: &str) -> KvmError {
        KvmError::Answer {
            answer: answer.into(),
            pending: format!("{:?}", self.pending),
        }
    }

    /// Finishes the last port, memory or MSR access without entering the guest, so that all
    /// registers are those after the instruction. An access of several parts comes back with its
    /// next part as an exit, which must be answered and counted like any other.
    ///
    /// # Errors
    /// As [`Vcpu::run`].
    pub fn complete_io(&mut self) -> Result<Option<VmExit>, KvmError> {
        self.armed.force_exit();
        let raw = self.enter();
        self.armed.unforce_exit();
        match raw? {
            // Not acknowledged: a kick that came meanwhile still ends the next `run`.
            Raw::Interrupted | Raw::Debug { .. } => Ok(None),
            raw => Ok(Some(self.exit(raw)?)),
        }
    }

    /// Whether an interrupt injected now is taken before the next instruction.
    ///
    /// Never while the last access may still fault when the next entry finishes it (a read that goes
    /// to memory, an MSR answered with #GP): KVM would deliver the exception in the interrupt's
    /// place and forget the interrupt, although it says that it is ready. Ask for a window instead.
    #[must_use]
    pub fn can_inject(&mut self) -> bool {
        if self.unfinished {
            return false;
        }
        let run = self.fd.get_kvm_run();
        run.ready_for_interrupt_injection != 0 && run.if_flag != 0
    }

    /// Whether the guest is strictly between two instructions: no exception or interrupt on its way
    /// into it, and no interrupt shadow, which a breakpoint would respect and a window would not show.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn is_between_instructions(&self) -> Result<bool, KvmError> {
        let events = call("KVM_GET_VCPU_EVENTS", self.fd.get_vcpu_events())?;
        Ok(events.exception.injected == 0
            && events.exception.pending == 0
            && events.interrupt.injected == 0
            && events.interrupt.shadow == 0
            && events.nmi.injected == 0
            && events.nmi.pending == 0)
    }

    /// Whether RFLAGS.IF was set at the last exit.
    #[must_use]
    pub fn interrupts_enabled(&mut self) -> bool {
        self.fd.get_kvm_run().if_flag != 0
    }

    /// Makes the guest take the interrupt `vector` at the next entry. Only when
    /// [`Vcpu::can_inject`] holds, and once per entry.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn inject(&mut self, vector: u8) -> Result<(), KvmError> {
        call("KVM_INTERRUPT", interrupt::inject(&self.fd, vector))
    }

    /// Asks for [`VmExit::WindowOpen`] as soon as the guest can take an interrupt. Stays in force
    /// until withdrawn.
    pub fn request_window(&mut self, wanted: bool) {
        self.fd.get_kvm_run().request_interrupt_window = wanted.into();
    }

    /// Sets how the guest stops between exits.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn debug(&mut self, debugging: Debugging) -> Result<(), KvmError> {
        let mut request = kvm_guest_debug::default();
        match debugging {
            Debugging::Off => {}
            Debugging::SingleStep => {
                request.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
            }
            Debugging::Breakpoint(address) => {
                request.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
                request.arch.debugreg[0] = address;
                // DR7: reserved one, local and global enable of breakpoint 0, on execution.
                request.arch.debugreg[7] = 0x403;
            }
            Debugging::Beside(Beside { db, dr7, .. }) => {
                request.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
                request.arch.debugreg[..db.len()].copy_from_slice(&db);
                request.arch.debugreg[7] = dr7;
            }
            Debugging::Breakpoints(addresses) => {
                request.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
                request.arch.debugreg[7] = 0x400;
                for (number, address) in addresses.iter().enumerate() {
                    if let Some(address) = address {
                        request.arch.debugreg[number] = *address;
                        request.arch.debugreg[7] |= 3 << (2 * number);
                    }
                }
            }
        }
        // KVM writes RFLAGS.TF: what the run page says is no longer true.
        self.synced = false;
        call("KVM_SET_GUEST_DEBUG", self.fd.set_guest_debug(&request))
    }

    /// The debug registers as the guest set them.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn debug_registers(&self) -> Result<DebugRegisters, KvmError> {
        state::debug_registers(&self.fd)
    }

    /// Gives the guest a debug exception of its own: `conditions` as in DR6. Taken at the next entry.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn raise_debug(&mut self, conditions: u64) -> Result<(), KvmError> {
        let registers = guest_debug::raised(&self.debug_registers()?, conditions);
        state::raise_debug(&self.fd, &registers)
    }

    /// The general registers now.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn general_registers(&mut self) -> Result<GeneralRegisters, KvmError> {
        if self.synced {
            return Ok(state::general_from(&self.fd.sync_regs_mut().regs));
        }
        Ok(state::general_from(&call(
            "KVM_GET_REGS",
            self.fd.get_regs(),
        )?))
    }

    /// Guest physical address of a linear address, if it is mapped.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn translate(&self, linear: u64) -> Result<Option<u64>, KvmError> {
        let found = call("KVM_TRANSLATE", self.fd.translate_gva(linear))?;
        Ok((found.valid != 0).then_some(found.physical_address))
    }

    /// Replaces the general registers.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn set_general_registers(&mut self, general: &GeneralRegisters) -> Result<(), KvmError> {
        self.synced = false;
        call(
            "KVM_SET_REGS",
            self.fd.set_regs(&state::general_into(general)),
        )
    }

    /// The value of one MSR.
    ///
    /// # Errors
    /// When KVM does not have it.
    pub fn msr(&self, index: u32) -> Result<u64, KvmError> {
        state::msr(&self.fd, index)
    }

    /// Replaces the value of one MSR.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn set_msr(&mut self, index: u32, value: u64) -> Result<(), KvmError> {
        state::set_msr(&self.fd, Msr { index, value })
    }

    /// Sixteen bits of the digest of the general registers: the check of an execution point.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn check(&mut self) -> Result<u16, KvmError> {
        Ok(self.general_registers()?.check())
    }

    /// Digest of all registers.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn registers_digest(&mut self) -> Result<u64, KvmError> {
        Ok(self.save()?.digest())
    }

    /// Reads all registers.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn save(&mut self) -> Result<CpuState, KvmError> {
        state::save(&self.fd)
    }

    /// Replaces all registers; a pending answer is forgotten.
    ///
    /// # Errors
    /// When KVM refuses the state.
    pub fn restore(&mut self, cpu: &CpuState) -> Result<(), KvmError> {
        self.synced = false;
        self.pending = Pending::Nothing;
        self.unfinished = false;
        state::restore(&self.fd, cpu)
    }
}

/// Makes paravirtual features that the CPU model does not list unreachable. Best effort: Linux
/// 5.10 and later has it, and without it a guest would have to use what it was told is absent.
fn enforce_pv_features(fd: &VcpuFd) {
    let capability = kvm_enable_cap {
        cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
        args: [1, 0, 0, 0],
        ..kvm_enable_cap::default()
    };
    if let Err(error) = fd.enable_cap(&capability) {
        tracing::debug!(%error, "KVM_CAP_ENFORCE_PV_FEATURE_CPUID");
    }
}
