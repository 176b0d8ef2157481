//! The contract, kept by the source and the target in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::change::{
    Applied, Batch, Change, Checkpoint, Key, RowDelete, RowUpsert, TableBatch, TableStatus,
    Timestamp,
};
use crate::error::Kind;
use crate::schema::{Column, ColumnType, Engine, TableName, TableSchema};
use crate::version::{Position, Version};
use crate::{
    ChunkRequest, Claim, KeyScan, Prepared, Remembered, Resume, Source, Target, TargetOptions,
};

fn column(name: &str, id: u32) -> Column {
    Column { name: name.into(), column_type: ColumnType::Text, native: None, id }
}

fn schema() -> TableSchema {
    TableSchema {
        name: TableName::new("public", "t"),
        id: 1,
        engine: Engine::Memory,
        columns: vec![column("k", 1), column("a", 2), column("b", 3)],
        key: vec![0],
    }
}

/// A row in one word: `k1.` has key `k`, value `1` and an absent cell; `-` is NULL.
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

fn key(letter: &str) -> Key {
    Key::from_values([letter.as_bytes()])
}

fn version(log: u64) -> Version {
    Version { epoch: 1, log, ordinal: 1 }
}

fn options(soft_deletes: bool) -> TargetOptions {
    TargetOptions { pipeline: "main".into(), soft_deletes, plain_schema: "public".into() }
}

fn claim(instance: &str) -> Claim {
    Claim { instance: instance.into(), fence: None, take_over: false }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("it does not have to wait")
}

/// What a batch does: `k11@3` an upsert, `-k@4` a delete, `T@5` a truncation.
fn part(words: &[&str]) -> TableBatch {
    let table = Arc::new(schema());
    let mut part = TableBatch { table, truncated: None, deletes: vec![], upserts: vec![] };
    for word in words {
        let (what, log) = word.split_once('@').unwrap();
        let (version, updated_at) = (version(log.parse().unwrap()), Timestamp(0));
        match what.strip_prefix('-') {
            _ if what == "T" => part.truncated = Some((version, updated_at)),
            Some(letter) => {
                part.deletes.push(RowDelete { key: key(letter), version, updated_at });
            }
            None => {
                let (key, row) = (key(&what[..1]), row(what));
                part.upserts.push(RowUpsert { key, row, version, updated_at });
            }
        }
    }
    part
}

/// A target with its table, and the batches that were applied to it.
struct Bench {
    server: Arc<TargetServer>,
    target: MemoryTarget,
    sequence: u64,
}

impl Bench {
    fn new(soft_deletes: bool) -> Bench {
        let server = TargetServer::new();
        let mut target = MemoryTarget::new(&server, options(soft_deletes), Faults::none());
        now(target.claim(&claim("one"))).unwrap();
        assert_eq!(now(target.prepare(&Arc::new(schema()))).unwrap(), Prepared::Created);
        Bench { server, target, sequence: 0 }
    }

    fn batch(&self, words: &[&str], floor: u64) -> Batch {
        let position = Position("somewhere".into());
        let version = Version::at_log(1, 0);
        let checkpoint = Checkpoint { position, version, sequence: self.sequence + 1 };
        let floor = Version::at_log(1, floor);
        Batch { checkpoint, floor, tables: vec![Arc::new(part(words))], status: BTreeMap::new() }
    }

    fn apply(&mut self, words: &[&str], floor: u64) -> Applied {
        let applied = now(self.target.apply(&self.batch(words, floor))).unwrap();
        self.sequence += u64::from(applied == Applied::Done);
        applied
    }

    fn rows(&self) -> Vec<String> {
        let rows = self.server.rows(&schema());
        rows.values().map(|(version, row)| format!("{}@{}", word(row), version.log)).collect()
    }
}

/// Applies the batches one by one and shows the rows that are left.
fn check_rows(batches: &[&[&str]], expected: &[&str]) {
    for soft_deletes in [false, true] {
        let mut bench = Bench::new(soft_deletes);
        for batch in batches {
            assert_eq!(bench.apply(batch, 0), Applied::Done);
        }
        assert_eq!(bench.rows(), expected, "soft deletes: {soft_deletes}");
    }
}

#[test]
fn the_greater_version_of_a_key_wins_in_every_order() {
    check_rows(&[&["k11@1"], &["k22@2"]], &["k22@2"]);
    check_rows(&[&["k22@2"], &["k11@1"]], &["k22@2"]);
    check_rows(&[&["-k@2"], &["k11@1"]], &[]);
    check_rows(&[&["k11@1"], &["-k@2"], &["k33@3"]], &["k33@3"]);
    check_rows(&[&["T@2"], &["k11@1", "j33@3"]], &["j33@3"]);
}

#[test]
fn an_absent_cell_keeps_what_the_row_has() {
    check_rows(&[&["k11@1"], &["k2.@2"]], &["k21@2"]);
    check_rows(&[&["k33@3"], &["k2.@2"]], &["k33@3"]);
    check_rows(&[&["-k@3"], &["k2.@2"]], &[]);
}

#[test]
fn a_row_that_is_not_there_is_asked_for_and_nothing_is_done() {
    for soft_deletes in [false, true] {
        let mut bench = Bench::new(soft_deletes);
        bench.apply(&["k11@1"], 0);
        bench.apply(&["-k@2"], 0);
        let needed = Applied::NeedsRows(vec![(schema().name, vec![key("k")])]);
        assert_eq!(bench.apply(&["k3.@3", "j33@3"], 0), needed);
        assert_eq!(bench.rows(), Vec::<String>::new());
    }
}

#[test]
fn tombstones_below_the_floor_are_neither_written_nor_kept() {
    let mut bench = Bench::new(false);
    bench.apply(&["-k@5", "-j@3"], 4);
    assert_eq!(bench.server.tombstones("main"), 1);
    bench.apply(&["k44@4", "j22@2"], 5);
    assert_eq!(bench.rows(), ["j22@2"]);
    bench.apply(&[], 6);
    assert_eq!(bench.server.tombstones("main"), 0);
}

#[test]
fn softly_deleted_rows_stay_and_are_not_shown() {
    let mut bench = Bench::new(true);
    bench.apply(&["k11@1", "j11@1"], 0);
    bench.apply(&["-k@2"], 9);
    assert_eq!(bench.server.deleted(&schema().name), [key("k")]);
    let table = Arc::new(schema());
    assert_eq!(now(bench.target.read_rows(&table, &[key("k"), key("j")])).unwrap().len(), 1);
    let scan = KeyScan { table: &table, after: None, limit: 9, below: None, filter: None };
    assert_eq!(now(bench.target.read_keys(&scan)).unwrap(), [key("j")]);
    bench.apply(&["T@3"], 9);
    assert_eq!(bench.server.deleted(&schema().name), [key("j"), key("k")]);
}

#[test]
fn keys_are_read_by_age_and_by_condition() {
    let mut bench = Bench::new(false);
    bench.apply(&["i11@1", "j22@2", "k12@3"], 0);
    let table = Arc::new(schema());
    let all = KeyScan { table: &table, after: None, limit: 9, below: None, filter: None };
    let check = |bench: &mut Bench, scan: &KeyScan<'_>, keys: &[Key]| {
        assert_eq!(now(bench.target.read_keys(scan)).unwrap(), keys);
    };
    check(&mut bench, &KeyScan { below: Some(version(2)), ..all }, &[key("i")]);
    check(&mut bench, &KeyScan { filter: Some("a = '1'"), ..all }, &[key("i"), key("k")]);
    check(&mut bench, &KeyScan { after: Some(&key("i")), limit: 1, ..all }, &[key("j")]);
}

#[test]
fn a_batch_applied_again_changes_nothing_and_one_out_of_order_is_refused() {
    let mut bench = Bench::new(false);
    let batch = bench.batch(&["k11@1"], 0);
    assert_eq!(now(bench.target.apply(&batch)).unwrap(), Applied::Done);
    assert_eq!(now(bench.target.apply(&batch)).unwrap(), Applied::Done);
    let mut skipped = batch;
    skipped.checkpoint.sequence += 2;
    assert_eq!(now(bench.target.apply(&skipped)).unwrap_err().code, Code::Internal);
}

#[test]
fn only_the_last_claim_can_write() {
    let mut bench = Bench::new(false);
    let mut other = MemoryTarget::new(&bench.server, options(false), Faults::none());
    let error = now(other.claim(&claim("two"))).unwrap_err();
    assert_eq!(error.code, Code::AlreadyRunning);
    now(other.claim(&Claim { take_over: true, ..claim("two") })).unwrap();
    let batch = bench.batch(&["k11@1"], 0);
    assert_eq!(now(bench.target.apply(&batch)).unwrap_err().code, Code::Fenced);
    let again = Claim { fence: Some(1), ..claim("one") };
    assert_eq!(now(bench.target.claim(&again)).unwrap_err().code, Code::Fenced);
    assert_eq!(now(other.apply(&batch)).unwrap(), Applied::Done);
}

#[test]
fn a_closed_connection_leaves_the_pipeline_to_the_next() {
    let bench = Bench::new(false);
    drop(bench.target);
    let mut other = MemoryTarget::new(&bench.server, options(false), Faults::none());
    let Remembered { fence, instance, tables, .. } = now(other.claim(&claim("two"))).unwrap();
    assert_eq!((fence, instance.as_str()), (2, "two"));
    assert_eq!(tables[&schema().name].status, TableStatus::Copying);
}

#[test]
fn a_table_that_gets_a_column_is_incomplete_again() {
    let mut bench = Bench::new(false);
    bench.apply(&["k11@1"], 0);
    let mut wider = schema();
    wider.columns.push(column("c", 4));
    let wider = Arc::new(wider);
    let added = now(bench.target.prepare(&wider)).unwrap();
    assert_eq!(added, Prepared::Added(vec!["c".into()]));
    let rows = now(bench.target.read_rows(&wider, &[key("k")])).unwrap();
    assert_eq!(rows, [(key("k"), version(1), row("k11-"))]);
    // A change from before the column was added.
    bench.apply(&["k22@2"], 0);
    let narrower = now(bench.target.prepare(&Arc::new(schema()))).unwrap();
    assert_eq!(narrower, Prepared::Unchanged);
}

#[test]
fn a_refused_row_stops_its_table_and_nothing_is_applied() {
    let mut bench = Bench::new(false);
    bench.server.refuse(&schema().name, &key("k"));
    let error = now(bench.target.apply(&bench.batch(&["j11@1", "k11@1"], 0))).unwrap_err();
    assert_eq!((error.kind, error.code), (Kind::Table(schema().name), Code::PoisonRow));
    assert!(bench.rows().is_empty());
}

#[test]
fn a_restored_target_goes_back_with_its_checkpoint() {
    let mut bench = Bench::new(false);
    bench.apply(&["k11@1"], 0);
    let backup = bench.server.backup();
    bench.apply(&["k22@2"], 0);
    bench.server.restore(&backup);
    assert_eq!(bench.rows(), ["k11@1"]);
    let remembered = bench.server.remembered("main").unwrap();
    assert_eq!(remembered.checkpoint.unwrap().sequence, 1);
}

/// Plays these faults, one a point, then none.
struct Played(Mutex<VecDeque<Fault>>);

impl Script for Played {
    fn decide(&self, _point: &'static str) -> Fault {
        self.0.lock().unwrap().pop_front().unwrap_or(Fault::None)
    }
}

fn check_fault(fault: Fault, rows: &[&str]) {
    let bench = Bench::new(false);
    let faults =
        Faults::new(Arc::new(Played(Mutex::new([Fault::None, Fault::None, fault].into()))));
    let batch = bench.batch(&["k11@1"], 0);
    let mut target = MemoryTarget::new(&bench.server, options(false), faults.clone());
    now(target.claim(&claim("one"))).unwrap();
    let applied = target.apply(&batch).now_or_never();
    assert_eq!(applied.is_none(), fault == Fault::Kill);
    assert_eq!(faults.killed().now_or_never().is_some(), fault == Fault::Kill);
    assert!(applied.is_none_or(|applied| applied.unwrap_err().is_transient()));
    assert_eq!(bench.rows(), rows);
}

#[test]
fn a_failure_does_nothing_and_a_lost_answer_everything() {
    check_fault(Fault::Fail, &[]);
    check_fault(Fault::LoseAnswer, &["k11@1"]);
    check_fault(Fault::Kill, &[]);
}

fn insert(word: &str) -> Op {
    Op::Insert { table: schema().name, row: row(word) }
}

fn update(letter: &str, word: &str) -> Op {
    Op::Update { table: schema().name, key: key(letter), row: row(word) }
}

fn source_words(server: &SourceServer) -> Vec<String> {
    server.rows(&schema().name).values().map(word).collect()
}

#[test]
fn a_commit_is_in_the_log_before_it_is_visible() {
    let server = SourceServer::new([schema()]);
    let first = server.commit(&[insert("k11")]).unwrap();
    let second = server.commit(&[insert("j11")]).unwrap();
    assert_eq!(server.commit(&[update("k", "k22")]), Err(Refused::Locked));
    server.show(second);
    assert_eq!((source_words(&server), server.pending()), (vec!["j11".into()], vec![first]));
    server.show(first);
    assert_eq!(server.commit(&[insert("k11")]), Err(Refused::Conflict));
    server.show(server.commit(&[update("k", "l2.")]).unwrap());
    assert_eq!(source_words(&server), ["j11", "l21"]);
}

#[test]
fn the_log_has_a_key_change_as_a_delete_and_an_upsert_in_parts() {
    let server = SourceServer::new([schema()]);
    server.show(server.commit(&[insert("k11")]).unwrap());
    let source = MemorySource::new(&server, Faults::none()).in_parts(1);
    let table = Arc::new(schema());
    let start = now(source.subscribe(std::slice::from_ref(&table), None)).unwrap();
    let mut stream = now(source.stream(&start, 1, std::slice::from_ref(&table), &[])).unwrap();
    assert!(stream.next().now_or_never().is_none(), "what was there before is not in the log");
    server.commit(&[update("k", "l2.")]).unwrap();
    let parts = [now(stream.next()).unwrap(), now(stream.next()).unwrap()];
    assert_eq!(parts[0].changes, [Change::Delete { table: table.clone(), key: key("k") }]);
    assert_eq!(parts[1].changes, [Change::Upsert { table, row: row("l2.") }]);
    assert_eq!(
        parts.each_ref().map(|part| (part.first_ordinal, part.complete)),
        [(1, false), (2, true)]
    );
    now(stream.acknowledge(&parts[1].position)).unwrap();
    assert_eq!(server.acknowledged(), Some(server.head()));
    let error = now(source.subscribe(&[], Some(Resume::at(&start)))).unwrap_err();
    assert_eq!(error.code, Code::SlotGap);
}

#[test]
fn a_chunk_claims_less_than_a_commit_that_it_does_not_see() {
    let server = SourceServer::new([schema()]);
    let source = MemorySource::new(&server, Faults::none());
    let table = Arc::new(schema());
    let before = server.commit(&[insert("i11")]).unwrap();
    let start = now(source.subscribe(std::slice::from_ref(&table), None)).unwrap();
    let mut stream = now(source.stream(&start, 1, std::slice::from_ref(&table), &[])).unwrap();
    let mut reader = now(source.reader()).unwrap();
    let hidden = server.commit(&[insert("j11")]).unwrap();
    server.show(server.commit(&[insert("k11")]).unwrap());
    let (first, second) = (now(stream.next()).unwrap(), now(stream.next()).unwrap());
    let not_below = Version::at_log(1, first.version.log - 1);
    let request = ChunkRequest { table: &table, after: None, filter: None, rows_max: 9, not_below };
    assert!(reader.read_chunk(&request).now_or_never().is_none(), "an older commit is hidden");
    server.show(before);
    let chunk = now(reader.read_chunk(&request)).unwrap();
    assert_eq!((chunk.version, chunk.rows.len()), (not_below, 2));
    let request = ChunkRequest { not_below: second.version, ..request };
    assert!(reader.read_chunk(&request).now_or_never().is_none(), "it cannot claim as much");
    assert!(reader.reread(&table, &[key("j")], first.version).now_or_never().is_none());
    server.show(hidden);
    let chunk = now(reader.read_chunk(&ChunkRequest { rows_max: 2, ..request })).unwrap();
    assert_eq!((chunk.version, chunk.next), (second.version, Some(key("j"))));
    let keys = now(reader.read_keys(&table, &[key("x"), key("k")], first.version)).unwrap();
    assert_eq!(keys.rows, [(key("k"), row("k11"))]);
}

#[test]
fn only_one_stream_reads_the_log_until_it_is_evicted() {
    let server = SourceServer::new([schema()]);
    let source = MemorySource::new(&server, Faults::none());
    let start = now(source.subscribe(&[], None)).unwrap();
    let mut stream = now(source.stream(&start, 1, &[], &[])).unwrap();
    let error = now(source.stream(&start, 1, &[], &[])).err().unwrap();
    assert_eq!(error.code, Code::SlotInUse);
    now(source.evict()).unwrap();
    assert!(now(stream.next()).unwrap_err().is_transient());
    let mut stream = now(source.stream(&start, 1, &[], &[])).unwrap();
    let marker = now(source.mark(1)).unwrap();
    assert_eq!(now(stream.next()).unwrap().version, marker);
}

#[test]
fn a_log_that_is_far_ahead_is_read_in_bulk_and_then_streamed() {
    let server = SourceServer::new([schema()]);
    let source = MemorySource::new(&server, Faults::none()).in_bulk(Some(20));
    let start = now(source.subscribe(&[], None)).unwrap();
    let markers: Vec<Version> = (0..5).map(|_| now(source.mark(1)).unwrap()).collect();
    let mut stream = now(source.stream(&start, 1, &[], &[])).unwrap();
    let mut reached = start;
    for (number, marker) in markers.iter().enumerate() {
        let transaction = now(stream.next()).unwrap();
        assert_eq!(transaction.version, *marker);
        reached = transaction.position;
        now(stream.acknowledge(&reached)).unwrap();
        // Four come in one call, during which nothing reaches the slot.
        let acknowledged = if number < 4 { 0 } else { 50 };
        assert_eq!(server.acknowledged(), Some(acknowledged), "{number}");
    }
    let error = now(source.stream(&reached, 1, &[], &[])).err().unwrap();
    assert_eq!(error.code, Code::SlotInUse, "the stream holds the slot again");
    for _ in 0..5 {
        now(source.mark(1)).unwrap();
    }
    now(stream.next()).unwrap();
    let mut other = now(source.stream(&reached, 1, &[], &[])).unwrap();
    now(source.evict()).unwrap();
    for stream in [&mut stream, &mut other] {
        assert!(now(stream.next()).unwrap_err().is_transient(), "whoever reads is evicted");
    }
}

fn check_refused(spoil: impl FnOnce(&SourceServer), code: Code) {
    let server = SourceServer::new([schema()]);
    let source = MemorySource::new(&server, Faults::none());
    let start = now(source.subscribe(&[], None)).unwrap();
    spoil(&server);
    assert_eq!(now(source.subscribe(&[], Some(Resume::at(&start)))).unwrap_err().code, code);
}

#[test]
fn a_gap_is_never_skipped() {
    check_refused(SourceServer::drop_slot, Code::SlotMissing);
    check_refused(|server| server.replace("other"), Code::SourceIdentity);
    let skip = |server: &SourceServer| {
        server.commit(&[]).unwrap();
        server.skip_slot();
    };
    check_refused(skip, Code::SlotGap);
}

#[test]
fn an_added_column_is_in_later_changes_and_in_the_rows_that_exist() {
    let server = SourceServer::new([schema()]);
    server.show(server.commit(&[insert("k11")]).unwrap());
    let (table, column) = (schema().name, column("c", 4));
    let value = Some(b"7".to_vec());
    let add = Op::AddColumn { table: table.clone(), column, value };
    server.show(server.commit(&[add, insert("j123")]).unwrap());
    assert_eq!(source_words(&server), ["j123", "k117"]);
    let source = MemorySource::new(&server, Faults::none());
    let mut reader = now(source.reader()).unwrap();
    assert!(now(reader.any_value(&schema(), &["c".into()])).unwrap());
    assert_eq!(server.schema(&table).unwrap().columns.len(), 4);
}

/// One change for one key, that nothing else has the version of.
fn any_change() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[jk][0-9]{2}", 2 => "-[jk]", 1 => Just("T".to_owned())]
}

proptest! {
    #[test]
    fn every_order_repetition_and_crash_of_full_changes_ends_with_the_same_rows(
        changes in prop::collection::vec(any_change(), 1..10)
            .prop_map(|changes| {
                let number = |(log, word): (usize, String)| format!("{word}@{log}");
                (1..).zip(changes).map(number).collect::<Vec<_>>()
            })
            .prop_flat_map(|log| {
                let twice = [log.clone(), log.clone()].concat();
                (Just(log), Just(twice).prop_shuffle())
            }),
        soft_deletes: bool,
    ) {
        let (log, delivery) = changes;
        let mut ordered = Bench::new(soft_deletes);
        let mut shuffled = Bench::new(soft_deletes);
        log.iter().for_each(|change| { ordered.apply(&[change.as_str()], 0); });
        for change in &delivery {
            // A crash: what is durable is all that is left.
            let backup = shuffled.server.backup();
            shuffled.apply(&[change.as_str()], 0);
            shuffled.server.restore(&backup);
            shuffled.sequence -= 1;
            shuffled.apply(&[change.as_str()], 0);
        }
        prop_assert_eq!(ordered.rows(), shuffled.rows());
    }
}
