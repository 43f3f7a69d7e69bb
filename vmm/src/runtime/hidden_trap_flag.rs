//! Single-stepping that the guest cannot see: what to do about RFLAGS.TF, as plain data.
//!
//! KVM steps a guest by setting RFLAGS.TF and hides it from us, not from the guest. It would be seen in
//! three ways. PUSHF stores it: the image on the stack is mended after the step. SYSCALL stores it in R11
//! and takes the new flags through SFMASK, SYSRET takes them from R11: SFMASK and R11 are changed for the
//! time of the step. An exception, INT n or interrupt stores it in its frame and clears it, so that the
//! handler runs away besides: for the time of a landing every gate of the guest's interrupt table leads to
//! a HLT somewhere in the kernel's code, one of its own for each vector. The processor builds the frame;
//! the exit at the HLT tells the vector; the flags' image is mended and the guest put at its handler.
//! POPF and IRET load flags without TF; KVM is asked anew for every step.
//!
//! Sources: AMD APM volume 2, section 8.2.2 (#DB), 8.9 (long-mode gates and frames), 13.1.4 (single
//! stepping); volume 3, SYSCALL and SYSRET; Linux `arch/x86/kvm/x86.c`, `kvm_get_rflags` and
//! `kvm_set_rflags`.
//!
//! Refused, because a guest could see or miss something then: a guest that steps itself (its own TF is not
//! told apart from ours), one with hardware breakpoints, a kernel with separate page tables for user mode
//! (the HLT must be mapped where the gate is taken), and one in whose code not every gate finds a HLT. A
//! landing by breakpoint minds none of these.

#![forbid(unsafe_code)]

/// RFLAGS.TF.
pub(super) const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS.TF in the second byte of an image of RFLAGS.
pub(super) const TF_IN_SECOND_BYTE: u8 = 1;
/// Bytes of a long-mode gate.
pub(super) const GATE_BYTES: usize = 16;
/// Gates of a table.
pub(super) const GATES_MAX: usize = 256;
/// Bytes that hold the prefixes and opcode of the instructions below.
pub(super) const OPCODE_BYTES: usize = 15;

/// HLT.
const HLT: u8 = 0xf4;

/// What the next instruction does with flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flags {
    /// Nothing that shows TF.
    Kept,
    /// PUSHF.
    Pushed,
    /// SYSCALL.
    Syscall,
    /// SYSRET.
    Sysret,
    /// POPF or IRET: they are loaded from the stack.
    Loaded {
        /// Distance of their image from the stack pointer.
        image_at: u64,
    },
    /// LIDT: the gates are elsewhere afterwards.
    OtherGates,
}

/// What the 64-bit instruction at the beginning of `code` does with flags.
pub(super) fn flags_of(code: &[u8]) -> Flags {
    let is_prefix = |byte: &u8| {
        matches!(
            byte,
            0x66 | 0x67 | 0xf2 | 0xf3 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65
        ) || (0x40..=0x4f).contains(byte)
    };
    let at = code
        .iter()
        .position(|byte| !is_prefix(byte))
        .unwrap_or(code.len());
    match &code[at..] {
        [0x9c, ..] => Flags::Pushed,
        [0x9d, ..] => Flags::Loaded { image_at: 0 },
        [0xcf, ..] => Flags::Loaded {
            // Behind RIP and CS, whose size the last prefix says.
            image_at: match at.checked_sub(1).map(|last| code[last]) {
                Some(rex) if rex & 0xf8 == 0x48 => 16,
                Some(0x66) => 4,
                _ => 8,
            },
        },
        [0x0f, 0x05, ..] => Flags::Syscall,
        [0x0f, 0x07, ..] => Flags::Sysret,
        // /3 with a memory operand.
        [0x0f, 0x01, modrm, ..] if modrm >> 3 & 7 == 3 && modrm >> 6 != 3 => Flags::OtherGates,
        _ => Flags::Kept,
    }
}

/// Where the bytes of HLT are in a page of code.
pub(super) fn halts_in(page: &[u8]) -> impl Iterator<Item = u64> {
    (0_u64..)
        .zip(page)
        .filter(|(_, byte)| **byte == HLT)
        .map(|(at, _)| at)
}

/// Whether the byte is still that of a HLT.
pub(super) const fn is_halt(byte: u8) -> bool {
    byte == HLT
}

/// The handler of a present interrupt or trap gate.
fn handler(gate: &[u8]) -> Option<u64> {
    let word = |at: usize, bytes: usize| {
        let part = gate.get(at..at + bytes)?;
        Some(
            part.iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    let kind = *gate.get(5)?;
    let is_gate = kind & 0x80 != 0 && matches!(kind & 0x1f, 0x0e | 0x0f);
    is_gate.then_some(word(0, 2)? | word(6, 2)? << 16 | word(8, 4)? << 32)
}

/// The gate, leading elsewhere.
fn redirected(gate: &[u8], to: u64) -> Vec<u8> {
    let (mut gate, to) = (gate.to_vec(), to.to_le_bytes());
    gate[0..2].copy_from_slice(&to[0..2]);
    gate[6..8].copy_from_slice(&to[2..4]);
    gate[8..12].copy_from_slice(&to[4..8]);
    gate
}

/// Distance from the stack pointer at a handler's first instruction to the image of RFLAGS.
pub(super) const fn flags_image_at(vector: u8) -> u64 {
    // These push an error code below the frame (AMD APM volume 2, table 8-1).
    let with_error_code = matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30);
    if with_error_code { 24 } else { 16 }
}

/// A gate that leads to a HLT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trap {
    /// Linear address of the HLT.
    pub(super) halt: u64,
    /// Which gate.
    pub(super) vector: u8,
    /// Where the gate leads by itself.
    pub(super) handler: u64,
}

/// A guest's table of gates, as it is and as it is while the guest is stepped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gates {
    original: Vec<u8>,
    hooked: Vec<u8>,
    traps: Vec<Trap>,
}

impl Gates {
    /// Leads each present gate of `original` to one of `halts`; `None` when there are too few.
    pub(super) fn hook(original: Vec<u8>, halts: &[u64]) -> Option<Self> {
        let mut hooked = original.clone();
        let mut traps = Vec::new();
        let mut halts = halts.iter();
        for (vector, gate) in (0..=u8::MAX).zip(original.chunks_exact(GATE_BYTES)) {
            let Some(handler) = handler(gate) else {
                continue;
            };
            let &halt = halts.next()?;
            let at = usize::from(vector) * GATE_BYTES;
            hooked[at..at + GATE_BYTES].copy_from_slice(&redirected(gate, halt));
            traps.push(Trap {
                halt,
                vector,
                handler,
            });
        }
        Some(Self {
            original,
            hooked,
            traps,
        })
    }

    /// A HLT that some gate leads to.
    pub(super) fn some_halt(&self) -> Option<u64> {
        self.traps.first().map(|trap| trap.halt)
    }

    /// The bytes for the time of stepping.
    pub(super) fn hooked(&self) -> &[u8] {
        &self.hooked
    }

    /// The gate whose HLT is at `rip`.
    pub(super) fn trap_at(&self, rip: u64) -> Option<Trap> {
        self.traps.iter().find(|trap| trap.halt == rip).copied()
    }

    /// The table as it is to be again, from what it is `now`: gates that the guest changed meanwhile stay.
    pub(super) fn restored(&self, now: &[u8]) -> Vec<u8> {
        let gates = now.chunks(GATE_BYTES).zip(self.hooked.chunks(GATE_BYTES));
        let pairs = gates.zip(self.original.chunks(GATE_BYTES));
        pairs
            .flat_map(|((now, hooked), original)| if now == hooked { original } else { now })
            .copied()
            .collect()
    }
}

/// A handler of a present gate in `table`, to find code near it.
pub(super) fn some_handler(table: &[u8]) -> Option<u64> {
    table.chunks_exact(GATE_BYTES).find_map(handler)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDLER: u64 = 0xffff_ffff_8180_1230;

    fn gate(handler: u64, kind: u8) -> Vec<u8> {
        let mut gate = vec![0; GATE_BYTES];
        gate[2] = 0x10;
        gate[5] = kind;
        redirected(&gate, handler)
    }

    /// Present, absent, present with an interrupt stack, a trap gate.
    fn table() -> Vec<u8> {
        let mut table = gate(HANDLER, 0x8e);
        table.extend(gate(0, 0x0e));
        let mut with_stack = gate(HANDLER + 64, 0x8e);
        with_stack[4] = 3;
        table.extend(with_stack);
        table.extend(gate(HANDLER + 128, 0xef));
        table
    }

    #[test]
    fn every_present_gate_leads_to_a_halt_of_its_own_and_back() {
        let gates = Gates::hook(table(), &[0x1000, 0x2000, 0x3000]).expect("enough");
        let trap = |rip| gates.trap_at(rip).map(|trap| (trap.vector, trap.handler));
        assert_eq!(trap(0x1000), Some((0, HANDLER)));
        assert_eq!(trap(0x2000), Some((2, HANDLER + 64)));
        assert_eq!(trap(0x3000), Some((3, HANDLER + 128)));
        assert_eq!(trap(0x4000), None);
        let hooked = gates.hooked();
        assert_eq!(handler(&hooked[32..48]), Some(0x2000));
        assert_eq!(
            (hooked[34], hooked[36], hooked[37]),
            (0x10, 3, 0x8e),
            "only the place changes"
        );
        assert_eq!(gates.restored(hooked), table());
    }

    #[test]
    fn too_few_halts_hook_nothing() {
        assert_eq!(Gates::hook(table(), &[0x1000, 0x2000]), None);
        let none = Gates::hook(gate(0, 0x0e), &[]).expect("no gate is present");
        assert_eq!(none.some_halt(), None);
    }

    #[test]
    fn a_gate_that_the_guest_changed_stays_changed() {
        let gates = Gates::hook(table(), &[0x1000, 0x2000, 0x3000]).expect("enough");
        let mut now = gates.hooked().to_vec();
        now[48..].copy_from_slice(&gate(0x77, 0x8e));
        let restored = gates.restored(&now);
        assert_eq!(&restored[..48], &table()[..48]);
        assert_eq!(handler(&restored[48..]), Some(0x77));
    }

    #[test]
    fn instructions_that_show_flags_are_told_apart() {
        let loaded = |image_at| Flags::Loaded { image_at };
        let cases: [(&[u8], Flags); 14] = [
            (&[0x9c], Flags::Pushed),
            (&[0x66, 0x9c], Flags::Pushed),
            (&[0x48, 0x9c], Flags::Pushed),
            (&[0x9d], loaded(0)),
            (&[0x66, 0x9d], loaded(0)),
            (&[0x48, 0xcf], loaded(16)),
            (&[0xcf], loaded(8)),
            (&[0x66, 0xcf], loaded(4)),
            (&[0x0f, 0x05], Flags::Syscall),
            (&[0x48, 0x0f, 0x07], Flags::Sysret),
            (&[0x0f, 0x01, 0x18], Flags::OtherGates),
            (&[0x0f, 0x01, 0xd9], Flags::Kept),
            (&[0x0f, 0x01, 0x10], Flags::Kept),
            (&[], Flags::Kept),
        ];
        for (code, flags) in cases {
            assert_eq!(flags_of(code), flags, "{code:02x?}");
        }
    }

    #[test]
    fn halts_are_found_and_frames_measured() {
        assert_eq!(halts_in(&[0xf4, 0x90, 0xf4]).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(
            (flags_image_at(3), flags_image_at(14), flags_image_at(0x20)),
            (16, 24, 16)
        );
        assert_eq!(some_handler(&table()[16..]), Some(HANDLER + 64));
    }
}
