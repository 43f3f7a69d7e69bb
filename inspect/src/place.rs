//! Where in a log: an index, a number of exits, or a guest time, as people write them.
//!
//! `1200` is a log index, `exit:1200` the first record at or after that synchronous exit, and a number
//! with a unit (`1.5s`, `300ms`, `20us`) the first at or after that guest time. Host times
//! are the journal's: `journal::when`.

#![forbid(unsafe_code)]

use logging_channel::record::Record;
use std::fmt;
use std::str::FromStr;

/// A place in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A log index.
    Index(u64),
    /// A number of synchronous exits.
    Exit(u64),
    /// Guest time in microseconds.
    TimeUs(u64),
}

impl Place {
    /// Whether `record` lies at this place or after it.
    #[must_use]
    pub const fn reached_by(&self, record: &Record) -> bool {
        match *self {
            Self::Index(index) => record.index.0 >= index,
            Self::Exit(exits) => record.point.exits >= exits,
            Self::TimeUs(us) => record.guest_time.as_micros() >= us,
        }
    }
}

/// Text that names no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no place in a log: give an index (1200), exit:N, or a guest time (1.5s, 300ms, 20us); \
     for a range also a host time (host:15:02:52.218, host:12.5s)"
)]
pub struct PlaceError(String);

impl PlaceError {
    pub(crate) fn of(text: &str) -> Self {
        Self(text.chars().take(64).collect())
    }
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let refuse = || PlaceError::of(text);
        if let Some(exits) = text.strip_prefix("exit:") {
            return exits.parse().map(Self::Exit).map_err(|_| refuse());
        }
        if let Ok(index) = text.parse() {
            return Ok(Self::Index(index));
        }
        time_us(text).map(Self::TimeUs).ok_or_else(refuse)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Exit(exits) => write!(f, "exit:{exits}"),
            Self::TimeUs(us) => write!(f, "{us}us"),
        }
    }
}

/// Microseconds of a decimal number with the unit `s`, `ms` or `us`; finer digits are cut off.
#[must_use]
pub fn time_us(text: &str) -> Option<u64> {
    let units = [("us", 1), ("ms", 1_000), ("s", 1_000_000u64)];
    let (number, unit) = units
        .into_iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 18 {
        return None;
    }
    let mut us = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    let mut weight = unit;
    for digit in fraction.bytes() {
        weight /= 10;
        us = us.checked_add(u64::from(digit - b'0') * weight)?;
    }
    Some(us)
}

/// A stretch of a log, from a place up to but not including another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Range {
    /// First place inside; the beginning when absent.
    pub from: Option<Place>,
    /// First place outside; the end when absent.
    pub to: Option<Place>,
}

impl Range {
    /// Whether `record` lies before the stretch.
    #[must_use]
    pub fn begins_after(&self, record: &Record) -> bool {
        self.from.is_some_and(|from| !from.reached_by(record))
    }

    /// Whether `record`, and with it everything later, lies behind the stretch.
    #[must_use]
    pub fn ends_before(&self, record: &Record) -> bool {
        self.to.is_some_and(|to| to.reached_by(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn places_are_read() {
        let read = |text: &str| text.parse::<Place>().ok();
        assert_eq!(read("12"), Some(Place::Index(12)));
        assert_eq!(read("exit:12"), Some(Place::Exit(12)));
        assert_eq!(read("1.5s"), Some(Place::TimeUs(1_500_000)));
        assert_eq!(read("300ms"), Some(Place::TimeUs(300_000)));
        assert_eq!(read("0.0015ms"), Some(Place::TimeUs(1)));
        assert_eq!(read("20us"), Some(Place::TimeUs(20)));
        for wrong in [
            "",
            "s",
            "1.5",
            "-1",
            "1m",
            ".5s",
            "1.5.5s",
            "exit:",
            "exit:1s",
            "99999999999999s",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_place_is_read_as_written(number in any::<u64>(), which in 0..3) {
            let place = match which {
                0 => Place::Index(number),
                1 => Place::Exit(number),
                _ => Place::TimeUs(number),
            };
            prop_assert_eq!(place.to_string().parse(), Ok(place));
        }

        #[test]
        fn any_text_has_an_answer(text in ".{0,40}") {
            let _ = text.parse::<Place>();
        }
    }
}
