//! Reads TABLE_MAP events: which table the rows after it belong to, and how their values are laid
//! out. Pure. `shapes.rs` compares it with what the catalog says.
//!
//! Surprise: without `binlog_row_metadata = FULL` the event tells neither names nor signs nor
//! labels, and on MariaDB nothing but the layout; that is why shapes have to be tracked at all.

use super::bytes::{Decoded, Malformed, Reader, utf8};

/// A table map, with what is needed most read.
#[derive(Clone, Copy, Debug)]
pub struct TableMap<'a> {
    /// The database.
    pub database: &'a str,
    /// The table.
    pub table: &'a str,
    rest: Reader<'a>,
}

/// How values of a column are laid out in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// So many bytes, the low one first.
    Integer(u8),
    /// Four bytes.
    Float,
    /// Eight bytes.
    Double,
    /// Years since 1900 in a byte.
    Year,
    /// Three bytes.
    Date,
    /// With so many digits of a second's fraction.
    Time(u8),
    /// With so many digits of a second's fraction.
    DateTime(u8),
    /// With so many digits of a second's fraction.
    Timestamp(u8),
    /// Packed digits.
    Decimal {
        /// All digits.
        precision: u8,
        /// Those after the point.
        scale: u8,
    },
    /// So many bits, in whole bytes, the high one first.
    Bit(u16),
    /// Up to so many bytes after a length of one byte, or two if one cannot say it.
    VarChar(u16),
    /// As `VarChar`, but the padding at the end is left out.
    String(u16),
    /// The number of a label, in so many bytes.
    Enum(u8),
    /// A bit for each label, in so many bytes.
    Set(u8),
    /// Bytes after a length of so many bytes.
    Blob(u8),
    /// Binary JSON, as `Blob`.
    Json(u8),
    /// As `Blob`.
    Geometry(u8),
    /// As `Blob`.
    Vector(u8),
    /// A type that is not replicated, by its number.
    Other(u8),
}

/// How the rows of a table are laid out, and what the server says about its columns beyond that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns<'a> {
    /// The columns in their order.
    pub wires: Vec<Wire>,
    /// For each column of a number type, in their order, whether it is unsigned.
    pub unsigned: Option<Vec<bool>>,
    /// The names of all columns.
    pub names: Option<Vec<&'a str>>,
    /// The labels of each ENUM column, in their character sets.
    pub enum_labels: Option<Vec<Vec<&'a [u8]>>>,
    /// The labels of each SET column, in their character sets.
    pub set_labels: Option<Vec<Vec<&'a [u8]>>>,
}

/// No table has more.
const COLUMNS_MAX: u64 = 4096;

impl<'a> TableMap<'a> {
    /// Reads the names.
    ///
    /// # Errors
    /// If it is cut off.
    pub fn read(body: &'a [u8]) -> Decoded<TableMap<'a>> {
        let mut reader = Reader::new(body);
        let _id = reader.little_endian(6)?;
        let _flags = reader.u16()?;
        let mut name = || {
            let name = utf8(reader.short_bytes()?)?;
            match reader.u8()? {
                0 => Ok(name),
                _ => Err(Malformed::new("a name has no end")),
            }
        };
        let (database, table) = (name()?, name()?);
        Ok(TableMap { database, table, rest: reader })
    }

    /// Reads the columns.
    ///
    /// # Errors
    /// If it is cut off, or has a type whose layout is unknown.
    pub fn columns(&self) -> Decoded<Columns<'a>> {
        let mut reader = self.rest;
        let count = reader.length_encoded()?;
        if count > COLUMNS_MAX {
            return Err(Malformed::new("a table has too many columns"));
        }
        let types = reader.take(count as usize)?;
        let mut metadata = Reader::new(reader.length_encoded_bytes()?);
        let wires =
            types.iter().map(|&code| wire(code, &mut metadata)).collect::<Decoded<Vec<Wire>>>()?;
        metadata.end()?;
        let _nullable = reader.take(types.len().div_ceil(8))?;
        let mut columns = Columns { wires, ..Columns::default() };
        while !reader.is_empty() {
            let field = reader.u8()?;
            columns.add(field, reader.length_encoded_bytes()?)?;
        }
        Ok(columns)
    }
}

impl<'a> Columns<'a> {
    fn add(&mut self, field: u8, value: &'a [u8]) -> Decoded<()> {
        const SIGNEDNESS: u8 = 1;
        const NAMES: u8 = 4;
        const SET_LABELS: u8 = 5;
        const ENUM_LABELS: u8 = 6;
        match field {
            SIGNEDNESS => self.unsigned = Some(bits(value)),
            NAMES => {
                let mut reader = Reader::new(value);
                let mut names = Vec::with_capacity(self.wires.len());
                while !reader.is_empty() {
                    names.push(utf8(reader.length_encoded_bytes()?)?);
                }
                if names.len() != self.wires.len() {
                    return Err(Malformed::new("a table has more columns than names"));
                }
                self.names = Some(names);
            }
            SET_LABELS => self.set_labels = Some(labels(value)?),
            ENUM_LABELS => self.enum_labels = Some(labels(value)?),
            // Character sets, keys, kinds of geometry, visibility: the catalog knows them too,
            // and a change of them comes with a statement of its own.
            _ => {}
        }
        Ok(())
    }
}

/// The bits of bytes, the high one first.
fn bits(bytes: &[u8]) -> Vec<bool> {
    bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect()
}

fn labels(value: &[u8]) -> Decoded<Vec<Vec<&[u8]>>> {
    let mut reader = Reader::new(value);
    let mut columns = Vec::new();
    while !reader.is_empty() {
        let mut labels = Vec::new();
        for _ in 0..reader.length_encoded()? {
            labels.push(reader.length_encoded_bytes()?);
        }
        columns.push(labels);
    }
    Ok(columns)
}

/// The layout that a type's number and its metadata mean.
fn wire(code: u8, metadata: &mut Reader<'_>) -> Decoded<Wire> {
    Ok(match code {
        1 => Wire::Integer(1),
        2 => Wire::Integer(2),
        9 => Wire::Integer(3),
        3 => Wire::Integer(4),
        8 => Wire::Integer(8),
        4 => {
            metadata.u8()?;
            Wire::Float
        }
        5 => {
            metadata.u8()?;
            Wire::Double
        }
        10 => Wire::Date,
        13 => Wire::Year,
        15 => Wire::VarChar(metadata.u16()?),
        16 => {
            let (bits, bytes) = (metadata.u8()?, metadata.u8()?);
            Wire::Bit(u16::from(bytes) * 8 + u16::from(bits))
        }
        17 => Wire::Timestamp(fraction(metadata)?),
        18 => Wire::DateTime(fraction(metadata)?),
        19 => Wire::Time(fraction(metadata)?),
        242 => Wire::Vector(metadata.u8()?),
        245 => Wire::Json(metadata.u8()?),
        246 => Wire::Decimal { precision: metadata.u8()?, scale: metadata.u8()? },
        252 => Wire::Blob(metadata.u8()?),
        253 | 254 => string(metadata)?,
        255 => Wire::Geometry(metadata.u8()?),
        // Compressed columns of MariaDB.
        140 => {
            metadata.u8()?;
            Wire::Other(code)
        }
        141 => {
            metadata.u16()?;
            Wire::Other(code)
        }
        // Times as they were before MySQL 5.6.
        7 | 11 | 12 => Wire::Other(code),
        _ => return Err(Malformed(format!("a table has a column of type {code}"))),
    })
}

fn fraction(metadata: &mut Reader<'_>) -> Decoded<u8> {
    match metadata.u8()? {
        digits @ 0..=6 => Ok(digits),
        _ => Err(Malformed::new("a time has more than six digits of a second")),
    }
}

/// CHAR, BINARY, ENUM and SET share a type number. Lengths above 255 hide two of their bits,
/// inverted, in the byte that says which it is.
fn string(metadata: &mut Reader<'_>) -> Decoded<Wire> {
    const ENUM: u8 = 247;
    const SET: u8 = 248;
    const STRING: u8 = 254;
    let (kind, length) = (metadata.u8()?, metadata.u8()?);
    Ok(match kind {
        ENUM => Wire::Enum(length),
        SET => Wire::Set(length),
        _ if kind | 0x30 == STRING => {
            Wire::String(u16::from(length) | u16::from((kind & 0x30) ^ 0x30) << 4)
        }
        _ => return Err(Malformed(format!("a table has a column of type {kind}"))),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_table_map_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..120)
        ) {
            if let Ok(map) = TableMap::read(&bytes) {
                let _ = map.columns();
            }
        }
    }

    #[test]
    fn long_strings_hide_bits_of_their_length() {
        let wire = |bytes: &[u8]| string(&mut Reader::new(bytes));
        assert_eq!(wire(&[254, 30]), Ok(Wire::String(30)));
        assert_eq!(wire(&[0xce, 0xfc]), Ok(Wire::String(1020)));
        assert_eq!(wire(&[247, 2]), Ok(Wire::Enum(2)));
        assert!(wire(&[1, 2]).is_err());
    }
}
