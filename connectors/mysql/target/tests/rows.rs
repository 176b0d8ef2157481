//! What a batch does to rows: the greater version wins, whatever comes when.

use super::support::*;
use crate::change::{Applied, TableBatch};
use crate::error::Code;
use crate::mysql::testing::Server;
use crate::schema::TableName;
use crate::version::Version;
use crate::{KeyScan, Target};

const ROWS: &str = "SELECT k, a, b FROM t ORDER BY k";

/// Applies the batches one after the other and compares the rows.
async fn check(soft: bool, batches: Vec<TableBatch>, query: &str, expected: &[&str]) {
    let mut fixture = Fixture::with(&usual(), soft).await;
    for batch in batches {
        fixture.done(vec![batch]).await;
    }
    assert_eq!(fixture.look(query).await, expected);
}

#[tokio::test]
async fn a_change_older_than_the_row_leaves_the_row_alone() {
    let newer = part(&usual()).upsert(5, &["1", "new", "~"]);
    let older = part(&usual()).upsert(4, &["1", "old", "x"]).upsert(4, &["2", "other", ""]);
    check(false, vec![newer.clone(), older, newer], ROWS, &["1|new|~", "2|other|"]).await;
}

#[tokio::test]
async fn a_row_older_than_its_delete_does_not_come_back() {
    let _server = Server::shared().await;
    let delete = part(&usual()).delete(5, &["1"]);
    let older = part(&usual()).upsert(4, &["1", "old", "x"]);
    check(false, vec![delete.clone(), older.clone(), delete, older], ROWS, &[]).await;
    let delete = part(&usual()).delete(5, &["1"]);
    let newer = part(&usual()).upsert(6, &["1", "new", "x"]);
    check(false, vec![delete.clone(), newer, delete], ROWS, &["1|new|x"]).await;
}

#[tokio::test]
async fn a_delete_older_than_the_row_leaves_the_row_alone() {
    let row = part(&usual()).upsert(5, &["1", "a", "b"]);
    check(false, vec![row, part(&usual()).delete(4, &["1"])], ROWS, &["1|a|b"]).await;
}

#[tokio::test]
async fn a_truncation_removes_only_what_is_older_and_is_remembered() {
    let _server = Server::shared().await;
    let rows = part(&usual()).upsert(3, &["1", "old", ""]).upsert(7, &["2", "new", ""]);
    let late = part(&usual()).upsert(4, &["3", "late", ""]).upsert(6, &["4", "new", ""]);
    let both = part(&usual()).truncate(9).upsert(8, &["5", "older", ""]).upsert(10, &["6", "", ""]);
    let truncation = part(&usual()).truncate(5);
    check(false, vec![rows, truncation, late], ROWS, &["2|new|", "4|new|"]).await;
    check(false, vec![both], ROWS, &["6||"]).await;
}

#[tokio::test]
async fn a_soft_delete_marks_the_row_until_something_newer() {
    let _server = Server::shared().await;
    let marked = "SELECT k, a, _cdc_deleted FROM t ORDER BY k";
    let rows = part(&usual()).upsert(3, &["1", "a", ""]).upsert(3, &["2", "b", ""]);
    let delete = part(&usual()).delete(5, &["1"]);
    let older = part(&usual()).upsert(4, &["1", "x", ""]);
    let newer = part(&usual()).upsert(6, &["1", "new", ""]);
    let mut batches = vec![rows, delete, older];
    check(true, batches.clone(), marked, &["1|a|1", "2|b|0"]).await;
    batches.push(newer);
    check(true, batches.clone(), marked, &["1|new|0", "2|b|0"]).await;
    batches.push(part(&usual()).truncate(9));
    check(true, batches.clone(), marked, &["1|new|1", "2|b|1"]).await;
    batches.push(part(&usual()).upsert(8, &["2", "older", ""]));
    check(true, batches, marked, &["1|new|1", "2|b|1"]).await;
}

#[tokio::test]
async fn a_tombstone_is_kept_until_the_floor_has_passed_it() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let count = "SELECT LOWER(HEX(version)) FROM _cdc_tombstone ORDER BY 1";
    fixture.done(vec![part(&usual()).delete(5, &["1"]).delete(6, &["2"]).truncate(4)]).await;
    assert_eq!(fixture.look(count).await.len(), 3);
    // Strict: a backfill may have the very version of the floor.
    fixture.floor = version(5);
    fixture.done(vec![part(&usual()).delete(4, &["9"])]).await;
    assert_eq!(
        fixture.look(count).await,
        ["00000001000000000000000500000001", "00000001000000000000000600000001"]
    );
    fixture.done(vec![part(&usual()).upsert(5, &["1", "", ""])]).await;
    assert_eq!(fixture.look(ROWS).await, Vec::<String>::new());
    fixture.floor = version(7);
    fixture.done(vec![]).await;
    assert_eq!(fixture.look(count).await, Vec::<String>::new());
    fixture.done(vec![part(&usual()).delete(8, &["1"])]).await;
    fixture.done(vec![part(&usual()).upsert(7, &["1", "", ""])]).await;
    assert_eq!(fixture.look(ROWS).await, Vec::<String>::new());
}

#[tokio::test]
async fn absent_cells_keep_what_the_row_has() {
    let mut fixture = Fixture::with(&usual(), false).await;
    fixture
        .done(vec![part(&usual()).upsert(3, &["1", "a", "b"]).upsert(9, &["2", "c", "d"])])
        .await;
    let partial = part(&usual())
        .upsert(5, &["1", "-", "~"])
        .upsert(5, &["2", "-", "older"])
        .upsert(5, &["3", "whole", "row"]);
    fixture.done(vec![partial]).await;
    fixture.done(vec![part(&usual()).upsert(6, &["1", "new", "-"])]).await;
    assert_eq!(fixture.look(ROWS).await, ["1|new|~", "2|c|d", "3|whole|row"]);
}

#[tokio::test]
async fn absent_cells_without_a_row_ask_for_all_such_rows_and_change_nothing() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let other = table("u", &["k bigint", "a text", "b text"]);
    fixture.target.prepare(&other).await.unwrap();
    fixture.done(vec![part(&usual()).upsert(3, &["1", "a", "b"]).delete(9, &["4"])]).await;
    let first = part(&usual())
        .upsert(5, &["1", "-", "x"])
        .upsert(5, &["2", "-", "x"])
        .upsert(5, &["4", "-", "outranked"]);
    let applied =
        fixture.apply(vec![first.clone(), part(&other).upsert(5, &["7", "x", "-"])]).await;
    let needs = vec![
        (TableName::new("public", "t"), vec![key(&["2"])]),
        (TableName::new("public", "u"), vec![key(&["7"])]),
    ];
    assert_eq!(applied, Ok(Applied::NeedsRows(needs)));
    assert_eq!(fixture.look(ROWS).await, ["1|a|b"]);
    let truncated =
        fixture.apply(vec![part(&usual()).truncate(4).upsert(5, &["1", "-", "x"])]).await;
    let needs = vec![(TableName::new("public", "t"), vec![key(&["1"])])];
    assert_eq!(truncated, Ok(Applied::NeedsRows(needs)));
}

#[tokio::test]
async fn absent_cells_do_not_wake_a_soft_deleted_row() {
    let mut fixture = Fixture::with(&usual(), true).await;
    fixture.done(vec![part(&usual()).upsert(3, &["1", "a", "b"])]).await;
    fixture.done(vec![part(&usual()).delete(5, &["1"])]).await;
    fixture.done(vec![part(&usual()).upsert(4, &["1", "-", "older"])]).await;
    let newer = fixture.apply(vec![part(&usual()).upsert(6, &["1", "-", "x"])]).await;
    let needs = vec![(TableName::new("public", "t"), vec![key(&["1"])])];
    assert_eq!(newer, Ok(Applied::NeedsRows(needs)));
}

#[tokio::test]
async fn values_and_names_of_any_kind_travel_unharmed() {
    let mut fixture = Fixture::new(false).await;
    fixture.execute("CREATE TABLE canary (x int);\n INSERT INTO canary VALUES (1)").await;
    let nasty = table(
        "x`; DROP TABLE canary;--\"'",
        &["k`;--\" text", "sel'ect\\ text", "from bytea", "ducküber jsonb", "order text[]"],
    );
    fixture.target.prepare(&nasty).await.unwrap();
    let values = [
        "\\.",
        "it's \"q\" \\N \t\n\r\u{b}\u{8} $$ 'x",
        "\\x005c0a",
        "{\"a\": \"\\\\\"}",
        "{\"a,b\",NULL,\"\\\\\"}",
    ];
    fixture
        .done(vec![part(&nasty).upsert(1, &values).upsert(1, &["", "", "\\x", "~", "{}"])])
        .await;
    let keys = [key(&["\\."]), key(&[""]), key(&["none"])];
    let mut found = fixture.target.read_rows(&nasty, &keys).await.unwrap();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = vec![
        (keys[1].clone(), version(1), row(&["", "", "\\x", "~", "{}"])),
        (keys[0].clone(), version(1), row(&values)),
    ];
    assert!(found == expected);
    fixture.done(vec![part(&nasty).delete(2, &["\\."])]).await;
    assert_eq!(fixture.target.read_rows(&nasty, &keys).await.unwrap().len(), 1);
    assert_eq!(fixture.look("SELECT x FROM canary").await, ["1"]);
}

#[tokio::test]
async fn keys_are_read_in_the_order_of_their_bytes() {
    let words = table("w", &["k text", "a integer"]);
    let mut fixture = Fixture::with(&words, false).await;
    let rows = part(&words)
        .upsert(1, &["b", "1"])
        .upsert(2, &["B", "2"])
        .upsert(3, &["ä", "3"])
        .upsert(4, &["a'\\", "4"]);
    fixture.done(vec![rows]).await;
    let mut scan = KeyScan { table: &words, after: None, limit: 3, below: None, filter: None };
    let keys = |values: &[&str]| values.iter().map(|value| key(&[value])).collect::<Vec<_>>();
    assert_eq!(fixture.target.read_keys(&scan).await, Ok(keys(&["B", "a'\\", "b"])));
    let last = key(&["a'\\"]);
    scan.after = Some(&last);
    assert_eq!(fixture.target.read_keys(&scan).await, Ok(keys(&["b", "ä"])));
    scan.filter = Some("a > 1 -- nothing");
    assert_eq!(fixture.target.read_keys(&scan).await, Ok(keys(&["ä"])));
    scan.below = Some(version(3));
    assert_eq!(fixture.target.read_keys(&scan).await, Ok(keys(&[])));
    for filter in ["nonsense", "true); DROP TABLE w; SELECT (1", "a > 1; DROP TABLE w"] {
        scan = KeyScan { table: &words, after: None, limit: 9, below: None, filter: Some(filter) };
        let refused = fixture.target.read_keys(&scan).await;
        check_error(refused, of_table(&words), Code::Configuration, &["--where", "w"]);
    }
    assert_eq!(fixture.look("SELECT COUNT(*) FROM w").await, ["4"]);
}

#[tokio::test]
async fn a_composite_key_in_another_order_than_the_columns_works() {
    let mut schema = (*table("c", &["a text", "b integer", "c text"])).clone();
    schema.key = vec![2, 1];
    let composite = std::sync::Arc::new(schema);
    let mut fixture = Fixture::with(&composite, false).await;
    let rows = part(&composite)
        .upsert(1, &["x", "1", "k"])
        .upsert(1, &["y", "2", "k"])
        .upsert(1, &["z", "1", "l"]);
    fixture.done(vec![rows]).await;
    fixture.done(vec![part(&composite).delete(2, &["k", "1"])]).await;
    let scan = KeyScan { table: &composite, after: None, limit: 9, below: None, filter: None };
    let keys = fixture.target.read_keys(&scan).await.unwrap();
    assert_eq!(keys, [key(&["k", "2"]), key(&["l", "1"])]);
    let after = KeyScan { after: Some(&keys[0]), ..scan };
    assert_eq!(fixture.target.read_keys(&after).await.unwrap(), [key(&["l", "1"])]);
    let rows = fixture.target.read_rows(&composite, &keys).await.unwrap();
    assert!(
        rows[..]
            == [
                (keys[0].clone(), version(1), row(&["y", "2", "k"])),
                (keys[1].clone(), version(1), row(&["z", "1", "l"])),
            ]
    );
}

#[tokio::test]
async fn a_refused_row_is_named_without_its_values() {
    let mut fixture = Fixture::with(&usual(), false).await;
    fixture.execute("ALTER TABLE t ADD CONSTRAINT short CHECK (LENGTH(a) < 5)").await;
    let mut batch = part(&usual()).delete(9, &["500"]);
    for number in 0..300 {
        let a = if number == 201 || number == 250 { "secret" } else { "fine" };
        batch = batch.upsert(number + 1, &[&number.to_string(), a, "~"]);
    }
    let refused = fixture.apply(vec![batch]).await;
    let hash = key(&["201"]).hash();
    let words = [hash.as_str(), &version(202).to_string(), "public.t"];
    assert!(!refused.as_ref().unwrap_err().message.contains("secret"));
    check_error(refused, of_table(&usual()), Code::PoisonRow, &words);
    assert_eq!(fixture.look(ROWS).await, Vec::<String>::new());
    fixture.done(vec![part(&usual()).upsert(1, &["1", "ok", "~"])]).await;
}

#[tokio::test]
async fn a_value_that_its_column_cannot_hold_is_named_too() {
    let days = table("t", &["k bigint", "a date"]);
    let mut fixture = Fixture::with(&days, false).await;
    for (number, day) in ["2026-02-31", "infinity", "0044-03-15 BC"].iter().enumerate() {
        let batch = part(&days).upsert(1, &["1", "2026-02-28"]).upsert(2, &["2", day]);
        let hash = key(&["2"]).hash();
        let refused = fixture.apply(vec![batch]).await;
        let words = if number == 0 { "error 1292" } else { "column a" };
        check_error(refused, of_table(&days), Code::PoisonRow, &[&hash, words]);
    }
    assert_eq!(fixture.look("SELECT COUNT(*) FROM t").await, ["0"]);
}

#[tokio::test]
async fn a_large_batch_is_applied_whole() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let mut batch = part(&usual());
    let wide = "x\\\t".repeat(100);
    for number in 0..5000 {
        batch = batch.upsert(1, &[&number.to_string(), &wide, "~"]);
    }
    fixture.done(vec![batch]).await;
    let count = "SELECT COUNT(*), MIN(LENGTH(a)), MAX(LENGTH(a)), COUNT(b) FROM t";
    assert_eq!(fixture.look(count).await, ["5000|300|300|0"]);
    let all: Vec<_> = (0..5000).map(|number| key(&[&number.to_string()])).collect();
    assert_eq!(fixture.target.read_rows(&usual(), &all).await.unwrap().len(), 5000);
}

/// The server only remarks on a decimal that it cuts, once among many rows.
#[tokio::test]
async fn a_value_that_would_be_changed_is_refused_among_others() {
    for literals in [false, true] {
        let mut fixture = Fixture::with(&usual(), false).await;
        if literals {
            fixture = fixture.with_literals();
        }
        fixture.execute("ALTER TABLE t MODIFY a decimal(5,1)").await;
        let mut batch = part(&usual());
        for number in 0..1500 {
            let value = if number == 700 { "1.25" } else { "1.5" };
            batch = batch.upsert(1, &[&number.to_string(), value, "~"]);
        }
        let error = fixture.apply(vec![batch]).await.unwrap_err();
        assert_eq!(error.code, Code::PoisonRow, "{error}");
        assert!(error.message.contains(&key(&["700"]).hash()), "{error}");
        assert_eq!(fixture.look("SELECT COUNT(*) FROM t").await, ["0"]);
    }
}

#[tokio::test]
async fn commit_times_are_exact() {
    let mut fixture = Fixture::with(&usual(), false).await;
    fixture.done(vec![part(&usual()).upsert(1_700_000_000_123_456, &["1", "", ""])]).await;
    let times = fixture.look("SELECT _cdc_updated_at FROM t").await;
    assert_eq!(times, ["2023-11-14 22:13:20.123456"]);
    assert_eq!(Version::LEN, 16);
}
