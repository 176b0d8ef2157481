//! What is said to each kind of server to make databases, backlogs and checksums.
//!
//! Both kinds have the same table of events, so that the figures of the pairs can be compared.

pub mod mariadb;
pub mod postgres;

use driftless::demo::Result;
use driftless::demo::server::session::Session;
use driftless::demo::server::{Engine, Server};

/// The source database of a round.
pub const WORK: &str = "work";
/// The target database of driftless.
pub const OURS: &str = "ours";

/// The last row of a backlog: whoever has it has everything.
const FINISH: &str = "CREATE TABLE finish (id int PRIMARY KEY)";
const FINISHED: &str = "INSERT INTO finish VALUES (1)";

/// A server, and a session with it that belongs to nobody's work.
pub struct Side {
    /// What kind it is.
    pub engine: Engine,
    /// The server.
    pub server: Server,
    /// A session with none of the databases of a round.
    pub watch: Session,
}

impl Side {
    async fn of(engine: Engine, server: Server) -> Result<Side> {
        let watch = server.session(server.first_database()).await?;
        Ok(Side { engine, server, watch })
    }

    /// What it is and how durable.
    pub async fn describe(&self) -> Result<String> {
        let version = self.server.version()?;
        match self.engine {
            Engine::Postgres => Ok(format!("PostgreSQL {version}")),
            Engine::Mariadb => {
                Ok(format!("MariaDB {version} ({})", mariadb::durability(&self.watch).await?))
            }
        }
    }
}
