//! Chunks beside the log: whatever the order in which they arrive, the greatest version of each
//! key is what the source has.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::sync::oneshot;

use super::*;
use crate::change::Chunk;
use crate::{ChunkRequest, RowReader};

/// What a target would hold: per key the greatest version, and the row or its absence.
#[derive(Default)]
struct Replica {
    rows: HashMap<Key, (Version, Option<Row>)>,
    truncated: Option<Version>,
}

impl Replica {
    fn put(&mut self, key: Key, version: Version, row: Option<Row>) {
        if self.truncated.is_some_and(|truncated| version < truncated) {
            return;
        }
        match self.rows.get_mut(&key) {
            Some(held) if held.0 > version => {}
            Some(held) => *held = (version, row),
            None => drop(self.rows.insert(key, (version, row))),
        }
    }

    fn apply(&mut self, transaction: Transaction) {
        for (version, change) in transaction.versioned() {
            match change {
                Change::Upsert { table, row } => {
                    let row = plain(&table, &row);
                    self.put(Key::of(&table, &row).unwrap(), version, Some(row));
                }
                Change::Delete { key, .. } => self.put(key, version, None),
                Change::Truncate { .. } => {
                    self.truncated = Some(version);
                    self.rows.retain(|_, (held, _)| *held > version);
                }
                Change::Halt { message, .. } => panic!("{message}"),
            }
        }
    }

    fn put_chunk(&mut self, chunk: Chunk) {
        for (key, row) in chunk.rows {
            self.put(key, chunk.version, Some(plain(&chunk.table, &row)));
        }
    }

    fn rows(&self) -> BTreeMap<String, String> {
        let alive = self.rows.iter().filter_map(|(key, (_, row))| Some((key, row.as_ref()?)));
        alive.map(|(key, row)| (key_words(key), row_words(row))).collect()
    }
}

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

/// Writes without a pause until told to stop.
async fn write(client: Client, seed: u64, mut stop: oneshot::Receiver<()>) {
    client.batch_execute("SET search_path = public").await.unwrap();
    let mut state = seed;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % below
    };
    while stop.try_recv().is_err() {
        let (k, other) = (random(40), random(40));
        let statement = match random(40) {
            0 => "TRUNCATE t".to_owned(),
            1..=8 => format!("DELETE FROM t WHERE k = {k}"),
            9..=14 => format!(
                "BEGIN; DELETE FROM t WHERE k = {other}; UPDATE t SET k = {other} WHERE k = {k}; \
                 COMMIT"
            ),
            _ => format!(
                "INSERT INTO t VALUES ({k}, {other}) ON CONFLICT (k) DO UPDATE SET v = t.v + 1"
            ),
        };
        match client.batch_execute(&statement).await {
            Ok(()) => {}
            // Two writers may be in each other's way.
            Err(_) => drop(client.batch_execute("ROLLBACK").await),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s51_chunks_under_writes_end_as_the_source() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, v int)").await;
    fixture.run("INSERT INTO t SELECT i, 0 FROM generate_series(0, 39) i").await;
    let table = fixture.tables().await.remove(0);
    let (_, mut stream) = fixture.start().await;
    let mut writers = Vec::new();
    for seed in 1..4 {
        let (stop, stopped) = oneshot::channel();
        let client = fixture.database.client().await;
        writers.push((stop, tokio::spawn(write(client, seed, stopped))));
    }
    let mut reader = fixture.source.reader().await.unwrap();
    let mut replica = Replica::default();
    let mut chunks = Vec::new();
    for round in 0..60 {
        // The log moves on between the chunks and while they are read.
        let reading = read_table(&mut reader, &table, 7);
        tokio::pin!(reading);
        let read = loop {
            tokio::select! {
                read = &mut reading => break read,
                transaction = stream.next() => replica.apply(transaction.unwrap()),
            }
        };
        // Some arrive at once, others long after, out of order.
        match round % 3 {
            0 => chunks.extend(read),
            _ => read.into_iter().rev().for_each(|chunk| replica.put_chunk(chunk)),
        }
    }
    for (stop, writer) in writers {
        stop.send(()).unwrap();
        writer.await.unwrap();
    }
    fixture.read_all(&mut stream).await.into_iter().for_each(|t| replica.apply(t));
    chunks.into_iter().for_each(|chunk| replica.put_chunk(chunk));
    let rows = fixture.client.query("SELECT k::text, v::text FROM public.t", &[]).await.unwrap();
    let source: BTreeMap<String, String> = rows
        .iter()
        .map(|row| (row.get(0), format!("{}|{}", row.get::<_, &str>(0), row.get::<_, &str>(1))))
        .collect();
    assert_eq!(replica.rows(), source);
}

#[tokio::test]
async fn s52_a_commit_that_is_logged_but_not_visible_is_not_claimed() {
    let create = "CREATE TABLE t (k int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'old')";
    let fixture = Fixture::on(Database::alone().await, create).await;
    let table = fixture.tables().await.remove(0);
    let (_, mut stream) = fixture.start().await;
    // A standby that does not exist is waited for, by whoever does not say otherwise.
    fixture.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    fixture.run("SELECT pg_reload_conf()").await;
    let writer = fixture.database.client().await;
    let stalled = tokio::spawn(async move {
        let standby = "SHOW synchronous_standby_names";
        while writer.query_one(standby, &[]).await.unwrap().get::<_, &str>(0) != "nobody" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        writer.batch_execute("SET synchronous_commit = on").await.unwrap();
        let update = "UPDATE public.t SET v = 'new' WHERE k = 1";
        writer.batch_execute(update).await.unwrap();
    });
    let (update, commit) = loop {
        let transaction = stream.next().await.unwrap();
        if let Some(change) = transaction.changes.first() {
            break (words(change), transaction.version);
        }
    };
    assert_eq!(update, "t + 1|new");
    let mut reader = fixture.source.reader().await.unwrap();
    let chunk = read_table(&mut reader, &table, 10).await.remove(0);
    assert_eq!(row_words(&plain(&table, &chunk.rows[0].1)), "1|old", "the stall does not work");
    assert!(chunk.version < commit, "{} claims {commit}", chunk.version);
    let keys = [chunk.rows[0].0.clone()];
    // What asks for that commit waits until it is visible.
    let reread = reader.reread(&table, &keys, commit.with_ordinal(1));
    assert!(tokio::time::timeout(Duration::from_millis(300), reread).await.is_err());
    fixture.run("ALTER SYSTEM RESET synchronous_standby_names").await;
    fixture.run("SELECT pg_reload_conf()").await;
    let rows = reader.reread(&table, &keys, commit.with_ordinal(1)).await.unwrap();
    assert_eq!(row_words(&plain(&table, &rows[0].1)), "1|new");
    let chunk = reader.read_keys(&table, &keys, commit).await.unwrap();
    assert!(chunk.version >= commit);
    stalled.await.unwrap();
}

#[tokio::test]
async fn the_first_chunk_waits_for_transactions_that_are_older_than_the_stream() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let table = fixture.tables().await.remove(0);
    let tables = [table.clone()];
    let position = fixture.source.subscribe(&tables, None).await.unwrap();
    let other = fixture.database.client().await;
    other.batch_execute("BEGIN; INSERT INTO public.t VALUES (1)").await.unwrap();
    let _stream = fixture.source.stream(&position, EPOCH, &tables, &[]).await.unwrap();
    let mut reader = fixture.source.reader().await.unwrap();
    let early =
        tokio::time::timeout(Duration::from_millis(300), read_table(&mut reader, &table, 10));
    assert!(early.await.is_err());
    other.batch_execute("COMMIT").await.unwrap();
    let chunks = read_table(&mut reader, &table, 10).await;
    assert_eq!(chunks[0].rows.len(), 1);
}

/// The keys of a table, read in chunks of two, in the order of the server.
async fn check_keys(create: &str, expected: &[&str]) {
    let fixture = Fixture::new(create).await;
    let table = fixture.tables().await.remove(0);
    let (_, _stream) = fixture.start().await;
    let mut reader = fixture.source.reader().await.unwrap();
    let chunks = read_table(&mut reader, &table, 2).await;
    let keys: Vec<Key> =
        chunks.into_iter().flat_map(|chunk| chunk.rows).map(|(key, _)| key).collect();
    assert_eq!(keys.iter().map(key_words).collect::<Vec<_>>(), expected, "{create}");
    let mut again = reader.read_keys(&table, &keys, Version::ZERO).await.unwrap();
    assert_eq!(again.next, None);
    again.rows.sort_by_key(|(key, _)| keys.iter().position(|wanted| wanted == key));
    assert_eq!(again.rows.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), keys);
}

#[tokio::test]
async fn s61_every_row_is_read_once_in_the_order_of_its_key() {
    check_keys(
        "CREATE TABLE t (v int, b text, a int, PRIMARY KEY (a, b)); \
         INSERT INTO t VALUES (0, 'x', 1), (0, 'it''s', 1), (0, E'back\\\\slash', 2), (0, '', -1)",
        &["-1|", "1|it's", "1|x", "2|back\\slash"],
    )
    .await;
    check_keys(
        "CREATE TABLE t (k float8 PRIMARY KEY); \
         INSERT INTO t VALUES ('NaN'), ('-Infinity'), (0.1), (1e300), (-5)",
        &["-Infinity", "-5", "0.1", "1e+300", "NaN"],
    )
    .await;
    check_keys(
        "CREATE TYPE mood AS ENUM ('z', 'b', 'a'); CREATE DOMAIN feeling AS mood; \
         CREATE TABLE t (k feeling PRIMARY KEY); INSERT INTO t VALUES ('a'), ('b'), ('z')",
        &["z", "b", "a"],
    )
    .await;
    // Its order is not the one that the search path's operators have.
    check_keys(
        "CREATE EXTENSION citext; CREATE TABLE t (k citext, l int, PRIMARY KEY (k, l)); \
         INSERT INTO t VALUES ('a', 1), ('B', 1), ('c', 1), ('D', 1), ('D', 2)",
        &["a|1", "B|1", "c|1", "D|1", "D|2"],
    )
    .await;
    check_keys(
        "CREATE TABLE t (k int PRIMARY KEY) PARTITION BY HASH (k); \
         CREATE TABLE t0 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 0); \
         CREATE TABLE t1 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 1); \
         INSERT INTO t SELECT generate_series(1, 5)",
        &["1", "2", "3", "4", "5"],
    )
    .await;
    check_keys("CREATE TABLE t (k int PRIMARY KEY)", &[]).await;
}

#[tokio::test]
async fn a_child_of_a_table_is_not_a_part_of_it() {
    check_keys(
        "CREATE TABLE t (k int PRIMARY KEY); INSERT INTO t VALUES (1); \
         CREATE TABLE u (PRIMARY KEY (k)) INHERITS (t); INSERT INTO u VALUES (2)",
        &["1"],
    )
    .await;
}

#[tokio::test]
async fn a_table_rewritten_while_a_chunk_waits_is_read_whole() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, v int)").await;
    fixture.run("INSERT INTO t SELECT i, i FROM generate_series(1, 5) i").await;
    let table = fixture.tables().await.remove(0);
    let (_, _stream) = fixture.start().await;
    // Warm, so that the next read is at its lock at once.
    let mut reader = fixture.source.reader().await.unwrap();
    assert_eq!(read_table(&mut reader, &table, 10).await[0].rows.len(), 5);
    let other = fixture.database.client().await;
    other.batch_execute("BEGIN; LOCK TABLE public.t").await.unwrap();
    let name = table.clone();
    let reading = tokio::spawn(async move { read_table(&mut reader, &name, 10).await });
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    while fixture.client.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Rewrites the table without a change of its shape.
    other.batch_execute("ALTER TABLE public.t ALTER v TYPE int USING v + 1; COMMIT").await.unwrap();
    assert_eq!(reading.await.unwrap()[0].rows.len(), 5);
}

#[tokio::test]
async fn a_reader_whose_session_was_ended_while_it_had_nothing_to_do_opens_another() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    fixture.run("INSERT INTO t VALUES (1)").await;
    let table = fixture.tables().await.remove(0);
    let (_, _stream) = fixture.start().await;
    let mut reader = fixture.source.reader().await.unwrap();
    let any = [table.columns[0].name.clone()];
    assert!(reader.any_value(&table, &any).await.unwrap());
    let end = "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity \
               WHERE datname = current_database() AND query = 'COMMIT' AND state = 'idle'";
    assert_eq!(fixture.client.query_one(end, &[]).await.unwrap().get::<_, i64>(0), 1);
    assert!(reader.any_value(&table, &any).await.unwrap());
}

#[tokio::test]
async fn what_a_reader_cannot_read_stops_its_table_only() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    fixture.run("INSERT INTO t VALUES (1, 'x')").await;
    let table = fixture.tables().await.remove(0);
    let (_, _stream) = fixture.start().await;
    let mut reader = fixture.source.reader().await.unwrap();
    let mut read = async |filter: Option<&str>| {
        let not_below = Version::ZERO;
        let request = ChunkRequest { table: &table, after: None, filter, rows_max: 9, not_below };
        let chunk = reader.read_chunk(&request).await;
        chunk.map(|chunk| chunk.rows.len()).map_err(|error| {
            assert_eq!(error.kind, crate::error::Kind::Table(table.name.clone()), "{error}");
            error.code
        })
    };
    assert_eq!(read(Some("v = 'x' -- all")).await, Ok(1));
    assert_eq!(read(Some("v = 'y'")).await, Ok(0));
    // What a function of the user says is not about our publication, whatever its SQLSTATE.
    let talking = "CREATE FUNCTION says() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN \
                   RAISE NOTICE 'something' USING ERRCODE = '55000'; RETURN true; END $$";
    fixture.run(talking).await;
    assert_eq!(read(Some("public.says()")).await, Ok(1));
    assert_eq!(read(Some("v = = 1")).await, Err(Code::Configuration));
    assert_eq!(read(Some("v::int > 0")).await, Err(Code::Configuration));
    let two = "true)) TO STDOUT; COPY (SELECT * FROM t WHERE (true";
    assert_eq!(read(Some(two)).await, Err(Code::Configuration), "more than one statement");
    fixture.run("ALTER TABLE t ADD COLUMN w int").await;
    assert_eq!(read(None).await, Ok(1));
    fixture.run("ALTER TABLE t DROP COLUMN v; ALTER TABLE t ADD COLUMN v text").await;
    assert_eq!(read(None).await, Err(Code::SchemaChange));
    fixture.run("DROP TABLE t").await;
    assert_eq!(read(None).await, Err(Code::MissingTable));
}

#[tokio::test]
async fn s62_row_security_is_an_error_and_never_a_filtered_copy() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, owner text)").await;
    let role = format!("limited_{}", fixture.slot());
    fixture.run("INSERT INTO t VALUES (1, 'a'), (2, 'b')").await;
    fixture
        .run(&format!(
            "CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON t TO {role}; \
             ALTER TABLE t ENABLE ROW LEVEL SECURITY; \
             CREATE POLICY own ON t FOR SELECT USING (owner = 'a')"
        ))
        .await;
    let table = fixture.tables().await.remove(0);
    let (_, _stream) = fixture.start().await;
    let url = fixture.database.url().replace("postgres@", &format!("{role}@"));
    let options = SourceOptions::new("limited", 1);
    let limited = source(&url, &options).unwrap();
    let all = TablePatterns::parse(&["public.*"], "public").unwrap();
    assert_eq!(limited.tables(&all).await.unwrap_err().code, Code::RowSecurity);
    let mut reader = limited.reader().await.unwrap();
    let any = reader.any_value(&table, &["owner".into()]).await;
    assert_eq!(any.unwrap_err().code, Code::RowSecurity);
}

#[tokio::test]
async fn any_value_tells_null_from_values() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, v text, w int)").await;
    fixture.run("INSERT INTO t VALUES (1, NULL, 1)").await;
    let table = fixture.tables().await.remove(0);
    let mut reader = fixture.source.reader().await.unwrap();
    let mut any = async |columns: &[&str]| {
        let columns: Vec<String> = columns.iter().map(|name| (*name).into()).collect();
        reader.any_value(&table, &columns).await.unwrap()
    };
    assert_eq!([any(&["v"]).await, any(&["v", "w"]).await, any(&[]).await], [false, true, false]);
}
