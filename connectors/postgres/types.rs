//! Which types the columns of a target table have, and the text of what we write beside them.
//! Pure. Used by `sql.rs` for DDL and by `target/shape.rs` to compare with what is there.
//! Surprise: names are spelled as `format_type` spells them, because that is what they are
//! compared with.

use std::borrow::Cow;
use std::io::Write as _;

use crate::calendar::Civil;
use crate::change::Timestamp;
use crate::hex;
use crate::schema::{Column, ColumnType, Engine, TableSchema};
use crate::version::Version;

/// The type of a column in the target, as `format_type` writes it.
#[must_use]
pub fn target_type(engine: Engine, column: &Column, is_key: bool) -> Cow<'_, str> {
    let native = column.native.as_deref().unwrap_or_default();
    match engine {
        Engine::Postgres if is_builtin_spelling(native) => Cow::Borrowed(native),
        Engine::Mysql | Engine::Mariadb if column.column_type == ColumnType::Numeric => {
            mysql_numeric(native).map_or(Cow::Borrowed("numeric"), Cow::Owned)
        }
        _ => Cow::Borrowed(mapped(column.column_type, is_key)),
    }
}

/// The exact numbers of MySQL that have a size: `decimal(10,2)`, `bigint(20) unsigned`. Only the
/// numbers of the spelling are used, because it comes from another server.
fn mysql_numeric(native: &str) -> Option<String> {
    if native.starts_with("bigint") {
        return Some("numeric(20,0)".into());
    }
    let (numbers, _) = native.strip_prefix("decimal(")?.split_once(')')?;
    let (precision, scale) = numbers.split_once(',')?;
    let (precision, scale): (u16, u16) = (precision.parse().ok()?, scale.parse().ok()?);
    Some(format!("numeric({precision},{scale})"))
}

/// The type for a column whose source has no type of ours.
fn mapped(column_type: ColumnType, is_key: bool) -> &'static str {
    match column_type {
        ColumnType::Bool => "boolean",
        ColumnType::Int16 => "smallint",
        ColumnType::Int32 => "integer",
        ColumnType::Int64 => "bigint",
        ColumnType::Float32 => "real",
        ColumnType::Float64 => "double precision",
        ColumnType::Numeric => "numeric",
        ColumnType::Bytes => "bytea",
        ColumnType::Date => "date",
        ColumnType::Time => "time without time zone",
        ColumnType::Duration => "interval",
        ColumnType::Timestamp => "timestamp without time zone",
        ColumnType::TimestampTz => "timestamp with time zone",
        ColumnType::Uuid => "uuid",
        // `json` has no equality, so it cannot be a key; unlike `jsonb` it keeps the exact text.
        ColumnType::Json if !is_key => "json",
        ColumnType::Json | ColumnType::Text | ColumnType::Other => "text",
    }
}

/// Whether this is a type name that can stand in DDL: words, one modifier of numbers, more words,
/// and array brackets. The name comes from another server, so it is not pasted unread.
fn is_builtin_spelling(native: &str) -> bool {
    let name = native.trim_end_matches("[]");
    if name == "\"char\"" {
        return true;
    }
    let (head, modifier, tail) = match name.split_once('(') {
        None => (name, "0", ""),
        Some((head, rest)) => match rest.split_once(')') {
            None => return false,
            Some((modifier, tail)) => (head, modifier, tail),
        },
    };
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == ' ';
    let number = |c: char| c.is_ascii_digit() || c == ',' || c == '-';
    head.starts_with(|c: char| c.is_ascii_lowercase())
        && head.chars().all(word)
        && !modifier.is_empty()
        && modifier.chars().all(number)
        && tail.chars().all(word)
}

/// Whether values of this type are ordered by a collation.
#[must_use]
pub fn is_collatable(type_name: &str) -> bool {
    let name = type_name.trim_end_matches("[]");
    name == "text"
        || name == "bpchar"
        || name.starts_with("character varying")
        || name == "character"
        || name.starts_with("character(")
}

/// Whether two keys can be equal in SQL although their texts differ, as `1.0` and `1.00` are.
#[must_use]
pub fn has_loose_key(table: &TableSchema) -> bool {
    table.key_columns().any(|column| match column.column_type {
        ColumnType::Bool
        | ColumnType::Int16
        | ColumnType::Int32
        | ColumnType::Int64
        | ColumnType::Bytes
        | ColumnType::Date
        | ColumnType::Time
        | ColumnType::Timestamp
        | ColumnType::TimestampTz
        | ColumnType::Uuid => false,
        ColumnType::Text => column.native.as_deref().is_some_and(|native| {
            native == "bpchar" || native.starts_with("character(") || native == "character"
        }),
        ColumnType::Float32
        | ColumnType::Float64
        | ColumnType::Numeric
        | ColumnType::Duration
        | ColumnType::Json
        | ColumnType::Other => true,
    })
}

/// A version out of what PostgreSQL prints for a `bytea`.
#[must_use]
pub fn parse_version(text: &str) -> Option<Version> {
    Version::from_bytes(&hex::parse(text.strip_prefix("\\x")?)?)
}

/// Appends an instant as PostgreSQL reads it, in UTC.
pub fn push_timestamp(out: &mut Vec<u8>, timestamp: Timestamp) {
    let Civil { date: (year, month, day), time: (hour, minute, second), micros } =
        Civil::of(timestamp);
    // The year before 1 is 1 BC.
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    // Writing to memory cannot fail.
    let _ = write!(
        out,
        "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06}+00{era}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_type(native: Option<&str>, column_type: ColumnType, expected: &str) {
        check_type_of(Engine::Postgres, native, column_type, expected);
    }

    fn check_type_of(
        engine: Engine,
        native: Option<&str>,
        column_type: ColumnType,
        expected: &str,
    ) {
        let native = native.map(str::to_owned);
        let column = Column { name: "c".into(), column_type, native, id: 1 };
        assert_eq!(target_type(engine, &column, false), expected);
    }

    #[test]
    fn types_of_mysql_are_mapped_and_never_pasted() {
        use ColumnType::{Duration, Numeric, Other, Text, TimestampTz};
        for engine in [Engine::Mysql, Engine::Mariadb] {
            let check = |native, column_type, expected| {
                check_type_of(engine, Some(native), column_type, expected);
            };
            check("decimal(10,2)", Numeric, "numeric(10,2)");
            check("decimal(65,38) unsigned", Numeric, "numeric(65,38)");
            check("bigint(20) unsigned", Numeric, "numeric(20,0)");
            check("decimal(1,2); DROP TABLE t", Numeric, "numeric(1,2)");
            check("decimal(x,2)", Numeric, "numeric");
            check("varchar(20) character set latin1", Text, "text");
            check("enum('a') character set utf8mb4", Text, "text");
            check("text", Text, "text");
            check("time(6)", Duration, "interval");
            check("timestamp(3)", TimestampTz, "timestamp with time zone");
            check("bit(8)", Other, "text");
        }
    }

    #[test]
    fn a_type_that_every_server_knows_is_kept() {
        for native in [
            "numeric(10,2)",
            "numeric(3,-2)",
            "timestamp(3) without time zone",
            "interval day to second(3)",
            "character varying(10)[]",
            "\"char\"",
            "int4range",
        ] {
            check_type(Some(native), ColumnType::Other, native);
        }
    }

    #[test]
    fn a_name_that_is_no_type_is_not_pasted_into_ddl() {
        for native in ["text, x int", "text; drop table t", "text)", "a'b", "", "int(", "n()"] {
            check_type(Some(native), ColumnType::Other, "text");
        }
    }

    #[test]
    fn a_type_that_users_made_becomes_text() {
        check_type(None, ColumnType::Other, "text");
        check_type(None, ColumnType::TimestampTz, "timestamp with time zone");
    }

    fn check_timestamp(micros: i64, expected: &str) {
        let mut text = Vec::new();
        push_timestamp(&mut text, Timestamp(micros));
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn instants_are_written_to_the_microsecond() {
        check_timestamp(0, "1970-01-01 00:00:00.000000+00");
        check_timestamp(-1, "1969-12-31 23:59:59.999999+00");
        check_timestamp(951_782_400_000_001, "2000-02-29 00:00:00.000001+00");
        check_timestamp(-62_135_596_800_000_001, "0001-12-31 23:59:59.999999+00 BC");
    }
}
