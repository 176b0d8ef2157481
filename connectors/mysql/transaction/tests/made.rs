//! Short logs that no server writes on demand: huge files, crashes, large transactions.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::ZeroDates;
use crate::change::{Change, Timestamp, Transaction};
use crate::error::{Code, Result};
use crate::mysql::binlog::{Event, Gtid, Header, MariadbKind, Operation, Query, Rows};
use crate::mysql::bookmark::{Bookmark, Flavor, Gtids, Place};
use crate::mysql::fixtures::layout;
use crate::mysql::gtid::MariadbGtid;
use crate::mysql::layout::Layout;
use crate::mysql::transaction::{Builder, Options, Step};

pub(super) fn table() -> Layout {
    layout("t", &[("key", "k", "int(11)"), ("column", "v", "int(11)")])
}

fn builder(offset: u64, part_bytes: usize) -> Builder {
    let from = Bookmark {
        server: "1".into(),
        place: Place::new("b.000002", offset),
        gtids: Gtids::none(Flavor::Mariadb),
        delivered: None,
        begun: None,
    };
    let options = Options {
        epoch: 1,
        part_bytes,
        spool: std::env::temp_dir(),
        zero_dates: ZeroDates::Stop,
        fold_names: true,
    };
    Builder::new(from, vec![table()], &[], options).unwrap()
}

pub(super) fn gtid(sequence: u64, kind: MariadbKind) -> Event<'static> {
    Event::Gtid(Gtid::Mariadb { gtid: MariadbGtid { domain: 0, server: 1, sequence }, kind })
}

pub(super) fn query(text: &'static str) -> Event<'static> {
    Event::Query(Query {
        database: "cmp",
        text: Cow::Borrowed(text),
        ansi_quotes: false,
        no_backslash: false,
    })
}

/// Number, flags, names, two INTs, no metadata, both may be NULL.
const TABLE_MAP: &[u8] =
    &[7, 0, 0, 0, 0, 0, 0, 0, 3, b'c', b'm', b'p', 0, 1, b'T', 0, 2, 3, 3, 0, 0];

pub(super) fn table_map() -> Event<'static> {
    Event::TableMap { id: 7, body: TABLE_MAP }
}

/// Inserts of (k, k) with all columns.
pub(super) fn insert(keys: &[u8]) -> Event<'static> {
    let mut body = vec![2, 0b11];
    for key in keys {
        body.extend_from_slice(&[0, *key, 0, 0, 0, *key, 0, 0, 0]);
    }
    Event::Rows(Rows { table: 7, operation: Operation::Insert, body: Cow::Owned(body) })
}

pub(super) fn header(size: u32, end: u32) -> Header {
    Header { timestamp: 5, size, end, ..Header::default() }
}

pub(super) fn feed(
    builder: &mut Builder,
    events: &[(u32, u32, Event<'_>)],
) -> Result<Vec<Transaction>> {
    let mut transactions = Vec::new();
    for (size, end, event) in events {
        loop {
            match builder.feed(&header(*size, *end), event)? {
                Step::Taken(transaction) => {
                    transactions.extend(transaction);
                    break;
                }
                Step::Part(part) => transactions.push(part),
                Step::Ask(table) => panic!("asked for {table}"),
                Step::NoRoom(error) => panic!("{error}"),
            }
        }
    }
    Ok(transactions)
}

fn place(transaction: &Transaction) -> Place {
    Bookmark::read(&transaction.position).unwrap().place
}

const GIB: u64 = 1 << 30;

#[test]
fn places_are_counted_beyond_four_gibibytes() {
    let mut builder = builder(4 * GIB - 100, usize::MAX);
    let events = [
        (50, (4 * GIB - 50) as u32, gtid(1, MariadbKind::Events)),
        // Newer servers do not say where events in a transaction end.
        (60, 0, table_map()),
        (3_000_000_000, 0, insert(&[1])),
        (3_000_000_000, 0, insert(&[2])),
        (20, (4 * GIB + 6_000_000_029) as u32, Event::Xid),
        (50, (4 * GIB + 6_000_000_079) as u32, gtid(2, MariadbKind::Events)),
        (20, (4 * GIB + 6_000_000_099) as u32, Event::Xid),
    ];
    let transactions = feed(&mut builder, &events).unwrap();
    assert_eq!(transactions[0].version.log, 2 << 40 | (4 * GIB - 50));
    assert_eq!(place(&transactions[0]).offset, 4 * GIB + 6_000_000_029);
    assert_eq!(transactions[1].version.log, 2 << 40 | (4 * GIB + 6_000_000_079));
    assert_eq!(place(&transactions[1]).offset, 4 * GIB + 6_000_000_099);
}

#[test]
fn a_place_that_goes_back_is_an_error_and_not_a_huge_file() {
    let mut builder = builder(1000, usize::MAX);
    assert!(feed(&mut builder, &[(50, 900, gtid(1, MariadbKind::Events))]).is_err());
}

#[test]
fn heartbeats_and_new_files_move_the_position() {
    let mut builder = builder(1000, usize::MAX);
    let heartbeat = |file| Event::Heartbeat { file, offset: None };
    let events = [
        (39, 1200, heartbeat("b.000002")),
        (39, 900, heartbeat("b.000009")),
        (0, 1250, Event::Rotate { file: "b.000003", offset: 4 }),
        (0, 0, Event::Rotate { file: "b.000003", offset: 4 }),
        (200, 204, Event::Format { server: "x" }),
        (39, 300, heartbeat("b.000003")),
    ];
    let transactions = feed(&mut builder, &events).unwrap();
    let places: Vec<Place> = transactions.iter().map(place).collect();
    let expected = [("b.000002", 1200), ("b.000003", 4), ("b.000003", 300)];
    assert_eq!(places, expected.map(|(file, offset)| Place::new(file, offset)));
    assert!(transactions.iter().all(|one| one.changes.is_empty() && one.complete));
    assert!(transactions.is_sorted_by_key(|one| one.version));
}

#[test]
fn a_heartbeat_within_a_transaction_says_nothing() {
    let mut builder = builder(1000, usize::MAX);
    let heartbeat = Event::Heartbeat { file: "b.000002", offset: None };
    let events = [(50, 1050, gtid(1, MariadbKind::Events)), (39, 2000, heartbeat)];
    assert_eq!(feed(&mut builder, &events).unwrap(), []);
}

#[test]
fn reading_may_begin_in_an_older_file() {
    let mut builder = builder(1000, usize::MAX);
    let events = [
        (0, 0, Event::Rotate { file: "b.000001", offset: 4 }),
        (0, 0, Event::Rotate { file: "b.000002", offset: 4 }),
        (50, 1050, gtid(1, MariadbKind::Statement)),
        (50, 1100, query("FLUSH TABLES")),
    ];
    let transactions = feed(&mut builder, &events).unwrap();
    assert_eq!(transactions.len(), 1);
    assert_eq!(place(&transactions[0]), Place::new("b.000002", 1100));
    assert_eq!(transactions[0].committed_at, Timestamp(5_000_000));
}

fn large(end: Event<'static>) -> [(u32, u32, Event<'static>); 6] {
    [
        (50, 1050, gtid(1, MariadbKind::Events)),
        (40, 1090, table_map()),
        (50, 1140, insert(&[1, 2])),
        (50, 1190, insert(&[3])),
        (50, 1240, insert(&[4])),
        (30, 1270, end),
    ]
}

#[test]
fn a_large_transaction_comes_in_parts() {
    let transactions = feed(&mut builder(1000, 1), &large(Event::Xid)).unwrap();
    let shape: Vec<(u32, usize, bool)> = transactions
        .iter()
        .map(|one| (one.first_ordinal, one.changes.len(), one.complete))
        .collect();
    assert_eq!(shape, [(1, 2, false), (3, 1, false), (4, 1, true)]);
    let positions: BTreeSet<u64> = transactions.iter().map(|one| place(one).offset).collect();
    assert_eq!(positions, BTreeSet::from([1000, 1270]));
}

#[test]
fn a_rolled_back_transaction_is_nothing_or_halts_what_was_delivered() {
    let rolled_back = || large(query("ROLLBACK"));
    let whole = feed(&mut builder(1000, usize::MAX), &rolled_back()).unwrap();
    assert_eq!(whole.len(), 1);
    assert_eq!(whole[0].changes, []);
    assert_eq!(place(&whole[0]).offset, 1270);
    let parts = feed(&mut builder(1000, 1), &rolled_back()).unwrap();
    let last = parts.last().unwrap();
    assert!(matches!(last.changes[..], [Change::Halt { code: Code::Protocol, .. }]));
}

#[test]
fn a_transaction_that_a_crash_cut_off_is_nothing() {
    let mut builder = builder(1000, usize::MAX);
    let mut events = large(Event::Xid)[..4].to_vec();
    events.push((0, 0, Event::Rotate { file: "b.000003", offset: 4 }));
    events.push((200, 204, Event::Format { server: "x" }));
    events.push((50, 254, gtid(1, MariadbKind::Statement)));
    events.push((50, 304, query("FLUSH TABLES")));
    let transactions = feed(&mut builder, &events).unwrap();
    assert!(transactions.iter().all(|one| one.changes.is_empty()));
    assert_eq!(place(transactions.last().unwrap()), Place::new("b.000003", 304));
}

#[test]
fn an_alter_that_is_not_done_yet_changes_nothing() {
    let mut builder = builder(1000, usize::MAX);
    let events = [
        (50, 1050, gtid(1, MariadbKind::Unfinished)),
        (50, 1100, query("ALTER TABLE t DROP COLUMN v")),
    ];
    let transactions = feed(&mut builder, &events).unwrap();
    assert_eq!(transactions[0].changes, []);
}

fn one_statement(text: &'static str) -> Result<Vec<Transaction>> {
    let events = [(50, 1050, gtid(1, MariadbKind::Statement)), (50, 1100, query(text))];
    feed(&mut builder(1000, usize::MAX), &events)
}

#[test]
fn statements_that_may_change_replicated_rows_stop() {
    for text in ["CALL p()", "INSERT INTO other VALUES (1)", "UPDATE x, y SET x.a = 1"] {
        assert_eq!(one_statement(text).unwrap_err().code, Code::StatementDml, "{text}");
    }
    for text in ["REPLACE INTO percona.checksums VALUES (1)", "DROP DATABASE other"] {
        assert_eq!(one_statement(text).unwrap()[0].changes, [], "{text}");
    }
    for text in
        ["INSERT INTO T VALUES (1)", "DELETE FROM cmp.t WHERE k = 1", "update x join t set v = 1"]
    {
        let changes = &one_statement(text).unwrap()[0].changes;
        assert!(matches!(changes[..], [Change::Halt { code: Code::StatementDml, .. }]), "{text}");
    }
    let dropped = &one_statement("DROP DATABASE cmp").unwrap()[0].changes;
    assert!(matches!(dropped[..], [Change::Halt { code: Code::SchemaChange, .. }]));
}

#[test]
fn an_unknown_xa_transaction_that_is_committed_stops() {
    let error = one_statement("XA COMMIT X'61',X'',1").unwrap_err();
    assert_eq!(error.code, Code::PartialRow);
    assert_eq!(one_statement("XA ROLLBACK X'61',X'',1").unwrap()[0].changes, []);
}

#[test]
fn events_in_no_transaction_make_no_sense() {
    for event in [table_map(), insert(&[1]), Event::Xid, query("COMMIT")] {
        assert!(feed(&mut builder(1000, 1), &[(50, 1050, event)]).is_err());
    }
    let begun = gtid(1, MariadbKind::Events);
    let twice = [(50, 1050, begun.clone()), (50, 1100, begun.clone())];
    assert!(feed(&mut builder(1000, 1), &twice).is_err());
    assert!(feed(&mut builder(1000, 1), &[(50, 1050, begun), (50, 1100, insert(&[1]))]).is_err());
}
