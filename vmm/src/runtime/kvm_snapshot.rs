//! The state of a guest on KVM: saved at a point where it is between two instructions, and restored.
//!
//! What KVM keeps beside the registers that it lets out is nothing, or a function of them: the run page
//! says whether an interrupt can be injected, and after a restore that is brought up to date by an
//! entry that runs no instruction, exactly as [`KvmExecutor::settle`] does on the side that saved.

use super::kvm_executor::KvmExecutor;
use crate::clock::branch_clock::{BranchClock, Counter};
use crate::kvm::KvmError;
use crate::kvm::cpuid::CPU_MODEL;
use crate::kvm::dirty::Reader;
use crate::kvm::vcpu::Vcpu;
use crate::machine::Machine;
use crate::machine::page_set::PageSet;
use crate::replication::executor::{Produced, Standing};
use crate::snapshot::part::{self, PAGES_PER_PART_MAX, PartError};
use crate::snapshot::state::{GuestState, STATE_VERSION, SavedStanding};
use logging_channel::execution_point::PointKind;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

impl From<PartError> for KvmError {
    fn from(error: PartError) -> Self {
        Self::State(error.to_string())
    }
}

impl KvmExecutor {
    /// A guest that goes on from `state`; its memory is complete.
    ///
    /// # Errors
    /// When the state is of another processor, or KVM or a device refuses it.
    pub fn restored(
        vcpu: Vcpu,
        machine: Machine,
        clock: Option<BranchClock<Box<dyn Counter>>>,
        state: &GuestState,
    ) -> Result<Self, KvmError> {
        let clock = clock.map(|clock| clock.continuing(state.branches));
        let mut executor = Self::new(vcpu, machine, clock);
        executor.take_over(state)?;
        Ok(executor)
    }

    /// Becomes the guest of `state`, whose memory is there already.
    pub(super) fn take_over(&mut self, state: &GuestState) -> Result<(), KvmError> {
        if state.cpu_model != CPU_MODEL {
            let found = &state.cpu_model;
            return Err(KvmError::State(format!(
                "it is of processor {found}, not {CPU_MODEL}"
            )));
        }
        self.machine
            .restore(&state.machine)
            .map_err(|error| KvmError::State(error.to_string()))?;
        self.vcpu.restore(&state.cpu)?;
        if self.vcpu.complete_io()?.is_some() {
            return Err(KvmError::State("an access was not complete".to_owned()));
        }
        self.exits = state.exits;
        self.at = Some(if state.between {
            PointKind::Between
        } else {
            PointKind::Exit
        });
        self.unfinished = false;
        self.standing = match state.standing {
            SavedStanding::Runnable => Standing::Runnable,
            SavedStanding::Halted => Standing::Halted,
        };
        self.given = state.given;
        self.console.clone_from(&state.console);
        self.take_over_window();
        Ok(())
    }

    /// Between two exits, and nothing applied since the guest was entered: the window asked for then is still asked
    /// for on the side that saved, and there [`Executor::run`] does not ask again. It was asked for whatever is
    /// pending, and that has not changed.
    ///
    /// [`Executor::run`]: crate::replication::executor::Executor::run
    fn take_over_window(&mut self) {
        let pending = self.machine.pending_interrupt().is_some();
        self.vcpu.request_window(pending);
    }

    /// Completes the access of the last exit, part by part.
    pub(super) fn complete_access(&mut self) -> Result<Vec<Produced>, KvmError> {
        let mut outputs = Vec::new();
        while std::mem::take(&mut self.unfinished) {
            if let Some(exit) = self.vcpu.complete_io()? {
                outputs.extend(self.handle(&exit)?.outputs);
            }
        }
        Ok(outputs)
    }

    /// The pages that the attempt has not sent, then everything but memory.
    pub(super) fn last_parts(&mut self, attempt: u64) -> Result<Vec<Vec<u8>>, KvmError> {
        let mut parts = Vec::new();
        let memory = self.machine.memory();
        if let Some(dirty) = &self.dirty {
            let pages = dirty.take(Reader::Attempt(attempt))?;
            part::parts_of(memory, &pages, PAGES_PER_PART_MAX, |part| {
                parts.push(part);
                true
            })?;
        }
        parts.push(part::part_of_state(&self.guest_state()?)?);
        Ok(parts)
    }

    /// All of memory and everything else, part by part, until `take` refuses.
    pub(super) fn all_parts(
        &mut self,
        mut take: impl FnMut(Vec<u8>) -> bool,
    ) -> Result<(), KvmError> {
        let memory = self.machine.memory();
        let bytes = memory.iter().map(|region| region.len()).sum();
        let all = PageSet::all(bytes);
        part::parts_of(memory, &all, PAGES_PER_PART_MAX, &mut take)?;
        take(part::part_of_state(&self.guest_state()?)?);
        Ok(())
    }

    /// Everything but memory.
    ///
    /// # Errors
    /// When the guest has ended, is not at a point, or KVM refuses.
    pub fn guest_state(&mut self) -> Result<GuestState, KvmError> {
        let standing = match self.standing {
            Standing::Runnable => SavedStanding::Runnable,
            Standing::Halted => SavedStanding::Halted,
            Standing::Ended(_) => return Err(KvmError::State("the guest has ended".to_owned())),
        };
        let Some(at) = self.at.filter(|_| !self.unfinished) else {
            return Err(KvmError::State("the guest is not settled".to_owned()));
        };
        let branches = self.clock.as_mut().map_or(Ok(0), BranchClock::branches)?;
        Ok(GuestState {
            version: STATE_VERSION,
            cpu_model: CPU_MODEL.to_owned(),
            exits: self.exits,
            between: at == PointKind::Between,
            branches,
            standing,
            console: self.console.clone(),
            given: self.given,
            cpu: self.vcpu.save()?,
            machine: self.machine.save(),
        })
    }
}
