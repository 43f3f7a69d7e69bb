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
use super::{Device, DeviceContext, Misuse, RestoreError, TimedDevice, bytes_from, count};
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
                count(&mut self.misuse.bad_access, 1);
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
            _ => count(&mut self.misuse.bad_access, 1),
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
        for (at, byte) in bytes_from(offset).zip(data) {
            *byte = self.read_register(at, ctx.now);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8], ctx: &mut DeviceContext<'_>) {
        for (at, &byte) in bytes_from(offset).zip(data) {
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
        self.counters = state.counters.each_ref().map(Counter::restore);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::conformance::{Bench, Subject, conformance_tests};
    use proptest::prelude::*;

    impl Subject for Pit {
        fn fresh() -> Self {
            Self::new(0)
        }

        fn offsets() -> Vec<u64> {
            (0..5).collect()
        }

        fn advance(&mut self, ctx: &mut DeviceContext<'_>) {
            TimedDevice::advance(self, ctx);
        }
    }

    conformance_tests!(Pit);

    fn write(pit: &mut Pit, bench: &mut Bench, writes: &[(u64, u8)]) {
        for &(offset, value) in writes {
            pit.write(offset, &[value], &mut bench.ctx());
        }
    }

    fn read(pit: &mut Pit, bench: &mut Bench, offset: u64) -> u8 {
        let mut byte = [0];
        pit.read(offset, &mut byte, &mut bench.ctx());
        byte[0]
    }

    fn read_count(pit: &mut Pit, bench: &mut Bench, offset: u64) -> u16 {
        let low = read(pit, bench, offset);
        u16::from_le_bytes([low, read(pit, bench, offset)])
    }

    /// Moves to the first time at which `tick` has happened.
    fn go_to(bench: &mut Bench, tick: u64) {
        bench.now = time_of_tick(tick);
    }

    fn fires(pit: &mut Pit, bench: &mut Bench) -> bool {
        TimedDevice::advance(pit, &mut bench.ctx());
        bench.irq.take_rising() & 1 != 0
    }

    /// Linux drivers/clocksource/i8253.c, pit_set_periodic() with HZ=100.
    #[test]
    fn periodic_as_linux_sets_it() {
        let (mut pit, mut bench) = (Pit::new(0), Bench::new());
        write(&mut pit, &mut bench, &[(3, 0x34), (0, 0x9c), (0, 0x2e)]);
        for n in 1..5 {
            let due = pit.next_deadline().expect("periodic");
            assert_eq!(due, time_of_tick(1 + n * 11_932));
            bench.now = GuestTime::from_micros(due.as_micros() - 1);
            assert!(!fires(&mut pit, &mut bench));
            bench.now = due;
            assert!(fires(&mut pit, &mut bench));
            assert!(!fires(&mut pit, &mut bench), "once per deadline");
        }
    }

    /// pit_set_oneshot() and pit_next_event(): mode 4.
    #[test]
    fn one_shot_as_linux_sets_it() {
        let (mut pit, mut bench) = (Pit::new(0), Bench::new());
        write(&mut pit, &mut bench, &[(3, 0x38)]);
        assert_eq!(pit.next_deadline(), None);
        bench.now = GuestTime::from_micros(500);
        write(&mut pit, &mut bench, &[(0, 0x10), (0, 0x27)]);
        let due = pit.next_deadline().expect("one shot");
        assert_eq!(due, time_of_tick(ticks_at(bench.now) + 2 + 10_000));
        bench.now = due;
        assert!(fires(&mut pit, &mut bench));
        assert_eq!(pit.next_deadline(), None);
        // pit_shutdown().
        write(&mut pit, &mut bench, &[(0, 9), (0, 0), (3, 0x30)]);
        assert_eq!(pit.next_deadline(), None);
    }

    #[test]
    fn missed_periods_coalesce() {
        let (mut pit, mut bench) = (Pit::new(0), Bench::new());
        write(&mut pit, &mut bench, &[(3, 0x34), (0, 0x00), (0, 0x10)]);
        go_to(&mut bench, 4_096 * 1_000);
        assert!(fires(&mut pit, &mut bench));
        assert!(!fires(&mut pit, &mut bench));
        let next = pit.next_deadline().expect("still periodic");
        assert_eq!(next, time_of_tick(1 + 4_096 * 1_000));
    }

    #[test]
    fn mode_0_raises_the_line_and_keeps_it() {
        let (mut pit, mut bench) = (Pit::new(0), Bench::new());
        write(&mut pit, &mut bench, &[(3, 0x30), (0, 100), (0, 0)]);
        bench.now = pit.next_deadline().expect("armed");
        assert!(fires(&mut pit, &mut bench));
        assert_eq!(bench.irq.levels() & 1, 1);
        write(&mut pit, &mut bench, &[(3, 0x30)]);
        assert_eq!(bench.irq.levels() & 1, 0);
    }

    #[test]
    fn counts_down_and_latches() {
        let mut counter = Counter::new(true);
        counter.configure(Access::Both, Mode::Rate, false);
        counter.write(0xe8, 0);
        assert!(counter.write(0x03, 0), "1,000, full at tick 1");
        let count = |counter: &mut Counter, tick| {
            u16::from_le_bytes([counter.read(tick), counter.read(tick)])
        };
        counter.latch_count(11);
        counter.latch_count(500);
        assert_eq!(count(&mut counter, 500), 990, "the first latch");
        assert_eq!(count(&mut counter, 500), 501, "then the count");
        assert_eq!(count(&mut counter, 1_000), 1);
        assert_eq!(count(&mut counter, 1_001), 1_000);
        counter.latch_count(11);
        counter.configure(Access::Low, Mode::Rate, false);
        assert_eq!(counter.read(12), 0xe8, "a control word drops the latch");
    }

    #[test]
    fn counts_in_decimal() {
        let (mut pit, mut bench) = (Pit::new(0), Bench::new());
        write(&mut pit, &mut bench, &[(3, 0x35), (0, 0x00), (0, 0x10)]);
        go_to(&mut bench, 2);
        assert_eq!(read_count(&mut pit, &mut bench, 0), 0x0999);
    }

    #[test]
    fn square_wave_counts_twos() {
        let mut counter = Counter::new(true);
        counter.configure(Access::Low, Mode::Square, false);
        counter.write(10, 0);
        let seen = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11].map(|tick| counter.read(tick));
        assert_eq!(seen, [10, 8, 6, 4, 2, 10, 8, 6, 4, 2, 10]);
        let high = [1, 5, 6, 10, 11].map(|tick| counter.output(tick));
        assert_eq!(high, [true, true, false, false, true]);
        assert_eq!(counter.next_rise(3), Some(11));
    }

    #[test]
    fn read_back_gives_status_and_count() {
        let (mut pit, mut bench) = (Pit::new(0), Bench::new());
        write(&mut pit, &mut bench, &[(3, 0xb4)]);
        write(&mut pit, &mut bench, &[(3, 0xe8)]);
        assert_eq!(read(&mut pit, &mut bench, 2), 0xf4, "output high, no count");
        write(&mut pit, &mut bench, &[(2, 0), (2, 1), (3, 0xc8)]);
        assert_eq!(read(&mut pit, &mut bench, 2), 0xb4, "status first");
        assert_eq!(
            read_count(&mut pit, &mut bench, 2),
            0x100,
            "held by its gate"
        );
    }

    /// Linux pit_calibrate_tsc(): counter 2 in mode 0, gated by port 0x61, polled there.
    #[test]
    fn counter_2_as_linux_calibrates_with_it() {
        let (mut pit, mut bench) = (Pit::new(0), Bench::new());
        write(
            &mut pit,
            &mut bench,
            &[(4, 0x01), (3, 0xb0), (2, 0x9c), (2, 0x2e)],
        );
        assert_eq!(read(&mut pit, &mut bench, 4) & 0x20, 0);
        go_to(&mut bench, 5_000);
        write(&mut pit, &mut bench, &[(4, 0x00)]);
        go_to(&mut bench, 50_000);
        assert_eq!(read(&mut pit, &mut bench, 4) & 0x20, 0, "held by its gate");
        write(&mut pit, &mut bench, &[(4, 0x01)]);
        go_to(&mut bench, 50_000 + 6_000);
        assert_eq!(read(&mut pit, &mut bench, 4) & 0x20, 0);
        go_to(&mut bench, 50_000 + 6_934);
        assert_eq!(read(&mut pit, &mut bench, 4) & 0x20, 0x20);
    }

    proptest! {
        #[test]
        fn a_deadline_is_the_first_microsecond_of_its_tick(tick in 1..u64::MAX / 2_000_000) {
            let due = time_of_tick(tick);
            prop_assert!(ticks_at(due) >= tick);
            prop_assert!(ticks_at(GuestTime::from_micros(due.as_micros() - 1)) < tick);
        }

        /// Whatever the mode and the count: advancing from deadline to deadline always makes
        /// progress and fires each time.
        #[test]
        fn deadlines_fire(control in 0x10..0x40u8, low: u8, high: u8, start in 0..1u64 << 40) {
            let (mut pit, mut bench) = (Pit::new(0), Bench::new());
            bench.now = GuestTime::from_micros(start);
            write(&mut pit, &mut bench, &[(3, control), (0, low), (0, high)]);
            for _ in 0..20 {
                let Some(due) = pit.next_deadline() else { break };
                prop_assert!(due > bench.now || ticks_at(bench.now) > 0);
                bench.now = due;
                prop_assert!(fires(&mut pit, &mut bench));
                prop_assert!(pit.next_deadline().is_none_or(|next| next > due));
            }
        }
    }
}
