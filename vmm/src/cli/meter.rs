//! Progress on a terminal; silent elsewhere, and where data are asked for.

#![forbid(unsafe_code)]

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(100);

/// Lines of what is counted, and of what is not.
const COUNTED: &str = "[{bar:30}] {percent} %  {msg}";
const UNKNOWN: &str = "{spinner} {msg}";

/// A line that is drawn over and over until it ends.
pub(super) struct Meter(ProgressBar);

impl Meter {
    /// A meter on standard error, shown if that is a terminal and it is `wanted`.
    pub(super) fn begin(wanted: bool) -> Self {
        let target = if wanted {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let meter = Self(ProgressBar::with_draw_target(None, target));
        meter.style(UNKNOWN);
        meter
    }

    /// Whether anybody sees it.
    pub(super) fn is_shown(&self) -> bool {
        !self.0.is_hidden()
    }

    /// Says what is being done, of which nobody knows how much there is.
    pub(super) fn tell(&self, doing: String) {
        if self.0.length().is_some() {
            self.0.unset_length();
            self.style(UNKNOWN);
        }
        self.0.set_message(doing);
        self.0.tick();
    }

    /// Says what is being done, and draws how much of it.
    pub(super) fn show(&self, done: u64, all: u64, doing: String) {
        if self.0.length().is_none() {
            self.style(COUNTED);
        }
        self.0.set_length(all);
        self.0.set_message(doing);
        self.0.set_position(done.min(all));
    }

    /// Whatever comes next begins on an empty line.
    pub(super) fn end(&self) {
        self.0.finish_and_clear();
    }

    fn style(&self, template: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style.progress_chars("#>-"));
        }
    }
}

/// Lets a moment pass between two looks at how far something is.
#[expect(clippy::disallowed_methods, reason = "between two looks")]
pub(super) fn pause() {
    std::thread::sleep(INTERVAL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nobody_looks_nothing_is_drawn() {
        let meter = Meter::begin(false);
        meter.tell("copying".into());
        meter.show(7, 5, "copied".into());
        meter.end();
        assert!(!meter.is_shown() && meter.0.is_finished());
        assert_eq!((meter.0.position(), meter.0.length()), (5, Some(5)));
    }
}
