//! The pair of 8259A interrupt controllers of a PC (Intel 8259A datasheet, order 231468).
//!
//! Bus offsets: 0-1 the first chip, 2-3 the cascaded one, 4-5 their edge/level control registers
//! (ports 0x4d0 and 0x4d1 of the PIIX). The cascaded chip hangs on input 2 of the first.
//!
//! [`PicPair::sync`] latches edges and follows levels; [`PicPair::pending`] has no side effects;
//! [`PicPair::acknowledge`] is the processor's INTA cycle. A chip that has not been through
//! ICW1-ICW4 requests nothing. An edge stays latched when its line falls again, as in QEMU and KVM,
//! so that a pulse is never lost.
//!
//! Left out: MCS-80/85 mode, the buffered modes' pins, single mode (the cascade is wired).

#![forbid(unsafe_code)]

use super::irq::IrqLines;
use super::{Device, DeviceContext, Misuse, RestoreError, bytes_from, count};
use serde::{Deserialize, Serialize};

/// Input of the first chip that the cascaded chip drives.
const CASCADE: u8 = 2;
/// Inputs that can be set to level mode: all but the timer, keyboard, cascade, RTC and FPU.
const LEVEL_CAPABLE: [u8; 2] = [0xf8, 0xde];
const SPURIOUS: u8 = 7;

/// Which initialisation word a chip expects next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Initialisation {
    /// Never initialised: requests nothing.
    PowerOn,
    /// ICW2, the vector base.
    Icw2,
    /// ICW3, the cascade wiring.
    Icw3,
    /// ICW4, the mode.
    Icw4,
    /// Initialised.
    Ready,
}

/// What a read of a chip's command port returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandRead {
    /// Interrupt request register.
    Requests,
    /// In-service register.
    InService,
}

/// Saved state of one 8259A.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChipState {
    /// Requests latched.
    pub irr: u8,
    /// In service.
    pub isr: u8,
    /// Masked.
    pub imr: u8,
    /// Inputs in level mode.
    pub elcr: u8,
    /// Vector of input 0; the low three bits are zero.
    pub vector_base: u8,
    /// Input with the highest priority, 0 to 7.
    pub highest: u8,
    /// Where initialisation stands.
    pub initialisation: Initialisation,
    /// ICW1 announced an ICW4.
    pub icw4_expected: bool,
    /// ICW1 said that there is no cascade, so no ICW3 comes.
    pub single: bool,
    /// End of interrupt at the INTA cycle.
    pub auto_eoi: bool,
    /// Rotate priorities at each automatic end of interrupt.
    pub rotate_on_auto_eoi: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// Special fully nested mode.
    pub fully_nested: bool,
    /// What a read of the command port returns.
    pub command_read: CommandRead,
    /// The next read of the chip is a poll.
    pub poll: bool,
}

impl Default for ChipState {
    fn default() -> Self {
        Self {
            irr: 0,
            isr: 0,
            imr: 0,
            elcr: 0,
            vector_base: 0,
            highest: 0,
            initialisation: Initialisation::PowerOn,
            icw4_expected: false,
            single: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            fully_nested: false,
            command_read: CommandRead::Requests,
            poll: false,
        }
    }
}

impl ChipState {
    /// Rank of the most important set bit, 0 highest, 8 when none is set.
    fn rank(&self, bits: u8) -> u32 {
        if bits == 0 {
            return 8;
        }
        bits.rotate_right(u32::from(self.highest)).trailing_zeros()
    }

    fn input_of_rank(&self, rank: u32) -> u8 {
        (rank as u8).wrapping_add(self.highest) & 7
    }

    /// The input this chip requests service for, with `cascade` as its cascade input.
    fn requested(&self, cascade: bool) -> Option<u8> {
        if self.initialisation != Initialisation::Ready {
            return None;
        }
        let inputs = self.irr | u8::from(cascade) << CASCADE;
        let request = self.rank(inputs & !self.imr);
        let mut serving = self.isr;
        if self.special_mask {
            serving &= !self.imr;
        }
        // Special fully nested mode: a request of the cascaded chip may interrupt its own service.
        if self.fully_nested && cascade {
            serving &= !(1 << CASCADE);
        }
        (request < self.rank(serving)).then(|| self.input_of_rank(request))
    }

    fn begin_service(&mut self, input: u8) {
        let bit = 1 << input;
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.highest = (input + 1) & 7;
        }
    }

    fn follow(&mut self, levels: u8, rising: u8) {
        self.irr = (self.irr | rising) & !self.elcr | levels & self.elcr;
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.start_initialisation(value);
        } else if value & 0x08 != 0 {
            self.operation_word_3(value);
        } else {
            self.operation_word_2(value);
        }
    }

    /// ICW1: everything but the edge/level control and the levels that it follows starts over.
    fn start_initialisation(&mut self, value: u8) {
        *self = Self {
            irr: self.irr & self.elcr,
            elcr: self.elcr,
            vector_base: self.vector_base,
            initialisation: Initialisation::Icw2,
            icw4_expected: value & 0x01 != 0,
            single: value & 0x02 != 0,
            ..Self::default()
        };
    }

    fn operation_word_3(&mut self, value: u8) {
        if value & 0x04 != 0 {
            self.poll = true;
        }
        if value & 0x02 != 0 {
            self.command_read = if value & 0x01 != 0 {
                CommandRead::InService
            } else {
                CommandRead::Requests
            };
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn operation_word_2(&mut self, value: u8) {
        let named = value & 7;
        match value >> 5 {
            0 => self.rotate_on_auto_eoi = false,
            4 => self.rotate_on_auto_eoi = true,
            1 => {
                self.end_highest();
            }
            5 => {
                if let Some(input) = self.end_highest() {
                    self.highest = (input + 1) & 7;
                }
            }
            3 => self.isr &= !(1 << named),
            6 => self.highest = (named + 1) & 7,
            7 => {
                self.isr &= !(1 << named);
                self.highest = (named + 1) & 7;
            }
            _ => {}
        }
    }

    /// Non-specific end of interrupt. In special mask mode masked inputs are not ended.
    fn end_highest(&mut self) -> Option<u8> {
        let endable = if self.special_mask {
            self.isr & !self.imr
        } else {
            self.isr
        };
        let rank = self.rank(endable);
        (rank < 8).then(|| {
            let input = self.input_of_rank(rank);
            self.isr &= !(1 << input);
            input
        })
    }

    fn write_data(&mut self, value: u8) {
        use Initialisation::{Icw2, Icw3, Icw4, PowerOn, Ready};
        let icw4_or_ready = if self.icw4_expected { Icw4 } else { Ready };
        match self.initialisation {
            PowerOn | Ready => self.imr = value,
            Icw2 => {
                self.vector_base = value & 0xf8;
                self.initialisation = if self.single { icw4_or_ready } else { Icw3 };
            }
            Icw3 => self.initialisation = icw4_or_ready,
            Icw4 => {
                self.auto_eoi = value & 0x02 != 0;
                self.fully_nested = value & 0x10 != 0;
                self.initialisation = Ready;
            }
        }
    }

    fn check(&self) -> Result<(), RestoreError> {
        let refuse = |field, found: u8| {
            Err(RestoreError {
                device: "pic",
                field,
                found: format!("{found:#x}"),
            })
        };
        if self.highest > 7 {
            return refuse("highest", self.highest);
        }
        if self.vector_base & 7 != 0 {
            return refuse("vector_base", self.vector_base);
        }
        Ok(())
    }
}

/// Saved state of the pair.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PicState {
    /// First and cascaded chip.
    pub chips: [ChipState; 2],
    /// What the guest did wrong.
    pub misuse: Misuse,
}

/// The pair.
#[derive(Debug, Default)]
pub struct PicPair {
    state: PicState,
}

impl PicPair {
    /// Both chips after power-on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Latches edges and follows levels. Call after anything that may have driven a line.
    pub fn sync(&mut self, lines: &mut IrqLines) {
        let [first_rising, cascaded_rising] = lines.take_rising().to_le_bytes();
        let [first, cascaded] = lines.levels().to_le_bytes();
        // Input 2 of the first chip is the cascade and nothing else.
        let cascade = 1 << CASCADE;
        self.state.chips[0].follow(first & !cascade, first_rising & !cascade);
        self.state.chips[1].follow(cascaded, cascaded_rising);
    }

    /// The vector that [`PicPair::acknowledge`] would return now, if an interrupt is requested.
    #[must_use]
    pub fn pending(&self) -> Option<u8> {
        let [first, cascaded] = &self.state.chips;
        let from_cascaded = cascaded.requested(false);
        let input = first.requested(from_cascaded.is_some())?;
        Some(match from_cascaded {
            Some(cascaded_input) if input == CASCADE => cascaded.vector_base | cascaded_input,
            _ => first.vector_base | input,
        })
    }

    /// The INTA cycle: begins service and returns the vector. A request that has gone away in the
    /// meantime is answered with the spurious vector, input 7, which is not put in service.
    pub fn acknowledge(&mut self) -> u8 {
        let [first, cascaded] = &mut self.state.chips;
        let from_cascaded = cascaded.requested(false);
        let Some(input) = first.requested(from_cascaded.is_some()) else {
            return first.vector_base | SPURIOUS;
        };
        first.begin_service(input);
        if input != CASCADE {
            return first.vector_base | input;
        }
        let Some(cascaded_input) = from_cascaded else {
            return cascaded.vector_base | SPURIOUS;
        };
        cascaded.begin_service(cascaded_input);
        cascaded.vector_base | cascaded_input
    }

    /// A poll: the read is the acknowledge cycle, and says which input it served.
    fn poll(&mut self, chip: usize) -> u8 {
        self.state.chips[chip].poll = false;
        let cascade = chip == 0 && self.state.chips[1].requested(false).is_some();
        let this = &mut self.state.chips[chip];
        let Some(input) = this.requested(cascade) else {
            return 0;
        };
        this.begin_service(input);
        0x80 | input
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        let chip = usize::from(offset & 2 != 0);
        match offset {
            0..=3 if self.state.chips[chip].poll => self.poll(chip),
            0 | 2 => match self.state.chips[chip].command_read {
                CommandRead::Requests => self.visible_requests(chip),
                CommandRead::InService => self.state.chips[chip].isr,
            },
            1 | 3 => self.state.chips[chip].imr,
            4 => self.state.chips[0].elcr,
            5 => self.state.chips[1].elcr,
            _ => {
                count(&mut self.state.misuse.bad_access, 1);
                0xff
            }
        }
    }

    fn visible_requests(&self, chip: usize) -> u8 {
        let cascade = chip == 0 && self.state.chips[1].requested(false).is_some();
        self.state.chips[chip].irr | u8::from(cascade) << CASCADE
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        let chips = &mut self.state.chips;
        match offset {
            0 => chips[0].write_command(value),
            1 => chips[0].write_data(value),
            2 => chips[1].write_command(value),
            3 => chips[1].write_data(value),
            4 => chips[0].elcr = value & LEVEL_CAPABLE[0],
            5 => chips[1].elcr = value & LEVEL_CAPABLE[1],
            _ => count(&mut self.state.misuse.bad_access, 1),
        }
    }
}

impl Device for PicPair {
    type State = PicState;

    fn name(&self) -> &'static str {
        "pic"
    }

    fn read(&mut self, offset: u64, data: &mut [u8], _ctx: &mut DeviceContext<'_>) {
        for (at, byte) in bytes_from(offset).zip(data) {
            *byte = self.read_register(at);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8], ctx: &mut DeviceContext<'_>) {
        for (at, &byte) in bytes_from(offset).zip(data) {
            self.write_register(at, byte);
        }
        // A switch to level mode must see the level that is there now.
        self.sync(ctx.irq);
    }

    fn save(&self) -> PicState {
        self.state.clone()
    }

    fn restore(&mut self, state: &PicState) -> Result<(), RestoreError> {
        for (chip, capable) in state.chips.iter().zip(LEVEL_CAPABLE) {
            chip.check()?;
            if chip.elcr & !capable != 0 {
                return Err(RestoreError {
                    device: "pic",
                    field: "elcr",
                    found: format!("{:#x}", chip.elcr),
                });
            }
        }
        self.state = state.clone();
        Ok(())
    }

    fn misuse(&self) -> Misuse {
        self.state.misuse
    }
}

#[cfg(test)]
mod tests {
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
}
