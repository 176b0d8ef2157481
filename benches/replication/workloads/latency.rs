//! How long a small transaction takes from its commit at the source to being visible in the target,
//! while a thousand of them are committed a second.
//!
//! Surprises: several writers share the thousand, because one alone would wait for its disk too
//! often; each commits in the order of its numbers, so the largest number that can be seen tells
//! that all smaller ones can. And the clock begins when the writer has the answer to its commit and
//! ends when our question has been answered, so it includes up to a whole question.

use std::time::{Duration, Instant};

use driftless::demo::server::session::Session;
use driftless::demo::{Error, Result};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::{Size, Workload};
use crate::contestant::Contestant;
use crate::measure::Meters;
use crate::measure::process::Cost;
use crate::peers::{self, Racer};
use crate::plan::took;
use crate::report::Latency;
use crate::sides::WORK;
use crate::stage::{PATIENCE, Stage};

/// Transactions a second, of all writers together.
const RATE: u64 = 1000;
const WRITERS: u64 = 8;
/// How long the target is left alone between two questions.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// The processors' clocks are read once in so many questions.
const METER_EVERY: u64 = 10;

/// When each transaction of each writer happened, in the order of their numbers.
type Times = Vec<Vec<Instant>>;

/// One contestant's turn.
pub async fn turn(stage: &Stage, contestant: Contestant, size: Size) -> Result<Latency> {
    let workload = Workload::Latency;
    let started = Instant::now();
    stage.open_source(workload, size).await?;
    stage.open_target(contestant, workload).await?;
    peers::prepare(contestant, stage).await?;
    let mut racer = Racer::to_follow(contestant, stage).await?;
    stage.settle().await?;
    let mut meters = Meters::start(stage, contestant)?;
    racer.start(stage).await?;
    let mut watcher = Watcher::of(stage, contestant).await?;
    watcher.wait_for_the_first(stage).await?;
    let each = RATE * size.latency_seconds() / WRITERS;
    let begun = Instant::now();
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let session = stage.source.session(WORK).await?;
        writers.push(tokio::spawn(write(session, writer, each)));
    }
    let mut cost = Cost::default();
    let mut looks: u64 = 0;
    while !watcher.has_all(each) {
        if looks.is_multiple_of(METER_EVERY) {
            racer.must_go_on(meters.clock, &mut cost)?;
            meters.look().await?;
        }
        looks += 1;
        if begun.elapsed() > PATIENCE {
            return Err(Error(format!("{contestant} does not show all transactions")));
        }
        watcher.look().await?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
    cost.seconds = begun.elapsed().as_secs_f64();
    meters.read(&mut cost);
    let committed = committed(writers).await?;
    let wanted = stage.wanted(workload).await?;
    stage.must_have(contestant, &wanted).await?;
    racer.stop(stage).await?;
    stage.close_target(contestant).await?;
    stage.close_source().await?;
    let writing =
        committed.iter().flatten().max().map_or(0.0, |last| (*last - begun).as_secs_f64());
    let delays = delays(&committed, &watcher.seen);
    let latency = Latency::new(stage.pair, contestant, delays, writing, cost)?;
    took(&latency.to_string(), started);
    Ok(latency)
}

/// Commits so many transactions, evenly spread in time, and says when each was committed.
async fn write(session: Session, writer: u64, count: u64) -> Result<Vec<Instant>> {
    let mut pace = tokio::time::interval(Duration::from_secs(1) * WRITERS as u32 / RATE as u32);
    // A commit that was slow does not make the others rarer.
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut committed = Vec::new();
    for number in 1..=count {
        pace.tick().await;
        let insert = format!(
            "INSERT INTO ticks VALUES ({writer}, {number}, 'tick {number} of writer {writer}')"
        );
        session.batch_execute(&insert).await?;
        committed.push(Instant::now());
    }
    Ok(committed)
}

async fn committed(writers: Vec<JoinHandle<Result<Vec<Instant>>>>) -> Result<Times> {
    let mut times = Vec::new();
    for writer in writers {
        times.push(writer.await.map_err(|error| Error(format!("a writer failed: {error}")))??);
    }
    Ok(times)
}

/// From each commit to the moment that it was seen. What was seen before its writer heard of the
/// commit took no time.
fn delays(committed: &Times, seen: &Times) -> Vec<Duration> {
    let of_writer = |(committed, seen): (&Vec<Instant>, &Vec<Instant>)| {
        committed
            .iter()
            .zip(seen)
            .map(|(committed, seen)| seen.saturating_duration_since(*committed))
            .collect::<Vec<_>>()
    };
    committed.iter().zip(seen).flat_map(of_writer).collect()
}

/// Looks at the target.
struct Watcher {
    target: Session,
    query: String,
    seen: Times,
}

impl Watcher {
    async fn of(stage: &Stage, contestant: Contestant) -> Result<Watcher> {
        let (database, table) = stage.place(contestant, "ticks");
        let largest = |writer| format!("(SELECT max(number) FROM {table} WHERE writer = {writer})");
        let query: Vec<String> = (0..WRITERS).map(largest).collect();
        Ok(Watcher {
            target: stage.target.session(&database).await?,
            query: format!("SELECT {}", query.join(", ")),
            seen: vec![Vec::new(); WRITERS as usize],
        })
    }

    /// Writes a transaction with the number 0, and waits until it can be seen.
    async fn wait_for_the_first(&mut self, stage: &Stage) -> Result<()> {
        let source = stage.source.session(WORK).await?;
        source.batch_execute("INSERT INTO ticks VALUES (0, 0, 'first')").await?;
        let started = Instant::now();
        loop {
            // MariaDB's own replication may not have made the table yet.
            let answer = self.target.rows(&self.query).await.unwrap_or_default();
            if answer.first().and_then(|row| row.first()).is_some_and(Option::is_some) {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(Error("the first transaction never became visible".into()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&mut self) -> Result<()> {
        let answer = self.target.rows(&self.query).await?;
        let now = Instant::now();
        for (seen, largest) in self.seen.iter_mut().zip(answer.into_iter().flatten()) {
            let Some(largest) = largest else { continue };
            let largest = largest.parse().map_err(|_| Error("a number is none".into()))?;
            // Numbers count from 1.
            seen.resize(seen.len().max(largest), now);
        }
        Ok(())
    }

    fn has_all(&self, each: u64) -> bool {
        self.seen.iter().all(|seen| seen.len() as u64 >= each)
    }
}
