//! The shapes that tables had before, for a log that does not describe its rows itself and has not
//! come by the change yet.

use serde::{Deserialize, Serialize};

/// A shape that a table had when its target was still prepared for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastShape {
    /// The schema of the source table.
    pub schema: String,
    /// The name of the source table.
    pub table: String,
    /// The shape itself, opaque here.
    pub shape: String,
}
