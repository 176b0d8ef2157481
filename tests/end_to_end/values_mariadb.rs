//! The value matrix of MariaDB and MySQL (S76): every type with its extreme values, dates with a
//! zero in them, and instants in every time zone (S77).

use crate::support::world::session;
use crate::support::{Pair, Target, World};

for_each_pair! {
    s76_every_value_arrives_without_row_metadata: mariadb(sqlite postgres mariadb /);
    s76_every_value_arrives_with_full_row_metadata: mariadb(mariadb / sqlite postgres);
    s76_values_of_every_type_that_can_be_a_key_work_as_keys: mariadb(sqlite postgres mariadb /);
    s76_every_charset_arrives_as_the_same_text: mariadb(sqlite / postgres mariadb);
    s76_zero_dates_stop_their_table: mariadb(sqlite mariadb / postgres);
    s76_zero_dates_become_null_if_that_is_wanted: mariadb(postgres / sqlite mariadb);
    s76_a_text_that_postgres_cannot_hold_stops_its_table: mariadb(postgres /);
    s77_instants_stay_instants_in_every_time_zone: mariadb(sqlite postgres mariadb /);
}

/// A type, whether it can be a key, and its values as SQL.
type Case = (&'static str, bool, &'static [&'static str]);

const NUMBERS: &[Case] = &[
    ("boolean", true, &["true", "false"]),
    ("tinyint", true, &["-128", "-1", "0", "127"]),
    ("tinyint unsigned", true, &["0", "128", "255"]),
    ("smallint", true, &["-32768", "-1", "0", "32767"]),
    ("smallint unsigned", true, &["0", "32768", "65535"]),
    ("mediumint", true, &["-8388608", "-1", "0", "8388607"]),
    ("mediumint unsigned", true, &["0", "8388608", "16777215"]),
    ("int", true, &["-2147483648", "-1", "0", "2147483647"]),
    ("int unsigned", true, &["0", "2147483648", "4294967295"]),
    ("int(6) zerofill", true, &["0", "42", "4294967295"]),
    ("bigint", true, &["-9223372036854775808", "-1", "9007199254740993", "9223372036854775807"]),
    ("bigint unsigned", true, &["0", "9223372036854775808", "18446744073709551615"]),
    ("decimal(12,4)", true, &["0", "-99999999.9999", "0.0001", "1.5000", "-0.0001", "1"]),
    ("decimal(8,2) unsigned zerofill", true, &["0", "1.5", "999999.99"]),
    ("decimal(20,0)", true, &["0", "-12345678901234567890", "99999999999999999999"]),
    (
        "decimal(65,30)",
        true,
        &[
            "0",
            "-0.000000000000000000000000000001",
            "12345678901234567890123456789012345.123456789012345678901234567890",
            "-99999999999999999999999999999999999.999999999999999999999999999999",
        ],
    ),
    ("float", true, &["0", "1.1", "-3.402823e38", "1e-38", "16777217", "0.1", "1e10", "123456.7"]),
    (
        "double",
        true,
        &[
            "0",
            "0.1",
            "1.7976931348623157e308",
            "-2.2250738585072014e-308",
            "9007199254740993",
            "1e15",
            "1e16",
            "123456789012345680",
            "1e-5",
            "-1e-7",
            "4.9e-324",
        ],
    ),
    ("double(10,3)", false, &["1.5", "-1234.567"]),
    ("bit", true, &["b'0'", "b'1'"]),
    ("bit(9)", true, &["b'0'", "b'101010101'", "b'1'"]),
    ("bit(64)", true, &["0", "18446744073709551615", "b'1'"]),
    ("year", true, &["0", "1901", "2000", "2155"]),
];

const TEXTS: &[Case] = &[
    ("char(6)", true, &["''", "'a'", "'abcdef'", "'ü🦀'", "'a  b'"]),
    ("varchar(20)", true, &["''", "' '", "'a '", "'NULL'", "'ünïcödé 🦀'", "'\\\\x41'"]),
    ("varchar(300)", true, &["repeat('x', 300)", "''", "repeat('ü', 255)", "repeat('ü', 256)"]),
    ("tinytext", false, &["''", "repeat('a', 255)", "'ü'"]),
    ("text", false, &["''", "repeat('lång', 3000)", "'line\\nbreak'", "'tab\\t''quote'"]),
    ("mediumtext", false, &["''", "repeat('medium', 20000)"]),
    ("longtext", false, &["''", "repeat('0123456789', 30000)"]),
    ("binary(4)", true, &["x'00000000'", "x'61'", "x'ff00ff00'", "'    '", "x'00000001'"]),
    ("varbinary(20)", true, &["''", "x'00'", "x'0001ff00'", "x'2000'", "'\\\\'", "x'27'"]),
    ("tinyblob", false, &["''", "x'00'", "repeat(x'ff', 255)"]),
    ("blob", false, &["''", "x'000102'", "repeat(x'5c', 1000)"]),
    ("mediumblob", false, &["''", "repeat(x'00', 70000)"]),
    ("longblob", false, &["''", "x'deadbeef'"]),
    (
        "enum('sad', 'so so', 'Größe', '', 'it''s, odd')",
        true,
        &["'sad'", "'so so'", "'Größe'", "''", "'it''s, odd'"],
    ),
    ("set('a', 'b', 'c d', 'Ö')", true, &["''", "'a'", "'a,c d'", "'a,b,c d,Ö'", "'Ö'"]),
];

const TIMES: &[Case] = &[
    ("date", true, &["'1000-01-01'", "'9999-12-31'", "'2024-02-29'", "'0001-01-01'"]),
    ("time", true, &["'838:59:59'", "'-838:59:59'", "'00:00:00'", "'-00:00:01'", "'24:00:00'"]),
    ("time(1)", true, &["'-01:02:03.4'", "'838:59:58.9'", "'-00:00:00.1'", "'00:00:00.9'"]),
    ("time(2)", true, &["'-01:02:03.45'", "'-00:00:00.01'", "'00:00:00.99'"]),
    ("time(3)", true, &["'-01:02:03.456'", "'-838:59:58.999'", "'00:00:00.001'"]),
    ("time(4)", true, &["'-01:02:03.4567'", "'-00:00:00.0001'"]),
    (
        "time(6)",
        true,
        &["'838:59:59.000000'", "'-00:00:00.000001'", "'-12:00:00.5'", "'100:00:00.25'"],
    ),
    (
        "datetime",
        true,
        &[
            "'1000-01-01 00:00:00'",
            "'9999-12-31 23:59:59'",
            "'2024-02-29 12:34:56'",
            "'0001-01-01 00:00:00'",
        ],
    ),
    ("datetime(2)", true, &["'2024-02-29 12:34:56.10'", "'1970-01-01 00:00:00.99'"]),
    (
        "datetime(6)",
        true,
        &[
            "'9999-12-31 23:59:59.999999'",
            "'2024-02-29 12:34:56.100000'",
            "'2024-02-29 12:34:56.000001'",
        ],
    ),
    (
        "timestamp NULL",
        true,
        &["'1970-01-01 00:00:01'", "'2038-01-19 03:14:07'", "'2024-02-29 12:34:56'"],
    ),
    ("timestamp(3) NULL", true, &["'1970-01-01 00:00:01.001'", "'2024-02-29 12:34:56.120'"]),
    (
        "timestamp(6) NULL",
        true,
        &[
            "'2038-01-19 03:14:07.999999'",
            "'2024-02-29 12:34:56.000001'",
            "'1999-12-31 23:59:59.5'",
        ],
    ),
];

const SHAPES: &[Case] = &[
    (
        "json",
        false,
        &[
            "'null'",
            "'{}'",
            "'{\"a\": 1, \"b\": [true, false, null]}'",
            "'\"\\\\u00e9 \\\\ud83e\\\\udd80\"'",
            "'[1.5, -0, 1e30, 18446744073709551615, -9223372036854775808]'",
            "'{\"\": \"empty\", \"k y\": {\"deep\": [[[]]]}}'",
            "'\"\"'",
            "'[\"quote \\\\\" backslash \\\\\\\\ slash / tab \\\\t\"]'",
        ],
    ),
    ("geometry", false, &["point(1.5, -2)", "ST_GeomFromText('LINESTRING(0 0, 1 1)')"]),
    ("point", false, &["point(0, 0)"]),
    ("polygon", false, &["ST_GeomFromText('POLYGON((0 0, 1 0, 1 1, 0 0))')"]),
];

const MARIADB_ONLY: &[Case] = &[
    (
        "uuid",
        true,
        &[
            "'00000000-0000-0000-0000-000000000000'",
            "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
            "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a00'",
        ],
    ),
    ("inet4", true, &["'0.0.0.0'", "'255.255.255.255'", "'192.168.1.0'"]),
    (
        "inet6",
        true,
        &[
            "'::'",
            "'2001:db8::'",
            "'::ffff:192.168.1.1'",
            "'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff'",
        ],
    ),
    ("json", false, &["'  { \"b\" : 1.10, \"b\":2 }  '", "'12345678901234567890.123456789'"]),
];

const MYSQL_ONLY: &[Case] = &[(
    "json",
    false,
    &[
        "json_object('t', cast('12:00:00.5' AS time(3)), 'd', cast('2024-02-29' AS date))",
        "json_array(cast(1.50 AS decimal(5,2)), cast('2024-02-29 12:00:00.000001' AS datetime(6)))",
        "cast(x'00ff' AS json)",
        "json_array(1e0, 0.1, 1e16, 1e15, -0e0, 3.0)",
    ],
)];

/// The kinds, each for a table of its own.
fn kinds(is_mysql: bool) -> [&'static [Case]; 5] {
    [NUMBERS, TEXTS, TIMES, SHAPES, if is_mysql { MYSQL_ONLY } else { MARIADB_ONLY }]
}

/// The tables of the matrix, each with two columns for every type, and the statements that fill
/// them: row `OFFSET + id` has the value `id` of every type in the first of its columns.
fn matrix(target: Target, is_mysql: bool) -> (String, String, String) {
    let (mut tables, mut rows, mut updates) = (String::new(), String::new(), String::new());
    for (number, cases) in kinds(is_mysql).into_iter().enumerate() {
        let types = cases.iter().enumerate();
        let columns = types.map(|(n, (name, ..))| format!(", v{n} {name}, w{n} {name}"));
        tables +=
            &format!("CREATE TABLE m{number} (id int PRIMARY KEY{});", columns.collect::<String>());
        for id in 0..cases.iter().map(|case| case.2.len()).max().unwrap_or(0) {
            let (mut names, mut values, mut moves) = (String::new(), String::new(), Vec::new());
            for (n, (_, _, of_type)) in cases.iter().enumerate() {
                let Some(value) = of_type.get(id) else { continue };
                names += &format!(", v{n}");
                values += &format!(", {value}");
                moves.push(format!("w{n} = {value}, v{n} = NULL"));
            }
            rows += &format!("INSERT INTO m{number} (id{names}) VALUES (OFFSET + {id}{values});");
            let moves = moves.join(", ");
            updates += &format!("UPDATE m{number} SET {moves} WHERE id % 100 = {id};");
        }
    }
    // The index of a label that is none, which only a lax session can make, and ours is strict.
    if target == Target::Mariadb {
        return (tables, rows, updates);
    }
    tables += "CREATE TABLE lax (id int PRIMARY KEY, e enum('x', 'y'), s set('x', 'y'));";
    rows +=
        "SET SESSION sql_mode = 'PIPES_AS_CONCAT'; INSERT INTO lax VALUES (OFFSET, 'none', 'none');
        SET SESSION sql_mode = DEFAULT;";
    (tables, rows, updates)
}

async fn check_matrix(pair: Pair, settings: &[(&str, &str)]) {
    let world = World::with(pair, "", settings, false).await;
    let (tables, rows, updates) = matrix(pair.target, world.server.is_mysql());
    world.execute(&tables).await;
    world.execute(&rows.replace("OFFSET", "0")).await;
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

async fn s76_every_value_arrives_without_row_metadata(pair: Pair) {
    check_matrix(pair, &[]).await;
}

async fn s76_every_value_arrives_with_full_row_metadata(pair: Pair) {
    check_matrix(pair, &[("binlog-row-metadata", "FULL")]).await;
}

async fn s76_values_of_every_type_that_can_be_a_key_work_as_keys(pair: Pair) {
    let world = World::new(pair, "").await;
    let (mut tables, mut copied, mut changes) = (String::new(), String::new(), String::new());
    let cases = kinds(world.server.is_mysql()).into_iter().flatten().filter(|case| case.1);
    for (number, (name, _, values)) in cases.enumerate() {
        let name = name.trim_end_matches(" NULL");
        tables += &format!("CREATE TABLE k{number} (k {name} NOT NULL PRIMARY KEY, n int);");
        for (n, value) in values.iter().enumerate() {
            // Different literals may be equal values; the second one then finds the first.
            copied += &format!("INSERT IGNORE INTO k{number} VALUES ({value}, {n});");
            // A float cannot be found by the decimal that it was made of.
            changes += &match n % 3 {
                0 => format!("UPDATE k{number} SET n = -1 WHERE n = {n};"),
                1 => format!("DELETE FROM k{number} WHERE n = {n};"),
                _ => format!(
                    "DELETE FROM k{number} WHERE n = {n};
                     INSERT IGNORE INTO k{number} VALUES ({value}, -2);"
                ),
            };
        }
    }
    world.execute(&(tables + &copied)).await;
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

/// Every character that a charset has, one a row, and a few together.
async fn s76_every_charset_arrives_as_the_same_text(pair: Pair) {
    let world = World::new(pair, "").await;
    let charsets = world
        .source
        .rows(
            "SELECT character_set_name, maxlen FROM information_schema.character_sets
            WHERE character_set_name NOT IN ('binary', 'filename')",
        )
        .await
        .unwrap();
    assert!(charsets.len() > 30, "{charsets:?}");
    let mut names = Vec::new();
    for row in charsets {
        let [Some(name), Some(width)] = row.as_slice() else { panic!("{row:?}") };
        world
            .execute(&format!(
                "CREATE TABLE {name} (id int PRIMARY KEY, v varchar(40) CHARACTER SET {name},
                 c char(10) CHARACTER SET {name}, e enum('a', 'z') CHARACTER SET {name})"
            ))
            .await;
        names.push((name.clone(), width == "1"));
    }
    let fill = async |offset: u32| {
        for (name, is_single) in &names {
            let value = match is_single {
                true => format!("convert(char(n) USING {name})"),
                // Characters of the basic plane, which many of them have.
                false => {
                    format!("convert(convert(unhex(hex(n * 16 + 160)) USING ucs2) USING {name})")
                }
            };
            let series = pair.source.series(255);
            world
                .execute(&format!(
                    "INSERT IGNORE INTO {name} SELECT n + {offset}, concat({value}, 'x', {value}),
                     'abc', 'z' FROM {series} WHERE n > 31
                     AND hex(convert(convert({value} USING utf8mb4) USING {name})) = hex({value})
                     AND convert({value} USING utf8mb4) <> convert(x'efbfbd' USING utf8mb4)"
                ))
                .await;
        }
    };
    fill(0).await;
    world.catch_up().await;
    world.must_be_equal().await;
    fill(1000).await;
    world.catch_up().await;
    world.must_be_equal().await;
}

const ZERO_DATES: &str = "CREATE TABLE z (id int PRIMARY KEY, d date, t datetime(3),
        s timestamp NULL DEFAULT NULL);
    CREATE TABLE good (id int PRIMARY KEY, d date); INSERT INTO good VALUES (1, '2024-02-29')";

/// What only a lax session can write.
async fn write_zero_dates(world: &World, first: u32) {
    let session = session(&world.from).await;
    let rows = [
        "'0000-00-00', '0000-00-00 00:00:00', '0000-00-00 00:00:00'",
        "'2024-00-00', '2024-02-00 12:00:00.5', NULL",
        "NULL, '0000-01-01 00:00:00', '2024-02-29 12:00:00'",
    ];
    session.batch_execute("SET SESSION sql_mode = 'ALLOW_INVALID_DATES'").await.unwrap();
    for (number, row) in rows.iter().enumerate() {
        let insert = format!("INSERT INTO z VALUES ({}, {row})", first + number as u32);
        session.batch_execute(&insert).await.unwrap();
    }
}

async fn s76_zero_dates_stop_their_table(pair: Pair) {
    // In a row that is copied.
    let world = World::new(pair, ZERO_DATES).await;
    write_zero_dates(&world, 1).await;
    let outcome = world.command(&["run", "--until-current"]).await;
    outcome.must_stop_with("zero-date").must_say(&world.name("z"));
    let good = world.ask_target("SELECT count(*) FROM good").await;
    assert_eq!(good.as_deref(), Some("1"));

    // And in one that is streamed.
    let world = World::new(pair, ZERO_DATES).await;
    world.catch_up().await;
    write_zero_dates(&world, 1).await;
    world.execute("INSERT INTO good VALUES (2, '2024-03-01')").await;
    let outcome = world.command(&["run", "--until-current"]).await;
    outcome.must_stop_with("zero-date").must_say(&world.name("z")).must_say("zero_dates");
    assert_eq!(world.ask_target("SELECT count(*) FROM good").await.as_deref(), Some("2"));
    world.execute("DELETE FROM z").await;
    world.command(&["backfill", "--table", &world.name("z")]).await.must_exit(0);
    world.catch_up().await;
    world.must_be_equal().await;
}

async fn s76_zero_dates_become_null_if_that_is_wanted(pair: Pair) {
    let mut world = World::new(pair, ZERO_DATES).await;
    world.configure("source.zero_dates", "null");
    write_zero_dates(&world, 1).await;
    world.catch_up().await;
    write_zero_dates(&world, 11).await;
    world.catch_up().await;
    for first in [1, 11] {
        let nulls = format!(
            "SELECT count(*) FROM z WHERE (id = {first} AND d IS NULL AND t IS NULL AND s IS NULL)
             OR (id = {first} + 1 AND d IS NULL AND t IS NULL AND s IS NULL)
             OR (id = {first} + 2 AND d IS NULL AND t IS NULL AND s IS NOT NULL)"
        );
        assert_eq!(world.ask_target(&nulls).await.as_deref(), Some("3"), "from {first}");
    }
    world.command(&["verify"]).await.must_exit(0);
}

async fn s76_a_text_that_postgres_cannot_hold_stops_its_table(pair: Pair) {
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v varchar(20)); INSERT INTO t VALUES (1, 'ok');
        CREATE TABLE good (id int PRIMARY KEY)";
    let world = World::new(pair, sql).await;
    world.catch_up().await;
    world.execute("INSERT INTO t VALUES (2, concat('a', char(0), 'b'))").await;
    world.execute("INSERT INTO good VALUES (1)").await;
    let outcome = world.command(&["run", "--until-current"]).await;
    outcome.must_stop_with("poison-row").must_say(&world.name("t"));
    assert_eq!(pair.target, Target::Postgres);
    assert_eq!(world.ask_target("SELECT count(*) FROM t").await.as_deref(), Some("1"));
    assert_eq!(world.ask_target("SELECT count(*) FROM good").await.as_deref(), Some("1"));
}

/// A zone with one summer, because the server knows none by name until it is told: from 01:00 UTC
/// on 29 March 2026 to 01:00 UTC on 25 October 2026.
const ZONE: &str = "INSERT INTO mysql.time_zone VALUES (77, 'N');
    INSERT INTO mysql.time_zone_name VALUES ('Test/Berlin', 77);
    INSERT INTO mysql.time_zone_transition_type VALUES (77, 0, 3600, 0, 'CET'),
        (77, 1, 7200, 1, 'CEST');
    INSERT INTO mysql.time_zone_transition VALUES (77, 1774746000, 1), (77, 1792890000, 0);
    CREATE TABLE t (id int AUTO_INCREMENT PRIMARY KEY, s timestamp(6) NULL DEFAULT NULL,
        t datetime(6), zone varchar(20), n timestamp NULL DEFAULT current_timestamp
        ON UPDATE current_timestamp)";

async fn s77_instants_stay_instants_in_every_time_zone(pair: Pair) {
    let world = World::new(pair, ZONE).await;
    let write = async || {
        for zone in ["+00:00", "Test/Berlin", "-11:30", "+13:00", "SYSTEM"] {
            let session = session(&world.from).await;
            // The hour that does not exist, the one that exists twice, and those beside them.
            let change = format!(
                "SET SESSION time_zone = '{zone}', sql_mode = 'ALLOW_INVALID_DATES';
                 INSERT INTO t (s, t, zone) VALUES
                 ('2026-03-29 01:59:59.999999', '2026-03-29 01:59:59.999999', '{zone}'),
                 ('2026-03-29 02:30:00', '2026-03-29 02:30:00', '{zone}'),
                 ('2026-03-29 03:00:00', '2026-03-29 03:00:00', '{zone}'),
                 ('2026-10-25 02:00:00', '2026-10-25 02:00:00', '{zone}'),
                 ('2026-10-25 02:59:59.5', '2026-10-25 02:59:59.5', '{zone}'),
                 (from_unixtime(1792890000 - 1800), '2026-10-25 02:30:00', '{zone}'),
                 (from_unixtime(1792890000 + 1800), '2026-10-25 02:30:00', '{zone}'),
                 ('1970-01-02 00:00:00', '1970-01-02 00:00:00', '{zone}');
                 UPDATE t SET t = date_add(t, INTERVAL 1 DAY) WHERE id % 4 = 0"
            );
            session.batch_execute(&change).await.unwrap();
        }
    };
    write().await;
    // Every new session of the server, ours too, begins in this zone.
    world.execute("SET GLOBAL time_zone = 'Test/Berlin'").await;
    write().await;
    world.catch_up().await;
    world.must_be_equal().await;
    write().await;
    world.catch_up().await;
    world.must_be_equal().await;
    world.execute("SET GLOBAL time_zone = '-05:00'").await;
    write().await;
    world.catch_up().await;
    world.must_be_equal().await;
    world.command(&["verify"]).await.must_exit(0);
    let instants = "SELECT count(DISTINCT s) FROM t WHERE t = '2026-10-25 02:30:00'";
    let theirs = world.ask(instants).await;
    assert_eq!(theirs.as_deref(), Some("2"), "the test has no hour that exists twice");
}
