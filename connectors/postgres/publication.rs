//! The publication: made at the first start, and at each later one proven to be the one that our
//! position was reached with, and to publish all that is needed. Used by `source.rs` and `check.rs`.
//!
//! Surprise: only the owner of a table may publish it, so the list may be somebody else's to keep.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use super::catalog::CatalogTable;
use super::gap::RESYNC;
use super::lsn::Bookmark;
use super::source_sql as sql;
use super::{connect, quote};
use crate::error::{Code, Error, Result};
use crate::schema::TableName;

/// Makes the publication, or proves that the one that exists publishes all that is needed, and
/// adds and removes tables where the list is ours to keep.
///
/// # Errors
/// `publication`, with the SQL for the owner.
pub async fn ensure(client: &Client, name: &str, tables: &[CatalogTable]) -> Result<Publication> {
    let statements = match find(client, name).await? {
        Some(publication) => publication.mend(name, tables)?,
        None => {
            let list = sql::publication_tables(tables.iter().map(|t| (&t.name, t.partitioned)));
            vec![sql::create_publication(name, &list)]
        }
    };
    for statement in statements {
        tracing::info!(statement, "publication is prepared");
        run(client, name, &statement).await?;
    }
    let made = find(client, name).await?;
    made.ok_or_else(|| {
        let message = format!("publication {name} was dropped just after it was made");
        Error::transient(Code::Publication, message)
    })
}

/// Proves that the publication is the one that our position was reached with: what happened
/// while there was none has not been published.
///
/// # Errors
/// `publication`.
pub fn prove(name: &str, ours: &Bookmark, there: Option<&Publication>) -> Result<()> {
    let what = match there {
        Some(publication) if publication.id == ours.publication => return Ok(()),
        Some(_) => "was dropped and created again",
        None => "is gone",
    };
    Err(Error::stop(
        Code::Publication,
        format!(
            "publication {name} {what} after our position {}, and the changes in between with \
             it; {RESYNC}",
            ours.lsn
        ),
    ))
}

async fn run(client: &Client, name: &str, statement: &str) -> Result<()> {
    client.batch_execute(statement).await.map_err(|error| {
        let error = connect::error(&format!("prepare publication {name}"), &error);
        match error.is_transient() {
            true => error,
            false => Error::stop(
                Code::Publication,
                format!("{}; let the owner of the tables run `{statement}`", error.message),
            ),
        }
    })
}

/// A publication as the server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Its OID, which one that is created again does not keep.
    pub id: u32,
    /// Whether we may alter it.
    pub ours: bool,
    /// Whether it has all tables of the database.
    pub all_tables: bool,
    /// Whether all four operations are published.
    pub all_operations: bool,
    /// Whether changes of partitions are those of their root.
    pub via_root: bool,
    /// Schemas whose tables it has.
    pub schemas: BTreeSet<String>,
    /// The tables that it lists.
    pub tables: Vec<Listed>,
}

/// A table in the list of a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its OID.
    pub id: u32,
    /// Its name.
    pub name: TableName,
    /// Whether it has partitions.
    pub partitioned: bool,
    /// Whether only some rows or columns are published.
    pub partial: bool,
}

/// The publication of this name, if there is one.
///
/// # Errors
/// What the server says.
pub async fn find(client: &Client, name: &str) -> Result<Option<Publication>> {
    let failed = |error: tokio_postgres::Error| connect::error("look at the publication", &error);
    let Some(row) = client.query_opt(sql::PUBLICATION, &[&name]).await.map_err(failed)? else {
        return Ok(None);
    };
    let version = server_version(client).await?;
    let list = client.query(&sql::publication_list(version), &[&name]).await.map_err(failed)?;
    let schemas = match version >= 150_000 {
        true => client.query(sql::PUBLICATION_SCHEMAS, &[&name]).await.map_err(failed)?,
        false => Vec::new(),
    };
    let listed = |row: &tokio_postgres::Row| Listed {
        id: row.get(0),
        name: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        partitioned: row.get(3),
        partial: row.get::<_, bool>(4) || row.get::<_, bool>(5),
    };
    Ok(Some(Publication {
        id: row.get(0),
        ours: row.get(4),
        all_tables: row.get(1),
        all_operations: row.get(2),
        via_root: row.get(3),
        schemas: schemas.iter().map(|row| row.get(0)).collect(),
        tables: list.iter().map(listed).collect(),
    }))
}

/// The server's version as one number: 150004.
///
/// # Errors
/// What the server says.
pub async fn server_version(client: &Client) -> Result<i32> {
    let row = client.query_one("SELECT current_setting('server_version_num')::int4", &[]).await;
    Ok(row.map_err(|error| connect::error("read the server's version", &error))?.get(0))
}

impl Publication {
    /// Proves that no table on which we rely was taken out: its changes since then are in no log.
    ///
    /// # Errors
    /// `publication`.
    pub fn prove_tables<'a>(
        &self,
        name: &str,
        relied_upon: impl Iterator<Item = &'a CatalogTable>,
    ) -> Result<()> {
        for table in relied_upon {
            if !self.publishes(table) {
                let message = format!(
                    "table {} was taken out of publication {name}, so its changes since then are \
                     lost; to accept the gap and copy everything again run `driftless run --resync`",
                    table.name
                );
                return Err(Error::stop(Code::Publication, message));
            }
        }
        Ok(())
    }

    fn publishes(&self, table: &CatalogTable) -> bool {
        self.all_tables
            || self.schemas.contains(&table.name.schema)
            || self.tables.iter().any(|listed| listed.id == table.id)
    }

    /// The statements that make it publish exactly these tables, as far as its kind allows.
    ///
    /// # Errors
    /// `publication` when it leaves something out on purpose.
    pub fn mend(&self, name: &str, tables: &[CatalogTable]) -> Result<Vec<String>> {
        let quoted = quote::identifier(name);
        let stop = |what: String, remedy: String| {
            let message = format!("publication {name} {what}; let its owner run `{remedy}`");
            Err(Error::stop(Code::Publication, message))
        };
        if !self.all_operations {
            let remedy = format!(
                "ALTER PUBLICATION {quoted} SET (publish = 'insert, update, delete, truncate')"
            );
            return stop("leaves out operations".into(), remedy);
        }
        if !self.via_root && tables.iter().any(|table| table.partitioned) {
            let remedy =
                format!("ALTER PUBLICATION {quoted} SET (publish_via_partition_root = true)");
            return stop("does not publish partitions by their root".into(), remedy);
        }
        let selected = |listed: &&Listed| tables.iter().any(|table| table.id == listed.id);
        if let Some(partial) = self.tables.iter().filter(selected).find(|listed| listed.partial) {
            let table = sql::publication_tables([(&partial.name, partial.partitioned)]);
            let remedy = format!(
                "ALTER PUBLICATION {quoted} DROP TABLE {}; ALTER PUBLICATION {quoted} ADD TABLE \
                 {table}",
                quote::table(&partial.name)
            );
            return stop(format!("shows only a part of table {}", partial.name), remedy);
        }
        if self.all_tables {
            return Ok(Vec::new());
        }
        let missing: Vec<_> = tables.iter().filter(|table| !self.publishes(table)).collect();
        let mut statements = Vec::new();
        if !missing.is_empty() {
            let list = sql::publication_tables(missing.iter().map(|t| (&t.name, t.partitioned)));
            statements.push(sql::alter_publication(name, "ADD", &list));
        }
        let surplus: Vec<_> = self.tables.iter().filter(|listed| !selected(listed)).collect();
        if self.schemas.is_empty() && !surplus.is_empty() {
            let list = sql::publication_tables(surplus.iter().map(|t| (&t.name, t.partitioned)));
            statements.push(sql::alter_publication(name, "DROP", &list));
        }
        Ok(statements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::lsn::{LogIdentity, Lsn};

    #[test]
    fn a_publication_made_again_has_a_gap() {
        let identity = LogIdentity { system: "7".into(), timeline: 1 };
        let ours = Bookmark { identity, publication: 1, lsn: Lsn(2), log: Lsn(1) };
        let same = publication_of(Vec::new());
        assert_eq!(prove("p", &ours, Some(&same)), Ok(()));
        for other in [None, Some(&Publication { id: 2, ..same })] {
            let error = prove("p", &ours, other).unwrap_err();
            assert_eq!((error.code, error.is_transient()), (Code::Publication, false));
            assert!(error.message.ends_with(RESYNC), "{error}");
        }
    }

    fn table(name: &str, id: u32, partitioned: bool) -> CatalogTable {
        CatalogTable {
            id,
            name: TableName::new("public", name),
            partitioned,
            permanent: true,
            row_security: false,
            replica_identity: "d".into(),
            columns: Vec::new(),
            generated: Vec::new(),
            key: vec![1],
        }
    }

    fn listed(name: &str, id: u32) -> Listed {
        Listed { id, name: TableName::new("public", name), partitioned: false, partial: false }
    }

    fn publication_of(tables: Vec<Listed>) -> Publication {
        Publication {
            id: 1,
            ours: true,
            all_tables: false,
            all_operations: true,
            via_root: true,
            schemas: BTreeSet::new(),
            tables,
        }
    }

    #[test]
    fn a_list_is_brought_to_what_is_selected() {
        let publication = publication_of(vec![listed("a", 1), listed("c", 3)]);
        let statements = publication.mend("p", &[table("a", 1, false), table("b", 2, true)]);
        let expected = [
            "ALTER PUBLICATION \"p\" ADD TABLE \"public\".\"b\"",
            "ALTER PUBLICATION \"p\" DROP TABLE ONLY \"public\".\"c\"",
        ];
        assert_eq!(statements.unwrap(), expected);
        let all = Publication { all_tables: true, ..publication };
        assert!(all.mend("p", &[table("b", 2, true)]).unwrap().is_empty());
        let schema = ["public".to_owned()].into();
        let by_schema = Publication { schemas: schema, ..publication_of(vec![]) };
        assert!(by_schema.mend("p", &[table("b", 2, true)]).unwrap().is_empty());
    }

    #[test]
    fn a_publication_that_leaves_something_out_is_refused() {
        let check = |publication: Publication, text: &str| {
            let tables = [table("a", 1, true)];
            let error = publication.mend("p", &tables).unwrap_err();
            assert_eq!(error.code, Code::Publication);
            assert!(error.message.contains(text), "{error}");
        };
        let good = publication_of(vec![listed("a", 1)]);
        check(Publication { all_operations: false, ..good.clone() }, "SET (publish =");
        check(Publication { via_root: false, ..good }, "publish_via_partition_root = true");
        let part = Listed { partial: true, ..listed("a", 1) };
        check(publication_of(vec![part]), "only a part of table public.a");
    }
}
