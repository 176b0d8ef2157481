//! One history on three servers: what each statement becomes. The captured logs begin with
//!
//! `a (k int primary key, v int)`, `b` like it, `c (k, d date)`, `d (k)`,
//! `m (k, v int default 4, w int default 5)`, and `o`, which is not replicated.

use crate::ZeroDates;
use mysql_async::binlog::events::Event;

use crate::change::{Cell, Change, Key, Transaction};
use crate::error::Code;
use crate::mysql::bookmark::{Bookmark, Flavor, Gtids, Place};
use crate::mysql::fixtures::{self, Fixture, layout};
use crate::mysql::layout::Layout;
use crate::mysql::transaction::{Builder, Options};
use crate::version::Version;

const FLAVORS: [(&str, Flavor); 3] = [
    ("mariadb-10.11-story", Flavor::Mariadb),
    ("mariadb-11.8-story", Flavor::Mariadb),
    ("mysql-9.7-story", Flavor::Mysql),
];

fn start(flavor: Flavor) -> Bookmark {
    Bookmark {
        server: "1".into(),
        place: Place::new("binlog.000001", 4),
        gtids: Gtids::none(flavor),
        delivered: None,
        begun: None,
    }
}

fn builder(from: Bookmark, fixture: &Fixture, zero_dates: ZeroDates) -> Builder {
    let int = |name: &'static str| ("column", name, "int(11)");
    let earlier = [
        layout("a", &[("key", "k", "int"), int("v")]),
        layout("b", &[("key", "k", "int"), int("v")]),
        layout("m", &[("key", "k", "int"), int("v"), int("w")]),
    ];
    let earlier: Vec<_> = earlier.iter().map(|layout| layout.schema.clone()).collect();
    let options = Options {
        epoch: 3,
        part_bytes: 1 << 20,
        spool: std::env::temp_dir(),
        zero_dates,
        fold_names: false,
    };
    Builder::new(from, now(fixture), &earlier, options).unwrap()
}

fn now(fixture: &Fixture) -> Vec<Layout> {
    fixture.tables.iter().map(|(layout, _)| layout.clone()).collect()
}

fn text(cell: Cell<'_>) -> String {
    match cell {
        Cell::Value(value) => String::from_utf8(value.to_vec()).unwrap(),
        Cell::Null => "null".into(),
        Cell::Absent => "absent".into(),
        Cell::Binary(_) => "binary".into(),
    }
}

fn show(change: &Change) -> String {
    let name = &change.table().name;
    match change {
        Change::Upsert { row, .. } => {
            let cells: Vec<String> = row.cells().map(text).collect();
            format!("{name}({})", cells.join(","))
        }
        Change::Delete { key, .. } => {
            let values: Vec<String> = key.values().map(|value| text(Cell::Value(value))).collect();
            format!("-{name}({})", values.join(","))
        }
        Change::Truncate { .. } => format!("{name} is empty"),
        Change::Halt { code, .. } => format!("{name} halts: {code}"),
    }
}

fn lines(transactions: &[Transaction]) -> Vec<String> {
    let with_changes = transactions.iter().filter(|one| !one.changes.is_empty());
    let show = |one: &Transaction| one.changes.iter().map(show).collect::<Vec<_>>().join(" ");
    with_changes.map(show).collect()
}

const STORY: [&str; 23] = [
    "a(1,1) a(2,2)",
    "a(1,10)",
    "-a(2) a(5,2)",
    "-a(1)",
    "a(6,6) a(8,8)",
    "a(10,10) b(1,1)",
    "a(21,21)",
    "a(20,20) b(20,20)",
    "a(22,22)",
    "a(30,31,32)",
    "a(33,34,35)",
    "a is empty",
    "a(40,41,42)",
    "b halts: schema-change",
    "c(1,2020-01-02)",
    "c halts: zero-date",
    "m(1,absent,absent)",
    "m(2,2,2)",
    "m(1,6,absent)",
    "-m(2) m(3,absent,absent)",
    "-m(1)",
    "d halts: statement-dml",
    "m halts: schema-change",
];

#[test]
fn every_statement_becomes_what_it_did() {
    for (name, flavor) in FLAVORS {
        let fixture = fixtures::read(name);
        let mut builder = builder(start(flavor), &fixture, ZeroDates::Stop);
        let transactions =
            fixtures::transactions(&mut builder, &fixture.events, &now(&fixture)).unwrap();
        assert_eq!(lines(&transactions), STORY, "{name}");
        assert!(transactions.is_sorted_by_key(|one| one.version), "{name}");
        assert!(transactions.iter().all(|one| one.complete && one.version.epoch == 3));
    }
}

/// The changes with their versions, without those of tables that are halted: the engine has stopped
/// them.
fn versioned(transactions: &[Transaction], halted: &mut Vec<String>) -> Vec<(Version, String)> {
    let mut changes = Vec::new();
    for (version, change) in transactions.iter().cloned().flat_map(Transaction::versioned) {
        let name = change.table().name.clone();
        if halted.contains(&name) {
            continue;
        }
        changes.push((version, show(&change)));
        if matches!(change, Change::Halt { .. }) {
            halted.push(name);
        }
    }
    changes
}

/// The events behind a place, with the format description that a server sends first.
fn events_from(events: &[Event], place: &Place) -> Vec<Event> {
    let at = |event: &Event| u64::from(event.header().log_pos()) == place.offset;
    let next = events.iter().position(at).map_or(0, |at| at + 1);
    events[..1].iter().chain(&events[next..]).cloned().collect()
}

#[test]
fn resuming_anywhere_gives_the_rest_once() {
    for (name, flavor) in FLAVORS {
        let fixture = fixtures::read(name);
        let mut first = builder(start(flavor), &fixture, ZeroDates::Stop);
        let all = fixtures::transactions(&mut first, &fixture.events, &now(&fixture)).unwrap();
        for done in 1..all.len() {
            let mut halted = Vec::new();
            versioned(&all[..done], &mut halted);
            let expected = versioned(&all[done..], &mut halted.clone());
            let from = Bookmark::read(&all[done - 1].position).unwrap();
            let events = events_from(&fixture.events, &from.place);
            let least = from.version(3).unwrap();
            let mut again = builder(from, &fixture, ZeroDates::Stop);
            let rest = fixtures::transactions(&mut again, &events, &now(&fixture)).unwrap();
            assert!(rest.iter().all(|one| one.version > least), "{name} after {done}");
            assert_eq!(versioned(&rest, &mut halted), expected, "{name} after {done}");
            assert_eq!(rest.last().map(|one| &one.position), all.last().map(|one| &one.position));
        }
    }
}

#[test]
fn the_position_stays_before_an_undecided_xa_transaction() {
    for (name, flavor) in FLAVORS {
        let fixture = fixtures::read(name);
        let mut builder = builder(start(flavor), &fixture, ZeroDates::Stop);
        let all = fixtures::transactions(&mut builder, &fixture.events, &now(&fixture)).unwrap();
        let between = all.iter().find(|one| lines(&[(*one).clone()]) == ["a(21,21)"]).unwrap();
        let bookmark = Bookmark::read(&between.position).unwrap();
        assert!(bookmark.place < *bookmark.end(), "{name}");
        assert!(between.version < bookmark.version(3).unwrap(), "{name}");
        let last = Bookmark::read(&all.last().unwrap().position).unwrap();
        assert_eq!(last.delivered, None, "{name}");
        assert!(!last.gtids.is_empty(), "{name}");
    }
}

#[test]
fn a_zero_date_is_null_if_the_configuration_says_so() {
    let fixture = fixtures::read("mysql-9.7-story");
    let mut builder = builder(start(Flavor::Mysql), &fixture, ZeroDates::Null);
    let all = fixtures::transactions(&mut builder, &fixture.events, &now(&fixture)).unwrap();
    let lines = lines(&all);
    assert!(lines.contains(&"c(2,null) c(3,2020-01-03)".to_owned()), "{lines:?}");
}

#[test]
fn an_error_names_the_row_without_its_values() {
    let fixture = fixtures::read("mariadb-10.11-story");
    let mut builder = builder(start(Flavor::Mariadb), &fixture, ZeroDates::Stop);
    let all = fixtures::transactions(&mut builder, &fixture.events, &now(&fixture)).unwrap();
    let halt = |change: &Change| match change {
        Change::Halt { code: Code::ZeroDate, message, .. } => Some(message.to_string()),
        _ => None,
    };
    let message = all.iter().flat_map(|one| &one.changes).find_map(halt).unwrap();
    let hash = Key::from_values([b"2".as_slice()]).hash();
    assert!(message.contains(&format!("the row with key hash {hash} has in column d a date")));
}
