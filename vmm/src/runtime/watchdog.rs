//! Kicks the vCPU out of a stretch that lasts longer than a mark interval, once per stretch.
//!
//! With the exit clock a guest that computes makes no exits, so the recorder would have no occasion
//! to say that it is under way, and the backup would start the same stretch only when it is over. A
//! kick gives the recorder that occasion (a Progress record). It costs one atomic store per
//! stretch, and a signal only for the long ones.

use crate::kvm::kick::Kicker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Counts stretches: odd while the guest is entered.
#[derive(Debug, Default)]
pub struct StretchMeter {
    count: AtomicU64,
}

impl StretchMeter {
    /// The guest is about to be entered.
    pub fn enter(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// The guest came back.
    pub fn leave(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// The present stretch, if the guest is entered.
    fn stretch(&self) -> Option<u64> {
        let count = self.count.load(Ordering::Relaxed);
        (count % 2 == 1).then_some(count)
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
        interval: Duration,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || {
                let mut seen = None;
                let mut kicked = None;
                while !stopped.load(Ordering::Relaxed) {
                    thread::park_timeout(interval);
                    let stretch = meter.stretch();
                    // Seen at two ticks: it has lasted an interval. A kick that comes too late, in the
                    // next stretch, costs one re-entry and nothing else. The stretch's number changes
                    // after a kick, because the engine leaves and enters: one more kick, then rest.
                    if stretch.is_some() && stretch == seen && kicked != stretch {
                        kicker.kick();
                        kicked = stretch.map(|count| count + 2);
                    }
                    seen = stretch;
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
