//! Where the next instruction may lead: the addresses at which a breakpoint stops a guest after exactly one
//! instruction.
//!
//! Single-stepping by RFLAGS.TF would be seen by the guest: PUSHF, SYSCALL and interrupt frames copy the
//! flag. A breakpoint on every possible successor is invisible; of an instruction whose page is not mapped yet it is
//! the handler of page faults. What cannot be foretold (far returns,
//! interrupts, undefined instructions) has no successors: the caller runs to the next exit then.

#![forbid(unsafe_code)]

use crate::machine::cpu_state::{CpuState, Segment};
use iced_x86::{
    Code, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, OpKind, Register,
};

/// Longest x86 instruction.
pub(super) const INSTRUCTION_BYTES_MAX: usize = 15;

/// Bytes of a gate in 64-bit mode, and where that of page faults (vector 14) is.
const GATE_BYTES: usize = 16;
const PAGE_FAULT_GATE: u64 = 14 * GATE_BYTES as u64;

/// MSR with the entry of SYSCALL.
const LSTAR: u32 = 0xc000_0082;

/// Addresses of the instructions that may come after the one that `code` begins with, at most two.
/// `read` gives memory at a linear address, as much as there is.
pub(super) fn successors(
    cpu: &CpuState,
    code: &[u8],
    mut read: impl FnMut(u64, usize) -> Vec<u8>,
) -> Vec<u64> {
    if !cpu.system.cs.l {
        return Vec::new();
    }
    let rip = cpu.general.rip;
    let mut decoder = Decoder::with_ip(64, code, rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if decoder.last_error() == DecoderError::NoMoreBytes && code.len() < INSTRUCTION_BYTES_MAX {
        // Not mapped yet: what comes next is the guest's handler of page faults.
        let gate = cpu.system.idt.base.wrapping_add(PAGE_FAULT_GATE);
        return handler(&read(gate, GATE_BYTES)).into_iter().collect();
    }
    let mut word = |address: u64| {
        let bytes = read(address, 8);
        <[u8; 8]>::try_from(bytes.as_slice())
            .ok()
            .map(u64::from_le_bytes)
    };
    let next = instruction.next_ip();
    match instruction.flow_control() {
        FlowControl::Next => vec![next],
        FlowControl::ConditionalBranch => vec![next, instruction.near_branch_target()],
        FlowControl::UnconditionalBranch | FlowControl::Call if instruction.is_jmp_far() => vec![],
        FlowControl::UnconditionalBranch => vec![instruction.near_branch_target()],
        FlowControl::Call => match instruction.code() {
            Code::Syscall => msr(cpu, LSTAR).into_iter().collect(),
            _ if instruction.op0_kind() == OpKind::NearBranch64 => {
                vec![instruction.near_branch_target()]
            }
            _ => Vec::new(),
        },
        FlowControl::IndirectBranch | FlowControl::IndirectCall => {
            indirect(cpu, &instruction, word).into_iter().collect()
        }
        FlowControl::Return => match instruction.code() {
            Code::Sysretq => vec![cpu.general.rcx],
            Code::Retnq | Code::Retnq_imm16 | Code::Iretq => {
                word(cpu.general.rsp).into_iter().collect()
            }
            _ => Vec::new(),
        },
        FlowControl::Interrupt | FlowControl::XbeginXabortXend | FlowControl::Exception => {
            Vec::new()
        }
    }
}

/// The address in a gate of the interrupt descriptor table (AMD64 volume 2, 4.8.4).
fn handler(gate: &[u8]) -> Option<u64> {
    let gate = gate.first_chunk::<GATE_BYTES>()?;
    let [low0, low1, .., middle0, middle1, h0, h1, h2, h3, _, _, _, _] = *gate;
    Some(u64::from_le_bytes([
        low0, low1, middle0, middle1, h0, h1, h2, h3,
    ]))
}

fn indirect(
    cpu: &CpuState,
    instruction: &Instruction,
    mut word: impl FnMut(u64) -> Option<u64>,
) -> Option<u64> {
    match instruction.op0_kind() {
        OpKind::Register => register(cpu, instruction.op0_register()),
        OpKind::Memory => {
            let value = |name: Register, _, _| register(cpu, name);
            word(instruction.virtual_address(0, 0, value)?)
        }
        _ => None,
    }
}

fn msr(cpu: &CpuState, index: u32) -> Option<u64> {
    cpu.msrs
        .iter()
        .find(|msr| msr.index == index)
        .map(|msr| msr.value)
}

/// The value of a 64-bit register, or the base of a segment.
fn register(cpu: &CpuState, name: Register) -> Option<u64> {
    let (g, s) = (&cpu.general, &cpu.system);
    let base = |segment: &Segment| Some(segment.base);
    Some(match name {
        Register::RAX => g.rax,
        Register::RBX => g.rbx,
        Register::RCX => g.rcx,
        Register::RDX => g.rdx,
        Register::RSI => g.rsi,
        Register::RDI => g.rdi,
        Register::RSP => g.rsp,
        Register::RBP => g.rbp,
        Register::R8 => g.r8,
        Register::R9 => g.r9,
        Register::R10 => g.r10,
        Register::R11 => g.r11,
        Register::R12 => g.r12,
        Register::R13 => g.r13,
        Register::R14 => g.r14,
        Register::R15 => g.r15,
        // In 64-bit code only these two have a base.
        Register::FS => return base(&s.fs),
        Register::GS => return base(&s.gs),
        Register::CS | Register::DS | Register::ES | Register::SS => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::cpu_state::Msr;

    fn after(code: &[u8]) -> Vec<u64> {
        let mut cpu = CpuState::default();
        cpu.system.cs.l = true;
        cpu.system.gs.base = 0x9000;
        cpu.general.rip = 0x1000;
        cpu.general.rax = 0x5000;
        cpu.general.rcx = 0x6000;
        cpu.general.rsp = 0x7000;
        cpu.msrs = vec![Msr {
            index: LSTAR,
            value: 0x8000,
        }];
        // Every word of memory holds its own address and a bit.
        successors(&cpu, code, |address, length| {
            (address | 1 << 40).to_le_bytes()[..length].to_vec()
        })
    }

    #[test]
    fn every_flow_of_control_is_foretold() {
        let held = |address: u64| address | 1 << 40;
        assert_eq!(after(&[0x90]), [0x1001], "nop");
        assert_eq!(after(&[0x74, 0x10]), [0x1002, 0x1012], "je");
        assert_eq!(after(&[0xeb, 0xfe]), [0x1000], "jmp to itself");
        assert_eq!(after(&[0xe8, 0, 0, 0, 0]), [0x1005], "call");
        assert_eq!(after(&[0xff, 0xe0]), [0x5000], "jmp *%rax");
        assert_eq!(after(&[0xff, 0x10]), [held(0x5000)], "call *(%rax)");
        let gs_relative = [0x65, 0xff, 0x60, 0x08];
        assert_eq!(
            after(&gs_relative),
            [held(0x9000 + 0x5008)],
            "jmp *%gs:8(%rax)"
        );
        assert_eq!(after(&[0xc3]), [held(0x7000)], "ret");
        assert_eq!(after(&[0x48, 0xcf]), [held(0x7000)], "iretq");
        assert_eq!(after(&[0x0f, 0x05]), [0x8000], "syscall");
        assert_eq!(after(&[0x48, 0x0f, 0x07]), [0x6000], "sysretq");
    }

    #[test]
    fn before_code_that_is_not_mapped_comes_the_handler_of_page_faults() {
        let mut cpu = CpuState::default();
        cpu.system.cs.l = true;
        cpu.system.idt.base = 0xfffe_0000;
        let gate = [
            0x11, 0x22, 0x10, 0, 0, 0x8e, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0, 0, 0, 0,
        ];
        let read = |address: u64, length: usize| {
            assert_eq!((address, length), (0xfffe_00e0, 16));
            gate.to_vec()
        };
        let handler = vec![0x8877_6655_4433_2211];
        assert_eq!(successors(&cpu, &[], read), handler);
        // A call whose last byte is on the next page.
        assert_eq!(successors(&cpu, &[0xe8, 1, 0, 0], read), handler);
        assert!(successors(&cpu, &[], |_, _| Vec::new()).is_empty());
    }

    #[test]
    fn what_cannot_be_foretold_has_no_successor() {
        for code in [&[0xcc][..], &[0x0f, 0x0b], &[0x48, 0xcb], &[0xcd, 0x80]] {
            assert_eq!(after(code), [0u64; 0], "{code:02x?}");
        }
    }
}
