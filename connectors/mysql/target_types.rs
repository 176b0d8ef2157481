//! What a column becomes in a MySQL or MariaDB target.
//! Pure. Used by `sql.rs` for DDL and by `target/shape.rs`; the values themselves are written and
//! read by `target_values.rs`.
//!
//! | source | target |
//! |---|---|
//! | boolean | `tinyint(1)` |
//! | integers of every size and sign, `year`, `bit(n)`, `enum`, `set`, `binary(n)` | the same |
//! | `real`, `float`; `double` | `float`; `double` |
//! | `numeric(p,s)`, `decimal(p,s)` that fit | `decimal(p,s)` |
//! | other numerics, JSON, and all types without an equal here | `longtext` |
//! | `char(n)`, `varchar(n)` of MySQL | `varchar(n)`; in very wide rows `text` or `mediumtext` |
//! | `text` of PostgreSQL; the `text` family of MySQL | `longtext`; the same or the next larger |
//! | bytes: `bytea`; `varbinary(n)` and the `blob` family | `longblob`; the same |
//! | date; time and lengths of time; times without zone | `date`; `time(6)`; `datetime(6)` |
//! | instants; MySQL's `timestamp(n)` | `datetime(6)` in UTC; `timestamp(n)` |
//! | uuid | `char(36)` |
//!
//! In a key, texts, enums and sets become `varchar`, bytes `varbinary`, of as many characters or
//! bytes as fit into InnoDB's keys, and timestamps `datetime`.
//!
//! The sign of zero is not kept.
//!
//! Surprise: text is compared without padding and by its bytes, so that keys which differ at the
//! source never meet; and CHAR is never used for it, because it drops blanks.

use super::charset::Charset;
use super::quote;
use super::spelling::push_text;
use super::target_values::Form;
use super::types::{Labels, MysqlType};
use crate::schema::{Column, ColumnType, Engine, TableSchema};

const UTF8MB4: Charset = Charset::Utf8(4);
/// The most bytes that the columns of an InnoDB key have together.
const KEY_BYTES_MAX: u32 = 3072;
/// The server allows 65,535 bytes a row besides long texts; some are left for columns to come.
const ROW_BYTES_MAX: u32 = 56_000;
/// Of a `text` or `blob` only a pointer counts.
const POINTER_BYTES: u32 = 12;
/// The longest label of an `enum`.
const LABEL_CHARACTERS_MAX: u32 = 255;
/// The number of bytes in which `longtext` and `longblob` write their length.
const LONG: u8 = 4;

/// A column of a target table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredColumn {
    /// How values are written and read.
    pub form: Form,
    /// Its type.
    pub physical: MysqlType,
}

/// Whether two keys can be equal to the server although their texts differ, as `1.0` and `1.00` are.
#[must_use]
pub fn has_loose_key(table: &TableSchema, columns: &[StoredColumn]) -> bool {
    table.key.iter().any(|&index| match columns[index].form {
        Form::Bool
        | Form::Integer
        | Form::Year
        | Form::Bits(_)
        | Form::Text(_)
        | Form::Bytes(_)
        | Form::FixedBytes(_)
        | Form::Date => false,
        Form::Single
        | Form::Double
        | Form::Decimal { .. }
        | Form::Time(_)
        | Form::DateTime(_)
        | Form::Instant(_) => true,
    })
}

/// The columns of a source table as this server stores them, in the order of the source.
#[must_use]
pub fn stored_columns(table: &TableSchema, server: Engine) -> Vec<StoredColumn> {
    let wanted: Vec<Wanted> = table
        .columns
        .iter()
        .enumerate()
        .map(|(index, column)| wanted(table.engine, column, table.is_key(index), server))
        .collect();
    let shares = key_shares(table, &wanted);
    let mut row_bytes = KEY_BYTES_MAX;
    let column = |(index, wanted): (usize, &Wanted)| match shares[index] {
        Some(bytes) => wanted.in_key(bytes),
        None => wanted.in_row(&mut row_bytes),
    };
    wanted.iter().enumerate().map(column).collect()
}

/// What a column asks for, before the limits of key and row.
#[derive(Clone, Debug)]
enum Wanted {
    Fixed(Form, MysqlType),
    /// Up to so many characters.
    Characters(u32),
    /// A text type, by the bytes of its length.
    Text(u8),
    /// Up to so many bytes.
    Octets(u32),
    /// A blob type, by the bytes of its length.
    Blob(u8),
}

impl Wanted {
    /// Bytes of a key; `None` for what takes as many as it gets.
    fn key_bytes(&self) -> Option<u32> {
        match self {
            Wanted::Fixed(_, physical) => Some(width(physical)),
            Wanted::Characters(count) => Some(count.saturating_mul(4)),
            Wanted::Octets(count) => Some(*count),
            Wanted::Text(_) | Wanted::Blob(_) => None,
        }
    }

    fn in_key(&self, bytes: u32) -> StoredColumn {
        match self {
            Wanted::Fixed(form, physical) => {
                StoredColumn { form: *form, physical: physical.clone() }
            }
            Wanted::Characters(_) | Wanted::Text(_) => varchar(bytes / 4),
            Wanted::Octets(_) | Wanted::Blob(_) => varbinary(bytes),
        }
    }

    /// Takes its bytes of the row, as long as there are any.
    fn in_row(&self, row_bytes: &mut u32) -> StoredColumn {
        let (bytes, column) = match self {
            Wanted::Fixed(form, physical) => {
                (width(physical), StoredColumn { form: *form, physical: physical.clone() })
            }
            Wanted::Characters(count) => (count.saturating_mul(4), varchar(*count)),
            Wanted::Octets(count) => (*count, varbinary(*count)),
            Wanted::Text(size) => (POINTER_BYTES, text(*size)),
            Wanted::Blob(size) => (POINTER_BYTES, blob(*size)),
        };
        let after = row_bytes.saturating_add(bytes).saturating_add(2);
        if after <= ROW_BYTES_MAX {
            *row_bytes = after;
            return column;
        }
        *row_bytes = row_bytes.saturating_add(POINTER_BYTES);
        let size = if bytes <= u32::from(u16::MAX) { 2 } else { 3 };
        match self {
            Wanted::Characters(_) => text(size),
            Wanted::Octets(_) => blob(size),
            Wanted::Fixed(..) | Wanted::Text(_) | Wanted::Blob(_) => column,
        }
    }
}

fn varchar(characters: u32) -> StoredColumn {
    let characters = characters.max(1);
    StoredColumn {
        form: Form::Text(Some(characters)),
        physical: MysqlType::VarChar(characters as u16, UTF8MB4),
    }
}

fn varbinary(bytes: u32) -> StoredColumn {
    let bytes = bytes.max(1);
    StoredColumn { form: Form::Bytes(Some(bytes)), physical: MysqlType::VarBinary(bytes as u16) }
}

fn text(size: u8) -> StoredColumn {
    StoredColumn { form: Form::Text(None), physical: MysqlType::Text(size, UTF8MB4) }
}

fn blob(size: u8) -> StoredColumn {
    StoredColumn { form: Form::Bytes(None), physical: MysqlType::Blob(size) }
}

/// Bytes that a value of this type has at most in a row or a key.
fn width(physical: &MysqlType) -> u32 {
    match physical {
        MysqlType::Integer { bytes, .. } => u32::from(*bytes),
        MysqlType::Year => 1,
        MysqlType::Decimal { precision, .. } => u32::from(*precision) / 2 + 2,
        MysqlType::Bit(_) | MysqlType::Double | MysqlType::Set(..) => 8,
        MysqlType::Float | MysqlType::Date => 4,
        MysqlType::Time(_) | MysqlType::DateTime(_) | MysqlType::Timestamp(_) => 8,
        MysqlType::Enum(..) => 2,
        MysqlType::Char(count, Charset::Ascii) | MysqlType::Binary(count) => u32::from(*count),
        MysqlType::Char(count, _) | MysqlType::VarChar(count, _) => u32::from(*count) * 4,
        MysqlType::VarBinary(count) => u32::from(*count),
        MysqlType::Text(..)
        | MysqlType::Blob(_)
        | MysqlType::Json
        | MysqlType::Geometry
        | MysqlType::Vector
        | MysqlType::Uuid
        | MysqlType::Inet4
        | MysqlType::Inet6 => POINTER_BYTES,
    }
}

/// How many bytes of the key each of its columns gets. Those that need little get all of it, the
/// others share what is left.
fn key_shares(table: &TableSchema, wanted: &[Wanted]) -> Vec<Option<u32>> {
    let mut shares = vec![None; wanted.len()];
    let mut places: Vec<(u32, usize)> = table
        .key
        .iter()
        .map(|&index| (wanted[index].key_bytes().unwrap_or(KEY_BYTES_MAX), index))
        .collect();
    places.sort_unstable();
    let (mut bytes_left, mut columns_left) = (KEY_BYTES_MAX, places.len() as u32);
    for (bytes, index) in places {
        let share = bytes.min(bytes_left / columns_left);
        shares[index] = Some(share);
        (bytes_left, columns_left) = (bytes_left - share, columns_left - 1);
    }
    shares
}

fn wanted(engine: Engine, column: &Column, is_key: bool, server: Engine) -> Wanted {
    let native = column.native.as_deref().unwrap_or_default();
    let same = match engine {
        Engine::Mysql | Engine::Mariadb => {
            MysqlType::parse(native).ok().and_then(|native| kept(&native, is_key, server))
        }
        Engine::Postgres => postgres_decimal(native).filter(|_| {
            // Of an array or a range the native name is no number.
            column.column_type == ColumnType::Numeric
        }),
        Engine::Memory => None,
    };
    match same {
        // MariaDB's JSON is a text with a condition.
        Some(_) if column.column_type == ColumnType::Json => Wanted::Text(LONG),
        Some(wanted) => wanted,
        None => mapped(column.column_type),
    }
}

/// What a type of MySQL or MariaDB becomes; `None` for those that have no equal.
fn kept(native: &MysqlType, is_key: bool, server: Engine) -> Option<Wanted> {
    let scale_max = if server == Engine::Mariadb { 38 } else { 30 };
    let fixed = |form| Some(Wanted::Fixed(form, native.clone()));
    match native {
        MysqlType::Integer { .. } => fixed(Form::Integer),
        MysqlType::Year => fixed(Form::Year),
        MysqlType::Decimal { precision, scale } if *precision <= 65 && *scale <= scale_max => {
            fixed(Form::Decimal { precision: *precision, scale: *scale })
        }
        MysqlType::Float => fixed(Form::Single),
        MysqlType::Double => fixed(Form::Double),
        MysqlType::Bit(count) => fixed(Form::Bits(*count)),
        MysqlType::Date => fixed(Form::Date),
        MysqlType::Time(digits) => fixed(Form::Time(*digits)),
        MysqlType::DateTime(digits) => fixed(Form::DateTime(*digits)),
        // Some servers change a timestamp that is not NULL when nobody has asked them to.
        MysqlType::Timestamp(digits) if is_key => {
            Some(Wanted::Fixed(Form::Instant(*digits), MysqlType::DateTime(*digits)))
        }
        MysqlType::Timestamp(digits) => fixed(Form::Instant(*digits)),
        MysqlType::Char(count, _) | MysqlType::VarChar(count, _) => {
            Some(Wanted::Characters(u32::from(*count)))
        }
        MysqlType::Text(size, charset) => Some(Wanted::Text(match charset {
            Charset::Utf8(_) | Charset::Ascii => *size,
            // The same characters may take more bytes.
            _ => (*size + 1).min(LONG),
        })),
        MysqlType::Binary(count) => fixed(Form::FixedBytes(u32::from(*count))),
        MysqlType::VarBinary(count) => Some(Wanted::Octets(u32::from(*count))),
        MysqlType::Blob(size) => Some(Wanted::Blob(*size)),
        MysqlType::Enum(labels, _) => Some(match certain(labels) {
            Some(_) if !is_key => {
                Wanted::Fixed(Form::Text(None), MysqlType::Enum(labels.clone(), UTF8MB4))
            }
            Some(labels) => {
                let lengths = labels.iter().map(|label| label.chars().count() as u32);
                Wanted::Characters(lengths.max().unwrap_or(1))
            }
            None => Wanted::Characters(LABEL_CHARACTERS_MAX),
        }),
        MysqlType::Set(labels, _) => Some(match certain(labels) {
            Some(_) if !is_key => {
                Wanted::Fixed(Form::Text(None), MysqlType::Set(labels.clone(), UTF8MB4))
            }
            Some(labels) => {
                let lengths = labels.iter().map(|label| label.chars().count() as u32 + 1);
                Wanted::Characters(lengths.sum())
            }
            None => Wanted::Text(2),
        }),
        MysqlType::Inet4 => Some(Wanted::Characters(15)),
        MysqlType::Inet6 => Some(Wanted::Characters(45)),
        MysqlType::Geometry | MysqlType::Vector => Some(Wanted::Blob(LONG)),
        MysqlType::Decimal { .. } | MysqlType::Json | MysqlType::Uuid => None,
    }
}

/// The labels, if the server has spelled them as they are: it writes `?` for what its own
/// character set lacks. In a key they would not do: there an enum is ordered by number and
/// compared by text.
fn certain(labels: &Labels) -> Option<Vec<&str>> {
    (0..labels.count() as u64).map(|index| labels.get(index).ok()).collect()
}

/// `numeric(p,s)` of PostgreSQL, if a decimal can hold it.
fn postgres_decimal(native: &str) -> Option<Wanted> {
    let numbers = native.strip_prefix("numeric(")?.strip_suffix(')')?;
    let (precision, scale) = numbers.split_once(',')?;
    let (precision, scale): (u8, u8) = (precision.parse().ok()?, scale.parse().ok()?);
    if precision > 65 || scale > 30 || scale > precision {
        return None;
    }
    let form = Form::Decimal { precision, scale };
    Some(Wanted::Fixed(form, MysqlType::Decimal { precision, scale }))
}

/// What a type without an equal becomes.
fn mapped(column_type: ColumnType) -> Wanted {
    let integer =
        |bytes| Wanted::Fixed(Form::Integer, MysqlType::Integer { bytes, unsigned: false });
    match column_type {
        ColumnType::Bool => {
            Wanted::Fixed(Form::Bool, MysqlType::Integer { bytes: 1, unsigned: false })
        }
        ColumnType::Int16 => integer(2),
        ColumnType::Int32 => integer(4),
        ColumnType::Int64 => integer(8),
        ColumnType::Float32 => Wanted::Fixed(Form::Single, MysqlType::Float),
        ColumnType::Float64 => Wanted::Fixed(Form::Double, MysqlType::Double),
        ColumnType::Bytes => Wanted::Blob(LONG),
        ColumnType::Date => Wanted::Fixed(Form::Date, MysqlType::Date),
        ColumnType::Time | ColumnType::Duration => Wanted::Fixed(Form::Time(6), MysqlType::Time(6)),
        ColumnType::Timestamp => Wanted::Fixed(Form::DateTime(6), MysqlType::DateTime(6)),
        ColumnType::TimestampTz => Wanted::Fixed(Form::Instant(6), MysqlType::DateTime(6)),
        ColumnType::Uuid => {
            Wanted::Fixed(Form::Text(Some(36)), MysqlType::Char(36, Charset::Ascii))
        }
        ColumnType::Numeric | ColumnType::Text | ColumnType::Json | ColumnType::Other => {
            Wanted::Text(LONG)
        }
    }
}

impl StoredColumn {
    /// The type as it stands in DDL.
    #[must_use]
    pub fn declaration(&self, server: Engine) -> String {
        let signed = |unsigned: bool| if unsigned { " unsigned" } else { "" };
        let letters = |charset: Charset| match charset {
            Charset::Ascii => " CHARACTER SET ascii COLLATE ascii_bin".to_owned(),
            _ => format!(" CHARACTER SET utf8mb4 COLLATE {}", collation(server)),
        };
        let sized = |size: u8, stem: &str| {
            let prefixes = ["tiny", "", "medium", "long"];
            format!("{}{stem}", prefixes[usize::from(size.clamp(1, LONG)) - 1])
        };
        match &self.physical {
            MysqlType::Integer { .. } if self.form == Form::Bool => "tinyint(1)".into(),
            MysqlType::Integer { bytes, unsigned } => {
                let name = match bytes {
                    1 => "tinyint",
                    2 => "smallint",
                    3 => "mediumint",
                    4 => "int",
                    _ => "bigint",
                };
                format!("{name}{}", signed(*unsigned))
            }
            MysqlType::Year => "year".into(),
            MysqlType::Decimal { precision, scale } => format!("decimal({precision},{scale})"),
            MysqlType::Float => "float".into(),
            MysqlType::Double => "double".into(),
            MysqlType::Bit(count) => format!("bit({count})"),
            MysqlType::Date => "date".into(),
            MysqlType::Time(digits) => format!("time({digits})"),
            MysqlType::DateTime(digits) => format!("datetime({digits})"),
            MysqlType::Timestamp(digits) => format!("timestamp({digits})"),
            MysqlType::Char(count, charset) => format!("char({count}){}", letters(*charset)),
            MysqlType::VarChar(count, charset) => format!("varchar({count}){}", letters(*charset)),
            MysqlType::Text(size, charset) => sized(*size, "text") + &letters(*charset),
            MysqlType::Binary(count) => format!("binary({count})"),
            MysqlType::VarBinary(count) => format!("varbinary({count})"),
            MysqlType::Blob(size) => sized(*size, "blob"),
            MysqlType::Enum(labels, charset) => {
                format!("enum({}){}", quoted(labels), letters(*charset))
            }
            MysqlType::Set(labels, charset) => {
                format!("set({}){}", quoted(labels), letters(*charset))
            }
            // No column of ours has one of these.
            MysqlType::Json
            | MysqlType::Geometry
            | MysqlType::Vector
            | MysqlType::Uuid
            | MysqlType::Inet4
            | MysqlType::Inet6 => "longblob".into(),
        }
    }

    /// The column's value as an expression to be selected.
    #[must_use]
    pub fn selected(&self, column: &str) -> String {
        match self.form {
            // The server prints no more than six digits of a single.
            Form::Single => format!("CAST({column} AS DOUBLE)"),
            _ => column.to_owned(),
        }
    }

    /// Whether values of this column find their place in one of this type, as long as it is no
    /// key: the same type, or one for longer texts.
    #[must_use]
    pub fn fits(&self, found: &MysqlType, is_key: bool) -> bool {
        let bytes_max = |size: u8| 1_u64 << (8 * u32::from(size));
        match (&self.physical, found) {
            (MysqlType::VarChar(count, a), MysqlType::VarChar(found, b)) => {
                found >= count && a == b
            }
            (MysqlType::VarBinary(count), MysqlType::VarBinary(found)) => found >= count,
            (MysqlType::VarChar(count, a), MysqlType::Text(size, b)) => {
                !is_key && a == b && u64::from(*count) * 4 < bytes_max(*size)
            }
            (MysqlType::VarBinary(count), MysqlType::Blob(size)) => {
                !is_key && u64::from(*count) < bytes_max(*size)
            }
            (MysqlType::Text(size, a), MysqlType::Text(found, b)) => found >= size && a == b,
            (MysqlType::Blob(size), MysqlType::Blob(found)) => found >= size,
            (physical, found) => physical == found,
        }
    }
}

/// The collation of texts: by code points, trailing blanks count.
#[must_use]
pub fn collation(server: Engine) -> &'static str {
    match server {
        Engine::Mariadb => "utf8mb4_nopad_bin",
        _ => "utf8mb4_0900_bin",
    }
}

/// A list of labels. DDL takes no literal that names its character set; bare hexadecimal digits
/// are in that of the column.
fn quoted(labels: &Labels) -> String {
    let literal = |label: &str| match label.contains(['\\', '\0', '\u{1a}']) {
        true => quote::bytes(label.as_bytes()),
        false => {
            let mut literal = String::new();
            push_text(&mut literal, label);
            literal
        }
    };
    let labels = certain(labels).unwrap_or_default();
    labels.into_iter().map(literal).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::TableName;

    fn table(engine: Engine, columns: &[(ColumnType, &str)], key: &[usize]) -> TableSchema {
        let column = |(column_type, native): &(ColumnType, &str)| Column {
            name: "c".into(),
            column_type: *column_type,
            native: Some((*native).into()),
            id: 1,
        };
        TableSchema {
            name: TableName::new("s", "t"),
            id: 1,
            engine,
            columns: columns.iter().map(column).collect(),
            key: key.to_vec(),
        }
    }

    /// Types beside a key, in MariaDB, without what is said of characters.
    fn check(engine: Engine, column_type: ColumnType, native: &str, expected: &str) {
        let key = (ColumnType::Int64, "bigint");
        let table = table(engine, &[key, (column_type, native)], &[0]);
        let columns = stored_columns(&table, Engine::Mariadb);
        let declared = columns[1].declaration(Engine::Mariadb);
        assert_eq!(declared.split(" CHARACTER SET").next(), Some(expected), "{native}");
    }

    /// The key's types.
    fn check_key(engine: Engine, columns: &[(ColumnType, &str)], expected: &[&str]) {
        let key: Vec<usize> = (0..columns.len()).collect();
        let columns = stored_columns(&table(engine, columns, &key), Engine::Mysql);
        let declared: Vec<String> = columns.iter().map(|c| c.declaration(Engine::Mysql)).collect();
        let types: Vec<_> =
            declared.iter().map(|text| text.split(" CHARACTER").next().unwrap()).collect();
        assert_eq!(types, expected);
    }

    #[test]
    fn types_of_postgresql_are_mapped() {
        use ColumnType::*;
        for (column_type, native, expected) in [
            (Bool, "boolean", "tinyint(1)"),
            (Float32, "real", "float"),
            (Numeric, "numeric(10,2)", "decimal(10,2)"),
            (Numeric, "numeric(66,2)", "longtext"),
            (Numeric, "numeric(40,31)", "longtext"),
            (Numeric, "numeric(2,3)", "longtext"),
            (Numeric, "numeric", "longtext"),
            (Other, "numeric(10,2)[]", "longtext"),
            (Text, "character(5)", "longtext"),
            (Bytes, "bytea", "longblob"),
            (TimestampTz, "timestamp with time zone", "datetime(6)"),
            (Uuid, "uuid", "char(36)"),
            (Json, "jsonb", "longtext"),
        ] {
            check(Engine::Postgres, column_type, native, expected);
        }
    }

    #[test]
    fn types_of_mysql_are_kept_where_every_server_has_them() {
        use ColumnType::*;
        for (column_type, native, expected) in [
            (Int64, "int(10) unsigned", "int unsigned"),
            (Numeric, "bigint(20) unsigned zerofill", "bigint unsigned"),
            (Numeric, "decimal(65,38)", "decimal(65,38)"),
            (Float32, "float(7,2)", "float"),
            (Text, "char(5) character set latin1", "varchar(5)"),
            (Text, "text character set latin1", "mediumtext"),
            (Text, "text character set utf8mb4", "text"),
            (Text, "enum('a','it''s') character set latin1", "enum('a','it''s')"),
            (Text, "enum('a\\\\b') character set latin1", "enum(X'615C62')"),
            (Text, "enum('a?') character set latin1", "varchar(255)"),
            (Text, "set('a','b') character set latin1", "set('a','b')"),
            (Bytes, "binary(16)", "binary(16)"),
            (Bytes, "point", "longblob"),
            (TimestampTz, "timestamp(3)", "timestamp(3)"),
            (Json, "json", "longtext"),
            (Json, "longtext character set utf8mb4", "longtext"),
            (Uuid, "uuid", "char(36)"),
            (Other, "bit(8)", "bit(8)"),
            (Other, "inet4", "varchar(15)"),
            (Text, "varchar(5), x int", "longtext"),
        ] {
            check(Engine::Mariadb, column_type, native, expected);
        }
    }

    #[test]
    fn the_columns_of_a_key_share_its_bytes() {
        use ColumnType::*;
        check_key(Engine::Postgres, &[(Text, "text")], &["varchar(768)"]);
        check_key(
            Engine::Postgres,
            &[(Text, "text"), (Int64, "bigint"), (Bytes, "bytea")],
            &["varchar(383)", "bigint", "varbinary(1532)"],
        );
        check_key(
            Engine::Mysql,
            &[
                (Text, "varchar(10) character set latin1"),
                (Text, "enum('a','bcd') character set latin1"),
                (Text, "varchar(3000) character set latin1"),
                (TimestampTz, "timestamp"),
            ],
            &["varchar(10)", "varchar(3)", "varchar(753)", "datetime(0)"],
        );
    }

    #[test]
    fn a_wider_column_fits_and_a_narrower_one_does_not() {
        let check = |expected: &str, found: &str, is_key, fits| {
            let native = |text: &str| format!("{text} character set utf8mb4");
            let columns = [(ColumnType::Text, &*native(expected))];
            let column = &stored_columns(&table(Engine::Mysql, &columns, &[]), Engine::Mysql)[0];
            let found = MysqlType::parse(&native(found)).unwrap();
            assert_eq!(column.fits(&found, is_key), fits, "{expected} in {found:?}");
        };
        check("varchar(10)", "varchar(10)", true, true);
        check("varchar(10)", "varchar(11)", true, true);
        check("varchar(10)", "varchar(9)", false, false);
        check("varchar(10)", "text", false, true);
        check("varchar(10)", "text", true, false);
        check("varchar(9999)", "tinytext", false, false);
        check("text", "mediumtext", false, true);
        check("text", "tinytext", false, false);
        let latin = MysqlType::parse("varchar(10) character set latin1").unwrap();
        assert!(!varchar(10).fits(&latin, false));
    }
}
