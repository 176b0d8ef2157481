//! Rows as parameters of a prepared statement, many to one command (`COM_STMT_BULK_EXECUTE`, which only
//! MariaDB has). Pure. `target/write.rs` sends them.
//!
//! Surprise: such a command says once of which type each column's values are, and the driver takes
//! the first row's word for it. A value of another type would be read as something else, without
//! an error, so a row with one waits for the next command.

use std::mem::{Discriminant, discriminant};

use mysql_async::{Params, Value};

use super::spelling::Spelling;
use crate::calendar::{Civil, utc_text};
use crate::change::Timestamp;
use crate::hex;

/// The most that a parameter takes besides its own bytes.
const PARAMETER_BYTES: usize = 10;

/// The rows of one command.
#[derive(Debug, Default)]
pub struct Command {
    rows: Vec<Params>,
    kinds: Vec<Kind>,
    bytes: usize,
}

/// Of which type the values of a column are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    /// There is none but NULL.
    #[default]
    Unknown,
    /// Integers that mean the same with a sign and without.
    Natural,
    /// Integers of which some are negative.
    Signed,
    /// Integers of which some are too large to have a sign.
    Unsigned,
    /// What the driver calls it.
    Other(Discriminant<Value>),
}

impl Command {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows.
    pub fn into_rows(self) -> Vec<Params> {
        self.rows
    }

    /// Adds a row if it goes with those that are there; otherwise gives it back. The first one
    /// always does, others within so many bytes.
    ///
    /// # Errors
    /// The row.
    pub fn push(&mut self, row: Vec<Value>, bytes_max: usize) -> Result<(), Vec<Value>> {
        self.kinds.resize(row.len(), Kind::Unknown);
        let bytes = self.bytes + size(&row);
        let goes = |(kind, value): (&Kind, &Value)| kind.with(value).is_some();
        let is_too_much = !self.rows.is_empty() && bytes > bytes_max;
        if is_too_much || !self.kinds.iter().zip(&row).all(goes) {
            return Err(row);
        }
        for (kind, value) in self.kinds.iter_mut().zip(&row) {
            *kind = kind.with(value).unwrap_or(*kind);
        }
        self.bytes = bytes;
        self.rows.push(Params::Positional(row));
        Ok(())
    }
}

impl Kind {
    /// Of which type they are with another value; `None` if there is no such type.
    fn with(self, value: &Value) -> Option<Kind> {
        let other = match value {
            Value::NULL => return Some(self),
            Value::Int(0..) => Kind::Natural,
            Value::Int(_) => Kind::Signed,
            Value::UInt(_) => Kind::Unsigned,
            other => Kind::Other(discriminant(other)),
        };
        match (self, other) {
            (Kind::Unknown, kind) | (kind @ (Kind::Signed | Kind::Unsigned), Kind::Natural) => {
                Some(kind)
            }
            (Kind::Natural, kind @ (Kind::Signed | Kind::Unsigned)) => Some(kind),
            (kind, other) => (kind == other).then_some(kind),
        }
    }
}

/// The most bytes that a row takes.
pub fn size(row: &[Value]) -> usize {
    let of_one = |value: &Value| match value {
        Value::Bytes(bytes) => bytes.len() + PARAMETER_BYTES,
        _ => PARAMETER_BYTES,
    };
    row.iter().map(of_one).sum()
}

/// A row of parameters.
impl Spelling for Vec<Value> {
    fn null(&mut self) {
        self.push(Value::NULL);
    }

    fn number(&mut self, text: &str) {
        Spelling::bytes(self, text.as_bytes());
    }

    fn integer(&mut self, text: &str) {
        let signed = text.parse().map(Value::Int);
        let number = signed.or_else(|_| text.parse().map(Value::UInt));
        self.push(number.unwrap_or_else(|_| Value::Bytes(text.into())));
    }

    fn double(&mut self, number: f64, _: &str) {
        self.push(Value::Double(number));
    }

    fn single(&mut self, number: f64) {
        self.push(Value::Double(number));
    }

    fn time(&mut self, text: &str) {
        Spelling::bytes(self, text.as_bytes());
    }

    fn instant(&mut self, instant: Timestamp) {
        self.push(date(instant).unwrap_or_else(|| Value::Bytes(utc_text(instant).into())));
    }

    fn text(&mut self, text: &str) {
        Spelling::bytes(self, text.as_bytes());
    }

    fn hexadecimal(&mut self, digits: &str) {
        let mut bytes = Vec::with_capacity(digits.len() / 2);
        // Whoever calls this has looked at the digits.
        let _ = hex::push_bytes(digits.as_bytes(), &mut bytes);
        self.push(Value::Bytes(bytes));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.push(Value::Bytes(bytes.to_vec()));
    }

    fn bits(&mut self, number: u64) {
        self.push(Value::UInt(number));
    }

    fn next(&mut self) {}
}

/// `None` for years that the protocol does not have.
fn date(instant: Timestamp) -> Option<Value> {
    let Civil { date: (year, month, day), time: (hour, minute, second), micros } =
        Civil::of(instant);
    let year = u16::try_from(year).ok()?;
    let [month, day, hour, minute, second] = [month, day, hour, minute, second].map(|n| n as u8);
    Some(Value::Date(year, month, day, hour, minute, second, micros as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many rows of one column go into each command.
    fn commands(values: &[Value], bytes_max: usize) -> Vec<usize> {
        let (mut commands, mut command) = (Vec::new(), Command::default());
        for value in values {
            if let Err(row) = command.push(vec![value.clone()], bytes_max) {
                commands.push(std::mem::take(&mut command).len());
                command.push(row, bytes_max).unwrap();
            }
        }
        commands.push(command.len());
        commands
    }

    #[test]
    fn a_command_has_values_of_one_type() {
        use Value::{Bytes, Double, Int, NULL, UInt};
        let bytes = || Bytes(Vec::new());
        let natural = [NULL, Int(1), UInt(u64::MAX), NULL, Int(i64::MAX), Int(-1), Int(1), UInt(1)];
        assert_eq!(commands(&natural, 1000), [5, 2, 1]);
        assert_eq!(commands(&[Int(1), Int(-1), NULL, Int(0)], 1000), [4]);
        assert_eq!(commands(&[bytes(), NULL, Int(1), Double(1.0), bytes()], 1000), [2, 1, 1, 1]);
        assert_eq!(commands(&[NULL, NULL, Double(1.0), Double(0.0)], 1000), [4]);
    }

    #[test]
    fn a_command_is_bounded_but_has_a_row() {
        let row = Value::Bytes(vec![0; 90]);
        assert_eq!(commands(&vec![row.clone(); 5], 200), [2, 2, 1]);
        assert_eq!(commands(&[row.clone(), row], 10), [1, 1]);
    }

    #[test]
    fn integers_keep_their_value_and_instants_their_digits() {
        let mut row = Vec::new();
        for text in ["-9223372036854775808", "18446744073709551615", "99999999999999999999"] {
            row.integer(text);
        }
        row.instant(Timestamp(951_782_400_000_001));
        row.instant(Timestamp(i64::MIN));
        let expected = [
            Value::Int(i64::MIN),
            Value::UInt(u64::MAX),
            Value::Bytes(b"99999999999999999999".to_vec()),
            Value::Date(2000, 2, 29, 0, 0, 0, 1),
        ];
        assert_eq!(row[..4], expected);
        assert!(matches!(row[4], Value::Bytes(_)));
    }
}
