//! The interrupt controllers against their datasheet and Linux's use of them.

use super::*;
use crate::devices::conformance::{Bench, Subject, conformance_tests};

impl Subject for PicPair {
    fn fresh() -> Self {
        Self::new()
    }

    fn offsets() -> Vec<u64> {
        (0..6).collect()
    }

    fn set_up(&mut self, bench: &mut Bench) {
        initialise(self, bench, 0x01);
    }

    fn input(&mut self, bytes: &[u8], ctx: &mut DeviceContext<'_>) {
        for byte in bytes {
            ctx.irq.set(byte & 15, byte & 16 != 0);
        }
        self.sync(ctx.irq);
        if self.pending().is_some() {
            self.acknowledge();
        }
    }
}

conformance_tests!(PicPair);

fn write(pic: &mut PicPair, bench: &mut Bench, offset: u64, value: u8) {
    pic.write(offset, &[value], &mut bench.ctx());
}

fn read(pic: &mut PicPair, bench: &mut Bench, offset: u64) -> u8 {
    let mut byte = [0];
    pic.read(offset, &mut byte, &mut bench.ctx());
    byte[0]
}

/// Linux arch/x86/kernel/i8259.c, init_8259A(), then every line unmasked.
fn initialise(pic: &mut PicPair, bench: &mut Bench, icw4: u8) {
    for (offset, value) in [
        (1, 0xff),
        (0, 0x11),
        (1, 0x30),
        (1, 0x04),
        (1, icw4),
        (2, 0x11),
        (3, 0x38),
        (3, 0x02),
        (3, 0x01),
        (1, 0x00),
        (3, 0x00),
    ] {
        write(pic, bench, offset, value);
    }
}

fn ready() -> (PicPair, Bench) {
    let (mut pic, mut bench) = (PicPair::new(), Bench::new());
    initialise(&mut pic, &mut bench, 0x01);
    (pic, bench)
}

fn pulse(pic: &mut PicPair, bench: &mut Bench, line: u8) {
    bench.irq.pulse(line);
    pic.sync(&mut bench.irq);
}

/// Ends service as mask_and_ack_8259A() does, with specific commands.
fn end(pic: &mut PicPair, bench: &mut Bench, line: u8) {
    if line >= 8 {
        write(pic, bench, 2, 0x60 + (line & 7));
        write(pic, bench, 0, 0x62);
    } else {
        write(pic, bench, 0, 0x60 + line);
    }
}

#[test]
fn a_chip_before_initialisation_requests_nothing() {
    let (mut pic, mut bench) = (PicPair::new(), Bench::new());
    pulse(&mut pic, &mut bench, 0);
    assert_eq!(pic.pending(), None);
    // probe_8259A() writes and reads back the mask before ICW1.
    write(&mut pic, &mut bench, 1, 0xfb);
    assert_eq!(read(&mut pic, &mut bench, 1), 0xfb);
}

#[test]
fn every_line_has_its_vector() {
    let (mut pic, mut bench) = ready();
    for line in (0..16).filter(|line| *line != CASCADE) {
        pulse(&mut pic, &mut bench, line);
        assert_eq!(pic.pending(), Some(0x30 + line));
        assert_eq!(pic.acknowledge(), 0x30 + line);
        assert_eq!(pic.pending(), None);
        end(&mut pic, &mut bench, line);
    }
}

#[test]
fn lower_lines_interrupt_higher_ones_and_not_the_reverse() {
    let (mut pic, mut bench) = ready();
    pulse(&mut pic, &mut bench, 5);
    assert_eq!(pic.acknowledge(), 0x35);
    pulse(&mut pic, &mut bench, 7);
    assert_eq!(pic.pending(), None);
    pulse(&mut pic, &mut bench, 10);
    assert_eq!(pic.acknowledge(), 0x3a, "cascaded lines rank as input 2");
    pulse(&mut pic, &mut bench, 0);
    assert_eq!(pic.acknowledge(), 0x30);
    for line in [0, 10] {
        end(&mut pic, &mut bench, line);
        assert_eq!(pic.pending(), None);
    }
    end(&mut pic, &mut bench, 5);
    assert_eq!(pic.pending(), Some(0x37));
}

#[test]
fn masking_hides_a_request_without_losing_it() {
    let (mut pic, mut bench) = ready();
    write(&mut pic, &mut bench, 1, 0x10);
    pulse(&mut pic, &mut bench, 4);
    assert_eq!(pic.pending(), None);
    write(&mut pic, &mut bench, 1, 0x00);
    assert_eq!(pic.pending(), Some(0x34));
}

#[test]
fn an_edge_line_needs_a_new_edge_and_a_level_line_does_not() {
    let (mut pic, mut bench) = ready();
    write(&mut pic, &mut bench, 4, 0xff);
    assert_eq!(read(&mut pic, &mut bench, 4), LEVEL_CAPABLE[0]);
    write(&mut pic, &mut bench, 4, 0x20);
    for (line, again) in [(4, None), (5, Some(0x35))] {
        bench.irq.set(line, true);
        pic.sync(&mut bench.irq);
        assert_eq!(pic.acknowledge(), 0x30 + line);
        end(&mut pic, &mut bench, line);
        assert_eq!(pic.pending(), again);
        bench.irq.set(line, false);
        pic.sync(&mut bench.irq);
        assert_eq!(pic.pending(), None);
    }
}

#[test]
fn a_request_that_went_away_is_spurious() {
    let (mut pic, mut bench) = ready();
    write(&mut pic, &mut bench, 4, 0x20);
    bench.irq.set(5, true);
    pic.sync(&mut bench.irq);
    assert_eq!(pic.pending(), Some(0x35));
    bench.irq.set(5, false);
    pic.sync(&mut bench.irq);
    assert_eq!(pic.acknowledge(), 0x37);
    // i8259A_irq_real() asks the in-service register, and it says that nothing is served.
    write(&mut pic, &mut bench, 0, 0x0b);
    assert_eq!(read(&mut pic, &mut bench, 0), 0);
    write(&mut pic, &mut bench, 0, 0x0a);
}

#[test]
fn automatic_end_and_rotation() {
    let (mut pic, mut bench) = (PicPair::new(), Bench::new());
    initialise(&mut pic, &mut bench, 0x03);
    pulse(&mut pic, &mut bench, 3);
    pic.acknowledge();
    assert_eq!(pic.save().chips[0].isr, 0);
    write(&mut pic, &mut bench, 0, 0x80);
    pulse(&mut pic, &mut bench, 3);
    pic.acknowledge();
    assert_eq!(pic.save().chips[0].highest, 4, "3 is now the lowest");
    pulse(&mut pic, &mut bench, 3);
    pulse(&mut pic, &mut bench, 6);
    assert_eq!(pic.pending(), Some(0x36));
}

#[test]
fn rotate_commands() {
    let (mut pic, mut bench) = ready();
    write(&mut pic, &mut bench, 0, 0xc4);
    pulse(&mut pic, &mut bench, 4);
    pulse(&mut pic, &mut bench, 5);
    assert_eq!(pic.acknowledge(), 0x35, "4 was made the lowest");
    write(&mut pic, &mut bench, 0, 0xa0);
    assert_eq!(pic.save().chips[0].highest, 6, "rotate on end of interrupt");
    assert_eq!(pic.acknowledge(), 0x34);
    write(&mut pic, &mut bench, 0, 0xe1);
    assert_eq!(pic.save().chips[0].highest, 2);
}

#[test]
fn special_mask_mode_lets_lower_priorities_in() {
    let (mut pic, mut bench) = ready();
    pulse(&mut pic, &mut bench, 1);
    pic.acknowledge();
    pulse(&mut pic, &mut bench, 6);
    write(&mut pic, &mut bench, 1, 0x02);
    assert_eq!(pic.pending(), None);
    write(&mut pic, &mut bench, 0, 0x68);
    assert_eq!(pic.pending(), Some(0x36));
}

#[test]
fn special_fully_nested_mode_nests_cascaded_lines() {
    for (icw4, nested) in [(0x01, None), (0x11, Some(0x39))] {
        let (mut pic, mut bench) = (PicPair::new(), Bench::new());
        initialise(&mut pic, &mut bench, icw4);
        pulse(&mut pic, &mut bench, 12);
        pic.acknowledge();
        pulse(&mut pic, &mut bench, 9);
        assert_eq!(pic.pending(), nested);
    }
}

#[test]
fn a_poll_is_an_acknowledge_cycle() {
    let (mut pic, mut bench) = ready();
    write(&mut pic, &mut bench, 0, 0x0c);
    assert_eq!(read(&mut pic, &mut bench, 0), 0, "nothing to serve");
    pulse(&mut pic, &mut bench, 6);
    write(&mut pic, &mut bench, 0, 0x0c);
    assert_eq!(read(&mut pic, &mut bench, 0), 0x86);
    assert_eq!(pic.save().chips[0].isr, 0x40);
    assert_eq!(pic.pending(), None);
}
