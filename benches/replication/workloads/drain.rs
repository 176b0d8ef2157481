//! A backlog that everybody drains in turns, each into a database of its own.

use std::time::Instant;

use driftless::demo::Result;

use super::{Size, Workload};
use crate::contestant::Contestant;
use crate::measure::race;
use crate::peers::{self, Racer};
use crate::plan::took;
use crate::report::Work;
use crate::stage::Stage;

/// One round.
pub async fn round(
    stage: &Stage,
    contestants: &[Contestant],
    workload: Workload,
    size: Size,
) -> Result<Vec<Work>> {
    let started = Instant::now();
    stage.open_source(workload, size).await?;
    for &contestant in contestants {
        stage.open_target(contestant, workload).await?;
        peers::prepare(contestant, stage).await?;
    }
    took("tables made, contestants prepared", started);
    let started = Instant::now();
    let backlog = stage.work(workload, size).await?;
    took(&format!("backlog of {} changes written", backlog.changes), started);
    let wanted = stage.wanted(workload).await?;
    let mut works = Vec::new();
    for &contestant in contestants {
        let started = Instant::now();
        let racer = Racer::before(&backlog, contestant, stage).await?;
        stage.settle().await?;
        let cost = race(contestant, racer, stage).await?;
        match contestant {
            Contestant::Sender => peers::tools::must_have_received(stage, &backlog).await?,
            _ => stage.must_have(contestant, &wanted).await?,
        }
        let work = Work::new(stage.pair, workload, contestant, backlog.changes, cost);
        took(&work.to_string(), started);
        works.push(work);
    }
    for &contestant in contestants {
        stage.close_target(contestant).await?;
    }
    stage.close_source().await?;
    Ok(works)
}
