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
use super::pic_chip::{CASCADE, ChipState, CommandRead};
use super::{Device, DeviceContext, Misuse, RestoreError, bytes_from, count};
use serde::{Deserialize, Serialize};

/// Inputs that can be set to level mode: all but the timer, keyboard, cascade, RTC and FPU.
const LEVEL_CAPABLE: [u8; 2] = [0xf8, 0xde];
const SPURIOUS: u8 = 7;

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
#[path = "pic_tests.rs"]
mod tests;
