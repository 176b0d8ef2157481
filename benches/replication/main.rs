//! How fast is driftless beside what the databases bring themselves? On two private servers, in one
//! run, everybody does the same work in turns, and must end with the same rows.
//!
//! `plan.rs` says what is measured, `pair.rs` who takes part. `stage.rs` makes servers and
//! databases with the words of `sides`; `workloads` is what is asked, `peers` who does it
//! (`peers/driftless.rs` is ourselves), `measure` reads what it cost, `report` says so. `make bench`
//! runs it, and `make bench ARGS=--help` tells its words; `docs/performance.md` says how to read
//! the answers.
//!
//! Surprise: the clock is not on our side. driftless is timed from the start of its process to its
//! end, everything durable and acknowledged. Native replication is timed from its start to the
//! moment that its last row is visible: PostgreSQL's from ENABLE, with its default of asynchronous
//! commits; MariaDB's from START SLAVE, with the relay log empty, with one thread that applies; and
//! `native-relayed` from START SLAVE SQL_THREAD, when the backlog is in the relay log already and
//! sending it has cost nothing.

mod contestant;
mod measure;
mod pair;
mod peers;
mod plan;
mod report;
mod sides;
mod stage;
mod workloads;

use std::process::ExitCode;
use std::time::Instant;

use driftless::demo::{Error, Result};

use pair::Pair;
use plan::{Plan, in_turns, took};
use report::Report;
use stage::Stage;
use workloads::{Workload, copy, drain, latency};

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
    let Some(plan) = Plan::read()? else {
        println!("{}", plan::USAGE);
        return Ok(());
    };
    let started = Instant::now();
    let mut report = Report::new(plan.size, plan.rounds);
    eprintln!("{}", report.machine);
    let result = measure_pairs(&plan, &mut report).await;
    if report.is_empty() {
        return result.and(Err(Error("nothing was measured: nobody can do what is chosen".into())));
    }
    // What has been measured before something failed is not lost.
    println!("{report}");
    took(&format!("everything; written to {}", plan.json.display()), started);
    result
}

async fn measure_pairs(plan: &Plan, report: &mut Report) -> Result<()> {
    for &pair in &plan.pairs {
        measure_pair(plan, pair, report).await?;
    }
    Ok(())
}

async fn measure_pair(plan: &Plan, pair: Pair, report: &mut Report) -> Result<()> {
    let can = |workload: &&Workload| !plan.contestants(pair, **workload).is_empty();
    let workloads: Vec<Workload> = plan.workloads.iter().filter(can).copied().collect();
    if workloads.is_empty() {
        eprintln!("== {pair}: nobody can do what is asked for");
        return Ok(());
    }
    let started = Instant::now();
    let stage = Stage::set(pair).await?;
    let servers = stage.describe().await?;
    eprintln!("\n{servers}");
    report.servers.push(servers);
    took("servers started", started);
    for workload in workloads {
        let started = Instant::now();
        let done = measure_workload(plan, &stage, workload, report).await;
        done.map_err(|error| Error(format!("{pair}, {workload}: {error}")))?;
        report.write_json(&plan.json)?;
        took(&format!("{pair}, {workload}: done"), started);
    }
    Ok(())
}

async fn measure_workload(
    plan: &Plan,
    stage: &Stage,
    workload: Workload,
    report: &mut Report,
) -> Result<()> {
    let contestants = plan.contestants(stage.pair, workload);
    eprintln!("== {}, {workload}", stage.pair);
    if workload == Workload::Copy {
        let works = copy::rounds(stage, &contestants, plan.size, plan.rounds).await?;
        report.works.extend(works);
        return Ok(());
    }
    for round in 0..plan.rounds {
        eprintln!("-- round {} of {}", round + 1, plan.rounds);
        let contestants = in_turns(&contestants, round);
        if workload == Workload::Latency {
            for contestant in contestants {
                report.latencies.push(latency::turn(stage, contestant, plan.size).await?);
            }
        } else {
            let works = drain::round(stage, &contestants, workload, plan.size).await?;
            report.works.extend(works);
        }
    }
    Ok(())
}
