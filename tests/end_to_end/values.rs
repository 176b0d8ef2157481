//! The value matrix (S76): every built-in type with its extreme values. The row through the first
//! copy, the row through the log and the source must agree, and so must keys of these types.

use crate::support::{Pair, Target, World};

for_each_pair! {
    s76_copied_value_and_streamed_value_equal_the_source:
        postgres(sqlite postgres mariadb /);
    s76_values_of_every_type_that_can_be_a_key_work_as_keys:
        postgres(sqlite postgres mariadb /);
    s76_a_value_that_the_target_cannot_hold_stops_its_table:
        postgres(mariadb /);
}

/// A type, whether it can be a key, and its values as SQL literals.
type Case = (&'static str, bool, &'static [&'static str]);

const NUMBERS: &[Case] = &[
    ("boolean", true, &["t", "f"]),
    ("smallint", true, &["-32768", "0", "32767"]),
    ("integer", true, &["-2147483648", "-1", "0", "2147483647"]),
    ("bigint", true, &["-9223372036854775808", "0", "9007199254740993", "9223372036854775807"]),
    ("numeric", true, NUMERICS),
    ("numeric(12,4)", true, &["0", "-99999999.9999", "0.0001", "1.5000", "NaN"]),
    ("numeric(1000,500)", false, &["1e-500", "123.456"]),
    (
        "real",
        true,
        &[
            "0",
            "1.1",
            "3.4028235e38",
            "1e-45",
            "1.17549435e-38",
            "NaN",
            "Infinity",
            "-Infinity",
            "16777217",
        ],
    ),
    (
        "double precision",
        true,
        &[
            "0",
            "0.1",
            "1.7976931348623157e308",
            "5e-324",
            "NaN",
            "Infinity",
            "-Infinity",
            "9007199254740993",
            "1e15",
            "1e16",
            "123456789012345680",
            "1e-5",
        ],
    ),
    ("oid", true, &["0", "4294967295"]),
    ("pg_lsn", true, &["0/0", "FFFFFFFF/FFFFFFFF"]),
];

const NUMERICS: &[&str] = &[
    "0",
    "-0.0",
    "0.00",
    "1",
    "10",
    "100",
    "1e20",
    "12345678901234567890123456789.123456789",
    "-0.000000000000000000000000000001",
    "NaN",
    "1e130",
    "9007199254740993",
    "0.1",
    "1.10",
];

const TEXTS: &[Case] = &[
    (
        "text",
        true,
        &[
            "",
            " ",
            "a",
            "A",
            "a ",
            "NULL",
            "\\",
            "\\x41",
            "0x1F",
            "1e5",
            "007",
            "🦀",
            "e\u{301}",
            "line\nbreak",
            "tab\t",
            "\u{1}",
            "ﷺ",
            "Infinity",
            "'",
        ],
    ),
    ("varchar(10)", true, &["", "abc", "abc   ", "ünïcödé"]),
    ("char(6)", true, &["", "a", "abcdef", "ü"]),
    ("name", true, &["x", "exactly_sixty_three_bytes_long_name_of_a_table_or_of_a_column_x"]),
    ("\"char\"", true, &["a", "Z"]),
    ("bytea", true, &["", "\\x00", "\\x00ff00", "\\xdeadbeef", "\\x27", "\\x5c", "\\x2000"]),
    (
        "uuid",
        true,
        &[
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
        ],
    ),
    (
        "json",
        false,
        &[
            "null",
            "{}",
            "{\"a\": 1, \"a\": 2}",
            " { \"b\" :  1.10 } ",
            "[1e400, 12345678901234567890.123456789]",
            "\"\\u00e9\"",
            "\"\\ud83e\\udd80\"",
            "\"\"",
        ],
    ),
    (
        "jsonb",
        true,
        &[
            "null",
            "{}",
            "{\"a\": 1, \"a\": 2}",
            "{\"b\": 1.10, \"aa\": []}",
            "12345678901234567890.123456789",
            "\"\\u00e9\"",
            "\"\"",
            "true",
            "[null]",
        ],
    ),
    (
        "bit(64)",
        true,
        &[
            "1111111111111111111111111111111111111111111111111111111111111111",
            "0000000000000000000000000000000000000000000000000000000000000001",
        ],
    ),
    ("bit varying", true, &["", "0", "1", "00010"]),
];

const TIMES: &[Case] = &[
    (
        "date",
        true,
        &[
            "infinity",
            "-infinity",
            "4713-01-01 BC",
            "0001-01-01",
            "2024-02-29",
            "5874897-12-31",
            "1970-01-01",
        ],
    ),
    ("time", true, &["00:00:00", "23:59:59.999999", "24:00:00", "12:00:00.5"]),
    ("timetz", true, &["00:00:00+15:59", "23:59:59.999999-15:59", "12:00:00.5+05:30"]),
    (
        "timestamp",
        true,
        &[
            "infinity",
            "-infinity",
            "4713-01-01 00:00:00 BC",
            "294276-12-31 23:59:59.999999",
            "2024-02-29 12:34:56.1",
            "1970-01-01 00:00:00",
        ],
    ),
    (
        "timestamptz",
        true,
        &[
            "infinity",
            "-infinity",
            "4713-01-02 00:00:00+00 BC",
            "294276-12-30 23:59:59.999999+00",
            "2026-03-29 02:30:00 Europe/Berlin",
            "2026-10-25 02:30:00+01",
            "1883-11-18 12:03:58 America/New_York",
            "2024-02-29 12:34:56.1+05:30",
        ],
    ),
    (
        "interval",
        true,
        &[
            "0",
            "1 year 2 mons 3 days 04:05:06.789",
            "-1 year -2 mons +3 days -04:05:06.789",
            "178000000 years",
            "1 mon -1 day",
            "00:00:00.000001",
            "30 days",
            "1 mon",
            "720:00:00",
        ],
    ),
];

/// Addresses, and arrays of what is above.
const LISTS: &[Case] = &[
    ("inet", true, &["0.0.0.0/0", "192.168.1.1", "192.168.1.0/24", "::1", "2001:db8::/32"]),
    ("cidr", true, &["192.168.0.0/16", "::/0"]),
    ("macaddr", true, &["08:00:2b:01:02:03"]),
    ("macaddr8", true, &["08:00:2b:01:02:03:04:05"]),
    (
        "text[]",
        true,
        &["{}", "{\"\",NULL,\"NULL\",\"a,b\",\"q\\\"uote\",\"back\\\\slash\",\"{}\"}"],
    ),
    ("bytea[]", true, &["{\"\\\\x00ff\"}"]),
    ("timestamptz[]", true, &["{\"2024-02-29 12:34:56.1+05:30\",infinity}"]),
    ("double precision[]", true, &["{0.1,NaN,-Infinity,5e-324}"]),
];

/// A target of the same kind gets rows with any of these as text, all others in binary.
const SHAPES: &[Case] = &[
    ("money", true, &["0", "-92233720368547758.08", "92233720368547758.07", "1.5"]),
    ("xml", false, &["<a b=\"1\">text</a>"]),
    ("tsvector", true, &["'a':1 'fat':2,4 'rat':3A", "'Joe''s'"]),
    ("tsquery", true, &["fat & (rat | cat)"]),
    ("point", false, &["(1.1,-2.5)", "(0,0)", "(NaN,Infinity)"]),
    ("line", false, &["{1,2,3}"]),
    ("lseg", false, &["[(0,0),(1,1)]"]),
    ("box", false, &["(1,1),(0,0)"]),
    ("path", false, &["((0,0),(1,1))", "[(0,0),(1,1)]"]),
    ("polygon", false, &["((0,0),(1,1),(1,0))"]),
    ("circle", false, &["<(0,0),2.5>"]),
    (
        "int[]",
        true,
        &["{}", "{1,NULL,3}", "[-1:1]={7,8,9}", "{{1,2},{3,4}}", "[2:3][0:1]={{1,2},{3,4}}"],
    ),
    ("int4range", true, &["empty", "[1,5)", "(,)", "[3,)"]),
    ("numrange", true, &["empty", "(1.10,2.2]", "(,5)"]),
    ("tstzrange", true, &["[\"2024-01-01 00:00:00+00\",infinity)", "empty"]),
    ("daterange", true, &["[2024-01-01,2024-02-01)", "(-infinity,infinity)"]),
    ("int4multirange", true, &["{}", "{[1,3),[7,9)}"]),
    ("mood", true, &["sad", "so so", "Größe", ""]),
    ("price", true, &["0.00", "12.30"]),
    ("pair", true, &["(1,one)", "(,)", "(2,\"with \"\"quotes\"\", and comma\")"]),
    ("mood[]", true, &["{sad,\"so so\",NULL}"]),
];

const TYPES: &str = "CREATE TYPE mood AS ENUM ('sad', 'so so', 'Größe', '');
    CREATE DOMAIN price AS numeric(10,2) CHECK (value >= 0);
    CREATE TYPE pair AS (n int, t text);";

fn cases() -> impl Iterator<Item = (usize, &'static Case)> {
    [NUMBERS, TEXTS, TIMES, LISTS, SHAPES].into_iter().flatten().enumerate()
}

/// MariaDB has neither of these numbers, and only the years from 1 to 9999. What it cannot hold has
/// a test of its own.
fn fits(target: Target, type_name: &str, value: &str) -> bool {
    let is_time = ["date", "timestamp", "timestamptz"].contains(&type_name);
    let is_number =
        ["real", "double precision"].contains(&type_name) || type_name.starts_with("numeric");
    let is_no_number = ["NaN", "Infinity", "-Infinity"].contains(&value);
    let is_far = value.contains("infinity")
        || value.contains("BC")
        || value.contains("294276")
        || value.contains("5874897");
    target != Target::Mariadb || !((is_number && is_no_number) || (is_time && is_far))
}

fn literal(type_name: &str, value: &str) -> String {
    format!("$value${value}$value$::{type_name}")
}

/// The tables of the matrix, each with two columns for every type, and the statements that fill
/// them: row `OFFSET + id` has the value `id` of every type in the first of its columns.
fn matrix(target: Target) -> (String, String, String) {
    let (mut tables, mut rows, mut updates) = (String::from(TYPES), String::new(), String::new());
    for (number, cases) in [NUMBERS, TEXTS, TIMES, LISTS, SHAPES].into_iter().enumerate() {
        let types = cases.iter().enumerate();
        let columns = types.map(|(n, (name, ..))| format!(", v{n} {name}, w{n} {name}"));
        tables +=
            &format!("CREATE TABLE m{number} (id int PRIMARY KEY{});", columns.collect::<String>());
        for id in 0..cases.iter().map(|case| case.2.len()).max().unwrap_or(0) {
            let (mut names, mut values, mut moves) = (String::new(), String::new(), Vec::new());
            for (n, (name, _, of_type)) in cases.iter().enumerate() {
                let Some(value) = of_type.get(id) else { continue };
                if !fits(target, name, value) {
                    continue;
                }
                let value = literal(name, value);
                names += &format!(", v{n}");
                values += &format!(", {value}");
                moves.push(format!("w{n} = {value}, v{n} = NULL"));
            }
            rows += &format!("INSERT INTO m{number} (id{names}) VALUES (OFFSET + {id}{values});");
            let moves = moves.join(", ");
            if moves.is_empty() {
                continue;
            }
            updates += &format!("UPDATE m{number} SET {moves} WHERE id % 100 = {id};");
        }
    }
    tables += "CREATE TABLE zero (id int PRIMARY KEY, d double precision, r real);";
    // MariaDB has no signed zero; the two are one number.
    rows += match target {
        Target::Mariadb => "INSERT INTO zero VALUES (OFFSET, 0, 0);",
        Target::Postgres | Target::Sqlite => "INSERT INTO zero VALUES (OFFSET, '-0', '-0');",
    };
    (tables, rows, updates)
}

async fn s76_copied_value_and_streamed_value_equal_the_source(pair: Pair) {
    let (tables, rows, updates) = matrix(pair.target);
    let world = World::new(pair, &format!("{tables} {}", rows.replace("OFFSET", "0"))).await;
    world.catch_up().await;
    world.must_be_equal().await;
    world.execute(&rows.replace("OFFSET", "1000")).await;
    world.catch_up().await;
    world.must_be_equal().await;
    world.execute(&updates).await;
    world.catch_up().await;
    world.must_be_equal().await;
    world.command(&["verify"]).await.must_exit(0);
}

async fn s76_values_of_every_type_that_can_be_a_key_work_as_keys(pair: Pair) {
    let (mut tables, mut copied, mut changes) = (String::from(TYPES), String::new(), String::new());
    for (number, (name, is_key, values)) in cases().filter(|(_, case)| case.1) {
        assert!(*is_key);
        tables += &format!("CREATE TABLE k{number} (k {name} PRIMARY KEY, n int);");
        for (n, value) in values.iter().enumerate() {
            if !fits(pair.target, name, value) {
                continue;
            }
            let value = literal(name, value);
            // Different literals may be equal values; the second one then finds the first.
            copied +=
                &format!("INSERT INTO k{number} VALUES ({value}, {n}) ON CONFLICT DO NOTHING;");
            changes += &match n % 3 {
                0 => format!("UPDATE k{number} SET n = -1 WHERE k = {value};"),
                1 => format!("DELETE FROM k{number} WHERE k = {value};"),
                _ => format!(
                    "DELETE FROM k{number} WHERE k = {value};
                    INSERT INTO k{number} VALUES ({value}, -2);"
                ),
            };
        }
    }
    let world = World::new(pair, &(tables + &copied)).await;
    world.catch_up().await;
    world.must_be_equal().await;
    world.execute(&changes).await;
    world.catch_up().await;
    world.must_be_equal().await;
    world.execute(&copied).await;
    world.catch_up().await;
    world.must_be_equal().await;
    world.command(&["verify"]).await.must_exit(0);
}

/// Each value in a table of its own, which stops; nothing is rounded or cut, and the others go on.
async fn s76_a_value_that_the_target_cannot_hold_stops_its_table(pair: Pair) {
    const STRANGE: [(&str, &str); 7] = [
        ("double precision", "NaN"),
        ("real", "-Infinity"),
        ("numeric(12,4)", "NaN"),
        ("date", "infinity"),
        ("date", "0044-03-15 BC"),
        ("timestamp", "294276-12-31 23:59:59.999999"),
        ("timestamptz", "-infinity"),
    ];
    let mut sql = String::from("CREATE TABLE good (id int PRIMARY KEY);");
    for (number, (kind, _)) in STRANGE.iter().enumerate() {
        sql += &format!("CREATE TABLE s{number} (id int PRIMARY KEY, v {kind});");
        sql += &format!("INSERT INTO s{number} VALUES (1, NULL);");
    }
    let world = World::new(pair, &sql).await;
    world.catch_up().await;
    for (number, (kind, value)) in STRANGE.iter().enumerate() {
        let value = literal(kind, value);
        world.execute(&format!("INSERT INTO s{number} VALUES (2, {value})")).await;
    }
    world.execute("INSERT INTO good VALUES (1)").await;
    let outcome = world.command(&["run", "--until-current"]).await.must_stop_with("poison-row");
    for number in 0..STRANGE.len() {
        let table = format!("public.s{number}");
        assert!(outcome.stderr.contains(&table), "{table} went on: {outcome}");
        let count = world.ask_target(&format!("SELECT count(*) FROM s{number}")).await;
        assert_eq!(count.as_deref(), Some("1"), "{table}");
    }
    assert_eq!(world.ask_target("SELECT count(*) FROM good").await.as_deref(), Some("1"));
}
