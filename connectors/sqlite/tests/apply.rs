//! Merging: the greater version wins, whatever comes first, and absent cells overwrite nothing.

use std::sync::Arc;

use std::collections::BTreeMap;

use super::support::{Fixture, at, delete, key, simple, upsert};
use crate::Target;
use crate::change::{Applied, Cell, Row, RowUpsert, TableStatus, Timestamp};
use crate::error::{Code, Kind};
use crate::schema::TableName;
use crate::version::Version;

#[tokio::test]
async fn the_greater_version_wins_in_any_order_and_duplicates_change_nothing() {
    let mut f = Fixture::new(simple(), false).await;
    f.upsert(vec![upsert(1, at(5), &["new", "-"]), upsert(2, at(1), &["x", "y"])]).await;
    f.upsert(vec![upsert(1, at(3), &["old", "old"]), upsert(2, at(2), &["z", "-"])]).await;
    f.upsert(vec![upsert(1, at(5), &["new", "-"])]).await;
    assert_eq!(f.rows().await, ["1 new - @5", "2 z - @2"]);
    let updated_at: String = f.query("SELECT _cdc_updated_at FROM t WHERE id = 2");
    assert_eq!(updated_at, "1970-01-01 00:00:00.000002");
}

#[tokio::test]
async fn s53_a_deleted_row_does_not_come_back_until_something_newer_arrives() {
    for soft in [false, true] {
        let mut f = Fixture::new(simple(), soft).await;
        f.upsert(vec![upsert(1, at(2), &["a", "b"])]).await;
        f.delete(vec![delete(1, at(4)), delete(2, at(4))]).await;
        f.upsert(vec![upsert(1, at(3), &["a", "b"]), upsert(2, at(3), &["a", "b"])]).await;
        assert_eq!(f.rows().await, Vec::<String>::new(), "soft {soft}");
        f.delete(vec![delete(1, at(1))]).await;
        f.upsert(vec![upsert(1, at(5), &["c", "d"])]).await;
        assert_eq!(f.rows().await, ["1 c d @5"], "soft {soft}");
        f.delete(vec![delete(1, at(4))]).await;
        assert_eq!(f.rows().await, ["1 c d @5"], "soft {soft}");
    }
}

#[tokio::test]
async fn a_tombstone_at_the_floor_stays_and_one_below_it_goes() {
    let mut f = Fixture::new(simple(), false).await;
    f.delete(vec![delete(1, Version::at_log(1, 4)), delete(2, at(3))]).await;
    f.floor = Version::at_log(1, 4);
    f.upsert(vec![]).await;
    assert_eq!(f.query::<i64>("SELECT count(*) FROM _cdc_tombstone"), 1);
    f.upsert(vec![upsert(1, Version::at_log(1, 4), &["a", "b"])]).await;
    assert_eq!(f.rows().await, Vec::<String>::new());
    f.delete(vec![delete(3, at(3)), delete(4, at(4)), delete(5, f.floor)]).await;
    let keys: String = f.query("SELECT group_concat(hex(key)) FROM _cdc_tombstone");
    assert_eq!(keys, "0000000131,0000000134,0000000135");
}

#[tokio::test]
async fn a_truncation_outranks_an_older_chunk_row_and_spares_newer_rows() {
    for soft in [false, true] {
        let mut f = Fixture::new(simple(), soft).await;
        f.upsert(vec![upsert(1, at(1), &["a", "b"]), upsert(2, at(9), &["c", "d"])]).await;
        f.truncate(at(5)).await;
        f.upsert(vec![upsert(1, at(4), &["a", "b"]), upsert(3, at(4), &["a", "b"])]).await;
        f.upsert(vec![upsert(4, at(6), &["e", "f"])]).await;
        assert_eq!(f.rows().await, ["2 c d @9", "4 e f @6"], "soft {soft}");
    }
}

#[tokio::test]
async fn a_truncation_below_the_floor_still_outranks_the_rows_of_its_own_batch() {
    let mut f = Fixture::new(simple(), false).await;
    f.floor = at(9);
    let mut batch = f.batch(vec![], vec![upsert(1, at(4), &["a", "b"])]);
    Arc::make_mut(&mut batch.tables[0]).truncated = Some((at(5), Timestamp(0)));
    assert_eq!(f.apply(&batch).await.unwrap(), Applied::Done);
    assert_eq!(f.rows().await, Vec::<String>::new());
}

#[tokio::test]
async fn an_absent_cell_keeps_what_is_there_and_null_overwrites_it() {
    for soft in [false, true] {
        let mut f = Fixture::new(simple(), soft).await;
        f.upsert(vec![upsert(1, at(1), &["a", "b"])]).await;
        f.upsert(vec![upsert(1, at(2), &["-", "?"])]).await;
        assert_eq!(f.rows().await, ["1 - b @2"]);
        f.upsert(vec![upsert(1, at(1), &["?", "old"])]).await;
        assert_eq!(f.rows().await, ["1 - b @2"]);
        f.upsert(vec![upsert(1, at(3), &["?", "?"])]).await;
        assert_eq!(f.rows().await, ["1 - b @3"]);
    }
}

#[tokio::test]
async fn absent_cells_of_unknown_rows_are_asked_for_and_nothing_is_done() {
    for soft in [false, true] {
        let mut f = Fixture::new(simple(), soft).await;
        f.upsert(vec![upsert(3, at(1), &["a", "b"])]).await;
        f.delete(vec![delete(3, at(2))]).await;
        let upserts = vec![
            upsert(1, at(3), &["full", "row"]),
            upsert(2, at(3), &["x", "?"]),
            upsert(3, at(3), &["x", "?"]),
        ];
        let batch = f.batch(vec![], upserts);
        let missing = vec![(TableName::new("public", "t"), vec![key(2), key(3)])];
        assert_eq!(f.apply(&batch).await.unwrap(), Applied::NeedsRows(missing), "soft {soft}");
        assert_eq!(f.rows().await, Vec::<String>::new());
        let upserts = vec![upsert(2, at(3), &["x", "y"]), upsert(3, at(3), &["x", "z"])];
        f.upsert(upserts).await;
        assert_eq!(f.rows().await, ["2 x y @3", "3 x z @3"]);
    }
}

#[tokio::test]
async fn absent_cells_that_something_newer_outranks_are_not_asked_for() {
    for soft in [false, true] {
        let mut f = Fixture::new(simple(), soft).await;
        f.delete(vec![delete(1, at(5))]).await;
        f.upsert(vec![upsert(1, at(4), &["x", "?"])]).await;
        f.truncate(at(6)).await;
        f.upsert(vec![upsert(2, at(5), &["x", "?"])]).await;
        assert_eq!(f.rows().await, Vec::<String>::new(), "soft {soft}");
    }
}

#[tokio::test]
async fn a_soft_deleted_row_stays_marked_with_its_cells() {
    let mut f = Fixture::new(simple(), true).await;
    f.upsert(vec![upsert(1, at(1), &["a", "b"]), upsert(2, at(1), &["c", "d"])]).await;
    f.delete(vec![delete(1, at(2))]).await;
    f.truncate(at(3)).await;
    let sql = "SELECT group_concat(id || a || _cdc_deleted || hex(_cdc_version), ' ') FROM t";
    let expected = format!("1a1{} 2c1{}", hex(at(2)), hex(at(3)));
    assert_eq!(f.query::<String>(sql), expected);
    assert!(f.target.read_rows(&f.table, &[key(1), key(2)]).await.unwrap().is_empty());
}

fn hex(version: Version) -> String {
    version.to_bytes().iter().map(|byte| format!("{byte:02X}")).collect()
}

#[tokio::test]
async fn a_batch_whose_answer_was_lost_is_recognised_and_one_that_does_not_follow_is_refused() {
    let mut f = Fixture::new(simple(), false).await;
    let batch = f.batch(vec![], vec![upsert(1, at(1), &["a", "b"])]);
    assert_eq!(f.apply(&batch).await.unwrap(), Applied::Done);
    f.execute("UPDATE t SET a = 'by hand'");
    assert_eq!(f.apply(&batch).await.unwrap(), Applied::Done);
    assert_eq!(f.rows().await, ["1 by hand b @1"]);
    let mut other = batch.clone();
    other.checkpoint.position.0 = "elsewhere".into();
    assert_eq!(f.apply(&other).await.unwrap_err().code, Code::Internal);
    other.checkpoint.sequence = 7;
    assert_eq!(f.apply(&other).await.unwrap_err().code, Code::Internal);
}

#[tokio::test]
async fn the_checkpoint_and_the_table_states_are_recalled_as_they_were_recorded() {
    let mut f = Fixture::new(simple(), false).await;
    let mut batch = f.batch(vec![], vec![]);
    let stopped =
        TableStatus::Stopped { code: Code::PoisonRow, message: "why".into(), version: at(3) };
    batch.status = BTreeMap::from([(f.table.name.clone(), stopped.clone())]);
    f.apply(&batch).await.unwrap();
    let remembered = f.target.recall().await.unwrap().unwrap();
    assert_eq!(remembered.checkpoint, Some(batch.checkpoint));
    assert_eq!((remembered.fence, remembered.instance.as_str()), (1, "one"));
    assert_eq!(remembered.tables[&f.table.name].status, stopped);
    assert_eq!(remembered.tables[&f.table.name].schema, *f.table);
}

#[tokio::test]
async fn a_row_that_is_refused_is_named_by_its_hash_and_nothing_is_committed() {
    let mut f = Fixture::new(simple(), false).await;
    f.execute(
        "CREATE TRIGGER no BEFORE INSERT ON t WHEN new.a = 'secret' \
         BEGIN SELECT RAISE(ABORT, 'secret'); END",
    );
    let upserts = vec![upsert(1, at(1), &["a", "b"]), upsert(42, at(2), &["secret", "b"])];
    check_poison(&mut f, upserts).await;
    f.execute("DROP TRIGGER no; CREATE UNIQUE INDEX one_b ON t (b)");
    let upserts = vec![upsert(1, at(1), &["a", "secret"]), upsert(42, at(2), &["c", "secret"])];
    check_poison(&mut f, upserts).await;
    f.execute("DROP INDEX one_b");
    check_poison(&mut f, vec![upsert(42, at(2), &["secret\0", "b"])]).await;
}

async fn check_poison(f: &mut Fixture, upserts: Vec<RowUpsert>) {
    let batch = f.batch(vec![], upserts);
    let error = f.apply(&batch).await.unwrap_err();
    assert_eq!(error.code, Code::PoisonRow, "{error}");
    assert_eq!(error.kind, Kind::Table(f.table.name.clone()));
    assert!(error.message.contains(&key(42).hash()), "{error}");
    assert!(error.message.contains(&at(2).to_string()), "{error}");
    assert!(!error.message.contains("secret"), "{error}");
    assert_eq!(f.rows().await, Vec::<String>::new());
    assert_eq!(f.target.recall().await.unwrap().unwrap().checkpoint, None);
}

#[tokio::test]
async fn text_that_is_not_utf8_is_refused() {
    let mut f = Fixture::new(simple(), false).await;
    let mut row = upsert(42, at(2), &["", ""]);
    let cells = [b"42".as_slice(), b"\xff\xfe", b""].map(Cell::Value);
    row.row = Row::from_cells(cells);
    check_poison(&mut f, vec![row]).await;
}

#[tokio::test]
async fn a_locked_file_is_worth_another_try() {
    let mut f = Fixture::new(simple(), false).await;
    let other = rusqlite::Connection::open(f.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let batch = f.batch(vec![], vec![upsert(1, at(1), &["a", "b"])]);
    let error = f.apply(&batch).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    other.execute_batch("ROLLBACK").unwrap();
    f.upsert(vec![upsert(1, at(1), &["a", "b"])]).await;
}

#[tokio::test]
async fn a_full_disk_is_worth_another_try_and_nothing_is_half_done() {
    let mut f = Fixture::new(simple(), false).await;
    let limit_pages = |f: &Fixture, pages: i64| {
        let store = f.target.store.lock().unwrap();
        let connection = store.connection.as_ref().unwrap();
        connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(())).unwrap();
    };
    limit_pages(&f, 1);
    let long = "x".repeat(100_000);
    let batch =
        f.batch(vec![], vec![upsert(1, at(1), &["a", "b"]), upsert(2, at(1), &[&long, ""])]);
    let error = f.apply(&batch).await.unwrap_err();
    assert!(error.is_transient() && error.message.contains("disk is full"), "{error}");
    assert_eq!(f.rows().await, Vec::<String>::new());
    limit_pages(&f, 1_000_000);
    f.upsert(vec![upsert(1, at(1), &["a", "b"])]).await;
    assert_eq!(f.rows().await, ["1 a b @1"]);
}

#[tokio::test]
async fn a_file_that_is_replaced_under_the_writer_stops_it() {
    let mut f = Fixture::new(simple(), false).await;
    std::fs::rename(f.path(), f.directory.path().join("moved.db")).unwrap();
    let batch = f.batch(vec![], vec![upsert(1, at(1), &["a", "b"])]);
    assert_eq!(f.apply(&batch).await.unwrap_err().code, Code::TargetLost);
    std::fs::write(f.path(), "").unwrap();
    assert_eq!(f.apply(&batch).await.unwrap_err().code, Code::TargetLost);
}
