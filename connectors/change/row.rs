//! A row in memory: all its cells in one allocation.

use std::fmt;

use crate::schema::TableSchema;

/// One value. Absent is not NULL: it must never overwrite anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    /// A value in the canonical text form of its `ColumnType`.
    Value(&'a [u8]),
    /// A value in the binary form of its column's type in PostgreSQL. Only between two such
    /// databases (`SourceOptions::in_binary`), and never in a key.
    Binary(&'a [u8]),
    /// SQL NULL.
    Null,
    /// The log did not carry this column.
    Absent,
}

/// The cells of one row in the order of its schema's columns, in one allocation: a table of
/// (offset, length) pairs, then the values. The highest bit of a length marks a value in binary.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Row {
    bytes: Box<[u8]>,
    /// Asked of every row several times, and long after its bytes have left the processor's cache.
    has_absent: bool,
}

const SPAN: usize = 8;
const NULL: u32 = u32::MAX;
const ABSENT: u32 = u32::MAX - 1;
const BINARY: u32 = 1 << 31;
/// A row of more bytes is not copied when it is built.
const COPIED_MAX: usize = 64 << 10;

impl Row {
    /// Builds a row from its cells.
    pub fn from_cells<'a>(cells: impl IntoIterator<Item = Cell<'a>>) -> Row {
        let cells: Vec<Cell<'a>> = cells.into_iter().collect();
        let mut row = RowBuilder::new(cells.len(), cells.iter().map(|cell| cell.len()).sum());
        cells.into_iter().for_each(|cell| row.push(cell));
        row.finish()
    }

    /// How many cells it has.
    #[must_use]
    pub fn len(&self) -> usize {
        // The first value begins where the table of spans ends.
        self.bytes.first_chunk().map_or(0, |first| u32::from_le_bytes(*first) as usize / SPAN)
    }

    /// Whether it has no cells.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The cell at this place.
    ///
    /// # Panics
    /// If the row has fewer cells: a defect, rows and schemas travel together.
    #[must_use]
    pub fn cell(&self, index: usize) -> Cell<'_> {
        assert!(index < self.len(), "cell {index} of a row of {}", self.len());
        cell(&self.bytes, index)
    }

    /// Whether the key columns have values, as every row of a log must.
    #[must_use]
    pub fn has_key(&self, table: &TableSchema) -> bool {
        table.key.iter().all(|&index| matches!(self.cell(index), Cell::Value(_)))
    }

    /// All cells in order.
    pub fn cells(&self) -> impl ExactSizeIterator<Item = Cell<'_>> {
        (0..self.len()).map(|index| self.cell(index))
    }

    /// Whether any cell is absent.
    #[must_use]
    pub fn has_absent(&self) -> bool {
        self.has_absent
    }

    /// This row, with its absent cells taken from `older`.
    #[must_use]
    pub fn filled_from(&self, older: &Row) -> Row {
        let pick = |(new, old)| if new == Cell::Absent { old } else { new };
        Row::from_cells(self.cells().zip(older.cells()).map(pick))
    }

    /// The stored form.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads the stored form; `None` if it is damaged.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Row> {
        let cells = bytes.first_chunk().map_or(0, |first| u32::from_le_bytes(*first) as usize);
        let (spans, []) = bytes.get(..cells)?.as_chunks::<SPAN>() else { return None };
        let is_within = |&[a, b, c, d, length @ ..]: &[u8; SPAN]| {
            let offset = u32::from_le_bytes([a, b, c, d]) as usize;
            let length = match u32::from_le_bytes(length) {
                NULL | ABSENT => 0,
                length => (length & !BINARY) as usize,
            };
            offset.checked_add(length).is_some_and(|end| end <= bytes.len())
        };
        let is_whole = bytes.is_empty() == spans.is_empty() && spans.iter().all(is_within);
        is_whole.then(|| {
            let has_absent = (0..spans.len()).any(|index| cell(bytes, index) == Cell::Absent);
            Row { bytes: bytes.into(), has_absent }
        })
    }

    /// Bytes held.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len() + std::mem::size_of::<Row>()
    }
}

/// A cell of a row's stored form.
fn cell(row: &[u8], index: usize) -> Cell<'_> {
    let (spans, _) = row.as_chunks::<SPAN>();
    let span = u64::from_le_bytes(spans[index]);
    let offset = span as u32 as usize;
    match (span >> 32) as u32 {
        NULL => Cell::Null,
        ABSENT => Cell::Absent,
        length if length & BINARY == 0 => Cell::Value(&row[offset..offset + length as usize]),
        length => Cell::Binary(&row[offset..offset + (length & !BINARY) as usize]),
    }
}

/// A row whose number of cells is known before its cells are. With the right size it is built in
/// one allocation; or many rows are built in one builder, each of which then needs one.
#[derive(Debug, Default)]
pub struct RowBuilder {
    bytes: Vec<u8>,
    cells: usize,
    pushed: usize,
    has_absent: bool,
}

impl RowBuilder {
    /// For so many cells with about so many bytes of values.
    #[must_use]
    pub fn new(cells: usize, value_bytes: usize) -> RowBuilder {
        let bytes = Vec::with_capacity(cells * SPAN + value_bytes);
        let mut row = RowBuilder { bytes, cells, pushed: 0, has_absent: false };
        row.restart(cells);
        row
    }

    /// Begins another row, of so many cells, in the same memory.
    pub fn restart(&mut self, cells: usize) {
        self.bytes.clear();
        self.bytes.resize(cells * SPAN, 0);
        (self.cells, self.pushed, self.has_absent) = (cells, 0, false);
    }

    /// The cell at this place; absent if it has not been pushed.
    #[must_use]
    pub fn cell(&self, index: usize) -> Cell<'_> {
        if index < self.pushed { cell(&self.bytes, index) } else { Cell::Absent }
    }

    /// Appends the next cell.
    ///
    /// # Panics
    /// If there are more cells than were announced: a defect.
    #[inline]
    pub fn push(&mut self, cell: Cell<'_>) {
        let offset = self.bytes.len();
        let length = match cell {
            Cell::Value(value) => {
                self.bytes.extend_from_slice(value);
                value.len() as u32
            }
            Cell::Binary(value) => {
                self.bytes.extend_from_slice(value);
                value.len() as u32 | BINARY
            }
            Cell::Null => NULL,
            Cell::Absent => ABSENT,
        };
        self.end_cell(offset, length);
    }

    /// Appends the next cell: the value that `write` appends to what it is given; NULL, if it says
    /// that it is no value.
    ///
    /// # Panics
    /// As `push`.
    // It is hardly more than what `write` is; a call between them would cost as much as most values.
    #[inline(always)]
    pub fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>) -> bool) {
        let offset = self.bytes.len();
        let length = match write(&mut self.bytes) {
            true => (self.bytes.len() - offset) as u32,
            false => {
                self.bytes.truncate(offset);
                NULL
            }
        };
        self.end_cell(offset, length);
    }

    /// Appends absent cells up to this place.
    ///
    /// # Panics
    /// If there are more cells already: a defect.
    #[inline]
    pub fn skip_to(&mut self, place: usize) {
        while self.pushed < place {
            self.push(Cell::Absent);
        }
        assert_eq!(self.pushed, place, "a row's cells are not pushed in their order");
    }

    fn end_cell(&mut self, offset: usize, length: u32) {
        assert!(self.pushed < self.cells, "a row has more cells than were announced");
        let at = self.pushed * SPAN;
        let span = u64::from(length) << 32 | u64::from(offset as u32);
        self.bytes[at..at + SPAN].copy_from_slice(&span.to_le_bytes());
        self.pushed += 1;
        self.has_absent |= length == ABSENT;
    }

    /// The row.
    ///
    /// # Panics
    /// If there are fewer cells than were announced: a defect.
    #[must_use]
    pub fn finish(self) -> Row {
        self.assert_whole();
        Row { bytes: self.bytes.into_boxed_slice(), has_absent: self.has_absent }
    }

    /// The row; begin another one before the next cell. A small one is a copy, and the memory stays
    /// here; a large one takes it along.
    ///
    /// # Panics
    /// As `finish`.
    #[must_use]
    pub fn take(&mut self) -> Row {
        self.assert_whole();
        let bytes = match self.bytes.len() {
            ..=COPIED_MAX => self.bytes.as_slice().into(),
            _ => std::mem::take(&mut self.bytes).into_boxed_slice(),
        };
        self.pushed = 0;
        Row { bytes, has_absent: self.has_absent }
    }

    fn assert_whole(&self) {
        assert_eq!(self.pushed, self.cells, "a row has fewer cells than were announced");
    }
}

impl Cell<'_> {
    fn len(&self) -> usize {
        match self {
            Cell::Value(value) | Cell::Binary(value) => value.len(),
            Cell::Null | Cell::Absent => 0,
        }
    }
}

// Row values never reach a log, not even through a debug print.
impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Row({} cells, {} bytes)", self.len(), self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Absent, NULL, or a value in text or in binary.
    type AnyCell = Option<Option<(bool, Vec<u8>)>>;

    fn any_cells() -> impl Strategy<Value = Vec<AnyCell>> {
        proptest::collection::vec(any::<AnyCell>(), 0..9)
    }

    fn cell(cell: &AnyCell) -> Cell<'_> {
        match cell {
            None => Cell::Absent,
            Some(None) => Cell::Null,
            Some(Some((false, value))) => Cell::Value(value),
            Some(Some((true, value))) => Cell::Binary(value),
        }
    }

    proptest! {
        #[test]
        fn a_row_gives_back_its_cells(cells in any_cells()) {
            let row = Row::from_cells(cells.iter().map(cell));
            prop_assert_eq!(row.len(), cells.len());
            prop_assert!(row.cells().eq(cells.iter().map(cell)));
            prop_assert_eq!(row.has_absent(), cells.contains(&None));
            prop_assert_eq!(Row::from_bytes(row.as_bytes()), Some(row));
        }

        #[test]
        fn a_row_is_the_same_however_it_is_built(rows in proptest::collection::vec(any_cells(), 3)) {
            let mut builder = RowBuilder::default();
            for cells in rows {
                builder.restart(cells.len());
                for (place, cell) in cells.iter().enumerate() {
                    // Absent cells are passed over.
                    let Some(value) = cell else { continue };
                    builder.skip_to(place);
                    match value {
                        Some((true, value)) => builder.push(Cell::Binary(value)),
                        Some((false, value)) => builder.push_with(|out| {
                            out.extend_from_slice(value);
                            true
                        }),
                        None => builder.push_with(|out| {
                            out.extend_from_slice(b"no value");
                            false
                        }),
                    }
                }
                builder.skip_to(cells.len());
                prop_assert!((0..cells.len()).all(|at| builder.cell(at) == cell(&cells[at])));
                prop_assert_eq!(builder.take(), Row::from_cells(cells.iter().map(cell)));
            }
        }
    }

    #[test]
    fn a_large_row_takes_its_memory_along() {
        let (mut builder, large) = (RowBuilder::default(), vec![b'x'; COPIED_MAX]);
        for value in [&large[..], b"x", &large[1..]] {
            builder.restart(1);
            builder.push(Cell::Value(value));
            assert_eq!(builder.take(), Row::from_cells([Cell::Value(value)]));
        }
        assert_eq!(builder.bytes.capacity(), 0);
    }

    #[test]
    fn an_absent_cell_is_filled_and_a_null_is_not() {
        let new = Row::from_cells([Cell::Value(b"1"), Cell::Absent, Cell::Null]);
        let old = Row::from_cells([Cell::Value(b"0"), Cell::Value(b"x"), Cell::Value(b"y")]);
        let filled = Row::from_cells([Cell::Value(b"1"), Cell::Value(b"x"), Cell::Null]);
        assert_eq!(new.filled_from(&old), filled);
    }
}
