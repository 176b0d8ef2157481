//! Programs that come with the databases, or beside them: who copies rows without following the
//! log, and who reads the log without applying it.

use std::path::PathBuf;
use std::process::Command;

use driftless::demo::server::mariadb::ADMIN;
use driftless::demo::server::{Engine, PASSWORD};
use driftless::demo::{Error, Result};

use super::program::Program;
use crate::contestant::Contestant;
use crate::sides::WORK;
use crate::sides::postgres::PUBLICATION;
use crate::stage::Stage;
use crate::workloads::Backlog;

/// The slot of the sender.
pub const SLOT: &str = "sender";
/// Connections that pgcopydb copies with: as many as `copy_workers` has by default.
const JOBS: &str = "2";
/// A table that is larger is copied by several connections at once, as ours may be.
const SPLIT_LARGER_THAN: &str = "256MB";

/// What must be installed for a contestant, if it is not, with the command that does it.
pub fn missing(contestant: Contestant) -> Option<&'static str> {
    match contestant {
        Contestant::Pgcopydb if !is_in_path("pgcopydb") => {
            Some("pgcopydb is not installed; `apt-get install pgcopydb` (Debian, Ubuntu)")
        }
        _ => None,
    }
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory: PathBuf| directory.join(program).is_file())
}

/// Makes the source keep its log for the reader of this slot.
pub async fn keep_log(stage: &Stage, slot: &str) -> Result<()> {
    let source = stage.source.session(WORK).await?;
    let slot = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    source.batch_execute(&slot).await
}

/// Lets the source send everything up to the last row, and throws it away.
pub fn sender(stage: &Stage, backlog: &Backlog) -> Result<Program> {
    let end = backlog.ends_at.as_deref();
    let end = end.ok_or_else(|| Error("nobody knows where the backlog ends".into()))?;
    let mut command = Command::new(stage.source.program("pg_recvlogical"));
    command.arg("-d").arg(stage.source.server.url(WORK)).args(["-S", SLOT, "--start"]);
    command.args(["--no-loop", "-f", "/dev/null", "-E", end, "-o", "proto_version=1"]);
    command.arg("-o").arg(format!("publication_names={PUBLICATION}"));
    Ok(Program::new("pg_recvlogical", command, stage))
}

/// Proves that the sender's reader has got to the last row.
pub async fn must_have_received(stage: &Stage, backlog: &Backlog) -> Result<()> {
    let end = backlog.ends_at.as_deref().unwrap_or_default();
    let there = format!(
        "SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
    );
    match stage.source.watch.ask(&there).await?.as_deref() {
        Some("t") => Ok(()),
        _ => Err(Error("pg_recvlogical ended before the end of the backlog".into())),
    }
}

/// `pgcopydb clone`.
pub fn pgcopydb(stage: &Stage) -> Program {
    let scratch = stage.scratch.path().join("pgcopydb");
    // It refuses to begin where another one has been.
    let _ = std::fs::remove_dir_all(&scratch);
    let target = stage.target.server.url(&stage.database(Contestant::Pgcopydb));
    let mut command = Command::new("pgcopydb");
    command.args(["clone", "--source", &stage.source.server.url(WORK), "--target", &target]);
    command.args(["--table-jobs", JOBS, "--index-jobs", JOBS]);
    command.args(["--split-tables-larger-than", SPLIT_LARGER_THAN]);
    command.args(["--no-owner", "--no-acl", "--no-comments", "--skip-large-objects"]);
    command.arg("--dir").arg(scratch);
    Program::delegating("pgcopydb", command, stage)
}

/// What `PSQL`, `SOURCE`, `TARGET` and `FORMAT` mean is in the environment.
const PIPE_OF_POSTGRES: &str = r#"set -o pipefail
    "$PSQL" -qX -d "$SOURCE" -c "COPY events TO STDOUT $FORMAT" |
        "$PSQL" -qX -d "$TARGET" -v ON_ERROR_STOP=1 -c "COPY events FROM STDIN $FORMAT""#;

/// As above; a password is in the environment too.
const PIPE_OF_MARIADB: &str = r#"set -o pipefail
    mariadb-dump -h 127.0.0.1 -P "$SOURCE" -u "$ADMIN" --single-transaction "$DATABASE" |
        mariadb -h 127.0.0.1 -P "$TARGET" -u "$ADMIN" "$INTO""#;

/// One program writes the table, another one reads it.
pub fn pipe(stage: &Stage, contestant: Contestant) -> Program {
    let (source, target) = (&stage.source, &stage.target);
    let database = stage.database(contestant);
    let mut command = Command::new("bash");
    match source.engine {
        Engine::Postgres => {
            let is_binary = contestant == Contestant::PipeBinary;
            command.arg("-c").arg(PIPE_OF_POSTGRES).env("PSQL", source.program("psql"));
            command.env("SOURCE", source.server.url(WORK));
            command.env("TARGET", target.server.url(&database));
            command.env("FORMAT", if is_binary { "(FORMAT binary)" } else { "" });
        }
        Engine::Mariadb => {
            command.arg("-c").arg(PIPE_OF_MARIADB).env("MYSQL_PWD", PASSWORD).env("ADMIN", ADMIN);
            command.env("SOURCE", source.server.port().to_string()).env("DATABASE", WORK);
            command.env("TARGET", target.server.port().to_string()).env("INTO", database);
        }
    }
    Program::delegating("pipe", command, stage)
}
