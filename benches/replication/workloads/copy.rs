//! The first copy of a table, by everybody in turns. Nothing is written meanwhile, so all rounds
//! copy the same table.

use std::time::Instant;

use driftless::demo::Result;

use super::{Size, Workload};
use crate::contestant::Contestant;
use crate::measure::race;
use crate::peers::Racer;
use crate::plan::{in_turns, took};
use crate::report::Work;
use crate::stage::Stage;

/// All rounds.
pub async fn rounds(
    stage: &Stage,
    contestants: &[Contestant],
    size: Size,
    rounds: usize,
) -> Result<Vec<Work>> {
    let workload = Workload::Copy;
    let started = Instant::now();
    stage.open_source(workload, size).await?;
    took(&format!("table of {} rows made", workload.rows_before(size)), started);
    let wanted = stage.wanted(workload).await?;
    let mut works = Vec::new();
    for round in 0..rounds {
        eprintln!("-- round {} of {rounds}", round + 1);
        for contestant in in_turns(contestants, round) {
            let started = Instant::now();
            stage.open_target(contestant, workload).await?;
            let racer = Racer::to_copy(contestant, stage).await?;
            stage.settle().await?;
            let cost = race(contestant, racer, stage).await?;
            stage.must_have(contestant, &wanted).await?;
            let rows = workload.rows_before(size);
            let work = Work::new(stage.pair, workload, contestant, rows, cost);
            took(&work.to_string(), started);
            works.push(work);
            stage.close_target(contestant).await?;
            // What is kept for one would hold up the vacuum, and fill the disk, of all others.
            stage.forget_readers().await?;
        }
    }
    stage.close_source().await?;
    Ok(works)
}
