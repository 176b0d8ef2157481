//! Times a contestant, and reads what it costs meanwhile.

mod meter;
pub mod process;

use std::time::Instant;

use driftless::demo::{Error, Result};

use self::meter::Meter;
use self::process::{Clock, Cost};
use crate::contestant::Contestant;
use crate::peers::Racer;
use crate::sides::WORK;
use crate::stage::{LOOK_EVERY, PATIENCE, Stage};

/// Sessions are looked for once in so many looks; asking costs the servers something.
const FIND_EVERY: u32 = 5;

/// The meters of both servers.
pub struct Meters<'a> {
    /// How processor time is counted.
    pub clock: Clock,
    source: Meter<'a>,
    target: Meter<'a>,
    looks: u32,
}

impl<'a> Meters<'a> {
    /// Starts to count what is done for a contestant.
    pub fn start(stage: &'a Stage, contestant: Contestant) -> Result<Meters<'a>> {
        let clock = Clock::of_system()?;
        let source = Meter::of(&stage.source, WORK.into(), clock)?;
        let target = Meter::of(&stage.target, stage.database(contestant), clock)?;
        Ok(Meters { clock, source, target, looks: 0 })
    }

    /// Looks at both servers; to be done every few hundredths of a second.
    pub async fn look(&mut self) -> Result<()> {
        if self.looks.is_multiple_of(FIND_EVERY) {
            self.source.find().await?;
            self.target.find().await?;
        }
        self.source.look();
        self.target.look();
        self.looks += 1;
        Ok(())
    }

    /// Writes down what was counted.
    pub fn read(&self, cost: &mut Cost) {
        (cost.sender_cpu, cost.source_cpu) = (self.source.sender(), self.source.others());
        cost.target_cpu = self.target.others();
    }
}

/// Lets a contestant do its work, and says what that took.
pub async fn race(contestant: Contestant, mut racer: Racer, stage: &Stage) -> Result<Cost> {
    let mut meters = Meters::start(stage, contestant)?;
    let mut cost = Cost::default();
    let started = Instant::now();
    racer.start(stage).await?;
    loop {
        let ended = racer.has_ended(meters.clock, &mut cost).await?;
        cost.seconds = started.elapsed().as_secs_f64();
        meters.look().await?;
        if ended {
            break;
        }
        if cost.seconds > PATIENCE.as_secs_f64() {
            return Err(Error(format!("{contestant} has not done its work in time")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    meters.read(&mut cost);
    racer.rest(stage).await?;
    Ok(cost)
}
