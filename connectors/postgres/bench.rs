//! What the micro-benchmarks (`benches/hot_path`) reach of this folder: a log in memory to decode,
//! and rows to encode. They are in a crate of their own, which sees only what is public.

use std::sync::Arc;

use super::binary::Encoding;
use super::lsn::{Bookmark, LogIdentity, Lsn};
use super::pgoutput;
use super::target::{Form, RowWriter};
use super::transaction::{Builder, Relation, Shape};
use super::values::Keep;
use crate::change::{RowUpsert, Transaction};
use crate::error::{Code, Error, Result};
use crate::schema::{Column, ColumnType, Engine, TableName, TableSchema};

/// The number of the table in the log.
const TABLE: u32 = 16_384;
const COMMIT: u64 = 0x2000;
const END: u64 = 0x2030;

/// Eleven columns of mixed types; the key comes first.
const COLUMNS: [(&str, ColumnType, &str); 11] = [
    ("id", ColumnType::Int64, "bigint"),
    ("kind", ColumnType::Int32, "integer"),
    ("parent", ColumnType::Int32, "integer"),
    ("amount", ColumnType::Numeric, "numeric(12,2)"),
    ("score", ColumnType::Float64, "double precision"),
    ("active", ColumnType::Bool, "boolean"),
    ("name", ColumnType::Text, "text"),
    ("digest", ColumnType::Text, "text"),
    ("created_at", ColumnType::TimestampTz, "timestamp with time zone"),
    ("token", ColumnType::Uuid, "uuid"),
    ("detail", ColumnType::Json, "jsonb"),
];

/// The messages of one transaction.
pub struct Log {
    table: Arc<TableSchema>,
    messages: Vec<Vec<u8>>,
}

impl Log {
    /// A transaction that writes so many rows, which have so many different keys. Values are text, or
    /// in binary as for a PostgreSQL target.
    #[must_use]
    pub fn new(rows: u64, keys: u64, in_binary: bool) -> Log {
        let encodings = if in_binary { encodings() } else { vec![None; COLUMNS.len()] };
        let mut messages = vec![begin()];
        messages.extend((0..rows).map(|row| insert(1 + row % keys, &encodings)));
        messages.push(commit());
        Log { table: Arc::new(table()), messages }
    }

    /// What the source makes of it.
    ///
    /// # Errors
    /// `protocol`, if this log is not one that PostgreSQL writes.
    pub fn decode(&self) -> Result<Transaction> {
        let identity = LogIdentity { system: "1".into(), timeline: 1 };
        let from = Bookmark { identity, publication: 1, lsn: Lsn(0), log: Lsn(0) };
        let mut builder = Builder::new(from, 1, usize::MAX);
        let shape = Shape { schema: self.table.clone(), columns: Keep::all(&self.table) };
        builder.relation(TABLE, Relation::Table(shape))?;
        let mut transaction = None;
        for message in &self.messages {
            transaction = builder.feed(&pgoutput::decode(message)?)?;
        }
        transaction.ok_or_else(|| Error::stop(Code::Protocol, "the log has no commit"))
    }
}

/// Rows on their way into the target.
///
/// # Errors
/// `internal`, if a row of the log has no key.
pub fn upserts(transaction: Transaction) -> Result<Vec<RowUpsert>> {
    use crate::change::{Change, Key};
    let updated_at = transaction.committed_at;
    let upsert = |(version, change)| match change {
        Change::Upsert { table, row } => {
            let key = Key::of(&table, &row);
            let key = key.ok_or_else(|| Error::stop(Code::Internal, "a row has no key"))?;
            Ok(RowUpsert { key, row, version, updated_at })
        }
        Change::Delete { .. } | Change::Truncate { .. } | Change::Halt { .. } => {
            Err(Error::stop(Code::Internal, "the log has something else than rows"))
        }
    };
    transaction.versioned().map(upsert).collect()
}

/// How many bytes the rows are for a COPY in binary, with our two columns.
///
/// # Errors
/// `internal`, if a value has no binary form.
pub fn encode_copy(upserts: &[RowUpsert]) -> Result<usize> {
    const OIDS: [u32; 13] = [20, 23, 23, 1700, 701, 16, 25, 25, 1184, 2950, 3802, 17, 1184];
    let unknown = || Error::stop(Code::Internal, "a value has no binary form");
    let form = Form::new(&OIDS.map(Encoding::of), &encodings(), true);
    let mut writer = RowWriter::new(&form, OIDS.len() - COLUMNS.len());
    let mut bytes = 0;
    for upsert in upserts {
        writer.cells(upsert.row.cells()).map_err(|_| unknown())?;
        writer.rank(upsert.version, upsert.updated_at);
        bytes += writer.end_row().map_or(0, |piece| piece.len());
    }
    Ok(bytes + writer.finish().len())
}

fn table() -> TableSchema {
    let column = |(id, (name, column_type, native)): (usize, (&str, ColumnType, &str))| Column {
        name: name.into(),
        column_type,
        native: Some(native.into()),
        id: id as u32 + 1,
    };
    TableSchema {
        name: TableName::new("public", "events"),
        id: TABLE,
        engine: Engine::Postgres,
        columns: COLUMNS.into_iter().enumerate().map(column).collect(),
        key: vec![0],
    }
}

fn encodings() -> Vec<Option<Encoding>> {
    table().columns.iter().map(Encoding::of_column).collect()
}

fn begin() -> Vec<u8> {
    [b"B".as_slice(), &COMMIT.to_be_bytes(), &[0; 8], &7_u32.to_be_bytes()].concat()
}

fn commit() -> Vec<u8> {
    [b"C\0".as_slice(), &COMMIT.to_be_bytes(), &END.to_be_bytes(), &[0; 8]].concat()
}

/// Values of columns without an encoding are text.
fn insert(id: u64, encodings: &[Option<Encoding>]) -> Vec<u8> {
    let cells = [
        Some(id.to_string()),
        Some((id % 1000).to_string()),
        (!id.is_multiple_of(7)).then(|| (id % 7).to_string()),
        Some(format!("{}.{:02}", id * 37 / 100, id * 37 % 100)),
        Some((id as f64 / 7.0).to_string()),
        Some(if id.is_multiple_of(2) { "t" } else { "f" }.into()),
        Some(format!("event number {id}")),
        Some(format!("{id:064x}")),
        Some(format!("2026-01-01 {:02}:{:02}:{:02}+00", id / 3600 % 24, id / 60 % 60, id % 60)),
        Some(format!("00000000-0000-4000-8000-{id:012x}")),
        Some(format!(r#"{{"n": {id}, "even": {}, "kind": {}}}"#, id.is_multiple_of(2), id % 1000)),
    ];
    let mut message = [b"I".as_slice(), &TABLE.to_be_bytes(), b"N"].concat();
    message.extend_from_slice(&(cells.len() as u16).to_be_bytes());
    for (cell, encoding) in cells.into_iter().zip(encodings) {
        match (cell, encoding) {
            (None, _) => message.push(b'n'),
            (Some(text), Some(encoding)) => {
                message.push(b'b');
                // The test at the end finds a value that has none.
                let _ = encoding.push(text.as_bytes(), &mut message);
            }
            (Some(text), None) => {
                message.push(b't');
                message.extend_from_slice(&(text.len() as u32).to_be_bytes());
                message.extend_from_slice(text.as_bytes());
            }
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Cell;

    #[test]
    fn the_log_has_the_rows_that_are_measured() {
        let rows = upserts(Log::new(20, 10, false).decode().unwrap()).unwrap();
        assert_eq!(rows.len(), 20);
        assert_eq!(rows[3].key, rows[13].key);
        let cells: Vec<Cell<'_>> = rows[6].row.cells().collect();
        assert_eq!(cells.len(), COLUMNS.len());
        assert_eq!(cells[0], Cell::Value(b"7"));
        assert_eq!(cells[2], Cell::Null);
        assert_eq!(cells[3], Cell::Value(b"2.59"));
        assert_eq!(cells[10], Cell::Value(br#"{"n": 7, "even": false, "kind": 7}"#));
    }

    #[test]
    fn the_log_in_binary_has_the_same_rows() {
        let [text, binary] = [false, true].map(|in_binary| {
            let rows = upserts(Log::new(20, 20, in_binary).decode().unwrap()).unwrap();
            let form = Form::new(&encodings(), &encodings(), true);
            let mut writer = RowWriter::new(&form, 0);
            for upsert in &rows {
                writer.cells(upsert.row.cells()).unwrap();
                let kept = upsert.row.cells().skip(1);
                assert!(kept.into_iter().all(|cell| !in_binary || !matches!(cell, Cell::Value(_))));
            }
            (rows.into_iter().map(|upsert| upsert.key).collect::<Vec<_>>(), writer.finish())
        });
        assert_eq!(text, binary);
    }
}
