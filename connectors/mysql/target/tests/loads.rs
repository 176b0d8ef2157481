//! Rows that are new are loaded from a file by a server that does not run a statement for many rows,
//! if it reads files of clients; whatever it has against that, they arrive.

use super::support::*;
use crate::Target;
use crate::mysql::testing::Database;

const ROWS: &str = "SELECT k, HEX(a), HEX(b) FROM t ORDER BY k";
/// Everything that ends a field or a row, or escapes.
const TEXT: &str = "\t\\\n\0\\N\r\u{1a}'\"N";

/// How many files the target's session has had read since it was last asked.
async fn files_read(fixture: &mut Fixture) -> u64 {
    let session = &mut fixture.target.writer.session;
    let count = session.query("count", "SHOW SESSION STATUS LIKE 'Com_load'").await.unwrap();
    session.execute("reset", "FLUSH STATUS").await.unwrap();
    String::from_utf8_lossy(super::super::records::bytes(&count[0], 1).unwrap()).parse().unwrap()
}

async fn fixture(settings: &[&str]) -> Fixture {
    let mut fixture = Fixture::on(Database::alone(settings).await, false).await.with_literals();
    fixture.target.prepare(&usual()).await.unwrap();
    fixture.floor = version(1);
    // Until it has been seen that there are no tombstones, every row is compared with them.
    fixture.done(vec![]).await;
    files_read(&mut fixture).await;
    fixture
}

#[tokio::test]
async fn new_rows_are_loaded_and_others_are_compared() {
    let mut fixture = fixture(&["--local-infile=1"]).await;
    fixture
        .done(vec![part(&usual()).upsert(3, &["1", TEXT, "~"]).upsert(3, &["2", "", "N"])])
        .await;
    assert_eq!(files_read(&mut fixture).await, 1);
    let text: String = TEXT.bytes().map(|byte| format!("{byte:02X}")).collect();
    assert_eq!(fixture.look(ROWS).await, [format!("1|{text}|~"), "2||4E".into()]);
    // One of them is there, and newer.
    fixture.done(vec![part(&usual()).upsert(2, &["2", "old", ""]).upsert(4, &["3", "", ""])]).await;
    assert_eq!(files_read(&mut fixture).await, 1);
    assert_eq!(fixture.look(ROWS).await, [format!("1|{text}|~"), "2||4E".into(), "3||".into()]);
    // So the next batch is not tried, but the one after it.
    fixture.done(vec![part(&usual()).upsert(5, &["4", "", ""])]).await;
    assert_eq!(files_read(&mut fixture).await, 0);
    fixture.done(vec![part(&usual()).upsert(5, &["5", "", ""])]).await;
    assert_eq!(files_read(&mut fixture).await, 1);
    assert_eq!(fixture.look("SELECT COUNT(*) FROM t").await, ["5"]);
}

#[tokio::test]
async fn a_server_that_reads_no_files_of_clients_gets_statements() {
    let mut fixture = fixture(&["--local-infile=0"]).await;
    for number in 1..=4 {
        fixture.done(vec![part(&usual()).upsert(3, &[&number.to_string(), "a", "b"])]).await;
    }
    assert_eq!(fixture.look("SELECT COUNT(*), MIN(a), MAX(b) FROM t").await, ["4|a|b"]);
}

#[tokio::test]
async fn a_value_that_would_be_changed_is_not_loaded_but_refused() {
    let mut fixture = fixture(&["--local-infile=1"]).await;
    fixture.execute("ALTER TABLE t MODIFY a varchar(2);").await;
    let long = part(&usual()).upsert(3, &["1", "ab", ""]).upsert(3, &["2", "abc", ""]);
    let error = fixture.apply(vec![long]).await.unwrap_err();
    assert_eq!(error.code, crate::error::Code::PoisonRow, "{error}");
    assert_eq!(fixture.look("SELECT COUNT(*) FROM t").await, ["0"]);
}
