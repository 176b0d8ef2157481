//! Which tables are made, changed and refused.

use std::sync::Arc;

use super::support::*;
use crate::change::TableStatus;
use crate::error::{Code, Kind};
use crate::mysql::target::target;
use crate::mysql::testing::{Database, Server, is_mysql};
use crate::schema::{Column, ColumnType, Engine, TableName};
use crate::{Finding, Level, Prepared, Target, TargetOptions};

const COLUMNS: &str = "SELECT COLUMN_NAME, COLUMN_TYPE, CONCAT(IS_NULLABLE, \
    IFNULL(CONCAT(' ', COLLATION_NAME), '')) FROM information_schema.COLUMNS \
    WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 't' ORDER BY ORDINAL_POSITION";

/// What the server calls the collation of texts.
fn bytewise(fixture: &Fixture) -> &'static str {
    crate::mysql::target_types::collation(fixture.target.writer.engine())
}

#[tokio::test]
async fn a_table_is_created_with_types_that_hold_the_sources_values() {
    let mut schema = (*table("t", &["k text", "n numeric", "u text", "i interval"])).clone();
    schema.columns[1].native = Some("numeric(10,2)".into());
    let mut fixture = Fixture::with(&Arc::new(schema), true).await;
    let collation = bytewise(&fixture);
    assert_eq!(
        fixture.look(COLUMNS).await,
        [
            format!("k|varchar(768)|NO {collation}").as_str(),
            "n|decimal(10,2)|YES",
            format!("u|longtext|YES {collation}").as_str(),
            format!("i|longtext|YES {collation}").as_str(),
            "_cdc_version|binary(16)|NO",
            "_cdc_updated_at|datetime(6)|NO",
            "_cdc_deleted|tinyint(1)|NO"
        ]
    );
    let mut elsewhere = (*usual()).clone();
    elsewhere.name = TableName::new("My `Schema`", "t");
    assert_eq!(fixture.target.prepare(&Arc::new(elsewhere)).await, Ok(Prepared::Created));
    assert_eq!(fixture.look("SHOW TABLES LIKE 'My%'").await, ["My `Schema`_t"]);
}

#[tokio::test]
async fn preparing_twice_changes_nothing_and_new_columns_are_added() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let mut batch = fixture.batch(vec![part(&usual()).upsert(1, &["1", "a", "b"])]);
    batch.status.insert(usual().name.clone(), TableStatus::Live);
    fixture.target.apply(&batch).await.unwrap();
    fixture.sequence = 1;
    assert_eq!(fixture.target.prepare(&usual()).await, Ok(Prepared::Unchanged));
    assert_eq!(status(&mut fixture).await, TableStatus::Live);
    let wider = table("t", &["k bigint", "a text", "b text", "c integer", "d jsonb"]);
    let added = Prepared::Added(vec!["c".into(), "d".into()]);
    assert_eq!(fixture.target.prepare(&wider).await, Ok(added));
    assert_eq!(status(&mut fixture).await, TableStatus::Copying);
    // Rows of the old shape still fit, and leave the new columns alone.
    fixture.done(vec![part(&wider).upsert(2, &["2", "a", "b", "7", "{}"])]).await;
    fixture.done(vec![part(&usual()).upsert(3, &["2", "x", "y"])]).await;
    let rows = fixture.look("SELECT k, a, b, c, d FROM t ORDER BY k").await;
    assert_eq!(rows, ["1|a|b|~|~", "2|x|y|7|{}"]);
    let fewer = table("t", &["k bigint", "a text"]);
    assert_eq!(fixture.target.prepare(&fewer).await, Ok(Prepared::Unchanged));
    let remembered = fixture.target.recall().await.unwrap().unwrap();
    assert_eq!(remembered.tables[&usual().name].schema, *fewer);
}

async fn status(fixture: &mut Fixture) -> TableStatus {
    let remembered = fixture.target.recall().await.unwrap().unwrap();
    remembered.tables[&usual().name].status.clone()
}

#[tokio::test]
async fn what_was_made_but_not_recorded_is_taken_up_where_it_was_left() {
    let mut fixture = Fixture::with(&usual(), false).await;
    // The column was added, and then the power failed.
    fixture.execute("ALTER TABLE t ADD COLUMN c int").await;
    let wider = table("t", &["k bigint", "a text", "b text", "c integer"]);
    assert_eq!(fixture.target.prepare(&wider).await, Ok(Prepared::Added(vec!["c".into()])));
    assert_eq!(fixture.target.prepare(&wider).await, Ok(Prepared::Unchanged));
    fixture.execute("UPDATE _cdc_checkpoint SET tables = '[]'").await;
    let mut again = target(&fixture.database.url(), options("p", false)).await.unwrap();
    again.claim(&claim_as("us")).await.unwrap();
    assert_eq!(again.prepare(&wider).await, Ok(Prepared::Created));
}

/// Prepares the usual table after somebody ran these statements.
async fn check_refused(soft: bool, statements: &str, code: Code, words: &[&str]) {
    let mut fixture = Fixture::new(soft).await;
    fixture.execute(statements).await;
    check_error(fixture.target.prepare(&usual()).await, of_table(&usual()), code, words);
    let findings = fixture.target.check(&[usual()]).await.unwrap();
    let finding = findings.iter().find(|finding| finding.subject == "target table public.t");
    assert_eq!(finding.map(|finding| finding.level), Some(Level::Failure));
    let remedy = finding.map(|finding| finding.remedy.as_str()).unwrap_or_default();
    assert!(words.last().is_some_and(|word| remedy.contains(word)), "{remedy}");
}

const OURS: &str = "CREATE TABLE t (k bigint PRIMARY KEY, a longtext CHARACTER SET utf8mb4, \
    b longtext CHARACTER SET utf8mb4, _cdc_version binary(16) NOT NULL, \
    _cdc_updated_at datetime(6) NOT NULL)";

#[tokio::test]
async fn a_table_that_is_not_ours_is_refused() {
    let _server = Server::shared().await;
    let shape = Code::TargetShape;
    let plain = "CREATE TABLE t (k bigint PRIMARY KEY, a longtext, b longtext)";
    check_refused(false, plain, shape, &["_cdc_version", "DROP TABLE `t`"]).await;
    check_refused(false, "CREATE VIEW t AS SELECT 1 AS k", shape, &["a view", ""]).await;
    let engine = format!("{OURS} ENGINE=MyISAM");
    check_refused(false, &engine, shape, &["MyISAM", "ALTER TABLE `t` ENGINE=InnoDB"]).await;
    let rows = format!("{OURS};\n INSERT INTO t VALUES (1, '', '', '', NOW())");
    check_refused(false, &rows, Code::TargetNotEmpty, &["TRUNCATE TABLE `t`"]).await;
}

#[tokio::test]
async fn a_table_of_another_shape_is_refused_with_the_sql_that_mends_it() {
    let _server = Server::shared().await;
    let check = async |change: &str, words: &[&str]| {
        check_refused(false, &format!("{OURS};\n {change}"), Code::TargetShape, words).await;
    };
    check(
        "ALTER TABLE t MODIFY a varchar(5)",
        &[
            "column a has type varchar(5), but the source's needs longtext",
            "ALTER TABLE `t` MODIFY COLUMN `a` longtext CHARACTER SET utf8mb4",
        ],
    )
    .await;
    check(
        "ALTER TABLE t MODIFY a longtext CHARACTER SET latin1",
        &["column a has type longtext", "MODIFY COLUMN `a` longtext CHARACTER SET utf8mb4"],
    )
    .await;
    check("ALTER TABLE t MODIFY a longtext NOT NULL", &["cannot be NULL", "MODIFY"]).await;
    check("ALTER TABLE t ADD z int NOT NULL", &["column z", "MODIFY COLUMN `z` int"]).await;
    check("ALTER TABLE t DROP PRIMARY KEY", &["primary key is ()", "DROP TABLE `t`"]).await;
    check(
        "ALTER TABLE t ADD _cdc_deleted boolean NOT NULL DEFAULT 0",
        &["deletes are hard", "DROP COLUMN `_cdc_deleted`"],
    )
    .await;
    check(
        "ALTER TABLE t DROP b, ADD b longtext AS (CONCAT(a, 'x')) STORED",
        &["is filled by the server", "MODIFY COLUMN `b`"],
    )
    .await;
}

#[tokio::test]
async fn what_sees_writes_in_another_order_is_refused_with_the_sql_that_removes_it() {
    let _server = Server::shared().await;
    let check = async |change: &str, words: &[&str]| {
        check_refused(false, &format!("{OURS};\n {change}"), Code::TargetShape, words).await;
    };
    check("CREATE UNIQUE INDEX u ON t (a(10))", &["unique index u", "DROP INDEX `u` ON `t`"]).await;
    check(
        "CREATE TABLE o (x bigint, CONSTRAINT f FOREIGN KEY (x) REFERENCES t (k))",
        &["o refers to it", "ALTER TABLE `o` DROP FOREIGN KEY `f`"],
    )
    .await;
    check(
        "CREATE TABLE o (x bigint PRIMARY KEY);\n \
         ALTER TABLE t ADD CONSTRAINT f FOREIGN KEY (k) REFERENCES o (x)",
        &["foreign key f", "ALTER TABLE `t` DROP FOREIGN KEY `f`"],
    )
    .await;
    check(
        "CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW SET NEW.a = 'x'",
        &["trigger g", "DROP TRIGGER `g`"],
    )
    .await;
}

#[tokio::test]
async fn a_key_with_another_collation_is_refused() {
    let words = table("t", &["k text", "a text"]);
    let mut fixture = Fixture::with(&words, false).await;
    let folding = "ALTER TABLE t MODIFY k varchar(768) CHARACTER SET utf8mb4 \
                   COLLATE utf8mb4_general_ci NOT NULL";
    fixture.execute(folding).await;
    let refused = fixture.target.prepare(&words).await;
    let collation = bytewise(&fixture);
    check_error(refused, of_table(&words), Code::TargetShape, &["utf8mb4_general_ci", collation]);
}

#[tokio::test]
async fn an_empty_table_of_the_right_shape_is_taken() {
    let mut fixture = Fixture::new(true).await;
    fixture.execute(OURS).await;
    fixture.execute("CREATE INDEX a ON t (a(20))").await;
    assert_eq!(fixture.target.prepare(&usual()).await, Ok(Prepared::Created));
    fixture.done(vec![part(&usual()).upsert(1, &["1", "a", "b"])]).await;
    assert_eq!(fixture.look("SELECT k, _cdc_deleted FROM t").await, ["1|0"]);
}

#[tokio::test]
async fn a_table_of_another_pipeline_is_refused() {
    let fixture = Fixture::with(&usual(), false).await;
    let mut other = target(&fixture.database.url(), options("q", false)).await.unwrap();
    other.claim(&claim_as("them")).await.unwrap();
    let refused = other.prepare(&usual()).await;
    check_error(refused, of_table(&usual()), Code::TableOwned, &["pipeline p"]);
    let findings = other.check(&[usual()]).await.unwrap();
    assert_eq!(findings.iter().filter(|finding| finding.level == Level::Failure).count(), 1);
}

#[tokio::test]
async fn names_that_collide_are_refused() {
    let mut fixture = Fixture::new(false).await;
    for taken in [
        table("_cdc_checkpoint", &["k bigint"]),
        table("x", &["k bigint", "_cdc_version text"]),
        table(&"x".repeat(65), &["k bigint"]),
        table("🦆", &["k bigint"]),
    ] {
        let refused = fixture.target.prepare(&taken).await;
        check_error(refused, of_table(&taken), Code::NameCollision, &["leave"]);
    }
    let mut one = (*table("b", &["k bigint"])).clone();
    one.name.schema = "a".into();
    fixture.target.prepare(&Arc::new(one.clone())).await.unwrap();
    let twin = table("a_b", &["k bigint"]);
    let refused = fixture.target.prepare(&twin).await;
    check_error(refused, Kind::Stop, Code::NameCollision, &["a.b", "public.a_b"]);
    let findings = fixture.target.check(&[Arc::new(one), twin]).await.unwrap();
    assert_eq!(findings.iter().filter(|finding| finding.level == Level::Failure).count(), 1);
}

#[tokio::test]
async fn names_of_any_length_and_letters_are_only_names() {
    let mut fixture = Fixture::new(true).await;
    let long = "ü".repeat(64);
    for name in ["a`b", "select", "x'; DROP TABLE t;--", " ", long.as_str(), "%_\\"] {
        let name = if name == " " { " x" } else { name };
        let named = table(name, &[&format!("{} text", "k"), "a text"]);
        let mut named = (*named).clone();
        named.columns[0].name = name.into();
        let named = Arc::new(named);
        assert_eq!(fixture.target.prepare(&named).await, Ok(Prepared::Created), "{name}");
        fixture.done(vec![part(&named).upsert(1, &["x", "y"])]).await;
        fixture.done(vec![part(&named).upsert(2, &["x", "-"])]).await;
        fixture.done(vec![part(&named).delete(1, &["x"]).upsert(2, &["z", "-y"])]).await;
        let rows = fixture.target.read_rows(&named, &[key(&["x"])]).await.unwrap();
        assert!(rows == [(key(&["x"]), version(2), row(&["x", "y"]))], "{name}");
    }
}

#[tokio::test]
async fn a_table_that_was_changed_while_we_run_stops_alone() {
    let mut fixture = Fixture::with(&usual(), false).await;
    fixture.done(vec![part(&usual()).upsert(1, &["1", "a", "b"])]).await;
    fixture.execute("ALTER TABLE t DROP COLUMN b").await;
    let rows = || vec![part(&usual()).upsert(2, &["1", "a", "b"])];
    check_error(fixture.apply(rows()).await, of_table(&usual()), Code::TargetShape, &["column b"]);
    fixture.execute("DROP TABLE t").await;
    check_error(fixture.apply(rows()).await, of_table(&usual()), Code::TargetShape, &["gone"]);
    let read = fixture.target.read_rows(&usual(), &[key(&["1"])]).await;
    assert_eq!(read.unwrap_err().kind, of_table(&usual()));
    assert_eq!(fixture.target.prepare(&usual()).await, Ok(Prepared::Created));
    fixture.done(rows()).await;
    fixture.execute("DROP TABLE _cdc_tombstone, _cdc_checkpoint").await;
    check_error(fixture.apply(rows()).await, Kind::Stop, Code::TargetLost, &["teardown"]);
}

#[tokio::test]
async fn check_says_what_is_missing_and_changes_nothing() {
    let mut fixture = Fixture::new(false).await;
    let database = fixture.database.name.clone();
    fixture
        .execute(&format!(
            "CREATE USER poor@localhost IDENTIFIED BY 'poor';\n \
             GRANT SELECT, INSERT ON {database}.* TO poor@localhost"
        ))
        .await;
    let url = fixture.database.url().replace("root:correct%20horse@", "poor:poor@");
    let mut poor = target(&url, options("p", false)).await.unwrap();
    let findings = poor.check(&[usual()]).await.unwrap();
    let remedies: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.level == Level::Failure)
        .map(|finding| finding.remedy.as_str())
        .collect();
    let grant = format!(
        "GRANT UPDATE, DELETE, CREATE, ALTER, DROP ON `{database}`.* TO `poor`@`localhost`"
    );
    assert_eq!(remedies, [&grant]);
    fixture.execute(&grant).await;
    // Privileges on a database are read when a session enters it.
    let mut poor = target(&url, options("q", false)).await.unwrap();
    let findings = poor.check(&[usual()]).await.unwrap();
    assert!(findings.iter().all(|finding| finding.level != Level::Failure), "{findings:?}");
    poor.claim(&claim_as("poor")).await.unwrap();
    assert_eq!(poor.prepare(&usual()).await, Ok(Prepared::Created));
    poor.forget().await.unwrap();
    fixture.execute("DROP USER poor@localhost").await;
}

#[tokio::test]
async fn check_finds_a_ready_target_ready() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let findings: Vec<Finding> = fixture.target.check(&[usual()]).await.unwrap();
    // The tests' server does not write its commits to the disk, and may have small packets.
    let durable = |finding: &&Finding| {
        !["target durability", "target packets"].contains(&finding.subject.as_str())
    };
    let findings: Vec<_> = findings.iter().filter(durable).collect();
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
    assert_eq!(findings.len(), 4);
}

#[tokio::test]
async fn a_wide_row_of_narrow_characters_finds_its_place() {
    let mut schema = (*usual()).clone();
    schema.engine = Engine::Mysql;
    schema.columns[0].native = Some("bigint(20)".into());
    for number in 0..40 {
        schema.columns.push(Column {
            name: format!("c{number}"),
            column_type: ColumnType::Text,
            native: Some("varchar(1500) character set latin1".into()),
            id: number,
        });
    }
    let wide = Arc::new(schema);
    let mut fixture = Fixture::with(&wide, false).await;
    let types = "SELECT COLUMN_TYPE, COUNT(*) FROM information_schema.COLUMNS \
                 WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 't' AND COLUMN_NAME LIKE 'c%' \
                 GROUP BY COLUMN_TYPE ORDER BY 1";
    assert_eq!(fixture.look(types).await, ["text|32", "varchar(1500)|8"]);
    let value = "ÿ".repeat(1500);
    let cells: Vec<&str> =
        ["1", "a", "b"].into_iter().chain(std::iter::repeat_n(value.as_str(), 40)).collect();
    fixture.done(vec![part(&wide).upsert(1, &cells)]).await;
    let rows = fixture.target.read_rows(&wide, &[key(&["1"])]).await.unwrap();
    assert!(rows == [(key(&["1"]), version(1), row(&cells))]);
}

#[tokio::test]
async fn a_database_of_the_source_keeps_its_plain_names() {
    let mut fixture = Fixture::new(false).await;
    let options =
        TargetOptions { pipeline: "q".into(), soft_deletes: false, plain_schema: "shop".into() };
    let mut shop = target(&fixture.database.url(), options).await.unwrap();
    shop.claim(&claim_as("us")).await.unwrap();
    let mut schema = (*usual()).clone();
    schema.name.schema = "shop".into();
    shop.prepare(&Arc::new(schema)).await.unwrap();
    shop.prepare(&table("u", &["k bigint"])).await.unwrap();
    assert_eq!(shop.table_name(&TableName::new("shop", "t")), "t");
    let tables = "SELECT TABLE_NAME FROM information_schema.TABLES WHERE \
                  TABLE_SCHEMA = DATABASE() AND TABLE_NAME NOT LIKE '\\_cdc%' ORDER BY 1";
    assert_eq!(fixture.look(tables).await, ["public_u", "t"]);
}

#[tokio::test]
async fn names_that_differ_by_case_are_one_where_the_server_folds_it() {
    if is_mysql() {
        // There it is decided when the data directory is made.
        return;
    }
    let database = Database::alone(&["--lower-case-table-names=1"]).await;
    let mut folding = target(&database.url(), options("p", false)).await.unwrap();
    folding.claim(&claim_as("us")).await.unwrap();
    let upper = table("Upper", &["k bigint", "a text"]);
    assert_eq!(folding.prepare(&upper).await, Ok(Prepared::Created));
    assert_eq!(folding.prepare(&upper).await, Ok(Prepared::Unchanged));
    let lower = table("upper", &["k bigint"]);
    check_error(folding.prepare(&lower).await, Kind::Stop, Code::NameCollision, &["public.Upper"]);
    let findings = folding.check(&[upper, lower]).await.unwrap();
    assert_eq!(findings.iter().filter(|finding| finding.level == Level::Failure).count(), 1);
}
