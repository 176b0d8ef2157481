//! The canonical text of floats: the fewest digits that read back, laid out as PostgreSQL does:
//! `0.0001`, `1e-05`, `1e+20`, `NaN`, `Infinity`. Pure; for every database that hands out floats
//! in binary.

use std::io::Write as _;

/// Appends a single.
pub fn push_single(value: f32, out: &mut Vec<u8>) {
    match value.is_finite() {
        true => Decimal::of_single(value).push(6, out),
        false => push_other(f64::from(value), out),
    }
}

/// Appends a double.
pub fn push_double(value: f64, out: &mut Vec<u8>) {
    match value.is_finite() {
        true => Decimal::of_double(value).push(15, out),
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

/// The shortest decimal number that reads back as a float. Nothing is allocated: most floats of a
/// table pass through here.
pub struct Decimal {
    negative: bool,
    digits: [u8; DIGITS_MAX],
    count: usize,
    /// Of ten, for a point after the first digit.
    exponent: i32,
}

/// The most that a double needs.
const DIGITS_MAX: usize = 17;

impl Decimal {
    /// The decimal of a finite single.
    #[must_use]
    pub fn of_single(value: f32) -> Decimal {
        let mut decimal = Decimal::read(format_args!("{value:e}"));
        // Six digits are never ambiguous.
        if decimal.count > 6 {
            decimal.settle_tie(f64::from(value), |other| other as f32 == value);
        }
        decimal
    }

    /// The decimal of a finite double.
    #[must_use]
    pub fn of_double(value: f64) -> Decimal {
        let mut decimal = Decimal::read(format_args!("{value:e}"));
        // Fifteen digits are never ambiguous.
        if decimal.count > 15 {
            decimal.settle_tie(value, |other| other == value);
        }
        decimal
    }

    /// Reads Rust's `-1.5e-7`.
    fn read(scientific: std::fmt::Arguments<'_>) -> Decimal {
        // The longest, a double with 17 digits and sign, has 24 bytes.
        let mut buffer = [0u8; 32];
        let mut free = &mut buffer[..];
        let _ = free.write_fmt(scientific);
        let used = 32 - free.len();
        let mut decimal =
            Decimal { negative: false, digits: [b'0'; DIGITS_MAX], count: 0, exponent: 0 };
        let (mut in_exponent, mut minus) = (false, false);
        for &byte in &buffer[..used] {
            match byte {
                b'-' if in_exponent => minus = true,
                b'-' => decimal.negative = true,
                b'e' => in_exponent = true,
                b'0'..=b'9' if in_exponent => {
                    decimal.exponent = decimal.exponent * 10 + i32::from(byte - b'0');
                }
                b'0'..=b'9' if decimal.count < DIGITS_MAX => {
                    decimal.digits[decimal.count] = byte;
                    decimal.count += 1;
                }
                _ => {}
            }
        }
        if minus {
            decimal.exponent = -decimal.exponent;
        }
        decimal
    }

    /// Two shortest decimals may be equally near. Rust takes the greater one, databases the even
    /// one; a number that reads back and differs in its text would look like a difference.
    fn settle_tie(&mut self, value: f64, is_same: impl Fn(f64) -> bool) {
        let last = self.count - 1;
        if self.digits[last].is_multiple_of(2) || !self.is_tie(value) {
            return;
        }
        // The greater of the two was taken, so the lesser one is even.
        let mut lesser = Decimal { digits: self.digits, ..*self };
        lesser.digits[last] -= 1;
        let mut text = Vec::new();
        lesser.push(0, &mut text);
        let parsed = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
        if parsed.is_some_and(is_same) {
            *self = lesser;
        }
    }

    /// Whether the exact value has one digit more than these, which then is a five.
    fn is_tie(&self, value: f64) -> bool {
        let bits = value.abs().to_bits();
        let (biased, fraction) = ((bits >> 52) as i32, bits & ((1 << 52) - 1));
        let mantissa = if biased == 0 { fraction } else { fraction | 1 << 52 };
        // The value is an odd number times two to this power.
        let power = biased.max(1) - 1075 + mantissa.trailing_zeros() as i32;
        if power < 0 {
            // As many digits follow the point as bits do.
            return -power == self.count as i32 - self.exponent;
        }
        let exact = format!("{:.40e}", value.abs());
        let beyond = exact.bytes().filter(u8::is_ascii_digit).skip(self.count).take(20);
        beyond.eq(std::iter::once(b'5').chain(std::iter::repeat_n(b'0', 19)))
    }

    /// Appends it plainly if its exponent is small, else as `1.5e+20`.
    fn push(&self, plain_digits: i32, out: &mut Vec<u8>) {
        if self.is_plain(-4, plain_digits) {
            return self.push_plain(out);
        }
        self.push_mantissa(out);
        let sign = if self.exponent < 0 { '-' } else { '+' };
        let _ = write!(out, "e{sign}{:02}", self.exponent.abs());
    }

    /// Whether the exponent is at least the one and below the other.
    #[must_use]
    pub fn is_plain(&self, least: i32, beyond: i32) -> bool {
        (least..beyond).contains(&self.exponent)
    }

    /// The exponent of ten that belongs to the mantissa.
    #[must_use]
    pub fn exponent(&self) -> i32 {
        self.exponent
    }

    /// Appends `-1.25`, the number without its exponent.
    pub fn push_mantissa(&self, out: &mut Vec<u8>) {
        Decimal { digits: self.digits, exponent: 0, ..*self }.push_plain(out);
    }

    /// Appends the number without an exponent: `12.5`.
    pub fn push_plain(&self, out: &mut Vec<u8>) {
        let digits = &self.digits[..self.count];
        if self.negative {
            out.push(b'-');
        }
        if self.exponent < 0 {
            out.extend_from_slice(b"0.");
            out.extend(std::iter::repeat_n(b'0', self.exponent.unsigned_abs() as usize - 1));
            out.extend_from_slice(digits);
            return;
        }
        let whole = self.exponent as usize + 1;
        out.extend_from_slice(&digits[..whole.min(self.count)]);
        out.extend(std::iter::repeat_n(b'0', whole.saturating_sub(self.count)));
        if self.count > whole {
            out.push(b'.');
            out.extend_from_slice(&digits[whole..]);
        }
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
        // Exactly between two texts of sixteen digits.
        assert_eq!(double(618_221_224_675_161.0 / 8.0), "77277653084395.12");
        assert_eq!(double(-618_221_224_675_163.0 / 8.0), "-77277653084395.38");
        assert_eq!(single(8_388_608.5), "8.388608e+06");
        assert_eq!(single(0.500_000_06), "0.50000006");
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
