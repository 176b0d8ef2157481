//! The shapes that tables had before, kept in the state directory: a log that does not describe its
//! rows itself may still be before the change when the target is already prepared for the new shape.
//!
//! Surprise: a shape is kept only while the table's present one has all its columns. After any
//! other change the table is copied again, and an old shape that fits by accident would be worse
//! than none.

use connectors::error::{Code, Error, Result};
use connectors::schema::{Evolution, TableSchema};
use state::{PastShape, Store};

use crate::persist::{blocking, state_error};

/// Shapes kept of one table; the oldest go first.
const SHAPES_MAX: usize = 8;

/// The shapes of earlier times, the oldest first.
///
/// # Errors
/// The state directory, or a shape that another version wrote.
pub fn recall(store: &dyn Store) -> Result<Vec<TableSchema>> {
    let shapes = blocking(|| store.past_shapes()).map_err(|error| state_error(&error))?;
    shapes.iter().map(|past| serde_json::from_str(&past.shape).map_err(|_| unreadable())).collect()
}

/// Adds the shape that a table has had until now.
///
/// # Errors
/// The state directory.
pub fn add(store: &dyn Store, shape: &TableSchema) -> Result<()> {
    let mut shapes = recall(store)?;
    if shapes.contains(shape) {
        return Ok(());
    }
    shapes.push(shape.clone());
    let of_table = |past: &TableSchema| past.name == shape.name;
    if shapes.iter().filter(|past| of_table(past)).count() > SHAPES_MAX
        && let Some(oldest) = shapes.iter().position(of_table)
    {
        shapes.remove(oldest);
    }
    save(store, &shapes)
}

/// Replaces what is kept.
///
/// # Errors
/// The state directory.
pub fn save(store: &dyn Store, shapes: &[TableSchema]) -> Result<()> {
    let past = |schema: &TableSchema| {
        let shape = serde_json::to_string(schema).map_err(|_| unreadable())?;
        let (schema, table) = (schema.name.schema.clone(), schema.name.name.clone());
        Ok(PastShape { schema, table, shape })
    };
    let shapes: Vec<PastShape> = shapes.iter().map(past).collect::<Result<_>>()?;
    blocking(|| store.save_past_shapes(&shapes)).map_err(|error| state_error(&error))
}

/// Whether rows of this past shape can still come for a table that has this shape now.
#[must_use]
pub fn leads_to(past: &TableSchema, now: &TableSchema) -> bool {
    past.name == now.name
        && matches!(past.evolution(now), Evolution::Added(_) | Evolution::Reordered)
}

fn unreadable() -> Error {
    Error::stop(Code::StateCorrupt, "a table's past shape in the state directory cannot be read")
}

#[cfg(test)]
mod tests {
    use connectors::schema::{Column, ColumnType, Engine, TableName};
    use state::MemoryDisk;

    use super::*;

    fn shape(columns: u32) -> TableSchema {
        let column = |id: u32| Column {
            name: format!("c{id}"),
            column_type: ColumnType::Int64,
            native: None,
            id,
        };
        TableSchema {
            name: TableName::new("shop", "t"),
            id: 0,
            engine: Engine::Memory,
            columns: (0..columns).map(column).collect(),
            key: vec![0],
        }
    }

    #[test]
    fn shapes_come_back_in_their_order_and_the_oldest_go_first() {
        let store = MemoryDisk::new().open("main").unwrap().store;
        assert_eq!(recall(&*store).unwrap(), []);
        for columns in [1, 2, 2, 3, 4, 5, 6, 7, 8, 9] {
            add(&*store, &shape(columns)).unwrap();
        }
        let expected: Vec<TableSchema> = (2..=9).map(shape).collect();
        assert_eq!(recall(&*store).unwrap(), expected);
        store.reset().unwrap();
        assert_eq!(recall(&*store).unwrap(), []);
    }

    #[test]
    fn a_shape_is_of_use_only_while_the_table_has_all_its_columns() {
        assert!(leads_to(&shape(1), &shape(3)));
        assert!(!leads_to(&shape(3), &shape(1)) && !leads_to(&shape(1), &shape(1)));
        let mut other = shape(3);
        other.columns[0].column_type = ColumnType::Text;
        assert!(!leads_to(&shape(1), &other));
    }
}
