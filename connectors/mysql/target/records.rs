//! What `_cdc_checkpoint` holds: the checkpoint of each pipeline and the tables that it
//! replicates; and how values of our own statements are read.

use mysql_async::{Row, Value};

use super::MysqlTarget;
use crate::change::Checkpoint;
use crate::error::{Code, Error, Result};
use crate::mysql::sql;
use crate::records::Records;
use crate::version::{Position, Version};
use crate::{Remembered, TableRecord};

impl MysqlTarget {
    /// What is recorded of this pipeline; changes nothing.
    pub(super) async fn remembered(&mut self) -> Result<Option<Remembered>> {
        if !self.has_own_tables().await? {
            return Ok(None);
        }
        let query = sql::recorded(&self.writer.options.pipeline, false);
        let rows = self.writer.session.query("read the checkpoint", &query).await?;
        rows.first().map(|row| read_remembered(&self.writer.options.pipeline, row)).transpose()
    }

    pub(super) async fn has_own_tables(&mut self) -> Result<bool> {
        let rows = self.writer.session.query("look for the checkpoint", sql::OWN_TABLES).await?;
        rows.first().map_or(Ok(false), |row| Ok(number(row, 0)? == 2))
    }

    /// Every other pipeline with the tables that it writes into this database.
    pub(super) async fn others(&mut self) -> Result<Vec<(String, Records)>> {
        let query = format!(
            "SELECT `pipeline`, `tables` FROM `{}` WHERE `pipeline` <> {}",
            sql::CHECKPOINT,
            sql::text(&self.writer.options.pipeline)
        );
        let rows = self.writer.session.query("read tables of other pipelines", &query).await?;
        let read = |row: &Row| {
            let pipeline = text(row, 0)?;
            let records = parse_tables(&pipeline, &text(row, 1)?)?;
            Ok((pipeline, records))
        };
        rows.iter().map(read).collect()
    }
}

fn read_remembered(pipeline: &str, row: &Row) -> Result<Remembered> {
    Ok(Remembered {
        fence: number(row, 0)?,
        instance: text(row, 1)?,
        tables: parse_tables(pipeline, &text(row, 2)?)?,
        checkpoint: read_checkpoint(pipeline, row, 3)?,
    })
}

/// A checkpoint from sequence, position and version, in columns that begin at this one.
pub fn read_checkpoint(pipeline: &str, row: &Row, first: usize) -> Result<Option<Checkpoint>> {
    match (optional(row, first + 1)?, optional(row, first + 2)?) {
        (None, None) => Ok(None),
        (Some(position), Some(version)) => {
            let position = std::str::from_utf8(position).map_err(|_| damaged(pipeline))?;
            Ok(Some(Checkpoint {
                position: Position(position.to_owned()),
                version: Version::from_bytes(version).ok_or_else(|| damaged(pipeline))?,
                sequence: number(row, first)?,
            }))
        }
        _ => Err(damaged(pipeline)),
    }
}

fn parse_tables(pipeline: &str, json: &str) -> Result<Records> {
    let list: Vec<TableRecord> = serde_json::from_str(json).map_err(|_| damaged(pipeline))?;
    Ok(list.into_iter().map(|record| (record.schema.name.clone(), record)).collect())
}

fn damaged(pipeline: &str) -> Error {
    let message = format!(
        "the record of pipeline {pipeline} in {} cannot be read; restore the target, or run \
         `driftless teardown` and start again with an empty one",
        sql::CHECKPOINT
    );
    Error::stop(Code::TargetLost, message)
}

/// A column's bytes, or that it is NULL.
pub fn optional(row: &Row, index: usize) -> Result<Option<&[u8]>> {
    match row.as_ref(index) {
        Some(Value::Bytes(bytes)) => Ok(Some(bytes)),
        Some(Value::NULL) => Ok(None),
        Some(_) | None => Err(unexpected(index)),
    }
}

/// A column of a row that our own statement always fills.
pub fn bytes(row: &Row, index: usize) -> Result<&[u8]> {
    optional(row, index)?.ok_or_else(|| unexpected(index))
}

/// The same, of a text.
pub fn text(row: &Row, index: usize) -> Result<String> {
    let text = std::str::from_utf8(bytes(row, index)?).map_err(|_| unexpected(index))?;
    Ok(text.to_owned())
}

/// The same, of a number that is not negative.
pub fn number(row: &Row, index: usize) -> Result<u64> {
    let text = std::str::from_utf8(bytes(row, index)?).map_err(|_| unexpected(index))?;
    text.parse().map_err(|_| unexpected(index))
}

fn unexpected(index: usize) -> Error {
    Error::stop(Code::Protocol, format!("the target sent no column {index} that makes sense"))
}
