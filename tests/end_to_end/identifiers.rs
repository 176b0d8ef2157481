//! Names and values made to break quoting, and secrets that must not be told (S103 to S105).
//!
//! That no password is ever printed is also checked for every daemon of every other scenario.

use driftless::demo::compare::{backticked, quoted};

use crate::support::{Pair, Source, Target, World};

for_each_pair! {
    s103_hostile_names_work_and_the_canary_table_is_untouched:
        postgres(sqlite postgres mariadb /), mariadb(sqlite postgres mariadb /);
    s104_hostile_values_arrive_as_they_are:
        postgres(sqlite postgres mariadb /), mariadb(sqlite postgres mariadb /);
    s105_the_password_is_in_no_failure_message_and_in_no_state_file:
        postgres(sqlite postgres mariadb /), mariadb(sqlite mariadb / postgres);
}

/// Names that every database can have.
const NAMES: [&str; 9] = [
    "a\"b",
    "a`b",
    "x'; DROP TABLE canary;--",
    "\"); DROP TABLE canary;--",
    "`); DROP TABLE canary;--",
    "table",
    "select",
    "with.dot, and comma",
    "exactly_sixty_three_bytes_long_name_of_a_table_or_of_a_column_x",
];

/// Names that MariaDB does not have: four bytes in one character, and a blank at the end.
const NAMES_WITHOUT_MARIADB: [&str; 2] = ["🦀 crab", " "];

const CANARY: &str = "CREATE TABLE canary (id int PRIMARY KEY); INSERT INTO canary VALUES (1);";

/// A name in the source's SQL.
fn name_of(source: Source, name: &str) -> String {
    source.either(quoted(name), backticked(name))
}

async fn s103_hostile_names_work_and_the_canary_table_is_untouched(pair: Pair) {
    let quoted = |name: &str| name_of(pair.source, name);
    let mut names = NAMES.to_vec();
    if pair.source == Source::Postgres && pair.target != Target::Mariadb {
        names.extend(NAMES_WITHOUT_MARIADB);
    }
    let (key, other_key) = (quoted(NAMES[2]), quoted(NAMES[7]));
    let kind =
        |name: &&str| if [NAMES[2], NAMES[7]].contains(name) { "varchar(20)" } else { "text" };
    let columns: Vec<String> =
        names.iter().map(|name| format!("{} {}", quoted(name), kind(name))).collect();
    let mut sql = String::from(CANARY);
    for name in &names {
        let name = quoted(name);
        sql += &format!(
            "CREATE TABLE {name} ({}, PRIMARY KEY ({key}, {other_key}));
             INSERT INTO {name} ({key}, {other_key}) VALUES ('one', ''), ('two', 'x');",
            columns.join(", ")
        );
    }
    let schema = quoted("sch'e\"ma; --");
    sql += &format!(
        "CREATE {} {schema}; CREATE TABLE {schema}.t (id int PRIMARY KEY);
         INSERT INTO {schema}.t VALUES (1)",
        pair.source.either("SCHEMA", "DATABASE")
    );
    let mut world = World::new(pair, &sql).await;
    world.tables = "*.*,!replica.*".into();
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    let column = quoted(NAMES[0]);
    for name in &names {
        let name = quoted(name);
        for change in [
            format!("UPDATE {name} SET {column} = 'changed' WHERE {key} = 'one'"),
            format!("UPDATE {name} SET {key} = 'moved' WHERE {key} = 'two'"),
            format!("INSERT INTO {name} ({key}, {other_key}) VALUES ('x', '')"),
            format!("DELETE FROM {name} WHERE {key} = 'one'"),
        ] {
            world.execute(&change).await;
        }
    }
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
    // The last tables may still have been waiting for their first copy.
    world.catch_up().await;
    world.must_be_equal().await;
    world.command(&["verify"]).await.must_exit(0);
}

const VALUES: [&str; 31] = [
    "'",
    "\"",
    "\\",
    "\\\\",
    "\\.",
    "\\N",
    "\\n",
    "\n",
    "\r\n",
    "\t",
    "\u{b}",
    "$$",
    "$1",
    "?",
    ":a",
    "%s",
    "NULL",
    "'; DROP TABLE canary; --",
    "{\"a\": 1}",
    "{a,b}",
    "\u{1F980}",
    "\u{7f}",
    "\u{1}",
    "\u{feff}bom",
    " leading and trailing ",
    "a\u{301}",
    "\\x41",
    "0x41",
    "1e5",
    "-0",
    "true",
];

/// Rows of the table `t` whose key, text and bytes are hostile, and in PostgreSQL also an array.
fn hostile_rows(source: Source, prefix: &str) -> String {
    let row = |value: &&str| match source {
        Source::Postgres => {
            let tag = "$hostile$";
            format!(
                "INSERT INTO t VALUES ({tag}{prefix}{value}{tag}, {tag}{value}{tag},
                 convert_to({tag}{value}{tag}, 'UTF8'), ARRAY[{tag}{value}{tag}, NULL]);"
            )
        }
        Source::Mariadb => {
            let digits =
                |text: &str| -> String { text.bytes().map(|byte| format!("{byte:02x}")).collect() };
            format!(
                "INSERT INTO t VALUES (convert(x'{}' USING utf8mb4),
                 convert(x'{1}' USING utf8mb4), x'{1}', json_array(convert(x'{1}' USING utf8mb4)));",
                digits(&format!("{prefix}{value}")),
                digits(value)
            )
        }
    };
    VALUES.iter().map(row).collect()
}

async fn s104_hostile_values_arrive_as_they_are(pair: Pair) {
    let table = pair.source.either(
        "CREATE TABLE t (k varchar(100) PRIMARY KEY, v text, b bytea, a text[]);",
        "CREATE TABLE t (k varchar(100) COLLATE utf8mb4_bin PRIMARY KEY, v text, b blob, a json);",
    );
    let sql = format!("{CANARY}{table}{}", hostile_rows(pair.source, "copied "));
    let world = World::new(pair, &sql).await;
    world.catch_up().await;
    world.must_be_equal().await;
    world.execute(&hostile_rows(pair.source, "streamed ")).await;
    let swap = pair.source.either(
        "UPDATE t SET v = k, k = v WHERE k LIKE 'copied %'",
        // Assignments see each other here, from the left to the right.
        "ALTER TABLE canary COMMENT = 'made to break quoting: ` '' \" ; -- ';
         UPDATE t SET k = v, v = concat('copied ', v) WHERE k LIKE 'copied %'",
    );
    world.execute(swap).await;
    world.catch_up().await;
    world.must_be_equal().await;
    world.command(&["verify"]).await.must_exit(0);
}

async fn s105_the_password_is_in_no_failure_message_and_in_no_state_file(pair: Pair) {
    let canary = "hunter2-canary";
    let mut world = World::new(pair, "CREATE TABLE t (id int PRIMARY KEY)").await;
    world.catch_up().await;
    let good = world.from.clone();
    let (scheme, user) = (pair.source.either("postgres", "mysql"), pair.source.superuser());
    let wrong_password = world.source_as(user, canary);
    let server_down = format!("{scheme}://{user}:{canary}@127.0.0.1:1/shop");
    let no_database = world.server.url("nowhere");
    let not_a_url = format!("{scheme}://{user}:{canary}@127.0.0.1:99999/shop");
    for url in [wrong_password, server_down, no_database, not_a_url] {
        world.from = url;
        for command in [&["run", "--until-current"][..], &["check"], &["verify"], &["status"]] {
            let mut daemon = world.start(&world.arguments(command));
            // A server that is down may be waited for; a daemon that waits must still be silent.
            let patience = std::time::Instant::now() + std::time::Duration::from_secs(3);
            while daemon.is_running() && std::time::Instant::now() < patience {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            let outcome = daemon.kill().await;
            assert!(!outcome.stderr.contains(canary), "{}", outcome.arguments);
            assert!(!outcome.stdout.contains(canary), "{}", outcome.arguments);
        }
    }
    world.from = good;
    let found = std::process::Command::new("grep")
        .args(["-rlF", driftless::demo::server::PASSWORD])
        .arg(world.state())
        .output();
    assert_eq!(String::from_utf8(found.unwrap().stdout).unwrap(), "", "files hold the password");
}
