//! Reads rows of ROWS events into cells of canonical text. Pure, and the hot path: values are
//! appended to one buffer that all rows share, and nothing is copied before.
//!
//! Surprises: an image may lack columns (`binlog_row_image`), which are absent and not NULL; and
//! bytes at the end of BINARY, UUID and INET6 values that are zero are left out of the log.

#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::bytes::{Decoded, Malformed, Reader};
use super::table_map::Wire;
use super::text::{self, Clock, Date, Pushed, Refusal};
use super::types::{Labels, MysqlType};
use super::{decimal, json};
use crate::ZeroDates;
use crate::calendar;
use crate::change::{Cell, Row, RowBuilder};
use crate::schema::TableSchema;
use crate::{digits, float, hex};

/// How rows of one table map become rows of a table.
#[derive(Debug)]
pub struct Plan {
    /// The table as of now.
    pub schema: Arc<TableSchema>,
    /// The columns of the log in their order.
    pub columns: Vec<PlanColumn>,
    /// What becomes of dates with a zero in them.
    pub zero_dates: ZeroDates,
}

/// One column of the log.
#[derive(Debug)]
pub struct PlanColumn {
    /// How its values are laid out.
    pub wire: Wire,
    /// Its place in the table, above those of the columns before it, and what its values mean;
    /// `None` if it is not replicated.
    pub kept: Option<(usize, MysqlType)>,
}

/// The cells of one row, in memory that is used again.
#[derive(Debug, Default)]
pub struct Cells {
    row: RowBuilder,
    /// The first value that cannot be replicated: its place and why.
    refused: Option<(usize, Refusal)>,
}

/// Which columns of an image are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All.
    All,
    /// Those of the key.
    Key,
}

impl Cells {
    /// The cell at this place of the table.
    #[must_use]
    pub fn cell(&self, place: usize) -> Cell<'_> {
        self.row.cell(place)
    }

    /// The row, in an allocation of its own; the cells are gone.
    #[must_use]
    pub fn take(&mut self) -> Row {
        self.row.take()
    }

    /// Takes what this image lacks from another image of the row.
    pub fn complete_from(&mut self, other: &Cells, columns: usize) {
        let mut row = RowBuilder::new(columns, 0);
        for place in 0..columns {
            row.push(match self.cell(place) {
                Cell::Absent => other.cell(place),
                cell => cell,
            });
        }
        self.row = row;
    }

    /// The first value that cannot be replicated: the column's place, and why.
    #[must_use]
    pub fn refused(&self) -> Option<&(usize, Refusal)> {
        self.refused.as_ref()
    }
}

/// Which columns an image has.
#[derive(Clone, Copy, Debug)]
pub struct Present<'a> {
    bits: &'a [u8],
    count: usize,
}

impl<'a> Present<'a> {
    /// Reads a bit for each column.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn read(reader: &mut Reader<'a>, columns: usize) -> Decoded<Present<'a>> {
        let bits = reader.take(columns.div_ceil(8))?;
        let count = (0..columns).filter(|&index| bit(bits, index)).count();
        Ok(Present { bits, count })
    }

    fn has(&self, column: usize) -> bool {
        bit(self.bits, column)
    }

    /// Whether the image lacks none of so many columns.
    #[must_use]
    pub fn is_full(&self, columns: usize) -> bool {
        self.count == columns
    }
}

fn bit(bits: &[u8], index: usize) -> bool {
    bits.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
}

/// Passes one image of a row whose values are laid out like this.
///
/// # Errors
/// If they are not.
pub fn skip_image(reader: &mut Reader<'_>, wires: &[Wire], present: Present<'_>) -> Decoded<()> {
    let nulls = reader.take(present.count.div_ceil(8))?;
    let there = wires.iter().enumerate().filter(|&(index, _)| present.has(index));
    for (seen, (_, &wire)) in there.enumerate() {
        if !bit(nulls, seen) {
            skip(wire, reader)?;
        }
    }
    Ok(())
}

impl Plan {
    /// Reads one image into `cells`. A value that cannot be replicated is noted there, and the
    /// rest of the row is read all the same, so that the row can be named.
    ///
    /// # Errors
    /// If the bytes are not laid out as the table map says.
    pub fn read_image(
        &self,
        reader: &mut Reader<'_>,
        present: Present<'_>,
        wanted: Wanted,
        cells: &mut Cells,
    ) -> Decoded<()> {
        cells.row.restart(self.schema.columns.len());
        cells.refused = None;
        let is_full = present.is_full(self.columns.len());
        let nulls = reader.take(present.count.div_ceil(8))?;
        let mut seen = 0;
        for (index, column) in self.columns.iter().enumerate() {
            if !is_full && !present.has(index) {
                continue;
            }
            let is_null = bit(nulls, seen);
            seen += 1;
            let kept = column
                .kept
                .as_ref()
                .filter(|(place, _)| wanted == Wanted::All || self.schema.is_key(*place));
            match (is_null, kept) {
                (true, None) => {}
                (true, Some(&(place, _))) => {
                    cells.row.skip_to(place);
                    cells.row.push(Cell::Null);
                }
                (false, None) => skip(column.wire, reader)?,
                (false, Some((place, mysql_type))) => {
                    self.read_value(column.wire, mysql_type, *place, reader, cells)?;
                }
            }
        }
        cells.row.skip_to(self.schema.columns.len());
        Ok(())
    }

    fn read_value(
        &self,
        wire: Wire,
        mysql_type: &MysqlType,
        place: usize,
        reader: &mut Reader<'_>,
        cells: &mut Cells,
    ) -> Decoded<()> {
        // What a value is made of is read before it is judged, so a refusal leaves the reader at
        // the next value.
        let value = Value::read(wire, reader)?;
        let is_refused = value.reads_like_a_label(mysql_type) && self.schema.is_key(place);
        cells.row.skip_to(place);
        cells.row.push_with(|out| {
            let pushed = match is_refused {
                true => Err(Malformed::new(LIKE_A_LABEL).into()),
                false => value.push(mysql_type, self.zero_dates, out),
            };
            match pushed {
                Ok(pushed) => pushed == Pushed::Text,
                Err(refusal) => {
                    cells.refused.get_or_insert((place, refusal));
                    false
                }
            }
        });
        Ok(())
    }
}

/// What a text that is no label has become: the number 0, which prints as ''.
pub const LIKE_A_LABEL: &str = "an invalid ENUM in a key, which reads like its label ''";

/// A value as it stands in a row.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    /// A number of so many bytes.
    Integer(u64, u8),
    Float(f32),
    Double(f64),
    Year(u8),
    Date(u32),
    /// The packed number, and the bytes of the fraction.
    Time(u64, u8),
    DateTime(u64, u8),
    Timestamp(u32, u32),
    /// The digits, with precision and scale.
    Decimal(&'a [u8], u8, u8),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    // Where this is not compiled together with `push`, handing over the value costs more than most
    // values do.
    #[inline(always)]
    fn read(wire: Wire, reader: &mut Reader<'a>) -> Decoded<Value<'a>> {
        let fraction_bytes = |digits: u8| digits.div_ceil(2);
        Ok(match wire {
            Wire::Integer(bytes) => {
                Value::Integer(reader.little_endian(usize::from(bytes))?, bytes)
            }
            Wire::Enum(bytes) | Wire::Set(bytes) => {
                if bytes > 8 {
                    return Err(Malformed::new("a SET has more than 64 labels"));
                }
                Value::Integer(reader.little_endian(usize::from(bytes))?, bytes)
            }
            Wire::Float => Value::Float(f32::from_bits(reader.u32()?)),
            Wire::Double => Value::Double(f64::from_bits(reader.u64()?)),
            Wire::Year => Value::Year(reader.u8()?),
            Wire::Date => Value::Date(reader.little_endian(3)? as u32),
            Wire::Time(digits) => {
                let fraction = fraction_bytes(digits);
                Value::Time(reader.big_endian(3 + usize::from(fraction))?, fraction)
            }
            Wire::DateTime(digits) => {
                let fraction = fraction_bytes(digits);
                Value::DateTime(reader.big_endian(5 + usize::from(fraction))?, fraction)
            }
            Wire::Timestamp(digits) => {
                let seconds = reader.big_endian(4)? as u32;
                let fraction = fraction_bytes(digits);
                let units = reader.big_endian(usize::from(fraction))? as u32;
                Value::Timestamp(seconds, micros(units, fraction))
            }
            Wire::Decimal { precision, scale } => {
                let bytes = reader.take(decimal::length(precision, scale)?)?;
                Value::Decimal(bytes, precision, scale)
            }
            Wire::Bit(bits) => Value::Bytes(reader.take(usize::from(bits.div_ceil(8)))?),
            Wire::VarChar(max) | Wire::String(max) => {
                let length = match max {
                    0..=255 => usize::from(reader.u8()?),
                    _ => usize::from(reader.u16()?),
                };
                Value::Bytes(reader.take(length)?)
            }
            Wire::Blob(bytes) | Wire::Json(bytes) | Wire::Geometry(bytes) | Wire::Vector(bytes) => {
                let length = match bytes {
                    1..=4 => reader.little_endian(usize::from(bytes))? as usize,
                    _ => return Err(Malformed::new("a BLOB has a length of many bytes")),
                };
                Value::Bytes(reader.take(length)?)
            }
            Wire::Other(code) => {
                return Err(Malformed(format!("a value of type {code} has no known length")));
            }
        })
    }

    /// Whether it is an ENUM's number for no label, and yet its text is a label.
    fn reads_like_a_label(self, mysql_type: &MysqlType) -> bool {
        matches!(self, Value::Integer(0, _)) && mysql_type.has_empty_label()
    }

    /// Appends the value as canonical text.
    #[inline(always)]
    fn push(
        self,
        mysql_type: &MysqlType,
        zero_dates: ZeroDates,
        out: &mut Vec<u8>,
    ) -> Result<Pushed, Refusal> {
        match (self, mysql_type) {
            (Value::Integer(number, bytes), MysqlType::Integer { unsigned, .. }) => {
                match unsigned {
                    true => digits::push_unsigned(number, out),
                    false => digits::push_signed(with_sign(number, bytes), out),
                }
            }
            (Value::Integer(number, _), MysqlType::Enum(labels, _)) => {
                push_enum(number, labels, out)?;
            }
            (Value::Integer(number, _), MysqlType::Set(labels, _)) => {
                push_set(number, labels, out)?;
            }
            (Value::Float(value), MysqlType::Float) => float::push_single(value, out),
            (Value::Double(value), MysqlType::Double) => float::push_double(value, out),
            (Value::Year(0), MysqlType::Year) => out.push(b'0'),
            (Value::Year(years), MysqlType::Year) => {
                digits::push_unsigned(1900 + u64::from(years), out);
            }
            (Value::Date(packed), MysqlType::Date) => {
                return text::push_date(unpack_date(packed), zero_dates, out);
            }
            (Value::Time(packed, fraction), MysqlType::Time(_)) => {
                let (negative, clock) = unpack_time(packed, fraction);
                return text::push_duration(negative, clock, out);
            }
            (Value::DateTime(packed, fraction), MysqlType::DateTime(_)) => {
                let (date, clock) = unpack_datetime(packed, fraction)?;
                return text::push_timestamp(date, clock, "", zero_dates, out);
            }
            (Value::Timestamp(seconds, micros), MysqlType::Timestamp(_)) => {
                let (date, clock) = unpack_timestamp(seconds, micros);
                return text::push_timestamp(date, clock, "+00", zero_dates, out);
            }
            (Value::Decimal(bytes, precision, scale), MysqlType::Decimal { .. }) => {
                decimal::push_packed(bytes, precision, scale, out)?;
            }
            (Value::Bytes(bytes), mysql_type) => push_bytes(bytes, mysql_type, out)?,
            _ => return Err(Malformed::new("a value is not of its column's type").into()),
        }
        Ok(Pushed::Text)
    }
}

fn skip(wire: Wire, reader: &mut Reader<'_>) -> Decoded<()> {
    Value::read(wire, reader).map(|_| ())
}

/// A number of so many bytes in two's complement.
fn with_sign(number: u64, bytes: u8) -> i64 {
    let unused = 64 - 8 * u32::from(bytes);
    (number << unused).cast_signed() >> unused
}

/// Appends the value of a type that the log has as plain bytes; SQL hands them out alike, but for
/// the padding.
///
/// # Errors
/// If the bytes are no value of the type.
pub fn push_bytes(bytes: &[u8], mysql_type: &MysqlType, out: &mut Vec<u8>) -> Decoded<()> {
    match mysql_type {
        MysqlType::Char(_, charset)
        | MysqlType::VarChar(_, charset)
        | MysqlType::Text(_, charset) => charset.push_utf8(bytes, out)?,
        MysqlType::Binary(length) => text::push_bytes(bytes, usize::from(*length), out),
        MysqlType::VarBinary(_) | MysqlType::Blob(_) | MysqlType::Geometry | MysqlType::Vector => {
            text::push_bytes(bytes, 0, out)
        }
        MysqlType::Bit(bits) => {
            let number = Reader::new(bytes).big_endian(bytes.len().min(8))?;
            text::push_bits(number, *bits, out);
        }
        MysqlType::Json => json::push(bytes, out)?,
        MysqlType::Uuid => hex::push_uuid(padded(bytes)?, out),
        MysqlType::Inet4 => {
            let _ = write(out, Ipv4Addr::from(padded::<4>(bytes)?));
        }
        MysqlType::Inet6 => push_inet6(padded(bytes)?, out),
        MysqlType::Integer { .. }
        | MysqlType::Year
        | MysqlType::Decimal { .. }
        | MysqlType::Float
        | MysqlType::Double
        | MysqlType::Date
        | MysqlType::Time(_)
        | MysqlType::DateTime(_)
        | MysqlType::Timestamp(_)
        | MysqlType::Enum(..)
        | MysqlType::Set(..) => {
            return Err(Malformed::new("a value is not of its column's type"));
        }
    }
    Ok(())
}

fn write(out: &mut Vec<u8>, value: impl std::fmt::Display) -> std::io::Result<()> {
    use std::io::Write as _;
    write!(out, "{value}")
}

/// A value of fixed length, with the zeros that the log leaves out.
fn padded<const N: usize>(bytes: &[u8]) -> Decoded<[u8; N]> {
    let mut padded = [0; N];
    let there =
        padded.get_mut(..bytes.len()).ok_or_else(|| Malformed::new("a value is too long"))?;
    there.copy_from_slice(bytes);
    Ok(padded)
}

/// As the server prints it: the first of the longest runs of zeros is left out, also a single one,
/// and an IPv4 address that follows nothing else is written as one.
fn push_inet6(bytes: [u8; 16], out: &mut Vec<u8>) {
    let words = Ipv6Addr::from(bytes).segments();
    let run = |from: usize| words[from..].iter().take_while(|&&word| word == 0).count();
    let (mut gap, mut length) = (0, 0);
    for from in 0..words.len() {
        if run(from) > length {
            (gap, length) = (from, run(from));
        }
    }
    let is_mapped = words[5] == 0xffff && length == 5;
    if gap == 0 && (length == 6 || is_mapped) {
        let _ = write(out, if is_mapped { "::ffff:" } else { "::" });
        let _ = write(out, Ipv4Addr::from([bytes[12], bytes[13], bytes[14], bytes[15]]));
        return;
    }
    let mut index = 0;
    while index < words.len() {
        if length > 0 && index == gap {
            let _ = write(out, if index == 0 { "::" } else { ":" });
            index += length;
            continue;
        }
        let end = if index == 7 { "" } else { ":" };
        let _ = write(out, format_args!("{:x}{end}", words[index]));
        index += 1;
    }
}

fn push_enum(number: u64, labels: &Labels, out: &mut Vec<u8>) -> Decoded<()> {
    // Zero is what an invalid text became; it prints as nothing.
    if number == 0 {
        return Ok(());
    }
    push_label(number - 1, labels, out)
}

fn push_set(number: u64, labels: &Labels, out: &mut Vec<u8>) -> Decoded<()> {
    let start = out.len();
    for bit in (0..64).filter(|bit| number >> bit & 1 == 1) {
        if out.len() > start {
            out.push(b',');
        }
        push_label(bit, labels, out)?;
    }
    Ok(())
}

fn push_label(index: u64, labels: &Labels, out: &mut Vec<u8>) -> Decoded<()> {
    out.extend_from_slice(labels.get(index)?.as_bytes());
    Ok(())
}

/// Microseconds of a fraction of so many bytes.
fn micros(units: u32, bytes: u8) -> u32 {
    match bytes {
        0 => 0,
        1 => units * 10_000,
        2 => units * 100,
        _ => units,
    }
}

fn unpack_date(packed: u32) -> Date {
    Date { year: (packed >> 9) as u16, month: (packed >> 5 & 15) as u8, day: (packed & 31) as u8 }
}

/// Hours, then six bits each of minutes and seconds.
fn unpack_clock(packed: u64, hour_bits: u32, micros: u32) -> Clock {
    Clock {
        hour: (packed >> 12 & ((1 << hour_bits) - 1)) as u16,
        minute: (packed >> 6 & 63) as u8,
        second: (packed & 63) as u8,
        micros,
    }
}

/// A time is stored as a number above the middle of its range, or below if it is negative; the
/// fraction takes part in that.
fn unpack_time(packed: u64, fraction_bytes: u8) -> (bool, Clock) {
    let fraction_bits = 8 * u32::from(fraction_bytes);
    let middle = 0x80_0000_u64 << fraction_bits;
    let distance = packed.abs_diff(middle);
    let units = (distance & ((1 << fraction_bits) - 1)) as u32;
    let clock = unpack_clock(distance >> fraction_bits, 10, micros(units, fraction_bytes));
    (packed < middle, clock)
}

fn unpack_datetime(packed: u64, fraction_bytes: u8) -> Decoded<(Date, Clock)> {
    let fraction_bits = 8 * u32::from(fraction_bytes);
    let units = (packed & ((1 << fraction_bits) - 1)) as u32;
    // The highest bit is the sign, which is always set.
    let seconds = (packed >> fraction_bits)
        .checked_sub(0x80_0000_0000)
        .ok_or_else(|| Malformed::new("a date is before all dates"))?;
    let (months, day) = (seconds >> 22, seconds >> 17 & 31);
    let date = Date { year: (months / 13) as u16, month: (months % 13) as u8, day: day as u8 };
    Ok((date, unpack_clock(seconds & 0x1_ffff, 5, micros(units, fraction_bytes))))
}

/// Zero stands for the zero date.
fn unpack_timestamp(seconds: u32, micros: u32) -> (Date, Clock) {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let clock = Clock {
        hour: (second / 3600) as u16,
        minute: (second / 60 % 60) as u8,
        second: (second % 60) as u8,
        micros,
    };
    match (seconds, micros) {
        (0, 0) => (Date { year: 0, month: 0, day: 0 }, clock),
        _ => (civil_from_days(days), clock),
    }
}

/// The day of the calendar, so many days after 1970-01-01.
fn civil_from_days(days: u32) -> Date {
    let (year, month, day) = calendar::from_days(i64::from(days));
    Date { year: year as u16, month: month as u8, day: day as u8 }
}
