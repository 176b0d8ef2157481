//! The short way for rows that the target does not have yet: read by the server from a file that we
//! send, without a comparison. It costs the server less than half of what statements do. Used by
//! `rows.rs`.
//!
//! Surprise: the server answers with warnings where a statement would fail. So it is tried under a
//! savepoint, and counts only if every row was written and nothing was found fault with; otherwise
//! all rows go the long way, which says what is wrong with them. `crate::new_rows` decides when to try.

use std::pin::pin;

use futures_util::future::{Either, select};
use tokio::sync::mpsc;

use super::write::Written;
use super::writer::Writer;
use crate::change::RowUpsert;
use crate::error::{Kind, Result};
use crate::key_order::by_key;
use crate::mysql::spelling::Fields;
use crate::mysql::sql::TableSql;
use crate::part::TablePart;

/// How many bytes are sent at a time.
const PIECE_BYTES: usize = 128 * 1024;
/// How many pieces may wait for the server.
const PIECES_MAX: usize = 4;

impl Writer {
    /// Loads the rows of a part into their table if all of them are new; says whether they were.
    /// Only for rows that no tombstone can outrank.
    pub(super) async fn load_new(
        &mut self,
        table: &TableSql<'_>,
        part: &TablePart<'_>,
    ) -> Result<bool> {
        if !self.lessons.is_worth_a_try(part) {
            return Ok(false);
        }
        let doing = format!("load rows into target table {}", table.name);
        self.session.execute(&doing, "SAVEPOINT new_rows").await?;
        let were_new = match self.send_new(&doing, table, part.upserts).await {
            Ok(loaded) => loaded == part.upserts.len() as u64 && self.session.warnings() == 0,
            // The long way meets the same, and says so; or the server reads no files of clients.
            Err(error) if error.kind == Kind::Stop && self.session.is_usable() => false,
            Err(error) => return Err(error),
        };
        if !were_new {
            self.session.execute(&doing, "ROLLBACK TO SAVEPOINT new_rows").await?;
        }
        self.lessons.learn(&part.table.name, were_new);
        Ok(were_new)
    }

    /// Writes the file while the server reads it. A row that it cannot hold ends it.
    async fn send_new(
        &mut self,
        doing: &str,
        table: &TableSql<'_>,
        upserts: &[RowUpsert],
    ) -> Result<u64> {
        let (pieces, file) = mpsc::channel(PIECES_MAX);
        let (statement, bytes_max) = (table.load(), self.packet_max / 2);
        let loading = pin!(self.session.load(doing, &statement, file));
        let writing = pin!(write(table, upserts, bytes_max, pieces));
        match select(loading, writing).await {
            Either::Left((loaded, _)) => loaded,
            Either::Right((_, loading)) => loading.await,
        }
    }
}

async fn write(
    table: &TableSql<'_>,
    upserts: &[RowUpsert],
    bytes_max: usize,
    pieces: mpsc::Sender<Vec<u8>>,
) {
    let all: Vec<usize> = (0..table.columns.len()).collect();
    let mut fields = Fields::default();
    for at in by_key(table.table, upserts.iter().map(|upsert| &upsert.key)) {
        let before = fields.len();
        let spelled = Written::from(&upserts[at]).spell(table, &all, &mut fields);
        fields.end_row();
        // Rows as large as this are refused on the long way, or nearly so.
        if spelled.is_err() || fields.len() - before > bytes_max {
            return;
        }
        if fields.len() >= PIECE_BYTES && pieces.send(fields.take()).await.is_err() {
            return;
        }
    }
    // Nobody listens where the server did not want the file.
    let _ = pieces.send(fields.take()).await;
}
