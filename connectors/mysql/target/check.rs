//! Looks at everything that writing needs, and changes nothing. Each finding that is not good
//! carries the SQL that mends it.

use std::sync::Arc;

use mysql_async::Row;

use super::MysqlTarget;
use super::grants::Grants;
use super::records::{number, optional, text};
use super::shape::{RUN, compare};
use crate::error::{Code, Error, Kind, Result};
use crate::finding::ok;
use crate::mysql::quote;
use crate::records::Records;
use crate::schema::{TableName, TableSchema};
use crate::{Finding, Level};

/// Statements of a batch should fit, and the larger values of a row with them.
const PACKET_BYTES_GOOD: u64 = 16 * 1024 * 1024;
/// What writing needs; DROP is for `driftless teardown`.
const PRIVILEGES: [&str; 7] = ["SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "DROP"];

const SERVER: &str = "SELECT @@read_only, @@log_bin, @@binlog_format, \
    @@innodb_flush_log_at_trx_commit, @@max_allowed_packet, CURRENT_USER(), \
    (SELECT COUNT(*) FROM information_schema.ENGINES \
    WHERE ENGINE = 'InnoDB' AND SUPPORT IN ('YES', 'DEFAULT'))";

impl MysqlTarget {
    pub(super) async fn findings(&mut self, tables: &[Arc<TableSchema>]) -> Result<Vec<Finding>> {
        let rows = self.writer.session.query("look at the target server", SERVER).await?;
        let nothing = || Error::stop(Code::Protocol, "the target says nothing of itself");
        let mut findings = vec![self.version_finding()];
        findings.extend(server_findings(rows.first().ok_or_else(nothing)?)?);
        let user = text(rows.first().ok_or_else(nothing)?, 5)?;
        let privileges = self.privileges_finding(&user).await?;
        let readable = privileges.level != Level::Failure;
        findings.push(privileges);
        if !readable {
            return Ok(findings);
        }
        let has_records = self.has_own_tables().await?;
        let message = if has_records { "are there" } else { "will be created" };
        findings.push(ok("our tables in the target", message));
        let recorded = match has_records {
            true => self.remembered().await?.map(|found| found.tables).unwrap_or_default(),
            false => Records::new(),
        };
        let names: Vec<&TableName> = tables.iter().map(|table| &table.name).collect();
        for (number, table) in tables.iter().enumerate() {
            let before = &names[..number];
            findings.push(self.table_finding(table, before, &recorded, has_records).await?);
        }
        Ok(findings)
    }

    fn version_finding(&self) -> Finding {
        let server = self.writer.session.server();
        let (product, oldest) = match server.is_mariadb() {
            true => ("MariaDB", (10, 5, 0)),
            false => ("MySQL", (8, 0, 19)),
        };
        let message = format!("{product} {}", server.text);
        if server.version >= oldest {
            return ok("target server", &message);
        }
        let (major, minor, patch) = oldest;
        failure(
            "target server",
            Code::Configuration,
            format!("{message} is too old"),
            format!("upgrade it to {product} {major}.{minor}.{patch} or later"),
        )
    }

    async fn privileges_finding(&mut self, user: &str) -> Result<Finding> {
        let rows = self.writer.session.query("look at privileges", "SHOW GRANTS").await?;
        let lines = rows.iter().map(|row| text(row, 0)).collect::<Result<Vec<_>>>()?;
        let database = &self.door.config.database;
        let grants = Grants::read(lines.iter().map(String::as_str), database);
        let missing = grants.missing(&PRIVILEGES).join(", ");
        let subject = "privileges in the target";
        if missing.is_empty() {
            return Ok(ok(subject, &format!("user {user} may write database {database}")));
        }
        let (name, host) = user.rsplit_once('@').unwrap_or((user, "%"));
        let account = format!("{}@{}", quote::identifier(name), quote::identifier(host));
        let remedy = format!("GRANT {missing} ON {}.* TO {account}", quote::identifier(database));
        let message = format!("user {user} may not {missing} in database {database}");
        let finding = failure(subject, Code::Permission, message, remedy);
        // Its roles may allow what its own grants do not.
        let level = if grants.has_roles { Level::Warning } else { Level::Failure };
        Ok(Finding { level, ..finding })
    }

    async fn table_finding(
        &mut self,
        table: &Arc<TableSchema>,
        before: &[&TableName],
        recorded: &Records,
        has_records: bool,
    ) -> Result<Finding> {
        let subject = format!("target table {}", table.name);
        let looked = self.look_at_table(table, before, recorded, has_records).await;
        match looked {
            Ok(message) => Ok(ok(&subject, message)),
            Err(error)
                if matches!(error.kind, Kind::Table(_)) || error.code == Code::NameCollision =>
            {
                let remedy = error.message.split_once(RUN).map(|(_, remedy)| remedy.to_owned());
                Ok(failure(&subject, error.code, error.message, remedy.unwrap_or_default()))
            }
            Err(error) => Err(error),
        }
    }

    async fn look_at_table(
        &mut self,
        table: &Arc<TableSchema>,
        before: &[&TableName],
        recorded: &Records,
        has_records: bool,
    ) -> Result<&'static str> {
        self.writer.naming.refuse_names(table)?;
        let others = before.iter().copied().chain(recorded.keys());
        self.writer.naming.refuse_twin(&table.name, others)?;
        if has_records {
            self.refuse_owned(&table.name).await?;
        }
        let name = self.writer.naming.target_name(&table.name);
        let Some(shape) = self.shape(&name).await? else {
            return Ok("will be created");
        };
        let columns = self.writer.stored_columns(table);
        let lacking = compare(&self.writer.sql(table, &name, &columns), &shape)?;
        if !recorded.contains_key(&table.name) {
            self.refuse_rows(&table.name).await?;
        }
        Ok(match lacking.columns.is_empty() && !lacking.deleted {
            true => "is there and has the source's shape",
            false => "is there; columns will be added",
        })
    }
}

fn server_findings(row: &Row) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let is_on = |index| Ok::<bool, Error>(text(row, index)? == "1");
    let mut found = |level, subject: &str, message: String, remedy: &str| {
        let finding = failure(subject, Code::Configuration, message, remedy.into());
        findings.push(Finding { level, ..finding });
    };
    if is_on(0)? {
        let message = "the server is read-only".to_owned();
        let remedy = "SET GLOBAL read_only = OFF, or give the URL of the server that is written to";
        found(Level::Failure, "target server", message, remedy);
    }
    if number(row, 6)? == 0 {
        let message = "the server has no InnoDB, and other engines have no transactions".to_owned();
        found(Level::Failure, "target engine", message, "start the server with InnoDB");
    }
    let format = optional(row, 2)?.map(String::from_utf8_lossy).unwrap_or_default();
    if is_on(1)? && format.eq_ignore_ascii_case("STATEMENT") {
        let message = "binlog_format is STATEMENT, which cannot log what we write".to_owned();
        found(Level::Failure, "target log", message, "SET GLOBAL binlog_format = 'ROW'");
    }
    if number(row, 3)? != 1 {
        let message = "commits are not written to the disk at once, so a crash of the machine may \
                       take back what the source was told is safe"
            .to_owned();
        let remedy = "SET GLOBAL innodb_flush_log_at_trx_commit = 1";
        found(Level::Warning, "target durability", message, remedy);
    }
    let packet = number(row, 4)?;
    if packet < PACKET_BYTES_GOOD {
        let message = format!("max_allowed_packet is {packet} bytes, and no row can be larger");
        let remedy = "SET GLOBAL max_allowed_packet = 67108864";
        found(Level::Warning, "target packets", message, remedy);
    }
    Ok(findings)
}

fn failure(subject: &str, code: Code, message: String, remedy: String) -> Finding {
    let code = Some(code);
    Finding { subject: subject.into(), level: Level::Failure, code, message, remedy }
}
