//! How the columns of a table stand in its row events: a shape, and the generated columns between
//! its columns, which the log carries and we do not replicate. Pure. Made by `catalog.rs` of what
//! the server says now; `shapes.rs` finds the one that a table map fits.

use std::sync::Arc;

use crate::schema::TableSchema;

/// A table and the order of its columns in row events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The table as it is replicated.
    pub schema: Arc<TableSchema>,
    /// All columns in the server's order, also invisible and generated ones.
    pub columns: Vec<LayoutColumn>,
}

/// One column of a row event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutColumn {
    /// Its name.
    pub name: String,
    /// Its place in the columns of the schema, above those of the columns before it; `None` for a
    /// generated column.
    pub place: Option<usize>,
}
