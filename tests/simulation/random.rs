//! The one source of chance in a simulation (SplitMix64), shared by everything that decides: the
//! faults, the workload, the story. All run on one thread, so the same seed is the same run.

use std::sync::{Mutex, PoisonError};

/// A generator; not for secrets.
pub struct Random(Mutex<u64>);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(Mutex::new(seed))
    }

    /// A number below `end`, which is not 0.
    pub fn below(&self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// A number from `first` to `last`, both included.
    pub fn between(&self, first: usize, last: usize) -> usize {
        first + self.below(last - first + 1)
    }

    /// True in this many of a thousand cases.
    pub fn permille(&self, chance: usize) -> bool {
        self.below(1000) < chance
    }

    /// One of these; `None` if there are none.
    pub fn pick<'a, T>(&self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { items.get(self.below(items.len())) }
    }

    fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
