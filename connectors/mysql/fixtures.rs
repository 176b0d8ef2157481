//! Captured binary logs, as the client library would hand their events out. For tests.

use std::fs;
use std::io::Cursor;
use std::path::PathBuf;
use std::sync::Arc;

use mysql_async::binlog::BinlogVersion;
use mysql_async::binlog::events::{Event, FormatDescriptionEvent, TransactionPayloadEvent};

use super::binlog::{Decoder, RawEvent};
use super::layout::{Layout, LayoutColumn};
use super::transaction::{Builder, Step};
use super::types::MysqlType;
use crate::change::Transaction;
use crate::error::Result;
use crate::schema::{Column, Engine, TableName, TableSchema};

/// A captured log and what `SELECT` said afterwards.
pub struct Fixture {
    /// The events.
    pub events: Vec<Event>,
    /// The tables, each with its rows.
    pub tables: Vec<(Layout, Vec<Vec<Option<String>>>)>,
}

/// Reads `testdata/NAME.binlog` and `testdata/NAME.txt`.
pub fn read(name: &str) -> Fixture {
    let path = |ending: &str| {
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("mysql/testdata");
        directory.join(format!("{name}.{ending}"))
    };
    let text = fs::read_to_string(path("txt")).unwrap();
    Fixture { events: events(&fs::read(path("binlog")).unwrap()), tables: tables(&text) }
}

/// The events of a file, those of compressed transactions behind their envelope.
pub fn events(file: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    let mut format = FormatDescriptionEvent::new(BinlogVersion::Version4);
    let mut rest = &file[4..];
    while !rest.is_empty() {
        let size = u32::from_le_bytes(rest[9..13].try_into().unwrap()) as usize;
        let event = Event::read(&format, &rest[..size]).unwrap();
        rest = &rest[size..];
        match event.header().event_type_raw() {
            15 => {
                let read: FormatDescriptionEvent<'_> = event.read_event().unwrap();
                format = read.into_owned().with_footer(event.footer());
            }
            40 => {
                let payload: TransactionPayloadEvent<'_> = event.read_event().unwrap();
                let inner = payload.danger_decompress();
                events.push(event.clone());
                push_inner(&format, &inner, &mut events);
                continue;
            }
            _ => {}
        }
        events.push(event);
    }
    events
}

fn push_inner(format: &FormatDescriptionEvent<'static>, inner: &[u8], events: &mut Vec<Event>) {
    let mut footer = format.footer();
    footer.set_checksum_enabled(false);
    let format = format.clone().with_footer(footer);
    let mut cursor = Cursor::new(inner);
    while (cursor.position() as usize) < inner.len() {
        events.push(Event::read(&format, &mut cursor).unwrap());
    }
}

/// A layout: `key`, `column` or `generated`, a name and a type for each column.
pub fn layout(name: &str, columns: &[(&str, &str, &str)]) -> Layout {
    let mut schema = TableSchema {
        name: TableName::new("cmp", name),
        id: 0,
        engine: Engine::Mysql,
        columns: Vec::new(),
        key: Vec::new(),
    };
    let mut all = Vec::new();
    for &(kind, name, native) in columns {
        let place = (kind != "generated").then_some(schema.columns.len());
        all.push(LayoutColumn { name: name.into(), place });
        let Some(place) = place else { continue };
        if kind == "key" {
            schema.key.push(place);
        }
        schema.columns.push(Column {
            name: name.into(),
            column_type: MysqlType::parse(native).unwrap().column_type(),
            native: Some(native.into()),
            id: 0,
        });
    }
    Layout { schema: Arc::new(schema), columns: all }
}

fn tables(text: &str) -> Vec<(Layout, Vec<Vec<Option<String>>>)> {
    let mut tables = Vec::new();
    for table in text.split("\ntable\t").skip(1) {
        let mut lines = table.lines();
        let name = lines.next().unwrap();
        let (mut columns, mut rows) = (Vec::new(), Vec::new());
        for line in lines {
            let cells: Vec<&str> = line.split('\t').collect();
            match cells[0] {
                "row" => rows.push(cells[1..].iter().map(|cell| unescaped(cell)).collect()),
                kind => columns.push((kind, cells[1], unescaped(cells[2]).unwrap())),
            }
        }
        let columns: Vec<(&str, &str, &str)> =
            columns.iter().map(|(kind, name, native)| (*kind, *name, native.as_str())).collect();
        tables.push((layout(name, &columns), rows));
    }
    tables
}

fn unescaped(cell: &str) -> Option<String> {
    if cell == "\\N" {
        return None;
    }
    let mut text = String::new();
    let mut characters = cell.chars();
    while let Some(character) = characters.next() {
        text.push(match character {
            '\\' => match characters.next().unwrap() {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                other => other,
            },
            other => other,
        });
    }
    Some(text)
}

/// What the builder makes of events. Asked about a table, it is told its layout among `now`.
pub fn transactions(
    builder: &mut Builder,
    events: &[Event],
    now: &[Layout],
) -> Result<Vec<Transaction>> {
    let mut decoder = Decoder::new();
    let mut transactions = Vec::new();
    for event in events {
        let raw = RawEvent::of(event)?;
        let (header, event) = decoder.decode(&raw)?;
        loop {
            match builder.feed(&header, &event)? {
                Step::Taken(transaction) => {
                    transactions.extend(transaction);
                    break;
                }
                Step::Ask(table) => {
                    let layout = now.iter().find(|layout| layout.schema.name == table);
                    builder.define(&table, layout.cloned());
                }
                Step::Part(part) => transactions.push(part),
                Step::NoRoom(error) => panic!("{error}"),
            }
        }
    }
    Ok(transactions)
}
