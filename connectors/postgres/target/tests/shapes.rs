//! Which tables are made, changed and refused.

use std::sync::Arc;

use super::support::*;
use crate::change::TableStatus;
use crate::error::{Code, Kind};
use crate::postgres::target::target;
use crate::postgres::testing::Server;
use crate::schema::{Column, TableName, TableSchema};
use crate::{Finding, Level, Prepared, Target};

const COLUMNS: &str = "SELECT attname, format_type(atttypid, atttypmod), attnotnull \
    FROM pg_attribute WHERE attrelid = to_regclass('public.t') AND attnum > 0 ORDER BY attnum";

#[tokio::test]
async fn a_table_is_created_with_the_types_of_the_source() {
    let mut schema = (*table("t", &["k text", "n numeric(10,2)", "u text", "i interval"])).clone();
    schema.columns[2].native = None;
    let mut fixture = Fixture::with(&Arc::new(schema), true).await;
    assert_eq!(
        fixture.look(COLUMNS).await,
        [
            "k|text|t",
            "n|numeric(10,2)|f",
            "u|text|f",
            "i|interval|f",
            "_cdc_version|bytea|t",
            "_cdc_updated_at|timestamp with time zone|t",
            "_cdc_deleted|boolean|t"
        ]
    );
    let mut elsewhere = (*usual()).clone();
    elsewhere.name = TableName::new("My \"Schema\"", "t");
    assert_eq!(fixture.target.prepare(&Arc::new(elsewhere)).await, Ok(Prepared::Created));
}

#[tokio::test]
async fn preparing_twice_changes_nothing_and_new_columns_are_added() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let mut batch = fixture.batch(vec![part(&usual()).upsert(1, &["1", "a", "b"])]);
    batch.status.insert(usual().name.clone(), TableStatus::Live);
    fixture.target.apply(&batch).await.unwrap();
    fixture.sequence = 1;
    assert_eq!(fixture.target.prepare(&usual()).await, Ok(Prepared::Unchanged));
    let status = async |fixture: &mut Fixture| {
        let remembered = fixture.target.recall().await.unwrap().unwrap();
        remembered.tables[&usual().name].status.clone()
    };
    assert_eq!(status(&mut fixture).await, TableStatus::Live);
    let wider = table("t", &["k bigint", "a text", "b text", "c integer", "d jsonb"]);
    let added = Prepared::Added(vec!["c".into(), "d".into()]);
    assert_eq!(fixture.target.prepare(&wider).await, Ok(added));
    assert_eq!(status(&mut fixture).await, TableStatus::Copying);
    // Rows of the old shape still fit, and leave the new columns alone.
    fixture.done(vec![part(&wider).upsert(2, &["2", "a", "b", "7", "{}"])]).await;
    fixture.done(vec![part(&usual()).upsert(3, &["2", "x", "y"])]).await;
    assert_eq!(fixture.look("SELECT * FROM public.t ORDER BY k").await[1][..11], *"2|x|y|\\x000");
    assert_eq!(fixture.look("SELECT c, d FROM public.t ORDER BY k").await, ["~|~", "7|{}"]);
    let fewer = table("t", &["k bigint", "a text"]);
    assert_eq!(fixture.target.prepare(&fewer).await, Ok(Prepared::Unchanged));
    let remembered = fixture.target.recall().await.unwrap().unwrap();
    assert_eq!(remembered.tables[&usual().name].schema, *fewer);
}

/// Prepares the usual table after somebody ran these statements.
async fn check_refused(soft: bool, statements: &str, code: Code, words: &[&str]) {
    let mut fixture = Fixture::new(soft).await;
    fixture.execute(statements).await;
    check_error(fixture.target.prepare(&usual()).await, of_table(&usual()), code, words);
    let findings = fixture.target.check(&[usual()]).await.unwrap();
    let finding = findings.iter().find(|finding| finding.subject == "target table public.t");
    assert_eq!(finding.map(|finding| finding.level), Some(Level::Failure));
}

const OURS: &str = "CREATE TABLE public.t (k bigint PRIMARY KEY, a text, b text, \
    _cdc_version bytea NOT NULL, _cdc_updated_at timestamptz NOT NULL);";

#[tokio::test]
async fn a_table_that_is_not_ours_is_refused() {
    let _server = Server::shared();
    let shape = Code::TargetShape;
    let plain = "CREATE TABLE public.t (k bigint PRIMARY KEY, a text, b text)";
    check_refused(false, plain, shape, &["_cdc_version", "DROP TABLE \"public\".\"t\""]).await;
    check_refused(false, "CREATE VIEW public.t AS SELECT 1 AS k", shape, &["relkind v"]).await;
    let parts = "CREATE TABLE public.t (k bigint PRIMARY KEY) PARTITION BY RANGE (k)";
    check_refused(false, parts, shape, &["relkind p"]).await;
    let rows = format!("{OURS} INSERT INTO public.t VALUES (1, '', '', '', now())");
    check_refused(false, &rows, Code::TargetNotEmpty, &["TRUNCATE \"public\".\"t\""]).await;
}

#[tokio::test]
async fn a_table_of_another_shape_is_refused_with_the_sql_that_mends_it() {
    let _server = Server::shared();
    let check = async |change: &str, words: &[&str]| {
        check_refused(false, &format!("{OURS} {change}"), Code::TargetShape, words).await;
    };
    check(
        "ALTER TABLE public.t ALTER a TYPE varchar(5)",
        &[
            "column a has type character varying(5), but the source's needs text",
            "ALTER COLUMN \"a\" TYPE text",
        ],
    )
    .await;
    check("ALTER TABLE public.t ADD z int NOT NULL", &["column z", "DROP NOT NULL"]).await;
    check("ALTER TABLE public.t DROP CONSTRAINT t_pkey", &["primary key is ()"]).await;
    check("ALTER TABLE public.t ADD _cdc_deleted boolean", &["deletes are hard"]).await;
}

#[tokio::test]
async fn what_sees_writes_in_another_order_is_refused_with_the_sql_that_removes_it() {
    let _server = Server::shared();
    let check = async |change: &str, words: &[&str]| {
        check_refused(false, &format!("{OURS} {change}"), Code::TargetShape, words).await;
    };
    check("ALTER TABLE public.t ADD UNIQUE (a)", &["DROP CONSTRAINT t_a_key"]).await;
    check("CREATE UNIQUE INDEX u ON public.t (a)", &["DROP INDEX public.u"]).await;
    check(
        "CREATE TABLE public.o (x bigint REFERENCES public.t)",
        &["public.o refers to it", "ALTER TABLE public.o DROP CONSTRAINT o_x_fkey"],
    )
    .await;
    check(
        "CREATE TABLE public.o (x text PRIMARY KEY); \
         ALTER TABLE public.t ADD FOREIGN KEY (a) REFERENCES public.o",
        &["DROP CONSTRAINT t_a_fkey"],
    )
    .await;
    check(
        "CREATE TRIGGER g BEFORE INSERT ON public.t FOR EACH ROW \
         EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        &["DROP TRIGGER g ON public.t"],
    )
    .await;
    check("ALTER TABLE public.t ENABLE ROW LEVEL SECURITY", &["DISABLE ROW LEVEL SECURITY"]).await;
    check("CREATE TABLE public.o () INHERITS (public.t)", &["NO INHERIT public.t"]).await;
}

#[tokio::test]
async fn a_key_with_another_collation_is_refused() {
    let words = table("t", &["k text", "a text"]);
    let mut fixture = Fixture::with(&words, false).await;
    fixture.execute("ALTER TABLE public.t ALTER k TYPE text COLLATE \"default\"").await;
    let refused = fixture.target.prepare(&words).await;
    check_error(refused, of_table(&words), Code::TargetShape, &["TYPE text COLLATE \"C\""]);
}

#[tokio::test]
async fn an_empty_table_of_the_right_shape_is_taken() {
    let mut fixture = Fixture::new(true).await;
    fixture.execute(OURS).await;
    assert_eq!(fixture.target.prepare(&usual()).await, Ok(Prepared::Created));
    fixture.done(vec![part(&usual()).upsert(1, &["1", "a", "b"])]).await;
    assert_eq!(fixture.look("SELECT k, _cdc_deleted FROM public.t").await, ["1|f"]);
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
async fn names_of_ours_are_refused() {
    let mut fixture = Fixture::new(false).await;
    for taken in [
        table("_cdc_checkpoint", &["k bigint"]),
        table("x", &["k bigint", "_cdc_x text"]),
        table(&"ü".repeat(32), &["k bigint"]),
        table("x", &["k bigint", &format!("{} text", "x".repeat(64))]),
    ] {
        let refused = fixture.target.prepare(&taken).await;
        check_error(refused, of_table(&taken), Code::NameCollision, &["leave"]);
    }
}

#[tokio::test]
async fn a_table_that_was_changed_while_we_run_stops_alone() {
    let mut fixture = Fixture::with(&usual(), false).await;
    fixture.done(vec![part(&usual()).upsert(1, &["1", "a", "b"])]).await;
    fixture.execute("ALTER TABLE public.t DROP COLUMN b").await;
    let rows = || vec![part(&usual()).upsert(2, &["1", "a", "b"])];
    check_error(fixture.apply(rows()).await, of_table(&usual()), Code::TargetShape, &["column b"]);
    fixture.execute("DROP TABLE public.t").await;
    check_error(fixture.apply(rows()).await, of_table(&usual()), Code::TargetShape, &["gone"]);
    let read = fixture.target.read_rows(&usual(), &[key(&["1"])]).await;
    assert_eq!(read.unwrap_err().kind, of_table(&usual()));
    assert_eq!(fixture.target.prepare(&usual()).await, Ok(Prepared::Created));
    fixture.done(rows()).await;
    fixture.execute("DROP TABLE public._cdc_tombstone, public._cdc_checkpoint").await;
    check_error(fixture.apply(rows()).await, Kind::Stop, Code::TargetLost, &["teardown"]);
}

#[tokio::test]
async fn check_says_what_is_missing_and_changes_nothing() {
    let fixture = Fixture::new(false).await;
    fixture
        .execute(
            "CREATE ROLE \"poor role\" LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC; \
             DO $$ BEGIN EXECUTE format('REVOKE TEMP ON DATABASE %I FROM PUBLIC', \
             current_database()); END $$",
        )
        .await;
    let url = fixture.database.url().replace("postgres@", "poor%20role@");
    let mut poor = target(&url, options("p", false)).await.unwrap();
    let mut elsewhere: TableSchema = (*usual()).clone();
    elsewhere.name.schema = "shop".into();
    let findings = poor.check(&[usual(), Arc::new(elsewhere)]).await.unwrap();
    let remedies: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.level == Level::Failure)
        .map(|finding| finding.remedy.as_str())
        .collect();
    let database = fixture.look("SELECT current_database()").await.remove(0);
    assert_eq!(
        remedies,
        [
            format!("GRANT TEMPORARY ON DATABASE \"{database}\" TO \"poor role\"").as_str(),
            "GRANT SELECT, INSERT, UPDATE, DELETE ON public._cdc_checkpoint TO \"poor role\"",
            "CREATE SCHEMA \"shop\" AUTHORIZATION \"poor role\"",
        ]
    );
    assert_eq!(fixture.look("SELECT to_regclass('public.t')").await, ["~"]);
    fixture.execute("DROP OWNED BY \"poor role\"; DROP ROLE \"poor role\"").await;
}

#[tokio::test]
async fn check_finds_a_ready_target_ready() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let findings: Vec<Finding> = fixture.target.check(&[usual()]).await.unwrap();
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
    assert_eq!(findings.len(), 3);
}

#[tokio::test]
async fn a_type_of_another_engine_is_mapped() {
    let mut schema = (*usual()).clone();
    schema.engine = crate::schema::Engine::Memory;
    schema.columns[1] =
        Column { column_type: crate::schema::ColumnType::Json, ..schema.columns[1].clone() };
    let fixture = Fixture::with(&Arc::new(schema), false).await;
    assert_eq!(fixture.look(COLUMNS).await[1], "a|json|f");
}

#[tokio::test]
async fn values_of_mysql_find_their_types_and_a_schema_of_their_own() {
    let mut schema = (*usual()).clone();
    schema.engine = crate::schema::Engine::Mariadb;
    schema.name = TableName::new("Shop", "t");
    let column = |name: &str, column_type, native: &str| Column {
        name: name.into(),
        column_type,
        native: Some(native.into()),
        id: 9,
    };
    use crate::schema::ColumnType::{Duration, Numeric, Text};
    schema.columns[0] = column("k", Numeric, "bigint(20) unsigned");
    schema.columns.push(column("d", Duration, "time(6)"));
    schema.columns.push(column("n", Numeric, "decimal(10,2)"));
    schema.columns.push(column("e", Text, "enum('a','b') character set latin1"));
    let shop = Arc::new(schema);
    let mut fixture = Fixture::with(&shop, false).await;
    let lengths = ["-838:59:59", "-00:00:00.5", "00:00:00", "01:02:03.4", "838:59:59.999999"];
    for (number, length) in (1..).zip(lengths) {
        let key = number.to_string();
        let cells = [key.as_str(), "a", "~", length, "-1.50", "b"];
        fixture.done(vec![part(&shop).upsert(number, &cells)]).await;
        let rows = fixture.target.read_rows(&shop, &[self::key(&[&key])]).await.unwrap();
        assert!(rows[0].2 == row(&cells), "{length}");
    }
    let max = "18446744073709551615";
    fixture.done(vec![part(&shop).upsert(9, &[max, "a", "b", "~", "~", "~"])]).await;
    assert_eq!(fixture.look("SELECT max(k) FROM \"Shop\".t").await, [max]);
}
