//! Slot and publication: made at the first start, and at each later one proven to have lost
//! nothing since our position. Used by `source.rs`.
//!
//! Surprise: the publication is made before the slot. A slot that is older than its publication
//! is broken for good up to version 17, and loses changes without a word in 18.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;

use super::catalog::CatalogTable;
use super::lsn::{Bookmark, LogIdentity, Lsn};
use super::source_sql as sql;
use super::stream::other_source;
use super::{connect, quote};
use crate::error::{Code, Error, Result};
use crate::schema::TableName;

/// What to type when the log has a gap.
pub const RESYNC: &str = "to accept the gap and copy everything again run `driftless run --resync`";
/// How long creating a slot waits for other transactions before it says whom it waits for.
const SLOT_TRY: &str = "2s";
const EVICT_WAIT: Duration = Duration::from_secs(10);

/// A slot as the server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// `None` for a physical one.
    pub plugin: Option<String>,
    /// Whether it is of our database.
    pub ours: bool,
    /// The process that reads it.
    pub active_pid: Option<i32>,
    /// Up to where it may have forgotten.
    pub confirmed: Option<Lsn>,
    /// `lost` when the log it needs is gone.
    pub wal_status: Option<String>,
}

/// The slot of this name, if there is one.
///
/// # Errors
/// What the server says.
pub async fn slot(client: &Client, name: &str) -> Result<Option<Slot>> {
    let row = client.query_opt(sql::SLOT, &[&name]).await;
    let Some(row) = row.map_err(|error| connect::error("look at the slot", &error))? else {
        return Ok(None);
    };
    let confirmed: Option<String> = row.get(5);
    Ok(Some(Slot {
        plugin: row.get(0),
        ours: row.get::<_, Option<bool>>(2) == Some(true) && !row.get::<_, bool>(3),
        active_pid: row.get(4),
        confirmed: confirmed.map(|text| text.parse()).transpose()?,
        wal_status: row.get(6),
    }))
}

/// Proves that the slot still has everything after our position.
///
/// # Errors
/// `slot-missing`, `slot-lost`, `slot-gap`, `source-identity`, `position-ahead`.
pub fn prove(
    name: &str,
    ours: &Bookmark,
    (identity, flushed): (&LogIdentity, Lsn),
    slot: Option<&Slot>,
) -> Result<()> {
    if *identity != ours.identity {
        return Err(other_source(&ours.identity, identity));
    }
    let confirmed = slot.and_then(|slot| slot.confirmed);
    let confirmed_text = confirmed.map_or("nothing".to_owned(), |lsn| lsn.to_string());
    let stop = |code, what: &str| {
        let position = ours.lsn;
        Err(Error::stop(
            code,
            format!(
                "slot {name} {what} (our position is {position}, the slot has confirmed \
                 {confirmed_text}, the log ends at {flushed}); {RESYNC}"
            ),
        ))
    };
    if flushed < ours.lsn {
        return stop(Code::PositionAhead, "belongs to a log that ends before our position");
    }
    let Some(slot) = slot else {
        return stop(Code::SlotMissing, "is gone, and the changes since our position with it");
    };
    if slot.plugin.as_deref() != Some("pgoutput") || !slot.ours {
        return stop(Code::SlotMissing, "is of another plug-in, another database or temporary");
    }
    if slot.wal_status.as_deref() == Some("lost") {
        return stop(Code::SlotLost, "was invalidated by the server, which removed log it needs");
    }
    match confirmed {
        None => stop(Code::SlotLost, "was invalidated by the server"),
        Some(confirmed) if confirmed > ours.lsn => {
            stop(Code::SlotGap, "has moved past our position; the changes in between are lost")
        }
        Some(_) => Ok(()),
    }
}

/// Replaces the slot of this name by a new one, and returns where that begins.
///
/// # Errors
/// `slot-in-use` (transient); what the server says.
pub async fn create_slot(client: &Client, name: &str) -> Result<Lsn> {
    if let Some(slot) = slot(client, name).await? {
        drop_slot(client, name, &slot).await?;
    }
    let set = |value: &str| format!("SET lock_timeout = '{value}'");
    let failed = |error: &tokio_postgres::Error| connect::error("create the slot", error);
    client.batch_execute(&set(SLOT_TRY)).await.map_err(|error| failed(&error))?;
    let lsn = loop {
        match client.query_one(sql::CREATE_SLOT, &[&name]).await {
            Ok(row) => break row.get::<_, String>(0).parse()?,
            Err(error) if error.code().is_some_and(|code| code.code() == "55P03") => {
                let waits_for = writers(client).await?.join(", ");
                tracing::warn!(slot = name, waits_for, "slot waits for older transactions to end");
            }
            Err(error) => return Err(with_slot_remedy(failed(&error), &error)),
        }
    };
    client.batch_execute(&set("0")).await.map_err(|error| failed(&error))?;
    Ok(lsn)
}

fn with_slot_remedy(error: Error, cause: &tokio_postgres::Error) -> Error {
    let remedy = match cause.code().map(tokio_postgres::error::SqlState::code) {
        Some("53400") => "raise max_replication_slots, or drop a slot that nobody uses",
        Some("42501") => "run `ALTER ROLE … REPLICATION` for our role",
        Some("55000") => "run `ALTER SYSTEM SET wal_level = 'logical'` and restart the source",
        _ => return error,
    };
    // A server that is full of slots does not mend itself.
    Error::stop(
        if error.code == Code::Permission { Code::Permission } else { Code::SourceSettings },
        format!("{}; {remedy}", error.message),
    )
}

async fn drop_slot(client: &Client, name: &str, slot: &Slot) -> Result<()> {
    if let Some(pid) = slot.active_pid {
        return Err(Error::transient(
            Code::SlotInUse,
            format!("slot {name} is read by process {pid} of the source; stop that one first"),
        ));
    }
    if slot.plugin.as_deref() != Some("pgoutput") || !slot.ours {
        return Err(Error::stop(
            Code::SlotInUse,
            format!(
                "slot {name} is of another plug-in or database; choose another pipeline name, or \
                 run `SELECT pg_drop_replication_slot({})` there if nobody needs it",
                quote::literal(name)
            ),
        ));
    }
    let dropped = client.execute(sql::DROP_SLOT, &[&name]).await;
    dropped.map_err(|error| connect::error("drop the old slot", &error))?;
    Ok(())
}

/// Who has written and not ended, the oldest first, in words.
///
/// # Errors
/// What the server says.
pub async fn writers(client: &Client) -> Result<Vec<String>> {
    let rows = client.query(sql::WRITERS, &[]).await;
    let rows = rows.map_err(|error| connect::error("list the transactions", &error))?;
    let one = |row: &tokio_postgres::Row| {
        let seconds = row.get::<_, Option<i64>>(1).unwrap_or_default();
        format!("{} for {seconds} s", row.get::<_, String>(0))
    };
    Ok(rows.iter().map(one).collect())
}

/// Drops slot and publication, where they are.
///
/// # Errors
/// `slot-in-use`; what the server says.
pub async fn remove(client: &Client, name: &str) -> Result<()> {
    if let Some(slot) = slot(client, name).await? {
        drop_slot(client, name, &slot).await?;
    }
    let drop = format!("DROP PUBLICATION IF EXISTS {}", quote::identifier(name));
    let dropped = client.batch_execute(&drop).await;
    dropped.map_err(|error| connect::error("drop the publication", &error))
}

/// Ends whoever reads the slot, and waits until it is free.
///
/// # Errors
/// `permission`; `slot-in-use` (transient) if it does not let go.
pub async fn evict(client: &Client, name: &str) -> Result<()> {
    let start = Instant::now();
    while let Some(pid) = slot(client, name).await?.and_then(|slot| slot.active_pid) {
        let ended = client.execute("SELECT pg_terminate_backend($1)", &[&pid]).await;
        ended.map_err(|error| connect::error("end the session that reads the slot", &error))?;
        if start.elapsed() > EVICT_WAIT {
            return Err(Error::transient(
                Code::SlotInUse,
                format!("slot {name} is still read by process {pid} of the source"),
            ));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Makes the publication, or proves that the one that exists publishes all that is needed, and
/// adds and removes tables where the list is ours to keep.
///
/// # Errors
/// `publication`, with the SQL for the owner.
pub async fn ensure_publication(
    client: &Client,
    name: &str,
    tables: &[CatalogTable],
) -> Result<Publication> {
    let statements = match publication(client, name).await? {
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
    let made = publication(client, name).await?;
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
pub fn prove_publication(name: &str, ours: &Bookmark, there: Option<&Publication>) -> Result<()> {
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
pub async fn publication(client: &Client, name: &str) -> Result<Option<Publication>> {
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

    fn identity(system: &str, timeline: u32) -> LogIdentity {
        LogIdentity { system: system.into(), timeline }
    }

    fn good() -> Slot {
        Slot {
            plugin: Some("pgoutput".into()),
            ours: true,
            active_pid: None,
            confirmed: Some(Lsn(0x90)),
            wal_status: Some("reserved".into()),
        }
    }

    fn check(there: (LogIdentity, u64), slot: Option<Slot>, expected: Option<Code>) {
        let ours = Bookmark {
            identity: identity("7", 1),
            publication: 5,
            lsn: Lsn(0x100),
            log: Lsn(0xf0),
        };
        let proof = prove("driftless_x", &ours, (&there.0, Lsn(there.1)), slot.as_ref());
        let error = proof.err();
        assert_eq!(error.as_ref().map(|error| error.code), expected, "{slot:?}");
        if let Some(error) = error {
            assert!(!error.is_transient());
            assert!(error.message.ends_with(RESYNC), "{error}");
        }
    }

    #[test]
    fn a_gap_of_any_kind_stops_with_its_name() {
        let here = || identity("7", 1);
        check((here(), 0x100), Some(good()), None);
        check((here(), 0x200), Some(Slot { confirmed: Some(Lsn(0x100)), ..good() }), None);
        check((here(), 0x200), None, Some(Code::SlotMissing));
        let ahead = Slot { confirmed: Some(Lsn(0x101)), ..good() };
        check((here(), 0x200), Some(ahead), Some(Code::SlotGap));
        let lost = Slot { wal_status: Some("lost".into()), ..good() };
        check((here(), 0x200), Some(lost), Some(Code::SlotLost));
        let other = Slot { plugin: Some("test_decoding".into()), ..good() };
        check((here(), 0x200), Some(other), Some(Code::SlotMissing));
        check((here(), 0x200), Some(Slot { ours: false, ..good() }), Some(Code::SlotMissing));
        check((here(), 0xff), Some(good()), Some(Code::PositionAhead));
        check((identity("8", 1), 0x200), Some(good()), Some(Code::SourceIdentity));
        check((identity("7", 2), 0x200), Some(good()), Some(Code::SourceIdentity));
    }

    #[test]
    fn a_publication_made_again_has_a_gap() {
        let ours =
            Bookmark { identity: identity("7", 1), publication: 1, lsn: Lsn(2), log: Lsn(1) };
        let same = publication_of(Vec::new());
        assert_eq!(prove_publication("p", &ours, Some(&same)), Ok(()));
        for other in [None, Some(&Publication { id: 2, ..same })] {
            let error = prove_publication("p", &ours, other).unwrap_err();
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
