//! What may be written to the TAP: the last look at a frame before it is on the network.
//!
//! ```text
//!   closed --raise(g): live here--> open at g --raise(g'), g' > g--> open at g'
//!      '------------- seal: halted, ended, refused -------------'--> sealed for good
//! ```
//!
//! The node decides what leaves, and this process may be stopped between that and the system call: for a
//! moment, or for the hour in which the guest went live elsewhere. So a frame is let out only in the generation in
//! which the TAP is open or a later one, and only as long after the decision as the other side would have
//! waited before it suspected this one. What is refused is lost, as in a switch, and counted.

#![forbid(unsafe_code)]

use logging_channel::host_time::HostTime;

/// On whose behalf, and since when, a frame is to leave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pass {
    /// The generation that the node holds.
    pub(super) generation: u64,
    /// When the node decided.
    pub(super) decided: HostTime,
}

/// Why a frame stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The guest does not live here, or no more.
    Closed,
    /// The TAP is open in a later generation.
    Older,
    /// This process did not run since the decision, for so long that the other side may live.
    Stale,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { generation: u64 },
    Sealed,
}

/// The fence of one life's TAP.
#[derive(Debug)]
pub(super) struct TapFence {
    state: State,
    /// Longest time from decision to system call; none without another side.
    stale_ns: Option<u64>,
}

impl TapFence {
    /// A closed one.
    pub(super) const fn new(stale_ns: Option<u64>) -> Self {
        Self {
            state: State::Closed,
            stale_ns,
        }
    }

    /// The guest lives here under `generation`. An older one than before changes nothing, nor does any
    /// after the seal.
    pub(super) fn raise(&mut self, generation: u64) {
        self.state = match self.state {
            State::Closed => State::Open { generation },
            State::Open { generation: before } => State::Open {
                generation: generation.max(before),
            },
            State::Sealed => State::Sealed,
        };
    }

    /// Nothing leaves any more.
    pub(super) const fn seal(&mut self) {
        self.state = State::Sealed;
    }

    /// Whether a frame with this pass may leave at `now`.
    pub(super) fn admit(&self, pass: Pass, now: HostTime) -> Result<(), Refusal> {
        let State::Open { generation } = self.state else {
            return Err(Refusal::Closed);
        };
        if pass.generation < generation {
            return Err(Refusal::Older);
        }
        let waited_ns = now.since(pass.decided);
        match self.stale_ns {
            Some(limit_ns) if waited_ns >= limit_ns => Err(Refusal::Stale),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALE_NS: u64 = 120_000_000;
    const HOUR_NS: u64 = 3_600_000_000_000;

    fn pass(generation: u64) -> Pass {
        Pass {
            generation,
            decided: HostTime(5),
        }
    }

    #[test]
    fn nothing_leaves_before_the_guest_lives_here_and_after_it_left() {
        let mut fence = TapFence::new(Some(STALE_NS));
        assert_eq!(fence.admit(pass(2), HostTime(5)), Err(Refusal::Closed));
        fence.raise(2);
        assert_eq!(fence.admit(pass(2), HostTime(5)), Ok(()));
        fence.seal();
        assert_eq!(fence.admit(pass(2), HostTime(5)), Err(Refusal::Closed));
        fence.raise(3);
        assert_eq!(fence.admit(pass(3), HostTime(5)), Err(Refusal::Closed));
    }

    #[test]
    fn an_older_generation_is_refused() {
        let mut fence = TapFence::new(Some(STALE_NS));
        fence.raise(4);
        fence.raise(2);
        assert_eq!(fence.admit(pass(3), HostTime(5)), Err(Refusal::Older));
        assert_eq!(fence.admit(pass(4), HostTime(5)), Ok(()));
        // Going on alone raises the generation of a TAP that is open.
        assert_eq!(fence.admit(pass(5), HostTime(5)), Ok(()));
    }

    #[test]
    fn a_host_that_was_paused_for_an_hour_lets_nothing_out() {
        let mut fence = TapFence::new(Some(STALE_NS));
        fence.raise(1);
        let later = |ns| HostTime(5 + ns);
        assert_eq!(fence.admit(pass(1), later(HOUR_NS)), Err(Refusal::Stale));
        assert_eq!(fence.admit(pass(1), later(STALE_NS)), Err(Refusal::Stale));
        assert_eq!(fence.admit(pass(1), later(STALE_NS - 1)), Ok(()));
        // Nobody else could have gone live.
        let mut alone = TapFence::new(None);
        alone.raise(0);
        assert_eq!(alone.admit(pass(0), later(HOUR_NS)), Ok(()));
    }
}
