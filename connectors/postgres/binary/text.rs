//! The way back: canonical text of values in binary, as a server sent them. For keys, which are
//! text everywhere, and for rows that have to be written as text after all.
//!
//! Surprise: `"char"` is not here, because its text depends on the server's version. It is read as
//! text from the beginning, as all types without an encoding are (`Encoding::of_column`).

use super::{Encoding, JSONB_VERSION, array, network, number, octets, time};
use crate::{digits, float, hex};

impl Encoding {
    /// Appends a value's canonical text; `None` if these bytes are no value of the type, or the
    /// type has no way back, and then what was appended is of no use.
    #[must_use]
    pub fn push_text(self, value: &[u8], out: &mut Vec<u8>) -> Option<()> {
        match self {
            Encoding::Text | Encoding::Name => out.extend_from_slice(value),
            Encoding::Int16 => digits::push_signed(i16::from_be_bytes(fixed(value)?).into(), out),
            Encoding::Int32 => digits::push_signed(i32::from_be_bytes(fixed(value)?).into(), out),
            Encoding::Int64 => digits::push_signed(i64::from_be_bytes(fixed(value)?), out),
            Encoding::Bool => out.push(boolean(value)?),
            Encoding::Float32 => float::push_single(f32::from_be_bytes(fixed(value)?), out),
            Encoding::Float64 => float::push_double(f64::from_be_bytes(fixed(value)?), out),
            Encoding::Numeric => number::push_numeric_text(value, out)?,
            Encoding::Uuid => hex::push_uuid(fixed(value)?, out),
            Encoding::Bytes => {
                out.extend_from_slice(b"\\x");
                hex::push(value, out);
            }
            Encoding::Jsonb => out.extend_from_slice(value.strip_prefix(&[JSONB_VERSION])?),
            Encoding::Date => time::push_date_text(i32::from_be_bytes(fixed(value)?), out),
            Encoding::Time => time::push_time_text(i64::from_be_bytes(fixed(value)?), out)?,
            Encoding::Timestamp => time::push_moment(i64::from_be_bytes(fixed(value)?), "", out),
            Encoding::TimestampTz => {
                time::push_moment(i64::from_be_bytes(fixed(value)?), "+00", out);
            }
            Encoding::TimeTz => time::push_time_tz_text(value, out)?,
            Encoding::Interval => time::push_interval_text(value, out)?,
            Encoding::Oid => digits::push_unsigned(u32::from_be_bytes(fixed(value)?).into(), out),
            Encoding::Lsn => number::push_lsn_text(u64::from_be_bytes(fixed(value)?), out),
            Encoding::Hardware(_) => octets::push_hardware_text(value, out),
            Encoding::Address => network::push_text(value, false, out)?,
            Encoding::Network => network::push_text(value, true, out)?,
            Encoding::Bits => octets::push_bits_text(value, out)?,
            Encoding::Array(of) => array::push_text(value, of, out)?,
            Encoding::Char => return None,
        }
        Some(())
    }
}

fn fixed<const SIZE: usize>(value: &[u8]) -> Option<[u8; SIZE]> {
    value.try_into().ok()
}

fn boolean(value: &[u8]) -> Option<u8> {
    match value {
        [0] => Some(b'f'),
        [1] => Some(b't'),
        _ => None,
    }
}
