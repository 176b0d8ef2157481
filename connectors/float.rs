//! The canonical text of floats: the fewest digits that read back, laid out as PostgreSQL does:
//! `0.0001`, `1e-05`, `1e+20`, `NaN`, `Infinity`. Pure; for every database that hands out floats
//! in binary.

use std::io::Write as _;

/// Appends a single.
pub fn push_single(value: f32, out: &mut Vec<u8>) {
    match value.is_finite() {
        true => push_finite(format_args!("{value:e}"), 6, out),
        false => push_other(f64::from(value), out),
    }
}

/// Appends a double.
pub fn push_double(value: f64, out: &mut Vec<u8>) {
    match value.is_finite() {
        true => push_finite(format_args!("{value:e}"), 15, out),
        false => push_other(value, out),
    }
}

fn push_other(value: f64, out: &mut Vec<u8>) {
    let text: &[u8] = match (value.is_nan(), value > 0.0) {
        (true, _) => b"NaN",
        (false, true) => b"Infinity",
        (false, false) => b"-Infinity",
    };
    out.extend_from_slice(text);
}

/// Rearranges Rust's `1.5e-7`. Nothing is allocated: most floats of a table pass through here.
fn push_finite(scientific: std::fmt::Arguments<'_>, plain_digits: i32, out: &mut Vec<u8>) {
    let mut buffer = [0u8; 32];
    let mut free = &mut buffer[..];
    // The longest text, a double with 17 digits and sign, has 24 bytes.
    let _ = free.write_fmt(scientific);
    let left = free.len();
    let text = &buffer[..32 - left];
    let at = text.iter().position(|&byte| byte == b'e').unwrap_or(text.len());
    let (mantissa, exponent) = (&text[..at], text.get(at + 1..).unwrap_or_default());
    let exponent: i32 =
        std::str::from_utf8(exponent).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0);
    if exponent < -4 || exponent >= plain_digits {
        out.extend_from_slice(mantissa);
        let _ = write!(out, "e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
        return;
    }
    push_plain(mantissa, exponent, out);
}

/// Appends `1.25` with the exponent 1 as `12.5`.
fn push_plain(mantissa: &[u8], exponent: i32, out: &mut Vec<u8>) {
    let unsigned = mantissa.strip_prefix(b"-").unwrap_or(mantissa);
    if unsigned.len() < mantissa.len() {
        out.push(b'-');
    }
    let digits = || unsigned.iter().copied().filter(|&byte| byte != b'.');
    let count = digits().count();
    if exponent < 0 {
        out.extend_from_slice(b"0.");
        out.extend(std::iter::repeat_n(b'0', exponent.unsigned_abs() as usize - 1));
        out.extend(digits());
        return;
    }
    let whole = exponent as usize + 1;
    out.extend(digits().take(whole));
    out.extend(std::iter::repeat_n(b'0', whole.saturating_sub(count)));
    if count > whole {
        out.push(b'.');
        out.extend(digits().skip(whole));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn double(value: f64) -> String {
        let mut out = Vec::new();
        push_double(value, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn single(value: f32) -> String {
        let mut out = Vec::new();
        push_single(value, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn floats_are_laid_out_as_postgresql_does() {
        for text in [
            "0",
            "-0",
            "1",
            "-1.5",
            "0.1",
            "0.0001",
            "0.00012",
            "1e-05",
            "1.25e-07",
            "1e+15",
            "100000000000000",
            "123456.789",
            "5e-324",
            "-1.7976931348623157e+308",
        ] {
            assert_eq!(double(text.parse().unwrap()), text);
        }
        for text in ["0.1", "1e+06", "999999", "1.234567e+06", "1e-45", "3.4028235e+38", "-0"] {
            assert_eq!(single(text.parse().unwrap()), text);
        }
        assert_eq!(double(1e20), "1e+20");
        assert_eq!(double(f64::NAN), "NaN");
        assert_eq!(single(f32::NEG_INFINITY), "-Infinity");
    }

    proptest! {
        #[test]
        fn every_float_reads_back(bits: u64) {
            let value = f64::from_bits(bits);
            if value.is_finite() {
                prop_assert_eq!(double(value).parse::<f64>().unwrap().to_bits(), bits);
            }
            let value = f32::from_bits(bits as u32);
            if value.is_finite() {
                prop_assert_eq!(single(value).parse::<f32>().unwrap().to_bits(), bits as u32);
            }
        }
    }
}
