//! The COPY statements of a session, each with the form that its columns allow. Used by `stage.rs`
//! and `new_rows.rs`.
//!
//! Surprise: the server says which types the columns have, and must go on saying so: bytes of one
//! type can be read as another. `SELECT ... LIMIT 0` is prepared, and is refused as soon as it
//! would give other types.

use tokio_postgres::Statement;

use super::Attempt;
use super::row_writer::Form;
use super::session::Session;
use crate::postgres::binary::Encoding;
use crate::postgres::sql;
use crate::schema::TableSchema;

/// A prepared COPY.
pub struct Copying {
    /// Reads the rows.
    pub statement: Statement,
    /// Reads nothing; fails if the table is not what it was.
    pub columns: Statement,
    /// What the rows are written in.
    pub form: Form,
}

impl Session {
    /// Prepares a COPY of a table's columns and perhaps ours, in binary if that is allowed here and if
    /// all of the columns can be written so.
    pub(super) async fn prepare_copy(
        &self,
        table: &TableSchema,
        copy: &str,
        columns: &str,
        binary: bool,
    ) -> Attempt<Copying> {
        let columns = self.client.prepare(columns).await?;
        let target = columns.columns().iter().map(|column| Encoding::of(column.type_().oid()));
        let source = table.columns.iter().map(Encoding::of_column);
        let form = Form::new(&target.collect::<Vec<_>>(), &source.collect::<Vec<_>>(), binary);
        let statement = match form {
            Form::Binary(_) => self.client.prepare(&format!("{copy}{}", sql::IN_BINARY)).await?,
            Form::Text(_) => self.client.prepare(copy).await?,
        };
        Ok(Copying { statement, columns, form })
    }
}
