//! The text of each statement.

use super::*;
use crate::mysql::target_types::stored_columns;
use crate::schema::{Column, ColumnType, TableName};

const V: Version = Version { epoch: 1, log: 0x1234, ordinal: 2 };
const V_SQL: &str = "X'00000001000000000000123400000002'";

fn table(key: &[usize]) -> TableSchema {
    let column =
        |name: &str, column_type| Column { name: name.into(), column_type, native: None, id: 1 };
    TableSchema {
        name: TableName::new("public", "it`s"),
        id: 1,
        engine: Engine::Postgres,
        columns: vec![
            column("k", ColumnType::Int64),
            column("a`b", ColumnType::Text),
            column("f", ColumnType::Float32),
        ],
        key: key.to_vec(),
    }
}

fn check(
    server: Engine,
    soft_deletes: bool,
    key: &[usize],
    statement: impl Fn(&TableSql<'_>) -> String,
    expected: &str,
) {
    let table = table(key);
    let columns = stored_columns(&table, server);
    let sql = TableSql { server, soft_deletes, name: "it`s", table: &table, columns: &columns };
    assert_eq!(statement(&sql), expected);
}

#[test]
fn a_table_has_the_sources_key_and_our_columns() {
    check(
        Engine::Mariadb,
        true,
        &[0],
        |sql| sql.create_table(),
        "CREATE TABLE IF NOT EXISTS `it``s` (`k` bigint NOT NULL, `a``b` longtext \
         CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NULL, `f` float NULL, \
         `_cdc_version` binary(16) NOT NULL, `_cdc_updated_at` datetime(6) NOT NULL, \
         `_cdc_deleted` boolean NOT NULL DEFAULT 0, PRIMARY KEY (`k`)) ENGINE=InnoDB \
         ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin",
    );
    check(
        Engine::Mysql,
        false,
        &[0],
        |sql| sql.add_columns(&[2], true),
        "ALTER TABLE `it``s` ADD COLUMN `f` float NULL, \
         ADD COLUMN `_cdc_deleted` boolean NOT NULL DEFAULT 0",
    );
}

#[test]
fn an_upsert_assigns_the_version_last() {
    let whole = |sql: &TableSql<'_>| {
        let upsert = sql.upsert(&[0, 1]);
        format!("{}(…){}", upsert.head, upsert.tail)
    };
    check(
        Engine::Mariadb,
        true,
        &[0],
        whole,
        "INSERT INTO `it``s` (`k`, `a``b`, `_cdc_updated_at`, `_cdc_deleted`, `_cdc_version`) \
         VALUES (…) ON DUPLICATE KEY UPDATE \
         `a``b` = IF(VALUES(`_cdc_version`) > `_cdc_version`, VALUES(`a``b`), `a``b`), \
         `_cdc_updated_at` = IF(VALUES(`_cdc_version`) > `_cdc_version`, \
         VALUES(`_cdc_updated_at`), `_cdc_updated_at`), \
         `_cdc_deleted` = IF(VALUES(`_cdc_version`) > `_cdc_version`, \
         VALUES(`_cdc_deleted`), `_cdc_deleted`), \
         `_cdc_version` = IF(VALUES(`_cdc_version`) > `_cdc_version`, \
         VALUES(`_cdc_version`), `_cdc_version`)",
    );
    check(
        Engine::Mysql,
        false,
        &[0],
        |sql| sql.upsert(&[0]).tail,
        " AS `_cdc_new` ON DUPLICATE KEY UPDATE `_cdc_updated_at` = \
         IF(`_cdc_new`.`_cdc_version` > `it``s`.`_cdc_version`, \
         `_cdc_new`.`_cdc_updated_at`, `it``s`.`_cdc_updated_at`), `_cdc_version` = \
         IF(`_cdc_new`.`_cdc_version` > `it``s`.`_cdc_version`, \
         `_cdc_new`.`_cdc_version`, `it``s`.`_cdc_version`)",
    );
}

#[test]
fn deletes_and_truncations_leave_newer_rows_alone() {
    check(
        Engine::Mysql,
        false,
        &[2, 0],
        |sql| sql.delete(&[(vec!["1e0".into(), "2".into()], V), (vec!["0".into(); 2], V)]),
        &format!(
            "DELETE FROM `it``s` WHERE (`f` = 1e0 AND `k` = 2 AND `_cdc_version` < {V_SQL}) \
             OR (`f` = 0 AND `k` = 0 AND `_cdc_version` < {V_SQL})"
        ),
    );
    check(
        Engine::Mysql,
        true,
        &[0],
        |sql| sql.truncate(V, Timestamp(-1)),
        &format!(
            "UPDATE `it``s` SET `_cdc_deleted` = 1, \
             `_cdc_updated_at` = '1969-12-31 23:59:59.999999', `_cdc_version` = {V_SQL} \
             WHERE `_cdc_version` < {V_SQL}"
        ),
    );
}

#[test]
fn keys_are_read_in_their_order() {
    check(
        Engine::Mysql,
        true,
        &[0, 1],
        |sql| {
            let after = ["7".to_owned(), "'x'".to_owned()];
            sql.read_keys(Some(&after), Some(V), Some("k < 9 -- why"), 10)
        },
        &format!(
            "SELECT `k`, `a``b` FROM `it``s` WHERE TRUE AND NOT `_cdc_deleted` \
             AND (`k` > 7 OR (`k` = 7 AND (`a``b` > 'x'))) AND `_cdc_version` < {V_SQL} \
             AND (\nk < 9 -- why\n) ORDER BY `k`, `a``b` LIMIT 10"
        ),
    );
    check(
        Engine::Mysql,
        false,
        &[0],
        |sql| sql.read_rows(&[vec!["1".into()], vec!["2".into()]]),
        "SELECT `_cdc_version`, `k`, `a``b`, CAST(`f` AS DOUBLE) FROM `it``s` \
         WHERE (`k` IN (1, 2))",
    );
}

#[test]
fn tombstones_keep_the_greater_version() {
    assert_eq!(
        bury(Engine::Mariadb, "p", "t", &[([0xab; 32], V)]),
        format!(
            "INSERT INTO `_cdc_tombstone` (`pipeline`, `table_name`, `key_digest`, `version`) \
             VALUES ('p', 't', X'{}', {V_SQL}) ON DUPLICATE KEY UPDATE `version` = \
             IF(VALUES(`version`) > `version`, VALUES(`version`), `version`)",
            "AB".repeat(32)
        )
    );
}
