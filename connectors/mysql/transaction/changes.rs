//! What the builder makes of row events: changes, or the reason why a table is halted.
//!
//! Surprise: of an update only the key of the row before it is read, unless the row after it lacks
//! columns, which then are as they were.

use super::{Builder, outside, wrong};
use crate::change::{Cell, Change, Key, Transaction};
use crate::error::{Code, Result};
use crate::mysql::binlog::{Operation, Rows};
use crate::mysql::bytes::{Decoded, Malformed, Reader};
use crate::mysql::rows::{Cells, Plan, Present, Wanted, skip_image};
use crate::mysql::shapes::Target;
use crate::mysql::table_map::Wire;
use crate::mysql::text::Refusal;
use crate::schema::TableSchema;

impl Builder {
    pub(super) fn rows(&mut self, rows: &Rows<'_>) -> Result<Option<Transaction>> {
        let target = self.shapes.target(rows.table).cloned();
        match target {
            None => Err(wrong(format!("rows of table {} before its table map", rows.table))),
            Some(Target::Ignored) => Ok(None),
            Some(Target::Halted(wires)) => {
                let open = self.open.as_mut().ok_or_else(outside)?;
                // Each row may have been two changes; a gap that is too wide does no harm.
                open.skip(2 * count_rows(rows, &wires))?;
                Ok(None)
            }
            Some(Target::Rows(plan)) => {
                let open = self.open.as_ref().ok_or_else(outside)?;
                if self.was_delivered(open.log) && !open.is_xa {
                    return Ok(None);
                }
                let part = self.next_part()?;
                self.read_rows(&plan, rows)?;
                Ok(part)
            }
        }
    }

    fn read_rows(&mut self, plan: &Plan, rows: &Rows<'_>) -> Result<()> {
        let mut reader = Reader::new(&rows.body);
        let images = Images::read(&mut reader, rows.operation)?;
        if images.columns != plan.columns.len() {
            return Err(wrong("a row event and its table map differ"));
        }
        while !reader.is_empty() {
            let before = reader;
            if let Err(halt) = self.read_row(plan, rows.operation, &images, &mut reader)? {
                let Halted { code, why } = halt;
                let table = &plan.schema.name;
                self.shapes.halt(table);
                let open = self.open.as_mut().ok_or_else(outside)?;
                open.push(Change::halt(table.clone(), code, why))?;
                // The row itself is left out too.
                let wires: Vec<_> = plan.columns.iter().map(|column| column.wire).collect();
                open.skip(2 * images.count(before, &wires).unwrap_or(before.rest().len()))?;
                return Ok(());
            }
        }
        Ok(())
    }

    /// One row; or why its table is halted.
    fn read_row(
        &mut self,
        plan: &Plan,
        operation: Operation,
        images: &Images<'_>,
        reader: &mut Reader<'_>,
    ) -> Result<std::result::Result<(), Halted>> {
        let Images { first, second, .. } = images;
        let (schema, open) = (&plan.schema, self.open.as_mut().ok_or_else(outside)?);
        let table = || schema.clone();
        match operation {
            Operation::Insert => {
                plan.read_image(reader, *first, Wanted::All, &mut self.after)?;
                if let Some(halted) = refused(schema, &self.after) {
                    return Ok(Err(halted));
                }
                open.push(Change::Upsert { table: table(), row: self.after.take() })?;
            }
            Operation::Delete => {
                plan.read_image(reader, *first, Wanted::Key, &mut self.before)?;
                if let Some(halted) = refused(schema, &self.before) {
                    return Ok(Err(halted));
                }
                open.push(Change::Delete { table: table(), key: key(schema, &self.before) })?;
            }
            Operation::Update => {
                let second = second.ok_or_else(|| wrong("an update has one image"))?;
                let is_full = second.is_full(plan.columns.len());
                let wanted = if is_full { Wanted::Key } else { Wanted::All };
                plan.read_image(reader, *first, wanted, &mut self.before)?;
                plan.read_image(reader, second, Wanted::All, &mut self.after)?;
                if !is_full {
                    // What the second image lacks is as it was.
                    self.after.complete_from(&self.before, schema.columns.len());
                }
                let refused = refused(schema, &self.before);
                if let Some(halted) = refused.or_else(|| self::refused(schema, &self.after)) {
                    return Ok(Err(halted));
                }
                if is_other_key(schema, &self.before, &self.after) {
                    open.push(Change::Delete { table: table(), key: key(schema, &self.before) })?;
                }
                open.push(Change::Upsert { table: table(), row: self.after.take() })?;
            }
        }
        Ok(Ok(()))
    }
}

/// Why a table is halted at a row.
struct Halted {
    code: Code,
    why: String,
}

/// The head of a rows event: how many columns, and which of them the images have.
struct Images<'a> {
    columns: usize,
    first: Present<'a>,
    second: Option<Present<'a>>,
}

impl<'a> Images<'a> {
    fn read(reader: &mut Reader<'a>, operation: Operation) -> Decoded<Images<'a>> {
        let columns = usize::try_from(reader.length_encoded()?)
            .map_err(|_| Malformed::new("a row has too many columns"))?;
        let first = Present::read(reader, columns)?;
        let second = match operation {
            Operation::Update => Some(Present::read(reader, columns)?),
            Operation::Insert | Operation::Delete => None,
        };
        Ok(Images { columns, first, second })
    }

    /// How many rows there are.
    fn count(&self, rows: Reader<'_>, wires: &[Wire]) -> Decoded<usize> {
        let (mut reader, mut count) = (rows, 0);
        while !reader.is_empty() {
            skip_image(&mut reader, wires, self.first)?;
            if let Some(second) = self.second {
                skip_image(&mut reader, wires, second)?;
            }
            count += 1;
        }
        Ok(count)
    }
}

/// How many rows an event has; at most one a byte, if they cannot be read.
fn count_rows(rows: &Rows<'_>, wires: &[Wire]) -> usize {
    let mut reader = Reader::new(&rows.body);
    let images = Images::read(&mut reader, rows.operation);
    let count = images.and_then(|images| match images.columns == wires.len() {
        true => images.count(reader, wires),
        false => Err(Malformed::new("another table")),
    });
    count.unwrap_or(rows.body.len())
}

/// Why a row cannot be replicated.
fn refused(schema: &TableSchema, cells: &Cells) -> Option<Halted> {
    let table = &schema.name;
    if let Some((place, refusal)) = cells.refused() {
        let column = schema.columns.get(*place).map_or("", |column| &column.name);
        let row = match schema.key.contains(place) {
            true => "a row".to_owned(),
            false => format!("the row with key hash {}", key(schema, cells).hash()),
        };
        let (code, what) = match refusal {
            Refusal::ZeroDate => (
                Code::ZeroDate,
                "a date that is in no calendar, such as 0000-00-00; correct it at the source, or \
                 set `zero_dates = \"null\"` in [source]"
                    .to_owned(),
            ),
            Refusal::Malformed(malformed) => (
                Code::PoisonRow,
                format!(
                    "a value that cannot be replicated ({malformed}); correct it at the source"
                ),
            ),
        };
        let why = format!(
            "table {table}: {row} has in column {column} {what}; then run \
             `driftless backfill --table {table}`"
        );
        return Some(Halted { code, why });
    }
    let lacks_key = |&place: &usize| !matches!(cells.cell(place), Cell::Value(_));
    if schema.key.iter().any(lacks_key) {
        let why = format!(
            "table {table}: the binary log has a row without its key; run \
             `SET GLOBAL binlog_row_image = 'FULL'`, end the sessions that set it themselves, then \
             run `driftless backfill --table {table}`"
        );
        return Some(Halted { code: Code::PartialRow, why });
    }
    None
}

/// The key of a row; values that it lacks are empty.
fn key(schema: &TableSchema, cells: &Cells) -> Key {
    Key::from_values(schema.key.iter().map(|&place| match cells.cell(place) {
        Cell::Value(value) | Cell::Binary(value) => value,
        Cell::Null | Cell::Absent => &[],
    }))
}

fn is_other_key(schema: &TableSchema, before: &Cells, after: &Cells) -> bool {
    schema.key.iter().any(|&place| before.cell(place) != after.cell(place))
}
