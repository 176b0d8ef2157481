//! Who drains a backlog faster, driftless or PostgreSQL's own logical replication? Both get the
//! same backlog in one run, on the same two private servers, and take turns.
//!
//! `stage.rs` makes servers and backlog, `contestants.rs` drains it, `process.rs` reads what it
//! cost, `report.rs` says so. `make bench` runs it; these variables change it:
//!
//! | variable | default | meaning |
//! |---|---|---|
//! | `BENCH_ROWS` | 1000000 | inserted rows; half as many updates; a tenth as many transactions of pgbench |
//! | `BENCH_ROUNDS` | 3 | how often each one drains each workload |
//! | `BENCH_WORKLOADS` | `inserts-100,pgbench` | `inserts-N` has N rows a transaction; also `updates`, `hot` |
//! | `BENCH_CONTESTANTS` | `driftless,postgresql` | who takes part |
//!
//! `--json FILE` writes every measurement. Surprise: the clock is not on our side. driftless is
//! timed from the start of its process to its end, everything durable and acknowledged; the other
//! one from ENABLE to the moment that its last row is visible, with its default of asynchronous
//! commits.

mod contestants;
mod process;
mod report;
mod stage;

use std::process::ExitCode;
use std::str::FromStr;

use contestants::{Contestant, drain};
use driftless::demo::{Error, Result};
use report::{Drain, Report};
use stage::{Stage, Workload};

/// What is to be measured.
struct Plan {
    rows: u64,
    rounds: usize,
    workloads: Vec<Workload>,
    contestants: Vec<Contestant>,
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
    let stage = Stage::set().await?;
    let mut report = Report::new(&stage, plan.rows)?;
    eprintln!("{}", report.machine);
    for &workload in &plan.workloads {
        for round in 0..plan.rounds {
            let drains = take_turns(&stage, &plan, workload, round).await?;
            report.drains.extend(drains);
        }
    }
    println!("{report}");
    match &plan.json {
        Some(file) => report.write_json(file),
        None => Ok(()),
    }
}

/// One backlog, drained by everybody; whoever was first is last in the next round.
async fn take_turns(
    stage: &Stage,
    plan: &Plan,
    workload: Workload,
    round: usize,
) -> Result<Vec<Drain>> {
    eprintln!("== {workload}, round {} of {}: preparing", round + 1, plan.rounds);
    stage.open(workload, plan.rows).await?;
    for contestant in &plan.contestants {
        contestant.prepare(stage).await?;
    }
    let changes = stage.work(workload, plan.rows).await?;
    let mut order = plan.contestants.clone();
    order.rotate_left(round % plan.contestants.len());
    let mut drains = Vec::new();
    for contestant in order {
        stage.checkpoint().await?;
        let cost = drain(contestant, stage).await?;
        stage.must_be_equal(contestant.database()).await?;
        let drain = Drain { workload: workload.to_string(), contestant, changes, cost };
        eprintln!("   {drain}");
        drains.push(drain);
    }
    stage.close().await?;
    Ok(drains)
}

impl Plan {
    fn read() -> Result<Plan> {
        let plan = Plan {
            rows: one("BENCH_ROWS", "1000000")?,
            rounds: one("BENCH_ROUNDS", "3")?,
            workloads: list("BENCH_WORKLOADS", "inserts-100,pgbench")?,
            contestants: list("BENCH_CONTESTANTS", "driftless,postgresql")?,
            json: json_file()?,
        };
        if plan.rows < 10 || plan.rounds == 0 {
            return Err(Error("BENCH_ROWS must be at least 10 and BENCH_ROUNDS at least 1".into()));
        }
        Ok(plan)
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
