//! Levels of the sixteen ISA interrupt lines, as driven by the devices.
//!
//! A device sets its own line; the 8259 pair looks at levels and edges after every access. Restoring
//! a level is named apart from raising one: [`IrqLines::import`] makes no edge.

#![forbid(unsafe_code)]

/// Number of ISA lines.
pub const LINE_COUNT: u8 = 16;

/// Line levels and the rising edges since the interrupt controller last looked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct IrqLines {
    levels: u16,
    rising: u16,
}

impl IrqLines {
    /// Drives `line` high or low. A low-to-high change is remembered as an edge.
    pub fn set(&mut self, line: u8, high: bool) {
        debug_assert!(
            line < LINE_COUNT,
            "line numbers are constants of the layout"
        );
        let bit = 1u16 << (line & 15);
        if high {
            self.rising |= bit & !self.levels;
            self.levels |= bit;
        } else {
            self.levels &= !bit;
        }
    }

    /// A rising edge followed by a fall, as an 8254 in mode 2 makes.
    pub fn pulse(&mut self, line: u8) {
        self.set(line, true);
        self.set(line, false);
    }

    /// Current levels, bit per line.
    #[must_use]
    pub const fn levels(&self) -> u16 {
        self.levels
    }

    /// Takes the rising edges seen since the last call.
    pub fn take_rising(&mut self) -> u16 {
        std::mem::take(&mut self.rising)
    }

    /// Replaces levels and pending edges without making new edges.
    pub fn import(&mut self, saved: Self) {
        *self = saved;
    }
}
