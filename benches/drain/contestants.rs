//! The two that drain a backlog. Each is prepared before the backlog is written: it copies what is
//! there, and leaves a slot behind that keeps everything from then on.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use driftless::demo::server::{PASSWORD, USER};
use driftless::demo::{Error, Result};
use serde::Serialize;

use crate::process::{Clock, Cost, Sessions, peak_kib};
use crate::stage::{Stage, TARGETS, WORK, value};

/// How often processes are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Sessions are looked for once in so many looks; asking costs the servers something.
const FIND_EVERY: u32 = 10;
/// How long a preparation or a drain may take.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Who drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contestant {
    /// This project's program, `run --until-current`.
    Driftless,
    /// CREATE SUBSCRIPTION.
    Postgresql,
}

impl FromStr for Contestant {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Contestant, ()> {
        match text {
            "driftless" => Ok(Contestant::Driftless),
            "postgresql" => Ok(Contestant::Postgresql),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Contestant::Driftless => "driftless",
            Contestant::Postgresql => "postgresql",
        })
    }
}

impl Contestant {
    /// Its target database.
    pub fn database(self) -> &'static str {
        match self {
            Contestant::Driftless => TARGETS[0],
            Contestant::Postgresql => TARGETS[1],
        }
    }

    /// Copies what is there and stops.
    pub async fn prepare(self, stage: &Stage) -> Result<()> {
        match self {
            Contestant::Driftless => {
                let state = state_directory(stage);
                // That of an earlier round is of a database that is gone.
                let _ = std::fs::remove_dir_all(&state);
                Run::start(stage)?.succeed()
            }
            Contestant::Postgresql => subscribe(stage).await,
        }
    }
}

/// Drains the backlog, and says what that took.
pub async fn drain(contestant: Contestant, stage: &Stage) -> Result<Cost> {
    let clock = Clock::of_system()?;
    let mut source = Sessions::of(&stage.source_watch, WORK);
    let mut target = Sessions::of(&stage.target_watch, contestant.database());
    let theirs = stage.target.connect_to(TARGETS[1]).await?;
    let mut cost = Cost::default();
    let started = Instant::now();
    let mut run = match contestant {
        Contestant::Driftless => Some(Run::start(stage)?),
        Contestant::Postgresql => {
            theirs.batch_execute("ALTER SUBSCRIPTION native ENABLE").await?;
            None
        }
    };
    for look in 0.. {
        let ended = match &mut run {
            Some(run) => run.has_ended(clock, &mut cost)?,
            None => value(&theirs, "SELECT id FROM finish").await?.is_some(),
        };
        cost.seconds = started.elapsed().as_secs_f64();
        source.look(clock);
        target.look(clock);
        if ended {
            break;
        }
        if cost.seconds > PATIENCE.as_secs_f64() {
            return Err(Error(format!("{contestant} has not drained the backlog in time")));
        }
        if look % FIND_EVERY == 0 {
            source.find().await?;
            target.find().await?;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    (cost.walsender_cpu, cost.source_cpu) = (source.cpu(true), source.cpu(false));
    cost.target_cpu = target.cpu(false);
    match run {
        Some(run) => run.succeed()?,
        None => rest(stage).await?,
    }
    Ok(cost)
}

/// Copies what is there, then rests.
async fn subscribe(stage: &Stage) -> Result<()> {
    let source = stage.source.connect_to(WORK).await?;
    source.batch_execute("CREATE PUBLICATION native FOR ALL TABLES").await?;
    let port = stage.source.port();
    let target = stage.target.connect_to(TARGETS[1]).await?;
    let subscription = format!(
        "CREATE SUBSCRIPTION native CONNECTION \
         'host=127.0.0.1 port={port} user={USER} password={PASSWORD} dbname={WORK}' \
         PUBLICATION native"
    );
    target.batch_execute(&subscription).await?;
    let copied = "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel";
    wait_until("PostgreSQL has copied the tables", async || {
        Ok(value(&target, copied).await?.as_deref() == Some("t"))
    })
    .await?;
    rest(stage).await
}

/// Makes the subscription rest, and waits until its processes are gone.
async fn rest(stage: &Stage) -> Result<()> {
    let target = stage.target.connect_to(TARGETS[1]).await?;
    target.batch_execute("ALTER SUBSCRIPTION native DISABLE").await?;
    let active = "SELECT active FROM pg_replication_slots WHERE slot_name = 'native'";
    wait_until("PostgreSQL's subscription rests", async || {
        Ok(value(&stage.source_watch, active).await?.as_deref() == Some("f"))
    })
    .await
}

async fn wait_until(what: &str, mut condition: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !condition().await? {
        if started.elapsed() > PATIENCE {
            return Err(Error(format!("waited in vain until {what}")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// A `driftless run --until-current`; killed when dropped.
struct Run {
    process: Child,
    log: PathBuf,
}

impl Run {
    fn start(stage: &Stage) -> Result<Run> {
        let log = stage.scratch.path().join("log");
        let failed = |error: std::io::Error| Error(format!("start driftless: {error}"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_driftless"));
        // What a developer has exported must not change what is measured.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("DRIFTLESS_")) {
            command.env_remove(name);
        }
        command.args(["run", "--until-current", "--from", &stage.source.url(WORK)]);
        command.args(["--to", &stage.target.url(TARGETS[0]), "--tables", "public.*", "--state"]);
        command.arg(state_directory(stage));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&log).map_err(failed)?);
        Ok(Run { process: command.spawn().map_err(failed)?, log })
    }

    /// Whether it has ended. Nobody waits for it here: what it has cost can be read until then.
    fn has_ended(&mut self, clock: Clock, cost: &mut Cost) -> Result<bool> {
        let process = self.process.id();
        let stat = clock.stat(process);
        let stat = stat.ok_or_else(|| Error("/proc does not know driftless".into()))?;
        cost.own_cpu = stat.cpu;
        cost.peak_kib = peak_kib(process).unwrap_or(0).max(cost.peak_kib);
        Ok(stat.is_zombie)
    }

    fn succeed(mut self) -> Result<()> {
        let ended = self.process.wait();
        let ended = ended.map_err(|error| Error(format!("wait for driftless: {error}")))?;
        if ended.success() {
            return Ok(());
        }
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        Err(Error(format!("driftless ended with {ended}:\n{log}")))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn state_directory(stage: &Stage) -> PathBuf {
    stage.scratch.path().join("state")
}
