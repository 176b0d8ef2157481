//! Random histories of the table `usual`, delivered in any order, split anywhere and repeated, and
//! what must come of them: for each key the greatest version.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;

use super::{part, usual};
use crate::change::{Key, TableBatch};

/// A change at a version of its own: a row with its text, a delete, or a truncation.
#[derive(Clone, Debug)]
pub enum Act {
    Upsert(u8, u8),
    Delete(u8),
    Truncate,
}

pub fn any_upsert() -> impl Strategy<Value = Act> {
    (0..5u8, any::<u8>()).prop_map(|(key, value)| Act::Upsert(key, value))
}

pub fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => any_upsert(),
        3 => (0..5u8).prop_map(Act::Delete),
        1 => Just(Act::Truncate),
    ]
}

/// What happened, and a way in which it is delivered.
#[derive(Clone, Debug)]
pub struct History {
    acts: Vec<Act>,
    /// Places to be moved to the front, and whether the repetition after it ends a batch.
    extra: Vec<(Index, Index, bool)>,
}

pub fn any_history(act: impl Strategy<Value = Act>) -> impl Strategy<Value = History> {
    let acts = proptest::collection::vec(act, 1..14);
    let extra = proptest::collection::vec(any::<(Index, Index, bool)>(), 0..14);
    (acts, extra).prop_map(|(acts, extra)| History { acts, extra })
}

impl History {
    /// The rows that the table must hold in the end, as their cells with bars between them.
    pub fn rows(&self) -> Vec<String> {
        let mut rows: BTreeMap<u8, String> = BTreeMap::new();
        for (place, act) in self.acts.iter().enumerate() {
            match act {
                Act::Upsert(key, value) => {
                    rows.insert(*key, format!("{key}|v{value}|{}", place + 1));
                }
                Act::Delete(key) => {
                    rows.remove(key);
                }
                Act::Truncate => rows.clear(),
            }
        }
        rows.into_values().collect()
    }

    /// Every act at least once, at a random place among repetitions.
    pub fn batches(&self) -> Vec<Arc<TableBatch>> {
        let mut order: Vec<(usize, bool)> =
            (0..self.acts.len()).map(|place| (place, place % 3 == 0)).collect();
        for (front, again, ends) in &self.extra {
            let at = front.index(order.len());
            order.swap(at, 0);
            order.push((again.index(self.acts.len()), *ends));
        }
        let mut batches = Vec::new();
        let mut places = Vec::new();
        for (place, ends) in order {
            places.push(place);
            if ends {
                batches.push(Arc::new(self.batch(&places)));
                places.clear();
            }
        }
        batches.push(Arc::new(self.batch(&places)));
        batches
    }

    /// The acts at these places as one batch: one change a key, the greater version.
    fn batch(&self, places: &[usize]) -> TableBatch {
        let mut batch = part(&usual());
        let mut last: BTreeMap<u8, usize> = BTreeMap::new();
        let mut truncated = None;
        for &place in places {
            match self.acts[place] {
                Act::Upsert(key, _) | Act::Delete(key) => {
                    let newest = last.entry(key).or_default();
                    *newest = place.max(*newest);
                }
                Act::Truncate => truncated = truncated.max(Some(place)),
            }
        }
        if let Some(place) = truncated {
            batch = batch.truncate(place as u64 + 1);
        }
        for (key, place) in last {
            let (log, key) = (place as u64 + 1, key.to_string());
            batch = match self.acts[place] {
                Act::Upsert(_, value) => {
                    batch.upsert(log, &[&key, &format!("v{value}"), &log.to_string()])
                }
                _ => batch.delete(log, &[&key]),
            };
        }
        batch
    }
}

/// Moves the rows that do not depend on the batch in front before the others, and counts them.
pub fn bring_forward(next: &mut Arc<TableBatch>, in_front: &TableBatch) -> usize {
    if next.truncated.is_some() || in_front.truncated.is_some() {
        return 0;
    }
    let deleted = in_front.deletes.iter().map(|delete| &delete.key);
    let touched: Vec<&Key> = in_front.upserts.iter().map(|row| &row.key).chain(deleted).collect();
    let upserts = &mut Arc::make_mut(next).upserts;
    upserts.sort_by_key(|row| touched.contains(&&row.key));
    upserts.partition_point(|row| !touched.contains(&&row.key))
}
