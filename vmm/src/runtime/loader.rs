//! Builds a new backup's guest from the pieces of a running one's state.
//!
//! Pieces go into guest memory as they come; the virtual machine around it is made when the state is
//! complete. What was loaded when the connection is lost means nothing and is thrown away, memory and
//! all, so that nothing of one attempt can be found in the next.

use super::guest::{Blueprint, Guest, GuestError};
use crate::kvm::KvmError;
use crate::machine::ram::GuestRam;
use crate::replication::engine::Emitted;
use crate::snapshot::part;
use crate::snapshot::state::GuestState;
use logging_channel::record::ClockKind;

/// A guest that is not complete.
pub(super) struct Loader<'a> {
    blueprint: &'a Blueprint,
    memory: Option<GuestRam>,
    state: Option<Box<GuestState>>,
    unloads: u64,
}

impl<'a> Loader<'a> {
    /// Nothing loaded.
    pub(super) const fn new(blueprint: &'a Blueprint) -> Self {
        Self {
            blueprint,
            memory: None,
            state: None,
            unloads: 0,
        }
    }

    /// Takes in a piece.
    ///
    /// # Errors
    /// When it is no piece of such a guest.
    pub(super) fn load(&mut self, bytes: &[u8]) -> Result<Emitted, GuestError> {
        let memory = match &self.memory {
            Some(memory) => memory,
            None => self.memory.insert(self.blueprint.empty_memory()?),
        };
        let state = part::fill(memory, bytes).map_err(KvmError::from)?;
        self.state = state.or(self.state.take());
        Ok(Emitted::Loaded {
            unloads: self.unloads,
            bytes: bytes.len() as u64,
        })
    }

    /// Forgets everything.
    pub(super) fn unload(&mut self) {
        self.memory = None;
        self.state = None;
        self.unloads += 1;
    }

    /// The guest, on the calling thread, on the clock that the pair agreed on.
    ///
    /// # Errors
    /// When something is missing, or the host cannot build it.
    pub(super) fn finish(self, clock: ClockKind) -> Result<Guest, GuestError> {
        let (Some(memory), Some(state)) = (self.memory, self.state) else {
            let missing = "the registers and devices did not come".to_owned();
            return Err(KvmError::State(missing).into());
        };
        self.blueprint.rebuild(memory, &state, clock)
    }
}
