//! Tells the person in front of the screen what is going on, one line per step.

use crate::wait::now;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// How often the spinner turns; on a pipe it does not turn at all.
const TICK: Duration = Duration::from_millis(200);

/// Runs `work` under a spinner named `what`, then prints how long it took. Everything goes to
/// standard error, so that results on standard output stay clean.
///
/// # Errors
/// What `work` reports.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::default_spinner());
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(TICK);
    let began = now();
    let result = work();
    let took = began.elapsed().as_secs_f64();
    bar.finish_and_clear();
    match &result {
        Ok(_) => eprintln!("  {what} ({took:.1} s)"),
        Err(_) => eprintln!("  {what}: FAILED after {took:.1} s"),
    }
    result
}

/// Prints a line beside the steps.
pub fn note(text: &str) {
    eprintln!("    {text}");
}
