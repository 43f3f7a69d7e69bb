//! Everything of a guest but its memory, at an execution point, between two instructions.

#![forbid(unsafe_code)]

use super::part::PartError;
use crate::machine::cpu_state::CpuState;
use crate::machine::state::MachineState;
use logging_channel::message::PART_BYTES_MAX;
use serde::{Deserialize, Serialize};

/// Version of [`GuestState`]'s bytes.
pub const STATE_VERSION: u16 = 1;

/// How the guest stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedStanding {
    /// It can be entered.
    Runnable,
    /// It waits for an interrupt.
    Halted,
}

/// Everything of a guest but its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestState {
    /// [`STATE_VERSION`].
    pub version: u16,
    /// Guest CPU model and revision that the registers are of.
    pub cpu_model: String,
    /// Synchronous exits so far.
    pub exits: u64,
    /// Whether the point lies between exits (branch clock).
    pub between: bool,
    /// Conditional branches so far; 0 with the exit clock.
    pub branches: u64,
    /// How it stands.
    pub standing: SavedStanding,
    /// Console bytes that do not make a line yet.
    pub console: Vec<u8>,
    /// Input was applied and the guest not entered since.
    pub given: bool,
    /// The processor.
    pub cpu: CpuState,
    /// Devices and guest time.
    pub machine: MachineState,
}

impl GuestState {
    /// Its bytes.
    ///
    /// # Errors
    /// When it does not fit a part, which no state of this machine comes near.
    pub fn encode(&self) -> Result<Vec<u8>, PartError> {
        let bytes = bincode::serde::encode_to_vec(self, bincode::config::standard())
            .map_err(|error| PartError::State(error.to_string()))?;
        if bytes.len() >= PART_BYTES_MAX {
            return Err(PartError::State(format!("{} bytes long", bytes.len())));
        }
        Ok(bytes)
    }

    /// Reads what [`GuestState::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are no such state, or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, PartError> {
        // Whatever the bytes say, no more is allocated than a part can hold.
        let config = bincode::config::standard().with_limit::<PART_BYTES_MAX>();
        let (state, length): (Self, usize) = bincode::serde::decode_from_slice(bytes, config)
            .map_err(|error| PartError::State(error.to_string()))?;
        if state.version != STATE_VERSION {
            return Err(PartError::Version {
                found: state.version,
                known: STATE_VERSION,
            });
        }
        if length != bytes.len() {
            let more = bytes.len() - length;
            return Err(PartError::State(format!("{more} bytes too many")));
        }
        Ok(state)
    }
}
