//! A guest on KVM as the engine sees it: one vCPU, one machine, one execution clock.
//!
//! The order of things at an exit is part of the guest's determinism, so it is spelled out once,
//! here: the exit is counted; the machine handles it; the answer goes back to the processor; output
//! is collected. Before an entry from a point, and only there, an interrupt that is pending is
//! injected, or a window is asked for. After a kick that stopped the guest at a place without a
//! name nothing is injected: the backup could not find that place again.
//!
//! Console bytes are grouped into lines (or 256 bytes, or whatever is there when the guest halts),
//! a rule that depends on the guest alone, so that both sides group alike.
//!
//! Left out: how to stop between exits (`kvm_landing`).

use super::kvm_step::Halt;
use crate::clock::branch_clock::{BranchClock, Counter};
use crate::devices::Effect;
use crate::kvm::KvmError;
use crate::kvm::dirty::DirtyLog;
use crate::kvm::vcpu::{RunOutcome, Vcpu};
use crate::machine::Machine;
use crate::machine::exit::VmExit;
use crate::replication::executor::{
    Arrival, Executor, Input, Landing, Produced, Standing, Stretch,
};
use logging_channel::execution_point::{ExecutionPoint, PointKind};
use logging_channel::host_time::GuestTime;
use logging_channel::record::{Digests, EndReason, OutputDevice};
use std::sync::Arc;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

/// Longest run of console bytes that travels as one output.
const CONSOLE_GROUP_BYTES_MAX: usize = 256;

/// Bytes of guest memory hashed at a time.
const DIGEST_CHUNK_BYTES: usize = 64 * 1024;

/// A guest on KVM.
pub struct KvmExecutor {
    pub(super) vcpu: Vcpu,
    pub(super) machine: Machine,
    /// `None` for the exit clock.
    pub(super) clock: Option<BranchClock<Box<dyn Counter>>>,
    pub(super) exits: u64,
    /// Whether the guest is at a point, and of which kind; `None` after a kick without a name.
    pub(super) at: Option<PointKind>,
    /// Whether the access that caused the last exit is still to be completed by KVM.
    pub(super) unfinished: bool,
    pub(super) standing: Standing,
    /// Known places of HLT in the guest's kernel, for landings by single step.
    pub(super) halts: Vec<Halt>,
    /// Whether input was applied since the guest was last entered.
    pub(super) given: bool,
    pub(super) console: Vec<u8>,
    /// Which pages were written.
    pub(super) dirty: Option<Arc<DirtyLog>>,
    /// Whether writes are noted for State records.
    pub(super) watching: bool,
}

impl KvmExecutor {
    /// A guest at power-on. Without `clock` its points are its exits.
    #[must_use]
    pub fn new(vcpu: Vcpu, machine: Machine, clock: Option<BranchClock<Box<dyn Counter>>>) -> Self {
        Self {
            vcpu,
            machine,
            clock,
            exits: 0,
            at: Some(PointKind::Exit),
            unfinished: false,
            standing: Standing::Runnable,
            halts: Vec::new(),
            given: false,
            console: Vec::new(),
            dirty: None,
            watching: false,
        }
    }

    /// The same with a view of the pages that are written, for transfers.
    #[must_use]
    pub fn watched(mut self, dirty: Arc<DirtyLog>) -> Self {
        self.dirty = Some(dirty);
        self
    }

    /// The machine, for inspection.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Injects what is pending, or asks for a window. Only at a point, and between exits only where
    /// input was applied: there a record brings the backup to a halt, too. A primary that was merely
    /// kicked must leave the guest as it found it, for the copy never stops at that place.
    fn prepare_entry(&mut self) -> Result<(), KvmError> {
        let given = std::mem::take(&mut self.given);
        if self.at != Some(PointKind::Exit) && !given {
            return Ok(());
        }
        if self.machine.pending_interrupt().is_some() && self.vcpu.can_inject() {
            let vector = self.machine.acknowledge_interrupt();
            self.vcpu.inject(vector)?;
        }
        self.vcpu
            .request_window(self.machine.pending_interrupt().is_some());
        Ok(())
    }

    /// One synchronous exit, from its count to the guest's standing.
    pub(super) fn handle(&mut self, exit: &VmExit) -> Result<Stretch, KvmError> {
        self.exits += 1;
        self.at = Some(PointKind::Exit);
        self.unfinished = true;
        let interruptible = self.vcpu.interrupts_enabled();
        let handled = self.machine.handle(exit);
        self.vcpu.answer(handled.answer)?;
        let mut outputs = Vec::new();
        for effect in handled.effects {
            self.collect(effect, &mut outputs);
        }
        self.standing = match handled.end {
            Some(reason) => Standing::Ended(reason),
            None if handled.halted && !interruptible => Standing::Ended(EndReason::Crash),
            None if handled.halted && self.machine.pending_interrupt().is_none() => {
                Standing::Halted
            }
            None => Standing::Runnable,
        };
        if self.standing != Standing::Runnable {
            self.flush_console(&mut outputs);
        }
        Ok(Stretch {
            arrival: Arrival::Point,
            outputs,
            standing: self.standing,
        })
    }

    /// Enters the guest; KVM completes the last access on the way.
    pub(super) fn enter(&mut self) -> Result<RunOutcome, KvmError> {
        self.unfinished = false;
        self.vcpu.run()
    }

    fn collect(&mut self, effect: Effect, outputs: &mut Vec<Produced>) {
        match effect {
            Effect::Console(byte) => {
                self.console.push(byte);
                if byte == b'\n' || self.console.len() >= CONSOLE_GROUP_BYTES_MAX {
                    self.flush_console(outputs);
                }
            }
            Effect::Transmit { device, bytes } => {
                outputs.push(Produced {
                    device: OutputDevice::Network(device),
                    bytes,
                });
            }
            // The machine keeps these itself: `wanted_entropy` and `Handled::end`.
            Effect::WantEntropy(_) | Effect::Reset | Effect::PowerOff => {}
        }
    }

    fn flush_console(&mut self, outputs: &mut Vec<Produced>) {
        if !self.console.is_empty() {
            let bytes = std::mem::take(&mut self.console);
            outputs.push(Produced {
                device: OutputDevice::Console,
                bytes,
            });
        }
    }

    /// A stretch that ended without output.
    pub(super) fn stopped(&self, arrival: Arrival) -> Stretch {
        Stretch {
            arrival,
            outputs: Vec::new(),
            standing: self.standing,
        }
    }

    fn memory_digest(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        let mut chunk = vec![0; DIGEST_CHUNK_BYTES];
        let memory = self.machine.memory();
        for region in memory.iter() {
            let (mut at, end) = (region.start_addr().0, region.start_addr().0 + region.len());
            while at < end {
                let length = usize::try_from(end - at).map_or(chunk.len(), |n| n.min(chunk.len()));
                let piece = &mut chunk[..length];
                // The region was asked for its own bounds.
                if memory
                    .read_slice(piece, vm_memory::GuestAddress(at))
                    .is_ok()
                {
                    hasher.update(piece);
                }
                at += length as u64;
            }
        }
        hasher.digest()
    }
}

impl Executor for KvmExecutor {
    type Error = KvmError;

    fn point(&mut self) -> Result<ExecutionPoint, KvmError> {
        let general = self.vcpu.general_registers()?;
        let check = general.check();
        let Some(clock) = &mut self.clock else {
            return Ok(ExecutionPoint::at_exit(self.exits, check));
        };
        let between = self.at == Some(PointKind::Between);
        Ok(ExecutionPoint {
            exits: self.exits,
            kind: if between {
                PointKind::Between
            } else {
                PointKind::Exit
            },
            // At exits, too: a count that is wrong is found at the very next record.
            branches: clock.branches()?,
            rip: if between { general.rip } else { 0 },
            check,
        })
    }

    fn digests(&mut self, with_memory: bool) -> Result<Digests, KvmError> {
        let registers = self.vcpu.registers_digest()?;
        Ok(Digests {
            registers,
            devices: self.machine.digest().combined(),
            memory: with_memory.then(|| self.memory_digest()),
        })
    }

    fn guest_time(&self) -> GuestTime {
        self.machine.now()
    }

    fn next_deadline(&self) -> Option<GuestTime> {
        self.machine.next_deadline()
    }

    fn wanted_entropy(&self) -> usize {
        self.machine.wanted_entropy()
    }

    fn accepts(&self, input: &Input) -> bool {
        self.machine.accepts(input)
    }

    fn standing(&self) -> Standing {
        self.standing
    }

    fn settle(&mut self) -> Result<Vec<Produced>, KvmError> {
        self.complete_access()
    }

    fn save(&mut self, attempt: u64) -> Result<Vec<Vec<u8>>, KvmError> {
        self.last_parts(attempt)
    }

    fn forget_writes(&mut self) -> Result<(), KvmError> {
        self.forget()
    }

    fn name_here(&mut self) -> Result<Vec<Vec<u8>>, KvmError> {
        self.name_this_place()
    }

    fn state_bytes_max(&self) -> u64 {
        self.pieces_bytes_max()
    }

    fn load(&mut self, pieces: &[Vec<u8>]) -> Result<Result<(), String>, KvmError> {
        self.load_pieces(pieces)
    }

    fn apply(&mut self, time: GuestTime, input: Input) -> Result<Standing, KvmError> {
        // What this leads to is kept by the machine (`wanted_entropy`).
        let _requests = self.machine.apply(time, &input);
        self.given = true;
        if self.standing == Standing::Halted && self.machine.pending_interrupt().is_some() {
            self.standing = Standing::Runnable;
        }
        Ok(self.standing)
    }

    fn run(&mut self, until: Option<Landing>) -> Result<Stretch, KvmError> {
        self.prepare_entry()?;
        self.at = None;
        match (until, self.clock.is_some()) {
            (Some(Landing::On(target)), true) if target.exits == self.exits => {
                self.land_on(&target)
            }
            (Some(Landing::Near(target)), true) if target.exits == self.exits => {
                self.land_near(&target)
            }
            (Some(Landing::Anywhere), true) => self.run_until_kicked(),
            _ => match self.enter()? {
                RunOutcome::Exit(exit) => self.handle(&exit),
                RunOutcome::Kicked | RunOutcome::Debug { .. } => Ok(self.stopped(Arrival::Kicked)),
            },
        }
    }
}
