//! Values at their limits, images that lack columns, and bytes that are none.

use proptest::prelude::*;

use super::*;
use crate::change::Key;
use crate::mysql::fixtures::layout;

/// A plan for a key `k` and one more column.
fn plan(native: &str, wire: Wire) -> Plan {
    let layout = layout("t", &[("key", "k", "tinyint"), ("column", "v", native)]);
    let column = |wire, place, native: &str| PlanColumn {
        wire,
        kept: Some((place, MysqlType::parse(native).unwrap())),
    };
    let columns = vec![column(Wire::Integer(1), 0, "tinyint"), column(wire, 1, native)];
    Plan { schema: layout.schema, columns, zero_dates: ZeroDates::Null }
}

/// The text of a value of this type that stands in the log as these bytes.
fn value(native: &str, wire: Wire, bytes: &[u8]) -> String {
    let plan = plan(native, wire);
    let image = [&[0, 1], bytes].concat();
    let (mut reader, mut cells) = (Reader::new(&image), Cells::default());
    let present = Present::read(&mut Reader::new(&[0b11]), 2).unwrap();
    plan.read_image(&mut reader, present, Wanted::All, &mut cells).unwrap();
    assert!(reader.is_empty(), "{native}");
    assert_eq!(cells.cell(0), Cell::Value(b"1"));
    match (cells.cell(1), cells.refused()) {
        (_, Some((1, refusal))) => format!("{refusal:?}"),
        (Cell::Value(text), _) => String::from_utf8(text.to_vec()).unwrap(),
        (cell, _) => format!("{cell:?}"),
    }
}

#[test]
fn numbers_have_their_signs() {
    let mediumint = |native| value(native, Wire::Integer(3), &[0, 0, 0x80]);
    assert_eq!(mediumint("mediumint"), "-8388608");
    assert_eq!(mediumint("mediumint unsigned"), "8388608");
    let bigint = |native| value(native, Wire::Integer(8), &[0xff; 8]);
    assert_eq!(bigint("bigint"), "-1");
    assert_eq!(bigint("bigint unsigned"), "18446744073709551615");
    assert_eq!(value("year", Wire::Year, &[0]), "0");
    assert_eq!(value("year", Wire::Year, &[255]), "2155");
}

#[test]
fn times_before_zero_have_fractions_too() {
    let time =
        |digits: u8, bytes: &[u8]| value(&format!("time({digits})"), Wire::Time(digits), bytes);
    assert_eq!(time(0, &[0x7f, 0xff, 0xff]), "-00:00:01");
    assert_eq!(time(1, &[0x7f, 0xff, 0xff, 0xf6]), "-00:00:00.1");
    assert_eq!(time(6, &[0x80, 0, 0, 0, 0, 1]), "00:00:00.000001");
}

#[test]
fn instants_go_on_after_2038() {
    let timestamp = |bytes: &[u8]| value("timestamp", Wire::Timestamp(0), bytes);
    assert_eq!(timestamp(&[0x7f, 0xff, 0xff, 0xff]), "2038-01-19 03:14:07+00");
    assert_eq!(timestamp(&[0xff, 0xff, 0xff, 0xff]), "2106-02-07 06:28:15+00");
    assert_eq!(timestamp(&[0, 0, 0, 0]), "Null");
}

#[test]
fn values_that_were_shortened_have_their_length_again() {
    assert_eq!(value("binary(4)", Wire::String(4), &[2, 1, 2]), "\\x01020000");
    assert_eq!(value("varbinary(4)", Wire::VarChar(4), &[2, 1, 0]), "\\x0100");
    assert_eq!(value("inet4", Wire::String(4), &[1, 10]), "10.0.0.0");
    let inet6 = |bytes: &[u8]| value("inet6", Wire::String(16), bytes);
    assert_eq!(inet6(&[0]), "::");
    assert_eq!(inet6(&[4, 0x20, 1, 0xd, 0xb8]), "2001:db8::");
    assert_eq!(value("uuid", Wire::String(16), &[1, 1]), "01000000-0000-0000-0000-000000000000");
    assert_eq!(value("bit(9)", Wire::Bit(9), &[1, 1]), "100000001");
}

#[test]
fn addresses_are_written_as_the_server_writes_them() {
    let check = |words: [u16; 8], expected: &str| {
        let mut bytes = [0; 16];
        for (pair, word) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(words) {
            *pair = word.to_be_bytes();
        }
        let mut out = Vec::new();
        push_inet6(bytes, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    };
    check([0x1234, 0, 0x1034, 0, 0xffff, 0xffff, 0xa0b, 0], "1234::1034:0:ffff:ffff:a0b:0");
    check([0, 0, 0, 0, 0, 0, 0xa0b, 0], "::10.11.0.0");
    check([0, 0, 0, 0, 0, 0xffff, 0x102, 0x304], "::ffff:1.2.3.4");
    check([0, 0, 0, 0, 0, 0, 0, 1], "::1");
    check([1, 0, 0, 2, 0, 0, 0, 0], "1:0:0:2::");
    check([1, 2, 3, 4, 5, 6, 7, 8], "1:2:3:4:5:6:7:8");
}

#[test]
fn labels_stand_for_their_numbers() {
    let label = |number| value("enum('a','b') character set latin1", Wire::Enum(1), &[number]);
    assert_eq!(label(0), "");
    assert_eq!(label(2), "b");
    assert!(label(3).starts_with("Malformed"));
    let set = |number| value("set('a','b','c') character set latin1", Wire::Set(1), &[number]);
    assert_eq!(set(0), "");
    assert_eq!(set(5), "a,c");
}

#[test]
fn a_value_that_is_refused_leaves_the_row_readable() {
    let text = value("varchar(5) character set utf8mb4", Wire::VarChar(20), &[1, 0xff]);
    assert!(text.starts_with("Malformed"), "{text}");
}

#[test]
fn absent_is_not_null() {
    let plan = plan("int", Wire::Integer(4));
    let read = |bits: u8, image: &[u8]| {
        let bits = [bits];
        let present = Present::read(&mut Reader::new(&bits), 2).unwrap();
        let mut cells = Cells::default();
        plan.read_image(&mut Reader::new(image), present, Wanted::All, &mut cells).unwrap();
        cells
    };
    let cells = read(0b01, &[0, 1]);
    assert_eq!((cells.cell(0), cells.cell(1)), (Cell::Value(b"1"), Cell::Absent));
    // The bits for NULL count only the columns that are there.
    let mut cells = read(0b10, &[1]);
    assert_eq!((cells.cell(0), cells.cell(1)), (Cell::Absent, Cell::Null));
    cells.complete_from(&read(0b11, &[0, 7, 1, 0, 0, 0]), 2);
    assert_eq!((cells.cell(0), cells.cell(1)), (Cell::Value(b"7"), Cell::Null));
    assert_eq!(Key::of(&plan.schema, &cells.take()), Some(Key::from_values([b"7".as_slice()])));
}

fn any_wire() -> impl Strategy<Value = Wire> {
    prop_oneof![
        any::<u8>().prop_map(|bytes| Wire::Integer(bytes % 8 + 1)),
        Just(Wire::Float),
        Just(Wire::Double),
        Just(Wire::Year),
        Just(Wire::Date),
        (0u8..7).prop_map(Wire::Time),
        (0u8..7).prop_map(Wire::DateTime),
        (0u8..7).prop_map(Wire::Timestamp),
        any::<(u8, u8)>().prop_map(|(precision, scale)| Wire::Decimal { precision, scale }),
        any::<u16>().prop_map(Wire::Bit),
        any::<u16>().prop_map(Wire::VarChar),
        any::<u16>().prop_map(Wire::String),
        any::<u8>().prop_map(Wire::Enum),
        any::<u8>().prop_map(Wire::Set),
        any::<u8>().prop_map(Wire::Blob),
        any::<u8>().prop_map(Wire::Json),
        any::<u8>().prop_map(Wire::Other),
    ]
}

const NATIVES: [&str; 19] = [
    "tinyint",
    "bigint unsigned",
    "year",
    "decimal(10,2)",
    "float",
    "double",
    "bit(64)",
    "date",
    "time(6)",
    "datetime(6)",
    "timestamp(6)",
    "varchar(9) character set gbk",
    "binary(3)",
    "longblob",
    "enum('a') character set latin1",
    "set('a','b') character set latin1",
    "json",
    "uuid",
    "inet6",
];

proptest! {
    #[test]
    fn any_bytes_are_a_row_or_an_error(
        wire in any_wire(), native in 0..NATIVES.len(), bits: u8,
        bytes in proptest::collection::vec(any::<u8>(), 0..60)
    ) {
        let plan = plan(NATIVES[native], wire);
        let bits = [bits];
        let present = Present::read(&mut Reader::new(&bits), 2).unwrap();
        let (mut reader, mut cells) = (Reader::new(&bytes), Cells::default());
        let read = plan.read_image(&mut reader, present, Wanted::All, &mut cells);
        let mut skipped = Reader::new(&bytes);
        let wires = [Wire::Integer(1), wire];
        // Skipping and reading end at the same place.
        prop_assert_eq!(read.is_ok(), skip_image(&mut skipped, &wires, present).is_ok());
        if read.is_ok() {
            prop_assert_eq!(reader.rest(), skipped.rest());
            prop_assert_eq!(cells.take().len(), 2);
        }
    }
}
