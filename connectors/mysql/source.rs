//! MySQL or MariaDB as a source: the contract's methods, each a few lines over the files beside it.
//!
//! Surprise: each method opens its own session and closes it; only the stream and the readers
//! keep theirs. A session of a source that is asked once a minute would be in its way.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use super::bookmark::Bookmark;
use super::check::{self, Wanted};
use super::chunk::Reader;
use super::config::Config;
use super::connect::{self, Role, Session};
use super::replica::Replica;
use super::stream::{Opening, Stream};
use super::visibility::Progress;
use super::{catalog, source_sql as sql, subscribe};
use crate::error::{Code, Error, Result};
use crate::schema::{TableName, TablePatterns, TableSchema};
use crate::version::{Position, Version};
use crate::{ChangeStream, Finding, Resume, RowReader, Source, SourceOptions, ZeroDates};

/// A MySQL or MariaDB server whose log we read, for one pipeline.
pub struct MysqlSource {
    config: Arc<Config>,
    replica: Replica,
    part_bytes: usize,
    spool: PathBuf,
    zero_dates: ZeroDates,
    accept_cascades: bool,
    progress: Arc<Progress>,
}

/// A source; nothing is connected yet.
///
/// # Errors
/// `configuration`, for a URL that cannot be read.
pub fn source(url: &str, options: &SourceOptions) -> Result<MysqlSource> {
    let config = Arc::new(Config::parse(url)?);
    Ok(MysqlSource {
        replica: Replica::of(options, &config),
        config,
        part_bytes: options.part_bytes,
        spool: options.spool.clone(),
        zero_dates: options.zero_dates,
        accept_cascades: options.accept_cascades,
        progress: Arc::default(),
    })
}

impl MysqlSource {
    async fn session(&self) -> Result<Session> {
        connect::connect(&self.config, Role::Source).await
    }
}

#[async_trait]
impl Source for MysqlSource {
    async fn check(&self, tables: &TablePatterns) -> Result<Vec<Finding>> {
        let wanted = Wanted { replica: &self.replica, accept_cascades: self.accept_cascades };
        check::check(&mut self.session().await?, &wanted, tables).await
    }

    async fn tables(&self, tables: &TablePatterns) -> Result<Vec<Arc<TableSchema>>> {
        let mut session = self.session().await?;
        let matching = catalog::matching(&mut session, tables).await?;
        let refuse_cascades = check::refused_cascades(&mut session, self.accept_cascades).await?;
        let mut schemas = Vec::new();
        for table in &matching {
            if refuse_cascades {
                table.without_cascades()?;
            }
            schemas.push(Arc::new(table.schema()?));
        }
        Ok(schemas)
    }

    async fn subscribe(
        &self,
        tables: &[Arc<TableSchema>],
        resume: Option<Resume<'_>>,
    ) -> Result<Position> {
        let mut session = self.session().await?;
        if let Some(Resume { position, .. }) = resume {
            // The log has the changes of all tables, so there is nothing to add for new ones.
            subscribe::prove(&mut session, &Bookmark::read(position)?).await?;
            return Ok(position.clone());
        }
        let names: Vec<TableName> = tables.iter().map(|table| table.name.clone()).collect();
        let current = catalog::by_names(&mut session, &names).await?;
        if let Some(gone) = names.iter().find(|name| !current.iter().any(|now| now.name == **name))
        {
            // Whoever asked looks at the tables again before the next try.
            let message = format!("table {gone} was dropped or renamed just now");
            return Err(Error::transient(Code::MissingTable, message));
        }
        Ok(subscribe::begin(&mut session).await?.position())
    }

    /// A server keeps its log for nobody in particular.
    async fn subscription(&self) -> Result<Option<String>> {
        Ok(None)
    }

    /// Nothing was made.
    async fn unsubscribe(&self) -> Result<()> {
        Ok(())
    }

    async fn evict(&self) -> Result<()> {
        self.replica.evict(&self.config).await
    }

    async fn stream(
        &self,
        from: &Position,
        epoch: u32,
        tables: &[Arc<TableSchema>],
        earlier: &[Arc<TableSchema>],
    ) -> Result<Box<dyn ChangeStream>> {
        let opening = Opening {
            config: &self.config,
            replica: &self.replica,
            from: Bookmark::read(from)?,
            tables,
            earlier,
            epoch,
            part_bytes: self.part_bytes,
            spool: &self.spool,
            zero_dates: self.zero_dates,
            progress: self.progress.clone(),
        };
        Ok(Box::new(Stream::open(opening).await?))
    }

    fn version_of(&self, position: &Position, epoch: u32) -> Result<Version> {
        Bookmark::read(position)?.version(epoch)
    }

    /// Nothing needs to be written: the server's heartbeats say when the end of the log has been
    /// reached, and `ticks.rs` tells one reading of that place from another.
    async fn mark(&self, epoch: u32) -> Result<Version> {
        let end = subscribe::end(&mut self.session().await?).await?;
        Ok(Version::at_log(epoch, end.log()?).with_ordinal(self.progress.ticks.mark()))
    }

    async fn lag_bytes(&self, position: &Position) -> Result<u64> {
        let ours = Bookmark::read(position)?;
        let files = subscribe::files(&mut self.session().await?).await?;
        Ok(subscribe::bytes_beyond(&ours.place, &files))
    }

    async fn estimate_rows(&self, table: &TableSchema) -> Result<u64> {
        let mut session = self.session().await?;
        let rows = session.query("estimate the rows", &sql::estimate(&table.name)).await?;
        rows.first().map_or(Ok(0), |row| catalog::number(row, 0))
    }

    async fn reader(&self) -> Result<Box<dyn RowReader>> {
        let (config, progress) = (self.config.clone(), self.progress.clone());
        Ok(Box::new(Reader::open(config, progress, self.zero_dates).await?))
    }
}

#[cfg(test)]
mod tests;
