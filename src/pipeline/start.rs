//! From two databases and a state directory to a pipeline that may run: decides where to resume,
//! claims the target, prepares tables and log, and records where the pipeline stands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use connectors::change::{Batch, Checkpoint, TableStatus};
use connectors::error::{Code, Error, Kind, Result};
use connectors::schema::{Evolution, TableName, TableSchema};
use connectors::version::Version;
use connectors::{Claim, Finding, Level, Prepared, Remembered, Resume, Target};
use tracing::{info, warn};

use super::{Pipeline, Session, unless_fenced};
use crate::history;
use crate::persist::{Persist, blocking, state_error};
use crate::resume::{Memories, Start, decide};
use crate::tables::{Tables, shape_changed};

/// What is known once the pipeline may run.
pub(super) struct Ready {
    pub(super) target: Box<dyn Target>,
    pub(super) fence: u64,
    pub(super) checkpoint: Checkpoint,
    pub(super) tables: Tables,
    pub(super) schemas: Vec<Arc<TableSchema>>,
    /// The shapes that the target was prepared for until now, where they were others.
    pub(super) earlier: Vec<Arc<TableSchema>>,
    pub(super) fresh: Vec<TableName>,
    /// Whether the log was begun just now.
    pub(super) new_log: bool,
}

impl Pipeline {
    pub(super) async fn prepare(&self, session: &Session) -> Result<Ready> {
        let (mut target, subscription) =
            tokio::try_join!((self.connect_target)(), self.source.subscription())?;
        // After the source was asked: whoever subscribes has claimed the target before.
        let recalled = target.recall().await?;
        let saved = blocking(|| self.store.checkpoint()).map_err(|error| state_error(&error))?;
        let tasks = blocking(|| self.store.tasks()).map_err(|error| state_error(&error))?;
        let memories = Memories {
            target: recalled.as_ref(),
            saved: saved.as_ref(),
            ledger: tasks.iter().map(|task| task.sequence).max().unwrap_or(0),
            instance: self.store.instance(),
            subscription: subscription.as_deref(),
        };
        let start = decide(memories, session.resync)?;
        let schemas = self.source.tables(&self.tables).await?;
        if !matches!(start, Start::Resume { .. }) {
            self.check_first_start(target.as_mut(), &schemas).await?;
        }
        let claim = Claim {
            instance: self.store.instance().to_owned(),
            fence: session.fence,
            take_over: session.take_over,
        };
        let remembered = target.claim(&claim).await?;
        if session.take_over {
            self.source.evict().await?;
        }
        // Whoever wrote until the claim may have gone on after we had looked.
        let before = recalled.as_ref().and_then(|recalled| recalled.checkpoint.as_ref());
        let start = if remembered.checkpoint.as_ref() == before {
            start
        } else {
            let nobody = "";
            let target = Some(&remembered);
            decide(Memories { target, instance: nobody, ..memories }, session.resync)?
        };
        self.begin(target, remembered, start, schemas).await
    }

    /// A first start changes nothing anywhere unless everything is ready.
    async fn check_first_start(
        &self,
        target: &mut dyn Target,
        schemas: &[Arc<TableSchema>],
    ) -> Result<()> {
        let mut findings = self.source.check(&self.tables).await?;
        findings.extend(target.check(schemas).await?);
        match findings.into_iter().find(|finding| finding.level == Level::Failure) {
            None => Ok(()),
            Some(Finding { code, message, remedy, .. }) if remedy.is_empty() => {
                Err(Error::stop(code.unwrap_or(Code::SourceSettings), message))
            }
            Some(Finding { code, message, remedy, .. }) => {
                let code = code.unwrap_or(Code::SourceSettings);
                Err(Error::stop(code, format!("{message}; run: {remedy}")))
            }
        }
    }

    /// Prepares the tables and the log, and records where the pipeline stands.
    async fn begin(
        &self,
        mut target: Box<dyn Target>,
        remembered: Remembered,
        start: Start,
        schemas: Vec<Arc<TableSchema>>,
    ) -> Result<Ready> {
        self.release_others(target.as_mut(), &remembered, &schemas).await?;
        let relied_upon = self.relied_upon(&remembered, &schemas)?;
        // Before the target is widened: whoever comes after a crash finds only the new shape there.
        let earlier = self.earlier_shapes(&start, &remembered, &schemas)?;
        let tables = Tables::default();
        let mut fresh = Vec::new();
        let mut statuses = BTreeMap::new();
        let copy_all = matches!(start, Start::Resync { .. });
        for schema in &schemas {
            let name = &schema.name;
            let (status, created) =
                prepare_table(target.as_mut(), &remembered, schema, copy_all).await?;
            if created {
                fresh.push(name.clone());
            }
            tables.insert(Arc::clone(schema), status.clone());
            self.status.table_status(name, &status);
            statuses.insert(name.clone(), status);
        }
        let (checkpoint, new_log) = match self.locate(&start, &schemas, &relied_upon).await {
            Ok(located) => located,
            Err(error) => return Err(unless_fenced(target.as_mut(), remembered.fence, error).await),
        };
        if !matches!(start, Start::Resume { ledger_holds: true, .. }) {
            blocking(|| self.store.reset()).map_err(|error| state_error(&error))?;
            history::save(&*self.store, &earlier)?;
        }
        self.keep_only_replicated_tasks(&schemas)?;
        let checkpoint = if new_log || changed(&remembered, &statuses) {
            record(target.as_mut(), checkpoint, statuses).await?
        } else {
            checkpoint
        };
        let mut persist = Persist::new(Arc::clone(&self.store), remembered.fence);
        persist.note(&checkpoint);
        persist.save_when_due(std::time::Duration::ZERO)?;
        info!(position = %checkpoint.position, version = %checkpoint.version, tables = schemas.len(), "pipeline ready");
        let earlier = earlier.into_iter().map(Arc::new).collect();
        let fence = remembered.fence;
        Ok(Ready { target, fence, checkpoint, tables, schemas, earlier, fresh, new_log })
    }

    /// The checkpoint to go on from, and whether the target does not have it yet.
    async fn locate(
        &self,
        start: &Start,
        schemas: &[Arc<TableSchema>],
        relied_upon: &[TableName],
    ) -> Result<(Checkpoint, bool)> {
        let (epoch, sequence) = match start {
            Start::Resume { checkpoint, .. } => {
                let resume = Resume { position: &checkpoint.position, relied_upon };
                self.source.subscribe(schemas, Some(resume)).await?;
                return Ok((checkpoint.clone(), false));
            }
            Start::Fresh => (1, 0),
            Start::Resync { epoch, sequence } => (*epoch, *sequence),
        };
        let position = self.source.subscribe(schemas, None).await?;
        let version = self.source.version_of(&position, epoch)?;
        Ok((Checkpoint { position, version, sequence }, true))
    }

    /// The tables of which rows have been copied: those that are complete, and those with a copy
    /// in the ledger. A table that was dropped and created again is another one.
    fn relied_upon(
        &self,
        remembered: &Remembered,
        schemas: &[Arc<TableSchema>],
    ) -> Result<Vec<TableName>> {
        let tasks = blocking(|| self.store.tasks()).map_err(|error| state_error(&error))?;
        let relied = |schema: &&Arc<TableSchema>| {
            remembered.tables.get(&schema.name).is_some_and(|record| {
                let begun =
                    tasks.iter().any(|task| crate::backfill::task_table(task) == schema.name);
                let copied = match record.status {
                    TableStatus::Live => true,
                    TableStatus::Copying => begun,
                    TableStatus::Stopped { .. } => false,
                };
                copied && record.schema.id == schema.id
            })
        };
        Ok(schemas.iter().filter(relied).map(|schema| schema.name.clone()).collect())
    }

    /// The shapes that rows of the log may still have: those kept in the state directory, and the
    /// ones that the target was prepared for last.
    fn earlier_shapes(
        &self,
        start: &Start,
        remembered: &Remembered,
        schemas: &[Arc<TableSchema>],
    ) -> Result<Vec<TableSchema>> {
        let known = history::recall(&*self.store)?;
        let mut earlier = match start {
            Start::Resume { ledger_holds: true, .. } => known.clone(),
            Start::Resume { .. } | Start::Fresh | Start::Resync { .. } => Vec::new(),
        };
        if matches!(start, Start::Resume { .. }) {
            earlier.extend(remembered.tables.values().map(|record| record.schema.clone()));
        }
        let mut useful: Vec<TableSchema> = Vec::new();
        for past in earlier {
            let leads = schemas.iter().any(|schema| history::leads_to(&past, schema));
            if leads && !useful.contains(&past) {
                useful.push(past);
            }
        }
        if useful != known {
            history::save(&*self.store, &useful)?;
        }
        Ok(useful)
    }

    async fn release_others(
        &self,
        target: &mut dyn Target,
        remembered: &Remembered,
        schemas: &[Arc<TableSchema>],
    ) -> Result<()> {
        let wanted: BTreeSet<&TableName> = schemas.iter().map(|schema| &schema.name).collect();
        let gone: Vec<TableName> =
            remembered.tables.keys().filter(|name| !wanted.contains(name)).cloned().collect();
        if !gone.is_empty() {
            info!(tables = ?gone, "tables are no longer replicated; their rows stay in the target");
            target.release(&gone).await?;
        }
        Ok(())
    }

    fn keep_only_replicated_tasks(&self, schemas: &[Arc<TableSchema>]) -> Result<()> {
        let tasks = blocking(|| self.store.tasks()).map_err(|error| state_error(&error))?;
        for task in tasks {
            let name = crate::backfill::task_table(&task);
            if !schemas.iter().any(|schema| schema.name == name) {
                blocking(|| self.store.remove_task(task.id)).map_err(|e| state_error(&e))?;
            }
        }
        Ok(())
    }
}

/// Makes the target ready for one table; returns its state and whether it was created now.
async fn prepare_table(
    target: &mut dyn Target,
    remembered: &Remembered,
    schema: &Arc<TableSchema>,
    copy_again: bool,
) -> Result<(TableStatus, bool)> {
    let name = &schema.name;
    let record = remembered.tables.get(name);
    if let (Some(record), false) = (record, copy_again) {
        if let stopped @ TableStatus::Stopped { .. } = &record.status {
            warn!(table = %name, "table is stopped; copy it again with `driftless backfill --table {name}`");
            return Ok((stopped.clone(), false));
        }
        let how = match record.schema.evolution(schema) {
            Evolution::Changed(how) => Some(how),
            Evolution::Fewer => Some("a column was dropped".to_owned()),
            Evolution::Same | Evolution::Reordered | Evolution::Added(_) => None,
        };
        if let (Some(how), TableStatus::Live) = (how, &record.status) {
            return Ok((stopped_by(shape_changed(name, &how)), false));
        }
    }
    match target.prepare(schema).await {
        Ok(Prepared::Unchanged) if copy_again => Ok((TableStatus::Copying, false)),
        Ok(Prepared::Unchanged) => {
            Ok((record.map_or(TableStatus::Copying, |record| record.status.clone()), false))
        }
        Ok(Prepared::Created) => Ok((TableStatus::Copying, true)),
        Ok(Prepared::Added(_)) => Ok((TableStatus::Copying, false)),
        // The target cannot take this table as it is now; that is no reason to stop the others.
        Err(error) if record.is_some() && error.code == Code::TargetShape => {
            Ok((stopped_by(error), false))
        }
        Err(Error { kind: Kind::Table(_), code, message }) => Err(Error::stop(code, message)),
        Err(error) => Err(error),
    }
}

fn stopped_by(error: Error) -> TableStatus {
    TableStatus::Stopped { code: error.code, message: error.message, version: Version::ZERO }
}

fn changed(remembered: &Remembered, statuses: &BTreeMap<TableName, TableStatus>) -> bool {
    statuses.iter().any(|(name, status)| {
        remembered.tables.get(name).is_none_or(|record| record.status != *status)
    })
}

/// Records a checkpoint and the tables' states without rows.
async fn record(
    target: &mut dyn Target,
    checkpoint: Checkpoint,
    status: BTreeMap<TableName, TableStatus>,
) -> Result<Checkpoint> {
    let Checkpoint { position, version, sequence } = checkpoint;
    let checkpoint = Checkpoint { position, version, sequence: sequence + 1 };
    let batch =
        Batch { checkpoint: checkpoint.clone(), floor: version, tables: Vec::new(), status };
    target.apply(&batch).await?;
    Ok(checkpoint)
}
