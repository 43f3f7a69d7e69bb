//! Seconds since 1970 to a Gregorian date and back, without leap seconds or time zones.
//!
//! The day arithmetic is Howard Hinnant's (`days_from_civil`): years begin in March, so that the
//! leap day is the last of its year.

#![forbid(unsafe_code)]

/// The last second that a [`Calendar`] is made for: 2399-12-31 23:59:59.
pub const SECONDS_MAX: u64 = 13_569_465_599;

const SECONDS_PER_DAY: u64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: u64 = 719_468;
const DAYS_PER_ERA: u64 = 146_097;

/// A date and time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calendar {
    /// 0 to 59.
    pub second: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 1 (Sunday) to 7.
    pub weekday: u8,
    /// 1 to 31.
    pub day: u8,
    /// 1 to 12.
    pub month: u8,
    /// 1970 to 2399.
    pub year: u16,
}

impl Calendar {
    /// The date `seconds` after the start of 1970; later than [`SECONDS_MAX`] counts as that.
    #[must_use]
    pub fn from_seconds(seconds: u64) -> Self {
        let seconds = seconds.min(SECONDS_MAX);
        let (days, of_day) = (seconds / SECONDS_PER_DAY, seconds % SECONDS_PER_DAY);
        let from_march = days + DAYS_TO_1970;
        let (era, of_era) = (from_march / DAYS_PER_ERA, from_march % DAYS_PER_ERA);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        Self {
            second: (of_day % 60) as u8,
            minute: (of_day / 60 % 60) as u8,
            hour: (of_day / 3_600) as u8,
            weekday: ((days + 4) % 7 + 1) as u8,
            day: day as u8,
            month: month as u8,
            year: year as u16,
        }
    }

    /// Seconds since 1970. Fields out of range are brought to the nearest bound; the weekday does
    /// not count; the 31st of a shorter month runs into the next, as on the chip.
    #[must_use]
    pub fn to_seconds(self) -> u64 {
        let month = u64::from(self.month.clamp(1, 12));
        let day = u64::from(self.day.clamp(1, 31));
        let year = u64::from(self.year.clamp(1970, 2399)) - u64::from(month <= 2);
        let (era, year_of_era) = (year / 400, year % 400);
        let march_month = if month > 2 { month - 3 } else { month + 9 };
        let of_year = (153 * march_month + 2) / 5 + day - 1;
        let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
        let days = era * DAYS_PER_ERA + of_era - DAYS_TO_1970;
        days * SECONDS_PER_DAY
            + u64::from(self.hour.min(23)) * 3_600
            + u64::from(self.minute.min(59)) * 60
            + u64::from(self.second.min(59))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates() {
        let at = |s| {
            let c = Calendar::from_seconds(s);
            (
                c.year, c.month, c.day, c.hour, c.minute, c.second, c.weekday,
            )
        };
        assert_eq!(at(0), (1970, 1, 1, 0, 0, 0, 5));
        assert_eq!(at(951_782_400), (2000, 2, 29, 0, 0, 0, 3));
        assert_eq!(at(1_760_000_000), (2025, 10, 9, 8, 53, 20, 5));
        assert_eq!(at(4_107_542_400), (2100, 3, 1, 0, 0, 0, 2));
        assert_eq!(at(SECONDS_MAX), (2399, 12, 31, 23, 59, 59, 6));
        assert_eq!(at(u64::MAX), at(SECONDS_MAX));
    }

    proptest! {
        #[test]
        fn there_and_back(seconds in 0..=SECONDS_MAX) {
            prop_assert_eq!(Calendar::from_seconds(seconds).to_seconds(), seconds);
        }
    }
}
