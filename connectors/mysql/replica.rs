//! How we appear among a server's replicas: which number we have, that nobody else has it, and how
//! the log is asked for. Used by `stream.rs` and `source.rs`.
//!
//! Surprise: a server ends the connection of whoever asked for its log under the same number
//! before. So we look first whether somebody has; and to evict somebody is to ask for the log.

use std::sync::Arc;
use std::time::Duration;

use mysql_async::{BinlogStream, BinlogStreamRequest, GnoInterval, Sid};
use tokio::time::{Instant, sleep, timeout};

use super::bookmark::{Bookmark, Gtids, Place};
use super::catalog::{optional, text};
use super::config::Config;
use super::connect::{self, Role, Session};
use super::failure;
use super::gtid::{MysqlSet, Uuid};
use super::subscribe::Start;
use super::{quote, source_sql as sql, subscribe};
use crate::error::{Code, Error, Result};
use crate::{SourceOptions, change::Key};

/// How long the connection of our killed predecessor may stay.
const LINGER: Duration = Duration::from_secs(15);
/// The longest name that a server takes.
const NAME_MAX: usize = 60;
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What we are called among the replicas of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Our number, which no other replica and no server of the topology may have.
    pub id: u32,
    /// What the server's list of replicas shows as our host.
    pub name: String,
}

impl Replica {
    /// As the options say, or else made of the names of pipeline and database.
    #[must_use]
    pub fn of(options: &SourceOptions, config: &Config) -> Replica {
        let name = format!("driftless_{}", options.pipeline).chars().take(NAME_MAX).collect();
        let key = Key::from_values([options.pipeline.as_bytes(), config.database.as_bytes()]);
        // Digits of a hash; above what people and tools give to servers.
        let hash = u64::from_str_radix(&key.hash(), 16).unwrap_or_default();
        let made = (1 << 30) | (hash as u32 & ((1 << 30) - 1));
        Replica { id: options.server_id.unwrap_or(made), name }
    }

    /// Waits a little until nobody else has our number.
    ///
    /// # Errors
    /// `server-id-in-use`; transient where it is another run of this pipeline.
    pub async fn wait_until_free(&self, session: &mut Session) -> Result<()> {
        let question = "SELECT @@GLOBAL.server_id";
        let theirs = subscribe::first(session, "read the server's id", question).await?;
        if theirs == self.id.to_string() {
            return Err(self.in_use("the source itself"));
        }
        let start = Instant::now();
        loop {
            let Some(holder) = self.holder(session).await? else { return Ok(()) };
            if start.elapsed() > LINGER {
                return Err(match holder == self.name {
                    true => Error::transient(
                        Code::ServerIdInUse,
                        "another run of this pipeline still reads the source's log; stop it, or \
                         take over with `driftless run --take-over`",
                    ),
                    false => self.in_use(&format!("replica {holder:?}")),
                });
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn in_use(&self, whom: &str) -> Error {
        Error::stop(
            Code::ServerIdInUse,
            format!(
                "server id {} is that of {whom}; give us another with server_id under [source] \
                 or DRIFTLESS_SOURCE__SERVER_ID",
                self.id
            ),
        )
    }

    /// Who has our number, by the name that it gave.
    ///
    /// # Errors
    /// What the server says.
    pub async fn holder(&self, session: &mut Session) -> Result<Option<String>> {
        let question = sql::replicas(session.server());
        let rows = match session.query("list the replicas", question).await {
            // Then we cannot know; the server has the last word.
            Err(error) if error.code == Code::Permission => return Ok(None),
            rows => rows?,
        };
        for row in &rows {
            if text(row, 0)? == self.id.to_string() {
                return Ok(Some(optional(row, 1)?.unwrap_or_default()));
            }
        }
        Ok(None)
    }

    /// Asks for the log from here on.
    ///
    /// # Errors
    /// What the server says.
    pub async fn ask(
        &self,
        mut session: Session,
        from: &Bookmark,
        start: &Start,
    ) -> Result<BinlogStream> {
        let doing = "ask for the binary log";
        let mut variables = sql::DUMP.to_owned();
        if session.server().is_mariadb() {
            variables += sql::CAPABILITY;
        }
        let request = BinlogStreamRequest::new(self.id).with_hostname(self.name.as_bytes());
        let request = match (start, &from.gtids) {
            (Start::Place(place), _) if place.offset <= u64::from(u32::MAX) => {
                request.with_filename(place.file.as_bytes()).with_pos(place.offset)
            }
            (_, Gtids::Mariadb(position)) if !position.is_empty() => {
                let position = quote::literal(&position.to_string());
                variables += &format!(", @slave_connect_state = {position}");
                variables += ", @slave_gtid_strict_mode = 1";
                request.with_pos(4)
            }
            (Start::Gtids, Gtids::Mysql(set)) => {
                request.with_gtid().with_gtid_set(sids(set)?).with_pos(4)
            }
            (Start::Place(place), _) => return Err(too_far(place)),
            (Start::Gtids, Gtids::Mariadb(_)) => return Err(too_far(&from.place)),
        };
        session.execute(doing, &format!("SET {variables}")).await?;
        let asked = session.into_connection().get_binlog_stream(request).await;
        asked.map_err(|failure| failure::error(doing, &failure))
    }

    /// Ends whatever connection reads the log under our number.
    ///
    /// # Errors
    /// What the server says; `server-id-in-use` (transient) if it does not let go.
    pub async fn evict(&self, config: &Arc<Config>) -> Result<()> {
        let mut session = connect::connect(config, Role::Source).await?;
        if self.holder(&mut session).await?.is_none() {
            return Ok(());
        }
        let mut asking = connect::connect(config, Role::Source).await?;
        let (server, place) =
            (subscribe::identity(&mut asking).await?, subscribe::end(&mut asking).await?);
        let gtids = Gtids::none(subscribe::flavor(asking.server()));
        let here = Bookmark { server, place: place.clone(), gtids, delivered: None, begun: None };
        let stream = self.ask(asking, &here, &Start::Place(place)).await?;
        // The server ends the other one before it sends us anything.
        let mut stream = stream;
        let _ = timeout(LINGER, futures_util::StreamExt::next(&mut stream)).await;
        drop(stream);
        let start = Instant::now();
        while self.holder(&mut session).await?.is_some() {
            if start.elapsed() > LINGER {
                let message = "the source's log is still read under our server id";
                return Err(Error::transient(Code::ServerIdInUse, message));
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

fn sids(set: &MysqlSet) -> Result<Vec<Sid<'static>>> {
    let sid = |(uuid, intervals): (&Uuid, &[(u64, u64)])| {
        // The protocol's intervals do not contain their end.
        let intervals = intervals.iter().map(|(first, last)| GnoInterval::new(*first, last + 1));
        let sid = Sid::new(uuid.bytes).with_intervals(intervals.collect());
        match uuid.tag.is_empty() {
            true => Ok(sid),
            false => uuid.tag.clone().try_into().map(|tag| sid.with_tag(tag)).map_err(|_| {
                Error::stop(Code::Protocol, "a tag of the source's GTIDs is not understood")
            }),
        }
    };
    set.iter().map(sid).collect()
}

fn too_far(place: &Place) -> Error {
    Error::stop(
        Code::SourceSettings,
        format!(
            "our place {}:{} lies beyond 4 GiB of a file, where a server without GTIDs cannot be \
             asked to begin; switch gtid_mode on, then {}",
            place.file,
            place.offset,
            subscribe::RESYNC
        ),
    )
}
