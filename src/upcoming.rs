//! Which rows of the next batch may be written before their turn, while the one before it is being
//! applied. Pure; asked by the applier, for targets that can.
//!
//! Such a row is compared with what the target has, and locked, before the batch in front of it is
//! committed. That comes to the same only if nothing in between has to do with its key: so the batch
//! in front must not touch it, and its table must be left alone by copies, whose sessions would wait
//! for that lock while the next batch waits for them.

use std::collections::HashSet;
use std::mem;
use std::sync::Arc;

use connectors::Upcoming;
use connectors::change::{Batch, Key, RowUpsert, TableBatch};
use foldhash::fast::RandomState;

use crate::merge::MergedTable;
use crate::tables::Tables;

/// What may be brought of these tables while `current` is being applied. The upserts that do not
/// depend on it are moved in front of the others.
pub fn upcoming(next: &mut [MergedTable], current: &Batch, tables: &Tables) -> Vec<Upcoming> {
    // The target is not ready yet for another shape.
    let ready = next.iter_mut().filter(|table| tables.takes(&table.batch.table));
    ready
        .map(|table| {
            let name = &table.batch.table.name;
            let is_at_rest = tables.is_at_rest(name) && !current.status.contains_key(name);
            let in_front = current.tables.iter().find(|part| part.table.name == *name);
            let independent = match is_at_rest {
                true => bring_forward(&mut table.batch, in_front.map(Arc::as_ref)),
                false => 0,
            };
            Upcoming { part: table.batch.clone(), independent }
        })
        .collect()
}

/// Moves the upserts that do not depend on the part in front of this one before the others, and
/// counts them.
fn bring_forward(part: &mut Arc<TableBatch>, in_front: Option<&TableBatch>) -> usize {
    if part.truncated.is_some() || in_front.is_some_and(|part| part.truncated.is_some()) {
        return 0;
    }
    let touched = in_front.map(|in_front| touched(in_front, part)).unwrap_or_default();
    let depends = |upsert: &RowUpsert| touched.contains(&upsert.key) || upsert.row.has_absent();
    if part.upserts.iter().any(depends) {
        let upserts = &mut Arc::make_mut(part).upserts;
        let (dependent, independent): (Vec<_>, Vec<_>) =
            mem::take(upserts).into_iter().partition(depends);
        let count = independent.len();
        upserts.extend(independent);
        upserts.extend(dependent);
        return count;
    }
    part.upserts.len()
}

/// The keys that the part in front touches; none if they are all beside those of the other's upserts, as
/// with rows that are appended, whose keys follow one another from batch to batch.
fn touched<'k>(in_front: &'k TableBatch, part: &TableBatch) -> HashSet<&'k Key, RandomState> {
    let upserted = range(part.upserts.iter().map(|upsert| &upsert.key));
    let overlap = range(keys(in_front))
        .zip(upserted)
        .is_some_and(|((least, greatest), (first, last))| least <= last && first <= greatest);
    if overlap { keys(in_front).collect() } else { HashSet::default() }
}

/// Every key that a part touches.
fn keys(part: &TableBatch) -> impl Iterator<Item = &Key> {
    let deleted = part.deletes.iter().map(|delete| &delete.key);
    part.upserts.iter().map(|upsert| &upsert.key).chain(deleted)
}

/// The least and the greatest key, in any order that is the same for all keys.
fn range<'k>(keys: impl Iterator<Item = &'k Key>) -> Option<(&'k Key, &'k Key)> {
    keys.fold(None, |range, key| match range {
        Some((least, greatest)) => Some((key.min(least), key.max(greatest))),
        None => Some((key, key)),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use connectors::change::{Cell, Checkpoint, Row, RowDelete, TableStatus, Timestamp};
    use connectors::schema::{Column, ColumnType, Engine, TableName, TableSchema};
    use connectors::version::{Position, Version};

    use super::*;

    fn schema(columns: u32) -> Arc<TableSchema> {
        let text = ColumnType::Text;
        let column = |id| Column { name: format!("c{id}"), column_type: text, native: None, id };
        let (name, columns) = (TableName::new("public", "t"), (0..columns).map(column).collect());
        Arc::new(TableSchema { name, id: 1, engine: Engine::Memory, columns, key: vec![0] })
    }

    fn key(letter: char) -> Key {
        Key::from_values([letter.to_string().as_bytes()])
    }

    /// A part in words: a key stands for a row, `a.` for one with an absent cell, `-a` for a
    /// delete, `!` for a truncation.
    fn part(words: &str) -> TableBatch {
        let (table, version, updated_at) = (schema(2), Version::at_log(1, 1), Timestamp(0));
        let (truncated, deletes, upserts) = (None, Vec::new(), Vec::new());
        let mut part = TableBatch { table, truncated, deletes, upserts };
        for word in words.split_whitespace() {
            let letter = |at| word.chars().nth(at).unwrap();
            if word == "!" {
                part.truncated = Some((version, updated_at));
            } else if word.starts_with('-') {
                part.deletes.push(RowDelete { key: key(letter(1)), version, updated_at });
            } else {
                let second = if word.ends_with('.') { Cell::Absent } else { Cell::Null };
                let row = Row::from_cells([Cell::Value(&word.as_bytes()[..1]), second]);
                part.upserts.push(RowUpsert { key: key(letter(0)), row, version, updated_at });
            }
        }
        part
    }

    fn batch(tables: Vec<Arc<TableBatch>>, status: BTreeMap<TableName, TableStatus>) -> Batch {
        let (position, version) = (Position("1".into()), Version::at_log(1, 1));
        let checkpoint = Checkpoint { position, version, sequence: 1 };
        Batch { checkpoint, floor: version, tables, status }
    }

    fn at_rest() -> Tables {
        let tables = Tables::default();
        tables.insert(schema(2), TableStatus::Live);
        tables
    }

    /// The rows of the next part in their order then, with a bar after those that may go early.
    fn order(next: &str, current: &Batch, tables: &Tables) -> String {
        let mut next = [MergedTable { batch: Arc::new(part(next)), orphans: Vec::new() }];
        let upcoming = upcoming(&mut next, current, tables);
        let Some(Upcoming { part, independent }) = upcoming.first() else { return "none".into() };
        assert!(Arc::ptr_eq(part, &next[0].batch), "the applier brings another part");
        let letters = part.upserts.iter().map(|row| char::from(row.key.as_bytes()[4]));
        let mut letters: Vec<char> = letters.collect();
        letters.insert(*independent, '|');
        letters.into_iter().collect()
    }

    fn check(current: &str, next: &str, expected: &str) {
        let current = batch(vec![Arc::new(part(current))], BTreeMap::new());
        assert_eq!(order(next, &current, &at_rest()), expected, "{next} after {current:?}");
    }

    #[test]
    fn a_row_goes_early_if_the_batch_in_front_does_not_touch_its_key() {
        check("a b", "c d", "cd|");
        check("a b -c", "c a d b e -f", "de|cab");
        check("a", "a", "|a");
        check("", "a b", "ab|");
    }

    #[test]
    fn what_is_not_only_rows_waits() {
        check("a", "c. b d.", "b|cd");
        check("! a", "b c", "|bc");
        check("a", "! b c", "|bc");
    }

    #[test]
    fn only_tables_that_nobody_copies_get_rows_early() {
        let name = schema(2).name.clone();
        let none = || batch(Vec::new(), BTreeMap::new());
        let tables = at_rest();
        let becoming = BTreeMap::from([(name.clone(), TableStatus::Copying)]);
        assert_eq!(order("a", &batch(Vec::new(), becoming), &tables), "|a");
        tables.begin_recopy(&name);
        assert_eq!(order("a", &none(), &tables), "|a");
        tables.end_recopy(&name);
        assert_eq!(order("a", &none(), &tables), "a|");
        tables.set_status(&name, TableStatus::Copying);
        assert_eq!(order("a", &none(), &tables), "|a");
    }

    #[test]
    fn nothing_is_brought_of_a_shape_that_the_target_is_not_ready_for() {
        let tables = Tables::default();
        tables.insert(schema(3), TableStatus::Live);
        assert_eq!(order("a", &batch(Vec::new(), BTreeMap::new()), &tables), "none");
    }
}
