//! Host times as people write them, and where they lie in a log.
//!
//! `host:15:02:52.218` is a time of day, UTC, as `log stat` prints them; `host:12.5s` is since the run began on that
//! side. Only the journal beside the log knows which guest time that was.

#![forbid(unsafe_code)]

use super::RunReader;
use super::clock::GuestClock;
use crate::place::{Place, PlaceError, time_us};
use crate::source::WalkError;
use std::path::Path;
use std::str::FromStr;

const US_PER_S: u64 = 1_000_000;
const US_PER_DAY: u64 = 86_400 * US_PER_S;

/// A place in a log, or a host time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// A place.
    Place(Place),
    /// Host time, microseconds since the run began on that side.
    SinceBegin(u64),
    /// Host time, microseconds since midnight, UTC.
    TimeOfDay(u64),
}

impl FromStr for When {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let Some(host) = text.strip_prefix("host:") else {
            return text.parse().map(Self::Place);
        };
        let since = time_us(host).map(Self::SinceBegin);
        let when = since.or_else(|| time_of_day_us(host).map(Self::TimeOfDay));
        when.ok_or_else(|| PlaceError::of(text))
    }
}

/// Microseconds since midnight of `HH:MM:SS` with or without a fraction.
fn time_of_day_us(text: &str) -> Option<u64> {
    let (hours, rest) = text.split_once(':')?;
    let (minutes, seconds) = rest.split_once(':')?;
    let two = |text: &str, below: u64| {
        let digits = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u64>()
            .ok()
            .filter(|number| digits && *number < below)
    };
    let seconds_us = time_us(&format!("{seconds}s")).filter(|us| *us < 60 * US_PER_S)?;
    Some((two(hours, 24)? * 60 + two(minutes, 60)?) * 60 * US_PER_S + seconds_us)
}

impl When {
    /// The place that this is in the log in `dir`.
    ///
    /// # Errors
    /// When it is a host time, and there is no journal beside the log.
    pub fn place(self, dir: &Path) -> Result<Place, WalkError> {
        let Self::Place(place) = self else {
            let run = RunReader::open(dir).map_err(WalkError::Journal)?;
            let mut run = run.ok_or_else(|| WalkError::NoJournal(dir.to_owned()))?;
            let at_us = match self {
                Self::TimeOfDay(us) => {
                    (us + US_PER_DAY - run.report().wall_clock_us % US_PER_DAY) % US_PER_DAY
                }
                Self::SinceBegin(us) => us,
                Self::Place(_) => 0,
            };
            let mut clock = GuestClock::default();
            while let Some(entry) = run.next_entry().map_err(WalkError::Journal)? {
                // The last record that was seen before, or the first one.
                if entry.at_us <= at_us || !clock.runs() {
                    clock.see(&entry);
                }
            }
            return Ok(Place::TimeUs(clock.guest_time_us(at_us)));
        };
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::tests as journal_sample;

    #[test]
    fn host_times_are_read_or_refused() {
        let read = |text: &str| text.parse::<When>().ok();
        assert_eq!(read("1200"), Some(When::Place(Place::Index(1_200))));
        assert_eq!(read("1.5s"), Some(When::Place(Place::TimeUs(1_500_000))));
        assert_eq!(read("host:1.5s"), Some(When::SinceBegin(1_500_000)));
        let day = 3_723_500_000;
        assert_eq!(read("host:01:02:03.5"), Some(When::TimeOfDay(day)));
        for wrong in [
            "host:",
            "host:24:00:00",
            "host:1:2",
            "host:01:60:00",
            "host:01:02:60",
            "host:-1s",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_host_time_is_where_the_journal_says() {
        let dir = tempfile::tempdir().unwrap();
        let place = |text: &str| text.parse::<When>().unwrap().place(dir.path());
        assert!(matches!(place("host:1s"), Err(WalkError::NoJournal(_))));
        journal_sample::write(dir.path(), "b.2");
        // Records 0 to 2 were seen by 0.300007 s, at 0.3 s of guest time.
        assert_eq!(place("host:0.4s").unwrap(), Place::TimeUs(399_993));
        // That host's clock was 01:00:00 at the run's beginning.
        assert_eq!(place("host:01:00:00.4").unwrap(), Place::TimeUs(399_993));
        assert_eq!(place("7").unwrap(), Place::Index(7));
    }
}
