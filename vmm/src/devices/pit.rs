//! Intel 8254 interval timer (datasheet order 231164) and the system control port beside it.
//!
//! Bus offsets: 0-2 the counters, 3 the control word, 4 system control port B (0x61: gate of
//! counter 2, speaker, output of counter 2). Counters 0 and 1 have their gates tied high; counter 0's
//! output is an interrupt line.
//!
//! Nothing counts: a counter's value is a function of guest time and of the input clock tick at
//! which it was loaded. Ticks are exact: `floor(ns * 1,193,182 / 10^9)`. The interrupt of counter 0
//! is due at the first whole microsecond at or after its tick. Periods that passed unseen, because
//! guest time jumped, coalesce into one interrupt, as they would on a PC with interrupts off.
//!
//! Departures: a count written while counting takes effect at once in every mode (the datasheet
//! ends the current period first in modes 2 and 3; QEMU and KVM behave as we do); counts of 1 in
//! modes 2 and 3, which the datasheet forbids, behave as 2.

#![forbid(unsafe_code)]

use super::pit_counter::{Access, Counter, CounterState, Mode};
use super::{Device, DeviceContext, Misuse, RestoreError, TimedDevice};
use logging_channel::host_time::GuestTime;
use serde::{Deserialize, Serialize};

/// Input clock of the counters in Hz.
pub const FREQUENCY_HZ: u64 = 1_193_182;

/// Refresh request half period: bit 4 of port B toggles with it.
const REFRESH_NS: u64 = 15_085;

const PORT_B_GATE: u8 = 0x01;
const PORT_B_WRITABLE: u8 = 0x0f;
const PORT_B_REFRESH: u8 = 0x10;
const PORT_B_OUTPUT: u8 = 0x20;

/// Input clock ticks since power-on at `now`.
#[must_use]
pub fn ticks_at(now: GuestTime) -> u64 {
    let ticks = u128::from(now.as_nanos()) * u128::from(FREQUENCY_HZ) / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// The first guest time at which `tick` has happened.
#[must_use]
pub fn time_of_tick(tick: u64) -> GuestTime {
    let us = (u128::from(tick) * 1_000_000).div_ceil(u128::from(FREQUENCY_HZ));
    GuestTime::from_micros(u64::try_from(us).unwrap_or(u64::MAX))
}

/// Saved state of the timer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    /// The three counters.
    pub counters: [CounterState; 3],
    /// Tick of the next interrupt of counter 0.
    pub next_interrupt: Option<u64>,
    /// Writable bits of port B.
    pub port_b: u8,
    /// What the guest did wrong.
    pub misuse: Misuse,
}

/// The timer.
#[derive(Debug)]
pub struct Pit {
    irq_line: u8,
    counters: [Counter; 3],
    next_interrupt: Option<u64>,
    port_b: u8,
    misuse: Misuse,
}

impl Pit {
    /// A timer after power-on whose counter 0 drives `irq_line`.
    #[must_use]
    pub fn new(irq_line: u8) -> Self {
        Self {
            irq_line,
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            next_interrupt: None,
            port_b: 0,
            misuse: Misuse::default(),
        }
    }

    fn read_register(&mut self, offset: u64, now: GuestTime) -> u8 {
        let tick = ticks_at(now);
        match offset {
            0..=2 => self.counters[offset as usize].read(tick),
            4 => {
                let refresh = now.as_nanos() / REFRESH_NS % 2 == 1;
                self.port_b
                    | if refresh { PORT_B_REFRESH } else { 0 }
                    | if self.counters[2].output(tick) {
                        PORT_B_OUTPUT
                    } else {
                        0
                    }
            }
            // The control word register cannot be read.
            3 => 0xff,
            _ => {
                self.misuse.bad_access += 1;
                0xff
            }
        }
    }

    fn write_register(&mut self, offset: u64, value: u8, ctx: &mut DeviceContext<'_>) {
        let tick = ticks_at(ctx.now);
        match offset {
            0 => {
                if self.counters[0].write(value, tick) {
                    self.next_interrupt = self.counters[0].next_rise(tick);
                }
            }
            1 | 2 => {
                self.counters[offset as usize].write(value, tick);
            }
            3 => self.control_word(value, tick, ctx),
            4 => {
                self.port_b = value & PORT_B_WRITABLE;
                self.counters[2].set_gate(value & PORT_B_GATE != 0, tick);
            }
            _ => self.misuse.bad_access += 1,
        }
    }

    fn control_word(&mut self, value: u8, tick: u64, ctx: &mut DeviceContext<'_>) {
        let select = usize::from(value >> 6);
        if select == 3 {
            return self.read_back(value, tick);
        }
        let Some(access) = Access::from_control_word(value) else {
            return self.counters[select].latch_count(tick);
        };
        self.counters[select].configure(access, Mode::from_control_word(value), value & 1 != 0);
        if select == 0 {
            self.next_interrupt = None;
            // Mode 0 starts with the output low, every other mode with it high and then idle. The
            // line is left low in both: modes 2 to 5 only ever pulse it.
            ctx.irq.set(self.irq_line, false);
        }
    }

    fn read_back(&mut self, value: u8, tick: u64) {
        for (number, counter) in self.counters.iter_mut().enumerate() {
            if value & 2 << number == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                counter.latch_count(tick);
            }
            if value & 0x10 == 0 {
                counter.latch_status(tick);
            }
        }
    }
}

impl Device for Pit {
    type State = PitState;

    fn name(&self) -> &'static str {
        "pit"
    }

    fn read(&mut self, offset: u64, data: &mut [u8], ctx: &mut DeviceContext<'_>) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.read_register(at, ctx.now);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8], ctx: &mut DeviceContext<'_>) {
        for (at, &byte) in (offset..).zip(data) {
            self.write_register(at, byte, ctx);
        }
    }

    fn save(&self) -> PitState {
        PitState {
            counters: self.counters.each_ref().map(Counter::save),
            next_interrupt: self.next_interrupt,
            port_b: self.port_b,
            misuse: self.misuse,
        }
    }

    fn restore(&mut self, state: &PitState) -> Result<(), RestoreError> {
        for counter in &state.counters {
            counter.check()?;
        }
        if state.port_b & !PORT_B_WRITABLE != 0 {
            return Err(RestoreError {
                device: "pit",
                field: "port_b",
                found: format!("{:#x}", state.port_b),
            });
        }
        self.counters = state.counters.each_ref().map(|c| Counter::restore(c));
        self.next_interrupt = state.next_interrupt;
        self.port_b = state.port_b;
        self.misuse = state.misuse;
        Ok(())
    }

    fn misuse(&self) -> Misuse {
        self.misuse
    }
}

impl TimedDevice for Pit {
    fn next_deadline(&self) -> Option<GuestTime> {
        self.next_interrupt.map(time_of_tick)
    }

    fn advance(&mut self, ctx: &mut DeviceContext<'_>) {
        let tick = ticks_at(ctx.now);
        if self.next_interrupt.is_none_or(|due| due > tick) {
            return;
        }
        if self.counters[0].mode() == Mode::TerminalCount {
            ctx.irq.set(self.irq_line, true);
        } else {
            ctx.irq.pulse(self.irq_line);
        }
        self.next_interrupt = self.counters[0].next_rise(tick);
    }
}
