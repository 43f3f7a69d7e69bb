//! The guest's clock: KVM's paravirtual clock pages, filled by us (Linux
//! arch/x86/include/asm/pvclock-abi.h, Documentation/virt/kvm/x86/msr.rst).
//!
//! The system time page says `system_time = guest time, tsc_timestamp = 0, multiplier 1, shift -31`:
//! a guest that adds its time stamp counter's progress adds `tsc >> 63`, which is nothing. So a clock read is
//! one load, without an exit and without a log record. The page is rewritten whenever guest time
//! changes, which only happens while the guest is stopped; the version still goes up by two each
//! time so that a reader that was interrupted between its two looks reads again.

#![forbid(unsafe_code)]

use crate::devices::ram::GuestRam;
use logging_channel::host_time::GuestTime;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// MSR_KVM_WALL_CLOCK_NEW: a write fills the wall clock page at the address written.
pub const MSR_WALL_CLOCK: u32 = 0x4b56_4d00;
/// MSR_KVM_SYSTEM_TIME_NEW: a write sets the system time page; bit 0 enables it.
pub const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;

const ENABLED: u64 = 1;
const TSC_TO_SYSTEM_MUL: u32 = 1;
const TSC_SHIFT: i8 = -31;
const FLAG_TSC_STABLE: u8 = 1;
const ALIGNMENT: u64 = 4;
const PAGE_BYTES: usize = 32;
const WALL_CLOCK_BYTES: usize = 12;

/// The guest gave an address that no clock page can be at: the MSR write faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadAddress;

/// The clock pages; plain data, so that it is its own saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PvClock {
    /// Wall clock at guest time 0, seconds since 1970.
    wall_clock_s: u64,
    /// Last value of [`MSR_WALL_CLOCK`].
    wall_clock_msr: u64,
    /// Last value of [`MSR_SYSTEM_TIME`].
    system_time_msr: u64,
    /// Version of the system time page, even.
    version: u32,
}

impl PvClock {
    /// A clock without pages.
    #[must_use]
    pub const fn new(wall_clock_s: u64) -> Self {
        Self {
            wall_clock_s,
            wall_clock_msr: 0,
            system_time_msr: 0,
            version: 0,
        }
    }

    /// Whether the system time page, if enabled, lies in `memory`: what a saved state must show.
    #[must_use]
    pub fn fits(&self, memory: &GuestRam) -> bool {
        self.system_time_msr & ENABLED == 0
            || is_writable(memory, self.system_time_msr & !ENABLED, PAGE_BYTES)
    }

    /// What a read of `index` returns, if it is one of the two.
    #[must_use]
    pub const fn read(&self, index: u32) -> Option<u64> {
        match index {
            MSR_WALL_CLOCK => Some(self.wall_clock_msr),
            MSR_SYSTEM_TIME => Some(self.system_time_msr),
            _ => None,
        }
    }

    /// MSR_WALL_CLOCK := `gpa`.
    ///
    /// # Errors
    /// When the structure does not fit there.
    pub fn set_wall_clock(&mut self, gpa: u64, memory: &GuestRam) -> Result<(), BadAddress> {
        let mut page = [0; WALL_CLOCK_BYTES];
        // Version 2: even, so not being changed. Nanoseconds stay 0.
        page[..4].copy_from_slice(&2u32.to_le_bytes());
        page[4..8].copy_from_slice(&(self.wall_clock_s as u32).to_le_bytes());
        store(memory, gpa, &page)?;
        self.wall_clock_msr = gpa;
        Ok(())
    }

    /// MSR_SYSTEM_TIME := `value`: enables the page and fills it, or disables it.
    ///
    /// # Errors
    /// When the page does not fit there.
    pub fn set_system_time(
        &mut self,
        value: u64,
        now: GuestTime,
        memory: &GuestRam,
    ) -> Result<(), BadAddress> {
        let earlier = std::mem::replace(&mut self.system_time_msr, value);
        let filled = self.rewrite(now, memory);
        if filled.is_err() {
            self.system_time_msr = earlier;
        }
        filled
    }

    /// Guest time is now `now`: the page, if enabled, says so.
    ///
    /// # Errors
    /// When the page does not fit where the guest put it, which [`PvClock::set_system_time`] has
    /// ruled out.
    pub fn rewrite(&mut self, now: GuestTime, memory: &GuestRam) -> Result<(), BadAddress> {
        if self.system_time_msr & ENABLED == 0 {
            return Ok(());
        }
        let version = self.version.wrapping_add(2);
        let mut page = [0; PAGE_BYTES];
        page[0..4].copy_from_slice(&version.to_le_bytes());
        page[16..24].copy_from_slice(&now.as_nanos().to_le_bytes());
        page[24..28].copy_from_slice(&TSC_TO_SYSTEM_MUL.to_le_bytes());
        page[28] = TSC_SHIFT.to_le_bytes()[0];
        page[29] = FLAG_TSC_STABLE;
        store(memory, self.system_time_msr & !ENABLED, &page)?;
        self.version = version;
        Ok(())
    }
}

fn is_writable(memory: &GuestRam, gpa: u64, length: usize) -> bool {
    gpa.is_multiple_of(ALIGNMENT)
        && memory.check_range(GuestAddress(gpa), length, Permissions::Write)
}

/// Writes `bytes` at `gpa`, all or nothing.
fn store(memory: &GuestRam, gpa: u64, bytes: &[u8]) -> Result<(), BadAddress> {
    if !is_writable(memory, gpa, bytes.len()) {
        return Err(BadAddress);
    }
    memory
        .write_slice(bytes, GuestAddress(gpa))
        .map_err(|_| BadAddress)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 0x4000)]).expect("small memory")
    }

    /// As Linux computes it in pvclock_clocksource_read().
    fn guest_reads(memory: &GuestRam, gpa: u64, tsc: u64) -> u64 {
        let u64_at = |at| {
            memory
                .read_obj::<u64>(GuestAddress(gpa + at))
                .expect("inside")
        };
        let version: u32 = memory.read_obj(GuestAddress(gpa)).expect("inside");
        assert_eq!(version % 2, 0);
        let multiplier: u32 = memory.read_obj(GuestAddress(gpa + 24)).expect("inside");
        let shift: i8 = memory.read_obj(GuestAddress(gpa + 28)).expect("inside");
        let delta = tsc - u64_at(8);
        let shifted = if shift < 0 {
            delta >> -shift
        } else {
            delta << shift
        };
        u64_at(16) + ((u128::from(shifted) * u128::from(multiplier)) >> 32) as u64
    }

    #[test]
    fn the_page_shows_guest_time_whatever_the_tsc() {
        let (memory, mut clock) = (memory(), PvClock::new(0));
        let now = GuestTime::from_micros(5);
        clock.set_system_time(0x1001, now, &memory).expect("fits");
        for tsc in [0, 1 << 40, i64::MAX as u64] {
            assert_eq!(guest_reads(&memory, 0x1000, tsc), 5_000);
        }
        let before: u32 = memory.read_obj(GuestAddress(0x1000)).expect("inside");
        clock
            .rewrite(GuestTime::from_micros(7), &memory)
            .expect("fits");
        let after: u32 = memory.read_obj(GuestAddress(0x1000)).expect("inside");
        assert_eq!(guest_reads(&memory, 0x1000, 99), 7_000);
        assert_eq!(after, before + 2);
    }

    #[test]
    fn the_wall_clock_is_that_of_power_on() {
        let (memory, mut clock) = (memory(), PvClock::new(1_760_000_000));
        clock.set_wall_clock(0x2000, &memory).expect("fits");
        let seconds: u32 = memory.read_obj(GuestAddress(0x2004)).expect("inside");
        assert_eq!(seconds, 1_760_000_000);
        assert_eq!(clock.read(MSR_WALL_CLOCK), Some(0x2000));
    }

    #[test]
    fn a_bad_address_faults_and_changes_nothing() {
        let (memory, mut clock) = (memory(), PvClock::new(0));
        let unchanged = clock.clone();
        for value in [0x3ff1, 0x1003, u64::MAX, 0xffff_0001] {
            assert_eq!(
                clock.set_system_time(value, GuestTime::ZERO, &memory),
                Err(BadAddress)
            );
        }
        assert_eq!(clock.set_wall_clock(0x3ffc, &memory), Err(BadAddress));
        assert_eq!(clock, unchanged);
    }

    #[test]
    fn a_disabled_page_is_left_alone() {
        let (memory, mut clock) = (memory(), PvClock::new(0));
        clock
            .set_system_time(0x1001, GuestTime::ZERO, &memory)
            .expect("fits");
        clock
            .set_system_time(0x1000, GuestTime::ZERO, &memory)
            .expect("off");
        clock
            .rewrite(GuestTime::from_micros(9), &memory)
            .expect("off");
        assert_eq!(guest_reads(&memory, 0x1000, 0), 0);
    }
}
