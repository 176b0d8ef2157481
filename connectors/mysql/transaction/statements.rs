//! What the builder makes of statements: the ends of transactions, savepoints, the decisions about
//! XA transactions, and what happens to tables without row events.

use super::xa::Coming;
use super::{Builder, Step, halted, outside, wrong};
use crate::change::{Change, Transaction};
use crate::error::{Code, Error, Result};
use crate::mysql::binlog::{Gtid, Header, MariadbKind, Query};
use crate::mysql::ddl::{Effect, Statement};
use crate::mysql::shapes::Resolved;
use crate::schema::TableName;

impl Builder {
    pub(super) fn query(&mut self, header: &Header, query: &Query<'_>) -> Result<Step> {
        let statement = Statement::read(query);
        if self.open.is_none() {
            // Dummies in place of events that we are not sent.
            return match statement {
                Statement::Nothing => Ok(Step::Taken(None)),
                _ => Err(outside()),
            };
        }
        if self.is_unfinished() {
            self.advance(header)?;
            return self.commit().map(Step::Taken);
        }
        if let Some(ask) = self.question(&statement) {
            return Ok(Step::Ask(ask));
        }
        if let Some(step) = self.before(&Coming::of_statement(&statement))? {
            return Ok(step);
        }
        self.advance(header)?;
        let part = self.statement(statement)?;
        let is_over = self.open.as_ref().is_some_and(|open| !open.has_events);
        if !is_over {
            return Ok(Step::Taken(part));
        }
        // What is left of it is never more than one part.
        self.commit().map(Step::Taken)
    }

    /// The first half of an ALTER in two phases, or the end of one that failed.
    fn is_unfinished(&self) -> bool {
        let gtid = self.open.as_ref().map(|open| &open.gtid);
        matches!(gtid, Some(Gtid::Mariadb { kind: MariadbKind::Unfinished, .. }))
    }

    /// The table about which the catalog must be asked before the statement is taken.
    fn question(&mut self, statement: &Statement) -> Option<TableName> {
        let Statement::Tables(effects) = statement else { return None };
        for (table, effect) in effects {
            let Some(table) = self.shapes.followed(table).cloned() else { continue };
            if self.shapes.needs_answer(&table, effect) {
                return Some(table);
            }
        }
        None
    }

    fn statement(&mut self, statement: Statement) -> Result<Option<Transaction>> {
        let open = self.open.as_mut().ok_or_else(outside)?;
        match statement {
            Statement::Nothing | Statement::XaEnd => Ok(None),
            Statement::Begin => {
                open.has_events = true;
                Ok(None)
            }
            Statement::XaStart => {
                (open.has_events, open.is_xa) = (true, true);
                Ok(None)
            }
            Statement::Commit => self.commit(),
            Statement::Rollback => self.roll_back(),
            Statement::Savepoint(name) => {
                open.savepoint(name);
                Ok(None)
            }
            Statement::RollbackTo(name) => {
                let late = open.roll_back_to(&name)?;
                self.with_open(|builder, open| builder.halt_late(open, late))
            }
            Statement::XaCommit(xid) => self.xa_commit(&xid),
            // One of a time before ours was not applied either.
            Statement::XaRollback(xid) => {
                self.decide(&xid);
                Ok(None)
            }
            Statement::Tables(effects) => self.tables(&effects),
            Statement::DropDatabase(database) => {
                let tables = self.shapes.of_database(&database);
                self.halt_all(tables, Code::SchemaChange, |table| {
                    halted(table, "was dropped with its database")
                })
            }
            Statement::Write(table) => self.write(&[table]),
            Statement::WriteAny(tables) => self.write(&tables),
            Statement::Unknown => Err(statement_dml("is not understood")),
        }
    }

    fn roll_back(&mut self) -> Result<Option<Transaction>> {
        self.with_open(|builder, open| {
            let late = open.roll_back();
            builder.halt_late(open, late)
        })?;
        self.commit()
    }

    /// Works on the open transaction, which is put back.
    fn with_open(
        &mut self,
        work: impl FnOnce(&mut Builder, &mut super::Open) -> Result<()>,
    ) -> Result<Option<Transaction>> {
        let mut open = self.open.take().ok_or_else(outside)?;
        let result = work(self, &mut open);
        self.open = Some(open);
        result.map(|()| None)
    }

    fn tables(&mut self, effects: &[(TableName, Effect)]) -> Result<Option<Transaction>> {
        let mut part = None;
        for (table, effect) in effects {
            let Some(table) = self.shapes.followed(table).cloned() else {
                continue;
            };
            match self.shapes.alter(&table, effect) {
                Resolved::Done => {}
                Resolved::Halt(table, why) => {
                    let message = halted(&table, &why);
                    part = self.halt(&table, Code::SchemaChange, &message)?.or(part);
                }
                Resolved::Ask(_) => return Err(wrong("a table is asked for twice")),
            }
            if *effect == Effect::Truncate
                && let Some(table) = self.shapes.schema(&table)
            {
                part = self.next_part()?.or(part);
                self.open.as_mut().ok_or_else(outside)?.push(Change::Truncate { table })?;
            }
        }
        Ok(part)
    }

    fn halt_all(
        &mut self,
        tables: Vec<TableName>,
        code: Code,
        why: impl Fn(&TableName) -> String,
    ) -> Result<Option<Transaction>> {
        let mut part = None;
        for table in tables {
            part = self.halt(&table, code, &why(&table))?.or(part);
        }
        Ok(part)
    }

    /// Rows of one of these tables were changed by a statement. A table of another database than
    /// the replicated ones is nobody's business, as that of a tool which compares replicas; one
    /// beside replicated tables may be a view of them, or have triggers.
    fn write(&mut self, tables: &[TableName]) -> Result<Option<Transaction>> {
        let followed: Vec<TableName> =
            tables.iter().filter_map(|table| self.shapes.followed(table).cloned()).collect();
        if !followed.is_empty() {
            return self.halt_all(followed, Code::StatementDml, |table| {
                format!(
                    "table {table} was changed by a session in statement format, so the rows are \
                     not in the log; see that no session sets `binlog_format`, then run \
                     `driftless backfill --table {table}`"
                )
            });
        }
        let beside = tables.iter().any(|table| self.shapes.has_database(&table.schema));
        match beside {
            true => Err(statement_dml("changes rows beside replicated tables")),
            false => Ok(None),
        }
    }
}

fn statement_dml(what: &str) -> Error {
    Error::stop(
        Code::StatementDml,
        format!(
            "the binary log has a statement that {what}, where it should have rows; run \
             `SET GLOBAL binlog_format = 'ROW'`, end the sessions that set it themselves, then run \
             `driftless run --resync`"
        ),
    )
}
