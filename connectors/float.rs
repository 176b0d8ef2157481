//! The canonical text of floats, which is PostgreSQL's: the fewest digits that read back, laid out as
//! `0.0001`, `1e-05`, `1e+20`, `NaN`, `Infinity`. Pure; for every database that hands out floats
//! in binary.
//!
//! Surprise: a decimal that lies exactly between two floats reads back as the even one. PostgreSQL
//! does not rely on that, and takes a digit more.

use std::io::Write as _;

/// Appends a single.
pub fn push_single(value: f32, out: &mut Vec<u8>) {
    let size = value.abs();
    if size == 0.0 || (1e-4..1e6).contains(&size) {
        push_plain(zmij::Buffer::new().format_finite(value), out);
    } else if value.is_finite() {
        let parts = Parts::of_single(value);
        let more = |digits| format!("{value:.digits$e}");
        parts.inside(Decimal::of_single(value), more).push_scientific(out);
    } else {
        push_other(f64::from(value), out);
    }
}

/// Appends a double.
pub fn push_double(value: f64, out: &mut Vec<u8>) {
    let size = value.abs();
    if size == 0.0 || (1e-4..1e15).contains(&size) {
        push_plain(zmij::Buffer::new().format_finite(value), out);
    } else if value.is_finite() {
        let parts = Parts::of_double(value);
        let more = |digits| format!("{value:.digits$e}");
        parts.inside(Decimal::of_double(value), more).push_scientific(out);
    } else {
        push_other(value, out);
    }
}

/// Numbers of this size are written plainly by all, but some mark what looks like an integer.
fn push_plain(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(text.strip_suffix(".0").unwrap_or(text).as_bytes());
}

fn push_other(value: f64, out: &mut Vec<u8>) {
    let text: &[u8] = match (value.is_nan(), value > 0.0) {
        (true, _) => b"NaN",
        (false, true) => b"Infinity",
        (false, false) => b"-Infinity",
    };
    out.extend_from_slice(text);
}

/// The size of a float: `mantissa` times two to the power of `exponent`.
struct Parts {
    mantissa: u64,
    exponent: i32,
    /// The neighbour below is only half as far away as the one above.
    is_power: bool,
}

impl Parts {
    fn of_single(value: f32) -> Parts {
        Parts::read(value.to_bits().into(), 23, 8)
    }

    fn of_double(value: f64) -> Parts {
        Parts::read(value.to_bits(), 52, 11)
    }

    fn read(bits: u64, fraction_bits: u32, exponent_bits: u32) -> Parts {
        let fraction = bits & ((1 << fraction_bits) - 1);
        let exponent = (bits >> fraction_bits & ((1 << exponent_bits) - 1)) as i32;
        let unit = (1 << (exponent_bits - 1)) - 1 + fraction_bits as i32;
        match exponent {
            0 => Parts { mantissa: fraction, exponent: 1 - unit, is_power: false },
            _ => Parts {
                mantissa: fraction | 1 << fraction_bits,
                exponent: exponent - unit,
                is_power: fraction == 0,
            },
        }
    }

    /// This decimal, or the next longer one that is nearer to this float than to any other. `more`
    /// writes the float with so many digits after the first.
    fn inside(&self, mut decimal: Decimal, more: impl Fn(usize) -> String) -> Decimal {
        for digits in decimal.count..DIGITS_MAX {
            if !self.is_between(&decimal) {
                break;
            }
            decimal = Decimal::read(&more(digits));
        }
        decimal
    }

    /// Whether a decimal lies exactly between this float and one of its neighbours.
    fn is_between(&self, decimal: &Decimal) -> bool {
        // Five to a greater power is more than twice any mantissa. And where floats are not all
        // integers, what lies between two of them has more digits than a decimal here.
        const FIVES_MAX: u32 = 23;
        let Ok(tens) = u32::try_from(decimal.exponent + 1 - decimal.count as i32) else {
            return false;
        };
        if tens > FIVES_MAX {
            return false;
        }
        let digits = decimal.digits[..decimal.count].iter();
        let number = digits.fold(0, |number, digit| number * 10 + u128::from(digit - b'0'));
        let number = number * 5_u128.pow(tens);
        let zeros = number.trailing_zeros();
        let odd = (number >> zeros, tens as i32 + zeros as i32);
        let mantissa = u128::from(self.mantissa);
        let below = match self.is_power {
            true => (4 * mantissa - 1, self.exponent - 2),
            false => (2 * mantissa - 1, self.exponent - 1),
        };
        odd == below || odd == (2 * mantissa + 1, self.exponent - 1)
    }
}

/// The shortest decimal number that reads back as a float; of two that are equally near, the even
/// one. Nothing is allocated.
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
        Decimal::read(zmij::Buffer::new().format_finite(value))
    }

    /// The decimal of a finite double.
    #[must_use]
    pub fn of_double(value: f64) -> Decimal {
        Decimal::read(zmij::Buffer::new().format_finite(value))
    }

    /// Reads `-0.0015`, `150.0` or `1.5e+20`.
    fn read(text: &str) -> Decimal {
        let (negative, size) = match text.strip_prefix('-') {
            Some(size) => (true, size),
            None => (false, text),
        };
        let (mantissa, exponent) = size.split_once('e').unwrap_or((size, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = || whole.bytes().chain(fraction.bytes());
        let zeros = all().take_while(|&digit| digit == b'0').count();
        let first = whole.len() as i32 - 1 - zeros as i32;
        let exponent = first + exponent.parse().unwrap_or(0);
        let mut decimal = Decimal { negative, digits: [b'0'; DIGITS_MAX], count: 0, exponent };
        for (place, digit) in all().skip(zeros).take(DIGITS_MAX).enumerate() {
            decimal.digits[place] = digit;
            // Zeros at the end do not count.
            if digit != b'0' {
                decimal.count = place + 1;
            }
        }
        match decimal.count {
            0 => Decimal { count: 1, exponent: 0, ..decimal },
            _ => decimal,
        }
    }

    /// Appends `1.5e+20`.
    fn push_scientific(&self, out: &mut Vec<u8>) {
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
    use crate::testing::pushed;

    fn double(value: f64) -> String {
        pushed(|out| push_double(value, out))
    }

    fn single(value: f32) -> String {
        pushed(|out| push_single(value, out))
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
        // What would read back lies exactly between two floats.
        assert_eq!(double(-61_346_878_300_597_984.0), "-6.1346878300597984e+16");
        // Exactly between two texts of sixteen digits.
        assert_eq!(double(618_221_224_675_161.0 / 8.0), "77277653084395.12");
        assert_eq!(double(-618_221_224_675_163.0 / 8.0), "-77277653084395.38");
        assert_eq!(single(8_388_608.5), "8.388608e+06");
        assert_eq!(single(0.500_000_06), "0.50000006");
        assert_eq!(double(f64::NAN), "NaN");
        assert_eq!(single(f32::NEG_INFINITY), "-Infinity");
    }

    /// Rust's digits, and of two decimals that are equally near the even one; Rust takes the greater.
    fn by_rust(scientific: &str, exact: &str, reads_back: impl Fn(&str) -> bool) -> String {
        let (mantissa, exponent) = scientific.split_once('e').unwrap();
        let digits = |text: &str| text.bytes().filter(u8::is_ascii_digit).collect::<Vec<_>>();
        let exact = digits(exact.split_once('e').unwrap().0.trim_end_matches('0'));
        let (shortest, last) = (digits(mantissa), mantissa.as_bytes()[mantissa.len() - 1]);
        let is_tie = exact.len() == shortest.len() + 1 && exact.last() == Some(&b'5');
        let lesser =
            format!("{}{}e{exponent}", &mantissa[..mantissa.len() - 1], char::from(last - 1));
        match is_tie && last % 2 == 1 && reads_back(&lesser) {
            true => lesser,
            false => scientific.to_owned(),
        }
    }

    fn scientific(decimal: &Decimal) -> String {
        let mut out = Vec::new();
        decimal.push_mantissa(&mut out);
        format!("{}e{}", String::from_utf8(out).unwrap(), decimal.exponent())
    }

    fn check_double(value: f64) {
        if value.is_finite() {
            let by_rust = by_rust(&format!("{value:e}"), &format!("{value:.800e}"), |text| {
                text.parse() == Ok(value)
            });
            assert_eq!(scientific(&Decimal::of_double(value)), by_rust);
            assert_eq!(double(value).parse::<f64>().unwrap().to_bits(), value.to_bits());
        }
    }

    fn check_single(value: f32) {
        if value.is_finite() {
            let by_rust = by_rust(&format!("{value:e}"), &format!("{value:.800e}"), |text| {
                text.parse() == Ok(value)
            });
            assert_eq!(scientific(&Decimal::of_single(value)), by_rust);
            assert_eq!(single(value).parse::<f32>().unwrap().to_bits(), value.to_bits());
        }
    }

    /// Their neighbours below are nearer than those above.
    #[test]
    fn powers_of_two_have_the_digits_of_rust() {
        for power in -1074..1024 {
            check_double(2f64.powi(power));
            check_single(2f32.powi(power));
        }
    }

    #[test]
    fn powers_of_ten_are_laid_out_by_their_exponent() {
        for power in -30..30 {
            let text = format!("1e{power}");
            let (in_double, in_single) =
                (text.parse::<f64>().unwrap(), text.parse::<f32>().unwrap());
            for value in [in_double.next_down(), in_double, in_double.next_up()] {
                let plain = (1e-4..1e15).contains(&value);
                assert_eq!(!double(value).contains('e'), plain, "{value:e}");
                check_double(value);
            }
            for value in [in_single.next_down(), in_single, in_single.next_up()] {
                let plain = (1e-4..1e6).contains(&value);
                assert_eq!(!single(value).contains('e'), plain, "{value:e}");
                check_single(value);
            }
        }
    }

    proptest! {
        #[test]
        fn every_float_has_the_digits_of_rust(bits: u64) {
            check_double(f64::from_bits(bits));
            check_single(f32::from_bits(bits as u32));
        }

        /// Few bits behind the point, as a tie needs.
        #[test]
        fn ties_go_to_the_even_one(bits: u64, width in 1u32..64, power in -80i32..80) {
            let number = bits >> (64 - width);
            check_double(number as f64 * 2f64.powi(power));
            check_single(number as f32 * 2f32.powi(power));
        }
    }
}
