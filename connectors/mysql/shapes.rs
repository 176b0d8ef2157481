//! Follows the shapes of the replicated tables through the log: which layout a table map has, and
//! what ALTER makes of it. Pure; part of the builder in `transaction.rs`.
//!
//! Surprise: a table map may be older than anything the catalog can tell now. Without
//! `binlog_row_metadata = FULL` it has no names, so a table has *candidates*: the shapes that the
//! target was prepared for, the oldest first, then the present one. The first that fits is taken
//! and kept; an ALTER in the log changes every candidate that has not seen it.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use super::bytes::Decoded;
use super::ddl::{AddedColumn, Effect, Place};
use super::layout::{Layout, LayoutColumn};
use super::rows::{Plan, PlanColumn};
use super::table_map::{Columns, TableMap, Wire};
use super::types::{Labels, MysqlType};
use crate::ZeroDates;
use crate::schema::{TableName, TableSchema};

/// All tables that are replicated, and what the numbers in row events stand for.
#[derive(Debug)]
pub struct Shapes {
    tables: HashMap<TableName, Tracked>,
    maps: HashMap<u64, Mapped>,
    fold_names: bool,
    zero_dates: ZeroDates,
}

#[derive(Debug)]
struct Tracked {
    /// Its name as the catalog spells it.
    name: TableName,
    candidates: Vec<Layout>,
    /// Whether a table map has picked the one candidate.
    settled: bool,
    halted: bool,
    /// What the catalog answered to the last question; `None` within if the table is gone.
    answer: Option<Option<Layout>>,
}

/// A table map that was seen; it comes again before every statement's rows.
#[derive(Debug)]
struct Mapped {
    table: Option<TableName>,
    body: Vec<u8>,
    target: Target,
}

/// What becomes of rows.
#[derive(Clone, Debug)]
pub enum Target {
    /// The table is not replicated.
    Ignored,
    /// It was, until something happened to it. How its rows are laid out, if that is known.
    Halted(Arc<[Wire]>),
    /// They become changes.
    Rows(Arc<Plan>),
}

/// What came of a table map or of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// It is understood.
    Done,
    /// Only with what the catalog says about this table now.
    Ask(TableName),
    /// The table cannot be followed any more; why, in words that go on after its name.
    Halt(TableName, String),
}

impl Shapes {
    /// The tables as the catalog has them, and the shapes they had before, the oldest first.
    #[must_use]
    pub fn new(
        tables: Vec<Layout>,
        earlier: &[Arc<TableSchema>],
        fold_names: bool,
        zero_dates: ZeroDates,
    ) -> Shapes {
        let mut shapes =
            Shapes { tables: HashMap::new(), maps: HashMap::new(), fold_names, zero_dates };
        for layout in tables {
            let name = layout.schema.name.clone();
            let tracked = Tracked {
                candidates: candidates(layout, earlier),
                settled: false,
                halted: false,
                answer: None,
                name: name.clone(),
            };
            shapes.tables.insert(shapes.folded(&name), tracked);
        }
        shapes
    }

    fn folded(&self, name: &TableName) -> TableName {
        match self.fold_names {
            true => TableName::new(name.schema.to_lowercase(), name.name.to_lowercase()),
            false => name.clone(),
        }
    }

    /// The table of this name that is replicated and still followed, as the catalog spells it.
    #[must_use]
    pub fn followed(&self, name: &TableName) -> Option<&TableName> {
        let tracked = self.tables.get(&self.folded(name))?;
        (!tracked.halted).then_some(&tracked.name)
    }

    /// The followed tables of a database.
    #[must_use]
    pub fn of_database(&self, database: &str) -> Vec<TableName> {
        let database = self.folded(&TableName::new(database, "")).schema;
        let is_there =
            |(name, tracked): &(&TableName, &Tracked)| name.schema == database && !tracked.halted;
        let mut names: Vec<TableName> =
            self.tables.iter().filter(is_there).map(|(_, tracked)| tracked.name.clone()).collect();
        names.sort();
        names
    }

    /// The shape of a table at this point of the log, as far as it is known.
    #[must_use]
    pub fn schema(&self, name: &TableName) -> Option<Arc<TableSchema>> {
        let tracked = self.tables.get(&self.folded(name))?;
        tracked.candidates.first().map(|layout| layout.schema.clone())
    }

    /// No change of this table is delivered from here on.
    pub fn halt(&mut self, name: &TableName) {
        if let Some(tracked) = self.tables.get_mut(&self.folded(name)) {
            tracked.halted = true;
        }
        for mapped in self.maps.values_mut().filter(|mapped| mapped.table.as_ref() == Some(name)) {
            if let Target::Rows(plan) = &mapped.target {
                let wires = plan.columns.iter().map(|column| column.wire).collect();
                mapped.target = Target::Halted(wires);
            }
        }
    }

    /// Whether a table of this database is replicated.
    #[must_use]
    pub fn has_database(&self, database: &str) -> bool {
        let database = self.folded(&TableName::new(database, "")).schema;
        self.tables.keys().any(|name| name.schema == database)
    }

    /// Whether the catalog must be asked before this is done to a table.
    #[must_use]
    pub fn needs_answer(&self, name: &TableName, effect: &Effect) -> bool {
        self.tables.get(&self.folded(name)).is_some_and(|tracked| tracked.needs_answer(effect))
    }

    /// How the catalog defines a table now, after `Resolved::Ask`.
    pub fn define(&mut self, name: &TableName, now: Option<Layout>) {
        if let Some(tracked) = self.tables.get_mut(&self.folded(name)) {
            tracked.answer = Some(now);
        }
    }

    /// What becomes of the rows of this number; `None` before its table map.
    #[must_use]
    pub fn target(&self, id: u64) -> Option<&Target> {
        self.maps.get(&id).map(|mapped| &mapped.target)
    }

    /// Takes a table map.
    ///
    /// # Errors
    /// If its names cannot be read.
    pub fn map(&mut self, id: u64, body: &[u8]) -> Decoded<Resolved> {
        if self.maps.get(&id).is_some_and(|mapped| mapped.body == body) {
            return Ok(Resolved::Done);
        }
        let map = TableMap::read(body)?;
        let folded = self.folded(&TableName::new(map.database, map.table));
        let (table, target) = match self.tables.get_mut(&folded) {
            None => (None, Target::Ignored),
            Some(tracked) => match tracked.resolve(&map, self.zero_dates) {
                Ok(target) => (Some(tracked.name.clone()), target),
                Err(resolved) => {
                    // Not to be taken for that of the same number before it.
                    self.maps.remove(&id);
                    return Ok(resolved);
                }
            },
        };
        self.maps.insert(id, Mapped { table, body: body.to_vec(), target });
        Ok(Resolved::Done)
    }

    /// Takes what a statement does to the shape of a followed table.
    pub fn alter(&mut self, name: &TableName, effect: &Effect) -> Resolved {
        let folded = self.folded(name);
        let Some(tracked) = self.tables.get_mut(&folded) else { return Resolved::Done };
        let resolved = tracked.alter(effect);
        if resolved == Resolved::Done {
            let name = &tracked.name;
            self.maps.retain(|_, mapped| mapped.table.as_ref() != Some(name));
        }
        resolved
    }

    /// A new file begins, maybe of a server that was restarted and counts anew.
    pub fn forget_maps(&mut self) {
        self.maps.clear();
    }
}

impl Tracked {
    fn resolve(&mut self, map: &TableMap<'_>, zero_dates: ZeroDates) -> Result<Target, Resolved> {
        let columns = match map.columns() {
            Ok(columns) => columns,
            Err(_) if self.halted => return Ok(Target::Halted(Arc::new([]))),
            Err(malformed) => return Err(self.halt(&format!("is not understood: {malformed}"))),
        };
        if self.halted {
            return Ok(Target::Halted(columns.wires.into()));
        }
        if let Some(code) = columns.wires.iter().find_map(unreadable) {
            return Err(self.halt(code));
        }
        let fitting = self.candidates.iter().position(|layout| fits(layout, &columns));
        let layout = match fitting {
            Some(at) => self.candidates.swap_remove(at),
            None => self.ask_for(&columns)?,
        };
        let plan = plan(&layout, &columns, zero_dates);
        self.candidates = vec![layout];
        self.settled = true;
        match plan {
            Ok(plan) => Ok(Target::Rows(Arc::new(plan))),
            Err(malformed) => Err(self.halt(&malformed.to_string())),
        }
    }

    /// The layout of a table map that no candidate fits, out of what the catalog says now.
    fn ask_for(&mut self, columns: &Columns<'_>) -> Result<Layout, Resolved> {
        match self.answer.take() {
            None => Err(Resolved::Ask(self.name.clone())),
            Some(None) => Err(self.halt("was dropped")),
            Some(Some(now)) if fits(&now, columns) => Ok(now),
            Some(Some(now)) => columns
                .names
                .as_ref()
                .and_then(|names| picked(&now, names))
                .filter(|layout| fits(layout, columns))
                .ok_or_else(|| self.halt("has rows in a shape that is not known")),
        }
    }

    fn halt(&self, why: &str) -> Resolved {
        Resolved::Halt(self.name.clone(), why.to_owned())
    }

    fn alter(&mut self, effect: &Effect) -> Resolved {
        match effect {
            // One that is created was not there before: it has no rows to be read differently.
            Effect::Nothing | Effect::Truncate | Effect::Create => Resolved::Done,
            Effect::Change(what) => self.halt(what),
            Effect::Alter { added, drops_index } => {
                if !self.is_new(added, *drops_index) {
                    return self.already_there(added);
                }
                match self.answer.take() {
                    None => Resolved::Ask(self.name.clone()),
                    Some(None) => self.halt("was dropped"),
                    Some(Some(now)) => self.widen(added, *drops_index, &now),
                }
            }
        }
    }

    fn needs_answer(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Alter { added, drops_index } => {
                self.answer.is_none() && self.is_new(added, *drops_index)
            }
            Effect::Nothing | Effect::Truncate | Effect::Create | Effect::Change(_) => false,
        }
    }

    /// Whether this changes a candidate, or may change the key.
    fn is_new(&self, added: &[AddedColumn], drops_index: bool) -> bool {
        let lacks = |layout: &Layout| added.iter().any(|new| !has(layout, &new.name));
        drops_index || self.candidates.iter().any(lacks)
    }

    /// All candidates have the columns: they are of a later time, or the statement did nothing.
    fn already_there(&self, added: &[AddedColumn]) -> Resolved {
        match self.settled && added.iter().any(|new| !new.if_not_exists) {
            true => self.halt("got a column that it has already"),
            false => Resolved::Done,
        }
    }

    /// Adds the columns to the candidates that have not got them.
    fn widen(&mut self, added: &[AddedColumn], drops_index: bool, now: &Layout) -> Resolved {
        let has_other_key = |layout: &Layout| key_names(&layout.schema) != key_names(&now.schema);
        if drops_index && self.candidates.iter().any(has_other_key) {
            return self.halt("has another key");
        }
        let mut widened: Vec<Layout> = Vec::new();
        for layout in &self.candidates {
            let missing: Vec<&AddedColumn> =
                added.iter().filter(|new| !has(layout, &new.name)).collect();
            let is_whole = missing.len() == added.len();
            let may_be_there = added.iter().all(|new| new.if_not_exists || !has(layout, &new.name));
            let layout = match missing.is_empty() {
                true if self.settled && !may_be_there => None,
                true => Some(layout.clone()),
                // A shape that has some of them is of no point in this log.
                false if !is_whole && !may_be_there => None,
                false => with_columns(layout, &missing, now),
            };
            widened.extend(layout.filter(|layout| !widened.contains(layout)));
        }
        if widened.is_empty() {
            return self.halt("got a column that it has no more");
        }
        self.candidates = widened;
        Resolved::Done
    }
}

/// The layouts that a table may have when the log is opened, the oldest first.
fn candidates(now: Layout, earlier: &[Arc<TableSchema>]) -> Vec<Layout> {
    let mut candidates = Vec::new();
    for schema in earlier.iter().filter(|schema| schema.name == now.schema.name) {
        let place = |name: &str| schema.columns.iter().position(|column| column.name == name);
        // The log has generated columns too; which of them were there is not remembered.
        let with_generated = now
            .columns
            .iter()
            .filter(|column| column.place.is_none() || place(&column.name).is_some())
            .map(|column| LayoutColumn { name: column.name.clone(), place: place(&column.name) });
        let plain = schema
            .columns
            .iter()
            .enumerate()
            .map(|(place, column)| LayoutColumn { name: column.name.clone(), place: Some(place) });
        for columns in [with_generated.collect::<Vec<_>>(), plain.collect()] {
            let layout = Layout { schema: schema.clone(), columns };
            let places = layout.columns.iter().filter_map(|column| column.place);
            // Whole, and in the order that the table had then.
            let is_whole = places.eq(0..schema.columns.len());
            if is_whole && !candidates.contains(&layout) {
                candidates.push(layout);
            }
        }
    }
    if !candidates.contains(&now) {
        candidates.push(now);
    }
    candidates
}

/// Column names are compared without their case, as the server does.
fn is_named(name: &str, other: &str) -> bool {
    name == other || name.to_lowercase() == other.to_lowercase()
}

fn has(layout: &Layout, name: &str) -> bool {
    layout.columns.iter().any(|column| is_named(&column.name, name))
}

fn key_names(schema: &TableSchema) -> Vec<&str> {
    schema.key_columns().map(|column| column.name.as_str()).collect()
}

fn unreadable(wire: &Wire) -> Option<&'static str> {
    match wire {
        Wire::Other(140 | 141) => Some(
            "has a compressed column, which is not replicated; run `ALTER TABLE … MODIFY …` \
             without COMPRESSED",
        ),
        Wire::Other(_) => Some(
            "has a time column in the format of MySQL 5.5 and older; run `ALTER TABLE … FORCE`",
        ),
        _ => None,
    }
}

/// Whether rows of this layout are laid out like that.
fn fits(layout: &Layout, columns: &Columns<'_>) -> bool {
    if layout.columns.len() != columns.wires.len() {
        return false;
    }
    if let Some(names) = &columns.names
        && !layout.columns.iter().zip(names).all(|(column, name)| is_named(&column.name, name))
    {
        return false;
    }
    let mut signs = columns.unsigned.iter().flatten();
    layout.columns.iter().zip(&columns.wires).all(|(column, &wire)| {
        let sign = if has_sign(wire) { signs.next() } else { None };
        match column_type(layout, column) {
            // A generated column's type is not known, and its values are skipped.
            None => column.place.is_none(),
            Some(mysql_type) => {
                let is_unsigned = match mysql_type {
                    MysqlType::Integer { unsigned, .. } => Some(unsigned),
                    _ => None,
                };
                let same_sign =
                    is_unsigned.zip(sign).is_none_or(|(unsigned, &sign)| unsigned == sign);
                same_sign && mysql_type.fits(wire)
            }
        }
    })
}

/// Whether the table map has a bit for the sign of such a column.
fn has_sign(wire: Wire) -> bool {
    matches!(
        wire,
        Wire::Integer(_) | Wire::Decimal { .. } | Wire::Float | Wire::Double | Wire::Year
    )
}

fn column_type(layout: &Layout, column: &LayoutColumn) -> Option<MysqlType> {
    let native = layout.schema.columns.get(column.place?)?.native.as_deref()?;
    MysqlType::parse(native).ok()
}

/// The columns of these names out of a later layout; `None` if one of them is not there, or if
/// the key is not whole.
fn picked(now: &Layout, names: &[&str]) -> Option<Layout> {
    let mut schema = TableSchema { columns: Vec::new(), key: Vec::new(), ..(*now.schema).clone() };
    let mut columns = Vec::new();
    for name in names {
        let column = now.columns.iter().find(|column| is_named(&column.name, name))?;
        let place = column.place.map(|_| schema.columns.len());
        if let Some(at) = column.place {
            schema.columns.push(now.schema.columns.get(at)?.clone());
        }
        columns.push(LayoutColumn { name: column.name.clone(), place });
    }
    schema.key = key_places(&now.schema, &schema)?;
    Some(Layout { schema: Arc::new(schema), columns })
}

/// Where the key of `old` is in `new`.
fn key_places(old: &TableSchema, new: &TableSchema) -> Option<Vec<usize>> {
    let place = |key: &crate::schema::Column| new.columns.iter().position(|column| column == key);
    old.key_columns().map(place).collect()
}

/// The layout with these columns added, defined as they are now.
fn with_columns(layout: &Layout, added: &[&AddedColumn], now: &Layout) -> Option<Layout> {
    let mut names: Vec<&str> = layout.columns.iter().map(|column| column.name.as_str()).collect();
    for new in added {
        let at = match &new.place {
            Place::First => 0,
            Place::Last => names.len(),
            Place::After(other) => {
                names.iter().position(|name| is_named(name, other)).map(|at| at + 1)?
            }
        };
        names.insert(at, &new.name);
    }
    let old = |name: &str| layout.columns.iter().find(|column| is_named(&column.name, name));
    let mut schema =
        TableSchema { columns: Vec::new(), key: Vec::new(), ..(*layout.schema).clone() };
    let mut columns = Vec::new();
    for name in names {
        let (from, column) = match old(name) {
            Some(column) => (layout, column),
            None => (now, now.columns.iter().find(|column| is_named(&column.name, name))?),
        };
        let place = column.place.map(|_| schema.columns.len());
        if let Some(at) = column.place {
            schema.columns.push(from.schema.columns.get(at)?.clone());
        }
        columns.push(LayoutColumn { name: column.name.clone(), place });
    }
    schema.key = key_places(&layout.schema, &schema)?;
    Some(Layout { schema: Arc::new(schema), columns })
}

/// How to read rows of this layout.
fn plan(layout: &Layout, columns: &Columns<'_>, zero_dates: ZeroDates) -> Decoded<Plan> {
    let mut enum_labels = columns.enum_labels.iter().flatten();
    let mut set_labels = columns.set_labels.iter().flatten();
    let mut planned = Vec::with_capacity(columns.wires.len());
    for (column, &wire) in layout.columns.iter().zip(&columns.wires) {
        let labels = match wire {
            Wire::Enum(_) => enum_labels.next(),
            Wire::Set(_) => set_labels.next(),
            _ => None,
        };
        let mysql_type = match (column_type(layout, column), labels) {
            (Some(MysqlType::Enum(_, charset)), Some(labels)) => {
                Some(MysqlType::Enum(Labels::exact(labels, charset)?, charset))
            }
            (Some(MysqlType::Set(_, charset)), Some(labels)) => {
                Some(MysqlType::Set(Labels::exact(labels, charset)?, charset))
            }
            (mysql_type, _) => mysql_type,
        };
        planned.push(PlanColumn { wire, kept: column.place.zip(mysql_type) });
    }
    Ok(Plan { schema: layout.schema.clone(), columns: planned, zero_dates })
}
