//! Values in PostgreSQL's binary form, made of their canonical text, and back. Pure. Reading that form
//! costs the server about half of what reading text does. `target/row_writer.rs` makes rows of them;
//! a source sends them where both ends are PostgreSQL (`values.rs`).
//!
//! | types | binary form |
//! |---|---|
//! | boolean, integers, `oid`, `pg_lsn` | a number |
//! | floats; `numeric` | IEEE bits; groups of four digits, with all zeros that the text has |
//! | texts, `json`; `jsonb` | the text; after the number of a format |
//! | `bytea`, `uuid`, hardware and network addresses, bits | their bytes |
//! | dates, times, intervals | days, microseconds and months, from 2000-01-01 on |
//! | arrays of these with one dimension | their elements |
//!
//! All other types are left to text. The server applies a column's length, precision or scale to
//! both forms alike.
//!
//! Surprise: a text that is not in canonical form is no error here, even if it is none of its
//! type. It has no binary form, is sent as text, and the server decides.

mod array;
mod network;
mod number;
mod octets;
#[cfg(test)]
mod tests;
mod text;
mod time;

use crate::change::Timestamp;
use crate::hex;
use crate::schema::{Column, ColumnType};

/// How values of a type are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `boolean`.
    Bool,
    /// `smallint`.
    Int16,
    /// `integer`.
    Int32,
    /// `bigint`.
    Int64,
    /// `oid`.
    Oid,
    /// `pg_lsn`.
    Lsn,
    /// `real`.
    Float32,
    /// `double precision`.
    Float64,
    /// `numeric`.
    Numeric,
    /// Types whose binary form is their text.
    Text,
    /// `name`, which is cut off in text and refused in binary when it is too long.
    Name,
    /// `"char"`.
    Char,
    /// `bytea`.
    Bytes,
    /// `uuid`.
    Uuid,
    /// `macaddr` and `macaddr8`: so many bytes.
    Hardware(u8),
    /// `inet`.
    Address,
    /// `cidr`.
    Network,
    /// `bit` and `bit varying`.
    Bits,
    /// `date`.
    Date,
    /// `time`.
    Time,
    /// `time with time zone`.
    TimeTz,
    /// `timestamp`.
    Timestamp,
    /// `timestamp with time zone`.
    TimestampTz,
    /// `interval`.
    Interval,
    /// `jsonb`.
    Jsonb,
    /// An array with elements of the type with this OID.
    Array(u32),
}

impl Encoding {
    /// How values of the type with this OID are written; `None` if it is left to text.
    #[must_use]
    pub fn of(type_id: u32) -> Option<Encoding> {
        Some(match type_id {
            16 => Encoding::Bool,
            17 => Encoding::Bytes,
            18 => Encoding::Char,
            19 => Encoding::Name,
            20 => Encoding::Int64,
            21 => Encoding::Int16,
            23 => Encoding::Int32,
            // text, json, bpchar, varchar
            25 | 114 | 1042 | 1043 => Encoding::Text,
            26 => Encoding::Oid,
            650 => Encoding::Network,
            700 => Encoding::Float32,
            701 => Encoding::Float64,
            774 => Encoding::Hardware(8),
            829 => Encoding::Hardware(6),
            869 => Encoding::Address,
            1082 => Encoding::Date,
            1083 => Encoding::Time,
            1114 => Encoding::Timestamp,
            1184 => Encoding::TimestampTz,
            1186 => Encoding::Interval,
            1266 => Encoding::TimeTz,
            1560 | 1562 => Encoding::Bits,
            1700 => Encoding::Numeric,
            2950 => Encoding::Uuid,
            3220 => Encoding::Lsn,
            3802 => Encoding::Jsonb,
            _ => Encoding::Array(element_type(type_id)?),
        })
    }

    /// How a source sends the values of a column in binary; `None` if there is no way back from it to
    /// their text. A target's column has the same type, or is a text for an enum.
    #[must_use]
    pub fn of_column(column: &Column) -> Option<Encoding> {
        match &column.native {
            Some(name) => Encoding::of_name(name),
            // An enum is sent as its label.
            None => (column.column_type == ColumnType::Text).then_some(Encoding::Text),
        }
    }

    /// As `of_column`, of a built-in type as `format_type` spells it.
    fn of_name(name: &str) -> Option<Encoding> {
        let element = name.strip_suffix("[]");
        let id = type_named(element.unwrap_or(name))?;
        let encoding = Encoding::of(id).filter(|encoding| *encoding != Encoding::Char)?;
        Some(if element.is_some() { Encoding::Array(id) } else { encoding })
    }

    /// Appends a value with its length; `None` if its text is not canonical, and then what was
    /// appended is of no use.
    #[must_use]
    pub fn push(self, text: &[u8], out: &mut Vec<u8>) -> Option<()> {
        match self {
            Encoding::Text => push_bytes(text, out),
            Encoding::Int16 => {
                push_fixed(i16::try_from(number::integer(text)?).ok()?.to_be_bytes(), out)
            }
            Encoding::Int32 => {
                push_fixed(i32::try_from(number::integer(text)?).ok()?.to_be_bytes(), out)
            }
            Encoding::Int64 => push_fixed(number::integer(text)?.to_be_bytes(), out),
            Encoding::Bool => push_fixed(number::boolean(text)?, out),
            Encoding::Oid => {
                push_fixed(u32::try_from(number::integer(text)?).ok()?.to_be_bytes(), out)
            }
            Encoding::Lsn => push_fixed(number::lsn(text)?.to_be_bytes(), out),
            Encoding::Float32 => push_fixed(number::single(text)?.to_be_bytes(), out),
            Encoding::Float64 => push_fixed(number::double(text)?.to_be_bytes(), out),
            Encoding::TimestampTz => push_fixed(time::instant(text)?.to_be_bytes(), out),
            Encoding::Timestamp => push_fixed(time::timestamp(text)?.to_be_bytes(), out),
            Encoding::Date => push_fixed(time::date(text)?.to_be_bytes(), out),
            Encoding::Time => push_fixed(time::time(text)?.to_be_bytes(), out),
            Encoding::Uuid => push_fixed(octets::uuid(text)?, out),
            Encoding::Name => push_bytes((text.len() < NAME_BYTES).then_some(text)?, out),
            Encoding::Char => push_fixed(octets::character(text)?, out),
            Encoding::Numeric => push_measured(out, |out| number::push_numeric(text, out))?,
            Encoding::Bytes => {
                push_measured(out, |out| hex::push_bytes(text.strip_prefix(b"\\x")?, out))?
            }
            Encoding::Hardware(count) => {
                push_measured(out, |out| octets::push_hardware(text, usize::from(count), out))?
            }
            Encoding::Address => push_measured(out, |out| network::push(text, false, out))?,
            Encoding::Network => push_measured(out, |out| network::push(text, true, out))?,
            Encoding::Bits => push_measured(out, |out| octets::push_bits(text, out))?,
            Encoding::TimeTz => push_measured(out, |out| time::push_time_tz(text, out))?,
            Encoding::Interval => push_measured(out, |out| time::push_interval(text, out))?,
            Encoding::Array(of) => push_measured(out, |out| array::push(text, of, out))?,
            Encoding::Jsonb => push_measured(out, |out| {
                out.push(JSONB_VERSION);
                out.extend_from_slice(text);
                Some(())
            })?,
        }
        Some(())
    }
}

/// The OID of the elements' type, for arrays of types that have an encoding.
fn element_type(array: u32) -> Option<u32> {
    TYPES.iter().find(|(_, _, of_array)| *of_array == array).map(|(_, element, _)| *element)
}

/// The OID of a type with this name, for types that have an encoding. Between the words of the name
/// there may be a modifier: `timestamp(3) without time zone`.
fn type_named(name: &str) -> Option<u32> {
    let (first, rest) = name.split_once('(').unwrap_or((name, ""));
    let plain = [first, rest.split_once(')').map_or("", |(_, rest)| rest)].concat();
    let plain = match plain.split(' ').next() {
        // Of an interval the words say what is kept of it.
        Some("interval") => "interval",
        Some("bpchar") => "character",
        _ => &plain,
    };
    TYPES.iter().find(|(name, _, _)| *name == plain).map(|(_, id, _)| *id)
}

/// The types that have an encoding: how `format_type` spells them, their OIDs, and those of their
/// arrays.
const TYPES: [(&str, u32, u32); 30] = [
    ("\"char\"", 18, 1002),
    ("bigint", 20, 1016),
    ("bit varying", 1562, 1563),
    ("bit", 1560, 1561),
    ("boolean", 16, 1000),
    ("bytea", 17, 1001),
    ("character varying", 1043, 1015),
    ("character", 1042, 1014),
    ("cidr", 650, 651),
    ("date", 1082, 1182),
    ("double precision", 701, 1022),
    ("inet", 869, 1041),
    ("integer", 23, 1007),
    ("interval", 1186, 1187),
    ("json", 114, 199),
    ("jsonb", 3802, 3807),
    ("macaddr", 829, 1040),
    ("macaddr8", 774, 775),
    ("name", 19, 1003),
    ("numeric", 1700, 1231),
    ("oid", 26, 1028),
    ("pg_lsn", 3220, 3221),
    ("real", 700, 1021),
    ("smallint", 21, 1005),
    ("text", 25, 1009),
    ("time with time zone", 1266, 1270),
    ("time without time zone", 1083, 1183),
    ("timestamp with time zone", 1184, 1185),
    ("timestamp without time zone", 1114, 1115),
    ("uuid", 2950, 2951),
];

/// A name has fewer bytes.
const NAME_BYTES: usize = 64;
/// What stands before the text of a `jsonb`.
const JSONB_VERSION: u8 = 1;

/// Appends NULL.
pub fn push_null(out: &mut Vec<u8>) {
    out.extend_from_slice(&(-1_i32).to_be_bytes());
}

/// Appends bytes with their length.
pub fn push_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    // A value of PostgreSQL has at most 1 GiB.
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Appends a value of known size with its length.
#[inline]
pub fn push_fixed<const SIZE: usize>(value: [u8; SIZE], out: &mut Vec<u8>) {
    out.extend_from_slice(&(SIZE as u32).to_be_bytes());
    out.extend_from_slice(&value);
}

/// Appends an instant with its length.
pub fn push_timestamp(instant: Timestamp, out: &mut Vec<u8>) {
    push_fixed(time::micros(instant).to_be_bytes(), out);
}

/// Appends what `push` appends, with its length.
fn push_measured(out: &mut Vec<u8>, push: impl FnOnce(&mut Vec<u8>) -> Option<()>) -> Option<()> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    push(out)?;
    let length = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    Some(())
}
