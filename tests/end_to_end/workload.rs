//! The long one: pgbench and the shop at once, the replicator killed again and again, both sides
//! equal in the end, within the memory that we promise.
//!
//! How long, how large and how often it is killed come from WORKLOAD_SECONDS, WORKLOAD_SCALE and
//! WORKLOAD_KILLS; `make soak` sets them to a full minute, scale 10 and 30 kills.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use driftless::demo::dice::Dice;
use driftless::demo::server::{PASSWORD, USER};
use driftless::demo::shop::{self, Shop};

use crate::support::{Target, World};

const MEMORY_KIB_MAX: u64 = 256 * 1024;

for_each_target! {
    pgbench_and_the_shop_with_kills_end_equal_within_256_mib
}

async fn pgbench_and_the_shop_with_kills_end_equal_within_256_mib(target: Target) {
    let (seconds, kills) = (number("WORKLOAD_SECONDS", 12), number("WORKLOAD_KILLS", 6));
    let world = World::new(target, "").await;
    pgbench(&world, &["-i", "-q", "-s", &number("WORKLOAD_SCALE", 1).to_string()]).wait_well();
    world.execute("ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY").await;
    shop::open(&world.source, 5_000).await.unwrap();

    let bench = pgbench(&world, &["-n", "-c", "8", "-j", "2", "-T", &seconds.to_string()]);
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
    bench.wait_well();
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

/// A running pgbench; killed when dropped.
struct Bench(Child);

impl Bench {
    fn wait_well(mut self) {
        assert!(self.0.wait().unwrap().success(), "pgbench failed");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pgbench(world: &World, arguments: &[&str]) -> Bench {
    let beside = world.server.program_directory().join("pgbench");
    let program = if beside.exists() { beside } else { "pgbench".into() };
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-U", USER, "-p", &world.server.port().to_string()]);
    command.args(arguments).arg("postgres").env("PGPASSWORD", PASSWORD);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Bench(command.spawn().expect("pgbench; install it with `apt-get install postgresql-contrib`"))
}
