//! The changes of one XA transaction until it is decided: in memory, or in a file when they are too
//! many. Filled by `open.rs`, emptied by `transaction/xa.rs`.
//!
//! Surprise: what does not become a change has an ordinal all the same, so that the others keep
//! theirs whenever the same log is read again. It is a gap here.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::change::{Change, Key, Row};
use crate::schema::TableSchema;
use crate::spool::{Records, Spool};

/// Changes in their order, which are first put here and then taken from the front.
#[derive(Debug, Default)]
pub struct Shelf {
    store: Store,
    /// Whether all of it is here.
    is_closed: bool,
    /// Bytes of items in memory.
    bytes: usize,
    /// The tables of the items in the file, which have their numbers.
    tables: Vec<Arc<TableSchema>>,
    /// Items that were put into the file, and that were read from it.
    written: u64,
    read: u64,
    /// Items in the file that were taken back, in their order.
    taken_back: VecDeque<Range<u64>>,
    /// Tables that were halted. They are halted whatever becomes of the transaction.
    pub halts: Vec<Change>,
}

#[derive(Debug)]
enum Store {
    Memory(VecDeque<Item>),
    Writing(Spool),
    Reading(Records),
}

/// What is put on the shelf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A change, of a row or of all rows.
    Change(Change),
    /// So many ordinals that no change has.
    Gap(u32),
}

impl Shelf {
    /// Puts a change behind the others; a halt beside them.
    pub fn push(&mut self, change: Change) {
        if matches!(change, Change::Halt { .. }) {
            self.halts.push(change);
            return self.skip(1);
        }
        self.put(Item::Change(change));
    }

    /// Leaves out so many ordinals.
    pub fn skip(&mut self, count: u32) {
        if count > 0 {
            self.put(Item::Gap(count));
        }
    }

    fn put(&mut self, item: Item) {
        assert!(!self.is_closed, "an XA transaction goes on after its end");
        match &mut self.store {
            Store::Memory(items) => {
                self.bytes += item.size();
                items.push_back(item);
            }
            Store::Writing(spool) => {
                write(spool, &mut self.tables, &item);
                self.written += 1;
            }
            Store::Reading(_) => {}
        }
    }

    /// Bytes held in memory, without what is on its way to the disk.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The place behind the last item.
    #[must_use]
    pub fn end(&self) -> u64 {
        match &self.store {
            Store::Memory(items) => items.len() as u64,
            Store::Writing(_) | Store::Reading(_) => self.written,
        }
    }

    /// Takes back what was put there behind this place.
    pub fn truncate(&mut self, end: u64) {
        match &mut self.store {
            Store::Memory(items) => {
                items.truncate(usize::try_from(end).unwrap_or(usize::MAX));
                self.bytes = items.iter().map(Item::size).sum();
            }
            Store::Writing(_) | Store::Reading(_) => {
                self.taken_back.retain(|range| range.start < end);
                self.taken_back.push_back(end..self.written);
            }
        }
    }

    /// Moves what is in memory to a file in this directory.
    ///
    /// # Errors
    /// What the disk says. The same call may be tried again.
    pub fn spill(&mut self, directory: &Path) -> io::Result<()> {
        let Store::Memory(items) = &self.store else { return Ok(()) };
        let mut spool = Spool::create(directory)?;
        let mut tables = Vec::new();
        for item in items {
            spool.make_room()?;
            write(&mut spool, &mut tables, item);
        }
        self.written = items.len() as u64;
        (self.tables, self.bytes) = (tables, 0);
        self.store = Store::Writing(spool);
        if self.is_closed { self.close() } else { Ok(()) }
    }

    /// Makes room in memory for what comes next, if there is a file.
    ///
    /// # Errors
    /// As `spill`.
    pub fn make_room(&mut self) -> io::Result<()> {
        match &mut self.store {
            Store::Writing(spool) => spool.make_room(),
            Store::Memory(_) | Store::Reading(_) => Ok(()),
        }
    }

    /// Nothing more is put here.
    ///
    /// # Errors
    /// As `spill`.
    pub fn close(&mut self) -> io::Result<()> {
        self.is_closed = true;
        self.store = match std::mem::take(&mut self.store) {
            Store::Writing(spool) => match spool.read() {
                Ok(records) => Store::Reading(records),
                Err((spool, error)) => {
                    self.store = Store::Writing(spool);
                    return Err(error);
                }
            },
            store => store,
        };
        Ok(())
    }

    /// Takes the item in front.
    ///
    /// # Errors
    /// What the disk says.
    pub fn take(&mut self) -> io::Result<Option<Item>> {
        self.close()?;
        match &mut self.store {
            Store::Memory(items) => {
                let item = items.pop_front();
                self.bytes -= item.as_ref().map_or(0, Item::size);
                return Ok(item);
            }
            Store::Writing(_) | Store::Reading(_) => {}
        }
        while let Store::Reading(records) = &mut self.store
            && records.load()?
        {
            let item = read(records.record(), &self.tables);
            records.consume();
            let place = self.read;
            self.read += 1;
            while self.taken_back.front().is_some_and(|range| range.end <= place) {
                self.taken_back.pop_front();
            }
            if self.taken_back.front().is_some_and(|range| range.contains(&place)) {
                continue;
            }
            return item.map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into());
        }
        Ok(None)
    }
}

impl Default for Store {
    fn default() -> Store {
        Store::Memory(VecDeque::new())
    }
}

impl Item {
    fn size(&self) -> usize {
        match self {
            Item::Change(change) => change.size(),
            Item::Gap(_) => std::mem::size_of::<Item>(),
        }
    }
}

const UPSERT: u8 = b'U';
const DELETE: u8 = b'D';
const TRUNCATE: u8 = b'T';
const GAP: u8 = b'G';

/// An item as a record: what it is, the number of its table or how wide a gap it is, and its row or
/// key.
fn write(spool: &mut Spool, tables: &mut Vec<Arc<TableSchema>>, item: &Item) {
    let (tag, number, body): (u8, u32, &[u8]) = match item {
        Item::Gap(count) => (GAP, *count, &[]),
        Item::Change(change) => match change {
            Change::Upsert { table, row } => (UPSERT, number(tables, table), row.as_bytes()),
            Change::Delete { table, key } => (DELETE, number(tables, table), key.as_bytes()),
            Change::Truncate { table } => (TRUNCATE, number(tables, table), &[]),
            // It stands beside the others.
            Change::Halt { .. } => (GAP, 1, &[]),
        },
    };
    spool.push([&[tag], &number.to_le_bytes(), body]);
}

/// The item of a record; `None` if it is damaged.
fn read(record: &[u8], tables: &[Arc<TableSchema>]) -> Option<Item> {
    let (&[tag, a, b, c, d], body) = record.split_first_chunk()?;
    let number = u32::from_le_bytes([a, b, c, d]);
    let table = || tables.get(number as usize).cloned();
    Some(match tag {
        GAP => Item::Gap(number),
        UPSERT => Item::Change(Change::Upsert { table: table()?, row: Row::from_bytes(body)? }),
        DELETE => Item::Change(Change::Delete { table: table()?, key: Key::from_bytes(body)? }),
        TRUNCATE => Item::Change(Change::Truncate { table: table()? }),
        _ => return None,
    })
}

/// The number of a table, which it is given if it has none.
fn number(tables: &mut Vec<Arc<TableSchema>>, table: &Arc<TableSchema>) -> u32 {
    // Mostly it is the one that came last.
    let found = tables.iter().rposition(|other| Arc::ptr_eq(other, table));
    let place = found.unwrap_or_else(|| {
        tables.push(table.clone());
        tables.len() - 1
    });
    place as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::change::Cell;
    use crate::error::Code;
    use crate::mysql::fixtures::layout;
    use crate::schema::TableName;

    fn cell() -> impl Strategy<Value = Option<Option<Vec<u8>>>> {
        let value = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..9),
            (0..300_000usize).prop_map(|length| vec![7; length]),
        ];
        proptest::option::of(proptest::option::of(value))
    }

    fn row() -> impl Strategy<Value = Row> {
        proptest::collection::vec(cell(), 0..6).prop_map(|cells| {
            Row::from_cells(cells.iter().map(|cell| match cell {
                None => Cell::Absent,
                Some(None) => Cell::Null,
                Some(Some(value)) => Cell::Value(value),
            }))
        })
    }

    /// What is done to a shelf.
    #[derive(Clone, Debug)]
    enum Deed {
        Put(Item),
        Savepoint,
        RollBack,
        Spill,
    }

    fn deeds() -> impl Strategy<Value = Vec<Deed>> {
        let tables = ["a", "b"].map(|name| layout(name, &[("key", "k", "int")]).schema);
        let table = proptest::sample::select(tables.to_vec());
        let values = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..3);
        let key = values.prop_map(|values| Key::from_values(values.iter().map(Vec::as_slice)));
        let change = prop_oneof![
            8 => (table.clone(), row()).prop_map(|(table, row)| Change::Upsert { table, row }),
            4 => (table.clone(), key).prop_map(|(table, key)| Change::Delete { table, key }),
            1 => table.prop_map(|table| Change::Truncate { table }),
        ];
        let deed = prop_oneof![
            8 => change.prop_map(|change| Deed::Put(Item::Change(change))),
            2 => (1..u32::MAX).prop_map(|count| Deed::Put(Item::Gap(count))),
            2 => Just(Deed::Savepoint),
            2 => Just(Deed::RollBack),
            1 => Just(Deed::Spill),
        ];
        proptest::collection::vec(deed, 0..60)
    }

    /// What comes of it with a file, or without.
    fn outcome(deeds: &[Deed], directory: Option<&Path>) -> Vec<Item> {
        let mut shelf = Shelf::default();
        let mut savepoints = Vec::new();
        for deed in deeds {
            shelf.make_room().unwrap();
            match (deed, directory) {
                (Deed::Put(Item::Change(change)), _) => shelf.push(change.clone()),
                (Deed::Put(Item::Gap(count)), _) => shelf.skip(*count),
                (Deed::Savepoint, _) => savepoints.push(shelf.end()),
                (Deed::RollBack, _) => shelf.truncate(savepoints.pop().unwrap_or(0)),
                (Deed::Spill, Some(directory)) => shelf.spill(directory).unwrap(),
                (Deed::Spill, None) => {}
            }
        }
        shelf.close().unwrap();
        std::iter::from_fn(|| shelf.take().unwrap()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn a_file_gives_what_memory_gives(deeds in deeds()) {
            let directory = tempfile::tempdir().unwrap();
            let expected = outcome(&deeds, None);
            prop_assert!(outcome(&deeds, Some(directory.path())) == expected);
        }
    }

    #[test]
    fn a_halt_stands_beside_the_changes_and_has_an_ordinal() {
        let mut shelf = Shelf::default();
        let halt = Change::halt(TableName::new("s", "t"), Code::PoisonRow, "why".into());
        shelf.push(halt.clone());
        assert_eq!(shelf.take().unwrap(), Some(Item::Gap(1)));
        assert_eq!(shelf.take().unwrap(), None);
        assert_eq!(shelf.halts, [halt]);
    }

    #[test]
    fn a_shelf_that_is_closed_can_still_go_to_disk() {
        let directory = tempfile::tempdir().unwrap();
        let mut shelf = Shelf::default();
        shelf.skip(7);
        shelf.close().unwrap();
        shelf.spill(directory.path()).unwrap();
        assert_eq!(shelf.bytes(), 0);
        assert_eq!(shelf.take().unwrap(), Some(Item::Gap(7)));
        assert_eq!(shelf.take().unwrap(), None);
    }

    #[test]
    fn a_damaged_record_is_no_item() {
        let tables = [layout("a", &[("key", "k", "int")]).schema];
        let damaged: [&[u8]; 6] = [
            b"",
            b"G\0\0\0",
            b"x\0\0\0\0",
            b"T\x01\0\0\0",
            b"U\0\0\0\0\x08\0\0\0\x01\0\0\0",
            b"D\0\0\0\0\0\0\0\x01",
        ];
        for record in damaged {
            assert_eq!(read(record, &tables), None, "{record:?}");
        }
    }
}
