//! The long one: a bench and the shop at once, the replicator killed again and again, both sides
//! equal in the end, within the memory that we promise. The bench is pgbench where there is one.
//!
//! How long, how large and how often it is killed come from WORKLOAD_SECONDS, WORKLOAD_SCALE and
//! WORKLOAD_KILLS; `make soak` sets them to a full minute, scale 10 and 30 kills.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use driftless::demo::dice::Dice;
use driftless::demo::server::{PASSWORD, USER};
use driftless::demo::shop::{self, Shop};
use tokio::task::JoinHandle;

use crate::support::world::session;
use crate::support::{Pair, Source, World};

const MEMORY_KIB_MAX: u64 = 256 * 1024;

for_each_pair! {
    a_bench_and_the_shop_with_kills_end_equal_within_256_mib:
        postgres(sqlite postgres mariadb /), mariadb(sqlite postgres mariadb /);
}

async fn a_bench_and_the_shop_with_kills_end_equal_within_256_mib(pair: Pair) {
    let (seconds, kills) = (number("WORKLOAD_SECONDS", 12), number("WORKLOAD_KILLS", 6));
    let world = World::new(pair, "").await;
    let bench = Bench::start(&world, Duration::from_secs(seconds)).await;
    shop::open(&world.source, 5_000).await.unwrap();

    let shop = Shop::start(&world.from, 3, 42, Duration::from_millis(2));
    let mut dice = Dice::new(42);
    let mut memory_peak_kib = 0;
    let end = Instant::now() + Duration::from_secs(seconds);
    for kill in 0..kills {
        let mut daemon = world.run(&[]);
        let left = end.saturating_duration_since(Instant::now()) / (kills - kill) as u32;
        tokio::time::sleep(left.mul_f64(dice.between(30, 170) as f64 / 100.0)).await;
        daemon.must_be_running();
        memory_peak_kib = memory_peak_kib.max(daemon.kill().await.memory_peak_kib);
    }
    bench.end().await;
    let counts = shop.close().await.unwrap();
    assert!(counts.rows() > 100 * seconds, "the shop did too little: {counts:?}");

    let last = world.command(&["run", "--until-current"]).await.must_exit(0);
    memory_peak_kib = memory_peak_kib.max(last.memory_peak_kib);
    world.must_be_equal().await;
    world.command(&["verify"]).await.must_exit(0);
    assert!(memory_peak_kib < MEMORY_KIB_MAX, "{memory_peak_kib} KiB were resident");
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// Many short transactions on a few hot rows, from eight sessions.
enum Bench {
    Pgbench(Pgbench),
    Transfers(Vec<JoinHandle<u64>>),
}

impl Bench {
    /// Makes its tables, and starts to work on them for so long.
    async fn start(world: &World, for_so_long: Duration) -> Bench {
        let scale = number("WORKLOAD_SCALE", 1);
        match world.pair.source {
            Source::Postgres => {
                pgbench(world, &["-i", "-q", "-s", &scale.to_string()]).wait_well();
                let key = "ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY";
                world.execute(key).await;
                let seconds = for_so_long.as_secs().to_string();
                Bench::Pgbench(pgbench(world, &["-n", "-c", "8", "-j", "2", "-T", &seconds]))
            }
            Source::Mariadb => {
                world.execute(&bank(world.pair, scale)).await;
                let end = Instant::now() + for_so_long;
                let work = |seed| tokio::spawn(transfer(world.from.clone(), seed, scale, end));
                Bench::Transfers((0..8).map(work).collect())
            }
        }
    }

    async fn end(self) {
        match self {
            Bench::Pgbench(bench) => bench.wait_well(),
            Bench::Transfers(sessions) => {
                for session in sessions {
                    assert!(session.await.unwrap() > 0, "a session of the bench did nothing");
                }
            }
        }
    }
}

/// The tables of pgbench, in the words of MariaDB.
fn bank(pair: Pair, scale: u64) -> String {
    format!(
        "CREATE TABLE branches (bid int PRIMARY KEY, bbalance int NOT NULL);
         INSERT INTO branches SELECT n, 0 FROM {};
         CREATE TABLE tellers (tid int PRIMARY KEY, bid int, tbalance int NOT NULL);
         INSERT INTO tellers SELECT n, n / 10, 0 FROM {};
         CREATE TABLE accounts (aid int unsigned PRIMARY KEY, bid int, abalance int NOT NULL,
             filler char(84) NOT NULL DEFAULT '');
         INSERT INTO accounts (aid, bid, abalance) SELECT n, n / 100000, 0 FROM {};
         CREATE TABLE history (id bigint AUTO_INCREMENT PRIMARY KEY, tid int, aid int unsigned,
             delta mediumint, mtime timestamp(6) DEFAULT current_timestamp(6))",
        pair.source.series(scale as u32),
        pair.source.series(scale as u32 * 10),
        pair.source.series(scale as u32 * 100_000)
    )
}

async fn transfer(url: String, seed: u64, scale: u64, end: Instant) -> u64 {
    let (session, mut dice, mut done) = (session(&url).await, Dice::new(seed), 0);
    while Instant::now() < end {
        let delta = dice.between(0, 10_000) as i64 - 5_000;
        let (account, teller) = (dice.between(1, scale * 100_000), dice.between(1, scale * 10 + 1));
        let branch = dice.between(1, scale + 1);
        let transaction = format!(
            "BEGIN;
             UPDATE accounts SET abalance = abalance + {delta} WHERE aid = {account};
             UPDATE tellers SET tbalance = tbalance + {delta} WHERE tid = {teller};
             UPDATE branches SET bbalance = bbalance + {delta} WHERE bid = {branch};
             INSERT INTO history (tid, aid, delta) VALUES ({teller}, {account}, {delta});
             COMMIT"
        );
        match session.batch_execute(&transaction).await {
            Ok(()) => done += 1,
            // A deadlock.
            Err(_) => session.batch_execute("ROLLBACK").await.unwrap(),
        }
    }
    done
}

/// A running pgbench; killed when dropped.
struct Pgbench(Child);

impl Pgbench {
    fn wait_well(mut self) {
        assert!(self.0.wait().unwrap().success(), "pgbench failed");
    }
}

impl Drop for Pgbench {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pgbench(world: &World, arguments: &[&str]) -> Pgbench {
    let beside = world.server.program_directory().join("pgbench");
    let program = if beside.exists() { beside } else { "pgbench".into() };
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-U", USER, "-p", &world.server.port().to_string()]);
    command.args(arguments).arg("postgres").env("PGPASSWORD", PASSWORD);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Pgbench(command.spawn().expect("pgbench; install it with `apt-get install postgresql-contrib`"))
}
