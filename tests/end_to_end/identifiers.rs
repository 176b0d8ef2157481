//! Names and values made to break quoting, and secrets that must not be told (S103 to S105).
//!
//! That no password is ever printed is also checked for every daemon of every other scenario.

use driftless::demo::compare::quoted;

use crate::support::{Daemon, Target, World};

for_each_target! {
    s103_hostile_names_work_and_the_canary_table_is_untouched
    s104_hostile_values_arrive_as_they_are
    s105_the_password_is_in_no_failure_message_and_in_no_state_file
}

const NAMES: [&str; 10] = [
    "a\"b",
    "a`b",
    "x'; DROP TABLE canary;--",
    "\"); DROP TABLE canary;--",
    "🦀 crab",
    "table",
    "select",
    " ",
    "with.dot, and comma",
    "exactly_sixty_three_bytes_long_name_of_a_table_or_of_a_column_x",
];

const CANARY: &str = "CREATE TABLE canary (id int PRIMARY KEY); INSERT INTO canary VALUES (1);";

async fn s103_hostile_names_work_and_the_canary_table_is_untouched(target: Target) {
    let mut sql = String::from(CANARY);
    let columns: Vec<String> = NAMES.iter().map(|name| format!("{} text", quoted(name))).collect();
    for name in NAMES {
        let (name, key) = (quoted(name), quoted(NAMES[2]));
        sql += &format!(
            "CREATE TABLE {name} ({}, PRIMARY KEY ({key}, {})); INSERT INTO {name} ({key}, {})
             VALUES ('one', ''), ('two', 'x');",
            columns.join(", "),
            quoted(NAMES[7]),
            quoted(NAMES[7])
        );
    }
    sql += "CREATE SCHEMA \"sch'e\"\"ma; --\";
        CREATE TABLE \"sch'e\"\"ma; --\".t (id int PRIMARY KEY);
        INSERT INTO \"sch'e\"\"ma; --\".t VALUES (1)";
    let mut world = World::new(target, &sql).await;
    world.tables = "*.*".into();
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    for name in NAMES {
        let (name, column) = (quoted(name), quoted(NAMES[0]));
        let key = quoted(NAMES[2]);
        world.execute(&format!("UPDATE {name} SET {column} = 'changed' WHERE {key} = 'one'")).await;
        world.execute(&format!("UPDATE {name} SET {key} = 'moved' WHERE {key} = 'two'")).await;
        world
            .execute(&format!("INSERT INTO {name} ({key}, {}) VALUES ('x', '')", quoted(" ")))
            .await;
        world.execute(&format!("DELETE FROM {name} WHERE {key} = 'one'")).await;
    }
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
    // The last tables may still have been waiting for their first copy.
    world.catch_up().await;
    world.must_be_equal().await;
    world.command(&["verify"]).await.must_exit(0);
}

async fn s104_hostile_values_arrive_as_they_are(target: Target) {
    let values = [
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
    let mut sql = String::from(CANARY);
    sql += "CREATE TABLE t (k text PRIMARY KEY, v text, b bytea, a text[]);";
    let rows = |prefix: &str| {
        let row = |value: &&str| {
            let tag = "$hostile$";
            format!(
                "INSERT INTO t VALUES ({tag}{prefix}{value}{tag}, {tag}{value}{tag},
                 convert_to({tag}{value}{tag}, 'UTF8'), ARRAY[{tag}{value}{tag}, NULL]);"
            )
        };
        values.iter().map(row).collect::<String>()
    };
    sql += &rows("copied ");
    let world = World::new(target, &sql).await;
    world.catch_up().await;
    world.must_be_equal().await;
    world.execute(&rows("streamed ")).await;
    world.execute("UPDATE t SET v = k, k = v WHERE k LIKE 'copied %'").await;
    world.catch_up().await;
    world.must_be_equal().await;
    world.command(&["verify"]).await.must_exit(0);
}

async fn s105_the_password_is_in_no_failure_message_and_in_no_state_file(target: Target) {
    let canary = "hunter2-canary";
    let mut world = World::new(target, "CREATE TABLE t (id int PRIMARY KEY)").await;
    world.catch_up().await;
    let good = world.from.clone();
    let wrong_password = world.source_as("postgres", canary);
    let server_down = format!("postgres://postgres:{canary}@127.0.0.1:1/postgres");
    let no_database = world.server.url("nowhere");
    let not_a_url = format!("postgres://postgres:{canary}@127.0.0.1:99999/postgres");
    for url in [wrong_password, server_down, no_database, not_a_url] {
        world.from = url;
        for command in [&["run", "--until-current"][..], &["check"], &["verify"], &["status"]] {
            let mut daemon = Daemon::start(&world.arguments(command));
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
