//! What is measured: each part with ten thousand rows of eleven columns.
//!
//! Surprise: what a part eats is made before, and what it leaves is dropped after it is measured,
//! so a row's way from the log into a batch is the sum of the parts plus what freeing it costs.

use std::any::Any;
use std::rc::Rc;

use connectors::change::{RowUpsert, Transaction};
use connectors::error::Result;
use connectors::{mysql, postgres};
use driftless::merge::Merger;

/// Rows that each part has, every time.
pub const ROWS: u64 = 10_000;
/// Different keys, where the same rows change again and again.
const HOT_KEYS: u64 = 100;

/// All parts.
pub const PARTS: [&str; 8] = [
    "decode_pgoutput",
    "decode_pgoutput_text",
    "decode_binlog",
    "merge_distinct",
    "merge_hot",
    "encode_copy",
    "encode_copy_text",
    "encode_load",
];

/// A part that can be done once.
pub type Ready = Box<dyn FnOnce() -> Done>;

/// What a part leaves, to be dropped later.
pub type Done = Box<dyn Any>;

/// Makes a part ready, again and again.
pub fn part(name: &str) -> Option<Box<dyn Fn() -> Ready>> {
    match name {
        "decode_pgoutput" => Some(decode_pgoutput(true)),
        "decode_pgoutput_text" => Some(decode_pgoutput(false)),
        "decode_binlog" => Some(decode_binlog()),
        "merge_distinct" => Some(merge(ROWS)),
        "merge_hot" => Some(merge(HOT_KEYS)),
        "encode_copy" => Some(encode(postgres_rows(true), postgres::bench::encode_copy)),
        "encode_copy_text" => Some(encode(postgres_rows(false), postgres::bench::encode_copy)),
        "encode_load" => Some(encode(mariadb_rows(), mysql::bench::encode_load)),
        _ => None,
    }
}

/// Messages of pgoutput, with values in binary or as text, into a transaction.
fn decode_pgoutput(in_binary: bool) -> Box<dyn Fn() -> Ready> {
    let log = Rc::new(postgres::bench::Log::new(ROWS, ROWS, in_binary));
    Box::new(move || {
        let log = log.clone();
        Box::new(move || changes(log.decode()))
    })
}

/// Events of a MariaDB's binary log, their checksums verified, into a transaction.
fn decode_binlog() -> Box<dyn Fn() -> Ready> {
    let log = Rc::new(must(mysql::bench::Log::new(ROWS)));
    Box::new(move || {
        let log = log.clone();
        Box::new(move || changes(log.decode()))
    })
}

/// The changes of a transaction into a batch; so many of the rows are different ones.
fn merge(keys: u64) -> Box<dyn Fn() -> Ready> {
    let transaction = must(postgres::bench::Log::new(ROWS, keys, true).decode());
    Box::new(move || {
        let transaction = transaction.clone();
        Box::new(move || {
            let mut merger = Merger::default();
            let committed_at = transaction.committed_at;
            for (version, change) in transaction.versioned() {
                must(merger.add(version, committed_at, change));
            }
            let merged = merger.take();
            let rows: usize = merged.iter().map(|table| table.batch.upserts.len()).sum();
            assert_eq!(rows as u64, keys, "not every key became a row");
            Box::new(merged)
        })
    })
}

fn postgres_rows(in_binary: bool) -> Transaction {
    must(postgres::bench::Log::new(ROWS, ROWS, in_binary).decode())
}

fn mariadb_rows() -> Transaction {
    must(must(mysql::bench::Log::new(ROWS)).decode())
}

/// New rows in the form in which they go into the target: that of COPY, or of `LOAD DATA`.
fn encode(rows: Transaction, into: fn(&[RowUpsert]) -> Result<usize>) -> Box<dyn Fn() -> Ready> {
    let upserts: Rc<[RowUpsert]> = must(postgres::bench::upserts(rows)).into();
    Box::new(move || {
        let upserts = upserts.clone();
        Box::new(move || {
            let bytes = must(into(&upserts));
            assert!(bytes as u64 > 100 * ROWS, "the rows have no values");
            Box::new(bytes)
        })
    })
}

fn changes(transaction: Result<Transaction>) -> Done {
    let transaction = must(transaction);
    assert_eq!(transaction.changes.len() as u64, ROWS, "not every row was decoded");
    Box::new(transaction)
}

/// What is measured is right, or there is nothing to measure.
fn must<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}
