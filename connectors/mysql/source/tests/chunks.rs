//! Chunks beside the log: whatever the order in which they arrive, the greatest version of each
//! key is what the source has.

use super::*;
use crate::change::Chunk;
use crate::{ChunkRequest, RowReader};

/// All chunks of a table.
async fn read_table(
    reader: &mut Box<dyn RowReader>,
    table: &Arc<TableSchema>,
    rows_max: usize,
) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    loop {
        let after = chunks.last().and_then(|chunk| chunk.next.clone());
        let not_below = Version::ZERO;
        let request =
            ChunkRequest { table, after: after.as_ref(), filter: None, rows_max, not_below };
        chunks.push(reader.read_chunk(&request).await.unwrap());
        if chunks.last().unwrap().next.is_none() {
            return chunks;
        }
    }
}

/// The rows of a table in chunks of two, in words, in the order in which they come; then the same
/// rows by their keys.
async fn check_order(columns: &str, key: &str, rows: &str, expected: &[&str]) {
    let create = format!("CREATE TABLE t ({columns}, PRIMARY KEY ({key}))");
    let fixture = Fixture::new(&format!("{create};\nINSERT INTO t VALUES {rows}")).await;
    let (_, _stream) = fixture.start().await;
    let table = fixture.tables().await.remove(0);
    let mut reader = fixture.source.reader().await.unwrap();
    let chunks = read_table(&mut reader, &table, 2).await;
    let rows: Vec<_> = chunks.iter().flat_map(|chunk| &chunk.rows).collect();
    let found: Vec<String> = rows.iter().map(|(key, _)| key_words(key)).collect();
    assert_eq!(found, expected, "{columns}");
    let keys: Vec<Key> = rows.iter().map(|(key, _)| key.clone()).collect();
    let again = reader.read_keys(&table, &keys, Version::ZERO).await.unwrap();
    assert_eq!(again.rows.len(), keys.len(), "{columns}");
    let plain = reader.read_plain_keys(&table, &keys).await.unwrap();
    assert_eq!(plain.len(), keys.len(), "{columns}");
}

#[tokio::test]
async fn keys_of_numbers_go_on_where_a_chunk_ended() {
    check_order(
        "k bigint",
        "k",
        "(-5), (3), (0), (-9223372036854775808), (9223372036854775807)",
        &["-9223372036854775808", "-5", "0", "3", "9223372036854775807"],
    )
    .await;
    check_order(
        "k bigint unsigned",
        "k",
        "(1), (18446744073709551615), (9223372036854775808)",
        &["1", "9223372036854775808", "18446744073709551615"],
    )
    .await;
    check_order(
        "k decimal(30,10)",
        "k",
        "(-1.5), (12345678901234567890.0123456789), (2), (2.5)",
        &["-1.5000000000", "2.0000000000", "2.5000000000", "12345678901234567890.0123456789"],
    )
    .await;
    check_order(
        "k double",
        "k",
        "(0.1), (-1e300), (1e-300), (0)",
        &["-1e+300", "0", "1e-300", "0.1"],
    )
    .await;
    check_order(
        "k float",
        "k",
        "(0.1), (0.3), (0.2), (16777216)",
        &["0.1", "0.2", "0.3", "1.6777216e+07"],
    )
    .await;
    check_order(
        "k bit(9)",
        "k",
        "(b'1'), (b'111111111'), (b'0')",
        &["000000000", "000000001", "111111111"],
    )
    .await;
    check_order("k smallint unsigned zerofill", "k", "(7), (65535), (1)", &["1", "7", "65535"])
        .await;
    check_order("k year", "k", "(2026), (1901), (0)", &["0", "1901", "2026"]).await;
}

#[tokio::test]
async fn keys_of_texts_go_on_in_the_order_of_their_collation() {
    check_order(
        "k varchar(9)",
        "k",
        "('b'), ('A'), ('a2'), ('ä1'), ('B3')",
        &["A", "ä1", "a2", "b", "B3"],
    )
    .await;
    let latin = "k varchar(9) CHARACTER SET latin1 COLLATE latin1_german1_ci";
    check_order(latin, "k", "('z'), ('Ä'), ('é'), ('€')", &["Ä", "é", "z", "€"]).await;
    for charset in ["ucs2", "utf16", "utf32", "utf8mb3", "gbk", "sjis"] {
        let column = format!("k varchar(9) CHARACTER SET {charset}");
        check_order(&column, "k", "('c'), ('a'), ('b')", &["a", "b", "c"]).await;
    }
    check_order("k char(5)", "k", "('x'), (''), ('y ')", &["", "x", "y"]).await;
    check_order(
        "k varbinary(9)",
        "k",
        "('a\\\\'), (x'00ff'), ('')",
        &["\\x", "\\x00ff", "\\x615c"],
    )
    .await;
    check_order(
        "k binary(3)",
        "k",
        "('a'), (x'00ff00'), ('')",
        &["\\x000000", "\\x00ff00", "\\x610000"],
    )
    .await;
    check_order("k enum('z','it''s','a')", "k", "('a'), ('z'), ('it''s')", &["z", "it's", "a"])
        .await;
    check_order("k set('z','a','b')", "k", "('a'), ('z,b'), (''), ('b')", &["", "a", "b", "z,b"])
        .await;
}

#[tokio::test]
async fn keys_of_times_go_on_where_a_chunk_ended() {
    check_order(
        "k date",
        "k",
        "('2026-01-02'), ('1999-12-31'), ('9999-12-31')",
        &["1999-12-31", "2026-01-02", "9999-12-31"],
    )
    .await;
    check_order(
        "k datetime(6)",
        "k",
        "('2026-01-02 03:04:05.000001'), ('2026-01-02'), ('2026-01-02 03:04:05')",
        &["2026-01-02 00:00:00", "2026-01-02 03:04:05", "2026-01-02 03:04:05.000001"],
    )
    .await;
    check_order(
        "k timestamp(3)",
        "k",
        "('2026-01-02 03:04:05.1'), ('2026-01-02 03:04:05'), ('2030-01-01')",
        &["2026-01-02 03:04:05+00", "2026-01-02 03:04:05.1+00", "2030-01-01 00:00:00+00"],
    )
    .await;
    check_order(
        "k time(1)",
        "k",
        "('-838:59:59'), ('12:00'), ('-1:00:00.5')",
        &["-838:59:59", "-01:00:00.5", "12:00:00"],
    )
    .await;
    if !testing::is_mysql() {
        check_order(
            "k uuid",
            "k",
            "('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'), ('00000000-0000-0000-0000-000000000001')",
            &["00000000-0000-0000-0000-000000000001", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
        )
        .await;
        check_order(
            "k inet6",
            "k",
            "('::2'), ('::1'), ('2001:db8::')",
            &["::1", "::2", "2001:db8::"],
        )
        .await;
    }
}

#[tokio::test]
async fn a_key_of_several_columns_is_compared_column_by_column() {
    let columns = "v text, a int unsigned, b varchar(5)";
    let rows = "('x', 2, 'a'), ('y', 1, 'b'), ('z', 1, 'A'), ('u', 2, 'B'), ('w', 0, '')";
    check_order(columns, "a, b", rows, &["0|", "1|A", "1|b", "2|a", "2|B"]).await;
}

#[tokio::test]
async fn a_filter_restricts_a_chunk_and_its_errors_are_the_filters() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, v int)").await;
    fixture.run("INSERT INTO t VALUES (1, 1), (2, NULL), (3, 3), (4, 0)").await;
    let table = fixture.tables().await.remove(0);
    let mut reader = fixture.source.reader().await.unwrap();
    let mut read = async |filter: &str| {
        let (rows_max, not_below) = (9, Version::ZERO);
        let filter = Some(filter);
        let request = ChunkRequest { table: &table, after: None, filter, rows_max, not_below };
        reader.read_plain(&request).await
    };
    let (rows, next) = read("v > 0 -- all of them").await.unwrap();
    assert_eq!((rows.len(), next), (2, None));
    let error = read("v >").await.unwrap_err();
    assert_eq!(error.code, Code::Configuration);
    assert!(error.message.contains("--where"), "{error}");
}

#[tokio::test]
async fn a_table_that_changed_its_shape_is_not_read() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, v int, w int)").await;
    fixture.run("INSERT INTO t VALUES (1, 1, 1)").await;
    let table = fixture.tables().await.remove(0);
    let mut reader = fixture.source.reader().await.unwrap();
    let mut read = async || {
        let (rows_max, not_below, filter) = (9, Version::ZERO, None);
        let request = ChunkRequest { table: &table, after: None, filter, rows_max, not_below };
        reader.read_plain(&request).await
    };
    assert_eq!(read().await.unwrap().0.len(), 1);
    fixture.run("ALTER TABLE t ADD COLUMN x int FIRST").await;
    assert_eq!(read().await.unwrap().0.len(), 1);
    fixture.run("ALTER TABLE t DROP COLUMN w").await;
    assert_eq!(read().await.unwrap_err().code, Code::SchemaChange);
    fixture.run("ALTER TABLE t ADD COLUMN w int, DROP PRIMARY KEY, ADD PRIMARY KEY (k, w)").await;
    assert_eq!(read().await.unwrap_err().code, Code::SchemaChange);
    fixture.run("DROP TABLE t").await;
    assert_eq!(read().await.unwrap_err().code, Code::MissingTable);
}

#[tokio::test]
async fn whether_any_row_has_a_value_is_asked_of_the_source() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, a int, b int)").await;
    let table = fixture.tables().await.remove(0);
    let mut reader = fixture.source.reader().await.unwrap();
    fixture.run("INSERT INTO t VALUES (1, NULL, NULL)").await;
    let columns = ["a".to_owned(), "b".to_owned()];
    assert!(!reader.any_value(&table, &columns).await.unwrap());
    fixture.run("UPDATE t SET b = 0").await;
    assert!(reader.any_value(&table, &columns).await.unwrap());
    assert!(!reader.any_value(&table, &columns[..1]).await.unwrap());
    assert_eq!(fixture.source.estimate_rows(&table).await.unwrap(), 1);
}
