//! Proves that source and target are equal, table by table, through the contract alone.
//!
//! `scan.rs` walks the source and then the target and collects suspects; `settle.rs` looks at the
//! suspects again until each is proven equal or proven different; `pace.rs` waits for the target
//! in between; `report.rs` says what came out. `cli/verify.rs` calls all of it.
//!
//! Surprise: a difference that is seen once means nothing, because changes are in flight. Only
//! one that is still there after the target has applied everything up to a marker, twice, counts.

mod pace;
mod report;
mod scan;
mod settle;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use connectors::change::{Key, TableStatus};
use connectors::error::{Code, Error, Kind, Result};
use connectors::schema::{Evolution, TableName, TablePatterns, TableSchema};
use connectors::{Remembered, RowReader, Source, Target};
use tracing::info;

use self::pace::Pace;
pub use self::report::{Differences, Found, Listed, Outcome, Report, TableReport};

/// What to compare, and how much of it at a time.
#[derive(Clone, Debug)]
pub struct Options {
    /// The pipeline's name, for the report.
    pub pipeline: String,
    /// The tables that the pipeline replicates.
    pub tables: TablePatterns,
    /// Only those of them that match; all when absent.
    pub only: Option<TablePatterns>,
    /// Rows of one chunk are about this many bytes at most.
    pub chunk_bytes: usize,
    /// Whether a daemon replicates this pipeline meanwhile, so that waiting for it makes sense.
    pub daemon_runs: bool,
}

/// How far the comparison of a table has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scanned<'a> {
    /// The table.
    pub table: &'a TableName,
    /// Source rows compared so far.
    pub rows: u64,
    /// About how many there are.
    pub rows_estimated: u64,
    /// Whether this is the last word about the table.
    pub done: bool,
}

/// Told of every step.
pub type OnProgress<'a> = Box<dyn FnMut(Scanned<'_>) + Send + 'a>;

/// One comparison of a source with its target.
pub struct Verifier<'a> {
    source: &'a dyn Source,
    reader: Box<dyn RowReader>,
    target: &'a mut dyn Target,
    options: Options,
    pace: Pace,
    on_progress: OnProgress<'a>,
}

impl<'a> Verifier<'a> {
    /// Connects to the source for reading.
    ///
    /// # Errors
    /// The connections.
    pub async fn open(
        source: &'a dyn Source,
        target: &'a mut dyn Target,
        options: Options,
    ) -> Result<Verifier<'a>> {
        let reader = source.reader().await?;
        let checkpoint = target.recall().await?.and_then(|remembered| remembered.checkpoint);
        let pace = Pace::new(options.daemon_runs, checkpoint);
        Ok(Verifier { source, reader, target, options, pace, on_progress: Box::new(|_| {}) })
    }

    /// The same, telling how far it has come.
    #[must_use]
    pub fn telling(self, on_progress: OnProgress<'a>) -> Verifier<'a> {
        Verifier { on_progress, ..self }
    }

    /// Compares every row of every table that was asked for.
    ///
    /// # Errors
    /// The connections; that a pattern matches no table. A table that alone cannot be read is
    /// part of the report instead.
    pub async fn compare_tables(&mut self) -> Result<Report> {
        let started = Instant::now();
        let schemas = self.selected().await?;
        let remembered = self.target.recall().await?;
        let mut tables = self.vanished(&schemas, remembered.as_ref());
        for schema in &schemas {
            tables.push(self.compare_table(schema, remembered.as_ref()).await?);
        }
        tables.sort_by(|a, b| a.table.cmp(&b.table));
        let notes = self.notes().await?;
        Ok(Report::new(&self.options.pipeline, tables, notes, started.elapsed()))
    }

    /// Looks at some keys of one table again, after they have been repaired.
    ///
    /// # Errors
    /// As `compare_tables`; also that the table cannot be read.
    pub async fn compare_keys(&mut self, table: &TableName, keys: &[Key]) -> Result<Differences> {
        let missing = || {
            Error::table(table, Code::MissingTable, format!("table {table} is gone at the source"))
        };
        let schemas = self.selected().await?;
        let schema = schemas.iter().find(|schema| schema.name == *table).ok_or_else(missing)?;
        let remembered = self.target.recall().await?;
        self.pace.begin_again(remembered.as_ref().and_then(|known| known.checkpoint.clone()));
        let schema = match self.provable(schema, remembered.as_ref()).await? {
            Ok(schema) => schema,
            Err(reason) => return Err(Error::table(table, Code::SchemaChange, reason.to_string())),
        };
        let mut differences = Differences::default();
        for keys in keys.chunks(settle::SUSPECTS_MAX) {
            let mut suspects = settle::Suspects::default();
            keys.iter().for_each(|key| suspects.add(key.clone(), key.clone()));
            self.settle(&schema, &mut suspects, &mut differences).await?;
        }
        Ok(differences)
    }

    /// The tables to compare, as the source has them now.
    async fn selected(&mut self) -> Result<Vec<Arc<TableSchema>>> {
        let mut schemas = self.source.tables(&self.options.tables).await?;
        if let Some(only) = &self.options.only {
            let names: Vec<TableName> = schemas.iter().map(|schema| schema.name.clone()).collect();
            if let Some(unmatched) = only.unmatched(&names).first() {
                return Err(Error::stop(
                    Code::Configuration,
                    format!(
                        "--table {unmatched} matches no table of pipeline {}; `driftless status` \
                         lists them",
                        self.options.pipeline
                    ),
                ));
            }
            schemas.retain(|schema| only.matches(&schema.name));
        }
        Ok(schemas)
    }

    /// The tables that the target has of this pipeline and the source has no longer.
    fn vanished(
        &self,
        schemas: &[Arc<TableSchema>],
        remembered: Option<&Remembered>,
    ) -> Vec<TableReport> {
        let asked = |name: &TableName| {
            self.options.tables.matches(name)
                && self.options.only.as_ref().is_none_or(|only| only.matches(name))
        };
        remembered
            .iter()
            .flat_map(|remembered| remembered.tables.keys())
            .filter(|name| asked(name) && !schemas.iter().any(|schema| schema.name == **name))
            .map(|name| {
                let reason = Unproven {
                    reason: "the target has it, the source has no such table (any more)".into(),
                    remedy: format!(
                        "exclude it (tables = [..., \"!{name}\"]), or create it again at the source"
                    ),
                };
                TableReport::unproven(name, self.target.table_name(name), reason)
            })
            .collect()
    }

    async fn compare_table(
        &mut self,
        schema: &Arc<TableSchema>,
        remembered: Option<&Remembered>,
    ) -> Result<TableReport> {
        let target_name = self.target.table_name(&schema.name);
        let schema = match self.provable(schema, remembered).await? {
            Ok(schema) => schema,
            Err(reason) => return Ok(TableReport::unproven(&schema.name, target_name, reason)),
        };
        let report = match self.scan(&schema).await {
            Ok(report) => report,
            // Of this table nothing can be said; of the others much.
            Err(Error { kind: Kind::Table(_), message, .. }) => {
                let remedy = "`driftless check`, then `driftless verify` again".into();
                let reason = Unproven { reason: message, remedy };
                TableReport::unproven(&schema.name, target_name, reason)
            }
            Err(error) => return Err(error.context(format!("verify {}", schema.name))),
        };
        info!(
            table = %schema.name,
            rows = report.rows,
            equal = report.outcome == Outcome::Equal,
            elapsed_ms = report.elapsed_ms,
            "table compared"
        );
        Ok(report)
    }

    /// The shape in which both sides can be read, or why the table cannot be proven equal.
    async fn provable(
        &mut self,
        schema: &Arc<TableSchema>,
        remembered: Option<&Remembered>,
    ) -> Result<std::result::Result<Arc<TableSchema>, Unproven>> {
        let name = &schema.name;
        let Some(record) = remembered.and_then(|remembered| remembered.tables.get(name)) else {
            return Ok(Err(Unproven {
                reason: "the target knows nothing of it: it has not been replicated yet".into(),
                remedy: "`driftless run --until-current`".into(),
            }));
        };
        match &record.status {
            TableStatus::Live => {}
            TableStatus::Copying => {
                return Ok(Err(Unproven {
                    reason: "its first copy is not complete".into(),
                    remedy: "`driftless run --until-current`, then `driftless verify` again".into(),
                }));
            }
            TableStatus::Stopped { code, message, .. } => {
                return Ok(Err(Unproven {
                    reason: format!("it is stopped [{code}]: {message}"),
                    remedy: format!("mend that, then `driftless backfill --table {name}`"),
                }));
            }
        }
        match record.schema.evolution(schema) {
            Evolution::Same | Evolution::Reordered | Evolution::Fewer => Ok(Ok(schema.clone())),
            Evolution::Added(columns) => self.without_added(schema, &record.schema, &columns).await,
            Evolution::Changed(what) => Ok(Err(Unproven {
                reason: format!("its shape changed at the source: {what}"),
                remedy: "`driftless run` stops this table and names the command that mends it"
                    .into(),
            })),
        }
    }

    /// A column that the target does not have yet is as good as NULL there, which is right as
    /// long as the source has nothing but NULL in it either.
    async fn without_added(
        &mut self,
        schema: &Arc<TableSchema>,
        known: &TableSchema,
        columns: &[String],
    ) -> Result<std::result::Result<Arc<TableSchema>, Unproven>> {
        if !self.reader.any_value(schema, columns).await? {
            return Ok(Ok(Arc::new(known.clone())));
        }
        Ok(Err(Unproven {
            reason: format!(
                "the source has values in columns that the target does not have yet: {}",
                columns.join(", ")
            ),
            remedy: "`driftless run`; the columns follow with the table's next change".into(),
        }))
    }

    /// What a reader must know to judge the differences.
    async fn notes(&mut self) -> Result<Vec<String>> {
        let Some(mut note) = self.pace.note() else { return Ok(Vec::new()) };
        let remembered = self.target.recall().await?;
        if let Some(checkpoint) = remembered.and_then(|remembered| remembered.checkpoint) {
            let lag_bytes = self.source.lag_bytes(&checkpoint.position).await?;
            note.push_str(&format!(
                "; the target stands at {}, {lag_bytes} bytes of log behind the source",
                checkpoint.position
            ));
        }
        note.push_str("; `driftless run --until-current` applies what is missing");
        Ok(vec![note])
    }
}

/// Why a table cannot be proven equal, and what to type next.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unproven {
    reason: String,
    remedy: String,
}

impl std::fmt::Display for Unproven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; {}", self.reason, self.remedy)
    }
}

/// The keys of every table that a repair can mend.
#[must_use]
pub fn repairable(report: &Report) -> BTreeMap<TableName, Vec<Key>> {
    report
        .tables
        .iter()
        .map(|table| (table.name.clone(), table.differences.repairable()))
        .filter(|(_, keys)| !keys.is_empty())
        .collect()
}
