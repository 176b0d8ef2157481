//! The binary form against a real server: a value sent in binary is the value that the server
//! makes of its text, or is refused as its text is.

use std::pin::pin;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::Encoding;
use crate::change::Cell;
use crate::hex;
use crate::postgres::target::row_writer::{Form, RowWriter};
use crate::postgres::testing::Database;
use crate::postgres::{catalog, sql};
use crate::schema::Column;

/// The OID of `"char"`.
const CHAR: u32 = 18;

/// Two tables of one column of a type: one is filled by text, the other in binary.
struct Tables {
    client: Client,
    encoding: Encoding,
    send: String,
    /// How a source sends its values in binary, if it does.
    sent: Option<Encoding>,
    _database: Database,
}

impl Tables {
    async fn of(type_name: &str) -> Tables {
        let database = Database::create().await;
        let client = database.client().await;
        let tables = "CREATE TABLE public.by_text (v TYPE); CREATE TABLE public.by_binary (v TYPE)";
        client.batch_execute(&tables.replace("TYPE", type_name)).await.unwrap();
        let of_column = "SELECT typsend::text, t.oid, format_type(atttypid, atttypmod) \
                         FROM pg_type t JOIN pg_attribute ON atttypid = t.oid \
                         WHERE attrelid = 'public.by_text'::regclass AND attnum = 1";
        let found = client.query_one(of_column, &[]).await.unwrap();
        let (send, type_id, native) = (found.get(0), found.get(1), Some(found.get(2)));
        let column_type = catalog::column_type(type_id);
        let column = Column { name: "v".into(), column_type, native, id: 1 };
        let (encoding, sent) = (Encoding::of(type_id).unwrap(), Encoding::of_column(&column));
        assert_eq!(sent.is_some(), type_id != CHAR);
        Tables { client, encoding, send, sent, _database: database }
    }

    fn encode(&self, texts: &[Vec<u8>]) -> Option<Bytes> {
        let form = Form::new(&[Some(self.encoding)], &[], true);
        write(&form, texts)
    }

    /// The SQLSTATE, if the server refuses the values.
    async fn copy(&self, table: &str, rows: Bytes, options: &str) -> Result<(), String> {
        let statement = format!("COPY public.{table} FROM STDIN {options}");
        let mut sink = pin!(self.client.copy_in(&statement).await.unwrap());
        sink.feed(rows).await.unwrap();
        let copied = sink.finish().await;
        copied.map(|_| ()).map_err(|error| error.code().unwrap().code().to_owned())
    }

    /// What both tables have, their texts and their bytes; empties them.
    async fn take(&self) -> [Vec<(String, String)>; 2] {
        let mut both = [Vec::new(), Vec::new()];
        for (table, values) in ["by_text", "by_binary"].iter().zip(&mut both) {
            let query = format!("SELECT v, encode({}(v), 'hex') FROM public.{table}", self.send);
            for message in self.client.simple_query(&query).await.unwrap() {
                if let SimpleQueryMessage::Row(row) = message {
                    let (text, bytes) = (row.get(0).unwrap(), row.get(1).unwrap());
                    if let Some(sent) = self.sent {
                        check_text(sent, &hex::parse(bytes).unwrap(), text);
                    }
                    values.push((text.into(), bytes.into()));
                }
            }
        }
        self.client.batch_execute("TRUNCATE public.by_text, public.by_binary").await.unwrap();
        both
    }
}

/// Bytes that a source would send are the text that it would send.
fn check_text(sent: Encoding, bytes: &[u8], expected: &str) {
    let mut text = Vec::new();
    sent.push_text(bytes, &mut text).unwrap();
    assert_eq!(String::from_utf8_lossy(&text), expected);
}

fn write(form: &Form, texts: &[Vec<u8>]) -> Option<Bytes> {
    let mut writer = RowWriter::new(form, 0);
    let mut written = Vec::new();
    for text in texts {
        writer.cells([Cell::Value(text)].into_iter()).ok()?;
        written.extend(writer.end_row().unwrap_or_default());
    }
    written.extend(writer.finish());
    Some(written.into())
}

/// Each of these values alone; they stand between bars.
async fn check(type_name: &str, texts: &str) {
    check_bytes(type_name, &texts.split('|').map(str::as_bytes).collect::<Vec<_>>()).await;
}

/// Each of the values alone. Those that the server gives back as they were must have a binary
/// form, unless they are known to be left to text; others may have none.
async fn check_bytes(type_name: &str, texts: &[&[u8]]) {
    let tables = Tables::of(type_name).await;
    for text in texts {
        let value = [text.to_vec()];
        let beginning = String::from_utf8_lossy(&text[..text.len().min(50)]);
        let shown = format!("{type_name} {beginning:?}");
        let by_text = tables
            .copy("by_text", write(&Form::new(&[None], &[], true), &value).unwrap(), "")
            .await;
        let Some(binary) = tables.encode(&value) else {
            let [values, _] = tables.take().await;
            let is_canonical = values.iter().any(|value| value.0.as_bytes() == *text);
            assert!(!is_canonical || is_left_to_text(type_name, text), "{shown}");
            continue;
        };
        let by_binary = tables.copy("by_binary", binary, sql::IN_BINARY).await;
        assert_eq!(by_text, by_binary, "{shown}");
        let [by_text, by_binary] = tables.take().await;
        assert!(by_text == by_binary, "{shown}");
    }
}

/// Arrays with more dimensions than one, and what not every version of the server reads.
fn is_left_to_text(type_name: &str, text: &[u8]) -> bool {
    match type_name {
        "\"char\"" => text.len() > 1,
        _ if type_name.ends_with("[]") => text.starts_with(b"{{") || text.starts_with(b"["),
        _ => {
            let hours = text.iter().position(|&byte| byte == b':');
            type_name.starts_with("interval") && hours.is_some_and(|digits| digits >= 10)
        }
    }
}

/// Thousands of canonical values at once, as the server itself makes them.
async fn check_many(type_name: &str, expression: &str) {
    let tables = Tables::of(type_name).await;
    let query = format!(
        "SELECT v::text FROM (SELECT ({expression})::{type_name} AS v FROM (SELECT n, \
         ('x' || md5(n::text))::bit(64)::bigint AS r FROM generate_series(1, 5000) AS n) AS n) AS v"
    );
    let rows = tables.client.query(&query, &[]).await.unwrap();
    check_equal(&tables, rows.iter().map(|row| row.get::<_, String>(0).into_bytes()).collect())
        .await;
}

async fn check_equal(tables: &Tables, texts: Vec<Vec<u8>>) {
    tables
        .copy("by_text", write(&Form::new(&[None], &[], true), &texts).unwrap(), "")
        .await
        .unwrap();
    let binary = tables.encode(&texts).unwrap();
    tables.copy("by_binary", binary, sql::IN_BINARY).await.unwrap();
    let [by_text, by_binary] = tables.take().await;
    assert_eq!(by_text.len(), texts.len());
    assert_eq!(by_text, by_binary);
}

#[tokio::test]
async fn numbers_are_what_the_server_makes_of_their_text() {
    let integers = "0|-0|1|-1|007|32767|32768|-32768|-32769|2147483647|2147483648|-2147483648|\
        -2147483649|9223372036854775807|9223372036854775808|-9223372036854775808|\
        -9223372036854775809|99999999999999999999||-|+1| 1|1 |1.0|1e3|0x1F|t|--1|1\n";
    for type_name in ["smallint", "integer", "bigint", "oid"] {
        check(type_name, integers).await;
    }
    check("oid", "4294967295|4294967296|4294967294").await;
    check("boolean", "t|f|true|1||T|x").await;
    check("pg_lsn", "0/0|FFFFFFFF/FFFFFFFF|16/B374D848|1/+1|1|/1|1/|1/123456789").await;
    check_many("bigint", "r").await;
    check_many("integer", "r % 2147483648").await;
    check_many("smallint", "r % 32768").await;
}

#[tokio::test]
async fn floats_keep_their_bits() {
    let texts = "0|-0|0.1|1.1|1e15|1e+15|1E15|1e16|1e-05|123456789012345680|9007199254740993|\
        16777217|3.4028235e+38|3.4028236e+38|3.5e38|1e-45|1e-46|1.1754944e-38|\
        7.006492321624085e-46|1.7976931348623157e+308|1.8e308|5e-324|2e-324|1e-400|\
        0e-400|0.000|NaN|nan|Infinity|-Infinity|inf|infinity||.|1.|.5|-.5|+1|1e|e1|-|\
        1_0|0x1p3| 1";
    check("real", texts).await;
    check("double precision", texts).await;
    let tables = [Tables::of("double precision").await, Tables::of("real").await];
    let (mut doubles, mut singles, mut bits) = (Vec::new(), Vec::new(), 1_u64);
    for _ in 0..5000 {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Of this size are those whose shortest text often lies between two floats.
        let large = 1076 + bits % 12;
        for double in [bits, bits >> 12 | large << 52] {
            let mut text = Vec::new();
            crate::float::push_double(f64::from_bits(double), &mut text);
            doubles.push(text);
        }
        let large = 151 + (bits % 12) as u32;
        for single in [(bits >> 32) as u32, (bits >> 41) as u32 | large << 23] {
            let mut text = Vec::new();
            crate::float::push_single(f32::from_bits(single), &mut text);
            singles.push(text);
        }
    }
    check_equal(&tables[0], doubles).await;
    check_equal(&tables[1], singles).await;
}

#[tokio::test]
async fn numerics_keep_every_digit() {
    let (huge, larger) = ("9".repeat(131_072), "9".repeat(131_073));
    let small = format!("0.{}", "7".repeat(16_383));
    let smaller = format!("{small}7");
    let texts = "0|-0|0.0|-0.00|0.00000|1|10|100|1000|10000|100000|12345|123456789|1.10|0.1|0.01|\
        0.001|0.0001|0.00001|-1.5000|10000.0001|0000.1|00012.5|\
        12345678901234567890123456789.123456789|-0.000000000000000000000000000001|NaN|\
        Infinity|-Infinity|inf|1e5||-|.|1.|.1|1.2.3|1,2|+1| 1|--1|1-";
    check("numeric", texts).await;
    check("numeric", &[huge, larger, small, smaller].join("|")).await;
    let rounded =
        "0|1.005|-1.005|1.0049999|999.994|999.995|999.99|-999.999|1000|NaN|Infinity|0.001";
    check("numeric(5,2)", rounded).await;
    check("numeric(4,0)", rounded).await;
    check("numeric(1000,500)", rounded).await;
    check_many("numeric", "r::numeric * power(10::numeric, (n % 50) - 25)").await;
    check_many("numeric", "round(r::numeric / 1e19, n % 40)").await;
    check_many("numeric(12,2)", "r % 1000000000 / 3.0").await;
}

#[tokio::test]
async fn texts_are_refused_alike() {
    let texts = "| |a|abc|abcd|abc |abc   |ünï|ünïcödé|\\|\\x41|\t\n\r|\u{1}|🦀🦀🦀|NULL|\\N|\\.";
    let (fits, long) = ("x".repeat(63), "x".repeat(64));
    let mut texts: Vec<&[u8]> = texts.split('|').map(str::as_bytes).collect();
    texts.extend([b"a\0b".as_slice(), b"\0", b"\xff", b"\xc3", b"a\xc3\x28", b"\xed\xa0\x80"]);
    texts.extend([fits.as_bytes(), long.as_bytes()]);
    for type_name in ["text", "character varying", "character varying(3)", "name"] {
        check_bytes(type_name, &texts).await;
    }
    for type_name in ["character", "character(3)", "bpchar", "json", "jsonb", "bytea", "uuid"] {
        check_bytes(type_name, &texts).await;
    }
}

#[tokio::test]
async fn documents_are_refused_alike() {
    let texts = "null|{}|{\"a\": 1, \"a\": 2}| { \"b\" :  1.10 } |[1e400]|\"\\u00e9\"|\
        \"\\u0000\"|\"\\ud83e\\udd80\"|\"\\ud83e\"|\"\"|{\"b\": 1.10, \"aa\": []}|{||\
        [1,]|'a'|{\"a\": 1}";
    for type_name in ["json", "jsonb"] {
        check(type_name, texts).await;
        check_bytes(type_name, &[b"\"\xff\""]).await;
    }
    check_many("jsonb", "jsonb_build_object('n', n, 'r', r, 'text', md5(n::text))").await;
}

#[tokio::test]
async fn bytes_and_addresses_are_what_the_server_makes_of_their_text() {
    check("bytea", "\\x|\\x00ff|\\xABcd|\\x0|\\xzz|\\x00 ff|x").await;
    let uuids = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11|A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11|\
        00000000-0000-0000-0000-000000000000|a0eebc999c0b4ef8bb6d6bb9bd380a11|\
        {a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}|a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1|\
        a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1g|a0eebc99x9c0b-4ef8-bb6d-6bb9bd380a11";
    check("uuid", uuids).await;
    let bits = "|0|1|00010|101|11111111|111111110|X1F|12|b1";
    for type_name in ["bit varying", "bit varying(3)", "bit(3)", "bit(9)"] {
        check(type_name, bits).await;
    }
    check("macaddr", "08:00:2b:01:02:03|08002b010203|08:00:2b:01:02").await;
    check("macaddr8", "08:00:2b:01:02:03:04:05|08:00:2b:01:02:03|08:00:2b:01:02:03:04:0g").await;
    let addresses = "0.0.0.0/0|192.168.1.1|192.168.1.0/24|192.168.1.1/24|192.168.0.0/16|::1|::|::/0|\
        2001:db8::/32|2001:db8::1/32|::ffff:1.2.3.4|::1.2.3.4|1.2.3.4/32|1.2.3.4/33|\
        1.2.3.4/-1|1.2.3.4/|10|10/8|010.1.1.1|::1/128|::1/129|fe80::1%eth0|\
        2001:0:0:1::1|1::2:0:0:3";
    check("inet", addresses).await;
    check("cidr", addresses).await;
    check("\"char\"", "a|\\|\\101||ab").await;
    check_many("bytea", "decode(md5(n::text), 'hex')").await;
    check_many("uuid", "md5(n::text)::uuid").await;
    check_many("bit varying", "substr(r::bit(64)::text, 1, n % 64)::bit varying").await;
    check_many("inet", "inet '0.0.0.0' + abs(r % 4294967296)").await;
    check_many("inet", "set_masklen(inet '8000::' + r, n % 129)").await;
    check_many("inet", "inet '::' + (abs(r) >> (n % 64)::int)").await;
    check_many("cidr", "set_masklen(cidr '::/0', n % 129)").await;
}

#[tokio::test]
async fn days_and_instants_are_what_the_server_makes_of_their_text() {
    let days = "infinity|-infinity|4713-01-01 BC|4714-11-24 BC|4714-11-23 BC|0001-01-01|\
        0001-01-01 BC|0000-01-01|0004-02-29 BC|0005-02-29 BC|2024-02-29|2023-02-29|\
        2024-13-01|2024-00-10|2024-01-00|5874897-12-31|5874898-01-01|99999999-01-01|\
        1970-01-01|1999-12-31|10000-01-01|24-01-02|2024-1-2|2024-01-01 ||\
        2024-01-01 00:00:00|20240101|epoch|2024-01-01 AD|2024/01/01|-2024-01-01";
    check("date", days).await;
    let moments = "infinity|-infinity|4713-01-01 00:00:00 BC|4714-11-24 00:00:00 BC|\
        4714-11-23 23:59:59.999999 BC|294276-12-31 23:59:59.999999|\
        294277-01-01 00:00:00|9999999-01-01 00:00:00|2024-02-29 12:34:56.1|\
        2024-02-29 12:34:56.123456|2024-02-29 12:34:56.1234567|\
        2024-02-29 12:34:56.9999995|2024-02-29 23:59:59.5|1999-12-31 23:59:59.999999|\
        1970-01-01 00:00:00|2000-01-01 00:00:00|2024-01-01 24:00:00|2024-01-01 23:59:60|\
        2024-01-01 12:60:00|2024-01-01 25:00:00|2024-01-01T12:00:00|2024-01-01|\
        2024-01-01 12:00|2024-01-01 12:00:00.|2024-01-01 12:00:00+01|\
        2024-01-01  12:00:00|epoch|now()||0044-03-15 12:00:00.000001 BC";
    check("timestamp", moments).await;
    check("timestamp(0)", moments).await;
    let zoned = |text: &str| match text.strip_suffix(" BC") {
        Some(text) => format!("{text}+00 BC"),
        None if text.ends_with("infinity") => text.to_owned(),
        None => format!("{text}+00"),
    };
    let mut instants: Vec<String> = moments.split('|').map(zoned).collect();
    instants.extend(["2024-01-01 12:00:00".into(), "2024-01-01 12:00:00-00:30".into()]);
    check("timestamptz", &instants.join("|")).await;
    check("timestamptz(3)", &instants.join("|")).await;
    let far = "timestamp '2000-01-01' + r % 211813488000000000 * interval '1 microsecond'";
    check_many("timestamp", far).await;
    check_many("timestamptz", far).await;
    let near = "timestamp '2024-01-01' + r % 100000000000000 * interval '1 microsecond'";
    check_many("timestamptz(2)", near).await;
    check_many("date", "date '2000-01-01' + (r % 2451545)::int").await;
    check_many("date", "date '5000-01-01' + abs(r % 2000000000)::int").await;
}

#[tokio::test]
async fn times_and_lengths_of_time_are_what_the_server_makes_of_their_text() {
    let times = "00:00:00|23:59:59.999999|24:00:00|24:00:01|24:00:00.000001|12:00:00.5|12:00|\
        12:60:00|12:00:60|23:59:60|1:00:00|012:00:00|12:00:00.1234567|12:00:00.|\
        12-00-00|-12:00:00||noon|12:00:00 PM|100:00:00";
    check("time", times).await;
    check("time(2)", times).await;
    let zoned = "00:00:00+15:59|23:59:59.999999-15:59|12:00:00.5+05:30|12:00:00+00|\
        12:00:00-00:00:01|12:00:00+15:59:59|12:00:00+16|12:00:00-16|12:00:00+99|\
        12:00:00+05:60|12:00:00|12:00:00+5|12:00:00+05:30:15:10|12:00:00Z|24:00:00-12|\
        12:00:00 +01";
    check("timetz", zoned).await;
    check("timetz(0)", zoned).await;
    let lengths = "00:00:00|1 year 2 mons 3 days 04:05:06.789|\
        -1 years -2 mons +3 days -04:05:06.789|178000000 years|178956970 years 7 mons|\
        178956970 years 8 mons|1 mon -1 days|00:00:00.000001|-00:00:00.000001|30 days|\
        1 mon|720:00:00|-838:59:59.5|838:59:59.999999|\
        -2147483646:59:59|2147483648:00:00|2562047788:00:54.775807|\
        2562047788:00:54.775808|-2562047788:00:54.775807|2147483647 days|\
        2147483648 days|1 day 02:03|1 week|P1Y||1 year 1 year|1 days ago|1|\
        01:02:03 1 day|1 day +-02:03:04|-1 days +02:03:00|@ 1 day|1 day  2 hours|\
        1.5 days|1 days ";
    check("interval", lengths).await;
    check("interval(2)", lengths).await;
    check("interval day to second(3)", lengths).await;
    check("interval year to month", lengths).await;
    check("interval minute to second", lengths).await;
    check_many("time", "time '00:00' + abs(r % 86400000000) * interval '1 microsecond'").await;
    let zoned = "format('%s+%s', time '00:00' + abs(r % 86400000000) * interval '1 microsecond', \
                 (n % 15) * interval '3599 s')";
    check_many("timetz", zoned).await;
    let length = "make_interval(months => (r % 2000000000)::int / (n % 9 + 1), \
                  days => (r % 1999999)::int * (n % 3 - 1), secs => r % 100000000000 / 1e6)";
    check_many("interval", length).await;
}

#[tokio::test]
async fn arrays_are_what_the_server_makes_of_their_text() {
    let texts = "{}|{a}|{a,b}|{\"\"}|{NULL}|{\"NULL\"}|{null}|{\"null\"}|{NULLS}|{a,NULL,b}|\
        {\"a,b\",\"q\\\"uote\",\"back\\\\slash\",\"{}\",\"two words\"}|{a,}|{,}|{a b}|\
        { a}|{a|a}||{{a,b},{c,d}}|[2:3]={a,b}|{\"a\"b}|{\"a}|{a\"}|{\"a\\\"}|{a}}|\
        {a\\b}|{ünï,🦀}|{\"tab\t\"}|{} |{\"a\" ,b}|{{}}";
    for type_name in ["text[]", "character varying(3)[]", "name[]"] {
        check(type_name, texts).await;
    }
    let numbers = "{}|{1,NULL,-3}|{1,2147483648}|{\"1\"}|{1.5}|{}{}|{NaN,-Infinity,0.1}|\
        {{1,2},{3,4}}|[-1:1]={7,8,9}|{1,a}|{1 ,2}";
    for type_name in ["integer[]", "bigint[]", "numeric(5,1)[]", "double precision[]"] {
        check(type_name, numbers).await;
    }
    check("timestamptz[]", "{\"2024-02-29 07:04:56.1+00\",infinity}").await;
    check("bytea[]", "{\"\\\\x00ff\"}|{\\x00ff}").await;
    check("jsonb[]", "{\"{\\\"a\\\": 1}\",NULL,\"[1, 2]\"}").await;
    check("boolean[]", "{t,f,NULL}").await;
    check("uuid[]", "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}").await;
    check_many("bigint[]", "ARRAY[r, n, NULL, -r / 7]").await;
    check_many("text[]", "ARRAY[chr(1 + n % 5000), md5(n::text), r::text || '\"' || n, NULL, '']")
        .await;
}

#[tokio::test]
async fn types_are_known_by_the_names_and_numbers_that_the_server_gives_them() {
    let database = Database::create().await;
    let client = database.client().await;
    let query = "SELECT oid, typarray, format_type(oid, NULL) FROM pg_type \
                 WHERE typtype = 'b' AND typarray <> 0";
    let mut known = 0;
    for row in client.query(query, &[]).await.unwrap() {
        let (id, array): (u32, u32) = (row.get(0), row.get(1));
        let encoding = Encoding::of(id);
        let of_array = encoding.map(|_| Encoding::Array(id));
        assert_eq!(Encoding::of(array), of_array, "array {array} of {id}");
        // What a source sends has a way back to text.
        let sent = encoding.filter(|encoding| *encoding != Encoding::Char);
        let name: String = row.get(2);
        assert_eq!(Encoding::of_name(&name), sent, "{name}");
        assert_eq!(Encoding::of_name(&format!("{name}[]")), sent.and(of_array), "{name}[]");
        known += usize::from(encoding.is_some());
    }
    assert_eq!(known, 30);
}
