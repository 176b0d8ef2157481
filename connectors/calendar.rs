//! Days and instants as dates of the Gregorian calendar, for every database.

use crate::change::Timestamp;

/// An instant in UTC, in its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    /// Year, month and day; the year before 1 is 0.
    pub date: (i64, i64, i64),
    /// Hour, minute and second.
    pub time: (i64, i64, i64),
    /// Millionths of a second.
    pub micros: i64,
}

impl Civil {
    /// Takes an instant apart.
    #[must_use]
    pub fn of(timestamp: Timestamp) -> Civil {
        const DAY_US: i64 = 86_400_000_000;
        let (day, time_us) = (timestamp.0.div_euclid(DAY_US), timestamp.0.rem_euclid(DAY_US));
        let (seconds, micros) = (time_us / 1_000_000, time_us % 1_000_000);
        let time = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        Civil { date: from_days(day), time, micros }
    }
}

/// `YYYY-MM-DD HH:MM:SS.ffffff`, UTC.
#[must_use]
pub fn utc_text(timestamp: Timestamp) -> String {
    let Civil { date: (year, month, day), time: (hour, minute, second), micros } =
        Civil::of(timestamp);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06}")
}

/// Year, month and day of a number of days since 1970-01-01. Counts in eras of 400 years that begin
/// on 1 March, so that the leap day is a year's last.
#[must_use]
pub fn from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// The number of days from 1970-01-01 to a day; `None` if the calendar has no such day.
#[must_use]
pub fn to_days(year: i64, month: i64, day: i64) -> Option<i64> {
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let years = year - i64::from(month <= 2);
    let (era, year_of_era) = (years.div_euclid(400), years.rem_euclid(400));
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    let day_of_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + day_of_year;
    has_day(year, month, day).then_some(era * 146_097 + day_of_era - 719_468)
}

/// Whether the calendar has this day.
#[must_use]
pub fn has_day(year: i64, month: i64, day: i64) -> bool {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return false,
    };
    (1..=length).contains(&day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_one_number_and_other_days_have_none() {
        for number in (-3_000_000..3_000_000).step_by(37).chain(-800_000..-700_000) {
            let (year, month, day) = from_days(number);
            assert_eq!(to_days(year, month, day), Some(number));
        }
        for (year, month, day) in
            [(2023, 2, 29), (1900, 2, 29), (2024, 4, 31), (2024, 13, 1), (2024, 0, 1), (2024, 1, 0)]
        {
            assert_eq!(to_days(year, month, day), None);
        }
    }

    #[test]
    fn a_timestamp_is_written_as_utc_with_six_digits() {
        assert_eq!(utc_text(Timestamp(0)), "1970-01-01 00:00:00.000000");
        assert_eq!(utc_text(Timestamp(-1)), "1969-12-31 23:59:59.999999");
        assert_eq!(utc_text(Timestamp(951_782_400_000_001)), "2000-02-29 00:00:00.000001");
        assert_eq!(utc_text(Timestamp(1_775_051_999_500_000)), "2026-04-01 13:59:59.500000");
    }
}
