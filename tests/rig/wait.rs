//! Waiting for something to become true, always with a limit.
//!
//! The only place of the rig that sleeps: everything else blocks on a socket, a channel or a child.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// Sleeps.
pub fn pause(duration: Duration) {
    let deadline = Instant::now() + duration;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
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
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waited {:.1} s in vain for {what}", limit.as_secs_f64());
        }
        pause(interval);
    }
}
