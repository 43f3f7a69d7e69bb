//! One 8259A: initialisation and operation words, priorities, end of interrupt.
//!
//! Priorities rotate: `highest` is the input that ranks first. What a chip requests is computed
//! from requests, masks and services whenever somebody asks.

#![forbid(unsafe_code)]

use super::RestoreError;
use serde::{Deserialize, Serialize};

/// Input of the first chip that the cascaded chip drives.
pub(super) const CASCADE: u8 = 2;

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
    pub(super) fn requested(&self, cascade: bool) -> Option<u8> {
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

    pub(super) fn begin_service(&mut self, input: u8) {
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

    pub(super) fn follow(&mut self, levels: u8, rising: u8) {
        self.irr = (self.irr | rising) & !self.elcr | levels & self.elcr;
    }

    pub(super) fn write_command(&mut self, value: u8) {
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

    pub(super) fn write_data(&mut self, value: u8) {
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

    pub(super) fn check(&self) -> Result<(), RestoreError> {
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
