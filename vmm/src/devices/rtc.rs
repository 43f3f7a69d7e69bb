//! MC146818A real-time clock and CMOS memory (Motorola datasheet), behind index port 0x70 and data
//! port 0x71 (bus offsets 0 and 1).
//!
//! The time of day is the wall clock at power-on plus guest time, plus whatever the guest set. It
//! is never the host's. While register B's SET bit is on, the time registers hold what the guest
//! writes; clearing the bit starts the clock from there. The century is CMOS byte 0x32, BCD, as PC
//! firmware has it; years 1970 to 2399 can be shown.
//!
//! Flags in register C are computed when somebody looks: the periodic flag when a period boundary
//! was crossed since the last look, the update flag when a second was, the alarm flag when a matching
//! second was. Only enabled interrupts make deadlines, so an idle clock costs nothing.
//!
//! Left out: daylight saving, the square wave pin, the divider reset, the 244 us update window (an
//! update takes no time, so the update-in-progress bit always reads 0).

#![forbid(unsafe_code)]

use super::calendar::{Calendar, SECONDS_MAX};
use super::{Device, DeviceContext, Misuse, RestoreError, TimedDevice, bytes_from, count};
use logging_channel::host_time::GuestTime;
use serde::{Deserialize, Serialize};

/// Bytes of CMOS memory, the clock registers included.
pub const CMOS_BYTES: usize = 128;

const NS_PER_S: u64 = 1_000_000_000;

const SECONDS: u8 = 0;
const SECONDS_ALARM: u8 = 1;
const MINUTES: u8 = 2;
const MINUTES_ALARM: u8 = 3;
const HOURS: u8 = 4;
const HOURS_ALARM: u8 = 5;
const WEEKDAY: u8 = 6;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const REGISTER_A: u8 = 10;
const REGISTER_B: u8 = 11;
const REGISTER_C: u8 = 12;
const REGISTER_D: u8 = 13;
const CENTURY: u8 = 0x32;

const A_UPDATE_IN_PROGRESS: u8 = 0x80;
const A_DIVIDER_32768_RATE_1024: u8 = 0x26;
const B_SET: u8 = 0x80;
const B_ENABLES: u8 = 0x70;
const B_PERIODIC: u8 = 0x40;
const B_ALARM: u8 = 0x20;
const B_UPDATE: u8 = 0x10;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const C_REQUEST: u8 = 0x80;
const D_VALID: u8 = 0x80;
/// An alarm byte of 0xc0 or more matches every value.
const ALARM_ANY: u8 = 0xc0;
const HOUR_PM: u8 = 0x80;

/// Saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// Index register, 7 bits.
    pub index: u8,
    /// Seconds since 1970 that the clock shows at guest time 0; negative when the guest set it back.
    pub epoch_s: i64,
    /// CMOS bytes. Time registers are meaningful only while SET is on; 10, 11 and 12 are registers
    /// A, B and C.
    pub cmos: Vec<u8>,
    /// Guest time at which the flags of register C were last brought up to date.
    pub settled: GuestTime,
    /// What the guest did wrong.
    pub misuse: Misuse,
}

/// The clock.
#[derive(Debug)]
pub struct Rtc {
    irq_line: u8,
    state: RtcState,
}

impl Rtc {
    /// A clock that shows `wall_clock_s` seconds since 1970 at guest time 0 and drives `irq_line`.
    #[must_use]
    pub fn new(irq_line: u8, wall_clock_s: u64) -> Self {
        let mut cmos = vec![0; CMOS_BYTES];
        cmos[usize::from(REGISTER_A)] = A_DIVIDER_32768_RATE_1024;
        cmos[usize::from(REGISTER_B)] = B_24_HOURS;
        let epoch_s = i64::try_from(wall_clock_s.min(SECONDS_MAX)).unwrap_or(0);
        Self {
            irq_line,
            state: RtcState {
                index: 0,
                epoch_s,
                cmos,
                settled: GuestTime::ZERO,
                misuse: Misuse::default(),
            },
        }
    }

    fn register(&self, index: u8) -> u8 {
        self.state.cmos[usize::from(index & 0x7f)]
    }

    fn register_mut(&mut self, index: u8) -> &mut u8 {
        &mut self.state.cmos[usize::from(index & 0x7f)]
    }

    fn is_set(&self) -> bool {
        self.register(REGISTER_B) & B_SET != 0
    }

    /// Seconds since 1970 that the clock shows `now`.
    fn shown_s(&self, now: GuestTime) -> u64 {
        let elapsed = i64::try_from(now.as_nanos() / NS_PER_S).unwrap_or(i64::MAX);
        let shown = self.state.epoch_s.saturating_add(elapsed);
        u64::try_from(shown).unwrap_or(0).min(SECONDS_MAX)
    }

    fn encode(&self, value: u8) -> u8 {
        if self.register(REGISTER_B) & B_BINARY != 0 {
            value
        } else {
            to_bcd(value)
        }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.register(REGISTER_B) & B_BINARY != 0 {
            value
        } else {
            from_bcd(value)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.register(REGISTER_B) & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let twelve = if hour.is_multiple_of(12) {
            12
        } else {
            hour % 12
        };
        self.encode(twelve) | if hour >= 12 { HOUR_PM } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.register(REGISTER_B) & B_24_HOURS != 0 {
            return self.decode(value);
        }
        self.decode(value & !HOUR_PM) % 12 + if value & HOUR_PM != 0 { 12 } else { 0 }
    }

    /// The time registers as `calendar` has them.
    fn show(&self, index: u8, calendar: &Calendar) -> Option<u8> {
        Some(match index {
            SECONDS => self.encode(calendar.second),
            MINUTES => self.encode(calendar.minute),
            HOURS => self.encode_hour(calendar.hour),
            WEEKDAY => self.encode(calendar.weekday),
            DAY => self.encode(calendar.day),
            MONTH => self.encode(calendar.month),
            YEAR => self.encode((calendar.year % 100) as u8),
            CENTURY => to_bcd((calendar.year / 100) as u8),
            _ => return None,
        })
    }

    /// Copies the running time into the time registers.
    fn stage(&mut self, now: GuestTime) {
        let calendar = Calendar::from_seconds(self.shown_s(now));
        for index in [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY] {
            if let Some(value) = self.show(index, &calendar) {
                *self.register_mut(index) = value;
            }
        }
    }

    /// Starts the clock from the time registers. Values that no date has are brought into range.
    fn start_from_registers(&mut self, now: GuestTime) {
        let two_digits = self.decode(self.register(YEAR)) % 100;
        let shown = Calendar {
            second: self.decode(self.register(SECONDS)),
            minute: self.decode(self.register(MINUTES)),
            hour: self.decode_hour(self.register(HOURS)),
            weekday: 1,
            day: self.decode(self.register(DAY)),
            month: self.decode(self.register(MONTH)),
            year: u16::from(from_bcd(self.register(CENTURY))) * 100 + u16::from(two_digits),
        };
        let elapsed = i64::try_from(now.as_nanos() / NS_PER_S).unwrap_or(i64::MAX);
        let shown_s = i64::try_from(shown.to_seconds()).unwrap_or(i64::MAX);
        self.state.epoch_s = shown_s.saturating_sub(elapsed);
    }

    /// Nanoseconds between periodic interrupts (datasheet table 5, 32,768 Hz); `None` when off.
    fn period_ns(&self) -> Option<u64> {
        let rate = self.register(REGISTER_A) & 0x0f;
        let cycles = match rate {
            0 => return None,
            1 | 2 => 1u64 << (rate + 6),
            _ => 1u64 << (rate - 1),
        };
        Some((cycles * NS_PER_S).div_ceil(32_768))
    }

    /// The first second after `after` (seconds since 1970, as shown) that the alarm matches.
    fn next_alarm_s(&self, after: u64) -> Option<u64> {
        let wanted = |index, decoded: u8| {
            let raw = self.register(index);
            (raw < ALARM_ANY).then_some(decoded)
        };
        let hour = wanted(HOURS_ALARM, self.decode_hour(self.register(HOURS_ALARM)));
        let minute = wanted(MINUTES_ALARM, self.decode(self.register(MINUTES_ALARM)));
        let second = wanted(SECONDS_ALARM, self.decode(self.register(SECONDS_ALARM)));
        let first = after.checked_add(1)?;
        let midnight = first - first % 86_400;
        // Today's remainder, then one whole day: at most 48 hours, of which each is looked at once.
        for at_hour in (0..48).filter(|h| hour.is_none_or(|w| u64::from(w) == h % 24)) {
            for at_minute in (0..60).filter(|m| minute.is_none_or(|w| u64::from(w) == *m)) {
                let start = midnight + at_hour * 3_600 + at_minute * 60;
                let candidate = match second {
                    Some(wanted) if wanted < 60 => start + u64::from(wanted),
                    Some(_) => continue,
                    None => start.max(first),
                };
                if candidate >= first && candidate < start + 60 {
                    return Some(candidate);
                }
            }
        }
        None
    }

    /// Brings the flags of register C up to `now` and drives the line.
    fn settle(&mut self, ctx: &mut DeviceContext<'_>) {
        let (from, now) = (self.state.settled, ctx.now);
        if now > from {
            let mut flags = 0;
            if self
                .period_ns()
                .is_some_and(|ns| now.as_nanos() / ns > from.as_nanos() / ns)
            {
                flags |= B_PERIODIC;
            }
            let (from_s, now_s) = (self.shown_s(from), self.shown_s(now));
            if now_s > from_s && !self.is_set() {
                flags |= B_UPDATE;
                if self.next_alarm_s(from_s).is_some_and(|at| at <= now_s) {
                    flags |= B_ALARM;
                }
            }
            *self.register_mut(REGISTER_C) |= flags;
            self.state.settled = now;
        }
        self.drive_line(ctx);
    }

    fn requests(&self) -> bool {
        self.register(REGISTER_B) & self.register(REGISTER_C) & B_ENABLES != 0
    }

    fn drive_line(&self, ctx: &mut DeviceContext<'_>) {
        ctx.irq.set(self.irq_line, self.requests());
    }

    fn read_data(&mut self, ctx: &mut DeviceContext<'_>) -> u8 {
        self.settle(ctx);
        let index = self.state.index;
        let stored = self.register(index);
        match index {
            REGISTER_C => {
                let request = if self.requests() { C_REQUEST } else { 0 };
                *self.register_mut(REGISTER_C) = 0;
                self.drive_line(ctx);
                stored | request
            }
            REGISTER_D => D_VALID,
            _ if self.is_set() => stored,
            _ => {
                let calendar = Calendar::from_seconds(self.shown_s(ctx.now));
                self.show(index, &calendar).unwrap_or(stored)
            }
        }
    }

    fn write_data(&mut self, value: u8, ctx: &mut DeviceContext<'_>) {
        self.settle(ctx);
        match self.state.index {
            REGISTER_A => *self.register_mut(REGISTER_A) = value & !A_UPDATE_IN_PROGRESS,
            REGISTER_B => self.write_register_b(value, ctx.now),
            REGISTER_C | REGISTER_D => {}
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY
                if !self.is_set() =>
            {
                self.stage(ctx.now);
                let index = self.state.index;
                *self.register_mut(index) = value;
                self.start_from_registers(ctx.now);
            }
            index => *self.register_mut(index) = value,
        }
        self.drive_line(ctx);
    }

    fn write_register_b(&mut self, value: u8, now: GuestTime) {
        let (was_set, set) = (self.is_set(), value & B_SET != 0);
        if set && !was_set {
            self.stage(now);
        }
        // The datasheet clears the update interrupt enable when SET goes on.
        let value = if set { value & !B_UPDATE } else { value };
        *self.register_mut(REGISTER_B) = value;
        if was_set && !set {
            self.start_from_registers(now);
        }
    }
}

const fn to_bcd(value: u8) -> u8 {
    ((value / 10 % 10) << 4) | (value % 10)
}

const fn from_bcd(value: u8) -> u8 {
    (value >> 4).saturating_mul(10).saturating_add(value & 0x0f)
}

impl Device for Rtc {
    type State = RtcState;

    fn name(&self) -> &'static str {
        "rtc"
    }

    fn read(&mut self, offset: u64, data: &mut [u8], ctx: &mut DeviceContext<'_>) {
        for (at, byte) in bytes_from(offset).zip(data) {
            *byte = match at {
                // The index port cannot be read.
                0 => 0xff,
                1 => self.read_data(ctx),
                _ => {
                    count(&mut self.state.misuse.bad_access, 1);
                    0xff
                }
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8], ctx: &mut DeviceContext<'_>) {
        for (at, &byte) in bytes_from(offset).zip(data) {
            match at {
                // Bit 7 is the PC's NMI mask, which nothing here raises.
                0 => self.state.index = byte & 0x7f,
                1 => self.write_data(byte, ctx),
                _ => count(&mut self.state.misuse.bad_access, 1),
            }
        }
    }

    fn save(&self) -> RtcState {
        self.state.clone()
    }

    fn restore(&mut self, state: &RtcState) -> Result<(), RestoreError> {
        let refuse = |field, found: String| {
            Err(RestoreError {
                device: "rtc",
                field,
                found,
            })
        };
        if state.cmos.len() != CMOS_BYTES {
            return refuse("cmos", format!("{} bytes", state.cmos.len()));
        }
        if state.index > 0x7f {
            return refuse("index", format!("{:#x}", state.index));
        }
        self.state = state.clone();
        Ok(())
    }

    fn misuse(&self) -> Misuse {
        self.state.misuse
    }
}

impl TimedDevice for Rtc {
    /// The next moment at which an enabled interrupt's flag may come up, unless one is up already.
    fn next_deadline(&self) -> Option<GuestTime> {
        let enabled = self.register(REGISTER_B) & B_ENABLES;
        if enabled == 0 || self.requests() {
            return None;
        }
        let settled = self.state.settled;
        let at_ns = |ns: u64| GuestTime::from_micros(ns.div_ceil(1_000));
        let periodic = self
            .period_ns()
            .filter(|_| enabled & B_PERIODIC != 0)
            .and_then(|ns| (settled.as_nanos() / ns + 1).checked_mul(ns))
            .map(at_ns);
        let next_second = (settled.as_nanos() / NS_PER_S + 1).checked_mul(NS_PER_S);
        let running = !self.is_set();
        let update = next_second.filter(|_| running && enabled & B_UPDATE != 0);
        let shown = self.shown_s(settled);
        let alarm = self
            .next_alarm_s(shown)
            .filter(|_| running && enabled & B_ALARM != 0)
            .and_then(|at| (settled.as_nanos() / NS_PER_S + (at - shown)).checked_mul(NS_PER_S));
        [periodic, update.map(at_ns), alarm.map(at_ns)]
            .into_iter()
            .flatten()
            .min()
    }

    fn advance(&mut self, ctx: &mut DeviceContext<'_>) {
        if self.next_deadline().is_some_and(|due| due <= ctx.now) {
            self.settle(ctx);
        }
    }
}

#[cfg(test)]
#[path = "rtc_tests.rs"]
mod tests;
