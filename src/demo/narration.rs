//! The command `driftless demo`: a private PostgreSQL or MariaDB, a shop that never rests, and this
//! very program replicating it into an SQLite file while it is killed again and again.
//!
//! Told as it happens on standard output. What it finds at the end is compared twice: by
//! `driftless verify`, and by plain SQL that shares no code with it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use super::compare::{Replica, compare};
use super::dice::Dice;
use super::server::session::Session;
use super::server::{Engine, Server, ServerOptions};
use super::shop::{self, Shop};
use super::{Doing, Error, Result};

/// Marks the SQLite files that a demonstration made, so that the next one may replace them.
const APPLICATION_ID: i32 = 0x6472_6966;
const CUSTOMERS: u64 = 20_000;
const WORKERS: u64 = 4;

/// What a person may choose.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// The kind of server that the shop works with.
    pub source: Engine,
    /// The SQLite file to replicate into. One that an earlier demonstration made is replaced.
    pub out: PathBuf,
    /// Replace the file whoever made it.
    pub force: bool,
    /// How long the shop is open.
    pub open_for: Duration,
    /// How often the replicator is killed meanwhile.
    pub kills: u32,
    /// Chooses the moments of the kills and what the shop does.
    pub seed: u64,
}

/// Runs the demonstration. `Ok(true)` means that both comparisons found the sides equal.
///
/// # Errors
/// That something needed is missing (the server, a place for the file), with what to do about it; or that the replicator failed, with the last lines that it said.
pub async fn run(options: &DemoOptions) -> Result<bool> {
    let out = std::path::absolute(&options.out).doing("find the replica's place")?;
    clear_the_place(&out, options.force)?;
    let began = Instant::now();
    println!("driftless demo: a shop that never rests, and a replicator that gets killed\n");

    let place = Place::open(options.source).await?;
    let version = place.version()?;
    let (took, port) = (began.elapsed().as_secs_f64(), place.server.port());
    println!("1. A {version} of its own listens on 127.0.0.1:{port} ({took:.1} s).");
    let session = &place.session;
    shop::open(session, CUSTOMERS).await?;
    session.batch_execute("CREATE TABLE pulse (id int PRIMARY KEY, beat bigint NOT NULL)").await?;
    let rows = count(session).await?;
    println!("2. A shop with {rows} rows opens; {WORKERS} clerks start to work.");

    let stage = Stage::set(&place, &out)?;
    let shop = Shop::start(&place.url, WORKERS, options.seed, Duration::ZERO);
    println!("3. `driftless run` copies it into {}, while it changes.\n", options.out.display());
    let kills = live(options, &stage, session, &shop, &out).await?;

    let open_for = options.open_for.as_secs_f64();
    let counts = shop.close().await?;
    println!("\n4. The shop closes after {open_for:.0} s and {kills} kills. It committed:");
    println!(
        "   {} transactions: {} inserts, {} updates, {} deletes, {} key changes, {} TRUNCATEs",
        counts.transactions,
        counts.inserts,
        counts.updates,
        counts.deletes,
        counts.key_changes,
        counts.truncates
    );
    println!(
        "   ({:.0} row changes a second; {} transactions were rolled back and must leave no trace)",
        counts.rows() as f64 / open_for,
        counts.rollbacks
    );

    let caught_up = Instant::now();
    stage.finish(&["run", "--until-current"])?;
    let took = caught_up.elapsed().as_secs_f64();
    println!("5. `driftless run --until-current` caught up in {took:.1} s.");
    let verified = stage.verify()?;
    let equal = compare_all(&place, &out).await?;
    verdict(verified && equal, kills, &options.out, began.elapsed());
    Ok(verified && equal)
}

/// The server that the shop works with, and the database in it.
struct Place {
    server: Server,
    session: Session,
    url: String,
    schema: &'static str,
}

impl Place {
    async fn open(engine: Engine) -> Result<Place> {
        let options = ServerOptions { engine, careless: true, ..ServerOptions::default() };
        let server = Server::start(options).await?;
        let (database, schema) = match engine {
            Engine::Postgres => (server.first_database(), "public"),
            Engine::Mariadb => ("shop", "shop"),
        };
        if engine == Engine::Mariadb {
            let session = server.session(server.first_database()).await?;
            session.batch_execute("CREATE DATABASE shop").await?;
        }
        let (session, url) = (server.session(database).await?, server.url(database));
        Ok(Place { server, session, url, schema })
    }

    fn version(&self) -> Result<String> {
        let name = match self.session {
            Session::Postgres(_) => "PostgreSQL",
            Session::Mariadb(_) if self.server.is_mysql() => "MySQL",
            Session::Mariadb(_) => "MariaDB",
        };
        Ok(format!("{name} {}", self.server.version()?))
    }
}

/// The configuration and the directory that the replicator of a demonstration works with.
struct Stage {
    directory: PathBuf,
    program: PathBuf,
}

impl Stage {
    fn set(place: &Place, out: &Path) -> Result<Stage> {
        let name = format!("driftless-demo-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).doing(format!("create {}", directory.display()))?;
        let program = std::env::current_exe().doing("find this program's own file")?;
        let stage = Stage { directory, program };
        let schema = place.schema;
        let tables = shop::TABLES.map(|table| format!("\"{schema}.{table}\"")).join(", ");
        let configuration = format!(
            "[pipeline]\nname = \"demo\"\ntables = [{tables}, \"{schema}.pulse\"]\n\n\
             [source]\nurl = \"{}\"\n\n[target]\nurl = {}\n\n[state]\ndir = {}\n",
            place.url,
            toml::Value::String(format!("sqlite:{}", out.display())),
            toml::Value::String(stage.directory.join("state").display().to_string()),
        );
        write_private(&stage.configuration(), &configuration)?;
        Ok(stage)
    }

    fn configuration(&self) -> PathBuf {
        self.directory.join("driftless.toml")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--config").arg(self.configuration());
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command to its end, which must be a good one.
    fn finish(&self, arguments: &[&str]) -> Result<()> {
        let output = self.command(arguments).output().doing("start the replicator")?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(failed(arguments, &said.lines().collect::<Vec<_>>()))
    }

    fn verify(&self) -> Result<bool> {
        let output = self.command(&["verify"]).output().doing("start the verifier")?;
        println!("6. `driftless verify` says:");
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            println!("   {line}");
        }
        match output.status.code() {
            Some(0) => Ok(true),
            Some(3) => Ok(false),
            _ => {
                let said = String::from_utf8_lossy(&output.stderr);
                Err(failed(&["verify"], &said.lines().collect::<Vec<_>>()))
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A running replicator; killed when dropped.
struct Replicator {
    process: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl Replicator {
    fn start(stage: &Stage) -> Result<Replicator> {
        let mut command = stage.command(&["run"]);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().doing("start the replicator")?;
        let said = Arc::new(Mutex::new(Vec::new()));
        if let Some(errors) = process.stderr.take() {
            let said = said.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(errors).lines().map_while(std::io::Result::ok) {
                    if let Ok(mut said) = said.lock() {
                        said.push(line);
                    }
                }
            });
        }
        Ok(Replicator { process, said })
    }

    /// Sends SIGKILL, after which the program cannot tidy up anything.
    fn kill(mut self) -> Result<()> {
        self.must_be_alive()?;
        self.process.kill().doing("kill the replicator")?;
        self.process.wait().doing("wait for the replicator")?;
        Ok(())
    }

    fn must_be_alive(&mut self) -> Result<()> {
        if self.process.try_wait().doing("look at the replicator")?.is_none() {
            return Ok(());
        }
        let said = self.said.lock().map(|said| said.clone()).unwrap_or_default();
        Err(failed(&["run"], &said))
    }
}

impl Drop for Replicator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The shop's open hours: a line a second, and the kills at moments that the seed chooses.
async fn live(
    options: &DemoOptions,
    stage: &Stage,
    session: &Session,
    shop: &Shop,
    out: &Path,
) -> Result<u32> {
    let mut dice = Dice::new(options.seed);
    let mut moments: Vec<Duration> = (0..options.kills)
        .map(|_| options.open_for.mul_f64(dice.between(80, 950) as f64 / 1000.0))
        .collect();
    moments.sort_unstable();
    let mut moments = moments.into_iter().peekable();
    let mut replicator = Replicator::start(stage)?;
    let (began, mut kills, mut last) = (Instant::now(), 0, (Duration::ZERO, 0));
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    for tick in 0_u32.. {
        ticks.tick().await;
        let now = began.elapsed();
        if now > options.open_for {
            break;
        }
        beat(session, tick, now).await?;
        if tick % 15 == 14 {
            replicator.must_be_alive()?;
            let done = shop.transactions();
            let rate = (done - last.1) as f64 / (now - last.0).as_secs_f64();
            last = (now, done);
            println!("   {:5.1} s  {}", now.as_secs_f64(), progress(out, done, rate, now));
        }
        if moments.next_if(|moment| now >= *moment).is_some() {
            replicator.kill()?;
            kills += 1;
            println!("   {:5.1} s  kill -9  (number {kills}); started again", now.as_secs_f64());
            replicator = Replicator::start(stage)?;
        }
    }
    replicator.kill()?;
    Ok(kills)
}

/// Writes the time into the source, so that the replica shows how old it is.
async fn beat(session: &Session, tick: u32, now: Duration) -> Result<()> {
    let beat = now.as_millis();
    let statement = match tick {
        0 => format!("INSERT INTO pulse VALUES (1, {beat})"),
        _ => format!("UPDATE pulse SET beat = {beat}"),
    };
    session.batch_execute(&statement).await
}

fn progress(out: &Path, transactions: u64, rate: f64, now: Duration) -> String {
    let shop = format!("shop: {transactions:>6} transactions ({rate:>5.0}/s)");
    match replica_at(out) {
        Ok((rows, Some(beat))) => {
            let behind = (now.as_millis() as i64 - beat).max(0) as f64 / 1000.0;
            format!("{shop}   replica: {rows:>7} rows, {behind:.1} s behind")
        }
        Ok((rows, None)) => format!("{shop}   replica: {rows:>7} rows, first copy under way"),
        Err(_) => format!("{shop}   replica: not there yet"),
    }
}

/// How many rows the replica has, and the last beat that arrived.
fn replica_at(out: &Path) -> Result<(i64, Option<i64>)> {
    let connection = read_only(out)?;
    let mut rows = 0;
    for table in shop::TABLES {
        let query = format!("SELECT count(*) FROM {table}");
        rows += connection.query_row(&query, [], |row| row.get::<_, i64>(0))?;
    }
    let beat = connection.query_row("SELECT max(beat) FROM pulse", [], |row| row.get(0))?;
    Ok((rows, beat))
}

fn read_only(out: &Path) -> Result<Connection> {
    let connection = Connection::open_with_flags(out, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(Duration::from_secs(2))?;
    Ok(connection)
}

async fn count(session: &Session) -> Result<u64> {
    let mut rows = 0;
    for table in shop::TABLES {
        let count = session.ask(&format!("SELECT count(*) FROM {table}")).await?;
        rows += count.and_then(|count| count.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(rows)
}

async fn compare_all(place: &Place, out: &Path) -> Result<bool> {
    println!("7. Plain SQL on both sides, sharing no code with it, says:");
    let connection = read_only(out)?;
    let replica = Replica::Sqlite(&connection);
    let mut equal = true;
    for table in shop::TABLES {
        let found = compare(&place.session, place.schema, table, &replica).await?;
        let word = if found.is_equal() { "equal" } else { "DIFFERENT" };
        let (source, replica) = (found.source_rows, found.replica_rows);
        println!(
            "   {table:<10} {source:>7} rows in the shop, {replica:>7} in the replica: {word}"
        );
        equal &= found.is_equal();
    }
    Ok(equal)
}

fn verdict(equal: bool, kills: u32, out: &Path, took: Duration) {
    let (seconds, out) = (took.as_secs_f64(), out.display());
    if equal {
        println!("\nEqual, row for row, after {kills} kills, in {seconds:.0} s altogether.");
        println!("Look for yourself: sqlite3 {out} 'SELECT * FROM orders LIMIT 5'");
    } else {
        println!("\nDIFFERENT. That breaks the promise; please report it with the lines above.");
    }
}

fn clear_the_place(out: &Path, force: bool) -> Result<()> {
    if out.exists() && !force && !made_by_a_demo(out) {
        return Err(Error(format!(
            "{0} exists, and no demonstration made it; choose another file with `--out FILE`, or \
             replace it with `--force`",
            out.display()
        )));
    }
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let file = PathBuf::from(format!("{}{suffix}", out.display()));
        if file.exists() {
            fs::remove_file(&file).doing(format!("remove {}", file.display()))?;
        }
    }
    let connection = Connection::open(out)?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    Ok(())
}

fn made_by_a_demo(out: &Path) -> bool {
    let id = read_only(out).and_then(|connection| {
        Ok(connection.query_row("PRAGMA application_id", [], |row| row.get::<_, i32>(0))?)
    });
    id == Ok(APPLICATION_ID)
}

/// The file holds a password.
fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).doing("write the configuration")
}

fn failed(arguments: &[&str], said: &[impl AsRef<str>]) -> Error {
    let last = &said[said.len().saturating_sub(10)..];
    let last: Vec<&str> = last.iter().map(AsRef::as_ref).collect();
    Error(format!("`driftless {}` failed; it said\n{}", arguments.join(" "), last.join("\n")))
}
