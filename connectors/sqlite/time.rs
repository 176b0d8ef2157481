//! Microseconds as people and SQLite's date functions read them.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::change::Timestamp;

/// `YYYY-MM-DD HH:MM:SS.ffffff`, UTC.
pub(super) fn utc_text(timestamp: Timestamp) -> String {
    const DAY: i64 = 86_400_000_000;
    let (days, micros) = (timestamp.0.div_euclid(DAY), timestamp.0.rem_euclid(DAY));
    let (year, month, day) = civil(days);
    let seconds = micros / 1_000_000;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{:06}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        micros % 1_000_000
    )
}

/// This machine's time; only ever shown to people.
pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(since.as_micros() as i64)
}

/// Year, month and day of a number of days since 1970-01-01, in the Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    // Years are counted from March, so that the leap day is the last day of a year; an era of
    // 400 years always has 146,097 days.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_written_as_utc_with_six_digits() {
        assert_eq!(utc_text(Timestamp(0)), "1970-01-01 00:00:00.000000");
        assert_eq!(utc_text(Timestamp(-1)), "1969-12-31 23:59:59.999999");
        assert_eq!(utc_text(Timestamp(951_782_400_000_001)), "2000-02-29 00:00:00.000001");
        assert_eq!(utc_text(Timestamp(1_775_051_999_500_000)), "2026-04-01 13:59:59.500000");
    }
}
