//! The merge laws: any order and any repetition of the same changes makes the same batch, and it
//! is the one that applying them one by one, in the order of the log, would leave behind.

use std::collections::BTreeSet;

use connectors::change::{Applied, Batch, Cell, Checkpoint};
use connectors::memory::{Faults, MemoryTarget, TargetServer};
use connectors::schema::{Column, ColumnType, Engine};
use connectors::version::Position;
use connectors::{Claim, Target, TargetOptions};
use futures_util::FutureExt;
use proptest::prelude::*;
use proptest::sample::subsequence;

use super::*;

const COLUMNS: usize = 4;

/// Changes in words, each with the log place of its version.
type Log = Vec<(u64, String)>;

fn table(name: &str) -> Arc<TableSchema> {
    let column = |id: usize| Column {
        name: format!("c{id}"),
        column_type: ColumnType::Text,
        native: None,
        id: id as u32,
    };
    Arc::new(TableSchema {
        name: TableName::new("public", name),
        id: 1,
        engine: Engine::Memory,
        columns: (0..COLUMNS).map(column).collect(),
        key: vec![0],
    })
}

/// A row in one word: `k1..` has key `k`, value `1` and two absent cells; `-` is NULL.
fn row(word: &str) -> Row {
    Row::from_cells(word.as_bytes().chunks(1).map(|byte| match byte {
        b"." => Cell::Absent,
        b"-" => Cell::Null,
        value => Cell::Value(value),
    }))
}

fn word(row: &Row) -> String {
    let letter = |cell| match cell {
        Cell::Absent => '.',
        Cell::Null => '-',
        Cell::Value(value) | Cell::Binary(value) => char::from(value[0]),
    };
    row.cells().map(letter).collect()
}

fn key(letter: char) -> Key {
    Key::from_values([letter.to_string().as_bytes()])
}

fn letter(key: &Key) -> char {
    key.values().next().map_or('?', |value| char::from(value[0]))
}

fn version(log: u64) -> Version {
    Version { epoch: 1, log, ordinal: 1 }
}

/// A change in one word: `k1..` is an upsert, `-k` a delete, `T` a truncation.
fn change(word: &str) -> Change {
    let table = table("t");
    match word.as_bytes() {
        b"T" => Change::Truncate { table },
        [b'-', letter] => Change::Delete { table, key: key(char::from(*letter)) },
        _ => Change::Upsert { table, row: row(word) },
    }
}

/// A merged batch in words, each with the log place of its version; `!` marks an orphan.
fn words(merger: &mut Merger) -> Vec<String> {
    let mut words = Vec::new();
    for MergedTable { batch, orphans } in merger.take() {
        words.extend(batch.truncated.map(|(version, _)| format!("T@{}", version.log)));
        let delete =
            |delete: &RowDelete| format!("-{}@{}", letter(&delete.key), delete.version.log);
        words.extend(batch.deletes.iter().map(delete));
        let upsert = |upsert: &RowUpsert| {
            let orphan = if orphans.contains(&upsert.key) { "!" } else { "" };
            format!("{}@{}{orphan}", word(&upsert.row), upsert.version.log)
        };
        words.extend(batch.upserts.iter().map(upsert));
    }
    words
}

fn merger(changes: &[(u64, String)]) -> Merger {
    let mut merger = Merger::default();
    for (log, word) in changes {
        merger.add(version(*log), Timestamp(*log as i64), change(word)).unwrap();
    }
    merger
}

/// The changes get the versions 1, 2, 3 and so on.
fn numbered(changes: &[&str]) -> Log {
    (1..).zip(changes.iter().map(|&word| word.to_owned())).collect()
}

fn check(changes: &[&str], expected: &[&str]) {
    let mut numbered = numbered(changes);
    assert_eq!(words(&mut merger(&numbered)), expected, "in the order of the log");
    numbered.reverse();
    assert_eq!(words(&mut merger(&numbered)), expected, "backwards");
}

#[test]
fn the_newest_upsert_wins_and_takes_what_it_lacks_from_the_older_ones() {
    check(&["k111", "k2.2", "k3.."], &["k312@3"]);
    check(&["k111", "k-.."], &["k-11@2"]);
    check(&["k11.", "k2.."], &["k21.@2"]);
}

#[test]
fn a_delete_wipes_what_came_before_it() {
    check(&["k111", "-k"], &["-k@2"]);
    check(&["-k", "k222"], &["k222@2"]);
    check(&["k111", "-k", "j1.."], &["-k@2", "j1..@3"]);
}

#[test]
fn an_upsert_without_all_columns_after_a_delete_is_an_orphan() {
    check(&["k111", "-k", "k3.."], &["k3..@3!"]);
    check(&["-k", "k222", "k3.."], &["k322@3"]);
    check(&["T", "k2.."], &["T@1", "k2..@2!"]);
}

#[test]
fn a_truncation_wipes_what_came_before_it_and_the_newest_is_kept() {
    check(&["k111", "-j", "T", "j444", "T", "k666"], &["T@5", "k666@6"]);
}

#[test]
fn tables_do_not_mix() {
    let mut merger = merger(&numbered(&["k111", "-j"]));
    let (rows, bytes) = (merger.rows(), merger.bytes());
    let other = Change::Upsert { table: table("other"), row: row("k777") };
    merger.add(version(9), Timestamp(9), other).unwrap();
    assert!(merger.rows() == rows + 1 && merger.bytes() > bytes);
    let merged = merger.take();
    let tables = merged.iter().map(|merged| merged.batch.table.name.name.as_str());
    assert_eq!(tables.collect::<Vec<_>>(), ["other", "t"]);
    assert!(merger.is_empty() && merger.rows() == 0 && merger.bytes() == 0);
}

#[test]
fn what_cannot_be_merged_is_refused() {
    let mut merger = merger(&numbered(&["k111"]));
    let mut wider = (*table("t")).clone();
    wider.columns.push(Column { id: 9, name: "new".into(), ..wider.columns[1].clone() });
    let table = table("t");
    let halt = Change::halt(table.name.clone(), Code::SchemaChange, String::new());
    let refused = [
        halt,
        Change::Upsert { table: table.clone(), row: row(".111") },
        Change::Upsert { table, row: row("-111") },
        Change::Upsert { table: Arc::new(wider), row: row("k1111") },
    ];
    for change in refused {
        let error = merger.add(version(2), Timestamp(2), change).unwrap_err();
        assert_eq!(error.code, Code::Internal);
    }
    assert_eq!(words(&mut merger), ["k111@1"]);
}

#[test]
fn rows_read_again_replace_what_was_asked_and_the_missing_ones_go() {
    let mut merged = merger(&numbered(&["-k", "-j", "k3..", "j4..", "i5.."])).take().remove(0);
    assert_eq!(merged.orphans, [key('j'), key('k')]);
    complete(Arc::make_mut(&mut merged.batch), &[(key('k'), row("k789"))], &merged.orphans);
    let left: Vec<_> = merged.batch.upserts.iter().map(|u| (word(&u.row), u.version)).collect();
    assert_eq!(left, [("k789".into(), version(3)), ("i5..".into(), version(5))]);
}

#[test]
fn a_chunk_deletes_what_was_asked_for_and_not_found() {
    let chunk = Chunk {
        table: table("t"),
        version: version(7),
        read_at: Timestamp(70),
        rows: vec![(key('k'), row("k111"))],
        next: None,
    };
    assert_eq!(chunk_batch(chunk.clone(), None).deletes, []);
    let batch = chunk_batch(chunk, Some(&[key('j'), key('k'), key('j')]));
    let (version, updated_at) = (version(7), Timestamp(70));
    assert_eq!(batch.deletes, [RowDelete { key: key('j'), version, updated_at }]);
    let upsert = RowUpsert { key: key('k'), row: row("k111"), version, updated_at };
    assert_eq!(batch.upserts, [upsert]);
}

/// The merge as its definition: one change after the other, in the order of the log.
fn oracle(changes: &[(u64, String)]) -> Vec<String> {
    let mut truncated = None;
    let mut deleted: BTreeMap<char, u64> = BTreeMap::new();
    let mut upserts: BTreeMap<char, (u64, String)> = BTreeMap::new();
    for (log, change) in changes.iter().cloned().collect::<BTreeSet<_>>() {
        let key = change.chars().next_back().filter(|_| change.starts_with('-'));
        if change == "T" {
            (truncated, deleted, upserts) = (Some(log), BTreeMap::new(), BTreeMap::new());
        } else if let Some(key) = key {
            upserts.remove(&key);
            deleted.insert(key, log);
        } else if let Some(key) = change.chars().next() {
            let older = upserts.get(&key).map_or("....", |(_, word)| word);
            let pick = |(new, old)| if new == '.' { old } else { new };
            let word = change.chars().zip(older.chars()).map(pick).collect();
            upserts.insert(key, (log, word));
        }
    }
    let orphan =
        |key, word: &str| word.contains('.') && (truncated.is_some() || deleted.contains_key(key));
    let mut ends: Log = Vec::new();
    for (key, (log, word)) in &upserts {
        let mark = if orphan(key, word) { "!" } else { "" };
        ends.push((*log, format!("{word}@{log}{mark}")));
    }
    ends.sort();
    deleted.retain(|key, _| !upserts.contains_key(key));
    let mut gone: Log = deleted.iter().map(|(key, log)| (*log, format!("-{key}@{log}"))).collect();
    gone.sort();
    let truncation = truncated.map(|log| (log, format!("T@{log}")));
    truncation.into_iter().chain(gone).chain(ends).map(|(_, word)| word).collect()
}

fn any_change() -> impl Strategy<Value = String> {
    prop_oneof![
        10 => "[jk][0-9.-]{3}",
        4 => "-[jk]",
        1 => Just("T".to_owned()),
    ]
}

fn any_log() -> impl Strategy<Value = Log> {
    prop::collection::vec(any_change(), 1..12).prop_map(|changes| (1..).zip(changes).collect())
}

/// A log, and the same changes in any order, some of them more than once.
fn any_delivery() -> impl Strategy<Value = (Log, Log)> {
    any_log().prop_flat_map(|log| {
        let again = subsequence(log.clone(), 0..=log.len());
        let delivery = again.prop_map({
            let log = log.clone();
            move |again| [log.clone(), again].concat()
        });
        (Just(log), delivery.prop_shuffle())
    })
}

proptest! {
    #[test]
    fn every_order_and_repetition_makes_the_same_batch((log, delivery) in any_delivery()) {
        prop_assert_eq!(words(&mut merger(&delivery)), oracle(&log));
    }

    #[test]
    fn rows_and_bytes_are_what_the_batch_holds((_, delivery) in any_delivery()) {
        let mut merger = merger(&delivery);
        let (rows, bytes) = (merger.rows(), merger.bytes());
        let kept: usize =
            merger.tables.iter().map(MergingTable::bytes_counted).sum();
        prop_assert_eq!(bytes, kept);
        prop_assert_eq!(rows, words(&mut merger).len());
    }
}

/// A target in memory with the table, and batches applied to it as the engine does.
struct Bench {
    server: Arc<TargetServer>,
    target: MemoryTarget,
    sequence: u64,
    /// What the source has at the end of the log; what is read again comes from there.
    source: BTreeMap<char, String>,
}

impl Bench {
    fn new(log: &Log) -> Bench {
        let server = TargetServer::new();
        let options = TargetOptions {
            pipeline: "main".into(),
            soft_deletes: false,
            plain_schema: "public".into(),
        };
        let mut target = MemoryTarget::new(&server, options, Faults::none());
        let claim = Claim { instance: "one".into(), fence: None, take_over: false };
        target.claim(&claim).now_or_never().unwrap().unwrap();
        target.prepare(&table("t")).now_or_never().unwrap().unwrap();
        Bench { server, target, sequence: 0, source: source_rows(log) }
    }

    fn apply(&mut self, mut merged: Vec<MergedTable>) {
        self.sequence += 1;
        loop {
            for merged in &mut merged {
                let found = |key: &Key| Some((key.clone(), row(self.source.get(&letter(key))?)));
                let rows: Vec<_> = merged.orphans.iter().filter_map(found).collect();
                complete(Arc::make_mut(&mut merged.batch), &rows, &merged.orphans);
            }
            let position = Position("somewhere".into());
            let version = Version::ZERO;
            let checkpoint = Checkpoint { position, version, sequence: self.sequence };
            let tables = merged.iter().map(|merged| merged.batch.clone()).collect();
            let batch = Batch { checkpoint, floor: version, tables, status: BTreeMap::new() };
            match self.target.apply(&batch).now_or_never().unwrap().unwrap() {
                Applied::Done => return,
                Applied::NeedsRows(needed) => {
                    merged[0].orphans = needed.into_iter().flat_map(|(_, keys)| keys).collect();
                }
            }
        }
    }

    fn rows(&self) -> Vec<String> {
        let rows = self.server.rows(&table("t"));
        rows.into_values().map(|(_, row)| word(&row)).collect()
    }
}

/// The rows that this log leaves in the source. A column that no change ever gave is 9.
fn source_rows(log: &Log) -> BTreeMap<char, String> {
    let mut rows: BTreeMap<char, String> = BTreeMap::new();
    for (_, change) in log {
        let letters: Vec<char> = change.chars().collect();
        match letters[..] {
            ['T'] => rows.clear(),
            ['-', key] => {
                rows.remove(&key);
            }
            _ => {
                let row = rows.entry(letters[0]).or_insert_with(|| "9999".to_owned());
                let pick = |(&new, old)| if new == '.' { old } else { new };
                *row = letters.iter().zip(row.chars()).map(pick).collect();
            }
        }
    }
    rows
}

proptest! {
    #[test]
    fn however_the_log_is_cut_into_batches_the_target_ends_with_the_rows_of_the_source(
        (log, cuts) in any_log().prop_flat_map(|log| {
            let cuts = subsequence((1..log.len()).collect::<Vec<_>>(), 0..log.len());
            (Just(log), cuts)
        })
    ) {
        let mut bench = Bench::new(&log);
        let mut from = 0;
        for to in cuts.into_iter().chain([log.len()]) {
            bench.apply(merger(&log[from..to]).take());
            from = to;
        }
        prop_assert_eq!(bench.rows(), source_rows(&log).into_values().collect::<Vec<_>>());
    }
}
