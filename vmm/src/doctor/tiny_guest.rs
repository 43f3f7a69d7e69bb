//! A guest of one instruction sequence in 2 MiB of memory, for the probes.
//!
//! ```text
//! 0x1000 GDT   0x5000 TSS   0x6000 IDT   0x1_0000 code   0x1_1000 handlers   0x1_2000 SYSCALL
//! 0x2_0000 page tables (4 GiB one to one, user accessible)   0x7_0000, 0x8_0000 stacks
//! ```
//!
//! The handler of vector V writes to port 0x100 + V and returns, so every exception and interrupt
//! is an exit that names itself.

use crate::kvm::KvmError;
use crate::kvm::exit::BadExit;
use crate::kvm::guest_memory::{self, Backing};
use crate::kvm::kick::Kicker;
use crate::kvm::vcpu::{RunOutcome, Vcpu};
use crate::kvm::vm::Vm;
use crate::machine::cpu_state::{CpuState, DescriptorTable, Segment, SystemRegisters};
use crate::machine::exit::{Answer, VmExit};
use crate::machine::ram::GuestRam;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress};

/// How long an exit may take, at most twice.
const PATIENCE: Duration = Duration::from_secs(10);
const MEMORY_BYTES: u64 = 2 << 20;
const GDT: u64 = 0x1000;
const TSS: u64 = 0x5000;
const IDT: u64 = 0x6000;
/// Where the code starts.
pub(super) const CODE: u64 = 0x1_0000;
const HANDLERS: u64 = 0x1_1000;
/// LSTAR.
pub(super) const SYSCALL_ENTRY: u64 = 0x1_2000;
const PAGE_TABLES: u64 = 0x2_0000;
const KERNEL_STACK: u64 = 0x7_0000;
const STACK: u64 = 0x8_0000;
/// First port of the exception handlers.
pub(super) const VECTOR_PORT: u16 = 0x100;

/// Null, kernel code and data, unused, user data, user code (SYSRET's order), TSS.
const DESCRIPTORS: [u64; 8] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x0000_8b00_5000_0067,
    0,
];

/// Privilege level of the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ring {
    Kernel,
    User,
}

/// A running probe guest.
pub(super) struct TinyGuest {
    // Dropped before the VM that it belongs to.
    pub(super) cpu: Vcpu,
    exits: Arc<AtomicU64>,
    _watchdog: Sender<()>,
    vm: Vm,
}

impl TinyGuest {
    /// Loads `code` at [`CODE`] and the processor at its first instruction.
    pub(super) fn new(code: &[u8], ring: Ring) -> Result<Self, KvmError> {
        Self::with_state(code, ring, |_| {})
    }

    /// As [`TinyGuest::new`], with a change to the initial state.
    pub(super) fn with_state(
        code: &[u8],
        ring: Ring,
        change: impl FnOnce(&mut CpuState),
    ) -> Result<Self, KvmError> {
        let memory = guest_memory::map(MEMORY_BYTES, Backing::default())?;
        fill(&memory, code).map_err(|e| BadExit::Unexpected(format!("probe memory: {e}")))?;
        let vm = Vm::unchecked(memory)?;
        let mut cpu = vm.create_vcpu()?;
        let mut state = initial_state(ring);
        change(&mut state);
        cpu.restore(&state)?;
        let exits = Arc::new(AtomicU64::new(0));
        let watchdog = watch(cpu.kicker(), Arc::clone(&exits));
        Ok(Self {
            cpu,
            exits,
            _watchdog: watchdog,
            vm,
        })
    }

    /// The next exit. A guest that makes none for too long is an error, not a hang.
    pub(super) fn exit(&mut self) -> Result<VmExit, KvmError> {
        self.exits.fetch_add(1, Ordering::Relaxed);
        match self.cpu.run()? {
            RunOutcome::Exit(exit) => Ok(exit),
            RunOutcome::Kicked => {
                let rip = self.cpu.general_registers()?.rip;
                Err(BadExit::Unexpected(format!("none at all, the guest is at {rip:#x}")).into())
            }
            RunOutcome::Debug { pc, .. } => {
                Err(BadExit::Unexpected(format!("debug stop at {pc:#x}")).into())
            }
        }
    }

    /// The next exit, which must be a write to a port: the port.
    pub(super) fn port(&mut self) -> Result<u16, KvmError> {
        match self.exit()? {
            VmExit::PortWrite { port, .. } => Ok(port),
            other => Err(BadExit::Unexpected(format!("{other:x?} instead of a port write")).into()),
        }
    }

    /// Writes to guest memory.
    pub(super) fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), KvmError> {
        let written = self.vm.memory().write_slice(bytes, GuestAddress(address));
        written.map_err(|e| BadExit::Unexpected(format!("probe memory: {e}")).into())
    }

    /// Reads a word of guest memory.
    pub(super) fn read(&self, address: u64) -> Result<u64, KvmError> {
        let read = self.vm.memory().read_obj(GuestAddress(address));
        read.map_err(|e| BadExit::Unexpected(format!("probe memory: {e}")).into())
    }

    /// Answers the exit with bytes.
    pub(super) fn answer(&mut self, bytes: &[u8]) -> Result<(), KvmError> {
        self.cpu.answer(Answer::Data(bytes.to_vec()))
    }
}

/// Kicks the guest when it has made no exit for too long; ends when the sender is dropped.
fn watch(kicker: Kicker, exits: Arc<AtomicU64>) -> Sender<()> {
    let (alive, watched) = mpsc::channel();
    std::thread::spawn(move || {
        let mut before = 0;
        while watched.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            let now = exits.load(Ordering::Relaxed);
            if now == before {
                kicker.kick();
            }
            before = now;
        }
    });
    alive
}

fn fill(memory: &GuestRam, code: &[u8]) -> Result<(), vm_memory::GuestMemoryError> {
    let put = |address: u64, word: u64| memory.write_obj(word, GuestAddress(address));
    for (i, descriptor) in (0..).zip(DESCRIPTORS) {
        put(GDT + 8 * i, descriptor)?;
    }
    put(TSS + 4, KERNEL_STACK)?;
    for vector in 0..256u64 {
        let handler = HANDLERS + 16 * vector;
        let port = (u64::from(VECTOR_PORT) + vector).to_le_bytes();
        // push rdx; mov dx, port; out dx, al; pop rdx; iretq
        let stub = [0x52, 0x66, 0xba, port[0], port[1], 0xee, 0x5a, 0x48, 0xcf];
        memory.write_slice(&stub, GuestAddress(handler))?;
        // Interrupt gate of 64-bit code in segment 8, callable from ring 3.
        let gate = (handler & 0xffff) | 8 << 16 | 0xee00 << 32 | (handler >> 16 & 0xffff) << 48;
        put(IDT + 16 * vector, gate)?;
    }
    let (pml4, pdpt) = (PAGE_TABLES, PAGE_TABLES + 0x1000);
    put(pml4, pdpt | 7)?;
    for gib in 0..4 {
        let directory = pdpt + 0x1000 * (gib + 1);
        put(pdpt + 8 * gib, directory | 7)?;
        for page in 0..512 {
            put(directory + 8 * page, (gib << 30) | (page << 21) | 0x87)?;
        }
    }
    memory.write_slice(code, GuestAddress(CODE))
}

fn initial_state(ring: Ring) -> CpuState {
    let mut cpu = CpuState::default();
    let user = ring == Ring::User;
    let dpl = if user { 3 } else { 0 };
    let flat = Segment {
        limit: u32::MAX,
        present: true,
        s: true,
        g: true,
        dpl,
        ..Segment::default()
    };
    let (code_selector, data_selector) = if user { (0x2b, 0x23) } else { (0x08, 0x10) };
    let code = Segment {
        selector: code_selector,
        kind: 11,
        l: true,
        ..flat
    };
    let data = Segment {
        selector: data_selector,
        kind: 3,
        db: true,
        ..flat
    };
    let tr = Segment {
        base: TSS,
        limit: 0x67,
        selector: 0x30,
        kind: 11,
        present: true,
        ..Segment::default()
    };
    cpu.system = SystemRegisters {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr,
        ldt: Segment {
            unusable: true,
            ..Segment::default()
        },
        gdt: DescriptorTable {
            base: GDT,
            limit: 63,
        },
        idt: DescriptorTable {
            base: IDT,
            limit: 4095,
        },
        cr0: 0x8005_0033,
        cr3: PAGE_TABLES,
        // PAE, OSFXSR, OSXMMEXCPT.
        cr4: 0x620,
        // SCE, LME, LMA.
        efer: 0x501,
        ..SystemRegisters::default()
    };
    cpu.general.rip = CODE;
    cpu.general.rsp = STACK;
    // Ring 3 may use ports: I/O privilege level 3.
    cpu.general.rflags = if user { 0x3002 } else { 0x2 };
    cpu
}
