//! Answers to simple queries: rows whose cells are text. Pure; the same from a session with the driver
//! and from one without.

use std::str::FromStr;

use tokio_postgres::SimpleQueryMessage;

use super::frames::broken_protocol;
use crate::error::Result;

/// A row; NULL is `None`.
pub type Row = Vec<Option<String>>;
/// What a query answers.
pub type Rows = Vec<Row>;

/// What the driver has got.
#[must_use]
pub fn of_driver(messages: &[SimpleQueryMessage]) -> Rows {
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
        }
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

/// A cell that is not NULL.
///
/// # Errors
/// `protocol` if there is none.
pub fn text(row: &[Option<String>], column: usize) -> Result<&str> {
    let cell = row.get(column).and_then(Option::as_deref);
    cell.ok_or_else(|| broken_protocol(format_args!("an answer has no column {column}")))
}

/// A cell that is a number, or something else that can be read.
///
/// # Errors
/// `protocol` if it is not.
pub fn parsed<T: FromStr>(row: &[Option<String>], column: usize) -> Result<T> {
    let wrong =
        |_| broken_protocol(format_args!("column {column} of an answer is of another kind"));
    text(row, column)?.parse().map_err(wrong)
}

/// A cell that is a truth value.
///
/// # Errors
/// `protocol` if it is NULL.
pub fn yes(row: &[Option<String>], column: usize) -> Result<bool> {
    Ok(text(row, column)? == "t")
}

/// The only row of an answer that has one.
///
/// # Errors
/// `protocol` if there is none.
pub fn only(rows: &Rows) -> Result<&Row> {
    rows.first().ok_or_else(|| broken_protocol("an answer has no row"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_what_it_should_be_or_an_error() {
        let rows = vec![vec![Some("7".to_owned()), None, Some("t".to_owned())]];
        let row = only(&rows).unwrap();
        assert_eq!((text(row, 0), parsed::<u32>(row, 0)), (Ok("7"), Ok(7)));
        assert_eq!((yes(row, 2), yes(row, 0)), (Ok(true), Ok(false)));
        for column in [1, 3] {
            assert!(text(row, column).is_err() && parsed::<String>(row, column).is_err());
        }
        assert!(parsed::<u32>(row, 2).is_err() && only(&Vec::new()).is_err());
    }
}
