//! Whether the rows of a table's part are worth an attempt to write them as new ones: the short way,
//! which compares nothing and fails at the first row that is there. Pure; used by targets.
//!
//! Surprise: nobody knows beforehand whether the rows are new. A table that says no is asked again
//! only after a while, which gets longer each time.

use crate::part::TablePart;

/// Fewer rows cost about the same either way. All tests go this way.
const ROWS_MIN: usize = if cfg!(test) { 1 } else { 20 };
/// The longest time that a table is not asked, in batches.
const REST_MAX: u32 = 63;

/// What the latest attempts of one table have taught.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewRows {
    /// So many batches go the long way before the next attempt.
    resting: u32,
    /// How many that were the last time.
    rest: u32,
}

impl NewRows {
    /// Whether to attempt it with this part. Counts the parts with which it is not.
    pub fn is_worth_a_try(&mut self, part: &TablePart<'_>) -> bool {
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

    /// Takes in what became of an attempt.
    pub fn learn(&mut self, were_new: bool) {
        self.rest = if were_new { 0 } else { (2 * self.rest + 1).min(REST_MAX) };
        self.resting = self.rest;
    }
}
