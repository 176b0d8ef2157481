//! Events of real servers, damaged in every way, and those that are not understood.

use proptest::prelude::*;

use super::*;
use crate::change::Timestamp;
use crate::mysql::fixtures;
use crate::mysql::gtid::{MariadbGtid, Uuid, uuid_bytes};

const FIXTURES: [&str; 4] =
    ["mariadb-10.11-story", "mariadb-11.8-compressed", "mysql-9.7-story", "mysql-9.7-compressed"];

fn raw(kind: u8, body: &[u8]) -> RawEvent<'_> {
    let header = Header { kind, size: (HEADER_LEN + body.len()) as u32, ..Header::default() };
    RawEvent { header, body, checksum: None }
}

fn decode(kind: u8, body: &[u8]) -> Result<Event<'_>> {
    Decoder { format_known: true, inner_left: 0 }.decode(&raw(kind, body)).map(|(_, event)| event)
}

#[test]
fn checksums_of_real_events_are_right_and_damage_is_noticed() {
    for name in FIXTURES {
        let mut verified = 0;
        for event in &fixtures::read(name).events {
            let raw = RawEvent::of(event).unwrap();
            // Events of a compressed transaction have none of their own.
            if raw.checksum.is_none() || (name == "mysql-9.7-compressed" && raw.header.end == 0) {
                continue;
            }
            raw.verify().unwrap();
            verified += 1;
            let mut body = raw.body.to_vec();
            if let Some(byte) = body.last_mut() {
                *byte ^= 1;
                let damaged = RawEvent { body: &body, ..raw };
                assert_eq!(damaged.verify().unwrap_err().code, Code::Protocol, "{name}");
            }
        }
        assert!(verified > 10, "{name}");
    }
}

#[test]
fn the_first_name_of_mariadb_loses_the_checksum_behind_it() {
    let mut body = 4u64.to_le_bytes().to_vec();
    body.extend_from_slice(b"binlog.000002");
    let check = |body: &[u8], expected: &str| {
        let header = Header { kind: ROTATE, flags: ARTIFICIAL, size: 44, ..Header::default() };
        let raw = RawEvent { header, body, checksum: None };
        let (_, event) = Decoder::new().decode(&raw).unwrap();
        assert_eq!(event, Event::Rotate { file: expected, offset: 4 });
        header
    };
    let header = check(&body, "binlog.000002");
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header.bytes());
    hasher.update(&body);
    body.extend_from_slice(&hasher.finalize().to_le_bytes());
    check(&body, "binlog.000002");
}

#[test]
fn what_is_unknown_stops_and_what_is_left_out_does_not() {
    for kind in [0, 1, 6, 8, 9, 10, 11, 12, 17, 18, 43, 99, 159, 173, 255] {
        assert_eq!(decode(kind, &[0; 40]).unwrap_err().code, Code::Protocol, "{kind}");
    }
    for kind in [STOP, INTVAR, RAND, USER_VAR, ROWS_QUERY, ANNOTATE_ROWS, GTID_LIST, VIEW_CHANGE] {
        assert_eq!(decode(kind, &[1]).unwrap(), Event::Nothing, "{kind}");
    }
    for (kind, code) in [
        (INCIDENT, Code::Protocol),
        (PARTIAL_ROW_DATA, Code::Protocol),
        (PARTIAL_UPDATE_ROWS, Code::PartialRow),
        (20, Code::Protocol),
    ] {
        assert_eq!(decode(kind, &[1; 30]).unwrap_err().code, code, "{kind}");
    }
    let mut ignorable = raw(99, &[1]);
    ignorable.header.flags = IGNORABLE;
    assert_eq!(Decoder::new().decode(&ignorable).unwrap().1, Event::Nothing);
}

#[test]
fn a_payload_that_is_not_expanded_whole_stops() {
    let payload = raw(TRANSACTION_PAYLOAD, &[2, 1, 0, 1, 1, 9, 3, 1, 30, 0]);
    let mut decoder = Decoder::new();
    assert_eq!(decoder.decode(&payload).unwrap().1, Event::Payload);
    // 30 bytes were promised; this is an XID event of 27.
    let xid = raw(XID, &[0; 8]);
    let (header, event) = decoder.decode(&xid).unwrap();
    assert_eq!((header.size, event), (0, Event::Xid));
    assert!(decoder.decode(&xid).is_err());
    // The library drops what it cannot expand; the next event is one of the file.
    let mut decoder = Decoder::new();
    decoder.decode(&payload).unwrap();
    let gtid = [0; 42];
    assert!(decoder.decode(&raw(GTID, &gtid)).is_err());
}

#[test]
fn beginnings_of_transactions_are_read() {
    let mut body = 7u64.to_le_bytes().to_vec();
    body.extend_from_slice(&[3, 0, 0, 0, 0xc]);
    body.extend_from_slice(&[0; 6]);
    let gtid = MariadbGtid { domain: 3, server: 0, sequence: 7 };
    let expected = Gtid::Mariadb { gtid, kind: MariadbKind::Events };
    assert_eq!(decode(MARIADB_GTID, &body).unwrap(), Event::Gtid(expected));
    body[12] = 1;
    body[13] = START_ALTER_FLAG;
    let expected = Gtid::Mariadb { gtid, kind: MariadbKind::Unfinished };
    assert_eq!(decode(MARIADB_GTID, &body).unwrap(), Event::Gtid(expected));
    // Captured from MySQL 9.7: `SET gtid_next = 'automatic:blue'`.
    let tagged = "02740000000281022103301502a503210222c5031102a604f10300000002040406\
                  08626c756508000a040c7f2bc531b62c61061061041283120b";
    let bytes = uuid_bytes("a0c81885-e988-11f1-8453-02fc00000001").unwrap();
    let id = Some((Uuid { bytes, tag: "blue".into() }, 1));
    let committed_at = Some(Timestamp(1_795_694_523_434_283));
    let expected = Event::Gtid(Gtid::Mysql { id, committed_at });
    assert_eq!(decode(GTID_TAGGED, &hex(tagged)).unwrap(), expected);
}

const START_ALTER_FLAG: u8 = 2;

fn hex(digits: &str) -> Vec<u8> {
    let pair = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(pair).collect()
}

#[test]
fn heartbeats_of_both_forms_are_read() {
    let expected = Event::Heartbeat { file: "b.000001", offset: None };
    assert_eq!(decode(HEARTBEAT, b"b.000001").unwrap(), expected);
    let mut body = vec![1, 8];
    body.extend_from_slice(b"b.000001");
    body.extend_from_slice(&[2, 9, 254, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
    let expected = Event::Heartbeat { file: "b.000001", offset: Some(1 << 32) };
    assert_eq!(decode(HEARTBEAT_V2, &body).unwrap(), expected);
}

#[test]
fn a_uuid_is_printed_as_the_server_does() {
    let bytes = uuid_bytes("3E11FA47-71CA-11E1-9E33-C80AA9429562").unwrap();
    let uuid = Uuid { bytes, tag: "blue".into() };
    assert_eq!(uuid.to_string(), "3e11fa47-71ca-11e1-9e33-c80aa9429562:blue");
}

#[test]
fn a_real_event_cut_anywhere_never_panics() {
    for name in FIXTURES {
        for event in &fixtures::read(name).events {
            let kind = event.header().event_type_raw();
            for end in 0..event.data().len().min(200) {
                let _ = decode(kind, &event.data()[..end]);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_event_or_an_error(
        kind: u8, body in proptest::collection::vec(any::<u8>(), 0..120)
    ) {
        let _ = decode(kind, &body);
    }

    #[test]
    fn damaged_compressed_rows_never_panic(
        head in proptest::collection::vec(any::<u8>(), 0..12), length in 0u8..8,
        rest in proptest::collection::vec(any::<u8>(), 0..60)
    ) {
        let mut body = head;
        body.push(0x80 | length);
        body.extend_from_slice(&rest);
        let _ = compressed::expand(&body);
        let _ = compressed::expand_rows(Operation::Update, &body);
    }
}
