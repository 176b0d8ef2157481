//! Writes rows as upserts: as literals, many rows to a statement; or, where the server runs a prepared
//! statement for many rows in one command (MariaDB), as parameters, at little more than half the cost
//! for it. Called by `rows.rs`.
//!
//! Surprise: while the server works on one command, the rows of the next one are got ready.

use mysql_async::Value;
use tokio::task::yield_now;

use super::records::bytes;
use super::rows::poison;
use super::writer::Writer;
use crate::change::{Cell, Key, Row, RowUpsert, Timestamp};
use crate::error::{Code, Error, Result};
use crate::mysql::parameters::{self, Command};
use crate::mysql::spelling::Spelling;
use crate::mysql::sql::{TableSql, Upsert};
use crate::mysql::target_values::encode;
use crate::version::Version;

/// The most rows of a statement that writes; more gain nothing.
pub const ROWS_MAX: usize = 1000;
/// A statement that is longer gets no more rows.
pub const STATEMENT_BYTES: usize = 1024 * 1024;
/// How many rows are got ready before the server is listened to again.
const ROWS_AT_A_TIME: usize = 50;

/// One row, with the columns that a statement mentions.
pub struct Written<'a> {
    /// Its key.
    pub key: &'a Key,
    /// The row; `None` if only the columns of the key are mentioned.
    pub row: Option<&'a Row>,
    /// When it was committed.
    pub updated_at: Timestamp,
    /// Its version.
    pub version: Version,
    /// Whether it is marked as deleted.
    pub deleted: bool,
}

impl<'a> From<&'a RowUpsert> for Written<'a> {
    fn from(upsert: &'a RowUpsert) -> Written<'a> {
        let &RowUpsert { ref key, ref row, updated_at, version, .. } = upsert;
        Written { key, row: Some(row), updated_at, version, deleted: false }
    }
}

impl Written<'_> {
    /// Spells the columns at these places, then ours in the order of `TableSql::upsert` and
    /// `TableSql::load`.
    ///
    /// # Errors
    /// The column that cannot be written, and why. What was spelled means nothing then.
    pub fn spell(
        &self,
        table: &TableSql<'_>,
        present: &[usize],
        out: &mut impl Spelling,
    ) -> std::result::Result<(), (usize, &'static str)> {
        let mut values = self.key.values();
        for &index in present {
            let cell = match self.row {
                Some(row) => row.cell(index),
                None => values.next().map_or(Cell::Absent, Cell::Value),
            };
            match cell {
                Cell::Value(value) => {
                    encode(table.columns[index].form, value, out).map_err(|why| (index, why))?;
                }
                Cell::Null => out.null(),
                Cell::Absent => return Err((index, "a cell is absent")),
                Cell::Binary(_) => return Err((index, "a cell has PostgreSQL's binary form")),
            }
            out.next();
        }
        out.instant(self.updated_at);
        if table.soft_deletes {
            out.next();
            out.integer(if self.deleted { "1" } else { "0" });
        }
        out.next();
        out.bytes(&self.version.to_bytes());
        Ok(())
    }
}

/// The rows of a statement, on their way into some spelling.
struct Writing<'a, I> {
    table: &'a TableSql<'a>,
    present: &'a [usize],
    rows: I,
    /// The most bytes of a row.
    room: usize,
    /// One that did not go with the command before.
    held: Option<Vec<Value>>,
}

impl Writer {
    /// Writes rows with the columns at these places, as many at a time as is good.
    pub(super) async fn write_rows<'a>(
        &mut self,
        table: &TableSql<'_>,
        present: &[usize],
        rows: impl Iterator<Item = Written<'a>>,
    ) -> Result<()> {
        let upsert = table.upsert(present);
        let room = self.packet_max.saturating_sub(upsert.head.len() + upsert.tail.len() + 64);
        let writing = Writing { table, present, rows, room, held: None };
        match self.runs_many {
            true => self.write_parameters(&upsert, writing).await,
            false => self.write_literals(&upsert, writing).await,
        }
    }

    async fn write_parameters<'a>(
        &mut self,
        upsert: &Upsert,
        mut writing: Writing<'_, impl Iterator<Item = Written<'a>>>,
    ) -> Result<()> {
        let doing = writing.doing();
        let statement = upsert.prepared(writing.parameters());
        let mut command = writing.command().await?;
        while !command.is_empty() {
            let executed = self.session.execute_many(&doing, &statement, command.into_rows());
            let (executed, next) = tokio::join!(executed, writing.command());
            executed?;
            self.refuse_warnings(&doing).await?;
            command = next?;
        }
        Ok(())
    }

    async fn write_literals<'a>(
        &mut self,
        upsert: &Upsert,
        mut writing: Writing<'_, impl Iterator<Item = Written<'a>>>,
    ) -> Result<()> {
        let doing = writing.doing();
        let (mut statement, mut count, mut literals) = (String::new(), 0, String::new());
        while let Some(row) = writing.rows.next() {
            literals.clear();
            literals.push('(');
            writing.spell(&row, &mut literals)?;
            literals.push(')');
            writing.expect_room(&row, literals.len())?;
            let bytes = statement.len() + literals.len();
            if count == ROWS_MAX || (count > 0 && bytes > writing.room.min(STATEMENT_BYTES)) {
                self.write_statement(&doing, &mut statement, upsert).await?;
                count = 0;
            }
            statement.push_str(if count == 0 { &upsert.head } else { ", " });
            statement.push_str(&literals);
            count += 1;
        }
        if count > 0 {
            self.write_statement(&doing, &mut statement, upsert).await?;
        }
        Ok(())
    }

    async fn write_statement(
        &mut self,
        doing: &str,
        statement: &mut String,
        upsert: &Upsert,
    ) -> Result<()> {
        statement.push_str(&upsert.tail);
        self.session.execute(doing, statement).await?;
        statement.clear();
        self.refuse_warnings(doing).await
    }

    /// A value that was changed on its way is as bad as one that was refused.
    async fn refuse_warnings(&mut self, doing: &str) -> Result<()> {
        const CHANGED: [&[u8]; 6] = [b"1264", b"1265", b"1292", b"1366", b"1406", b"1411"];
        if self.session.warnings() == 0 {
            return Ok(());
        }
        let warnings = self.session.query("look at warnings", "SHOW WARNINGS").await?;
        for warning in &warnings {
            let number = bytes(warning, 1)?;
            if CHANGED.contains(&number) {
                let number = String::from_utf8_lossy(number);
                let message = format!("{doing}: warning {number}, a value would be changed");
                return Err(Error::stop(Code::PoisonRow, message));
            }
        }
        Ok(())
    }
}

impl<'a, I: Iterator<Item = Written<'a>>> Writing<'_, I> {
    fn doing(&self) -> String {
        format!("write rows of target table {}", self.table.name)
    }

    /// How many values a row has.
    fn parameters(&self) -> usize {
        self.present.len() + if self.table.soft_deletes { 3 } else { 2 }
    }

    /// As many rows as make a good command; none if there are no more.
    async fn command(&mut self) -> Result<Command> {
        let (mut command, bytes_max) = (Command::default(), self.room.min(STATEMENT_BYTES));
        while command.len() < ROWS_MAX
            && let Some(row) = self.parameters_of_one()?
        {
            if let Err(row) = command.push(row, bytes_max) {
                self.held = Some(row);
                break;
            }
            if command.len().is_multiple_of(ROWS_AT_A_TIME) {
                yield_now().await;
            }
        }
        Ok(command)
    }

    fn parameters_of_one(&mut self) -> Result<Option<Vec<Value>>> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        let Some(row) = self.rows.next() else {
            return Ok(None);
        };
        let mut parameters = Vec::with_capacity(self.parameters());
        self.spell(&row, &mut parameters)?;
        self.expect_room(&row, parameters::size(&parameters))?;
        Ok(Some(parameters))
    }

    fn spell(&self, row: &Written<'_>, out: &mut impl Spelling) -> Result<()> {
        row.spell(self.table, self.present, out).map_err(|(index, reason)| {
            let table = self.table.table;
            let reason = format!("{reason} (column {})", table.columns[index].name);
            poison(&table.name, row.key, row.version, &reason)
        })
    }

    fn expect_room(&self, row: &Written<'_>, size: usize) -> Result<()> {
        if size <= self.room {
            return Ok(());
        }
        let reason = "it is larger than the target's max_allowed_packet";
        Err(poison(&self.table.table.name, row.key, row.version, reason))
    }
}
