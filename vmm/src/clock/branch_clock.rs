//! The branch clock: conditional branches retired by the guest since power-on.
//!
//! It sits on a small [`Counter`], so that everything but the `perf_event_open` call is tested with
//! counters that skid, lie or lose their signal. The count is that of one event that is never
//! reset; a count that goes backwards, or an event that was not on the processor all the time, is
//! poison: the clock refuses to name anything from then on.

#![forbid(unsafe_code)]

use super::landing::LandingMethod;

/// Why a counter cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum CounterError {
    /// The kernel refused an operation.
    #[error("performance counter: {operation} failed: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The event was off the processor for a while: counts are missing.
    #[error(
        "performance counter was not counting all the time (enabled {enabled_ns} ns, running \
         {running_ns} ns); another user of the counters (perf, the NMI watchdog) is in the way"
    )]
    Multiplexed {
        /// Time for which it was enabled.
        enabled_ns: u64,
        /// Time for which it counted.
        running_ns: u64,
    },
    /// The count went down.
    #[error("performance counter went backwards from {before} to {now}")]
    Backwards {
        /// The count before.
        before: u64,
        /// The count now.
        now: u64,
    },
    /// The clock was poisoned by an earlier error.
    #[error("performance counter was given up after an earlier error")]
    Poisoned,
}

/// One hardware event that counts conditional branches retired in guest mode.
pub trait Counter {
    /// Branches so far.
    ///
    /// # Errors
    /// When the count cannot be had or cannot be right.
    fn read(&mut self) -> Result<u64, CounterError>;

    /// Asks for a kick after `branches` more (at least 1), instead of any earlier request.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn arm(&mut self, branches: u64) -> Result<(), CounterError>;

    /// Withdraws the request. A kick that is already on its way may still come.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn disarm(&mut self) -> Result<(), CounterError>;
}

impl<C: Counter + ?Sized> Counter for Box<C> {
    fn read(&mut self) -> Result<u64, CounterError> {
        (**self).read()
    }
    fn arm(&mut self, branches: u64) -> Result<(), CounterError> {
        (**self).arm(branches)
    }
    fn disarm(&mut self) -> Result<(), CounterError> {
        (**self).disarm()
    }
}

/// Sabotage for drills: a counter that counts one branch too many from some count on, as real ones
/// have done. A replay with it must find out at the next record.
#[derive(Debug)]
pub struct LyingCounter<C> {
    counter: C,
    after: u64,
}

impl<C: Counter> LyingCounter<C> {
    /// Tells the truth up to `after` branches.
    pub const fn new(counter: C, after: u64) -> Self {
        Self { counter, after }
    }
}

impl<C: Counter> Counter for LyingCounter<C> {
    fn read(&mut self) -> Result<u64, CounterError> {
        let count = self.counter.read()?;
        Ok(count + u64::from(count > self.after))
    }
    fn arm(&mut self, branches: u64) -> Result<(), CounterError> {
        self.counter.arm(branches)
    }
    fn disarm(&mut self) -> Result<(), CounterError> {
        self.counter.disarm()
    }
}

/// The execution clock over a counter.
#[derive(Debug)]
pub struct BranchClock<C> {
    counter: C,
    last: u64,
    /// Branches that the guest had retired before this counter began.
    before: u64,
    armed: bool,
    poisoned: bool,
    method: LandingMethod,
}

impl<C: Counter> BranchClock<C> {
    /// A clock whose landings go like this.
    pub fn new(counter: C, method: LandingMethod) -> Self {
        Self {
            counter,
            last: 0,
            before: 0,
            armed: false,
            poisoned: false,
            method,
        }
    }

    /// The same for a guest that had retired `before` branches elsewhere.
    #[must_use]
    pub fn continuing(mut self, before: u64) -> Self {
        self.before = before;
        self
    }

    /// How landings go.
    pub fn method(&self) -> LandingMethod {
        self.method
    }

    /// Branches so far.
    ///
    /// # Errors
    /// Any error poisons the clock: a count that was wrong once names nothing.
    pub fn branches(&mut self) -> Result<u64, CounterError> {
        if self.poisoned {
            return Err(CounterError::Poisoned);
        }
        let outcome = self.counter.read().and_then(|now| {
            let before = self.last;
            if now < before {
                Err(CounterError::Backwards { before, now })
            } else {
                Ok(now)
            }
        });
        match outcome {
            Ok(now) => {
                self.last = now;
                Ok(self.before + now)
            }
            Err(error) => {
                self.poisoned = true;
                Err(error)
            }
        }
    }

    /// Asks for a kick after `branches` more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn arm(&mut self, branches: u64) -> Result<(), CounterError> {
        self.armed = true;
        self.counter.arm(branches.max(1))
    }

    /// Withdraws a request, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn disarm(&mut self) -> Result<(), CounterError> {
        if std::mem::take(&mut self.armed) {
            self.counter.disarm()
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A counter that answers from a script.
    struct Scripted(Vec<Result<u64, CounterError>>);

    impl Counter for Scripted {
        fn read(&mut self) -> Result<u64, CounterError> {
            self.0.remove(0)
        }
        fn arm(&mut self, _branches: u64) -> Result<(), CounterError> {
            Ok(())
        }
        fn disarm(&mut self) -> Result<(), CounterError> {
            Ok(())
        }
    }

    #[test]
    fn a_count_that_goes_backwards_poisons_the_clock() {
        let mut clock = BranchClock::new(
            Scripted(vec![Ok(5), Ok(4), Ok(6)]),
            LandingMethod::default(),
        );
        assert_eq!(clock.branches().expect("first read"), 5);
        assert!(matches!(
            clock.branches(),
            Err(CounterError::Backwards { before: 5, now: 4 })
        ));
        assert!(matches!(clock.branches(), Err(CounterError::Poisoned)));
    }

    #[test]
    fn a_guest_that_came_from_elsewhere_goes_on_counting() {
        let mut clock = BranchClock::new(Scripted(vec![Ok(0), Ok(7)]), LandingMethod::default())
            .continuing(1_000);
        assert_eq!(clock.branches().expect("first read"), 1_000);
        assert_eq!(clock.branches().expect("second read"), 1_007);
    }

    #[test]
    fn a_lying_counter_lies_by_one_from_its_count_on() {
        let counts = Scripted(vec![Ok(5), Ok(6), Ok(7)]);
        let mut clock = BranchClock::new(LyingCounter::new(counts, 5), LandingMethod::default());
        let mut read = || clock.branches().expect("plain counts");
        assert_eq!((read(), read(), read()), (5, 7, 8));
    }

    #[test]
    fn a_multiplexed_event_poisons_the_clock() {
        let lost = CounterError::Multiplexed {
            enabled_ns: 10,
            running_ns: 9,
        };
        let mut clock =
            BranchClock::new(Scripted(vec![Err(lost), Ok(6)]), LandingMethod::default());
        assert!(matches!(
            clock.branches(),
            Err(CounterError::Multiplexed { .. })
        ));
        assert!(matches!(clock.branches(), Err(CounterError::Poisoned)));
    }
}
