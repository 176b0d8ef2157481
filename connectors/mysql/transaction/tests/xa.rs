//! XA transactions: decided late, larger than memory, delivered twice.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::made::{feed, gtid, header, query, table, table_map};
use crate::ZeroDates;
use crate::change::{Cell, Change, Transaction};
use crate::error::Code;
use crate::mysql::binlog::{Event, MariadbKind, Operation, Rows, Xid};
use crate::mysql::bookmark::{Bookmark, Flavor, Gtids, Place};
use crate::mysql::fixtures::layout;
use crate::mysql::transaction::{Builder, Options, Step};
use crate::version::Version;

type Log = Vec<(u32, u32, Event<'static>)>;

/// As much as fits into memory, and next to nothing.
const SIZES: [usize; 2] = [1 << 30, 1];

fn start() -> Bookmark {
    Bookmark {
        server: "1".into(),
        place: Place::new("b.000002", 1000),
        gtids: Gtids::none(Flavor::Mariadb),
        delivered: None,
        begun: None,
    }
}

fn builder_in(directory: &Path, from: Bookmark, part_bytes: usize) -> Builder {
    let options = Options {
        epoch: 1,
        part_bytes,
        spool: directory.to_owned(),
        zero_dates: ZeroDates::Stop,
        fold_names: true,
    };
    let other = layout("u", &[("key", "k", "int(11)"), ("column", "v", "int(11)")]);
    Builder::new(from, vec![table(), other], &[], options).unwrap()
}

fn builder(from: Bookmark, part_bytes: usize) -> Builder {
    builder_in(&std::env::temp_dir(), from, part_bytes)
}

fn xid(name: u8) -> Xid {
    Xid { format: 1, global: vec![name], branch: Vec::new() }
}

/// A log of 50 bytes for each event.
fn log(events: Vec<Event<'static>>) -> Log {
    (1..).zip(events).map(|(number, event)| (50, 1000 + 50 * number, event)).collect()
}

/// The table map of `u`, number 8.
fn other_map() -> Event<'static> {
    Event::TableMap {
        id: 8,
        body: &[8, 0, 0, 0, 0, 0, 0, 0, 3, b'c', b'm', b'p', 0, 1, b'u', 0, 2, 3, 3, 0, 0],
    }
}

fn rows(table: u64, operation: Operation, keys: &[u8]) -> Event<'static> {
    let mut body = vec![2, 0b11];
    for key in keys {
        body.extend_from_slice(&[0, *key, 0, 0, 0, *key, 0, 0, 0]);
    }
    Event::Rows(Rows { table, operation, body: Cow::Owned(body) })
}

fn insert(keys: &[u8]) -> Event<'static> {
    rows(7, Operation::Insert, keys)
}

fn insert_other(keys: &[u8]) -> Event<'static> {
    rows(8, Operation::Insert, keys)
}

fn prepare(name: u8) -> Event<'static> {
    Event::XaPrepare { xid: xid(name), one_phase: false }
}

fn begin(sequence: u64, name: u8) -> Event<'static> {
    gtid(sequence, MariadbKind::Prepared(xid(name)))
}

/// Another transaction, which inserts this key.
fn between(sequence: u64, key: u8) -> [Event<'static>; 4] {
    [gtid(sequence, MariadbKind::Events), table_map(), insert(&[key]), Event::Xid]
}

fn decision(sequence: u64, name: u8, text: &'static str) -> [Event<'static>; 2] {
    [gtid(sequence, MariadbKind::Completed(xid(name))), query(text)]
}

/// A transaction of eight changes, and one that comes to nothing, among others. `halting` is a
/// statement before the decision.
fn story(halting: Option<&'static str>) -> Log {
    let mut events = vec![
        begin(1, b'a'),
        table_map(),
        other_map(),
        insert(&[1, 2]),
        insert_other(&[3]),
        insert(&[4]),
        insert_other(&[5, 6]),
        rows(7, Operation::Delete, &[1]),
        insert(&[7]),
        prepare(b'a'),
    ];
    events.extend(between(2, 20));
    events.extend([begin(3, b'b'), table_map(), insert(&[30]), insert(&[31]), prepare(b'b')]);
    if let Some(text) = halting {
        events.extend([gtid(4, MariadbKind::Statement), query(text)]);
    }
    events.extend(between(5, 21));
    events.extend(decision(6, b'a', "XA COMMIT X'61',X'',1"));
    events.extend(between(7, 22));
    events.extend(decision(8, b'b', "XA ROLLBACK X'62',X'',1"));
    events.extend(between(9, 23));
    log(events)
}

fn show(change: &Change) -> String {
    let name = &change.table().name;
    let number = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    match change {
        Change::Upsert { row, .. } => match row.cell(0) {
            Cell::Value(key) => format!("{name}{}", number(key)),
            other => panic!("{other:?}"),
        },
        Change::Delete { key, .. } => format!("-{name}{}", number(key.values().next().unwrap())),
        Change::Truncate { .. } => panic!("{name} is empty"),
        Change::Halt { .. } => format!("{name} halts"),
    }
}

fn versioned(transactions: &[Transaction]) -> Vec<(Version, String)> {
    let all = transactions.iter().cloned().flat_map(Transaction::versioned);
    all.map(|(version, change)| (version, show(&change))).collect()
}

/// The changes of the transaction with the most of them: ordinals and what they are.
fn largest(transactions: &[Transaction]) -> Vec<(u32, String)> {
    let all = versioned(transactions);
    let count = |log: u64| all.iter().filter(|(version, _)| version.log == log).count();
    let log = all.iter().map(|(version, _)| version.log).max_by_key(|&log| count(log)).unwrap();
    let of_it = all.into_iter().filter(|(version, _)| version.log == log);
    of_it.map(|(version, change)| (version.ordinal, change)).collect()
}

fn named(changes: &[(u32, &str)]) -> Vec<(u32, String)> {
    changes.iter().map(|&(ordinal, change)| (ordinal, change.to_owned())).collect()
}

const WHOLE: [(u32, &str); 8] =
    [(1, "t1"), (2, "t2"), (3, "u3"), (4, "t4"), (5, "u5"), (6, "u6"), (7, "-t1"), (8, "t7")];

#[test]
fn a_transaction_larger_than_memory_is_the_same_at_its_commit() {
    let [whole, parts] =
        SIZES.map(|bytes| feed(&mut builder(start(), bytes), &story(None)).unwrap());
    assert_eq!(largest(&whole), named(&WHOLE));
    assert_eq!(versioned(&parts), versioned(&whole));
    let complete = |all: &[Transaction]| -> Vec<_> {
        let complete = all.iter().filter(|one| one.complete);
        complete.map(|one| (one.version, one.position.clone())).collect()
    };
    assert_eq!(complete(&parts), complete(&whole));
    let of_it =
        |all: &[Transaction]| all.iter().filter(|one| one.version.log == 2 << 40 | 2200).count();
    assert_eq!((of_it(&whole), of_it(&parts)), (1, 8));
    assert!(!versioned(&parts).iter().any(|(_, change)| change == "t30"), "it was rolled back");
}

#[test]
fn a_table_that_was_halted_meanwhile_leaves_gaps() {
    let halting = "INSERT INTO u VALUES (1)";
    let expected = named(&[(1, "t1"), (2, "t2"), (4, "t4"), (7, "-t1"), (8, "t7")]);
    for bytes in SIZES {
        let all = feed(&mut builder(start(), bytes), &story(Some(halting))).unwrap();
        assert_eq!(largest(&all), expected, "{bytes}");
        assert!(versioned(&all).iter().any(|(_, change)| change == "u halts"));
    }
}

#[test]
fn a_restart_between_two_parts_gives_the_same_versions_again() {
    for halting in [None, Some("INSERT INTO u VALUES (1)")] {
        let log = story(halting);
        let all = feed(&mut builder(start(), 1), &log).unwrap();
        for done in 1..all.len() {
            let durable = all[..done].iter().rposition(|one| one.complete);
            let Some(durable) = durable else { continue };
            let from = Bookmark::read(&all[durable].position).unwrap();
            let at = log.iter().position(|(_, end, _)| u64::from(*end) == from.place.offset);
            let events = &log[at.map_or(0, |at| at + 1)..];
            for bytes in SIZES {
                let again = feed(&mut builder(from.clone(), bytes), events).unwrap();
                // A halt before that place comes again, and has been told already.
                let is_change = |(_, change): &(Version, String)| !change.ends_with("halts");
                let changes = |all: &[Transaction]| -> Vec<_> {
                    versioned(all).into_iter().filter(is_change).map(|(_, change)| change).collect()
                };
                assert_eq!(changes(&again), changes(&all[durable + 1..]), "after {done}");
                let old = versioned(&all[durable + 1..]).into_iter().filter(is_change);
                let new = versioned(&again).into_iter().filter(is_change);
                for ((old, _), (new, change)) in old.zip(new) {
                    // The halt that comes again has an ordinal, and no harm is in a larger one.
                    let more = u32::from(halting.is_some());
                    assert_eq!(old.log, new.log);
                    assert!((old.ordinal..=old.ordinal + more).contains(&new.ordinal), "{change}");
                }
                let last = |all: &[Transaction]| all.last().map(|one| one.position.clone());
                assert_eq!(last(&again), last(&all), "after {done}");
            }
        }
    }
}

#[test]
fn the_position_stays_before_the_prepare_until_the_last_part() {
    let all = feed(&mut builder(start(), 1), &story(None)).unwrap();
    let places: Vec<(u64, Option<u64>)> = all
        .iter()
        .filter(|one| one.complete)
        .map(|one| Bookmark::read(&one.position).unwrap())
        .map(|bookmark| (bookmark.place.offset, bookmark.delivered.map(|place| place.offset)))
        .collect();
    let expected = [
        (1000, Some(1500)),
        (1000, Some(1700)),
        (1000, Some(1950)),
        (1000, Some(2150)),
        (1000, Some(2250)),
        (1000, Some(2450)),
        (2550, None),
        (2750, None),
    ];
    assert_eq!(places, expected);
}

fn one_phase(end: Event<'static>) -> Log {
    log(vec![
        begin(1, b'a'),
        table_map(),
        other_map(),
        insert(&[1, 2]),
        insert_other(&[3]),
        insert(&[4]),
        end,
    ])
}

#[test]
fn one_that_is_not_prepared_counts_at_once_or_never() {
    let committed = Event::XaPrepare { xid: xid(b'a'), one_phase: true };
    let expected = named(&[(1, "t1"), (2, "t2"), (3, "u3"), (4, "t4")]);
    for bytes in SIZES {
        let of_text = query("XA COMMIT X'61',X'',1 ONE PHASE");
        for end in [committed.clone(), Event::Xid, of_text] {
            let all = feed(&mut builder(start(), bytes), &one_phase(end)).unwrap();
            assert_eq!(largest(&all), expected, "{bytes}");
            let last = all.last().unwrap();
            let place = Bookmark::read(&last.position).unwrap().place;
            assert!(last.complete && place.offset == 1350, "{bytes}");
        }
        let rolled_back = one_phase(query("ROLLBACK"));
        let nothing = feed(&mut builder(start(), bytes), &rolled_back).unwrap();
        assert_eq!((nothing.len(), versioned(&nothing)), (1, Vec::new()), "{bytes}");
    }
}

#[test]
fn one_that_was_delivered_before_a_restart_is_not_delivered_again() {
    let mut events = one_phase(Event::XaPrepare { xid: xid(b'a'), one_phase: true });
    let behind = log([vec![Event::Nothing; 7], between(2, 9).to_vec()].concat());
    events.extend_from_slice(&behind[7..]);
    let from = Bookmark { delivered: Some(Place::new("b.000002", 1350)), ..start() };
    for bytes in SIZES {
        let all = feed(&mut builder(from.clone(), bytes), &events).unwrap();
        let changes: Vec<String> = versioned(&all).into_iter().map(|(_, change)| change).collect();
        assert_eq!(changes, ["t9"], "{bytes}");
    }
}

#[test]
fn what_a_savepoint_takes_back_does_not_count() {
    let events = log(vec![
        begin(1, b'a'),
        table_map(),
        insert(&[1]),
        query("SAVEPOINT s"),
        insert(&[2]),
        insert(&[3]),
        query("ROLLBACK TO s"),
        insert(&[4]),
        prepare(b'a'),
        gtid(2, MariadbKind::Completed(xid(b'a'))),
        query("XA COMMIT X'61',X'',1"),
    ]);
    for bytes in SIZES {
        let all = feed(&mut builder(start(), bytes), &events).unwrap();
        assert_eq!(largest(&all), named(&[(1, "t1"), (2, "t4")]), "{bytes}");
    }
}

#[test]
fn a_file_that_ends_within_one_takes_all_of_it_back() {
    let mut events = one_phase(Event::Rotate { file: "b.000003", offset: 4 });
    let Some(end) = events.last_mut() else { return };
    (end.0, end.1) = (0, 0);
    for bytes in SIZES {
        let all = feed(&mut builder(start(), bytes), &events).unwrap();
        assert_eq!(versioned(&all), [], "{bytes}");
    }
}

#[test]
fn a_disk_that_fails_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let spool: PathBuf = directory.path().join("later");
    let mut builder = builder_in(&spool, start(), 1);
    let mut all = Vec::new();
    let mut failures = 0;
    for (size, end, event) in story(None) {
        loop {
            match builder.feed(&header(size, end), &event) {
                Ok(Step::Taken(transaction)) => {
                    all.extend(transaction);
                    break;
                }
                Ok(Step::Part(part)) => all.push(part),
                Ok(other) => panic!("{other:?}"),
                Err(error) => {
                    assert!(error.code == Code::StateDisk && error.is_transient(), "{error}");
                    failures += 1;
                    // The second time there is somewhere to put it.
                    std::fs::create_dir(&spool).unwrap();
                }
            }
        }
    }
    assert_eq!(failures, 1);
    let whole = feed(&mut self::builder(start(), SIZES[0]), &story(None)).unwrap();
    assert_eq!(versioned(&all), versioned(&whole));
}
