//! Waiting for something to become true, always with a limit.
//!
//! The only place of the rig that sleeps: everything else blocks on a socket, a channel or a child.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// The machine's clock. The rig is outside of what is recorded: it measures and it gives up.
#[allow(
    clippy::disallowed_methods,
    reason = "the rig measures real hosts from outside"
)]
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// Sleeps.
pub fn pause(duration: Duration) {
    let deadline = now() + duration;
    loop {
        let left = deadline.saturating_duration_since(now());
        if left.is_zero() {
            return;
        }
        // Parking may end early; nobody unparks these threads on purpose.
        std::thread::park_timeout(left);
    }
}

/// Asks `probe` every `interval` until it answers, at most for `limit`.
///
/// # Errors
/// When `limit` passes first (the message says what was awaited), or what `probe` reports.
pub fn until<T>(
    what: &str,
    limit: Duration,
    interval: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = now() + limit;
    loop {
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        if now() >= deadline {
            bail!("waited {:.1} s in vain for {what}", limit.as_secs_f64());
        }
        pause(interval);
    }
}
