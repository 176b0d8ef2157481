//! Looks at everything that replication from a MySQL or MariaDB server needs, and changes nothing.
//! Each failure carries the statement that mends it.
//!
//! Surprise: a setting that is mended here holds for new sessions only. The log itself is judged
//! event by event; a session that goes on with statements in it stops us there.

use std::collections::HashMap;

use super::catalog::{self, CatalogTable, optional, text};
use super::connect::Session;
use super::replica::Replica;
use super::{quote, source_sql as sql, subscribe};
use crate::Finding;
use crate::error::{Code, Result};
use crate::finding::{coded, failure, ok, warning};
use crate::schema::TablePatterns;

/// The oldest versions whose answers are understood, and what was tested.
const MARIADB: Versions = Versions { least: (10, 5), tested: [(10, 11), (11, 8)] };
const MYSQL: Versions = Versions { least: (5, 7), tested: [(9, 7), (9, 7)] };
const DAY_SECONDS: u64 = 86_400;

struct Versions {
    least: (u16, u16),
    tested: [(u16, u16); 2],
}

/// What is asked of a source besides its tables.
pub struct Wanted<'a> {
    /// What we are called there.
    pub replica: &'a Replica,
    /// Whether foreign keys may change rows without telling the log.
    pub accept_cascades: bool,
}

/// What the server says of itself.
struct Facts {
    settings: HashMap<String, String>,
    account: String,
    grants: Vec<String>,
}

/// All findings, in the order in which they matter.
///
/// # Errors
/// Only if the server cannot be asked.
pub async fn check(
    session: &mut Session,
    wanted: &Wanted<'_>,
    patterns: &TablePatterns,
) -> Result<Vec<Finding>> {
    let facts = facts(session).await?;
    let mut findings = vec![version(session), logging(&facts)];
    findings.extend(format(&facts));
    findings.extend(safety(session, &facts));
    findings.extend(privileges(session, &facts));
    findings.push(server_id(session, wanted.replica, &facts).await?);
    findings.extend(replication(session, &facts).await?);
    findings.push(prepared_xa(session).await?);
    match catalog::matching(session, patterns).await {
        Err(error) if error.is_transient() => return Err(error),
        Err(error) => findings.push(coded(error.code, failure("tables", &error.message, ""))),
        Ok(tables) => {
            let cascades = refused_cascades(session, wanted.accept_cascades).await?;
            for table in &tables {
                findings.push(table_ready(session, &facts, table, cascades).await?);
            }
            findings.push(filters(session, &facts, &tables).await?);
        }
    }
    Ok(findings)
}

/// Whether the actions of foreign keys stand in the way: the log does not have what they do, and
/// nobody has consented to that.
///
/// # Errors
/// What the server says.
pub async fn refused_cascades(session: &mut Session, accept: bool) -> Result<bool> {
    if accept {
        return Ok(false);
    }
    // From 9.6 on MySQL does such actions above its storage engine, unless told otherwise.
    if session.server().is_mariadb() || session.server().version < (9, 6, 0) {
        return Ok(true);
    }
    let rows = session.query("look at foreign keys", sql::NATIVE_FOREIGN_KEYS).await?;
    let native = rows.first().map(|row| text(row, 1)).transpose()?;
    Ok(native.is_none_or(|native| native != "OFF"))
}

async fn facts(session: &mut Session) -> Result<Facts> {
    let doing = "read the server's settings";
    let rows = session.query(doing, "SHOW GLOBAL VARIABLES").await?;
    let setting = |row| Ok((text(row, 0)?.to_lowercase(), optional(row, 1)?.unwrap_or_default()));
    let settings = rows.iter().map(setting).collect::<Result<HashMap<_, _>>>()?;
    let account = subscribe::first(session, doing, "SELECT CURRENT_USER()").await?;
    let grants = session.query(doing, "SHOW GRANTS").await?;
    let grants = grants.iter().map(|row| text(row, 0)).collect::<Result<Vec<_>>>()?;
    Ok(Facts { settings, account: account_literal(&account), grants })
}

/// `app@10.%` as `'app'@'10.%'`.
fn account_literal(account: &str) -> String {
    let (name, host) = account.rsplit_once('@').unwrap_or((account, "%"));
    let quoted = |part: &str| format!("'{}'", part.replace('\\', "\\\\").replace('\'', "''"));
    format!("{}@{}", quoted(name), quoted(host))
}

impl Facts {
    fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    fn is(&self, name: &str, value: &str) -> bool {
        self.setting(name).eq_ignore_ascii_case(value)
    }

    /// Whether one of these is granted for the whole server; `None` where a role may grant it.
    fn granted(&self, privileges: &[&str]) -> Option<bool> {
        let global = self.grants.iter().filter(|grant| grant.contains(" ON *.* TO "));
        let has = |grant: &String| {
            let list = grant.split(" ON *.* ").next().unwrap_or_default();
            let list = list.strip_prefix("GRANT ").unwrap_or(list);
            let is = |name: &str| name == "ALL PRIVILEGES" || privileges.contains(&name);
            list.split(", ").any(is)
        };
        let by_role = self.grants.iter().any(|grant| !grant.contains(" ON "));
        match global.clone().any(has) {
            true => Some(true),
            false if by_role => None,
            false => Some(false),
        }
    }
}

fn version(session: &Session) -> Finding {
    let server = session.server();
    let (name, versions) = match server.is_mariadb() {
        true => ("MariaDB", MARIADB),
        false => ("MySQL", MYSQL),
    };
    let here = (server.version.0, server.version.1);
    let message = format!("{name} {}", server.text);
    let (oldest, newest) = (versions.tested[0], versions.tested[1]);
    match here {
        here if here < versions.least => failure(
            "server version",
            &format!("{message} is older than {}.{}", versions.least.0, versions.least.1),
            "upgrade the source",
        ),
        here if here < oldest => {
            warning("server version", &format!("{message} is older than what was tested"), "")
        }
        here if here > newest => {
            warning("server version", &format!("{message} is newer than what was tested"), "")
        }
        _ => ok("server version", &message),
    }
}

fn logging(facts: &Facts) -> Finding {
    match facts.is("log_bin", "ON") {
        true => ok("log_bin", "the server writes a binary log"),
        false => failure(
            "log_bin",
            "the server writes no binary log",
            "put log_bin = binlog under [mysqld] in the server's configuration and restart it",
        ),
    }
}

/// The settings that decide what the log has of a row.
fn format(facts: &Facts) -> Vec<Finding> {
    let must = |setting: &str, value: &str, why: &str| match facts.setting(setting) {
        // A server without the setting knows nothing else.
        "" => ok(setting, value),
        is if is.eq_ignore_ascii_case(value) => ok(setting, value),
        is => failure(
            setting,
            &format!("it is {is}; {why}"),
            &format!(
                "SET GLOBAL {setting} = '{value}'; -- and in the server's configuration; then let \
                 applications connect anew"
            ),
        ),
    };
    let format =
        must("binlog_format", "ROW", "statements in the log do not say which rows they change");
    let image = must("binlog_row_image", "FULL", "the log has rows only in part");
    let options = match facts.setting("binlog_row_value_options") {
        "" => ok("binlog_row_value_options", "none"),
        is => failure(
            "binlog_row_value_options",
            &format!("it is {is}; the log has documents only in part"),
            "SET GLOBAL binlog_row_value_options = ''; -- and in the server's configuration",
        ),
    };
    let metadata = match facts.setting("binlog_row_metadata") {
        is if is.eq_ignore_ascii_case("FULL") => ok("binlog_row_metadata", "FULL"),
        _ => warning(
            "binlog_row_metadata",
            "the log does not name columns, so a table that is altered while nobody reads the \
             log may have to be copied again",
            "SET GLOBAL binlog_row_metadata = 'FULL'; -- and in the server's configuration",
        ),
    };
    vec![format, image, options, metadata]
}

/// The settings that decide whether the log is there when it is needed, and whole.
fn safety(session: &Session, facts: &Facts) -> Vec<Finding> {
    let checksum = match facts.is("binlog_checksum", "NONE") {
        true => warning(
            "binlog_checksum",
            "events that were damaged on their way are not noticed",
            "SET GLOBAL binlog_checksum = CRC32;",
        ),
        false => ok("binlog_checksum", facts.setting("binlog_checksum")),
    };
    let sync = match facts.is("sync_binlog", "1") {
        true => ok("sync_binlog", "1"),
        false => warning(
            "sync_binlog",
            "after a power failure the source may lack what was replicated already",
            "SET GLOBAL sync_binlog = 1; SET GLOBAL innodb_flush_log_at_trx_commit = 1;",
        ),
    };
    let mut findings = vec![checksum, sync, retention(facts)];
    if !session.server().is_mariadb() {
        findings.push(match facts.is("gtid_mode", "ON") {
            true => ok("gtid_mode", "ON"),
            false => warning(
                "gtid_mode",
                "without GTIDs a log that was begun anew is harder to notice",
                "SET GLOBAL enforce_gtid_consistency = ON; SET GLOBAL gtid_mode = OFF_PERMISSIVE; \
                 SET GLOBAL gtid_mode = ON_PERMISSIVE; SET GLOBAL gtid_mode = ON;",
            ),
        });
    }
    findings
}

fn retention(facts: &Facts) -> Finding {
    let number = |setting: &str| facts.setting(setting).parse::<f64>().unwrap_or(0.0);
    let seconds = match number("binlog_expire_logs_seconds") {
        0.0 => number("expire_logs_days") * DAY_SECONDS as f64,
        seconds => seconds,
    };
    let limit = number("max_binlog_total_size");
    match seconds {
        _ if limit > 0.0 => warning(
            "retention",
            &format!("binary logs are removed beyond {limit} bytes, read or not"),
            "SET GLOBAL max_binlog_total_size = 0;",
        ),
        0.0 => ok("retention", "binary logs are kept until somebody removes them"),
        seconds if seconds < DAY_SECONDS as f64 => warning(
            "retention",
            &format!("binary logs are removed after {seconds} s, read or not"),
            "SET GLOBAL binlog_expire_logs_seconds = 604800;",
        ),
        seconds => ok("retention", &format!("binary logs are kept for {seconds} s")),
    }
}

fn privileges(session: &Session, facts: &Facts) -> Vec<Finding> {
    let account = &facts.account;
    let needs = |subject: &str, names: &[&str], grant: &str| match facts.granted(names) {
        Some(true) => ok(subject, "our account has it"),
        None => warning(subject, "it is not granted to our account itself; a role may have it", ""),
        Some(false) => coded(
            Code::Permission,
            failure(
                subject,
                &format!("account {account} lacks it"),
                &format!("GRANT {grant} ON *.* TO {account};"),
            ),
        ),
    };
    let mut findings = vec![
        needs("privilege to read the log", &["REPLICATION SLAVE"], "REPLICATION SLAVE"),
        needs(
            "privilege to ask about the log",
            &["REPLICATION CLIENT", "BINLOG MONITOR", "SUPER"],
            "REPLICATION CLIENT",
        ),
    ];
    if !session.server().is_mariadb() && !facts.is("gtid_mode", "ON") {
        findings.push(needs(
            "privilege to send a mark through the log",
            &["RELOAD", "FLUSH_STATUS"],
            "RELOAD",
        ));
    }
    if !session.server().is_mariadb() && facts.granted(&["XA_RECOVER_ADMIN"]) == Some(false) {
        findings.push(warning(
            "privilege to ask about XA transactions",
            "needed only where applications use XA transactions",
            &format!("GRANT XA_RECOVER_ADMIN ON *.* TO {account};"),
        ));
    }
    findings
}

async fn server_id(session: &mut Session, replica: &Replica, facts: &Facts) -> Result<Finding> {
    let clash = |whom: &str| {
        let message = format!("our server id {} is that of {whom}", replica.id);
        let remedy = "set server_id under [source] to a number that nobody else has";
        coded(Code::ServerIdInUse, failure("server id", &message, remedy))
    };
    if facts.is("server_id", "0") {
        let remedy = "SET GLOBAL server_id = 1; -- and in the server's configuration";
        return Ok(failure("server id", "the server has none, so it gives out no log", remedy));
    }
    if facts.is("server_id", &replica.id.to_string()) {
        return Ok(clash("the source itself"));
    }
    Ok(match replica.holder(session).await {
        Ok(Some(holder)) if holder != replica.name => clash(&format!("replica {holder:?}")),
        Err(error) if error.is_transient() => return Err(error),
        _ => ok("server id", &replica.id.to_string()),
    })
}

/// A source that is a replica itself has to log what it replicates.
async fn replication(session: &mut Session, facts: &Facts) -> Result<Option<Finding>> {
    let logs = facts.is("log_slave_updates", "ON") || facts.is("log_replica_updates", "ON");
    let is_replica =
        match session.query("look at replication", sql::replica_status(session.server())).await {
            Ok(rows) => !rows.is_empty(),
            Err(error) if error.is_transient() => return Err(error),
            // Without the privilege we cannot know; most sources are no replicas.
            Err(_) => false,
        };
    let remedy = "put log_slave_updates = ON into the server's configuration and restart it";
    Ok((is_replica && !logs).then(|| {
        failure("log_slave_updates", "the server does not log what it replicates itself", remedy)
    }))
}

async fn prepared_xa(session: &mut Session) -> Result<Finding> {
    let subject = "prepared XA transactions";
    let prepared = subscribe::prepared_xa(session).await?.unwrap_or_default();
    Ok(match prepared.len() {
        0 => ok(subject, "none"),
        count => warning(
            subject,
            &format!("the first copy waits until {count} of them have ended"),
            "XA RECOVER; -- then XA COMMIT or XA ROLLBACK",
        ),
    })
}

async fn table_ready(
    session: &mut Session,
    facts: &Facts,
    table: &CatalogTable,
    refuse_cascades: bool,
) -> Result<Finding> {
    let subject = format!("table {}", table.name);
    let name = quote::table(&table.name);
    if let Err(error) = session.query("look at a table", &sql::lock(&table.name)).await {
        return match error.is_transient() {
            true => Err(error),
            false => {
                let grant = format!("GRANT SELECT ON {name} TO {};", facts.account);
                Ok(coded(error.code, failure(&subject, &error.message, &grant)))
            }
        };
    }
    let cascades = if refuse_cascades { table.without_cascades() } else { Ok(()) };
    Ok(match (table.schema(), cascades) {
        (Ok(schema), Ok(())) => {
            let key: Vec<&str> = schema.key_columns().map(|column| column.name.as_str()).collect();
            ok(&subject, &format!("key ({})", key.join(", ")))
        }
        (Err(error), _) => {
            coded(error.code, failure(&subject, &error.message, &format!("{};", table.remedy())))
        }
        (Ok(_), Err(error)) => {
            let constraint = quote::identifier(table.cascades.first().map_or("", String::as_str));
            let remedy = format!("ALTER TABLE {name} DROP FOREIGN KEY {constraint};");
            coded(error.code, failure(&subject, &error.message, &remedy))
        }
    })
}

/// Databases that the server leaves out of its log.
async fn filters(session: &mut Session, facts: &Facts, tables: &[CatalogTable]) -> Result<Finding> {
    let subject = "binlog_do_db, binlog_ignore_db";
    if !facts.is("log_bin", "ON") {
        return Ok(ok(subject, "there is no log"));
    }
    let question = sql::log_status(session.server());
    let rows = match session.query("read the end of the binary log", question).await {
        Ok(rows) => rows,
        Err(error) if error.is_transient() => return Err(error),
        Err(error) => return Ok(coded(error.code, failure(subject, &error.message, ""))),
    };
    let list = |at: usize| -> Result<Vec<String>> {
        let text = rows.first().map(|row| optional(row, at)).transpose()?.flatten();
        let text = text.unwrap_or_default();
        Ok(text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
    };
    let (logged, ignored) = (list(2)?, list(3)?);
    let left_out = |table: &&CatalogTable| {
        let schema = &table.name.schema;
        ignored.contains(schema) || !(logged.is_empty() || logged.contains(schema))
    };
    Ok(match tables.iter().find(left_out) {
        None => ok(subject, "the log has the changes of every table"),
        Some(table) => failure(
            subject,
            &format!("the changes of table {} are left out of the log", table.name),
            "remove binlog_do_db and binlog_ignore_db from the server's configuration and \
             restart it",
        ),
    })
}
