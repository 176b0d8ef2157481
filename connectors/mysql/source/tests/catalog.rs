//! What the catalog says of tables: shapes, keys, and what is refused.

use super::*;
use crate::Level;

/// The tables of a database in words, each column with its type.
async fn check(sql: &str, expected: &[&str]) {
    let fixture = Fixture::new(sql).await;
    let mut words = Vec::new();
    for table in fixture.tables().await {
        let key: Vec<&str> = table.key_columns().map(|column| column.name.as_str()).collect();
        words.push(format!("{} ({})", table.name.name, key.join(", ")));
        for column in &table.columns {
            let native = column.native.as_deref().unwrap();
            words.push(format!("{} {:?}: {native}", column.name, column.column_type));
        }
    }
    assert_eq!(words, expected);
}

/// Why a table is refused.
async fn check_refused(sql: &str, code: Code, message: &str) {
    let fixture = Fixture::new(sql).await;
    let all = TablePatterns::parse(&["*"], &fixture.database.name).unwrap();
    let error = fixture.source.tables(&all).await.unwrap_err();
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.contains(message), "{error}");
    let findings = fixture.source.check(&all).await.unwrap();
    let found = findings.iter().any(|f| f.level == Level::Failure && f.code == Some(code));
    assert!(found, "{findings:#?}");
}

#[tokio::test]
async fn columns_have_their_types_and_generated_ones_are_left_out() {
    let sql = "CREATE TABLE t (k bigint unsigned, g int AS (k + 1) VIRTUAL, s varchar(20) \
               CHARACTER SET latin1, h int AS (k * 2) STORED, d decimal(10,2), b varbinary(9), \
               e enum('a','b'), i int INVISIBLE DEFAULT 5, x int DEFAULT (1 + 1), PRIMARY KEY (k))";
    let int = if testing::is_mysql() { "int" } else { "int(11)" };
    let big = if testing::is_mysql() { "bigint unsigned" } else { "bigint(20) unsigned" };
    let expected = [
        "t (k)",
        &format!("k Numeric: {big}"),
        "s Text: varchar(20) character set latin1",
        "d Numeric: decimal(10,2)",
        "b Bytes: varbinary(9)",
        "e Text: enum('a','b') character set utf8mb4",
        &format!("i Int32: {int}"),
        &format!("x Int32: {int}"),
    ];
    check(sql, &expected).await;
}

#[tokio::test]
async fn json_of_mariadb_is_a_text_that_is_checked() {
    if testing::is_mysql() {
        check(
            "CREATE TABLE t (k int PRIMARY KEY, j json)",
            &["t (k)", "k Int32: int", "j Json: json"],
        )
        .await;
        return;
    }
    let sql = "CREATE TABLE t (k int PRIMARY KEY, j json, l longtext, m mediumtext \
               CHECK (char_length(m) > 1))";
    let expected = [
        "t (k)",
        "k Int32: int(11)",
        "j Json: longtext character set utf8mb4",
        "l Text: longtext character set utf8mb4",
        "m Text: mediumtext character set utf8mb4",
    ];
    check(sql, &expected).await;
}

#[tokio::test]
async fn a_key_whose_label_reads_like_no_label_is_refused() {
    let sql = "CREATE TABLE t (k set('a','') NOT NULL PRIMARY KEY)";
    check_refused(sql, Code::SourceSettings, "rename the label").await;
    let sql = "CREATE TABLE t (k set('a') NOT NULL PRIMARY KEY, v set('','a'))";
    assert_eq!(Fixture::new(sql).await.tables().await.len(), 1);
}

#[tokio::test]
async fn without_a_primary_key_the_first_unique_one_without_null_serves() {
    let sql = "CREATE TABLE t (a int NOT NULL, b int NOT NULL, c int, UNIQUE z (a), \
               UNIQUE y (b, a), UNIQUE x (c))";
    let fixture = Fixture::new(sql).await;
    let table = fixture.tables().await.remove(0);
    let key: Vec<&str> = table.key_columns().map(|column| column.name.as_str()).collect();
    assert_eq!(key, ["b", "a"]);
}

#[tokio::test]
async fn what_cannot_be_replicated_is_refused_with_the_sql_that_mends_it() {
    let exclude = "exclude it with \"!test_";
    check_refused("CREATE TABLE t (v int)", Code::NoKey, "ADD PRIMARY KEY").await;
    check_refused("CREATE TABLE t (v int UNIQUE)", Code::NoKey, exclude).await;
    let engine = "CREATE TABLE t (k int PRIMARY KEY) ENGINE = MyISAM";
    check_refused(engine, Code::SourceSettings, "ENGINE = InnoDB").await;
    let cascade = "CREATE TABLE p (k int PRIMARY KEY);
        CREATE TABLE t (k int PRIMARY KEY, p int, CONSTRAINT up FOREIGN KEY (p) REFERENCES p (k) \
        ON DELETE CASCADE)";
    if testing::is_mysql() {
        // MySQL logs them from 9.6 on.
        assert_eq!(Fixture::new(cascade).await.tables().await.len(), 2);
        return;
    }
    check_refused(cascade, Code::Cascade, "foreign key up of table").await;
    let versioned = "CREATE TABLE t (k int PRIMARY KEY) WITH SYSTEM VERSIONING";
    check_refused(versioned, Code::SourceSettings, "DROP SYSTEM VERSIONING").await;
    let compressed = "CREATE TABLE t (k int PRIMARY KEY, c text COMPRESSED)";
    check_refused(compressed, Code::SourceSettings, "column c is compressed").await;
}

#[tokio::test]
async fn cascades_are_replicated_where_somebody_consents() {
    let sql = "CREATE TABLE p (k int PRIMARY KEY);
        CREATE TABLE t (k int PRIMARY KEY, p int, FOREIGN KEY (p) REFERENCES p (k) \
        ON UPDATE SET NULL)";
    let mut fixture = Fixture::new(sql).await;
    let options = SourceOptions { accept_cascades: true, ..SourceOptions::new("x", 1) };
    fixture.source = source(&fixture.database.url(), &options).unwrap();
    assert_eq!(fixture.tables().await.len(), 2);
}

#[tokio::test]
async fn a_pattern_without_a_table_is_an_error() {
    let fixture = Fixture::new("CREATE VIEW v AS SELECT 1 AS k").await;
    let all = TablePatterns::parse(&["*"], &fixture.database.name).unwrap();
    let error = fixture.source.tables(&all).await.unwrap_err();
    assert_eq!(error.code, Code::MissingTable);
}

#[tokio::test]
async fn a_server_that_is_ready_has_no_failures() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let all = TablePatterns::parse(&["*"], &fixture.database.name).unwrap();
    let findings = fixture.source.check(&all).await.unwrap();
    let failures: Vec<_> = findings.iter().filter(|f| f.level == Level::Failure).collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

#[tokio::test]
async fn each_setting_that_is_wrong_is_named_with_the_sql_that_mends_it() {
    let settings = [
        "--binlog-format=STATEMENT",
        "--binlog-row-image=MINIMAL",
        "--binlog-ignore-db=test_0",
        "--binlog-checksum=NONE",
    ];
    let database = Database::alone(&settings).await;
    let name = database.name.clone();
    let fixture = Fixture::on(database, "CREATE TABLE t (k int PRIMARY KEY)").await;
    let account = "CREATE USER limited@localhost IDENTIFIED BY 'x'";
    fixture.run(account).await;
    fixture.run(&format!("GRANT SELECT ON {name}.* TO limited@localhost")).await;
    let url = fixture.database.url().replace("root:correct%20horse", "limited:x");
    let limited = source(&url, &SourceOptions::new("x", 1)).unwrap();
    let all = TablePatterns::parse(&["*"], &name).unwrap();
    let findings = |source: MysqlSource| async move {
        let findings = source.check(&TablePatterns::parse(&["*"], "test_0").unwrap()).await;
        let wrong = findings.unwrap().into_iter().filter(|f| f.level != Level::Ok);
        wrong.map(|f| (f.subject, f.level, f.remedy)).collect::<Vec<_>>()
    };
    assert!(fixture.source.check(&all).await.is_ok());
    let found = findings(limited).await;
    let has = |subject: &str, level, remedy: &str| {
        let found = found.iter().find(|(found, _, _)| found == subject);
        let (_, is, says) = found.unwrap_or_else(|| panic!("no {subject}: {found:#?}"));
        assert!(*is == level && says.contains(remedy), "{subject}: {is:?}, {says}");
    };
    has("binlog_format", Level::Failure, "SET GLOBAL binlog_format = 'ROW'");
    has("binlog_row_image", Level::Failure, "SET GLOBAL binlog_row_image = 'FULL'");
    has("binlog_checksum", Level::Warning, "SET GLOBAL binlog_checksum");
    has("sync_binlog", Level::Warning, "SET GLOBAL sync_binlog = 1");
    let account = "TO 'limited'@'localhost'";
    has("privilege to read the log", Level::Failure, account);
    has("privilege to ask about the log", Level::Failure, account);
}
