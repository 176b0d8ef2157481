//! Whether the rows of a table's part are worth an attempt to write them as new ones: the short way,
//! which compares nothing and fails at the first row that is there. Pure; used by targets.
//!
//! Surprise: nobody knows beforehand whether the rows are new. A table that says no is asked again
//! only after a while, which gets longer each time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::part::TablePart;
use crate::schema::TableName;

/// Fewer rows cost about the same either way. All tests go this way.
const ROWS_MIN: usize = if cfg!(test) { 1 } else { 20 };
/// The longest time that a table is not asked, in batches.
const REST_MAX: u32 = 63;

/// What earlier batches have taught about the tables' rows, whichever session applied them.
#[derive(Debug, Default)]
pub struct Lessons(Mutex<HashMap<TableName, NewRows>>);

impl Lessons {
    /// Whether to attempt it with this part. Counts the parts with which it is not.
    pub fn is_worth_a_try(&self, part: &TablePart<'_>) -> bool {
        self.of(&part.table.name, |of_table| of_table.is_worth_a_try(part))
    }

    /// Takes in what became of an attempt.
    pub fn learn(&self, table: &TableName, were_new: bool) {
        self.of(table, |of_table| of_table.learn(were_new));
    }

    fn of<T>(&self, table: &TableName, use_it: impl FnOnce(&mut NewRows) -> T) -> T {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        use_it(tables.entry(table.clone()).or_default())
    }
}

/// What the latest attempts of one table have taught.
#[derive(Clone, Copy, Debug, Default)]
struct NewRows {
    /// So many batches go the long way before the next attempt.
    resting: u32,
    /// How many that were the last time.
    rest: u32,
}

impl NewRows {
    fn is_worth_a_try(&mut self, part: &TablePart<'_>) -> bool {
        let only_rows = part.truncated.is_none() && part.deletes.is_empty();
        if !only_rows || part.upserts.len() < ROWS_MIN {
            return false;
        }
        if self.resting > 0 {
            self.resting -= 1;
            return false;
        }
        part.upserts.iter().all(|upsert| !upsert.row.has_absent())
    }

    fn learn(&mut self, were_new: bool) {
        self.rest = if were_new { 0 } else { (2 * self.rest + 1).min(REST_MAX) };
        self.resting = self.rest;
    }
}
