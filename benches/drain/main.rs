//! Who drains a backlog faster, driftless or the databases' own replication? In each pair of
//! servers, both get the same backlog in one run, on the same two private servers, and take turns.
//!
//! `stage.rs` makes servers and backlog with the words of `sides`, `contestants.rs` times who
//! drains it (`run.rs` is driftless, `peers` are the others), `meter.rs` and `process.rs` read what
//! it cost, `report.rs` says so. `make bench` runs it; these variables change it:
//!
//! | variable | default | meaning |
//! |---|---|---|
//! | `BENCH_PAIRS` | `postgres-postgres,mariadb-mariadb,mariadb-postgres` | from what to what |
//! | `BENCH_ROWS` | 1000000 | inserted rows; half as many updates; a tenth as many transactions of pgbench |
//! | `BENCH_ROUNDS` | 3 | how often each one drains each workload |
//! | `BENCH_WORKLOADS` | `inserts-100,pgbench` from a PostgreSQL, `inserts-100,updates` from a MariaDB | `inserts-N` has N rows a transaction; also `hot`; `pgbench` is left out from a MariaDB |
//! | `BENCH_CONTESTANTS` | `driftless,native,native-relayed` | who takes part, where there is such a one |
//! | `BENCH_FLUSH_LOG` | 1 | `innodb_flush_log_at_trx_commit` of a MariaDB target: 1 as shipped; 2 and 0 may lose a second |
//!
//! `--json FILE` writes every measurement. Surprise: the clock is not on our side. driftless is
//! timed from the start of its process to its end, everything durable and acknowledged. Native
//! replication is timed from its start to the moment that its last row is visible: PostgreSQL's
//! from ENABLE, with its default of asynchronous commits; MariaDB's from START SLAVE, with the relay
//! log empty, with one thread that applies; and `native-relayed` from START SLAVE SQL_THREAD, when
//! the backlog is in the relay log already and sending it has cost nothing. It waits for the disk
//! once a transaction: for a million of `inserts-1`, let `BENCH_FLUSH_LOG` be 2.

mod contestants;
mod meter;
mod pair;
mod peers;
mod process;
mod report;
mod run;
mod sides;
mod stage;
mod workload;

use std::process::ExitCode;
use std::str::FromStr;

use contestants::{Contestant, drain};
use driftless::demo::{Error, Result};
use pair::Pair;
use report::{Drain, Report};
use stage::Stage;
use workload::Workload;

/// What is to be measured.
struct Plan {
    pairs: Vec<Pair>,
    rows: u64,
    rounds: usize,
    /// None: what is usual for the pair.
    workloads: Option<Vec<Workload>>,
    contestants: Vec<Contestant>,
    flush_log: u8,
    json: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match measure().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure() -> Result<()> {
    let plan = Plan::read()?;
    let mut report = Report::new(plan.rows);
    eprintln!("{}", report.machine);
    for &pair in &plan.pairs {
        measure_pair(&plan, pair, &mut report).await?;
    }
    println!("{report}");
    match &plan.json {
        Some(file) => report.write_json(file),
        None => Ok(()),
    }
}

async fn measure_pair(plan: &Plan, pair: Pair, report: &mut Report) -> Result<()> {
    let (workloads, contestants) = (plan.workloads_of(pair), plan.contestants_of(pair));
    if workloads.is_empty() || contestants.is_empty() {
        eprintln!("{pair}: nothing to measure");
        return Ok(());
    }
    let stage = Stage::set(pair, plan.flush_log).await?;
    let servers = stage.describe().await?;
    eprintln!("{servers}");
    report.servers.push(servers);
    for workload in workloads {
        for round in 0..plan.rounds {
            eprintln!("== {pair}, {workload}, round {} of {}", round + 1, plan.rounds);
            let mut order = contestants.clone();
            // Whoever was first is last in the next round.
            order.rotate_left(round % contestants.len());
            let drains = take_turns(&stage, &order, workload, plan.rows).await?;
            report.drains.extend(drains);
        }
    }
    Ok(())
}

/// One backlog, drained by everybody.
async fn take_turns(
    stage: &Stage,
    contestants: &[Contestant],
    workload: Workload,
    rows: u64,
) -> Result<Vec<Drain>> {
    stage.open(workload, rows).await?;
    for contestant in contestants {
        contestant.prepare(stage).await?;
    }
    let backlog = stage.work(workload, rows).await?;
    let mut drains = Vec::new();
    for &contestant in contestants {
        let racer = contestant.line_up(stage, &backlog).await?;
        stage.settle().await?;
        let cost = drain(contestant, racer, stage).await?;
        stage.must_be_equal(contestant).await?;
        let (pair, workload) = (stage.pair.to_string(), workload.to_string());
        let drain = Drain { pair, workload, contestant, changes: backlog.changes, cost };
        eprintln!("   {drain}");
        drains.push(drain);
    }
    stage.close().await?;
    Ok(drains)
}

impl Plan {
    fn read() -> Result<Plan> {
        let plan = Plan {
            pairs: list("BENCH_PAIRS", "postgres-postgres,mariadb-mariadb,mariadb-postgres")?,
            rows: one("BENCH_ROWS", "1000000")?,
            rounds: one("BENCH_ROUNDS", "3")?,
            workloads: match std::env::var_os("BENCH_WORKLOADS") {
                Some(_) => Some(list("BENCH_WORKLOADS", "")?),
                None => None,
            },
            contestants: list("BENCH_CONTESTANTS", "driftless,native,native-relayed")?,
            flush_log: one("BENCH_FLUSH_LOG", "1")?,
            json: json_file()?,
        };
        if plan.rows < 10 || plan.rounds == 0 || plan.flush_log > 2 {
            return Err(Error(
                "BENCH_ROWS must be at least 10, BENCH_ROUNDS at least 1, BENCH_FLUSH_LOG at most 2"
                    .into(),
            ));
        }
        Ok(plan)
    }

    fn workloads_of(&self, pair: Pair) -> Vec<Workload> {
        let mut workloads = self.workloads.clone().unwrap_or_else(|| pair.usual_workloads());
        workloads.retain(|&workload| pair.can_do(workload));
        workloads
    }

    fn contestants_of(&self, pair: Pair) -> Vec<Contestant> {
        let mut contestants = self.contestants.clone();
        contestants.retain(|&contestant| pair.knows(contestant));
        contestants
    }
}

fn json_file() -> Result<Option<String>> {
    let mut arguments = std::env::args().skip(1);
    let mut file = None;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // What `cargo bench` says to every program.
            "--bench" => {}
            "--json" => {
                file = arguments.next();
                file.as_ref().ok_or_else(|| Error("--json needs a file name".into()))?;
            }
            other => {
                return Err(Error(format!("{other:?} is not understood; there is --json FILE")));
            }
        }
    }
    Ok(file)
}

fn one<T: FromStr>(variable: &str, default: &str) -> Result<T> {
    let text = std::env::var(variable).unwrap_or_else(|_| default.into());
    text.parse().map_err(|_| Error(format!("{variable} cannot be {text:?}")))
}

fn list<T: FromStr>(variable: &str, default: &str) -> Result<Vec<T>> {
    let text = std::env::var(variable).unwrap_or_else(|_| default.into());
    let wrong = |item: &str| Error(format!("{variable} cannot have {item:?} in it"));
    text.split(',').map(|item| item.parse().map_err(|_| wrong(item))).collect()
}
