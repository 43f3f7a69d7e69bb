//! The clock against its datasheet and Linux's use of it.

use super::*;
use crate::devices::conformance::{Bench, Subject, conformance_tests};

/// 2025-10-09 08:53:20 UTC, a Thursday.
const WALL_CLOCK_S: u64 = 1_760_000_000;

impl Subject for Rtc {
    fn fresh() -> Self {
        Self::new(8, WALL_CLOCK_S)
    }

    fn offsets() -> Vec<u64> {
        vec![0, 1]
    }

    fn advance(&mut self, ctx: &mut DeviceContext<'_>) {
        TimedDevice::advance(self, ctx);
    }
}

conformance_tests!(Rtc);

fn get(rtc: &mut Rtc, bench: &mut Bench, index: u8) -> u8 {
    let mut byte = [0];
    rtc.write(0, &[index], &mut bench.ctx());
    rtc.read(1, &mut byte, &mut bench.ctx());
    byte[0]
}

fn set(rtc: &mut Rtc, bench: &mut Bench, index: u8, value: u8) {
    rtc.write(0, &[index], &mut bench.ctx());
    rtc.write(1, &[value], &mut bench.ctx());
}

fn shown(rtc: &mut Rtc, bench: &mut Bench) -> [u8; 8] {
    [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS]
        .map(|index| get(rtc, bench, index))
}

fn go_to_s(bench: &mut Bench, seconds: u64) {
    bench.now = GuestTime::from_micros(seconds * 1_000_000);
}

#[test]
fn shows_the_wall_clock_plus_guest_time() {
    let (mut rtc, mut bench) = (Rtc::fresh(), Bench::new());
    let at_power_on = [0x20, 0x25, 0x10, 0x09, 0x05, 0x08, 0x53, 0x20];
    assert_eq!(shown(&mut rtc, &mut bench), at_power_on);
    go_to_s(&mut bench, 45);
    let later = [0x20, 0x25, 0x10, 0x09, 0x05, 0x08, 0x54, 0x05];
    assert_eq!(shown(&mut rtc, &mut bench), later);
    assert_eq!(get(&mut rtc, &mut bench, REGISTER_A) & 0x80, 0);
    assert_eq!(get(&mut rtc, &mut bench, REGISTER_D), 0x80);
}

#[test]
fn binary_and_twelve_hour_modes() {
    let (mut rtc, mut bench) = (Rtc::fresh(), Bench::new());
    go_to_s(&mut bench, 5 * 3_600);
    set(&mut rtc, &mut bench, REGISTER_B, 0x06);
    assert_eq!(get(&mut rtc, &mut bench, MINUTES), 53);
    assert_eq!(get(&mut rtc, &mut bench, HOURS), 13);
    set(&mut rtc, &mut bench, REGISTER_B, 0x00);
    assert_eq!(get(&mut rtc, &mut bench, HOURS), 0x81, "1 PM");
}

/// mc146818_set_time(): SET on, all registers, SET off.
#[test]
fn the_guest_sets_the_time() {
    let (mut rtc, mut bench) = (Rtc::fresh(), Bench::new());
    go_to_s(&mut bench, 100);
    set(&mut rtc, &mut bench, REGISTER_B, 0x82);
    for (index, value) in [
        (CENTURY, 0x20),
        (YEAR, 0x99),
        (MONTH, 0x12),
        (DAY, 0x31),
        (HOURS, 0x23),
        (MINUTES, 0x59),
        (SECONDS, 0x58),
    ] {
        set(&mut rtc, &mut bench, index, value);
    }
    go_to_s(&mut bench, 200);
    assert_eq!(get(&mut rtc, &mut bench, SECONDS), 0x58, "stands still");
    set(&mut rtc, &mut bench, REGISTER_B, 0x02);
    go_to_s(&mut bench, 203);
    let new_century = [0x21, 0x00, 0x01, 0x01, 0x06, 0x00, 0x00, 0x01];
    assert_eq!(shown(&mut rtc, &mut bench), new_century);
}

#[test]
fn update_interrupts_come_every_second() {
    let (mut rtc, mut bench) = (Rtc::fresh(), Bench::new());
    assert_eq!(rtc.next_deadline(), None);
    set(&mut rtc, &mut bench, REGISTER_B, 0x12);
    for second in 1..4 {
        let due = rtc.next_deadline().expect("enabled");
        assert_eq!(due, GuestTime::from_micros(second * 1_000_000));
        bench.now = due;
        TimedDevice::advance(&mut rtc, &mut bench.ctx());
        assert_ne!(bench.irq.levels() & 1 << 8, 0);
        assert_eq!(rtc.next_deadline(), None, "waits for register C");
        assert_eq!(get(&mut rtc, &mut bench, REGISTER_C) & 0xb0, 0x90);
        assert_eq!(bench.irq.levels() & 1 << 8, 0);
    }
}

#[test]
fn periodic_rate() {
    let (mut rtc, mut bench) = (Rtc::fresh(), Bench::new());
    set(&mut rtc, &mut bench, REGISTER_B, 0x42);
    let due = rtc.next_deadline().expect("enabled");
    assert_eq!(due, GuestTime::from_micros(977), "1,024 Hz");
    set(&mut rtc, &mut bench, REGISTER_A, 0x2f);
    let due = rtc.next_deadline().expect("enabled");
    assert_eq!(due, GuestTime::from_micros(500_000), "2 Hz");
    set(&mut rtc, &mut bench, REGISTER_A, 0x20);
    assert_eq!(rtc.next_deadline(), None, "off");
}

#[test]
fn alarm_with_and_without_wildcards() {
    // It is 08:53:20. Alarm at 08:55:00, at any :30, tomorrow at 08:00:00.
    for ([hour, minute, second], after_s) in [
        ([0x08, 0x55, 0x00], 100),
        ([0xff, 0xff, 0x30], 10),
        ([0xc0, 0x53, 0xc0], 1),
        ([0x08, 0x00, 0x00], 86_400 - 53 * 60 - 20),
    ] {
        let (mut rtc, mut bench) = (Rtc::fresh(), Bench::new());
        set(&mut rtc, &mut bench, HOURS_ALARM, hour);
        set(&mut rtc, &mut bench, MINUTES_ALARM, minute);
        set(&mut rtc, &mut bench, SECONDS_ALARM, second);
        set(&mut rtc, &mut bench, REGISTER_B, 0x22);
        let due = rtc.next_deadline().expect("enabled");
        assert_eq!(due, GuestTime::from_micros(after_s * 1_000_000));
        bench.now = due;
        TimedDevice::advance(&mut rtc, &mut bench.ctx());
        assert_eq!(get(&mut rtc, &mut bench, REGISTER_C) & 0xa0, 0xa0);
    }
}

#[test]
fn an_alarm_that_never_matches() {
    let (mut rtc, mut bench) = (Rtc::fresh(), Bench::new());
    set(&mut rtc, &mut bench, SECONDS_ALARM, 0x77);
    set(&mut rtc, &mut bench, REGISTER_B, 0x22);
    assert_eq!(rtc.next_deadline(), None);
}

#[test]
fn flags_can_be_polled_without_interrupts() {
    let (mut rtc, mut bench) = (Rtc::fresh(), Bench::new());
    go_to_s(&mut bench, 2);
    assert_eq!(get(&mut rtc, &mut bench, REGISTER_C), 0x50);
    assert_eq!(get(&mut rtc, &mut bench, REGISTER_C), 0);
}

#[test]
fn memory_is_kept() {
    let (mut rtc, mut bench) = (Rtc::fresh(), Bench::new());
    set(&mut rtc, &mut bench, 0x0f, 0x5a);
    assert_eq!(
        get(&mut rtc, &mut bench, 0x8f),
        0x5a,
        "bit 7 is the NMI mask"
    );
}
