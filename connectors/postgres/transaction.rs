//! Turns pgoutput messages into transactions. Pure; fed by `stream.rs`, read by the engine.
//!
//! Surprises: an update may omit unchanged TOAST columns; they become `Cell::Absent`. Ordinals
//! count the changes of halted tables too, so that a transaction that is delivered again after a
//! table was halted never gives a change a smaller version than the first time.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::lsn::{Bookmark, Lsn};
use super::pgoutput::{Message, OldTuple, Tuple};
use super::values::Keep;
use crate::change::{Cell, Change, Key, Row, RowBuilder, Timestamp, Transaction};
use crate::error::{Code, Error, Result};
use crate::schema::{TableName, TableSchema};
use crate::version::Version;

/// What a RELATION message turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Relation {
    /// A table that is replicated.
    Table(Shape),
    /// One that is not: a partition, or a table of a publication that somebody else made.
    Ignored,
    /// A replicated table whose changes cannot be followed any more.
    Halted {
        /// Which.
        table: TableName,
        /// Why, for scripts.
        code: Code,
        /// Why and what to type next.
        message: String,
    },
}

/// How tuples of a relation become rows of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The table as of now.
    pub schema: Arc<TableSchema>,
    /// For each column of the relation, in its order.
    pub columns: Vec<Keep>,
}

impl Shape {
    fn row(&self, tuple: Tuple<'_>, row: &mut RowBuilder) -> Result<Row> {
        if tuple.len() != self.columns.len() {
            return Err(wrong(format!(
                "a row of {} has {} columns, not {}",
                self.schema.name,
                tuple.len(),
                self.columns.len()
            )));
        }
        row.restart(self.schema.columns.len());
        for (cell, keep) in tuple.cells().zip(&self.columns) {
            keep.push(cell, row);
        }
        Ok(row.take())
    }

    fn key(&self, row: &Row) -> Result<Key> {
        Key::of(&self.schema, row).ok_or_else(|| self.no_key())
    }

    fn upsert(&self, row: Row) -> Result<Change> {
        match row.has_key(&self.schema) {
            true => Ok(Change::Upsert { table: self.schema.clone(), row }),
            false => Err(self.no_key()),
        }
    }

    fn no_key(&self) -> Error {
        wrong(format!("a row of {} has no key", self.schema.name))
    }

    /// The row with what the old tuple knows better.
    fn completed(&self, new: Row, old: &OldTuple<'_>, old_row: &Row) -> Row {
        if !new.has_absent() {
            return new;
        }
        match old {
            OldTuple::Full(_) => new.filled_from(old_row),
            // All but the key is NULL there and means nothing.
            OldTuple::Key(_) => {
                Row::from_cells(new.cells().enumerate().map(|(index, cell)| match cell {
                    Cell::Absent if self.schema.is_key(index) => old_row.cell(index),
                    cell => cell,
                }))
            }
        }
    }
}

/// What a message does to a row: a deletion of its old key, if that is another, and the change.
type RowChange = (Option<Change>, Change);

/// Builds transactions, one message after another.
pub struct Builder {
    epoch: u32,
    part_bytes: usize,
    relations: HashMap<u32, Relation, RandomState>,
    row: RowBuilder,
    open: Option<Open>,
    reached: Bookmark,
}

/// The transaction that is being received.
struct Open {
    final_lsn: Lsn,
    committed_at: Timestamp,
    first_ordinal: u32,
    changes: Vec<Change>,
    bytes: usize,
    /// Changes of halted tables since the last kept one; they use up ordinals.
    skipped: u32,
}

impl Builder {
    /// Begins after `from`.
    #[must_use]
    pub fn new(from: Bookmark, epoch: u32, part_bytes: usize) -> Builder {
        Builder {
            epoch,
            part_bytes,
            relations: HashMap::default(),
            row: RowBuilder::default(),
            open: None,
            reached: from,
        }
    }

    /// The end of what has been received completely.
    #[must_use]
    pub fn reached(&self) -> &Bookmark {
        &self.reached
    }

    /// Whether a transaction has begun and not ended.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// Nothing but the position moved.
    #[must_use]
    pub fn idle(&mut self, wal_end: Lsn, at: Timestamp) -> Transaction {
        self.reached.lsn = wal_end;
        self.reached.log = wal_end;
        Transaction {
            version: Version::at_log(self.epoch, wal_end.0),
            position: self.reached.position(),
            committed_at: at,
            first_ordinal: 1,
            changes: Vec::new(),
            complete: true,
        }
    }

    /// Remembers what a RELATION message means from here on. A halted table stays halted.
    ///
    /// # Errors
    /// `protocol` outside a transaction.
    pub fn relation(&mut self, id: u32, relation: Relation) -> Result<Option<Transaction>> {
        if let Some(Relation::Halted { .. }) = self.relations.get(&id) {
            return Ok(None);
        }
        self.relations.insert(id, relation.clone());
        match relation {
            Relation::Halted { table, code, message } => {
                self.push([Change::halt(table, code, message)])
            }
            Relation::Table(_) | Relation::Ignored => Ok(None),
        }
    }

    /// Takes the next message. Returns a transaction when it is complete, or a part of it when
    /// it is large.
    ///
    /// # Errors
    /// `protocol` when the messages do not make sense.
    pub fn feed(&mut self, message: &Message<'_>) -> Result<Option<Transaction>> {
        match message {
            Message::Begin { final_lsn, committed_at, .. } => {
                self.begin(*final_lsn, *committed_at)?;
                Ok(None)
            }
            Message::Commit { commit_lsn, end_lsn } => self.commit(*commit_lsn, *end_lsn).map(Some),
            Message::Insert { relation, new } => self.row_change(*relation, |shape, row| {
                Ok((None, shape.upsert(shape.row(*new, row)?)?))
            }),
            Message::Update { relation, old, new } => {
                self.row_change(*relation, |shape, row| update(shape, old.as_ref(), *new, row))
            }
            Message::Delete { relation, old } => self.row_change(*relation, |shape, row| {
                let key = shape.key(&shape.row(old.tuple(), row)?)?;
                Ok((None, Change::Delete { table: shape.schema.clone(), key }))
            }),
            Message::Truncate { relations } => self.truncate(relations),
            Message::Origin | Message::Type | Message::Logical { .. } => Ok(None),
            // `stream.rs` asks the catalog first and calls `relation`.
            Message::Relation(_) => Err(wrong("a relation nobody looked up")),
        }
    }

    fn begin(&mut self, final_lsn: Lsn, committed_at: Timestamp) -> Result<()> {
        if self.open.is_some() {
            return Err(wrong("a transaction begins inside another"));
        }
        // Whatever begins before that was given out already.
        if final_lsn < self.reached.lsn {
            let reached = self.reached.lsn;
            return Err(wrong(format!("commit {final_lsn} comes after {reached}")));
        }
        self.open = Some(Open {
            final_lsn,
            committed_at,
            first_ordinal: 1,
            changes: Vec::new(),
            bytes: 0,
            skipped: 0,
        });
        Ok(())
    }

    fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Result<Transaction> {
        let open = self.open.take().ok_or_else(outside)?;
        if commit_lsn != open.final_lsn || end_lsn <= commit_lsn {
            return Err(wrong("a commit does not fit its beginning"));
        }
        self.reached.lsn = end_lsn;
        self.reached.log = commit_lsn;
        Ok(self.transaction(open, true))
    }

    fn row_change(
        &mut self,
        relation: u32,
        build: impl FnOnce(&Shape, &mut RowBuilder) -> Result<RowChange>,
    ) -> Result<Option<Transaction>> {
        match self.relations.get(&relation) {
            Some(Relation::Table(shape)) => {
                let (deletion, change) = build(shape, &mut self.row)?;
                match deletion {
                    None => self.push([change]),
                    Some(deletion) => self.push([deletion, change]),
                }
            }
            Some(Relation::Halted { .. }) => self.skip(1),
            Some(Relation::Ignored) => Ok(None),
            None => Err(wrong(format!("a change of table {relation} before its relation"))),
        }
    }

    fn truncate(&mut self, relations: &[u32]) -> Result<Option<Transaction>> {
        let (mut changes, mut halted) = (Vec::new(), 0);
        for relation in relations {
            match self.relations.get(relation) {
                Some(Relation::Table(shape)) => {
                    changes.push(Change::Truncate { table: shape.schema.clone() });
                }
                Some(Relation::Halted { .. }) => halted += 1,
                Some(Relation::Ignored) => {}
                None => return Err(wrong(format!("table {relation} emptied before its relation"))),
            }
        }
        let part = if changes.is_empty() { None } else { self.push(changes)? };
        self.skip(halted)?;
        Ok(part)
    }

    /// Leaves out changes of halted tables, but not their ordinals.
    fn skip(&mut self, count: u32) -> Result<Option<Transaction>> {
        let open = self.open.as_mut().ok_or_else(outside)?;
        // An update may be two changes; a gap that is too wide does no harm.
        open.skipped = open.skipped.checked_add(2 * count).ok_or_else(too_many)?;
        Ok(None)
    }

    /// Appends changes, one at least; returns the part before them when it ends there.
    fn push(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<Option<Transaction>> {
        let open = self.open.as_mut().ok_or_else(outside)?;
        // Ordinals of one part follow one by one, so a gap begins a new part.
        let gap = open.skipped > 0 && !open.changes.is_empty();
        let part = if open.bytes >= self.part_bytes || gap { Some(open.part()?) } else { None };
        open.skip_ordinals()?;
        for change in changes {
            open.bytes += change.size();
            open.changes.push(change);
        }
        open.next_ordinal()?;
        Ok(part.map(|part| self.transaction(part, false)))
    }

    fn transaction(&self, open: Open, complete: bool) -> Transaction {
        Transaction {
            version: Version::at_log(self.epoch, open.final_lsn.0),
            position: self.reached.position(),
            committed_at: open.committed_at,
            first_ordinal: open.first_ordinal,
            changes: open.changes,
            complete,
        }
    }
}

impl Open {
    /// Takes out what there is; what comes next is another part.
    fn part(&mut self) -> Result<Open> {
        let first_ordinal = self.next_ordinal()?;
        let next = Open { first_ordinal, changes: Vec::new(), bytes: 0, ..*self };
        Ok(std::mem::replace(self, next))
    }

    /// The next change begins after those that were skipped.
    fn skip_ordinals(&mut self) -> Result<()> {
        let skipped = std::mem::take(&mut self.skipped);
        self.first_ordinal = self.first_ordinal.checked_add(skipped).ok_or_else(too_many)?;
        Ok(())
    }

    fn next_ordinal(&self) -> Result<u32> {
        let count = u32::try_from(self.changes.len()).map_err(|_| too_many())?;
        self.first_ordinal.checked_add(count).ok_or_else(too_many)
    }
}

fn update(
    shape: &Shape,
    old: Option<&OldTuple<'_>>,
    new: Tuple<'_>,
    builder: &mut RowBuilder,
) -> Result<RowChange> {
    let row = shape.row(new, builder)?;
    let Some(old) = old else { return Ok((None, shape.upsert(row)?)) };
    let old_row = shape.row(old.tuple(), builder)?;
    let row = shape.completed(row, old, &old_row);
    let key = shape.key(&old_row)?;
    let moved = key != shape.key(&row)?;
    let deletion = moved.then(|| Change::Delete { table: shape.schema.clone(), key });
    Ok((deletion, shape.upsert(row)?))
}

fn outside() -> Error {
    wrong("a change outside a transaction")
}

fn too_many() -> Error {
    wrong("a transaction has more than four billion changes")
}

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::stop(Code::Protocol, format!("the log of the source makes no sense: {what}"))
}

#[cfg(test)]
mod tests {
    use super::super::binary::Encoding;
    use super::super::lsn::LogIdentity;
    use super::super::pgoutput::{decode, encode};
    use super::*;
    use crate::change::Cell::{Absent, Binary, Null, Value};
    use crate::schema::{Column, ColumnType, Engine};

    fn schema(name: &str, id: u32) -> Arc<TableSchema> {
        let column = |name: &str, id| Column {
            name: name.into(),
            column_type: ColumnType::Text,
            native: None,
            id,
        };
        Arc::new(TableSchema {
            name: TableName::new("public", name),
            id,
            engine: Engine::Postgres,
            columns: vec![column("k", 1), column("v", 2)],
            key: vec![0],
        })
    }

    fn builder(part_bytes: usize) -> Builder {
        let identity = LogIdentity { system: "7".into(), timeline: 1 };
        let from = Bookmark { identity, publication: 5, lsn: Lsn(0x100), log: Lsn(0xf0) };
        let mut builder = Builder::new(from, 3, part_bytes);
        for id in [1, 2] {
            let columns = vec![Keep::AsText(Some(Encoding::Int64)), Keep::AsTheyCome];
            let shape = Shape { schema: schema(&format!("t{id}"), id), columns };
            builder.relation(id, Relation::Table(shape)).unwrap();
        }
        builder.relation(9, Relation::Ignored).unwrap();
        builder
    }

    fn feed(builder: &mut Builder, messages: &[Vec<u8>]) -> Result<Vec<Transaction>> {
        let mut transactions = Vec::new();
        for message in messages {
            transactions.extend(builder.feed(&decode(message)?)?);
        }
        Ok(transactions)
    }

    /// The changes of one transaction made of these messages.
    fn changes(messages: &[Vec<u8>]) -> Result<Vec<Change>> {
        let mut all = vec![encode::begin(0x200, 5, 7)];
        all.extend_from_slice(messages);
        all.push(encode::commit(0x200, 0x230));
        let transactions = feed(&mut builder(usize::MAX), &all)?;
        assert_eq!(transactions.len(), 1);
        Ok(transactions.into_iter().flat_map(|transaction| transaction.changes).collect())
    }

    fn upsert(id: u32, cells: [Cell<'_>; 2]) -> Change {
        Change::Upsert { table: schema(&format!("t{id}"), id), row: Row::from_cells(cells) }
    }

    fn deletion(id: u32, key: &[u8]) -> Change {
        Change::Delete { table: schema(&format!("t{id}"), id), key: Key::from_values([key]) }
    }

    #[test]
    fn a_commit_gives_a_transaction_with_its_place_in_the_log() {
        let mut builder = builder(usize::MAX);
        let messages = [
            encode::begin(0x200, 5, 7),
            encode::insert(1, &[Value(b"a"), Null]),
            encode::insert(9, &[Value(b"a")]),
            encode::commit(0x200, 0x230),
        ];
        let transactions = feed(&mut builder, &messages).unwrap();
        let position = r#"{"system":"7","timeline":1,"publication":5,"lsn":"0/230","log":"0/200"}"#;
        let expected = Transaction {
            version: Version::at_log(3, 0x200),
            position: crate::version::Position(position.into()),
            committed_at: Timestamp(5),
            first_ordinal: 1,
            changes: vec![upsert(1, [Value(b"a"), Null])],
            complete: true,
        };
        assert_eq!(transactions, [expected]);
        let idle = builder.idle(Lsn(0x300), Timestamp(6));
        assert_eq!((idle.version, idle.complete), (Version::at_log(3, 0x300), true));
        assert_eq!(builder.reached().lsn, Lsn(0x300));
    }

    #[test]
    fn a_key_change_is_a_delete_and_an_upsert() {
        let update = encode::update(1, Some((b'K', &[Value(b"a"), Null])), &[Value(b"b"), Absent]);
        let expected = vec![deletion(1, b"a"), upsert(1, [Value(b"b"), Absent])];
        assert_eq!(changes(&[update]), Ok(expected));
    }

    #[test]
    fn unchanged_toast_is_absent_and_filled_only_from_a_full_old_row() {
        let plain = encode::update(1, None, &[Value(b"a"), Absent]);
        let full =
            encode::update(1, Some((b'O', &[Value(b"a"), Value(b"old")])), &[Value(b"a"), Absent]);
        let key = encode::update(1, Some((b'K', &[Value(b"a"), Null])), &[Absent, Absent]);
        let expected = vec![
            upsert(1, [Value(b"a"), Absent]),
            upsert(1, [Value(b"a"), Value(b"old")]),
            upsert(1, [Value(b"a"), Absent]),
        ];
        assert_eq!(changes(&[plain, full, key]), Ok(expected));
    }

    #[test]
    fn keys_in_binary_become_text_and_other_values_stay_as_they_come() {
        let seven = Binary(&[0, 0, 0, 0, 0, 0, 0, 7]);
        let eight = Binary(&[0, 0, 0, 0, 0, 0, 0, 8]);
        let messages = [
            encode::insert(1, &[seven, Binary(b"v")]),
            encode::update(1, Some((b'K', &[seven, Null])), &[eight, Absent]),
            encode::update(1, Some((b'O', &[eight, Binary(b"old")])), &[eight, Absent]),
            encode::delete(1, b'K', &[eight, Null]),
        ];
        let expected = vec![
            upsert(1, [Value(b"7"), Binary(b"v")]),
            deletion(1, b"7"),
            upsert(1, [Value(b"8"), Absent]),
            upsert(1, [Value(b"8"), Binary(b"old")]),
            deletion(1, b"8"),
        ];
        assert_eq!(changes(&messages), Ok(expected));
        assert!(changes(&[encode::insert(1, &[Binary(b"7"), Null])]).is_err(), "no number");
    }

    #[test]
    fn deletes_and_truncations_name_their_tables() {
        let messages = [
            encode::delete(1, b'K', &[Value(b"a"), Null]),
            encode::delete(2, b'O', &[Value(b"b"), Value(b"x")]),
            encode::truncate(&[2, 9, 1]),
        ];
        let expected = vec![
            deletion(1, b"a"),
            deletion(2, b"b"),
            Change::Truncate { table: schema("t2", 2) },
            Change::Truncate { table: schema("t1", 1) },
        ];
        assert_eq!(changes(&messages), Ok(expected));
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        let row = [Value(b"a".as_slice()), Null];
        assert!(changes(&[encode::insert(5, &row)]).is_err(), "unknown relation");
        assert!(changes(&[encode::insert(1, &row[..1])]).is_err(), "a column too few");
        assert!(changes(&[encode::insert(1, &[Null, Null])]).is_err(), "no key");
        assert!(changes(&[encode::update(1, None, &[Absent, Null])]).is_err(), "no key");
        assert!(changes(&[encode::begin(0x200, 5, 7)]).is_err(), "nested");
        assert!(feed(&mut builder(9), &[encode::insert(1, &row)]).is_err(), "outside");
        assert!(feed(&mut builder(9), &[encode::begin(0x80, 5, 7)]).is_err(), "backwards");
        let other = [encode::begin(0x200, 5, 7), encode::commit(0x210, 0x230)];
        assert!(feed(&mut builder(9), &other).is_err(), "another commit");
    }

    #[test]
    fn a_large_transaction_comes_in_parts_whose_ordinals_go_on() {
        let mut messages = vec![encode::begin(0x200, 5, 7)];
        messages.extend((0..5).map(|_| encode::insert(1, &[Value(b"a"), Null])));
        messages.push(encode::commit(0x200, 0x230));
        let size = upsert(1, [Value(b"a"), Null]).size();
        let parts = feed(&mut builder(2 * size), &messages).unwrap();
        let seen: Vec<_> =
            parts.iter().map(|p| (p.first_ordinal, p.changes.len(), p.complete)).collect();
        assert_eq!(seen, [(1, 2, false), (3, 2, false), (5, 1, true)]);
    }

    #[test]
    fn a_halted_table_stops_once_and_never_lowers_later_ordinals() {
        let mut builder = builder(usize::MAX);
        let row = [Value(b"a".as_slice()), Null];
        let halted = Relation::Halted {
            table: TableName::new("public", "t1"),
            code: Code::SchemaChange,
            message: "gone".into(),
        };
        feed(&mut builder, &[encode::begin(0x200, 5, 7)]).unwrap();
        assert_eq!(builder.relation(1, halted.clone()), Ok(None));
        assert_eq!(builder.relation(1, halted), Ok(None));
        let rest = [
            encode::insert(1, &row),
            encode::insert(1, &row),
            encode::insert(2, &row),
            encode::truncate(&[1, 2]),
            encode::commit(0x200, 0x230),
        ];
        let parts = feed(&mut builder, &rest).unwrap();
        let seen: Vec<_> =
            parts.iter().map(|p| (p.first_ordinal, p.changes.len(), p.complete)).collect();
        assert_eq!(seen, [(1, 1, false), (6, 2, true)]);
        assert!(matches!(parts[0].changes[0], Change::Halt { code: Code::SchemaChange, .. }));
    }
}
