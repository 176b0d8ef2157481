//! How a value is spelled for the server: as a literal of a statement, or as a field of the file that
//! `LOAD DATA` reads; `parameters.rs` has a third way. Pure. `target_values.rs` says what is spelled,
//! and calls this.
//!
//! Surprise: no literal depends on the session's `sql_mode`, which decides what a backslash means; in
//! a file it always is what the statement says.

use std::fmt::Write as _;

use super::quote;
use crate::calendar::utc_text;
use crate::change::Timestamp;
use crate::hex;

/// A place that values are spelled into.
pub trait Spelling {
    /// No value.
    fn null(&mut self);
    /// A number: digits, sign and point.
    fn number(&mut self, text: &str);
    /// A number: digits and sign.
    fn integer(&mut self, text: &str);
    /// A double: the number, and a text that reads as it.
    fn double(&mut self, number: f64, text: &str);
    /// A single, as the double that it is exactly.
    fn single(&mut self, number: f64);
    /// A date or a time.
    fn time(&mut self, text: &str);
    /// When a row was committed.
    fn instant(&mut self, instant: Timestamp);
    /// A text of any characters.
    fn text(&mut self, text: &str);
    /// Bytes, as pairs of hexadecimal digits.
    fn hexadecimal(&mut self, digits: &str);
    /// Bytes.
    fn bytes(&mut self, bytes: &[u8]);
    /// Binary digits, as the number that they are.
    fn bits(&mut self, number: u64);
    /// What stands between two values of a row.
    fn next(&mut self);
}

/// Literals of a statement.
impl Spelling for String {
    fn null(&mut self) {
        self.push_str("NULL");
    }

    fn number(&mut self, text: &str) {
        self.push_str(text);
    }

    fn integer(&mut self, text: &str) {
        self.push_str(text);
    }

    /// Without an exponent it would be read as a decimal.
    fn double(&mut self, number: f64, _: &str) {
        let _ = write!(self, "{number:e}");
    }

    fn single(&mut self, number: f64) {
        self.double(number, "");
    }

    fn time(&mut self, text: &str) {
        self.push('\'');
        self.push_str(text);
        self.push('\'');
    }

    fn instant(&mut self, instant: Timestamp) {
        self.time(&utc_text(instant));
    }

    fn text(&mut self, text: &str) {
        push_text(self, text);
    }

    fn hexadecimal(&mut self, digits: &str) {
        self.push_str("X'");
        self.push_str(digits);
        self.push('\'');
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.push_str(&quote::bytes(bytes));
    }

    fn bits(&mut self, number: u64) {
        let _ = write!(self, "{number}");
    }

    fn next(&mut self) {
        self.push_str(", ");
    }
}

/// Appends a text as a literal: in quotes where no `sql_mode` changes what it means, otherwise in
/// hexadecimal.
pub fn push_text(out: &mut String, text: &str) {
    if text.contains(['\\', '\0', '\u{1a}']) {
        out.push_str(&quote::literal(text));
        return;
    }
    out.push('\'');
    for (number, part) in text.split('\'').enumerate() {
        if number > 0 {
            out.push_str("''");
        }
        out.push_str(part);
    }
    out.push('\'');
}

/// Rows of a file, in the form that `TableSql::load` describes.
#[derive(Debug, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    /// When the last row was committed; the rows of a transaction or a chunk share it.
    instant: Option<(Timestamp, String)>,
}

impl Fields {
    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Ends a row.
    pub fn end_row(&mut self) {
        self.bytes.push(b'\n');
    }

    /// Everything so far; nothing is left.
    pub fn take(&mut self) -> Vec<u8> {
        let capacity = self.bytes.capacity();
        std::mem::replace(&mut self.bytes, Vec::with_capacity(capacity))
    }
}

impl Spelling for Fields {
    fn null(&mut self) {
        self.bytes.extend_from_slice(b"\\N");
    }

    fn number(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn integer(&mut self, text: &str) {
        self.number(text);
    }

    fn double(&mut self, number: f64, text: &str) {
        self.number(if number == 0.0 { "0" } else { text });
    }

    fn single(&mut self, number: f64) {
        self.number(&format!("{number:e}"));
    }

    fn time(&mut self, text: &str) {
        self.number(text);
    }

    fn instant(&mut self, instant: Timestamp) {
        let known = self.instant.take().filter(|(known, _)| *known == instant);
        let (_, text) = self.instant.insert(known.unwrap_or_else(|| (instant, utc_text(instant))));
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn hexadecimal(&mut self, digits: &str) {
        for pair in digits.as_bytes().chunks_exact(2) {
            self.bytes(&[hex::pair(pair[0], pair[1]).0]);
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        // Most values have nothing to escape, which is cheaper to know of many bytes at a time.
        let (many, few) = bytes.as_chunks::<16>();
        for many in many {
            match many.iter().fold(false, |found, &byte| found | is_special(byte)) {
                true => many.iter().for_each(|&byte| self.push(byte)),
                false => self.bytes.extend_from_slice(many),
            }
        }
        few.iter().for_each(|&byte| self.push(byte));
    }

    /// A file has no numbers, only bytes.
    fn bits(&mut self, number: u64) {
        self.bytes(&number.to_be_bytes());
    }

    fn next(&mut self) {
        self.bytes.push(b'\t');
    }
}

impl Fields {
    fn push(&mut self, byte: u8) {
        match is_special(byte) {
            // The server makes a NUL of an escaped zero; other bytes stay what they are.
            true => self.bytes.extend_from_slice(&[b'\\', if byte == 0 { b'0' } else { byte }]),
            false => self.bytes.push(byte),
        }
    }
}

/// Whether a byte means something in a file. Without a jump, so that many are looked at at once.
fn is_special(byte: u8) -> bool {
    (byte == b'\\') | (byte == b'\t') | (byte == b'\n') | (byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_field_or_a_row_is_escaped_within_one() {
        let mut fields = Fields::default();
        fields.text("a\tb\\N\n\0'\u{e9}");
        fields.next();
        fields.null();
        fields.next();
        fields.hexadecimal("5C00fFAa");
        fields.end_row();
        assert_eq!(fields.take(), b"a\\\tb\\\\N\\\n\\0'\xc3\xa9\t\\N\t\\\\\\0\xff\xaa\n");
        assert_eq!(fields.len(), 0);
    }

    #[test]
    fn what_is_escaped_is_found_in_a_text_of_any_length() {
        for length in 0..40 {
            for at in 0..length {
                let mut fields = Fields::default();
                let (before, after) = ("x".repeat(at), "y".repeat(length - at - 1));
                fields.text(&format!("{before}\t{after}"));
                assert_eq!(fields.take(), format!("{before}\\\t{after}").into_bytes());
            }
        }
    }
}
