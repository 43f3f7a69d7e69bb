//! Kicks the vCPU out of a stretch that lasts too long for what has to happen at a point.
//!
//! With the branch clock, longer than a mark interval, or past a timer's deadline: the guest is stopped
//! at the next place that the clock can name. With the exit clock, long enough for the recorder to look
//! whether something waits for a guest that makes no exits. It costs two atomic stores per stretch, and
//! a signal only for the long ones.

use super::host_clock::HostClock;
use crate::confine::Confinement;
use crate::confine::filter::{Thread as Filtered, confine_thread};
use crate::confine::privileges::drop_capabilities;
use crate::kvm::kick::Kicker;
use logging_channel::host_time::HostTime;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// No deadline.
const NEVER: u64 = u64::MAX;

/// Counts stretches: odd while the guest is entered.
#[derive(Debug)]
pub struct StretchMeter {
    count: AtomicU64,
    /// Host time, nanoseconds, at which a timer of the guest is due.
    deadline_ns: AtomicU64,
}

impl Default for StretchMeter {
    fn default() -> Self {
        Self {
            count: AtomicU64::new(0),
            deadline_ns: AtomicU64::new(NEVER),
        }
    }
}

impl StretchMeter {
    /// The guest is about to be entered; its next timer is due at `deadline`.
    pub fn enter(&self, deadline: Option<HostTime>) {
        self.deadline_ns
            .store(deadline.map_or(NEVER, |at| at.0), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Release);
    }

    /// The guest came back.
    pub fn leave(&self) {
        self.count.fetch_add(1, Ordering::Release);
    }

    /// The present stretch and its deadline, if the guest is entered.
    fn stretch(&self) -> Option<(u64, u64)> {
        let count = self.count.load(Ordering::Acquire);
        (count % 2 == 1).then(|| (count, self.deadline_ns.load(Ordering::Relaxed)))
    }
}

/// When to kick.
#[derive(Debug, Clone, Copy)]
pub struct WatchdogConfig {
    /// Length of a stretch that earns a kick, nanoseconds.
    pub interval_ns: u64,
    /// Whether the guest can be stopped anywhere (branch clock): then timers are worth a kick.
    pub anywhere: bool,
    /// How strictly the thread's system calls are judged.
    pub confinement: Confinement,
}

/// What the watchdog remembers from tick to tick.
#[derive(Debug, Default)]
struct Memory {
    seen: Option<u64>,
}

impl Memory {
    /// Whether to kick, and how long to sleep.
    fn tick(
        &mut self,
        now_ns: u64,
        stretch: Option<(u64, u64)>,
        config: WatchdogConfig,
    ) -> (bool, u64) {
        let Some((count, deadline_ns)) = stretch else {
            self.seen = None;
            return (false, config.interval_ns);
        };
        let long = self.seen == Some(count);
        self.seen = Some(count);
        if config.anywhere {
            let due = deadline_ns <= now_ns;
            let sleep_ns = deadline_ns
                .saturating_sub(now_ns)
                .clamp(1, config.interval_ns);
            return (long || due, if due { config.interval_ns } else { sleep_ns });
        }
        // A kick that comes too late, in the next stretch, costs one re-entry and nothing else.
        (long, config.interval_ns)
    }
}

/// The watchdog thread; stops when dropped.
#[derive(Debug)]
pub struct Watchdog {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts watching.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        meter: Arc<StretchMeter>,
        kicker: Kicker,
        clock: HostClock,
        config: WatchdogConfig,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || {
                let confined = drop_capabilities()
                    .and_then(|()| confine_thread(config.confinement, Filtered::Watchdog));
                if let Err(error) = confined {
                    tracing::error!(%error, "the watchdog is not confined");
                }
                let mut memory = Memory::default();
                while !stopped.load(Ordering::Relaxed) {
                    let (kick, sleep_ns) = memory.tick(clock.now().0, meter.stretch(), config);
                    if kick {
                        kicker.kick();
                    }
                    thread::park_timeout(Duration::from_nanos(sleep_ns));
                }
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The thread only sleeps and kicks; it cannot panic, and its result is empty.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXITS: WatchdogConfig = WatchdogConfig {
        confinement: Confinement::Off,
        interval_ns: 10,
        anywhere: false,
    };
    const BRANCHES: WatchdogConfig = WatchdogConfig {
        confinement: Confinement::Off,
        interval_ns: 10,
        anywhere: true,
    };

    #[test]
    fn a_long_stretch_is_kicked_again_and_again() {
        let mut memory = Memory::default();
        assert_eq!(memory.tick(0, Some((1, NEVER)), EXITS), (false, 10));
        assert_eq!(memory.tick(10, Some((1, NEVER)), EXITS), (true, 10));
        // The engine left and entered again.
        assert_eq!(memory.tick(20, Some((3, NEVER)), EXITS), (false, 10));
        assert_eq!(memory.tick(30, Some((3, NEVER)), EXITS), (true, 10));
    }

    #[test]
    fn short_stretches_and_waits_are_left_alone() {
        let mut memory = Memory::default();
        assert_eq!(memory.tick(0, Some((1, NEVER)), EXITS), (false, 10));
        assert_eq!(memory.tick(10, None, EXITS), (false, 10));
        assert_eq!(memory.tick(20, Some((7, NEVER)), EXITS), (false, 10));
    }

    #[test]
    fn a_timer_is_worth_a_kick_only_when_the_guest_can_be_stopped_anywhere() {
        let mut memory = Memory::default();
        assert_eq!(memory.tick(0, Some((1, 4)), BRANCHES), (false, 4));
        assert_eq!(memory.tick(4, Some((3, 4)), BRANCHES), (true, 10));
        let mut memory = Memory::default();
        assert_eq!(memory.tick(5, Some((1, 4)), EXITS), (false, 10));
    }
}
