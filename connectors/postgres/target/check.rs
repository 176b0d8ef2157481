//! Looks at everything that writing needs, and changes nothing. Each finding that is not good
//! carries the SQL that mends it.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio_postgres::SimpleQueryRow;

use super::prepare::refuse_names;
use super::shape::{Lacking, compare};
use super::{PostgresTarget, text};
use crate::error::{Code, Error, Result};
use crate::finding::ok;
use crate::postgres::{quote, sql};
use crate::schema::{TableName, TableSchema};
use crate::{Finding, Level};

const SERVER: &str = "\
SELECT current_setting('server_version_num')::int / 10000, pg_is_in_recovery(), \
current_setting('transaction_read_only') = 'on', \
has_database_privilege(current_database(), 'TEMP'), \
has_database_privilege(current_database(), 'CREATE'), \
has_schema_privilege('public', 'CREATE'), current_user, current_database(), \
getdatabaseencoding()";

/// What the server says of itself and of us.
struct Server {
    major: u32,
    standby: bool,
    read_only: bool,
    may_stage: bool,
    may_create_schema: bool,
    may_create_in_public: bool,
    user: String,
    database: String,
    encoding: String,
    /// The tables that this pipeline has recorded; `None` if nothing of ours can be read.
    recorded: Option<BTreeSet<TableName>>,
}

impl PostgresTarget {
    pub(super) async fn findings(&self, tables: &[Arc<TableSchema>]) -> Result<Vec<Finding>> {
        let rows = self.session.query("look at the target server", SERVER).await?;
        let nothing = || Error::stop(Code::Protocol, "the target says nothing of itself");
        let mut server = read_server(rows.first().ok_or_else(nothing)?)?;
        if self.lacking_privileges(sql::CHECKPOINT).await?.is_some_and(|lack| lack.is_empty()) {
            let remembered = self.remembered().await?;
            let names = remembered.map(|remembered| remembered.tables.into_keys().collect());
            server.recorded = Some(names.unwrap_or_default());
        }
        let mut findings = server_findings(&server);
        findings.push(self.own_tables_finding(&server).await?);
        let mut schemas = BTreeSet::new();
        for table in tables {
            findings.push(self.table_finding(table, &server).await?);
            schemas.insert(table.name.schema.as_str());
        }
        for schema in schemas {
            findings.extend(self.schema_finding(schema, &server).await?);
        }
        Ok(findings)
    }

    async fn own_tables_finding(&self, server: &Server) -> Result<Finding> {
        let subject = "our tables in the target";
        let user = quote::identifier(&server.user);
        let mut missing = false;
        for table in [sql::CHECKPOINT, sql::TOMBSTONE] {
            match self.lacking_privileges(table).await? {
                None => missing = true,
                Some(lacking) if !lacking.is_empty() => {
                    let remedy = format!("GRANT {lacking} ON {table} TO {user}");
                    let message = format!("user {} may not {lacking} on {table}", server.user);
                    return Ok(failure(subject, message, remedy));
                }
                Some(_) => {}
            }
        }
        if missing && !server.may_create_in_public {
            let message = format!("user {} may not create tables in schema public", server.user);
            return Ok(failure(
                subject,
                message,
                format!("GRANT CREATE ON SCHEMA public TO {user}"),
            ));
        }
        let message = if missing { "will be created" } else { "are there" };
        Ok(ok(subject, message))
    }

    /// Which of the privileges that we need on a table we have not; `None` without the table.
    async fn lacking_privileges(&self, table: &str) -> Result<Option<String>> {
        let table = quote::literal(table);
        let query = format!(
            "SELECT to_regclass({table}) IS NULL, (SELECT coalesce(string_agg(p, ', '), '') \
             FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p \
             WHERE NOT has_table_privilege(to_regclass({table}), p))"
        );
        let rows = self.session.query("look at privileges in the target", &query).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let gone = text(row, 0)? == "t";
        Ok(if gone { None } else { Some(text(row, 1)?.to_owned()) })
    }

    async fn table_finding(&self, table: &TableSchema, server: &Server) -> Result<Finding> {
        let subject = format!("target table {}", table.name);
        match self.look_at_table(table, server).await {
            Ok(finding) => Ok(Finding { subject, ..finding }),
            // The message ends with what to do; the remedy repeats it where it is one command.
            Err(error) if matches!(error.kind, crate::error::Kind::Table(_)) => {
                let remedy = error.message.split('`').nth(1).unwrap_or_default().to_owned();
                let code = Some(error.code);
                Ok(Finding { code, ..failure(&subject, error.message, remedy) })
            }
            Err(error) => Err(error),
        }
    }

    async fn look_at_table(&self, table: &TableSchema, server: &Server) -> Result<Finding> {
        refuse_names(table)?;
        let Some(shape) = self.shape(&table.name).await? else {
            return Ok(ok("", "will be created"));
        };
        let lacking = compare(table, &shape, self.session.options.soft_deletes)?;
        let quoted = quote::table(&table.name);
        let user = quote::identifier(&server.user);
        if let Some(privileges) = self.lacking_privileges(&quoted).await?
            && !privileges.is_empty()
        {
            let message = format!("user {} may not {privileges}", server.user);
            return Ok(failure("", message, format!("GRANT {privileges} ON {quoted} TO {user}")));
        }
        if server.recorded.is_some() {
            self.refuse_owned(&table.name).await?;
        }
        if !server.recorded.as_ref().is_some_and(|recorded| recorded.contains(&table.name)) {
            self.refuse_rows(&table.name).await?;
        }
        self.addition_finding(&table.name, &lacking, &user).await
    }

    async fn addition_finding(
        &self,
        table: &TableName,
        lacking: &Lacking,
        user: &str,
    ) -> Result<Finding> {
        if lacking.columns.is_empty() && !lacking.deleted {
            return Ok(ok("", "is there and has the source's shape"));
        }
        let quoted = quote::table(table);
        let query = format!(
            "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass({})",
            quote::literal(&quoted)
        );
        let rows = self.session.query("look at a table's owner", &query).await?;
        if rows.first().is_some_and(|row| row.get(0) == Some("t")) {
            return Ok(ok("", "is there; columns will be added"));
        }
        let message = "lacks columns, and only its owner may add them".to_owned();
        Ok(failure("", message, format!("ALTER TABLE {quoted} OWNER TO {user}")))
    }

    /// A schema in which we may not do what we must; nothing if all is well.
    async fn schema_finding(&self, schema: &str, server: &Server) -> Result<Option<Finding>> {
        let subject = format!("target schema {schema}");
        let (quoted, user) = (quote::identifier(schema), quote::identifier(&server.user));
        let query = format!(
            "SELECT has_schema_privilege(oid, 'CREATE') AND has_schema_privilege(oid, 'USAGE') \
             FROM pg_namespace WHERE nspname = {}",
            quote::literal(schema)
        );
        let rows = self.session.query("look at a schema of the target", &query).await?;
        match rows.first().map(|row| text(row, 0)).transpose()? {
            Some("t") => Ok(None),
            Some(_) => {
                let message = format!("user {} may not create tables in it", server.user);
                let remedy = format!("GRANT USAGE, CREATE ON SCHEMA {quoted} TO {user}");
                Ok(Some(Finding { level: Level::Warning, ..failure(&subject, message, remedy) }))
            }
            None if server.may_create_schema => Ok(Some(ok(&subject, "will be created"))),
            None => {
                let message = format!("is not there, and user {} may not create it", server.user);
                let remedy = format!("CREATE SCHEMA {quoted} AUTHORIZATION {user}");
                Ok(Some(failure(&subject, message, remedy)))
            }
        }
    }
}

fn read_server(row: &SimpleQueryRow) -> Result<Server> {
    let yes = |index| Ok::<bool, Error>(text(row, index)? == "t");
    Ok(Server {
        major: text(row, 0)?.parse().unwrap_or(0),
        standby: yes(1)?,
        read_only: yes(2)?,
        may_stage: yes(3)?,
        may_create_schema: yes(4)?,
        may_create_in_public: yes(5)?,
        user: text(row, 6)?.to_owned(),
        database: text(row, 7)?.to_owned(),
        encoding: text(row, 8)?.to_owned(),
        recorded: None,
    })
}

fn server_findings(server: &Server) -> Vec<Finding> {
    let subject = "target server";
    let (database, user) = (quote::identifier(&server.database), quote::identifier(&server.user));
    let mut findings = Vec::new();
    if server.major < 14 {
        let message = format!("PostgreSQL {} is too old", server.major);
        findings.push(failure(subject, message, "upgrade it to PostgreSQL 14 or later".into()));
    } else {
        findings.push(ok(subject, &format!("PostgreSQL {}", server.major)));
    }
    if server.standby {
        let remedy = "give the URL of the primary server as target".into();
        findings.push(failure(subject, "is a standby and cannot be written".into(), remedy));
    } else if server.read_only {
        let remedy = format!("ALTER DATABASE {database} SET default_transaction_read_only = off");
        findings.push(failure(subject, "does not allow writing".into(), remedy));
    }
    if !server.may_stage {
        let message = format!("user {} may not create temporary tables", server.user);
        let remedy = format!("GRANT TEMPORARY ON DATABASE {database} TO {user}");
        findings.push(failure("staging tables", message, remedy));
    }
    if server.encoding != "UTF8" {
        let message = format!(
            "database {} has encoding {}; text that it lacks will stop its table",
            server.database, server.encoding
        );
        let remedy = "create the target database with ENCODING 'UTF8' TEMPLATE template0".into();
        let finding = failure("target encoding", message, remedy);
        findings.push(Finding { level: Level::Warning, ..finding });
    }
    findings
}

fn failure(subject: &str, message: String, remedy: String) -> Finding {
    let code = Some(Code::Permission);
    Finding { subject: subject.into(), level: Level::Failure, code, message, remedy }
}
