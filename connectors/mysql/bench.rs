//! What the micro-benchmarks (`benches/hot_path`) reach of this folder: a binary log in memory to
//! decode, and rows to encode. They are in a crate of their own, which sees only what is public.

use std::sync::Arc;

use super::binlog::{Decoder, Event, Gtid, Header, MariadbKind, RawEvent};
use super::bookmark::{Bookmark, Flavor, Gtids, Place};
use super::gtid::MariadbGtid;
use super::layout::{Layout, LayoutColumn};
use super::spelling::Fields;
use super::sql::TableSql;
use super::target::write::Written;
use super::target_types::stored_columns;
use super::transaction::{Builder, Options, Step};
use super::types::MysqlType;
use crate::ZeroDates;
use crate::change::{RowUpsert, Transaction};
use crate::error::{Code, Error, Result};
use crate::schema::{Column, Engine, TableName, TableSchema};

/// The number of the table in the log.
const TABLE: u64 = 7;
/// As many as fit into an event of the usual 8 KiB.
const ROWS_PER_EVENT: u64 = 40;
const XID: u8 = 16;
const TABLE_MAP: u8 = 19;
const WRITE_ROWS: u8 = 23;
const HEADER_LEN: u32 = 19;
const CHECKSUM_LEN: u32 = 4;
const CRC32: u8 = 1;

/// Eleven columns of mixed types; the key comes first.
const COLUMNS: [(&str, &str); 11] = [
    ("id", "bigint(20)"),
    ("kind", "int(11)"),
    ("parent", "int(11)"),
    ("amount", "decimal(12,2)"),
    ("score", "double"),
    ("active", "tinyint(1)"),
    ("name", "varchar(100) character set utf8mb4"),
    ("digest", "varchar(64) character set utf8mb4"),
    ("created_at", "timestamp(6)"),
    ("token", "uuid"),
    ("detail", "longtext character set utf8mb4"),
];
/// How the log numbers these types, and what else it says of each.
const TYPES: [u8; 11] = [8, 3, 3, 246, 5, 1, 15, 15, 17, 254, 252];
const METADATA: [u8; 11] = [12, 2, 8, 144, 1, 0, 1, 6, 254, 16, 4];

/// The events of one transaction, as a MariaDB sends them, with their checksums.
pub struct Log {
    table: Layout,
    events: Vec<(Header, Vec<u8>, u32)>,
}

impl Log {
    /// A transaction that inserts so many rows by one statement.
    ///
    /// # Errors
    /// If a type is none that a MariaDB has.
    pub fn new(rows: u64) -> Result<Log> {
        let mut log = Log { table: table()?, events: Vec::new() };
        log.push(TABLE_MAP, table_map());
        for first in (0..rows).step_by(ROWS_PER_EVENT as usize) {
            log.push(WRITE_ROWS, insert(first + 1..=rows.min(first + ROWS_PER_EVENT)));
        }
        log.push(XID, vec![0; 8]);
        Ok(log)
    }

    fn push(&mut self, kind: u8, body: Vec<u8>) {
        let size = HEADER_LEN + body.len() as u32 + CHECKSUM_LEN;
        let header = Header { timestamp: 5, kind, server_id: 1, size, end: 0, flags: 0 };
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&header.bytes());
        hasher.update(&body);
        self.events.push((header, body, hasher.finalize()));
    }

    /// What the source makes of it.
    ///
    /// # Errors
    /// `protocol`, if this log is not one that a MariaDB writes.
    pub fn decode(&self) -> Result<Transaction> {
        let (mut builder, mut decoder) = (self.builder()?, Decoder::new());
        let gtid = MariadbGtid { domain: 0, server: 1, sequence: 1 };
        let gtid = Event::Gtid(Gtid::Mariadb { gtid, kind: MariadbKind::Events });
        builder.feed(&Header { timestamp: 5, size: 42, ..Header::default() }, &gtid)?;
        for (header, body, checksum) in &self.events {
            let checksum = Some((CRC32, *checksum));
            let raw = RawEvent { header: *header, body, checksum };
            let (header, event) = decoder.decode(&raw)?;
            match builder.feed(&header, &event)? {
                Step::Taken(None) => {}
                Step::Taken(Some(transaction)) => return Ok(transaction),
                Step::Ask(table) => {
                    let message = format!("the log does not fit table {table}");
                    return Err(Error::stop(Code::Protocol, message));
                }
                Step::Part(_) | Step::NoRoom(_) => {
                    return Err(Error::stop(Code::Protocol, "the log has an XA transaction"));
                }
            }
        }
        Err(Error::stop(Code::Protocol, "the log has no commit"))
    }

    fn builder(&self) -> Result<Builder> {
        let from = Bookmark {
            server: "1".into(),
            place: Place::new("binlog.000001", 1000),
            gtids: Gtids::none(Flavor::Mariadb),
            delivered: None,
            begun: None,
        };
        let options = Options {
            epoch: 1,
            part_bytes: usize::MAX,
            spool: std::env::temp_dir(),
            zero_dates: ZeroDates::Stop,
            fold_names: false,
        };
        Builder::new(from, vec![self.table.clone()], &[], options)
    }
}

/// How many bytes the rows of such a log are for `LOAD DATA`, with our two columns.
///
/// # Errors
/// `internal`, if the file cannot hold a value.
pub fn encode_load(upserts: &[RowUpsert]) -> Result<usize> {
    let (server, table) = (Engine::Mariadb, table()?.schema);
    let columns = stored_columns(&table, server);
    let (name, columns) = ("events", columns.as_slice());
    let table = TableSql { server, soft_deletes: false, name, table: &table, columns };
    let all: Vec<usize> = (0..columns.len()).collect();
    let mut fields = Fields::default();
    for upsert in upserts {
        let unfit = |_| Error::stop(Code::Internal, "the file cannot hold a value");
        Written::from(upsert).spell(&table, &all, &mut fields).map_err(unfit)?;
        fields.end_row();
    }
    Ok(fields.len())
}

fn table() -> Result<Layout> {
    let mut columns = Vec::new();
    for (id, (name, native)) in COLUMNS.into_iter().enumerate() {
        columns.push(Column {
            name: name.into(),
            column_type: MysqlType::parse(native)?.column_type(),
            native: Some(native.into()),
            id: id as u32 + 1,
        });
    }
    let order = columns.iter().enumerate();
    let order = order
        .map(|(place, column)| LayoutColumn { name: column.name.clone(), place: Some(place) })
        .collect();
    let name = TableName::new("work", "events");
    let schema = TableSchema { name, id: 1, engine: Engine::Mariadb, columns, key: vec![0] };
    Ok(Layout { schema: Arc::new(schema), columns: order })
}

fn table_map() -> Vec<u8> {
    let mut body = TABLE.to_le_bytes()[..6].to_vec();
    body.extend_from_slice(b"\x01\0\x04work\0\x06events\0");
    body.push(TYPES.len() as u8);
    body.extend_from_slice(&TYPES);
    body.push(METADATA.len() as u8);
    body.extend_from_slice(&METADATA);
    // Which columns may be NULL: the third.
    body.extend_from_slice(&[0b100, 0]);
    body
}

fn insert(ids: std::ops::RangeInclusive<u64>) -> Vec<u8> {
    let mut body = TABLE.to_le_bytes()[..6].to_vec();
    // No flags; all columns are there.
    body.extend_from_slice(&[0, 0, TYPES.len() as u8, 0xff, 0x07]);
    for id in ids {
        push_row(&mut body, id);
    }
    body
}

fn push_row(body: &mut Vec<u8>, id: u64) {
    let is_null = id.is_multiple_of(7);
    body.extend_from_slice(&[if is_null { 0b100 } else { 0 }, 0]);
    body.extend_from_slice(&id.to_le_bytes());
    body.extend_from_slice(&((id % 1000) as u32).to_le_bytes());
    if !is_null {
        body.extend_from_slice(&((id % 7) as u32).to_le_bytes());
    }
    // Ten digits in front of the point, nine of them in four bytes; two behind it in one.
    let cents = id * 37;
    body.push(0x80 | (cents / 100 / 1_000_000_000) as u8);
    body.extend_from_slice(&((cents / 100 % 1_000_000_000) as u32).to_be_bytes());
    body.push((cents % 100) as u8);
    body.extend_from_slice(&(id as f64 / 7.0).to_le_bytes());
    body.push(u8::from(id.is_multiple_of(2)));
    // A length has two bytes where one is not enough for the longest value.
    push_text(body, 2, &format!("event number {id}"));
    push_text(body, 2, &format!("{id:064x}"));
    body.extend_from_slice(&(1_767_225_600 + id as u32).to_be_bytes());
    body.extend_from_slice(&[0, 0, 0]);
    body.push(16);
    body.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0x40, 0]);
    body.extend_from_slice(&(id | 1 << 63).to_be_bytes());
    let even = id.is_multiple_of(2);
    push_text(body, 4, &format!(r#"{{"n": {id}, "even": {even}, "kind": {}}}"#, id % 1000));
}

fn push_text(body: &mut Vec<u8>, length_bytes: usize, text: &str) {
    body.extend_from_slice(&text.len().to_le_bytes()[..length_bytes]);
    body.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Cell, Change};

    #[test]
    fn the_log_has_the_rows_that_are_measured() {
        let changes = Log::new(100).unwrap().decode().unwrap().changes;
        assert_eq!(changes.len(), 100);
        let Change::Upsert { row, .. } = &changes[6] else { panic!("no row") };
        let cells: Vec<Cell<'_>> = row.cells().collect();
        assert_eq!(cells.len(), COLUMNS.len());
        assert_eq!(cells[0], Cell::Value(b"7"));
        assert_eq!(cells[2], Cell::Null);
        assert_eq!(cells[3], Cell::Value(b"2.59"));
        assert_eq!(cells[4], Cell::Value(b"1"));
        assert_eq!(cells[6], Cell::Value(b"event number 7"));
        assert_eq!(cells[8], Cell::Value(b"2026-01-01 00:00:07+00"));
        assert_eq!(cells[9], Cell::Value(b"00000000-0000-4000-8000-000000000007"));
        assert_eq!(cells[10], Cell::Value(br#"{"n": 7, "even": false, "kind": 7}"#));
    }
}
