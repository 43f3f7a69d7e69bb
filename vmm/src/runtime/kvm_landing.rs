//! Stopping a guest on KVM between exits: at a place with a name, on one, or near one.
//!
//! The recorder stops where a kick lands, if that place is easy to find again: the last access is
//! completed, no interrupt shadow, no event in delivery, not inside a REP. Otherwise the guest goes
//! on for one more branch. The replayer follows `clock::landing`. A breakpoint is left by setting
//! RFLAGS.RF, never by single-stepping: RF is dropped by the very instruction it lets pass, while TF
//! would be seen by PUSHF, SYSCALL and interrupt frames (AMD APM volume 2, section 13.1.2 and Intel
//! SDM volume 3, section 18.3.1.1 for RF). A host without breakpoints steps all the same: `kvm_step`.
//!
//! A guest that debugs itself (a program under gdb in it, say) keeps its debug exceptions: `kvm::guest_debug`.
//!
//! A kick says nothing about where or why: the count is read again after every stop. Any kick ends
//! the stretch, so that the engine can look at what it was offered; a landing is simply taken up
//! again.

use super::kvm_executor::KvmExecutor;
use crate::clock::branch_clock::{BranchClock, Counter};
use crate::clock::landing::{Crossing, Here, LandingMethod, Plan, plan, plan_near};
use crate::kvm::KvmError;
use crate::kvm::guest_debug::{Beside, Steady};
use crate::kvm::vcpu::{Debugging, RunOutcome};
use crate::replication::executor::{Arrival, Stretch};
use logging_channel::execution_point::{ExecutionPoint, PointKind};
use vm_memory::{Bytes, GuestAddress};

/// RFLAGS.RF: the next instruction does not hit its breakpoint.
const RFLAGS_RF: u64 = 1 << 16;

/// Tries to reach a place with a name after a kick, one branch each as a rule.
const NAMING_TRIES_MAX: u32 = 64;

impl KvmExecutor {
    /// Recording: runs until an exit, or until a kick and from there to a place with a name.
    pub(super) fn run_until_kicked(&mut self) -> Result<Stretch, KvmError> {
        let mut steady = Steady::default();
        for _ in 0..NAMING_TRIES_MAX {
            match self.enter()? {
                RunOutcome::Exit(exit) => {
                    self.branch_clock()?.disarm()?;
                    return self.handle(&exit);
                }
                RunOutcome::Kicked | RunOutcome::Debug { .. } => {}
            }
            let Some(branches) = self.until_nameable(&mut steady)? else {
                self.branch_clock()?.disarm()?;
                self.at = Some(PointKind::Between);
                return Ok(self.stopped(Arrival::Point));
            };
            self.branch_clock()?.arm(branches)?;
        }
        self.branch_clock()?.disarm()?;
        Ok(self.stopped(Arrival::Kicked))
    }

    /// Replaying: goes to `target` exactly, or to the next exit if that comes first.
    pub(super) fn land_on(&mut self, target: &ExecutionPoint) -> Result<Stretch, KvmError> {
        let method = self.branch_clock()?.method();
        if self.unfinished && self.near(target, method.margin)? {
            // The access that caused the exit completes at the next entry; the registers that the
            // target names are those after it.
            self.unfinished = false;
            if let Some(exit) = self.vcpu.complete_io()? {
                return self.handle(&exit);
            }
        }
        let mut beside = None;
        let mut guests_hit = None;
        loop {
            let arm_after = match self.plan_on(target, method)? {
                Plan::Arrived => {
                    self.stop_landing()?;
                    self.at = Some(PointKind::Between);
                    return Ok(self.stopped(Arrival::Point));
                }
                Plan::Overshot => {
                    self.stop_landing()?;
                    return Ok(self.stopped(Arrival::Overshot));
                }
                Plan::Step { .. } => return self.step_on(target),
                Plan::Run { arm_after } => arm_after,
                Plan::Approach { arm_after } => {
                    beside = Some(self.break_at(target.rip)?);
                    arm_after
                }
                Plan::LeaveHit { arm_after } => {
                    beside = Some(self.break_at(target.rip)?);
                    match guests_hit {
                        Some(conditions) => self.vcpu.raise_debug(conditions)?,
                        None => self.leave_hit()?,
                    }
                    arm_after
                }
            };
            self.branch_clock()?.arm(arm_after)?;
            let (outcome, hit) = self.enter_beside(beside, target.rip)?;
            guests_hit = hit;
            match outcome {
                RunOutcome::Debug { .. } => {}
                RunOutcome::Kicked => {
                    self.stop_landing()?;
                    return Ok(self.stopped(Arrival::Kicked));
                }
                RunOutcome::Exit(exit) => {
                    self.stop_landing()?;
                    return self.handle(&exit);
                }
            }
        }
    }

    /// The plan from here. What looks like the target while an event is on its way into the guest is not:
    /// the primary names no such place.
    pub(super) fn plan_on(
        &mut self,
        target: &ExecutionPoint,
        method: LandingMethod,
    ) -> Result<Plan, KvmError> {
        let next = plan(self.here()?, target, method);
        if next == Plan::Arrived && !self.vcpu.is_between_instructions()? {
            return Ok(match method.crossing {
                Crossing::Breakpoint => Plan::LeaveHit { arm_after: 1 },
                Crossing::SingleStep => Plan::Step { arm_after: 1 },
            });
        }
        Ok(next)
    }

    /// Sets a breakpoint that leaves the guest's own debugging to it.
    fn break_at(&mut self, rip: u64) -> Result<Beside, KvmError> {
        let beside = Beside::new(&self.vcpu.debug_registers()?, rip).ok_or(
            KvmError::GuestDebugs("has all four hardware breakpoints in use"),
        )?;
        self.vcpu.debug(Debugging::Beside(beside))?;
        Ok(beside)
    }

    /// Enters; the guest is given the debug exceptions that are its own. One that comes before the
    /// instruction at `rip` comes back instead, with its conditions: that may be the place to stop at.
    /// Ends by the overflow that the counter is armed for, at the latest.
    fn enter_beside(
        &mut self,
        beside: Option<Beside>,
        rip: u64,
    ) -> Result<(RunOutcome, Option<u64>), KvmError> {
        loop {
            let outcome = self.enter()?;
            let (RunOutcome::Debug { pc, dr6 }, Some(beside)) = (&outcome, beside) else {
                return Ok((outcome, None));
            };
            let guest = self.vcpu.debug_registers()?;
            match beside.guests_share(*dr6, &guest, *pc) {
                None => return Ok((outcome, None)),
                Some(share) if *pc == rip && beside.is_before(share) => {
                    return Ok((outcome, Some(share)));
                }
                Some(share) => self.vcpu.raise_debug(share)?,
            }
        }
    }

    /// Lets the next instruction pass its breakpoint. Not while an event is on its way into the guest:
    /// the handler comes first then, and RF would be seen in the frame that is pushed for it.
    fn leave_hit(&mut self) -> Result<(), KvmError> {
        if !self.vcpu.is_between_instructions()? {
            return Ok(());
        }
        let mut general = self.vcpu.general_registers()?;
        general.rflags |= RFLAGS_RF;
        self.vcpu.set_general_registers(&general)
    }

    /// Replaying: runs up to the margin before `target`, or to the next exit if that comes first.
    pub(super) fn land_near(&mut self, target: &ExecutionPoint) -> Result<Stretch, KvmError> {
        let clock = self.branch_clock()?;
        let margin = clock.method().margin;
        let Some(arm_after) = plan_near(clock.branches()?, target, margin) else {
            return Ok(self.stopped(Arrival::Near));
        };
        clock.arm(arm_after)?;
        let outcome = self.enter()?;
        self.branch_clock()?.disarm()?;
        match outcome {
            RunOutcome::Exit(exit) => self.handle(&exit),
            RunOutcome::Kicked | RunOutcome::Debug { .. } => Ok(self.stopped(Arrival::Kicked)),
        }
    }

    pub(super) fn branch_clock(&mut self) -> Result<&mut BranchClock<Box<dyn Counter>>, KvmError> {
        self.clock.as_mut().ok_or(KvmError::NoCounter)
    }

    pub(super) fn stop_landing(&mut self) -> Result<(), KvmError> {
        self.branch_clock()?.disarm()?;
        self.vcpu.debug(Debugging::Off)
    }

    fn near(&mut self, target: &ExecutionPoint, margin: u64) -> Result<bool, KvmError> {
        let branches = self.branch_clock()?.branches()?;
        Ok(target.branches.saturating_sub(branches) <= margin)
    }

    pub(super) fn here(&mut self) -> Result<Here, KvmError> {
        let general = self.vcpu.general_registers()?;
        let branches = self.branch_clock()?.branches()?;
        Ok(Here {
            branches,
            rip: general.rip,
            check: general.check(),
        })
    }

    /// Branches to go on for until the place may have a name; `None` where it has one.
    fn until_nameable(&mut self, steady: &mut Steady) -> Result<Option<u64>, KvmError> {
        let guest = self.vcpu.debug_registers()?;
        let clock = self.branch_clock()?;
        let wait = steady.wait(&guest, clock.branches()?, clock.method().margin);
        match wait {
            0 => Ok((!self.nameable()?).then_some(1)),
            branches => Ok(Some(branches)),
        }
    }

    /// Whether the backup can find the place where the guest was stopped. Not where RFLAGS.RF is set,
    /// as it is behind the IRET of every fault: the breakpoint there would be passed in silence.
    fn nameable(&mut self) -> Result<bool, KvmError> {
        if self.vcpu.general_registers()?.rflags & RFLAGS_RF != 0 {
            return Ok(false);
        }
        Ok(self.vcpu.is_between_instructions()? && !self.at_repeated_instruction()?)
    }

    /// Whether the next instruction repeats itself at one place (REP MOVS and the like): its
    /// iterations differ in registers only, and a breakpoint on it hits once per iteration.
    fn at_repeated_instruction(&mut self) -> Result<bool, KvmError> {
        let rip = self.vcpu.general_registers()?.rip;
        let Some(gpa) = self.vcpu.translate(rip)? else {
            return Ok(false);
        };
        let mut bytes = [0; PREFIXED_BYTES];
        // Bytes past the page belong to another mapping; a prefix and opcode that straddle the
        // boundary are read as zeros, which is no string instruction: landing still works there.
        let within = PREFIXED_BYTES.min(usize::try_from(0x1000 - (gpa & 0xfff)).unwrap_or(0));
        let memory = self.machine.memory();
        if memory
            .read_slice(&mut bytes[..within], GuestAddress(gpa))
            .is_err()
        {
            return Ok(false);
        }
        Ok(is_repeated(&bytes))
    }
}

/// Bytes that hold the prefixes and opcode of a repeated string instruction.
const PREFIXED_BYTES: usize = 5;

/// Whether `bytes` begin with a REP or REPNE prefix before a string instruction (Intel SDM volume 2,
/// section 2.1.1; AMD APM volume 3, section 1.2.6).
fn is_repeated(bytes: &[u8]) -> bool {
    let mut repeats = false;
    for &byte in bytes {
        match byte {
            0xf2 | 0xf3 => repeats = true,
            // Operand and address size, segment overrides, REX.
            0x66 | 0x67 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 | 0x40..=0x4f => {}
            0x6c..=0x6f | 0xa4..=0xa7 | 0xaa..=0xaf => return repeats,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::is_repeated;

    #[test]
    fn repeated_string_instructions_are_found() {
        assert!(is_repeated(&[0xf3, 0xa4, 0, 0, 0]), "rep movsb");
        assert!(is_repeated(&[0xf3, 0x48, 0xab, 0, 0]), "rep stosq");
        assert!(is_repeated(&[0xf2, 0xae, 0, 0, 0]), "repne scasb");
        assert!(!is_repeated(&[0x48, 0xab, 0, 0, 0]), "stosq");
        assert!(!is_repeated(&[0xf3, 0x90, 0, 0, 0]), "pause");
        assert!(!is_repeated(&[0xf3, 0x0f, 0xb8, 0xc0, 0]), "popcnt");
    }
}
