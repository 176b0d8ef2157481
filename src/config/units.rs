//! Sizes and durations as people write them. Used by `config.rs` only.
//! Surprise: a number without a unit is refused, because half of its readers guess wrong.

use std::time::Duration;

/// Reads `8MiB`, `512 KiB`, `2GB`; in bytes.
pub(super) fn parse_bytes(text: &str) -> Result<usize, String> {
    let scale = |unit: &str| match unit {
        "B" => Some(1),
        "kB" | "KB" => Some(1000),
        "MB" => Some(1_000_000),
        "GB" => Some(1_000_000_000),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let bytes = split(text).and_then(|(number, unit)| number.checked_mul(scale(unit)?));
    bytes
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| "a whole number and one of B, KiB, MiB, GiB, for instance \"8MiB\"".into())
}

/// Reads `200ms`, `5s`, `1m`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let scale = |unit: &str| match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        _ => None,
    };
    split(text)
        .and_then(|(number, unit)| number.checked_mul(scale(unit)?))
        .map(Duration::from_millis)
        .ok_or_else(|| "a whole number and one of ms, s, m, for instance \"200ms\"".into())
}

/// The number and the unit after it.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_number_and_a_unit() {
        let bytes = |text| parse_bytes(text).ok();
        assert_eq!(bytes("8MiB"), Some(8 << 20));
        assert_eq!(bytes("512 KiB"), Some(512 << 10));
        assert_eq!(bytes("1GB"), Some(1_000_000_000));
        assert_eq!(bytes("7B"), Some(7));
        for wrong in ["", "8", "MiB", "-1B", "1.5MiB", "8 mib", "8MiBB", "99999999999GiB"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn durations_have_a_number_and_a_unit() {
        let duration = |text| parse_duration(text).ok();
        assert_eq!(duration("200ms"), Some(Duration::from_millis(200)));
        assert_eq!(duration("5 s"), Some(Duration::from_secs(5)));
        assert_eq!(duration("1m"), Some(Duration::from_secs(60)));
        for wrong in ["", "200", "ms", "-1s", "0.5s", "1h", "99999999999999999999s"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }
}
