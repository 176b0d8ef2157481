//! The model of a source: commits that are written to the log first and become visible later, in
//! any order, over six keys of one table with two columns.

use crate::random::Random;

pub const KEYS: usize = 6;
/// The values of the columns `a` and `b`.
pub type Cells = (u32, u32);
/// What each key has.
pub type Rows = [Option<Cells>; KEYS];

#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// Column `b` is `None` when it did not change, and then the log does not carry it.
    Upsert(usize, u32, Option<u32>),
    Delete(usize),
    Truncate,
}

#[derive(Debug)]
pub struct Commit {
    pub lsn: u64,
    pub ops: Vec<Op>,
    pub visible: bool,
    /// The keys it has locked, and what it makes of them.
    after: Vec<(usize, Option<Cells>)>,
}

#[derive(Debug, Default)]
pub struct Source {
    pub log: Vec<Commit>,
    pub rows: Rows,
    pub head: u64,
    value: u32,
}

impl Source {
    /// A source with some rows that are older than its log.
    pub fn new(random: &mut Random) -> Source {
        let mut source = Source::default();
        for key in 0..KEYS {
            if random.percent(60) {
                source.rows[key] = Some((source.fresh(), source.fresh()));
            }
        }
        source
    }

    fn fresh(&mut self) -> u32 {
        self.value += 1;
        self.value
    }

    pub fn pending(&self) -> Vec<usize> {
        (0..self.log.len()).filter(|&commit| !self.log[commit].visible).collect()
    }

    /// Writes a commit of one to three statements, unless the locks of others forbid it.
    pub fn write(&mut self, random: &mut Random) {
        let pending = self.pending();
        let truncate = random.percent(6);
        if truncate && !pending.is_empty() {
            return;
        }
        let after = |&commit: &usize| self.log[commit].after.iter().map(|(key, _)| *key);
        let locked: Vec<usize> = pending.iter().flat_map(after).collect();
        let mut after = self.rows;
        let mut ops = Vec::new();
        let mut touched = Vec::new();
        if truncate {
            (after, touched) = (Rows::default(), (0..KEYS).collect());
            ops.push(Op::Truncate);
        } else {
            for _ in 0..random.between(1, 3) {
                self.statement(random, &locked, &mut after, &mut ops, &mut touched);
            }
        }
        if !ops.is_empty() {
            touched.sort_unstable();
            touched.dedup();
            let after = touched.into_iter().map(|key| (key, after[key])).collect();
            self.append(Commit { lsn: 0, ops, visible: false, after });
        }
    }

    fn statement(
        &mut self,
        random: &mut Random,
        locked: &[usize],
        rows: &mut Rows,
        ops: &mut Vec<Op>,
        touched: &mut Vec<usize>,
    ) {
        let (key, other) = (random.below(KEYS), random.below(KEYS));
        let choice = random.below(100);
        if locked.contains(&key) {
            return;
        }
        let fresh = (self.fresh(), self.fresh());
        match rows[key] {
            Some(_) if choice < 25 => {
                rows[key] = None;
                ops.push(Op::Delete(key));
            }
            Some((_, b)) if choice < 45 => {
                if rows[other].is_some() || locked.contains(&other) {
                    return;
                }
                (rows[key], rows[other]) = (None, Some((fresh.0, b)));
                touched.push(other);
                ops.extend([Op::Delete(key), Op::Upsert(other, fresh.0, None)]);
            }
            Some((_, b)) if choice < 80 => {
                rows[key] = Some((fresh.0, b));
                ops.push(Op::Upsert(key, fresh.0, None));
            }
            Some(_) | None => {
                rows[key] = Some(fresh);
                ops.push(Op::Upsert(key, fresh.0, Some(fresh.1)));
            }
        }
        touched.push(key);
    }

    /// Writes a commit without changes, visible at once, and returns its place in the log.
    pub fn mark(&mut self) -> u64 {
        self.append(Commit { lsn: 0, ops: Vec::new(), visible: true, after: Vec::new() });
        self.head
    }

    fn append(&mut self, commit: Commit) {
        self.head += 10;
        self.log.push(Commit { lsn: self.head, ..commit });
    }

    pub fn show(&mut self, commit: usize) {
        self.log[commit].visible = true;
        for &(key, row) in &self.log[commit].after {
            self.rows[key] = row;
        }
    }
}
