//! What our own tables hold: the checkpoint of each pipeline and the tables that it replicates.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::change::Checkpoint;
use crate::error::{Code, Error, Result};
pub(super) use crate::records::Records;
use crate::sqlite::failure::Sql;
use crate::sqlite::store::has_own_tables;
use crate::version::{Position, Version};
use crate::{Remembered, TableRecord};

/// What is recorded of a pipeline; `None` if it was never claimed here.
pub(super) fn remembered(connection: &Connection, pipeline: &str) -> Result<Option<Remembered>> {
    const DOING: &str = "read checkpoint";
    if !has_own_tables(connection)? {
        return Ok(None);
    }
    let sql = "SELECT position, version, sequence, fence, instance, tables \
               FROM _cdc_checkpoint WHERE pipeline = ?1";
    let mut statement = connection.prepare_cached(sql).sql(DOING)?;
    let found = statement.query_row([pipeline], stored).optional().sql(DOING)?;
    found.map(|stored| stored.read(pipeline)).transpose()
}

/// The tables of a pipeline; empty if it was never claimed here.
pub(super) fn tables(connection: &Connection, pipeline: &str) -> Result<Records> {
    Ok(remembered(connection, pipeline)?.map(|found| found.tables).unwrap_or_default())
}

/// Every other pipeline with the tables that it writes into this file.
pub(super) fn others(connection: &Connection, pipeline: &str) -> Result<Vec<(String, Records)>> {
    const DOING: &str = "read tables of other pipelines";
    if !has_own_tables(connection)? {
        return Ok(Vec::new());
    }
    let sql = "SELECT pipeline, tables FROM _cdc_checkpoint WHERE pipeline <> ?1";
    let mut statement = connection.prepare_cached(sql).sql(DOING)?;
    let mut rows = statement.query([pipeline]).sql(DOING)?;
    let mut others = Vec::new();
    while let Some(row) = rows.next().sql(DOING)? {
        let (name, tables): (String, String) = (row.get(0).sql(DOING)?, row.get(1).sql(DOING)?);
        let records = parse(&name, &tables)?;
        others.push((name, records));
    }
    Ok(others)
}

/// Records the tables of a pipeline.
pub(super) fn save_tables(
    connection: &Connection,
    pipeline: &str,
    records: &Records,
) -> Result<()> {
    // The name is in each record's schema; a list needs no text form of a two-part name.
    let list: Vec<&TableRecord> = records.values().collect();
    let json = serde_json::to_string(&list)
        .map_err(|error| Error::stop(Code::Internal, format!("write table records: {error}")))?;
    let sql = "UPDATE _cdc_checkpoint SET tables = ?2 WHERE pipeline = ?1";
    let mut statement = connection.prepare_cached(sql).sql("save tables")?;
    statement.execute(params![pipeline, json]).sql("save tables")?;
    Ok(())
}

struct Stored {
    position: Option<String>,
    version: Option<Vec<u8>>,
    sequence: i64,
    fence: i64,
    instance: String,
    tables: String,
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    Ok(Stored {
        position: row.get(0)?,
        version: row.get(1)?,
        sequence: row.get(2)?,
        fence: row.get(3)?,
        instance: row.get(4)?,
        tables: row.get(5)?,
    })
}

impl Stored {
    fn read(self, pipeline: &str) -> Result<Remembered> {
        let checkpoint = match (self.position, self.version) {
            (None, None) => None,
            (Some(position), Some(version)) => Some(Checkpoint {
                position: Position(position),
                version: Version::from_bytes(&version)
                    .ok_or_else(|| damaged(pipeline, "its version is not 16 bytes"))?,
                sequence: self.sequence.cast_unsigned(),
            }),
            _ => return Err(damaged(pipeline, "only one of position and version is there")),
        };
        Ok(Remembered {
            checkpoint,
            fence: self.fence.cast_unsigned(),
            instance: self.instance,
            tables: parse(pipeline, &self.tables)?,
        })
    }
}

fn parse(pipeline: &str, json: &str) -> Result<Records> {
    let list: Vec<TableRecord> = serde_json::from_str(json)
        .map_err(|error| damaged(pipeline, &format!("its tables cannot be read: {error}")))?;
    Ok(list.into_iter().map(|record| (record.schema.name.clone(), record)).collect())
}

fn damaged(pipeline: &str, reason: &str) -> Error {
    Error::stop(
        Code::TargetLost,
        format!(
            "the record of pipeline {pipeline} in _cdc_checkpoint is damaged or of another \
             release of driftless: {reason}; restore the target from a backup"
        ),
    )
}
