//! What a drain costs the servers.
//!
//! PostgreSQL has a process for each session: all sessions with a database count but our own.
//! MariaDB has threads: the whole server counts, with the threads that write pages and purge; of a
//! source, the threads that send the log are told apart.
//! Surprise: sessions are gone when a drain ends, so they are looked at many times and the last
//! look counts; what they did after it, a few hundredths of a second, is lost.

use std::collections::HashMap;

use driftless::demo::server::Engine;
use driftless::demo::server::session::Session;
use driftless::demo::{Error, Result};

use super::process::{Clock, cpu_of_tasks};
use crate::sides::{BENCH, Side};

/// The meter of one server.
pub enum Meter<'a> {
    /// Of a PostgreSQL.
    Sessions(Sessions<'a>),
    /// Of a MariaDB.
    Threads(Threads<'a>),
}

impl<'a> Meter<'a> {
    /// Starts to count what is done for this database.
    pub fn of(side: &'a Side, database: String, clock: Clock) -> Result<Meter<'a>> {
        let watch = &side.watch;
        match side.engine {
            Engine::Postgres => {
                let seen = HashMap::new();
                Ok(Meter::Sessions(Sessions { watch, clock, database, seen }))
            }
            Engine::Mariadb => {
                Ok(Meter::Threads(Threads::of(watch, clock, side.server.process_id()?)?))
            }
        }
    }

    /// Looks for sessions that are new.
    pub async fn find(&mut self) -> Result<()> {
        match self {
            Meter::Sessions(sessions) => sessions.find().await,
            Meter::Threads(threads) => threads.find().await,
        }
    }

    /// Looks at the processor time of those that are known.
    pub fn look(&mut self) {
        match self {
            Meter::Sessions(sessions) => sessions.look(),
            Meter::Threads(threads) => threads.look(),
        }
    }

    /// The processor time, in seconds, of whoever decodes and sends the log.
    pub fn sender(&self) -> f64 {
        match self {
            Meter::Sessions(sessions) => sessions.cpu(true),
            Meter::Threads(threads) => threads.senders(),
        }
    }

    /// The processor time of all others.
    pub fn others(&self) -> f64 {
        match self {
            Meter::Sessions(sessions) => sessions.cpu(false),
            Meter::Threads(threads) => (threads.server - threads.senders()).max(0.0),
        }
    }
}

/// Sessions of one database, and how much processor time each has taken.
pub struct Sessions<'a> {
    watch: &'a Session,
    clock: Clock,
    database: String,
    seen: HashMap<u32, (bool, f64)>,
}

impl Sessions<'_> {
    async fn find(&mut self) -> Result<()> {
        let query = format!(
            "SELECT pid, backend_type = 'walsender' FROM pg_stat_activity \
             WHERE datname = '{}' AND application_name <> '{BENCH}' \
             AND (backend_type IN ('walsender', 'client backend', 'parallel worker') \
             OR backend_type LIKE 'logical replication%')",
            self.database
        );
        for row in self.watch.rows(&query).await? {
            let [Some(process), Some(is_walsender)] = row.as_slice() else { continue };
            let process = process.parse().map_err(|_| Error("a process has no number".into()))?;
            self.seen.entry(process).or_insert((is_walsender == "t", 0.0));
        }
        Ok(())
    }

    fn look(&mut self) {
        for (process, (_, cpu)) in &mut self.seen {
            if let Some(stat) = self.clock.stat(*process) {
                *cpu = stat.cpu;
            }
        }
    }

    /// The processor time of walsenders, or of all others.
    fn cpu(&self, of_walsenders: bool) -> f64 {
        let wanted = self.seen.values().filter(|(walsender, _)| *walsender == of_walsenders);
        wanted.fold(0.0, |sum, (_, cpu)| sum + cpu)
    }
}

/// The threads of one server.
pub struct Threads<'a> {
    watch: &'a Session,
    clock: Clock,
    process: u32,
    /// What the server had taken when the meter was started, and each of its threads: a thread
    /// works for one session after the other.
    before: f64,
    threads_before: HashMap<u32, f64>,
    /// What the server has taken since then.
    server: f64,
    /// What the threads that send the log have taken since then.
    senders: HashMap<u32, f64>,
}

impl<'a> Threads<'a> {
    fn of(watch: &'a Session, clock: Clock, process: u32) -> Result<Threads<'a>> {
        let stat = clock.stat(process);
        let stat = stat.ok_or_else(|| Error("/proc does not know the MariaDB server".into()))?;
        let (server, senders) = (0.0, HashMap::new());
        let threads_before = cpu_of_tasks(clock, process);
        let before = stat.cpu;
        Ok(Threads { watch, clock, process, before, threads_before, server, senders })
    }

    async fn find(&mut self) -> Result<()> {
        let query = "SELECT tid FROM information_schema.processlist WHERE command = 'Binlog Dump'";
        for thread in self.watch.rows(query).await?.into_iter().flatten().flatten() {
            let thread = thread.parse().map_err(|_| Error("a thread has no number".into()))?;
            self.senders.entry(thread).or_insert(0.0);
        }
        Ok(())
    }

    fn look(&mut self) {
        if let Some(stat) = self.clock.stat(self.process) {
            self.server = stat.cpu - self.before;
        }
        for (thread, cpu) in &mut self.senders {
            if let Some(now) = self.clock.task(self.process, *thread) {
                *cpu = now - self.threads_before.get(thread).unwrap_or(&0.0);
            }
        }
    }

    fn senders(&self) -> f64 {
        self.senders.values().fold(0.0, |sum, cpu| sum + cpu)
    }
}
