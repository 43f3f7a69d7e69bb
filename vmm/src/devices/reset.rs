//! Ways out of the machine: keyboard controller reset, port 0xcf9, and power-off.
//!
//! Bus offsets: 0 keyboard data (0x60), 1 keyboard status and command (0x64), 2 fast A20 and reset
//! (0x92), 3 reset control (0xcf9), 4-5 ACPI-style PM1 control (0x604, sleep enable is bit 13),
//! 6 exit (0xf4: any write powers off).
//!
//! No keyboard is attached: the controller's status says that its input buffer is empty, so that a
//! kernel that waits before a reset command does not wait, and its commands but the pulse of the reset line do
//! nothing.

#![forbid(unsafe_code)]

use super::{Device, DeviceContext, Effect, Misuse, RestoreError, bytes_from, count};
use serde::{Deserialize, Serialize};

/// System flag (self test passed) and keyboard not locked; both buffers empty.
const KEYBOARD_STATUS: u8 = 0x14;
/// Commands 0xf0 to 0xff pulse output lines; bit 0 clear pulses the processor's reset.
const KEYBOARD_PULSE: u8 = 0xf0;
const A20_ON: u8 = 0x02;
const SLEEP_ENABLE: u8 = 0x20;

/// Saved state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResetState {
    /// Last value written to port 0xcf9.
    pub reset_control: u8,
    /// What the guest did wrong.
    pub misuse: Misuse,
}

/// The reset and power-off ports.
#[derive(Debug, Default)]
pub struct ResetPorts {
    state: ResetState,
}

impl ResetPorts {
    /// Ports after power-on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        match offset {
            0 | 4..=6 => 0,
            1 => KEYBOARD_STATUS,
            2 => A20_ON,
            3 => self.state.reset_control,
            _ => {
                count(&mut self.state.misuse.bad_access, 1);
                0xff
            }
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) -> Option<Effect> {
        match offset {
            0 | 4 => None,
            1 => (value & KEYBOARD_PULSE == KEYBOARD_PULSE && value & 1 == 0)
                .then_some(Effect::Reset),
            2 => (value & 1 != 0).then_some(Effect::Reset),
            3 => {
                // Bit 1 selects a hard reset, a rising bit 2 performs the reset.
                let rising = value & !self.state.reset_control & 0x04 != 0;
                self.state.reset_control = value & 0x0e;
                rising.then_some(Effect::Reset)
            }
            5 => (value & SLEEP_ENABLE != 0).then_some(Effect::PowerOff),
            6 => Some(Effect::PowerOff),
            _ => {
                count(&mut self.state.misuse.bad_access, 1);
                None
            }
        }
    }
}

impl Device for ResetPorts {
    type State = ResetState;

    fn name(&self) -> &'static str {
        "reset"
    }

    fn read(&mut self, offset: u64, data: &mut [u8], _ctx: &mut DeviceContext<'_>) {
        for (at, byte) in bytes_from(offset).zip(data) {
            *byte = self.read_register(at);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8], ctx: &mut DeviceContext<'_>) {
        for (at, &byte) in bytes_from(offset).zip(data) {
            ctx.effects.extend(self.write_register(at, byte));
        }
    }

    fn save(&self) -> ResetState {
        self.state.clone()
    }

    fn restore(&mut self, state: &ResetState) -> Result<(), RestoreError> {
        if state.reset_control & !0x0e != 0 {
            return Err(RestoreError {
                device: "reset",
                field: "reset_control",
                found: format!("{:#x}", state.reset_control),
            });
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

    impl Subject for ResetPorts {
        fn fresh() -> Self {
            Self::new()
        }

        fn offsets() -> Vec<u64> {
            (0..7).collect()
        }
    }

    conformance_tests!(ResetPorts);

    fn effects_of(writes: &[(u64, u8)]) -> Vec<Effect> {
        let (mut ports, mut bench) = (ResetPorts::new(), Bench::new());
        for &(offset, value) in writes {
            ports.write(offset, &[value], &mut bench.ctx());
        }
        bench.effects
    }

    #[test]
    fn linux_reboots_through_the_keyboard_controller() {
        let (mut ports, mut bench) = (ResetPorts::new(), Bench::new());
        let mut status = [0];
        ports.read(1, &mut status, &mut bench.ctx());
        assert_eq!(status[0] & 0x02, 0, "kb_wait() returns at once");
        assert_eq!(effects_of(&[(1, 0xfe)]), [Effect::Reset]);
    }

    #[test]
    fn reset_control_acts_on_the_rising_bit() {
        assert_eq!(effects_of(&[(3, 0x02)]), []);
        assert_eq!(effects_of(&[(3, 0x02), (3, 0x06)]), [Effect::Reset]);
    }

    #[test]
    fn power_off_ports() {
        assert_eq!(effects_of(&[(6, 1)]), [Effect::PowerOff]);
        assert_eq!(effects_of(&[(4, 0), (5, 0x20)]), [Effect::PowerOff]);
        assert_eq!(effects_of(&[(5, 0x10)]), []);
    }
}
