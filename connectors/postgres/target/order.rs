//! In which order rows go to the server: by their keys. Rows whose keys are near each other are
//! near each other in the index and often in the table, and a server that visits them one after
//! the other finds most of what it needs at hand. Pure; used by `stage.rs`.
//!
//! Surprise: it is only about speed, so it need not be exact, and looks at the first bytes only.

use crate::change::Key;
use crate::schema::{ColumnType, TableSchema};

/// The places of the rows with these keys in the order in which they are sent.
pub fn by_key<'k>(table: &TableSchema, keys: impl Iterator<Item = &'k Key>) -> Vec<usize> {
    let skipped = if begins_with_integer(table) { 0 } else { LENGTH_BYTES };
    let mut places: Vec<(u128, usize)> =
        keys.enumerate().map(|(place, key)| (beginning(key, skipped), place)).collect();
    places.sort_unstable();
    places.into_iter().map(|(_, place)| place).collect()
}

/// What stands before each value of a key. Of two integers the longer text is the greater one.
const LENGTH_BYTES: usize = 4;

fn begins_with_integer(table: &TableSchema) -> bool {
    let is_integer =
        |kind| matches!(kind, ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64);
    table.key_columns().next().is_some_and(|column| is_integer(column.column_type))
}

fn beginning(key: &Key, skipped: usize) -> u128 {
    let mut first = [0; 16];
    let bytes = key.as_bytes().get(skipped..).unwrap_or_default();
    let length = bytes.len().min(first.len());
    first[..length].copy_from_slice(&bytes[..length]);
    u128::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{key, table};

    fn check(key_type: &str, values: &[&str], expected: &[&str]) {
        let table = table("t", &[&format!("k {key_type}")]);
        let keys: Vec<Key> = values.iter().map(|value| key(&[value])).collect();
        let order = by_key(&table, keys.iter());
        assert_eq!(order.into_iter().map(|place| values[place]).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn integers_are_in_their_order() {
        check(
            "bigint",
            &["100", "9", "20", "1000000000000", "3"],
            &["3", "9", "20", "100", "1000000000000"],
        );
    }

    #[test]
    fn texts_are_in_the_order_of_their_bytes() {
        check("text", &["b", "abc", "", "ab", "B"], &["", "B", "ab", "abc", "b"]);
    }

    #[test]
    fn every_row_is_sent_once_even_if_keys_begin_alike() {
        let long = "x".repeat(40);
        let (a, b, c) = (long.clone() + "a", long.clone() + "b", long + "c");
        check("text", &[&c, &a, "y", &b], &[&c, &a, &b, "y"]);
    }
}
