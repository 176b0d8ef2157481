//! Decides about suspects: rows that looked different once, perhaps only because a change was on
//! its way. Fed by `scan.rs`.
//!
//! A round reads the source, waits until the target has everything committed before that, reads
//! the target, and reads the source again. If the source did not change meanwhile, the target
//! had no excuse. Surprise: only digests are kept, so suspects cost the same however wide rows
//! are.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use connectors::change::Key;
use connectors::error::Result;
use connectors::schema::TableSchema;

use super::Verifier;
use super::report::{Differences, LISTED_MAX};
use super::scan::{by_key, fingerprint, stored_rows};

/// So many suspects are held before they are settled.
pub(super) const SUSPECTS_MAX: usize = 10_000;
/// After so many rounds a row is called unsettled.
const ROUNDS_MAX: u32 = 20;
/// A difference counts when it was there in so many rounds in a row: in between, the source may
/// have changed and changed back.
const ROUNDS_TO_BELIEVE: u32 = 2;
/// So many rows are read at once.
const READ_KEYS: usize = 1_000;

type Fingerprints = HashMap<Key, blake3::Hash>;

/// Keys that looked different, by the target's form of the key.
#[derive(Default)]
pub(super) struct Suspects(BTreeMap<Key, Suspect>);

struct Suspect {
    /// The key to ask both sides for.
    ask: Key,
    /// In how many rounds in a row it was different while the source stood still.
    streak: u32,
}

impl Suspects {
    pub(super) fn add(&mut self, key: Key, ask: Key) {
        self.0.entry(key).or_insert(Suspect { ask, streak: 0 });
    }

    fn asks(&self) -> Vec<Key> {
        self.0.values().map(|suspect| suspect.ask.clone()).collect()
    }
}

impl Verifier<'_> {
    /// Settles early, so that the suspects never take more than their share of memory.
    pub(super) async fn settle_if_full(
        &mut self,
        table: &Arc<TableSchema>,
        suspects: &mut Suspects,
        found: &mut Differences,
    ) -> Result<()> {
        match suspects.0.len() < SUSPECTS_MAX {
            true => Ok(()),
            false => self.settle(table, suspects, found).await,
        }
    }

    /// Looks again until every suspect is proven equal, proven different, or called unsettled.
    pub(super) async fn settle(
        &mut self,
        table: &Arc<TableSchema>,
        suspects: &mut Suspects,
        found: &mut Differences,
    ) -> Result<()> {
        for _ in 0..ROUNDS_MAX {
            if suspects.0.is_empty() {
                break;
            }
            self.round(table, suspects, found).await?;
        }
        for (key, _) in std::mem::take(&mut suspects.0) {
            found.unsettled.add(table, &key);
        }
        self.explain(table, found).await
    }

    async fn round(
        &mut self,
        table: &Arc<TableSchema>,
        suspects: &mut Suspects,
        found: &mut Differences,
    ) -> Result<()> {
        let asks = suspects.asks();
        let before = self.source_fingerprints(table, &asks).await?;
        self.pace.catch_up(self.source, self.target).await?;
        let in_target = self.target_fingerprints(table, &asks).await?;
        let after = self.source_fingerprints(table, &asks).await?;
        suspects.0.retain(|key, suspect| {
            let (source, target) = (after.get(key), in_target.get(key));
            if before.get(key) != source {
                suspect.streak = 0;
                return true;
            }
            if source == target {
                return false;
            }
            suspect.streak += 1;
            if suspect.streak < ROUNDS_TO_BELIEVE {
                return true;
            }
            let kind = match (source, target) {
                (Some(_), None) => &mut found.missing,
                (None, _) => &mut found.extra,
                (Some(_), Some(_)) => &mut found.differing,
            };
            kind.add(table, key);
            false
        });
        Ok(())
    }

    async fn source_fingerprints(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
    ) -> Result<Fingerprints> {
        let mut fingerprints = Fingerprints::new();
        for keys in keys.chunks(READ_KEYS) {
            let rows = self.reader.read_plain_keys(table, keys).await?;
            for stored in stored_rows(self.target, table, rows)? {
                fingerprints.insert(stored.key, fingerprint(&stored.row));
            }
        }
        Ok(fingerprints)
    }

    async fn target_fingerprints(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
    ) -> Result<Fingerprints> {
        let mut fingerprints = Fingerprints::new();
        for keys in keys.chunks(READ_KEYS) {
            let rows = by_key(table, self.target.read_rows(table, keys).await?)?;
            fingerprints.extend(rows.into_iter().map(|(key, row)| (key, fingerprint(&row))));
        }
        Ok(fingerprints)
    }

    /// Names the columns that differ, for the rows that are listed. The digests do not tell, so
    /// these few rows are read once more; one that became equal meanwhile keeps its place.
    async fn explain(&mut self, table: &Arc<TableSchema>, found: &mut Differences) -> Result<()> {
        let mut unexplained: HashMap<Key, _> = found
            .differing
            .unexplained()
            .take(LISTED_MAX)
            .map(|(key, listed)| (key.clone(), listed))
            .collect();
        if unexplained.is_empty() {
            return Ok(());
        }
        let keys: Vec<Key> = unexplained.keys().cloned().collect();
        let rows = self.reader.read_plain_keys(table, &keys).await?;
        let in_target = by_key(table, self.target.read_rows(table, &keys).await?)?;
        for stored in stored_rows(self.target, table, rows)? {
            let (listed, row) = (unexplained.get_mut(&stored.key), in_target.get(&stored.key));
            if let (Some(listed), Some(row)) = (listed, row) {
                let differs = |index: &usize| stored.row.cell(*index) != row.cell(*index);
                let columns = (0..table.columns.len()).filter(differs);
                listed.columns = columns.map(|index| table.columns[index].name.clone()).collect();
            }
        }
        Ok(())
    }
}
