//! The machine's saved state and its digests, section by section.

#![forbid(unsafe_code)]

use super::Machine;
use super::pvclock::PvClock;
use crate::devices::digest::digest_of;
use crate::devices::irq::IrqLines;
use crate::devices::pic::PicState;
use crate::devices::pit::PitState;
use crate::devices::reset::ResetState;
use crate::devices::rtc::RtcState;
use crate::devices::serial::SerialState;
use crate::devices::virtio::mmio::VirtioState;
use crate::devices::virtio::rng::Request;
use crate::devices::{Device, RestoreError};
use logging_channel::host_time::GuestTime;
use serde::{Deserialize, Serialize};

/// Everything that [`Machine`] holds beside guest memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// Guest time.
    pub now: GuestTime,
    /// Clock pages.
    pub clock: PvClock,
    /// Interrupt lines.
    pub irq: IrqLines,
    /// Interrupt controllers.
    pub pic: PicState,
    /// Interval timer.
    pub pit: PitState,
    /// Real-time clock.
    pub rtc: RtcState,
    /// Console.
    pub serial: SerialState,
    /// Reset ports.
    pub reset: ResetState,
    /// Network device 0.
    pub net: VirtioState<()>,
    /// Entropy device.
    pub rng: VirtioState<Option<Request>>,
}

/// Number of sections of a [`MachineDigest`].
pub const SECTION_COUNT: usize = 9;

/// Digests of the machine's sections, so that a divergence can name the first that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineDigest {
    /// Section names and digests, always in the same order.
    pub sections: [(&'static str, u64); SECTION_COUNT],
}

impl MachineDigest {
    /// One number for all sections.
    #[must_use]
    pub fn combined(&self) -> u64 {
        digest_of(&self.sections.map(|(_, digest)| digest))
    }

    /// Name of the first section that differs from `other`.
    #[must_use]
    pub fn first_difference(&self, other: &Self) -> Option<&'static str> {
        let pairs = self.sections.iter().zip(&other.sections);
        pairs
            .filter(|(ours, theirs)| ours != theirs)
            .map(|(ours, _)| ours.0)
            .next()
    }
}

impl MachineState {
    /// Its digests.
    #[must_use]
    pub fn digest(&self) -> MachineDigest {
        MachineDigest {
            sections: [
                ("clock", digest_of(&(self.now, &self.clock))),
                ("irq", digest_of(&self.irq)),
                ("pic", digest_of(&self.pic)),
                ("pit", digest_of(&self.pit)),
                ("rtc", digest_of(&self.rtc)),
                ("serial", digest_of(&self.serial)),
                ("reset", digest_of(&self.reset)),
                ("net", digest_of(&self.net)),
                ("rng", digest_of(&self.rng)),
            ],
        }
    }
}

impl Machine {
    /// All state but guest memory.
    #[must_use]
    pub fn save(&self) -> MachineState {
        MachineState {
            now: self.now,
            clock: self.clock.clone(),
            irq: self.irq,
            pic: self.chips.pic.save(),
            pit: self.chips.pit.save(),
            rtc: self.chips.rtc.save(),
            serial: self.chips.serial.save(),
            reset: self.chips.reset.save(),
            net: self.chips.net.save(),
            rng: self.chips.rng.save(),
        }
    }

    /// Replaces all state but guest memory, which must hold what it held when `state` was saved.
    ///
    /// # Errors
    /// When a device refuses; the machine must then not be used.
    pub fn restore(&mut self, state: &MachineState) -> Result<(), RestoreError> {
        self.chips.pic.restore(&state.pic)?;
        self.chips.pit.restore(&state.pit)?;
        self.chips.rtc.restore(&state.rtc)?;
        self.chips.serial.restore(&state.serial)?;
        self.chips.reset.restore(&state.reset)?;
        self.chips.net.restore(&state.net)?;
        self.chips.rng.restore(&state.rng)?;
        if !state.clock.fits(&self.memory) {
            return Err(RestoreError {
                device: "clock",
                field: "system_time_msr",
                found: format!("{:?}", state.clock),
            });
        }
        self.irq.import(state.irq);
        self.clock = state.clock.clone();
        self.now = state.now;
        Ok(())
    }

    /// Digests of all state but guest memory.
    #[must_use]
    pub fn digest(&self) -> MachineDigest {
        self.save().digest()
    }
}
