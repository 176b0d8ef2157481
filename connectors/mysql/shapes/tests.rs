//! Table maps with names and without, against shapes of several times.

use super::*;
use crate::mysql::fixtures::layout;

const INT: u8 = 3;
const VARCHAR: u8 = 15;

/// A table map of `cmp.t`: types, their metadata, and the columns' names if it has them.
fn map(types: &[u8], metadata: &[u8], names: &[&str]) -> Vec<u8> {
    let mut body = vec![7, 0, 0, 0, 0, 0, 0, 0, 3];
    body.extend_from_slice(b"cmp\0\x01t\0");
    body.push(types.len() as u8);
    body.extend_from_slice(types);
    body.push(metadata.len() as u8);
    body.extend_from_slice(metadata);
    body.push(0);
    if !names.is_empty() {
        let names: Vec<u8> =
            names.iter().flat_map(|name| [&[name.len() as u8], name.as_bytes()].concat()).collect();
        body.push(4);
        body.push(names.len() as u8);
        body.extend_from_slice(&names);
    }
    body
}

fn t(columns: &[(&str, &str, &str)]) -> Layout {
    let mut all = vec![("key", "k", "int")];
    all.extend_from_slice(columns);
    layout("t", &all)
}

fn shapes(now: &Layout, earlier: &[Layout]) -> Shapes {
    let earlier: Vec<_> = earlier.iter().map(|layout| layout.schema.clone()).collect();
    Shapes::new(vec![now.clone()], &earlier, false, ZeroDates::Stop)
}

fn name() -> TableName {
    TableName::new("cmp", "t")
}

/// The names of the columns that rows of this map have, after the catalog has been asked.
fn columns(shapes: &mut Shapes, body: &[u8], now: Option<&Layout>) -> Result<Vec<String>, String> {
    let mut resolved = shapes.map(7, body).unwrap();
    if resolved == Resolved::Ask(name()) {
        shapes.define(&name(), now.cloned());
        resolved = shapes.map(7, body).unwrap();
    }
    match (resolved, shapes.target(7)) {
        (Resolved::Done, Some(Target::Rows(plan))) => {
            Ok(plan.schema.columns.iter().map(|column| column.name.clone()).collect())
        }
        (Resolved::Halt(_, why), _) => Err(why),
        (other, target) => panic!("{other:?} {target:?}"),
    }
}

fn alter(shapes: &mut Shapes, text: &str, now: Option<&Layout>) -> Result<(), String> {
    use crate::mysql::binlog::Query;
    use crate::mysql::ddl::Statement;
    let query =
        Query { database: "cmp", text: text.into(), ansi_quotes: false, no_backslash: false };
    let Statement::Tables(effects) = Statement::read(&query) else { panic!("{text}") };
    if shapes.needs_answer(&name(), &effects[0].1) {
        shapes.define(&name(), now.cloned());
    }
    match shapes.alter(&name(), &effects[0].1) {
        Resolved::Done => Ok(()),
        Resolved::Halt(_, why) => Err(why),
        ask @ Resolved::Ask(_) => panic!("{ask:?}"),
    }
}

const INT_COLUMN: (&str, &str, &str) = ("column", "v", "int");

#[test]
fn rows_of_an_earlier_shape_are_read_with_it() {
    let (old, new) = (t(&[]), t(&[INT_COLUMN]));
    let mut shapes = shapes(&new, std::slice::from_ref(&old));
    assert_eq!(columns(&mut shapes, &map(&[INT], &[], &[]), None).unwrap(), ["k"]);
    alter(&mut shapes, "ALTER TABLE t ADD v int", Some(&new)).unwrap();
    assert_eq!(columns(&mut shapes, &map(&[INT, INT], &[], &[]), None).unwrap(), ["k", "v"]);
}

#[test]
fn several_columns_are_followed_one_after_another() {
    let now = t(&[("column", "c", "int"), ("generated", "g", "int"), INT_COLUMN]);
    let mut shapes = shapes(&now, &[t(&[])]);
    alter(&mut shapes, "ALTER TABLE t ADD v int", Some(&now)).unwrap();
    assert_eq!(columns(&mut shapes, &map(&[INT, INT], &[], &[]), None).unwrap(), ["k", "v"]);
    alter(&mut shapes, "ALTER TABLE t ADD g int AS (1) AFTER k", Some(&now)).unwrap();
    let three = map(&[INT, INT, INT], &[], &[]);
    assert_eq!(columns(&mut shapes, &three, None).unwrap(), ["k", "v"]);
    alter(&mut shapes, "ALTER TABLE t ADD C int AFTER K", Some(&now)).unwrap();
    let four = map(&[INT; 4], &[], &[]);
    assert_eq!(columns(&mut shapes, &four, None).unwrap(), ["k", "c", "v"]);
}

#[test]
fn a_column_that_is_gone_again_halts() {
    let old = t(&[]);
    let mut shapes = shapes(&old, &[]);
    let halted = alter(&mut shapes, "ALTER TABLE t ADD v int", Some(&old));
    assert_eq!(halted.unwrap_err(), "got a column that it has no more");
}

#[test]
fn a_key_whose_index_was_dropped_halts() {
    let now = t(&[INT_COLUMN]);
    let other = layout("t", &[("column", "k", "int"), ("key", "v", "int")]);
    let drop_index = "ALTER TABLE t DROP INDEX i";
    alter(&mut shapes(&now, &[]), drop_index, Some(&now)).unwrap();
    assert!(alter(&mut shapes(&now, &[]), drop_index, Some(&other)).is_err());
    assert!(alter(&mut shapes(&now, &[]), drop_index, None).is_err());
}

#[test]
fn names_tell_columns_of_one_type_apart() {
    let now = t(&[("column", "a", "int"), ("column", "b", "int")]);
    let names = |names: &[&str]| {
        let body = map(&vec![INT; names.len()], &[], names);
        columns(&mut shapes(&now, &[]), &body, Some(&now))
    };
    assert_eq!(names(&["k", "a", "b"]).unwrap(), ["k", "a", "b"]);
    // As it was before one of them was added, which nobody remembers.
    assert_eq!(names(&["k", "b"]).unwrap(), ["k", "b"]);
    assert!(names(&["k", "b", "x"]).is_err());
    assert!(names(&["a", "b"]).is_err(), "without its key");
}

#[test]
fn another_type_does_not_fit() {
    let now = t(&[("column", "v", "varchar(10) character set utf8mb4")]);
    let fits = |types: &[u8], metadata: &[u8]| {
        columns(&mut shapes(&now, &[]), &map(types, metadata, &[]), Some(&now)).is_ok()
    };
    assert!(fits(&[INT, VARCHAR], &[40, 0]));
    assert!(!fits(&[INT, VARCHAR], &[30, 0]));
    assert!(!fits(&[INT, INT], &[]));
    assert!(!fits(&[INT], &[]));
}

#[test]
fn columns_that_are_not_replicated_halt_with_a_remedy() {
    let now = t(&[INT_COLUMN]);
    for (code, metadata, remedy) in
        [(141, &[40, 0][..], "COMPRESSED"), (12, &[], "FORCE"), (99, &[], "type 99")]
    {
        let body = map(&[INT, code], metadata, &[]);
        let why = columns(&mut shapes(&now, &[]), &body, Some(&now)).unwrap_err();
        assert!(why.contains(remedy), "{why}");
    }
}

#[test]
fn other_tables_are_ignored_and_halted_ones_counted() {
    let now = t(&[INT_COLUMN]);
    let mut shapes = shapes(&now, &[]);
    let mut other = map(&[INT], &[], &[]);
    other[14] = b'x';
    assert_eq!(shapes.map(8, &other).unwrap(), Resolved::Done);
    assert!(matches!(shapes.target(8), Some(Target::Ignored)));
    columns(&mut shapes, &map(&[INT, INT], &[], &[]), None).unwrap();
    shapes.halt(&name());
    assert!(matches!(shapes.target(7), Some(Target::Halted(wires)) if wires.len() == 2));
    assert_eq!(shapes.followed(&name()), None);
    assert_eq!(shapes.of_database("cmp"), []);
}
