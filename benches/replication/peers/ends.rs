//! The two ends of a drain without anything between them: one session reads the backlog in bulk and
//! throws it away, while another one loads the same rows, in binary, from a file that was written before
//! the clock runs. No program that reads the log so and writes rows so can be faster on this machine.
//!
//! Surprise: it replicates nothing, but its target ends with the same rows, and is compared as all are.

use std::process::{Command, Stdio};

use driftless::demo::{Error, Result};

use super::program::Program;
use crate::contestant::Contestant;
use crate::sides::postgres::PUBLICATION;
use crate::sides::{FINISHED, WORK};
use crate::stage::Stage;

/// The slot that is read.
pub const SLOT: &str = "both_ends";

/// What is in capitals is in the environment.
const BOTH: &str = r#"
    "$PSQL" -qX -d "$SOURCE" -v ON_ERROR_STOP=1 -c "COPY (SELECT lsn, xid, data FROM
        pg_logical_slot_peek_binary_changes('$SLOT', NULL, NULL, 'proto_version', '1',
        'publication_names', '$PUBLICATION')) TO STDOUT (FORMAT binary)" > /dev/null &
    "$PSQL" -qX -d "$TARGET" -v ON_ERROR_STOP=1 -c "COPY events FROM STDIN (FORMAT binary)" \
        -c "$FINISHED" < "$ROWS" && wait $!"#;

/// Reads the backlog and loads its rows at once. Writes the file.
pub fn both(stage: &Stage) -> Result<Program> {
    let (source, rows) = (stage.source.server.url(WORK), stage.scratch.path().join("rows"));
    let failed = |error: std::io::Error| Error(format!("write {}: {error}", rows.display()));
    let mut write = Command::new(stage.source.program("psql"));
    write.args(["-qX", "-d", &source, "-c", "COPY events TO STDOUT (FORMAT binary)"]);
    write.stdin(Stdio::null()).stdout(std::fs::File::create(&rows).map_err(failed)?);
    let output = write.output().map_err(failed)?;
    if !output.status.success() {
        return Err(Error(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    let mut command = Command::new("bash");
    command.arg("-c").arg(BOTH).env("PSQL", stage.source.program("psql")).env("ROWS", rows);
    command.env("SLOT", SLOT).env("PUBLICATION", PUBLICATION).env("FINISHED", FINISHED);
    command.env("SOURCE", source);
    command.env("TARGET", stage.target.server.url(&stage.database(Contestant::BothEnds)));
    Ok(Program::delegating("both-ends", command, stage))
}
