//! All guest-visible state but the processor's own registers and memory contents.
//!
//! [`Machine`] answers the exits of the processor and takes inputs at execution points. Guest time
//! moves only in [`Machine::set_time`]. After every exit and every input the interrupt controllers
//! have seen all lines, so [`Machine::pending_interrupt`] is up to date between calls.

#![forbid(unsafe_code)]

pub mod bus;
pub mod cpu_state;
pub mod exit;
pub mod input;
pub mod layout;
pub mod msr;
pub mod page_set;
pub mod pvclock;
pub mod state;

use crate::devices::irq::IrqLines;
pub use crate::devices::ram;
use crate::devices::ram::GuestRam;
use crate::devices::{Device, DeviceContext, Effect, Misuse, TimedDevice};
use bus::Chips;
use exit::{Answer, VmExit};
use input::Input;
use logging_channel::host_time::GuestTime;
use logging_channel::record::EndReason;
use pvclock::PvClock;

/// What makes one machine different from another at power-on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineConfig {
    /// MAC address of network device 0.
    pub mac: [u8; 6],
    /// Wall clock at guest time 0, seconds since 1970.
    pub wall_clock_s: u64,
}

/// What came of one exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handled {
    /// What the processor is told.
    pub answer: Answer,
    /// Output and requests, in order.
    pub effects: Vec<Effect>,
    /// Why the guest is over, if it is.
    pub end: Option<EndReason>,
    /// The exit was a HLT: the guest waits for an interrupt.
    pub halted: bool,
}

/// The machine around the processor.
#[derive(Debug)]
pub struct Machine {
    chips: Chips,
    irq: IrqLines,
    clock: PvClock,
    now: GuestTime,
    memory: GuestRam,
}

/// Calls a method of the chips with a context made of the machine's other fields.
macro_rules! with_context {
    ($machine:expr, $effects:expr, |$ctx:ident| $body:expr) => {{
        let $ctx = &mut DeviceContext {
            now: $machine.now,
            irq: &mut $machine.irq,
            effects: $effects,
            memory: &$machine.memory,
        };
        $body
    }};
}

impl Machine {
    /// A machine at power-on, guest time 0, with `memory` as its RAM.
    #[must_use]
    pub fn new(config: &MachineConfig, memory: GuestRam) -> Self {
        Self {
            chips: Chips::new(config.mac, config.wall_clock_s),
            irq: IrqLines::default(),
            clock: PvClock::new(config.wall_clock_s),
            now: GuestTime::ZERO,
            memory,
        }
    }

    /// Guest time as of the last input.
    #[must_use]
    pub const fn now(&self) -> GuestTime {
        self.now
    }

    /// Guest memory.
    #[must_use]
    pub const fn memory(&self) -> &GuestRam {
        &self.memory
    }

    /// Deals with one exit.
    pub fn handle(&mut self, exit: &VmExit) -> Handled {
        let mut effects = Vec::new();
        let answer = match exit {
            VmExit::PortRead { port, size, count } => {
                self.read_ports(*port, *size, *count, &mut effects)
            }
            VmExit::PortWrite { port, size, data } => {
                self.write_ports(*port, *size, data, &mut effects)
            }
            VmExit::MmioRead { gpa, length } => self.read_memory(*gpa, *length, &mut effects),
            VmExit::MmioWrite { gpa, data } => self.write_memory(*gpa, data, &mut effects),
            VmExit::MsrRead { index } => self.read_msr(*index),
            VmExit::MsrWrite { index, value } => self.write_msr(*index, *value),
            VmExit::Halt | VmExit::WindowOpen | VmExit::Shutdown => Answer::None,
        };
        self.chips.pic.sync(&mut self.irq);
        Handled {
            answer,
            end: end_of(exit, &effects),
            effects,
            halted: *exit == VmExit::Halt,
        }
    }

    /// `count` accesses of `size` bytes, all at the same port: INS repeats one access.
    fn read_ports(&mut self, port: u16, size: u8, count: u32, effects: &mut Vec<Effect>) -> Answer {
        let mut data = vec![0xff; usize::from(size) * count as usize];
        for access in data.chunks_exact_mut(usize::from(size).max(1)) {
            with_context!(self, effects, |ctx| self.chips.read_port(port, access, ctx));
        }
        Answer::Data(data)
    }

    fn write_ports(
        &mut self,
        port: u16,
        size: u8,
        data: &[u8],
        effects: &mut Vec<Effect>,
    ) -> Answer {
        for access in data.chunks_exact(usize::from(size).max(1)) {
            with_context!(self, effects, |ctx| self
                .chips
                .write_port(port, access, ctx));
        }
        Answer::None
    }

    fn read_memory(&mut self, gpa: u64, length: u8, effects: &mut Vec<Effect>) -> Answer {
        let mut data = vec![0xff; usize::from(length)];
        with_context!(self, effects, |ctx| self
            .chips
            .read_memory(gpa, &mut data, ctx));
        Answer::Data(data)
    }

    fn write_memory(&mut self, gpa: u64, data: &[u8], effects: &mut Vec<Effect>) -> Answer {
        with_context!(self, effects, |ctx| self.chips.write_memory(gpa, data, ctx));
        Answer::None
    }

    fn read_msr(&self, index: u32) -> Answer {
        self.clock
            .read(index)
            .or_else(|| msr::read(index, self.now))
            .map_or(Answer::MsrFault, Answer::Msr)
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Answer {
        let accepted = match index {
            pvclock::MSR_WALL_CLOCK => self.clock.set_wall_clock(value, &self.memory).is_ok(),
            pvclock::MSR_SYSTEM_TIME => self
                .clock
                .set_system_time(value, self.now, &self.memory)
                .is_ok(),
            _ => msr::accepts_write(index),
        };
        if accepted {
            Answer::None
        } else {
            Answer::MsrFault
        }
    }

    /// Moves guest time on to `time`, or leaves it when `time` is earlier: the clock page shows it
    /// and timers that are due fire.
    pub fn set_time(&mut self, time: GuestTime) {
        self.now = self.now.max(time);
        // The page was found to be in memory when the guest enabled it, and memory does not shrink.
        let rewritten = self.clock.rewrite(self.now, &self.memory);
        debug_assert!(rewritten.is_ok(), "the clock page was checked when enabled");
        let mut effects = Vec::new();
        with_context!(self, &mut effects, |ctx| {
            self.chips.pit.advance(ctx);
            self.chips.rtc.advance(ctx);
        });
        debug_assert!(effects.is_empty(), "timers only drive interrupt lines");
        self.chips.pic.sync(&mut self.irq);
    }

    /// Moves guest time on to `time`, then delivers `input`. Returns requests that this led to.
    pub fn apply(&mut self, time: GuestTime, input: &Input) -> Vec<Effect> {
        self.set_time(time);
        let mut effects = Vec::new();
        with_context!(self, &mut effects, |ctx| match input {
            Input::Timer => {}
            Input::Console(bytes) => self.chips.serial.receive(bytes, ctx),
            Input::Packet { device: 0, bytes } => self.chips.net.receive(bytes, ctx),
            // There is one network device.
            Input::Packet { .. } => {}
            Input::Entropy(bytes) => self.chips.rng.deliver(bytes, ctx),
        });
        self.chips.pic.sync(&mut self.irq);
        effects
    }

    /// Whether `input` can be applied now; if not, it should wait. Packets and console bytes that
    /// nobody takes are accepted, to be dropped and counted.
    #[must_use]
    pub fn accepts(&self, input: &Input) -> bool {
        match input {
            Input::Timer => true,
            Input::Console(bytes) => self.chips.serial.accepts(bytes.len()),
            Input::Packet { device: 0, .. } => self.chips.net.can_receive(&self.memory),
            Input::Packet { .. } => false,
            Input::Entropy(_) => self.wanted_entropy() > 0,
        }
    }

    /// Guest time at which a timer of the guest is due, if one is armed.
    #[must_use]
    pub fn next_deadline(&self) -> Option<GuestTime> {
        let timers = [
            self.chips.pit.next_deadline(),
            self.chips.rtc.next_deadline(),
        ];
        timers.into_iter().flatten().min()
    }

    /// Random bytes that the guest has asked for and not yet been given.
    #[must_use]
    pub fn wanted_entropy(&self) -> usize {
        self.chips.rng.wanted_bytes()
    }

    /// Vector of the interrupt that the controllers request, if any. No side effects.
    #[must_use]
    pub fn pending_interrupt(&self) -> Option<u8> {
        self.chips.pic.pending()
    }

    /// The processor takes the interrupt: its vector.
    pub fn acknowledge_interrupt(&mut self) -> u8 {
        self.chips.pic.acknowledge()
    }

    /// What the guest has done wrong, by device.
    #[must_use]
    pub fn misuse(&self) -> [(&'static str, Misuse); 7] {
        let c = &self.chips;
        [
            (c.pic.name(), c.pic.misuse()),
            (c.pit.name(), c.pit.misuse()),
            (c.rtc.name(), c.rtc.misuse()),
            (c.serial.name(), c.serial.misuse()),
            (c.reset.name(), c.reset.misuse()),
            (c.net.name(), c.net.misuse()),
            (c.rng.name(), c.rng.misuse()),
        ]
    }
}

/// The first effect that ends the guest wins.
fn end_of(exit: &VmExit, effects: &[Effect]) -> Option<EndReason> {
    if *exit == VmExit::Shutdown {
        return Some(EndReason::Crash);
    }
    effects.iter().find_map(|effect| match effect {
        Effect::Reset => Some(EndReason::Reset),
        Effect::PowerOff => Some(EndReason::PowerOff),
        Effect::Console(_) | Effect::Transmit { .. } | Effect::WantEntropy(_) => None,
    })
}

#[cfg(test)]
mod tests;
