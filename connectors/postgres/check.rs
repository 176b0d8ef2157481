//! Looks at everything that replication from a PostgreSQL server needs, and changes nothing.
//! Each failure carries the statement that mends it.
//!
//! Surprise: a source that is ready today may still wait at its first start, for transactions
//! that are older than the slot; those are named here as a warning.

use tokio_postgres::Client;

use super::catalog::{self, CatalogTable};
use super::{connect, publication, quote, source_sql as sql, subscribe};
use crate::Finding;
use crate::error::{Code, Result};
use crate::finding::{coded, failure, ok, warning};
use crate::schema::TablePatterns;

const VERSION_MIN: i32 = 14;
const VERSION_TESTED_MAX: i32 = 18;
/// A transaction that has written and is older than this is worth a word.
const OLD_SECONDS: i64 = 60;

/// What the server says of itself and of our role.
struct Facts {
    version: i32,
    version_text: String,
    wal_level: String,
    slots: (i64, i64),
    senders: (i64, i64),
    role: String,
    superuser: bool,
    replication: bool,
    database: String,
    may_create: bool,
    keep_size: String,
    encoding: String,
    in_recovery: bool,
}

/// All findings, in the order in which they matter.
///
/// # Errors
/// Only if the server cannot be asked.
pub async fn check(client: &Client, slot: &str, patterns: &TablePatterns) -> Result<Vec<Finding>> {
    let facts = facts(client).await?;
    let exists = subscribe::slot(client, slot).await?.is_some();
    let mut findings = settings(&facts, exists);
    findings.extend(role(&facts));
    findings.push(old_transactions(client).await?);
    match catalog::matching(client, patterns).await {
        Err(error) if error.is_transient() => return Err(error),
        Err(error) => findings.push(coded(error.code, failure("tables", &error.message, ""))),
        Ok(tables) => {
            findings.extend(tables_ready(client, &facts, &tables).await?);
            findings.push(publication(client, &facts, slot, &tables).await?);
        }
    }
    Ok(findings)
}

async fn facts(client: &Client) -> Result<Facts> {
    let row = client.query_one(sql::FACTS, &[]).await;
    let row = row.map_err(|error| connect::error("read the server's settings", &error))?;
    Ok(Facts {
        version: row.get(0),
        version_text: row.get(1),
        wal_level: row.get(2),
        slots: (row.get(3), row.get(4)),
        senders: (row.get(5), row.get(6)),
        role: row.get(7),
        superuser: row.get(8),
        replication: row.get(9),
        database: row.get(10),
        may_create: row.get(11),
        keep_size: row.get(12),
        encoding: row.get(13),
        in_recovery: row.get(14),
    })
}

fn settings(facts: &Facts, slot_exists: bool) -> Vec<Finding> {
    let major = facts.version / 10_000;
    let version = match major {
        ..VERSION_MIN => failure(
            "server version",
            &format!("PostgreSQL {} is older than {VERSION_MIN}", facts.version_text),
            "upgrade the source",
        ),
        VERSION_MIN..=VERSION_TESTED_MAX => ok("server version", &facts.version_text),
        _ => warning(
            "server version",
            &format!("PostgreSQL {} is newer than what was tested", facts.version_text),
            "",
        ),
    };
    let primary = match facts.in_recovery {
        true => failure("primary", "the server is a standby", "connect to the primary"),
        false => ok("primary", "the server accepts writes"),
    };
    let wal_level = match facts.wal_level.as_str() {
        "logical" => ok("wal_level", "logical"),
        other => failure(
            "wal_level",
            &format!("it is {other}"),
            "ALTER SYSTEM SET wal_level = 'logical'; -- then restart the server",
        ),
    };
    let encoding = match facts.encoding.as_str() {
        "SQL_ASCII" => failure(
            "encoding",
            "the database is SQL_ASCII, so its text has no known meaning",
            "dump the database and restore it with ENCODING 'UTF8'",
        ),
        encoding => ok("encoding", encoding),
    };
    let keep_size = match facts.keep_size.as_str() {
        "-1" => warning(
            "max_slot_wal_keep_size",
            "without a limit a stopped pipeline fills the source's disk",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '100GB'; SELECT pg_reload_conf();",
        ),
        size => ok("max_slot_wal_keep_size", size),
    };
    // A slot of ours that is there needs no other.
    let slots = free("max_replication_slots", facts.slots, slot_exists);
    let senders = free("max_wal_senders", facts.senders, false);
    vec![version, primary, wal_level, slots, senders, encoding, keep_size]
}

fn free(setting: &str, (used, max): (i64, i64), have_one: bool) -> Finding {
    let message = format!("{used} of {max} in use");
    match used < max || have_one {
        true => ok(setting, &message),
        false => failure(
            setting,
            &message,
            &format!("ALTER SYSTEM SET {setting} = {}; -- then restart the server", max + 5),
        ),
    }
}

fn role(facts: &Facts) -> Vec<Finding> {
    let role = quote::identifier(&facts.role);
    let replication = match facts.replication || facts.superuser {
        true => ok("replication privilege", "our role has it"),
        false => coded(
            Code::Permission,
            failure(
                "replication privilege",
                &format!("role {} may not replicate", facts.role),
                &format!("ALTER ROLE {role} REPLICATION; -- on RDS: GRANT rds_replication TO …"),
            ),
        ),
    };
    let least = match facts.superuser {
        true => warning(
            "role",
            &format!("role {} is a superuser, which is more than is needed", facts.role),
            "CREATE ROLE driftless LOGIN REPLICATION PASSWORD '…'; -- and GRANT SELECT",
        ),
        false => ok("role", &facts.role),
    };
    vec![replication, least]
}

async fn old_transactions(client: &Client) -> Result<Finding> {
    let rows = client.query(sql::WRITERS, &[]).await;
    let rows = rows.map_err(|error| connect::error("list the transactions", &error))?;
    let old: Vec<String> = rows
        .iter()
        .filter(|row| row.get::<_, Option<i64>>(1).is_some_and(|seconds| seconds > OLD_SECONDS))
        .map(|row| row.get(0))
        .collect();
    Ok(match old.is_empty() {
        true => ok("old transactions", "none"),
        false => warning(
            "old transactions",
            &format!("the first copy waits until these have ended: {}", old.join(", ")),
            "end them, or SELECT pg_terminate_backend(PID); ROLLBACK PREPARED 'NAME';",
        ),
    })
}

async fn tables_ready(
    client: &Client,
    facts: &Facts,
    tables: &[CatalogTable],
) -> Result<Vec<Finding>> {
    let ids: Vec<u32> = tables.iter().map(|table| table.id).collect();
    let rows = client.query(sql::READABLE, &[&ids]).await;
    let rows = rows.map_err(|error| connect::error("read the privileges", &error))?;
    let hidden: Vec<u32> =
        rows.iter().filter(|row| !row.get::<_, bool>(1)).map(|row| row.get(0)).collect();
    let finding = |table: &CatalogTable| {
        let subject = format!("table {}", table.name);
        let name = quote::table(&table.name);
        let role = quote::identifier(&facts.role);
        if hidden.contains(&table.id) {
            let schema = quote::identifier(&table.name.schema);
            let grant = format!(
                "GRANT USAGE ON SCHEMA {schema} TO {role}; \
                 GRANT SELECT ON {name} TO {role};"
            );
            let refused = failure(&subject, "our role may not read it", &grant);
            return coded(Code::Permission, refused);
        }
        match table.schema() {
            Ok(schema) => {
                let key: Vec<&str> =
                    schema.key_columns().map(|column| column.name.as_str()).collect();
                ok(&subject, &format!("key ({})", key.join(", ")))
            }
            Err(error) => {
                coded(error.code, failure(&subject, &error.message, &table.remedy(&facts.role)))
            }
        }
    };
    Ok(tables.iter().map(finding).collect())
}

async fn publication(
    client: &Client,
    facts: &Facts,
    name: &str,
    tables: &[CatalogTable],
) -> Result<Finding> {
    let (statements, complete) = match publication::find(client, name).await? {
        Some(publication) => match publication.mend(name, tables) {
            Err(error) => {
                return Ok(coded(error.code, failure("publication", &error.message, "")));
            }
            Ok(statements) => {
                let owner = publication.ours;
                (statements, owner)
            }
        },
        None => {
            let list = sql::publication_tables(tables.iter().map(|t| (&t.name, t.partitioned)));
            (vec![sql::create_publication(name, &list)], facts.may_create)
        }
    };
    if statements.is_empty() {
        return Ok(ok("publication", &format!("{name} publishes every table")));
    }
    let foreign: Vec<u32> = tables.iter().map(|table| table.id).collect();
    let rows = client.query(sql::NOT_OWNED, &[&foreign]).await;
    let rows = rows.map_err(|error| connect::error("read the owners", &error))?;
    let statement = statements.join("; ");
    if complete && rows.is_empty() {
        return Ok(ok("publication", &format!("{name} can be prepared")));
    }
    let why = match rows.first() {
        Some(row) => format!("our role does not own table {}", row.get::<_, String>(0)),
        None => format!("our role may not prepare publication {name}"),
    };
    let role = quote::identifier(&facts.role);
    let database = quote::identifier(&facts.database);
    let remedy = match (rows.is_empty(), complete) {
        (true, false) if !facts.may_create => {
            format!("GRANT CREATE ON DATABASE {database} TO {role};")
        }
        _ => format!("{statement}; -- as a role that owns the tables, or a superuser"),
    };
    Ok(coded(Code::Publication, failure("publication", &why, &remedy)))
}
