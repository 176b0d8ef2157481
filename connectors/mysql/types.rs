//! What a column's type says about its values: `Column::native`, read once into a `MysqlType`.
//! Pure. The row decoder (`rows.rs`), the SQL reader (`values.rs`) and the catalog use it.
//!
//! Surprise: the server spells labels of ENUM and SET in a character set that lacks half of
//! Unicode, and writes `?` for what it cannot spell. A label with a `?` may be another one.

use super::bytes::{Decoded, Malformed};
use super::charset::Charset;
use super::table_map::Wire;
use crate::schema::ColumnType;

/// A type of either server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MysqlType {
    /// TINYINT to BIGINT.
    Integer {
        /// How many bytes it has: 1, 2, 3, 4 or 8.
        bytes: u8,
        /// Whether it has no sign.
        unsigned: bool,
    },
    /// YEAR; 0 is `0000`.
    Year,
    /// DECIMAL.
    Decimal {
        /// All digits.
        precision: u8,
        /// Those after the point.
        scale: u8,
    },
    /// FLOAT.
    Float,
    /// DOUBLE.
    Double,
    /// BIT of so many bits.
    Bit(u8),
    /// DATE.
    Date,
    /// TIME with so many digits of a second's fraction.
    Time(u8),
    /// DATETIME with so many digits of a second's fraction.
    DateTime(u8),
    /// TIMESTAMP with so many digits of a second's fraction.
    Timestamp(u8),
    /// CHAR of so many characters.
    Char(u16, Charset),
    /// VARCHAR of so many characters.
    VarChar(u16, Charset),
    /// TINYTEXT to LONGTEXT: how many bytes its length has.
    Text(u8, Charset),
    /// BINARY of so many bytes.
    Binary(u16),
    /// VARBINARY of so many bytes.
    VarBinary(u16),
    /// TINYBLOB to LONGBLOB: how many bytes its length has.
    Blob(u8),
    /// ENUM.
    Enum(Labels, Charset),
    /// SET.
    Set(Labels, Charset),
    /// JSON of MySQL. That of MariaDB is a LONGTEXT.
    Json,
    /// GEOMETRY, POINT and their like.
    Geometry,
    /// VECTOR.
    Vector,
    /// UUID of MariaDB.
    Uuid,
    /// INET4 of MariaDB.
    Inet4,
    /// INET6 of MariaDB.
    Inet6,
}

/// The labels of an ENUM or SET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    labels: Vec<String>,
    /// Whether they come from the table map, where nothing has been replaced.
    exact: bool,
}

impl Labels {
    /// As `COLUMN_TYPE` spells them.
    #[must_use]
    pub fn spelled(labels: Vec<String>) -> Labels {
        Labels { labels, exact: false }
    }

    /// As the table map has them, in their character set.
    ///
    /// # Errors
    /// If they are no text.
    pub fn exact(labels: &[&[u8]], charset: Charset) -> Decoded<Labels> {
        let labels = labels.iter().map(|label| charset.utf8(label)).collect::<Decoded<_>>()?;
        Ok(Labels { labels, exact: true })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.labels.len()
    }

    /// Whether one of them is ''.
    #[must_use]
    pub fn has_empty(&self) -> bool {
        self.labels.iter().any(String::is_empty)
    }

    /// The label of this number, from 0.
    ///
    /// # Errors
    /// If there is none, or if it may be another one than it seems.
    pub fn get(&self, index: u64) -> Decoded<&str> {
        let label = usize::try_from(index).ok().and_then(|index| self.labels.get(index));
        let label = label.ok_or_else(|| Malformed::new("a label is missing"))?;
        match self.exact || !label.contains('?') {
            true => Ok(label),
            false => Err(Malformed::new(
                "a label has a character that the catalog cannot spell; run \
                 `SET GLOBAL binlog_row_metadata = FULL`",
            )),
        }
    }
}

impl MysqlType {
    /// Reads `Column::native`: `COLUMN_TYPE`, for character types followed by ` character set X`.
    ///
    /// # Errors
    /// In words, without the column's name: a type or a character set that is not replicated.
    pub fn parse(native: &str) -> Decoded<MysqlType> {
        if native.contains("/*") && native.to_ascii_uppercase().contains("COMPRESSED*/") {
            return Err(Malformed::new("is compressed, which is not replicated"));
        }
        let spelled = Spelled::read(native)?;
        let unknown = || Malformed(format!("has the type {:?}, which is unknown", spelled.name));
        let fraction = || spelled.number(0).map(|digits| digits.unwrap_or(0));
        Ok(match spelled.name.as_str() {
            "tinyint" => spelled.integer(1),
            "smallint" => spelled.integer(2),
            "mediumint" => spelled.integer(3),
            "int" => spelled.integer(4),
            "bigint" => spelled.integer(8),
            "year" => MysqlType::Year,
            "decimal" => MysqlType::Decimal {
                precision: spelled.number(0)?.unwrap_or(10),
                scale: spelled.number(1)?.unwrap_or(0),
            },
            "float" => MysqlType::Float,
            "double" => MysqlType::Double,
            "bit" => MysqlType::Bit(spelled.number(0)?.unwrap_or(1)),
            "date" => MysqlType::Date,
            "time" => MysqlType::Time(fraction()?),
            "datetime" => MysqlType::DateTime(fraction()?),
            "timestamp" => MysqlType::Timestamp(fraction()?),
            "char" => MysqlType::Char(spelled.number(0)?.unwrap_or(1), spelled.charset()?),
            "varchar" => {
                MysqlType::VarChar(spelled.number(0)?.ok_or_else(unknown)?, spelled.charset()?)
            }
            "tinytext" => MysqlType::Text(1, spelled.charset()?),
            "text" => MysqlType::Text(2, spelled.charset()?),
            "mediumtext" => MysqlType::Text(3, spelled.charset()?),
            "longtext" => MysqlType::Text(4, spelled.charset()?),
            "binary" => MysqlType::Binary(spelled.number(0)?.unwrap_or(1)),
            "varbinary" => MysqlType::VarBinary(spelled.number(0)?.ok_or_else(unknown)?),
            "tinyblob" => MysqlType::Blob(1),
            "blob" => MysqlType::Blob(2),
            "mediumblob" => MysqlType::Blob(3),
            "longblob" => MysqlType::Blob(4),
            "enum" => MysqlType::Enum(spelled.labels()?, spelled.charset()?),
            "set" => MysqlType::Set(spelled.labels()?, spelled.charset()?),
            "json" => MysqlType::Json,
            "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring"
            | "multipolygon" | "geometrycollection" | "geomcollection" => MysqlType::Geometry,
            "vector" => MysqlType::Vector,
            "uuid" => MysqlType::Uuid,
            "inet4" => MysqlType::Inet4,
            "inet6" => MysqlType::Inet6,
            _ => return Err(unknown()),
        })
    }

    /// Whether it is an ENUM with the label ''. A text that is no label becomes number 0, which
    /// prints as '' too.
    #[must_use]
    pub fn has_empty_label(&self) -> bool {
        matches!(self, MysqlType::Enum(labels, _) if labels.has_empty())
    }

    /// What the values mean to other databases. A LONGTEXT that MariaDB checks to be JSON is
    /// `Json`; only the catalog can know that.
    #[must_use]
    pub fn column_type(&self) -> ColumnType {
        match self {
            MysqlType::Integer { bytes: 1, .. }
            | MysqlType::Integer { bytes: 2, unsigned: false }
            | MysqlType::Year => ColumnType::Int16,
            MysqlType::Integer { bytes: 2 | 3, .. }
            | MysqlType::Integer { bytes: 4, unsigned: false } => ColumnType::Int32,
            MysqlType::Integer { bytes: 4, .. } | MysqlType::Integer { unsigned: false, .. } => {
                ColumnType::Int64
            }
            MysqlType::Integer { .. } | MysqlType::Decimal { .. } => ColumnType::Numeric,
            MysqlType::Float => ColumnType::Float32,
            MysqlType::Double => ColumnType::Float64,
            MysqlType::Date => ColumnType::Date,
            MysqlType::Time(_) => ColumnType::Duration,
            MysqlType::DateTime(_) => ColumnType::Timestamp,
            MysqlType::Timestamp(_) => ColumnType::TimestampTz,
            MysqlType::Char(..)
            | MysqlType::VarChar(..)
            | MysqlType::Text(..)
            | MysqlType::Enum(..)
            | MysqlType::Set(..) => ColumnType::Text,
            MysqlType::Binary(_)
            | MysqlType::VarBinary(_)
            | MysqlType::Blob(_)
            | MysqlType::Geometry
            | MysqlType::Vector => ColumnType::Bytes,
            MysqlType::Json => ColumnType::Json,
            MysqlType::Uuid => ColumnType::Uuid,
            MysqlType::Bit(_) | MysqlType::Inet4 | MysqlType::Inet6 => ColumnType::Other,
        }
    }
}

impl MysqlType {
    /// Whether values of this type are laid out like that in the log.
    #[must_use]
    pub fn fits(&self, wire: Wire) -> bool {
        let characters = |length: u16, charset: &Charset| u32::from(length) * charset.char_bytes();
        match (self, wire) {
            (MysqlType::Integer { bytes, .. }, Wire::Integer(wire)) => *bytes == wire,
            (MysqlType::Decimal { precision, scale }, Wire::Decimal { precision: p, scale: s }) => {
                (*precision, *scale) == (p, s)
            }
            (MysqlType::Year, Wire::Year)
            | (MysqlType::Float, Wire::Float)
            | (MysqlType::Double, Wire::Double)
            | (MysqlType::Date, Wire::Date)
            | (MysqlType::Json, Wire::Json(_))
            | (MysqlType::Geometry, Wire::Geometry(_))
            | (MysqlType::Vector, Wire::Vector(_) | Wire::VarChar(_))
            | (MysqlType::Uuid | MysqlType::Inet6, Wire::String(16))
            | (MysqlType::Inet4, Wire::String(4)) => true,
            (MysqlType::Time(digits), Wire::Time(wire))
            | (MysqlType::DateTime(digits), Wire::DateTime(wire))
            | (MysqlType::Timestamp(digits), Wire::Timestamp(wire)) => *digits == wire,
            (MysqlType::Bit(bits), Wire::Bit(wire)) => u16::from(*bits) == wire,
            (MysqlType::Char(length, charset), Wire::String(wire))
            | (MysqlType::VarChar(length, charset), Wire::VarChar(wire)) => {
                characters(*length, charset) == u32::from(wire)
            }
            (MysqlType::Binary(length), Wire::String(wire))
            | (MysqlType::VarBinary(length), Wire::VarChar(wire)) => *length == wire,
            (MysqlType::Text(bytes, _) | MysqlType::Blob(bytes), Wire::Blob(wire)) => {
                *bytes == wire
            }
            (MysqlType::Enum(labels, _), Wire::Enum(wire)) => {
                usize::from(wire) == if labels.count() < 256 { 1 } else { 2 }
            }
            (MysqlType::Set(labels, _), Wire::Set(wire)) => {
                usize::from(wire)
                    == match labels.count().div_ceil(8) {
                        5..=7 => 8,
                        bytes => bytes,
                    }
            }
            _ => false,
        }
    }
}

/// A type's spelling, taken apart.
struct Spelled {
    name: String,
    /// What stands in the parentheses, unquoted where it was quoted.
    arguments: Vec<String>,
    unsigned: bool,
    charset: Option<String>,
}

impl Spelled {
    fn read(native: &str) -> Decoded<Spelled> {
        let wrong = || Malformed::new("has a type whose spelling is not understood");
        let end = native.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(native.len());
        let (name, mut rest) = native.split_at(end);
        let mut arguments = Vec::new();
        if let Some(inside) = rest.strip_prefix('(') {
            rest = inside;
            loop {
                let (argument, after) = argument(rest).ok_or_else(wrong)?;
                arguments.push(argument);
                match after.as_bytes().first() {
                    Some(b',') => rest = &after[1..],
                    Some(b')') => {
                        rest = &after[1..];
                        break;
                    }
                    _ => return Err(wrong()),
                }
            }
        }
        let (modifiers, charset) = match rest.split_once(" character set ") {
            Some((modifiers, charset)) => (modifiers, Some(charset.to_owned())),
            None => (rest, None),
        };
        let known = |word: &&str| matches!(*word, "unsigned" | "zerofill");
        if !modifiers.split_ascii_whitespace().all(|word| known(&word)) {
            return Err(wrong());
        }
        let unsigned = !modifiers.is_empty();
        Ok(Spelled { name: name.to_ascii_lowercase(), arguments, unsigned, charset })
    }

    fn integer(&self, bytes: u8) -> MysqlType {
        MysqlType::Integer { bytes, unsigned: self.unsigned }
    }

    fn number<T: std::str::FromStr>(&self, index: usize) -> Decoded<Option<T>> {
        let parse = |text: &String| {
            text.parse().map_err(|_| Malformed::new("has a type with a number that is too large"))
        };
        self.arguments.get(index).map(parse).transpose()
    }

    fn labels(&self) -> Decoded<Labels> {
        match self.arguments.is_empty() {
            true => Err(Malformed::new("has no labels")),
            false => Ok(Labels::spelled(self.arguments.clone())),
        }
    }

    fn charset(&self) -> Decoded<Charset> {
        let name = self.charset.as_deref().ok_or_else(|| Malformed::new("has no character set"))?;
        Charset::named(name).ok_or_else(|| {
            Malformed(format!("has the character set {name}, which is not replicated"))
        })
    }
}

/// One argument in parentheses, and what follows it.
fn argument(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('\'') else {
        let end = text.find([',', ')'])?;
        return Some((text[..end].trim().to_owned(), &text[end..]));
    };
    let mut label = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\'' if quoted[at + 1..].starts_with('\'') => {
                characters.next();
                label.push('\'');
            }
            '\'' => return Some((label, &quoted[at + 1..])),
            '\\' => label.push(match characters.next()?.1 {
                '0' => '\0',
                'n' => '\n',
                'r' => '\r',
                other => other,
            }),
            other => label.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(native: &str, expected: &MysqlType, column_type: ColumnType, wire: Wire) {
        let mysql_type = MysqlType::parse(native).unwrap();
        assert_eq!(mysql_type, *expected, "{native}");
        assert_eq!(mysql_type.column_type(), column_type, "{native}");
        assert!(mysql_type.fits(wire), "{native} {wire:?}");
        assert!(!mysql_type.fits(Wire::Other(7)), "{native}");
    }

    #[test]
    fn types_of_both_servers_are_read() {
        let integer = |bytes, unsigned| MysqlType::Integer { bytes, unsigned };
        let utf8 = Charset::Utf8(4);
        check("tinyint(1)", &integer(1, false), ColumnType::Int16, Wire::Integer(1));
        check("smallint(5) unsigned", &integer(2, true), ColumnType::Int32, Wire::Integer(2));
        check(
            "mediumint(8) unsigned zerofill",
            &integer(3, true),
            ColumnType::Int32,
            Wire::Integer(3),
        );
        check("int", &integer(4, false), ColumnType::Int32, Wire::Integer(4));
        check("int(10) unsigned", &integer(4, true), ColumnType::Int64, Wire::Integer(4));
        check("bigint(20) unsigned", &integer(8, true), ColumnType::Numeric, Wire::Integer(8));
        check("year(4)", &MysqlType::Year, ColumnType::Int16, Wire::Year);
        let decimal = MysqlType::Decimal { precision: 10, scale: 2 };
        check(
            "decimal(10,2) unsigned",
            &decimal,
            ColumnType::Numeric,
            Wire::Decimal { precision: 10, scale: 2 },
        );
        check("float(7,3)", &MysqlType::Float, ColumnType::Float32, Wire::Float);
        check("double unsigned", &MysqlType::Double, ColumnType::Float64, Wire::Double);
        check("bit(9)", &MysqlType::Bit(9), ColumnType::Other, Wire::Bit(9));
        check("time(3)", &MysqlType::Time(3), ColumnType::Duration, Wire::Time(3));
        check("datetime", &MysqlType::DateTime(0), ColumnType::Timestamp, Wire::DateTime(0));
        check(
            "timestamp(6)",
            &MysqlType::Timestamp(6),
            ColumnType::TimestampTz,
            Wire::Timestamp(6),
        );
        check(
            "char(255) character set utf8mb4",
            &MysqlType::Char(255, utf8),
            ColumnType::Text,
            Wire::String(1020),
        );
        check(
            "varchar(20) character set gbk",
            &MysqlType::VarChar(20, Charset::named("gbk").unwrap()),
            ColumnType::Text,
            Wire::VarChar(40),
        );
        check(
            "mediumtext character set utf8mb4",
            &MysqlType::Text(3, utf8),
            ColumnType::Text,
            Wire::Blob(3),
        );
        check("binary(3)", &MysqlType::Binary(3), ColumnType::Bytes, Wire::String(3));
        check("geomcollection", &MysqlType::Geometry, ColumnType::Bytes, Wire::Geometry(4));
        check("json", &MysqlType::Json, ColumnType::Json, Wire::Json(4));
        check("inet6", &MysqlType::Inet6, ColumnType::Other, Wire::String(16));
        check("vector(3)", &MysqlType::Vector, ColumnType::Bytes, Wire::Vector(4));
    }

    fn labels(native: &str) -> Vec<String> {
        match MysqlType::parse(native).unwrap() {
            MysqlType::Enum(labels, _) | MysqlType::Set(labels, _) => labels.labels,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn labels_are_unquoted_as_the_server_quotes_them() {
        let native = r#"enum('a','b''c','d\\e','f\ng','','h,i',')') character set utf8mb4"#;
        assert_eq!(labels(native), ["a", "b'c", "d\\e", "f\ng", "", "h,i", ")"]);
        assert_eq!(labels("set('x','y z') character set latin1"), ["x", "y z"]);
    }

    #[test]
    fn a_label_that_the_catalog_cannot_spell_is_not_guessed() {
        let labels = Labels::spelled(vec!["a".into(), "?".into()]);
        assert_eq!(labels.get(0), Ok("a"));
        assert!(labels.get(1).is_err());
        assert!(labels.get(2).is_err());
        let exact = Labels::exact(&[b"?"], Charset::Utf8(4)).unwrap();
        assert_eq!(exact.get(0), Ok("?"));
    }

    #[test]
    fn what_is_not_replicated_says_why() {
        for (native, why) in [
            ("varchar(100) /*M!100301 COMPRESSED*/ character set utf8mb4", "is compressed"),
            ("xmltype", "is unknown"),
            ("text", "has no character set"),
            ("text character set klingon", "character set klingon, which is not replicated"),
            ("decimal(300,2)", "too large"),
            ("int(11) frobnicated", "spelling"),
            ("enum('a", "spelling"),
        ] {
            let error = MysqlType::parse(native).unwrap_err().0;
            assert!(error.contains(why), "{native}: {error}");
        }
    }
}
