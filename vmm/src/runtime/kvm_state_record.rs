//! State records of a guest on KVM: where a kick stopped it, made a point; and that state loaded.
//!
//! The side that records was kicked out of the guest, so the last access is complete and nothing was
//! injected since. What KVM still had to deliver is in its event state, which is saved. The side that
//! loads stands at the point that was left: it completes the access there, which is all that KVM would
//! do before the guest, and then replaces memory, registers and devices.
//!
//! Left out: when a state is worth it (`replication::recorder`).

use super::kvm_executor::KvmExecutor;
use crate::kvm::KvmError;
use crate::kvm::dirty::Reader;
use crate::machine::page_set::PAGE_BYTES;
use crate::snapshot::part::{self, PART_HEADROOM_BYTES};
use crate::snapshot::state::GuestState;
use logging_channel::execution_point::PointKind;
use logging_channel::record::limits::STATE_BYTES_MAX;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Pages of one piece: with what compression may add they fit a record.
const PAGES_PER_PIECE: u32 = 16;
const _: () = assert!(
    PAGES_PER_PIECE as usize * PAGE_BYTES as usize + PART_HEADROOM_BYTES <= STATE_BYTES_MAX,
    "pages that cannot be compressed fit a record"
);

impl KvmExecutor {
    /// Notes that writes so far are no part of the next state. Begins to watch with the first call.
    pub(super) fn forget(&mut self) -> Result<(), KvmError> {
        let Some(dirty) = &self.dirty else {
            return Ok(());
        };
        if self.watching {
            return dirty.take(Reader::Recorder).map(drop);
        }
        dirty.start(Reader::Recorder)?;
        self.watching = true;
        Ok(())
    }

    /// Makes a point of this place; what was written, then everything else.
    pub(super) fn name_this_place(&mut self) -> Result<Vec<Vec<u8>>, KvmError> {
        let Some(dirty) = self.dirty.as_ref().filter(|_| self.watching) else {
            let unwatched = "nobody noted what the guest wrote".to_owned();
            return Err(KvmError::State(unwatched));
        };
        // Brings the run page up to date, as on the side that loads.
        if self.vcpu.complete_io()?.is_some() {
            return Err(KvmError::State("an access was not complete".to_owned()));
        }
        let pages = dirty.take(Reader::Recorder)?;
        let mut pieces = Vec::new();
        part::parts_of(self.machine.memory(), &pages, PAGES_PER_PIECE, |piece| {
            pieces.push(piece);
            true
        })?;
        self.exits += 1;
        self.at = Some(PointKind::Exit);
        pieces.push(part::part_of_state(&self.guest_state()?)?);
        tracing::debug!(exits = self.exits, pages = pages.count(), "state record");
        Ok(pieces)
    }

    /// Most that such pieces have together: all of memory, page by page.
    pub(super) fn pieces_bytes_max(&self) -> u64 {
        let memory: u64 = self.machine.memory().iter().map(|r| r.len()).sum();
        let headroom = (memory / PAGE_BYTES).saturating_mul(PART_HEADROOM_BYTES as u64);
        memory + headroom + STATE_BYTES_MAX as u64
    }

    /// Goes on from the state that the pieces are. An `Err` inside: they do not fit.
    pub(super) fn load_pieces(
        &mut self,
        pieces: &[Vec<u8>],
    ) -> Result<Result<(), String>, KvmError> {
        let exits = self.exits;
        if !self.complete_access()?.is_empty() || self.exits != exits {
            return Ok(Err("the access before it has another part here".to_owned()));
        }
        let mut state = None;
        for piece in pieces {
            match part::apply(self.machine.memory(), piece) {
                Ok(found) => state = found.or(state),
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
        let Some(state) = state else {
            return Ok(Err("registers and devices are missing".to_owned()));
        };
        if let Err(difference) = self.follows(&state) {
            return Ok(Err(difference));
        }
        Ok(self.take_over(&state).map_err(|error| error.to_string()))
    }

    /// Whether `state` is one exit on from here, on the exit clock.
    fn follows(&self, state: &GuestState) -> Result<(), String> {
        if state.between || state.branches != 0 || self.clock.is_some() {
            return Err("it is of another clock".to_owned());
        }
        if state.exits != self.exits + 1 {
            let (found, here) = (state.exits, self.exits);
            return Err(format!("it is of exit {found}, and this is exit {here}"));
        }
        Ok(())
    }
}
