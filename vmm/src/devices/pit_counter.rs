//! One counter of the 8254: modes, loading, latching, and its value and output at a given tick.
//!
//! A loaded counter begins at tick `began`, the one after the write, and has then run for
//! `elapsed` ticks, unless its gate holds it. Everything else is computed from that.

#![forbid(unsafe_code)]

use super::RestoreError;
use serde::{Deserialize, Serialize};

/// Counting mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// 0: interrupt on terminal count.
    TerminalCount,
    /// 1: hardware retriggerable one-shot.
    OneShot,
    /// 2: rate generator.
    Rate,
    /// 3: square wave.
    Square,
    /// 4: software triggered strobe.
    SoftwareStrobe,
    /// 5: hardware triggered strobe.
    HardwareStrobe,
}

impl Mode {
    /// Bits 1 to 3 of a control word; 6 and 7 mean 2 and 3.
    #[must_use]
    pub const fn from_control_word(value: u8) -> Self {
        match value >> 1 & 7 {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::Rate,
            3 | 7 => Self::Square,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::TerminalCount => 0,
            Self::OneShot => 1,
            Self::Rate => 2,
            Self::Square => 3,
            Self::SoftwareStrobe => 4,
            Self::HardwareStrobe => 5,
        }
    }

    const fn is_periodic(self) -> bool {
        matches!(self, Self::Rate | Self::Square)
    }

    /// Started by a rising gate rather than by the count.
    const fn is_hardware_triggered(self) -> bool {
        matches!(self, Self::OneShot | Self::HardwareStrobe)
    }
}

/// Which bytes of the count are transferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Low byte only.
    Low,
    /// High byte only.
    High,
    /// Low byte, then high byte.
    Both,
}

impl Access {
    /// Bits 4 and 5 of a control word; `None` is the counter latch command.
    #[must_use]
    pub const fn from_control_word(value: u8) -> Option<Self> {
        match value >> 4 & 3 {
            0 => None,
            1 => Some(Self::Low),
            2 => Some(Self::High),
            _ => Some(Self::Both),
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Low => 1,
            Self::High => 2,
            Self::Both => 3,
        }
    }
}

/// How far a counter has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// No count, or no trigger, since the mode was set.
    Idle,
    /// Counting since this tick.
    Running {
        /// Tick at which the count was full.
        began: u64,
    },
    /// Held by its gate.
    Held {
        /// Ticks counted before the gate fell.
        elapsed: u64,
    },
}

/// State of one counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterState {
    /// Counting mode.
    pub mode: Mode,
    /// Bytes transferred.
    pub access: Access,
    /// Counts in four decimal digits instead of binary.
    pub bcd: bool,
    /// Count register as written; 0 means the largest count.
    pub reload: u16,
    /// How far it has come.
    pub progress: Progress,
    /// Gate input.
    pub gate: bool,
    /// Low byte written, waiting for the high byte.
    pub written_low: Option<u8>,
    /// The next read is of the high byte.
    pub read_high_next: bool,
    /// Latched count bytes not read yet: the count, and whether only its high byte is left.
    pub latched_count: Option<u16>,
    /// Latched status.
    pub latched_status: Option<u8>,
    /// A count was written since the control word (null count flag clear).
    pub loaded: bool,
}

impl CounterState {
    /// Refuses digits that a BCD count cannot have.
    ///
    /// # Errors
    /// Names the field.
    pub fn check(&self) -> Result<(), RestoreError> {
        if matches!(
            self.progress,
            Progress::Running { .. } | Progress::Held { .. }
        ) && !self.loaded
        {
            return Err(RestoreError {
                device: "pit",
                field: "progress",
                found: format!("{:?} without a count", self.progress),
            });
        }
        Ok(())
    }
}

/// One counter.
#[derive(Debug)]
pub struct Counter {
    state: CounterState,
}

impl Counter {
    /// A counter after power-on, with its gate at `gate`.
    #[must_use]
    pub const fn new(gate: bool) -> Self {
        Self {
            state: CounterState {
                mode: Mode::TerminalCount,
                access: Access::Both,
                bcd: false,
                reload: 0,
                progress: Progress::Idle,
                gate,
                written_low: None,
                read_high_next: false,
                latched_count: None,
                latched_status: None,
                loaded: false,
            },
        }
    }

    /// The counter that `state` describes.
    #[must_use]
    pub const fn restore(state: &CounterState) -> Self {
        Self { state: *state }
    }

    /// Its state.
    #[must_use]
    pub const fn save(&self) -> CounterState {
        self.state
    }

    /// Its mode.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.state.mode
    }

    /// A control word: the counter stops until a count comes.
    pub const fn configure(&mut self, access: Access, mode: Mode, bcd: bool) {
        self.state = CounterState {
            mode,
            access,
            bcd,
            gate: self.state.gate,
            reload: self.state.reload,
            ..Self::new(true).state
        };
    }

    /// A byte of the count. True when the count is complete and now in effect.
    pub fn write(&mut self, value: u8, tick: u64) -> bool {
        let s = &mut self.state;
        let reload = match (s.access, s.written_low) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, None) => {
                s.written_low = Some(value);
                // In mode 0 the first byte stops the count.
                if s.mode == Mode::TerminalCount {
                    s.progress = Progress::Idle;
                }
                return false;
            }
            (Access::Both, Some(low)) => u16::from_le_bytes([low, value]),
        };
        s.written_low = None;
        s.reload = reload;
        s.loaded = true;
        if !s.mode.is_hardware_triggered() {
            s.progress = if s.gate {
                Progress::Running {
                    began: tick.saturating_add(1),
                }
            } else {
                Progress::Held { elapsed: 0 }
            };
        }
        true
    }

    /// Drives the gate: holds and resumes modes 0 and 4, restarts modes 2 and 3, triggers 1 and 5.
    pub fn set_gate(&mut self, high: bool, tick: u64) {
        let rising = high && !self.state.gate;
        let elapsed = self.elapsed(tick);
        let s = &mut self.state;
        s.gate = high;
        let restart = Progress::Running {
            began: tick.saturating_add(1),
        };
        s.progress = match s.progress {
            _ if s.mode.is_hardware_triggered() && rising && s.loaded => restart,
            unchanged if s.mode.is_hardware_triggered() => unchanged,
            Progress::Running { .. } if !high => Progress::Held { elapsed },
            Progress::Held { .. } if rising && s.mode.is_periodic() => restart,
            Progress::Held { elapsed } if rising => Progress::Running {
                began: tick.saturating_sub(elapsed),
            },
            unchanged => unchanged,
        };
    }

    /// Ticks counted since the count was full.
    const fn elapsed(&self, tick: u64) -> u64 {
        match self.state.progress {
            Progress::Idle => 0,
            Progress::Running { began } => tick.saturating_sub(began),
            Progress::Held { elapsed } => elapsed,
        }
    }

    /// Counts before the counter wraps: 65,536, or 10,000 in BCD.
    const fn modulus(&self) -> u64 {
        if self.state.bcd { 10_000 } else { 65_536 }
    }

    /// The full count in ticks.
    fn period(&self) -> u64 {
        let written = u64::from(self.state.reload);
        let count = if self.state.bcd {
            // Digits above nine, which the datasheet does not define, count as they would add up.
            let digit = |shift: u32| written >> shift & 0xf;
            digit(0) + 10 * digit(4) + 100 * digit(8) + 1_000 * digit(12)
        } else {
            written
        };
        let count = if count == 0 { self.modulus() } else { count };
        if self.state.mode.is_periodic() {
            count.max(2)
        } else {
            count
        }
    }

    /// The counting element's value at `tick`, as a read shows it.
    fn value(&self, tick: u64) -> u16 {
        let (period, elapsed) = (self.period(), self.elapsed(tick));
        let remaining = match self.state.mode {
            _ if self.state.progress == Progress::Idle => period,
            Mode::Rate => period - elapsed % period,
            // Counts down by two, twice per period.
            Mode::Square => {
                let half = period.div_ceil(2);
                let into = elapsed % period;
                let into_half = if into < half { into } else { into - half };
                (period & !1).saturating_sub(2 * into_half)
            }
            _ => period + self.modulus() - elapsed % self.modulus(),
        } % self.modulus();
        if !self.state.bcd {
            return remaining as u16;
        }
        let digit = |divisor: u64| (remaining / divisor % 10) as u16;
        digit(1_000) << 12 | digit(100) << 8 | digit(10) << 4 | digit(1)
    }

    /// The output pin at `tick`.
    #[must_use]
    pub fn output(&self, tick: u64) -> bool {
        let (period, elapsed) = (self.period(), self.elapsed(tick));
        let running = self.state.progress != Progress::Idle;
        match self.state.mode {
            Mode::TerminalCount => running && elapsed >= period,
            Mode::OneShot => !running || elapsed >= period,
            Mode::Rate => !self.state.gate || !running || elapsed % period != period - 1,
            Mode::Square => !self.state.gate || !running || elapsed % period < period.div_ceil(2),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => !running || elapsed != period,
        }
    }

    /// The first tick after `tick` at which the output rises.
    #[must_use]
    pub fn next_rise(&self, tick: u64) -> Option<u64> {
        let Progress::Running { began } = self.state.progress else {
            return None;
        };
        let period = self.period();
        let first = match self.state.mode {
            Mode::TerminalCount | Mode::OneShot | Mode::Rate | Mode::Square => period,
            Mode::SoftwareStrobe | Mode::HardwareStrobe => period + 1,
        };
        let rise = if self.state.mode.is_periodic() {
            let periods = tick.saturating_sub(began) / period + 1;
            began.checked_add(periods.checked_mul(period)?)?
        } else {
            began.checked_add(first)?
        };
        (rise > tick).then_some(rise)
    }

    /// Counter latch command; ignored while an earlier latch is unread.
    pub fn latch_count(&mut self, tick: u64) {
        if self.state.latched_count.is_none() {
            self.state.latched_count = Some(self.value(tick));
        }
    }

    /// Read-back of the status byte; ignored while an earlier one is unread.
    pub fn latch_status(&mut self, tick: u64) {
        if self.state.latched_status.is_some() {
            return;
        }
        let s = &self.state;
        let status = u8::from(self.output(tick)) << 7
            | u8::from(!s.loaded) << 6
            | s.access.number() << 4
            | s.mode.number() << 1
            | u8::from(s.bcd);
        self.state.latched_status = Some(status);
    }

    /// A read of the counter's port.
    pub fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.state.latched_status.take() {
            return status;
        }
        let [low, high] = match self.state.latched_count {
            Some(count) => count,
            None => self.value(tick),
        }
        .to_le_bytes();
        let (byte, done) = match (self.state.access, self.state.read_high_next) {
            (Access::Low, _) => (low, true),
            (Access::High, _) => (high, true),
            (Access::Both, false) => (low, false),
            (Access::Both, true) => (high, true),
        };
        self.state.read_high_next = !done;
        if done {
            self.state.latched_count = None;
        }
        byte
    }
}
