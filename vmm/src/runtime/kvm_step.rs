//! Crossing the last part of a landing one instruction at a time, on hosts without usable breakpoints.
//!
//! `hidden_trap_flag` says why the guest never sees that it is stepped. Nothing of this outlasts the
//! landing: on arrival, at a kick, at an exit and at an error the gates are the guest's own again, before
//! anybody looks at guest memory.

use super::hidden_trap_flag::{
    Flags, GATE_BYTES, GATES_MAX, Gates, OPCODE_BYTES, RFLAGS_TF, TF_IN_SECOND_BYTE, Trap,
    flags_image_at, flags_of, halts_in, is_halt, some_handler,
};
use super::kvm_executor::KvmExecutor;
use crate::clock::landing::Plan;
use crate::kvm::KvmError;
use crate::kvm::vcpu::{Debugging, RunOutcome};
use crate::machine::exit::VmExit;
use crate::replication::executor::{Arrival, Stretch};
use logging_channel::execution_point::{ExecutionPoint, PointKind};
use vm_memory::{Bytes, GuestAddress};

/// MSR with the flags that SYSCALL clears.
const SFMASK: u32 = 0xc000_0084;

const PAGE_BYTES: u64 = 0x1000;

/// Pages of code searched for HLT: 8 MiB, more than a kernel's text.
const HALT_PAGES_MAX: u64 = 2_048;

/// DR7: the enables of all breakpoints.
const DR7_ENABLES: u64 = 0xff;

const STEPS_ITSELF: KvmError =
    KvmError::GuestDebugs("single-steps itself on a host without breakpoints");

/// A HLT in the guest's kernel: linear and guest physical address.
pub(super) type Halt = (u64, u64);

/// How a stretch of single steps ended.
enum End {
    Arrived,
    Overshot,
    Kicked,
    Exit(VmExit),
}

/// The gates while they are hooked, and where they are.
struct Hooked {
    base: u64,
    gates: Gates,
}

impl KvmExecutor {
    /// Goes to `target`, which is within the margin, step by step; or to the next exit or kick.
    pub(super) fn step_on(&mut self, target: &ExecutionPoint) -> Result<Stretch, KvmError> {
        self.refuse_guests_own_debugging()?;
        let mut hooked = self.hook_gates()?;
        let end = self.step_until(target, &mut hooked);
        self.unhook(hooked)?;
        self.stop_landing()?;
        match end? {
            End::Arrived => {
                self.at = Some(PointKind::Between);
                Ok(self.stopped(Arrival::Point))
            }
            End::Overshot => Ok(self.stopped(Arrival::Overshot)),
            End::Kicked => Ok(self.stopped(Arrival::Kicked)),
            End::Exit(exit) => self.handle(&exit),
        }
    }

    fn step_until(
        &mut self,
        target: &ExecutionPoint,
        hooked: &mut Option<Hooked>,
    ) -> Result<End, KvmError> {
        let method = self.branch_clock()?.method();
        let mut armed = false;
        loop {
            match self.plan_on(target, method)? {
                Plan::Arrived => return Ok(End::Arrived),
                Plan::Overshot => return Ok(End::Overshot),
                Plan::Step { arm_after } if !armed => {
                    // Once: the count goes on towards the same place.
                    self.branch_clock()?.arm(arm_after)?;
                    armed = true;
                }
                _ => {}
            }
            if let Some(end) = self.step(hooked)? {
                return Ok(end);
            }
        }
    }

    /// One instruction, or the way into a handler. `None` when the guest stands behind it.
    fn step(&mut self, hooked: &mut Option<Hooked>) -> Result<Option<End>, KvmError> {
        let before = self.vcpu.general_registers()?;
        let flags = self.next_flags(before.rip)?;
        let mut mask = None;
        match flags {
            Flags::OtherGates => self.unhook(hooked.take())?,
            Flags::Syscall => {
                let usual = self.vcpu.msr(SFMASK)?;
                self.vcpu.set_msr(SFMASK, usual & !RFLAGS_TF)?;
                mask = Some(usual);
            }
            Flags::Sysret if before.r11 & RFLAGS_TF != 0 => return Err(STEPS_ITSELF),
            Flags::Loaded { image_at } => self.refuse_trap_in(before.rsp.wrapping_add(image_at))?,
            Flags::Sysret => {
                let mut with_trap = before;
                with_trap.r11 |= RFLAGS_TF;
                self.vcpu.set_general_registers(&with_trap)?;
            }
            Flags::Kept | Flags::Pushed => {}
        }
        // Every time: POPF and IRET have dropped the flag, a handler's first instruction has none.
        self.vcpu.debug(Debugging::SingleStep)?;
        let outcome = self.enter()?;
        if let Some(usual) = mask {
            self.vcpu.set_msr(SFMASK, usual)?;
        }
        let mut after = self.vcpu.general_registers()?;
        let stepped = matches!(outcome, RunOutcome::Debug { .. });
        match flags {
            Flags::Sysret => {
                after.r11 = before.r11;
                self.vcpu.set_general_registers(&after)?;
            }
            Flags::Syscall if stepped => {
                after.r11 &= !RFLAGS_TF;
                self.vcpu.set_general_registers(&after)?;
            }
            Flags::Pushed if stepped => self.mend_flags_image(after.rsp)?,
            Flags::OtherGates => *hooked = self.hook_gates()?,
            _ => {}
        }
        if stepped && is_kernel(before.rip) && !is_kernel(after.rip) {
            self.refuse_separate_page_tables(hooked.as_ref())?;
        }
        let trap_at = |rip| hooked.as_ref().and_then(|hooked| hooked.gates.trap_at(rip));
        match outcome {
            RunOutcome::Debug { .. } => Ok(None),
            // A HLT that the guest itself is about to execute is no trap.
            RunOutcome::Exit(VmExit::Halt) => match trap_at(after.rip.wrapping_sub(1)) {
                Some(trap) if before.rip != trap.halt => self.enter_handler(trap).map(|()| None),
                _ => Ok(Some(End::Exit(VmExit::Halt))),
            },
            RunOutcome::Exit(exit) => Ok(Some(End::Exit(exit))),
            RunOutcome::Kicked => {
                if let Some(trap) = trap_at(after.rip)
                    && before.rip != trap.halt
                {
                    self.enter_handler(trap)?;
                }
                Ok(Some(End::Kicked))
            }
        }
    }

    /// What is the guest's own cannot be told apart from ours while it is stepped.
    fn refuse_guests_own_debugging(&mut self) -> Result<(), KvmError> {
        if self.vcpu.general_registers()?.rflags & RFLAGS_TF != 0 {
            return Err(STEPS_ITSELF);
        }
        if self.vcpu.debug_registers()?.dr7 & DR7_ENABLES != 0 {
            return Err(KvmError::GuestDebugs(
                "has hardware breakpoints on a host without",
            ));
        }
        Ok(())
    }

    /// The next instruction loads the flags from here.
    fn refuse_trap_in(&mut self, image: u64) -> Result<(), KvmError> {
        match self.read_linear(image.wrapping_add(1), 1)?.first() {
            Some(byte) if byte & TF_IN_SECOND_BYTE != 0 => Err(STEPS_ITSELF),
            _ => Ok(()),
        }
    }

    /// The guest has just come to user mode, and the next gate is taken from there.
    fn refuse_separate_page_tables(&self, hooked: Option<&Hooked>) -> Result<(), KvmError> {
        let halt = hooked.and_then(|hooked| hooked.gates.some_halt());
        match halt.map(|halt| self.vcpu.translate(halt)).transpose()? {
            Some(None) => Err(KvmError::GuestDebugs(
                "has separate page tables for user mode (pti) on a host without breakpoints",
            )),
            _ => Ok(()),
        }
    }

    /// The processor has built the frame and stands at the gate's HLT: on to the handler itself.
    fn enter_handler(&mut self, trap: Trap) -> Result<(), KvmError> {
        let mut general = self.vcpu.general_registers()?;
        general.rip = trap.handler;
        self.vcpu.set_general_registers(&general)?;
        self.mend_flags_image(general.rsp.wrapping_add(flags_image_at(trap.vector)))
    }

    /// Takes TF out of an image of RFLAGS.
    fn mend_flags_image(&mut self, image: u64) -> Result<(), KvmError> {
        let Some(gpa) = self.vcpu.translate(image.wrapping_add(1))? else {
            return Ok(());
        };
        let mut byte = [0];
        let memory = self.machine.memory();
        // The processor has just written there: it is memory.
        if memory.read_slice(&mut byte, GuestAddress(gpa)).is_ok() {
            byte[0] &= !TF_IN_SECOND_BYTE;
            let _ = memory.write_slice(&byte, GuestAddress(gpa));
        }
        Ok(())
    }

    /// What the next instruction does with flags. Code that is not mapped will fault, which shows them to
    /// the gates only; PUSHF of 32-bit code is recognised by the segment.
    fn next_flags(&mut self, rip: u64) -> Result<Flags, KvmError> {
        let flags = flags_of(&self.read_linear(rip, OPCODE_BYTES)?);
        if flags != Flags::Kept && !self.vcpu.save()?.system.cs.l {
            let plain = self.read_linear(rip, 1)? == [0x9c];
            return Ok(if plain { Flags::Pushed } else { Flags::Kept });
        }
        Ok(flags)
    }

    /// Leads every gate to a HLT. `None` where the guest has no table yet.
    fn hook_gates(&mut self) -> Result<Option<Hooked>, KvmError> {
        let table = self.vcpu.save()?.system.idt;
        let bytes = (usize::from(table.limit) + 1).min(GATE_BYTES * GATES_MAX);
        let original = self.read_linear(table.base, bytes)?;
        let Some(handler) = some_handler(&original) else {
            return Ok(None);
        };
        self.find_halts(handler)?;
        let halts: Vec<u64> = self.halts.iter().map(|(linear, _)| *linear).collect();
        let gates = Gates::hook(original, &halts).ok_or(KvmError::GuestDebugs(
            "has gates without a HLT near them on a host without breakpoints",
        ))?;
        self.write_linear(table.base, gates.hooked())?;
        let base = table.base;
        Ok(Some(Hooked { base, gates }))
    }

    fn unhook(&mut self, hooked: Option<Hooked>) -> Result<(), KvmError> {
        let Some(Hooked { base, gates }) = hooked else {
            return Ok(());
        };
        let now = self.read_linear(base, gates.hooked().len())?;
        self.write_linear(base, &gates.restored(&now))
    }

    /// Finds a HLT for every gate in the code at and below a handler; those known are looked at again.
    fn find_halts(&mut self, handler: u64) -> Result<(), KvmError> {
        let memory = self.machine.memory();
        let stands = |(_, gpa): &Halt| {
            let mut byte = [0];
            memory.read_slice(&mut byte, GuestAddress(*gpa)).is_ok() && is_halt(byte[0])
        };
        if !self.halts.is_empty() && self.halts.iter().all(stands) {
            return Ok(());
        }
        self.halts.clear();
        let first = handler & !(PAGE_BYTES - 1);
        for number in 0..HALT_PAGES_MAX {
            let page = first.wrapping_sub(number * PAGE_BYTES);
            let Some(gpa) = self.vcpu.translate(page)? else {
                break;
            };
            let code = self.read_linear(page, usize::try_from(PAGE_BYTES).unwrap_or(0))?;
            self.halts
                .extend(halts_in(&code).map(|at| (page + at, gpa + at)));
            if self.halts.len() >= GATES_MAX {
                break;
            }
        }
        self.halts.truncate(GATES_MAX);
        Ok(())
    }

    /// Up to `length` bytes at a linear address, as far as it is mapped to memory.
    fn read_linear(&mut self, linear: u64, length: usize) -> Result<Vec<u8>, KvmError> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let at = linear.wrapping_add(bytes.len() as u64);
            let Some(gpa) = self.vcpu.translate(at)? else {
                break;
            };
            let mut piece = vec![0; within_page(at).min(length - bytes.len())];
            let memory = self.machine.memory();
            if memory.read_slice(&mut piece, GuestAddress(gpa)).is_err() {
                break;
            }
            bytes.append(&mut piece);
        }
        Ok(bytes)
    }

    /// Writes where [`KvmExecutor::read_linear`] has read.
    fn write_linear(&mut self, linear: u64, bytes: &[u8]) -> Result<(), KvmError> {
        let mut done = 0;
        while done < bytes.len() {
            let at = linear.wrapping_add(done as u64);
            let Some(gpa) = self.vcpu.translate(at)? else {
                break;
            };
            let piece = within_page(at).min(bytes.len() - done);
            let memory = self.machine.memory();
            // It was read from there: it is memory.
            let _ = memory.write_slice(&bytes[done..done + piece], GuestAddress(gpa));
            done += piece;
        }
        Ok(())
    }
}

/// Linux keeps its kernel in the upper half.
const fn is_kernel(linear: u64) -> bool {
    linear >> 63 == 1
}

/// Bytes from a linear address to the end of its page.
fn within_page(linear: u64) -> usize {
    usize::try_from(PAGE_BYTES - linear % PAGE_BYTES).unwrap_or(0)
}
