//! What is shown of a guest where its replay stopped: registers, memory, code.

#![forbid(unsafe_code)]

use crate::cli::exit::{Exit, Failure};
use clap::Args;
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};
use inspect::hex::{Digits, Dump};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use vmm::kvm::KvmError;
use vmm::machine::cpu_state::{CpuState, Segment};
use vmm::runtime::Replayed;

/// Most bytes of memory shown.
const MEMORY_BYTES_MAX: usize = 16 << 20;
/// Most instructions shown.
const INSTRUCTIONS_MAX: usize = 10_000;
/// Longest x86 instruction.
const INSTRUCTION_BYTES_MAX: usize = 15;

/// What to show.
#[derive(Debug, Default, Args)]
pub(super) struct Look {
    /// Show the registers.
    #[arg(long)]
    registers: bool,
    /// Show memory at a linear address; both numbers decimal or 0x.
    #[arg(long, num_args = 2, value_names = ["ADDRESS", "BYTES"], value_parser = number)]
    memory: Option<Vec<u64>>,
    /// The address of --memory is guest physical.
    #[arg(long, requires = "memory")]
    physical: bool,
    /// Show so many instructions, the first the one that comes next.
    #[arg(long, value_name = "INSTRUCTIONS", num_args = 0..=1, default_missing_value = "10")]
    disassemble: Option<usize>,
}

fn number(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

/// What was seen.
#[derive(Debug, Default, Serialize)]
pub(super) struct State {
    /// Hexadecimal with 0x, so that no reader loses digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    register_values: Option<BTreeMap<&'static str, String>>,
    #[serde(skip)]
    registers_text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_at: Option<Memory>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    code: Vec<Instruction>,
}

#[derive(Debug, Serialize)]
struct Memory {
    address: u64,
    hex: String,
    #[serde(skip)]
    bytes: Vec<u8>,
    #[serde(skip)]
    wanted: usize,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Instruction {
    address: u64,
    hex: String,
    text: String,
}

impl State {
    /// Reads what `look` asks for.
    pub(super) fn look(look: &Look, replayed: &mut Replayed) -> Result<Self, Failure> {
        let failed = |error: KvmError| Failure::new(Exit::Failed, error);
        let mut state = Self::default();
        let cpu = replayed.cpu().map_err(failed)?;
        if look.registers {
            state.register_values = Some(values(&cpu));
            state.registers_text = registers_text(&cpu);
        }
        if let Some([address, length]) = look.memory.as_deref() {
            let wanted = usize::try_from(*length).unwrap_or(usize::MAX);
            let wanted = wanted.min(MEMORY_BYTES_MAX);
            let bytes = if look.physical {
                replayed.physical(*address, wanted)
            } else {
                replayed.linear(*address, wanted).map_err(failed)?
            };
            state.memory_at = Some(Memory {
                address: *address,
                hex: Digits(&bytes).to_string(),
                bytes,
                wanted,
            });
        }
        if let Some(count) = look.disassemble {
            let count = count.min(INSTRUCTIONS_MAX);
            let address = linear_ip(&cpu);
            let bytes = replayed.linear(address, count * INSTRUCTION_BYTES_MAX);
            state.code = disassemble(&bytes.map_err(failed)?, address, bits(&cpu), count);
        }
        Ok(state)
    }

    /// It as text.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if !self.registers_text.is_empty() {
            let _ = write!(text, "\n{}", self.registers_text);
        }
        if let Some(memory) = &self.memory_at {
            let (bytes, base) = (memory.bytes.as_slice(), memory.address);
            let _ = write!(text, "\n{}", Dump { bytes, base });
            if bytes.len() < memory.wanted {
                let end = base.wrapping_add(bytes.len() as u64);
                let _ = writeln!(text, "nothing is mapped at {end:#x}");
            }
        }
        if !self.code.is_empty() {
            text.push('\n');
        }
        for (number, instruction) in self.code.iter().enumerate() {
            let mark = if number == 0 { "=>" } else { "  " };
            let Instruction {
                address,
                hex,
                text: words,
            } = instruction;
            let _ = writeln!(text, "{mark} {address:016x}  {hex:<22} {words}");
        }
        text
    }
}

/// Address of the next instruction: with the base of its segment, which counts outside 64-bit code.
fn linear_ip(cpu: &CpuState) -> u64 {
    let base = if cpu.system.cs.l {
        0
    } else {
        cpu.system.cs.base
    };
    base.wrapping_add(cpu.general.rip)
}

const fn bits(cpu: &CpuState) -> u32 {
    match (cpu.system.cs.l, cpu.system.cs.db) {
        (true, _) => 64,
        (false, true) => 32,
        (false, false) => 16,
    }
}

fn disassemble(bytes: &[u8], address: u64, bits: u32, count: usize) -> Vec<Instruction> {
    let mut formatter = GasFormatter::new();
    let decoder = Decoder::with_ip(bits, bytes, address, DecoderOptions::NONE);
    let show = |instruction: iced_x86::Instruction| {
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        let from = usize::try_from(instruction.ip().wrapping_sub(address)).unwrap_or(0);
        let code = bytes
            .get(from..from + instruction.len())
            .unwrap_or_default();
        Instruction {
            address: instruction.ip(),
            hex: Digits(code).to_string(),
            text,
        }
    };
    decoder.into_iter().take(count).map(show).collect()
}

fn general(cpu: &CpuState) -> [(&'static str, u64); 18] {
    let g = &cpu.general;
    [
        ("rax", g.rax),
        ("rbx", g.rbx),
        ("rcx", g.rcx),
        ("rdx", g.rdx),
        ("rsi", g.rsi),
        ("rdi", g.rdi),
        ("rbp", g.rbp),
        ("rsp", g.rsp),
        ("r8", g.r8),
        ("r9", g.r9),
        ("r10", g.r10),
        ("r11", g.r11),
        ("r12", g.r12),
        ("r13", g.r13),
        ("r14", g.r14),
        ("r15", g.r15),
        ("rip", g.rip),
        ("rflags", g.rflags),
    ]
}

fn control(cpu: &CpuState) -> [(&'static str, u64); 6] {
    let s = &cpu.system;
    [
        ("cr0", s.cr0),
        ("cr2", s.cr2),
        ("cr3", s.cr3),
        ("cr4", s.cr4),
        ("cr8", s.cr8),
        ("efer", s.efer),
    ]
}

fn segments(cpu: &CpuState) -> [(&'static str, Segment); 7] {
    let s = &cpu.system;
    [
        ("cs", s.cs),
        ("ss", s.ss),
        ("ds", s.ds),
        ("es", s.es),
        ("fs", s.fs),
        ("gs", s.gs),
        ("tr", s.tr),
    ]
}

fn values(cpu: &CpuState) -> BTreeMap<&'static str, String> {
    let numbers = general(cpu).into_iter().chain(control(cpu));
    let selectors = segments(cpu).map(|(name, segment)| (name, u64::from(segment.selector)));
    let bases = [
        ("fs_base", cpu.system.fs.base),
        ("gs_base", cpu.system.gs.base),
    ];
    let all = numbers.chain(selectors).chain(bases);
    all.map(|(name, value)| (name, format!("{value:#x}")))
        .collect()
}

fn registers_text(cpu: &CpuState) -> String {
    let mut text = String::new();
    for row in general(cpu).chunks(3).chain(control(cpu).chunks(3)) {
        for (name, value) in row {
            let _ = write!(text, "{name:>6} {value:016x}");
        }
        text.push('\n');
    }
    for (name, segment) in segments(cpu) {
        let Segment {
            selector,
            base,
            limit,
            dpl,
            ..
        } = segment;
        let _ = writeln!(
            text,
            "{name:>6} {selector:04x} base {base:016x} limit {limit:08x} dpl {dpl}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_decoded_up_to_the_count() {
        let bytes = [0x55, 0x48, 0x89, 0xe5, 0xf4, 0x90];
        let code = disassemble(&bytes, 0x1000, 64, 3);
        let lines: Vec<_> = code
            .iter()
            .map(|i| (i.address, i.hex.as_str(), i.text.as_str()))
            .collect();
        let expected = [
            (0x1000, "55", "push %rbp"),
            (0x1001, "4889e5", "mov %rsp,%rbp"),
            (0x1004, "f4", "hlt"),
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("0x1f"), Ok(31));
        assert_eq!(number("31"), Ok(31));
        assert!(number("1f").is_err());
    }
}
