//! The Output Rule: output waits here until the backup holds the log that led to it.
//!
//! ```text
//!   Guarded   primary: lets out what is acknowledged        Frozen   primary, claiming: nothing
//!   Watching  backup: keeps what the primary may not have   Open     solo: everything, at once
//!             released yet                                  Sealed   halted: nothing, for good
//! ```
//!
//! An output is queued under the index of its Output record and may leave when the backup has
//! acknowledged that record, that is when the cumulative acknowledgement is *above* the index.
//! Invariants: outputs leave in index order, each at most once from one gate; a Sealed gate never
//! lets anything out. The queue is bounded: [`OutputGate::is_full`] tells the caller to stop the
//! recorder, it never drops. The Watching gate needs no bound of its own: what it keeps is at most
//! what the primary's gate held plus what the primary has released and not yet told.

#![forbid(unsafe_code)]

use super::executor::Produced;
use logging_channel::record::LogIndex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// What one queued output costs beside its bytes.
const OUTPUT_OVERHEAD_BYTES: usize = 64;

/// When output may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stance {
    /// What is acknowledged passes.
    Guarded,
    /// Nothing passes until the arbiter has spoken.
    Frozen,
    /// A backup's own output: kept until it is known to be released by the primary.
    Watching,
    /// Everything passes.
    Open,
    /// Nothing ever passes again.
    Sealed,
}

/// Counts and sizes, for the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateStatus {
    /// When output may pass.
    pub stance: Stance,
    /// Outputs queued.
    pub held: usize,
    /// Their bytes, with overhead.
    pub held_bytes: usize,
    /// Outputs let out so far.
    pub released: u64,
    /// Outputs that a backup dropped because the primary had released them.
    pub dropped: u64,
}

/// The queue in front of the outside world.
#[derive(Debug, Clone, Hash)]
pub struct OutputGate {
    stance: Stance,
    held: VecDeque<(LogIndex, Produced)>,
    held_bytes: usize,
    held_bytes_max: usize,
    /// Every output below this index has left, here (Guarded) or at the primary (Watching).
    released_below: LogIndex,
    released: u64,
    dropped: u64,
}

impl OutputGate {
    /// An empty gate that is full at `held_bytes_max` bytes.
    #[must_use]
    pub const fn new(stance: Stance, held_bytes_max: usize) -> Self {
        Self {
            stance,
            held: VecDeque::new(),
            held_bytes: 0,
            held_bytes_max,
            released_below: LogIndex(0),
            released: 0,
            dropped: 0,
        }
    }

    /// The guest produced `output`, logged as record `index`. Returned if it may leave at once.
    ///
    /// # Panics
    /// When indices do not increase: the recorder or replayer is broken.
    pub fn produced(&mut self, index: LogIndex, output: Produced) -> Option<Produced> {
        assert!(
            self.held.back().is_none_or(|(last, _)| *last < index),
            "outputs arrive in log order"
        );
        match self.stance {
            Stance::Open => {
                self.count_release(index);
                Some(output)
            }
            Stance::Watching if index < self.released_below => {
                self.dropped += 1;
                None
            }
            Stance::Guarded | Stance::Frozen | Stance::Watching => {
                self.held_bytes += output.bytes.len() + OUTPUT_OVERHEAD_BYTES;
                self.held.push_back((index, output));
                None
            }
            Stance::Sealed => None,
        }
    }

    /// The backup holds every record below `below`: what may leave, in order.
    #[must_use]
    pub fn acknowledged(&mut self, below: LogIndex) -> Vec<Produced> {
        let mut out = Vec::new();
        if self.stance != Stance::Guarded {
            return out;
        }
        while let Some((index, output)) = self.take_below(below) {
            self.count_release(index);
            out.push(output);
        }
        out
    }

    /// The primary has released every output below `below`: a backup drops its copies.
    pub fn released_by_peer(&mut self, below: LogIndex) {
        if self.stance != Stance::Watching {
            return;
        }
        self.released_below = self.released_below.max(below);
        while self.take_below(below).is_some() {
            self.dropped += 1;
        }
    }

    /// A backup holds the guest's state up to here: from now on output waits for it again.
    ///
    /// # Panics
    /// When the gate is not open: only the only one can get a backup.
    pub fn guard(&mut self) {
        assert!(self.stance == Stance::Open, "only an open gate is guarded");
        self.stance = Stance::Guarded;
    }

    /// A backup begins with the state before record `first`: all output before it has left.
    pub fn begin_at(&mut self, first: LogIndex) {
        self.released_below = self.released_below.max(first);
    }

    /// Guarded becomes Frozen: acknowledgements change nothing any more.
    pub fn freeze(&mut self) {
        if self.stance == Stance::Guarded {
            self.stance = Stance::Frozen;
        }
    }

    /// The arbiter decided for us: what was held leaves now, and everything later at once.
    ///
    /// # Panics
    /// When the gate is sealed: a halted side lets nothing out.
    #[must_use]
    pub fn open(&mut self) -> Vec<Produced> {
        assert!(self.stance != Stance::Sealed, "a sealed gate stays sealed");
        self.stance = Stance::Open;
        let mut out = Vec::new();
        while let Some((index, output)) = self.take_below(LogIndex(u64::MAX)) {
            self.count_release(index);
            out.push(output);
        }
        out
    }

    /// Nothing passes any more; what was held is forgotten.
    pub fn seal(&mut self) {
        self.stance = Stance::Sealed;
        self.held.clear();
        self.held_bytes = 0;
    }

    /// Every output below this index has left.
    #[must_use]
    pub const fn released_below(&self) -> LogIndex {
        self.released_below
    }

    /// Whether the recorder has to wait.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.held_bytes >= self.held_bytes_max
    }

    /// Whether nothing is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// When output may pass.
    #[must_use]
    pub const fn stance(&self) -> Stance {
        self.stance
    }

    /// Counts and sizes.
    #[must_use]
    pub fn status(&self) -> GateStatus {
        GateStatus {
            stance: self.stance,
            held: self.held.len(),
            held_bytes: self.held_bytes,
            released: self.released,
            dropped: self.dropped,
        }
    }

    fn take_below(&mut self, below: LogIndex) -> Option<(LogIndex, Produced)> {
        if self.held.front()?.0 >= below {
            return None;
        }
        let (index, output) = self.held.pop_front()?;
        self.held_bytes -= output.bytes.len() + OUTPUT_OVERHEAD_BYTES;
        Some((index, output))
    }

    fn count_release(&mut self, index: LogIndex) {
        self.released_below = index.next();
        self.released += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logging_channel::record::OutputDevice;

    fn output(n: u8) -> Produced {
        Produced {
            device: OutputDevice::Network(0),
            bytes: vec![n; 10],
        }
    }

    fn gate_with(stance: Stance, indices: &[u64]) -> OutputGate {
        let mut gate = OutputGate::new(stance, 1_000);
        for index in indices {
            let n = u8::try_from(*index).expect("small");
            assert_eq!(gate.produced(LogIndex(*index), output(n)), None);
        }
        gate
    }

    #[test]
    fn output_leaves_when_its_own_record_is_acknowledged() {
        let mut gate = gate_with(Stance::Guarded, &[3, 4, 7]);
        assert_eq!(
            gate.acknowledged(LogIndex(3)),
            [],
            "records 0..3 do not include record 3"
        );
        assert_eq!(gate.released_below(), LogIndex(0));
        assert_eq!(gate.acknowledged(LogIndex(5)), [output(3), output(4)]);
        assert_eq!(gate.released_below(), LogIndex(5));
        assert_eq!(gate.acknowledged(LogIndex(5)), []);
        assert_eq!(gate.acknowledged(LogIndex(8)), [output(7)]);
        assert!(gate.is_empty());
    }

    #[test]
    fn a_frozen_gate_ignores_acknowledgements_until_it_is_opened() {
        let mut gate = gate_with(Stance::Guarded, &[3]);
        gate.freeze();
        assert_eq!(gate.acknowledged(LogIndex(9)), []);
        assert_eq!(gate.produced(LogIndex(5), output(5)), None);
        assert_eq!(gate.open(), [output(3), output(5)]);
        assert_eq!(gate.produced(LogIndex(6), output(6)), Some(output(6)));
    }

    #[test]
    fn a_sealed_gate_lets_nothing_out() {
        let mut gate = gate_with(Stance::Guarded, &[3]);
        gate.seal();
        assert_eq!(gate.acknowledged(LogIndex(9)), []);
        assert_eq!(gate.produced(LogIndex(5), output(5)), None);
        assert!(gate.is_empty());
    }

    #[test]
    #[should_panic(expected = "sealed gate")]
    fn a_sealed_gate_cannot_be_opened() {
        let mut gate = gate_with(Stance::Guarded, &[]);
        gate.seal();
        let _ = gate.open();
    }

    #[test]
    fn an_open_gate_is_guarded_again_for_a_new_backup() {
        let mut gate = gate_with(Stance::Guarded, &[3]);
        gate.freeze();
        assert_eq!(gate.open().len(), 1);
        gate.guard();
        assert_eq!(gate.produced(LogIndex(9), output(9)), None);
        assert_eq!(gate.acknowledged(LogIndex(10)), [output(9)]);
    }

    #[test]
    #[should_panic(expected = "only an open gate")]
    fn a_frozen_gate_gets_no_new_backup() {
        let mut gate = gate_with(Stance::Guarded, &[3]);
        gate.freeze();
        gate.guard();
    }

    #[test]
    fn a_backup_keeps_only_what_may_not_have_been_released() {
        let mut gate = gate_with(Stance::Watching, &[3, 4, 7]);
        gate.released_by_peer(LogIndex(5));
        assert_eq!(gate.status().dropped, 2);
        gate.released_by_peer(LogIndex(9));
        assert_eq!(gate.produced(LogIndex(8), output(8)), None);
        assert_eq!(gate.status().dropped, 4, "replayed after it was released");
        assert_eq!(gate.acknowledged(LogIndex(99)), []);
        gate.produced(LogIndex(9), output(9));
        assert_eq!(gate.open(), [output(9)]);
    }

    #[test]
    fn the_gate_says_when_it_is_full() {
        let mut gate = OutputGate::new(Stance::Guarded, 2 * (10 + OUTPUT_OVERHEAD_BYTES));
        gate.produced(LogIndex(1), output(1));
        assert!(!gate.is_full());
        gate.produced(LogIndex(2), output(2));
        assert!(gate.is_full());
        assert_eq!(gate.acknowledged(LogIndex(2)).len(), 1);
        assert!(!gate.is_full());
    }

    #[test]
    #[should_panic(expected = "log order")]
    fn outputs_out_of_order_are_a_bug() {
        gate_with(Stance::Guarded, &[3, 3]);
    }
}
