//! All state of the one virtual processor, as plain data.
//!
//! This is what a snapshot holds, what the loader produces as the entry state and what digests are
//! made of. It knows nothing of KVM; `kvm::state` converts.
//!
//! Invariant: two processors that will behave equally have equal [`CpuState::canonical`] forms.
//! What hardware or KVM leaves behind without the guest being able to see it (numbers of events
//! that are no longer pending, x87 instruction and data pointers, which AMD processors save only
//! when an exception is pending) is cleared there, because it differs between hosts.
//!
//! Left out: XSAVE state beyond the legacy area and XCR0 (the CPU model has no XSAVE, so they keep
//! their reset values), the local APIC (there is none).

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// RFLAGS.TF: single-stepping leaves it behind.
const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS.RF: set when resuming from a breakpoint.
const RFLAGS_RF: u64 = 1 << 16;
/// Always-one bit of RFLAGS.
const RFLAGS_FIXED: u64 = 1 << 1;

/// General registers, RIP and RFLAGS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "the field names are the architecture's register names"
)]
pub struct GeneralRegisters {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

impl GeneralRegisters {
    /// Little-endian bytes in field order, TF and RF masked.
    fn bytes(&self) -> [u8; 18 * 8] {
        let words = [
            self.rax,
            self.rbx,
            self.rcx,
            self.rdx,
            self.rsi,
            self.rdi,
            self.rsp,
            self.rbp,
            self.r8,
            self.r9,
            self.r10,
            self.r11,
            self.r12,
            self.r13,
            self.r14,
            self.r15,
            self.rip,
            self.rflags & !(RFLAGS_TF | RFLAGS_RF),
        ];
        let mut bytes = [0; 18 * 8];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The 16 bits that travel with every execution point.
    #[must_use]
    pub fn check(&self) -> u16 {
        (xxh3_64(&self.bytes()) & 0xffff) as u16
    }
}

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Base address.
    pub base: u64,
    /// Limit in bytes, already scaled.
    pub limit: u32,
    /// Visible selector.
    pub selector: u16,
    /// Descriptor type, 4 bits.
    pub kind: u8,
    /// Descriptor privilege level.
    pub dpl: u8,
    /// Present.
    pub present: bool,
    /// Default operand size is 32 bits.
    pub db: bool,
    /// Code or data, not system.
    pub s: bool,
    /// 64-bit code.
    pub l: bool,
    /// Granularity.
    pub g: bool,
    /// Available to software.
    pub avl: bool,
    /// Holds a null selector.
    pub unusable: bool,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Segment, descriptor-table and control registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "the field names are the architecture's register names"
)]
pub struct SystemRegisters {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
}

/// Debug registers as the guest set them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugRegisters {
    /// DR0 to DR3.
    pub db: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
}

impl Default for DebugRegisters {
    fn default() -> Self {
        Self {
            db: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
        }
    }
}

/// One model-specific register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msr {
    /// MSR number.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

/// x87, MMX and SSE state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FpuState {
    /// x87 control word.
    pub fcw: u16,
    /// x87 status word.
    pub fsw: u16,
    /// Abridged tag word, a bit per non-empty register.
    pub ftw: u8,
    /// Last x87 opcode.
    pub fop: u16,
    /// Last x87 instruction pointer.
    pub fip: u64,
    /// Last x87 data pointer.
    pub fdp: u64,
    /// SSE control and status.
    pub mxcsr: u32,
    /// ST0 to ST7, 10 bytes used of each 16.
    pub st: [[u8; 16]; 8],
    /// XMM0 to XMM15.
    pub xmm: [[u8; 16]; 16],
}

impl Default for FpuState {
    /// State after RESET as the Linux entry expects it (FNINIT, MXCSR default).
    fn default() -> Self {
        Self {
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            mxcsr: 0x1f80,
            st: [[0; 16]; 8],
            xmm: [[0; 16]; 16],
        }
    }
}

/// An exception on its way into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingException {
    /// Vector.
    pub vector: u8,
    /// True when delivery already began and must be repeated, false when it is only due.
    pub injected: bool,
    /// Error code to push.
    pub error_code: Option<u32>,
    /// CR2 or DR6 value that delivery writes.
    pub payload: Option<u64>,
}

/// Events on their way into the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// An exception.
    pub exception: Option<PendingException>,
    /// Vector of an injected external interrupt that the guest has not taken yet.
    pub interrupt: Option<u8>,
    /// Interrupt shadow: bit 0 after STI, bit 1 after MOV SS.
    pub shadow: u8,
    /// NMIs are masked (never in our guests: nothing raises one).
    pub nmi_masked: bool,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// General registers.
    pub general: GeneralRegisters,
    /// Segment and control registers.
    pub system: SystemRegisters,
    /// Debug registers.
    pub debug: DebugRegisters,
    /// The MSRs of [`MSRS`], in that order.
    pub msrs: Vec<Msr>,
    /// x87 and SSE.
    pub fpu: FpuState,
    /// Events in flight.
    pub events: Events,
}

/// MSRs that hold guest state and are handled natively, ascending, with their reset values. FS and
/// GS base and EFER live in [`SystemRegisters`].
pub const MSRS: [Msr; 9] = [
    Msr {
        index: 0x0000_0174,
        value: 0,
    }, // SYSENTER_CS
    Msr {
        index: 0x0000_0175,
        value: 0,
    }, // SYSENTER_ESP
    Msr {
        index: 0x0000_0176,
        value: 0,
    }, // SYSENTER_EIP
    Msr {
        index: 0x0000_0277,
        value: 0x0007_0406_0007_0406,
    }, // PAT
    Msr {
        index: 0xc000_0081,
        value: 0,
    }, // STAR
    Msr {
        index: 0xc000_0082,
        value: 0,
    }, // LSTAR
    Msr {
        index: 0xc000_0083,
        value: 0,
    }, // CSTAR
    Msr {
        index: 0xc000_0084,
        value: 0,
    }, // SFMASK
    Msr {
        index: 0xc000_0102,
        value: 0,
    }, // KERNEL_GS_BASE
];

impl Default for CpuState {
    /// All registers as constants of ours, not as a host's KVM makes them. Not runnable: the
    /// loader fills segments, control registers and RIP.
    fn default() -> Self {
        Self {
            general: GeneralRegisters {
                rflags: RFLAGS_FIXED,
                ..GeneralRegisters::default()
            },
            system: SystemRegisters::default(),
            debug: DebugRegisters::default(),
            msrs: MSRS.to_vec(),
            fpu: FpuState::default(),
            events: Events::default(),
        }
    }
}

impl CpuState {
    /// The part that decides how the guest goes on, in one form.
    #[must_use]
    pub fn canonical(&self) -> Self {
        let mut state = self.clone();
        state.general.rflags &= !(RFLAGS_TF | RFLAGS_RF);
        state.fpu.fop = 0;
        state.fpu.fip = 0;
        state.fpu.fdp = 0;
        for st in &mut state.fpu.st {
            st[10..].fill(0);
        }
        state
    }

    /// Digest of the canonical state: 64 bits of XXH3 over its fields in declaration order.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let state = self.canonical();
        let mut hash = Xxh3::new();
        hash.update(&state.general.bytes());
        let s = &state.system;
        for segment in [s.cs, s.ds, s.es, s.fs, s.gs, s.ss, s.tr, s.ldt] {
            hash_segment(&mut hash, segment);
        }
        for table in [s.gdt, s.idt] {
            hash.update(&table.base.to_le_bytes());
            hash.update(&table.limit.to_le_bytes());
        }
        for word in [s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer] {
            hash.update(&word.to_le_bytes());
        }
        for word in state
            .debug
            .db
            .iter()
            .chain([&state.debug.dr6, &state.debug.dr7])
        {
            hash.update(&word.to_le_bytes());
        }
        for msr in &state.msrs {
            hash.update(&msr.index.to_le_bytes());
            hash.update(&msr.value.to_le_bytes());
        }
        hash_fpu(&mut hash, &state.fpu);
        hash_events(&mut hash, &state.events);
        hash.digest()
    }
}

/// A null segment has no attributes that matter.
fn hash_segment(hash: &mut Xxh3, segment: Segment) {
    let segment = if segment.unusable {
        // FS and GS keep a base under a null selector.
        Segment {
            base: segment.base,
            selector: segment.selector,
            unusable: true,
            ..Segment::default()
        }
    } else {
        segment
    };
    hash.update(&segment.base.to_le_bytes());
    hash.update(&segment.limit.to_le_bytes());
    hash.update(&segment.selector.to_le_bytes());
    let flags = [
        segment.present,
        segment.db,
        segment.s,
        segment.l,
        segment.g,
        segment.avl,
    ];
    let flags = flags
        .iter()
        .fold(u8::from(segment.unusable), |all, &f| all << 1 | u8::from(f));
    hash.update(&[segment.kind, segment.dpl, flags]);
}

fn hash_fpu(hash: &mut Xxh3, fpu: &FpuState) {
    hash.update(&fpu.fcw.to_le_bytes());
    hash.update(&fpu.fsw.to_le_bytes());
    hash.update(&[fpu.ftw]);
    hash.update(&fpu.mxcsr.to_le_bytes());
    for register in fpu.st.iter().chain(&fpu.xmm) {
        hash.update(register);
    }
}

fn hash_events(hash: &mut Xxh3, events: &Events) {
    match events.exception {
        None => hash.update(&[0]),
        Some(e) => {
            hash.update(&[1, e.vector, u8::from(e.injected)]);
            hash.update(&e.error_code.map_or(u64::MAX, u64::from).to_le_bytes());
            hash.update(&[u8::from(e.payload.is_some())]);
            hash.update(&e.payload.unwrap_or(0).to_le_bytes());
        }
    }
    hash.update(&[
        u8::from(events.interrupt.is_some()),
        events.interrupt.unwrap_or(0),
    ]);
    hash.update(&[events.shadow, u8::from(events.nmi_masked)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One change to a state, by name.
    type Change = (&'static str, fn(&mut CpuState));

    #[test]
    fn every_kind_of_state_is_in_the_digest() {
        let base = CpuState::default().digest();
        let changes: [Change; 14] = [
            ("rax", |s| s.general.rax = 1),
            ("rip", |s| s.general.rip = 1),
            ("zf", |s| s.general.rflags |= 0x40),
            ("cs", |s| s.system.cs.l = true),
            ("fs base", |s| s.system.fs.base = 1),
            ("idt", |s| s.system.idt.limit = 1),
            ("cr2", |s| s.system.cr2 = 1),
            ("dr7", |s| s.debug.dr7 = 0x401),
            ("msr", |s| s.msrs[8].value = 1),
            ("mxcsr", |s| s.fpu.mxcsr = 0x1fa0),
            ("xmm15", |s| s.fpu.xmm[15][15] = 1),
            ("st0", |s| s.fpu.st[0][9] = 1),
            ("interrupt", |s| s.events.interrupt = Some(0)),
            ("shadow", |s| s.events.shadow = 1),
        ];
        let mut seen = vec![base];
        for (name, change) in changes {
            let mut state = CpuState::default();
            change(&mut state);
            let digest = state.digest();
            assert!(!seen.contains(&digest), "{name} does not change the digest");
            seen.push(digest);
        }
    }

    #[test]
    fn what_the_guest_cannot_see_is_not_in_the_digest() {
        let base = CpuState::default();
        let mut state = base.clone();
        state.general.rflags |= RFLAGS_TF | RFLAGS_RF;
        state.fpu.fip = 0x1234;
        state.fpu.fdp = 0x1234;
        state.fpu.fop = 7;
        state.fpu.st[3][12] = 1;
        assert_eq!(state.digest(), base.digest());
        assert_eq!(state.general.check(), base.general.check());
    }

    #[test]
    fn attributes_of_a_null_segment_do_not_count_but_its_base_does() {
        let mut one = CpuState::default();
        one.system.gs = Segment {
            unusable: true,
            limit: 1,
            kind: 3,
            ..Segment::default()
        };
        let mut two = CpuState::default();
        two.system.gs = Segment {
            unusable: true,
            limit: 2,
            g: true,
            ..Segment::default()
        };
        assert_eq!(one.digest(), two.digest());
        two.system.gs.base = 0x1000;
        assert_ne!(one.digest(), two.digest());
    }
}
