//! Values to save, for the tests of the store on disk and in memory.

use state::{Phase, SavedCheckpoint, Store, Task};

/// A checkpoint that differs in every field from one with another sequence.
pub fn checkpoint(sequence: u64) -> SavedCheckpoint {
    let mut version = [7; 16];
    version[8..].copy_from_slice(&sequence.to_be_bytes());
    SavedCheckpoint { position: format!("0/{sequence:X}"), version, sequence, fence: sequence / 3 }
}

/// A repair that has come so far; its keys make the record longer than one piece.
#[allow(dead_code, reason = "not every test file needs it")]
pub fn repair(id: u64, rows: u64) -> Task {
    Task {
        id,
        schema: "public".to_owned(),
        table: "orders".to_owned(),
        filter: Some("total > 7".to_owned()),
        keys: Some((0..700_u64).map(|key| key.to_be_bytes().to_vec()).collect()),
        sweep: true,
        marker: Some([3; 16]),
        columns: 4,
        phase: Phase::Copy,
        after: Some(rows.to_be_bytes().to_vec()),
        rows,
        sequence: rows,
    }
}

/// All that a store holds.
#[allow(dead_code, reason = "not every test file needs it")]
#[allow(clippy::unwrap_used, reason = "only tests call it")]
pub fn contents(store: &dyn Store) -> (Option<SavedCheckpoint>, Vec<Task>) {
    (store.checkpoint().unwrap(), store.tasks().unwrap())
}
