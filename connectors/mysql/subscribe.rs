//! Where the log begins and ends, and the proof at each start that nothing was lost since our
//! position. Used by `source.rs` and `stream.rs`.
//!
//! A server keeps its binary log for nobody in particular, so there is nothing to make and nothing
//! to remove; all the more has to be proven.
//!
//! # Where a first start begins, on a MySQL with GTIDs
//!
//! A transaction is in the binary log before it is in `gtid_executed`, so place and set cannot be
//! read together. The place is the beginning of the current file `N`, and the set is what file `N`
//! says of all files before it, together with `gtid_executed`. Whatever is below the place is in
//! the set, says the log itself. Whatever is in the set is not sent again, and no snapshot is used
//! that does not show it (`visibility.rs`). Whatever is not in the set is sent, from above the
//! place.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::binlog::Xid;
use super::bookmark::{Bookmark, FIRST_OFFSET, Flavor, Gtids, Place, file_number};
use super::catalog::{number, optional, text};
use super::connect::{Server, Session};
use super::source_sql as sql;
use crate::error::{Code, Error, Result};

/// What to type when the log has a gap.
pub const RESYNC: &str = "to accept the gap and copy everything again run `driftless run --resync`";
/// How long a server may take to commit what it has written into its log.
const COMMIT_WAIT_SECONDS: u32 = 20;
/// How long we wait for XA transactions to end before we say so.
const XA_TELL: Duration = Duration::from_secs(5);

/// A file of the binary log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// Its name.
    pub name: String,
    /// How large it is now.
    pub size: u64,
}

/// How a stream asks the server for its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// From this place.
    Place(Place),
    /// From the first transaction that the bookmark's GTIDs lack.
    Gtids,
}

/// Which of the two servers.
#[must_use]
pub fn flavor(server: &Server) -> Flavor {
    match server.is_mariadb() {
        true => Flavor::Mariadb,
        false => Flavor::Mysql,
    }
}

/// Who writes the log: see `Bookmark::server`.
///
/// # Errors
/// What the server says.
pub async fn identity(session: &mut Session) -> Result<String> {
    let question = match session.server().is_mariadb() {
        true => sql::SERVER_ID,
        false => sql::SERVER_UUID,
    };
    first(session, "read the server's identity", question).await
}

/// Whether every transaction has a GTID. MariaDB's always have.
///
/// # Errors
/// What the server says.
pub async fn has_gtids(session: &mut Session) -> Result<bool> {
    if session.server().is_mariadb() {
        return Ok(true);
    }
    Ok(first(session, "read gtid_mode", sql::GTID_MODE).await?.eq_ignore_ascii_case("ON"))
}

/// The end of the log.
///
/// # Errors
/// `source-settings` if there is no log; what the server says.
pub async fn end(session: &mut Session) -> Result<Place> {
    let question = sql::log_status(session.server());
    let rows = session.query("read the end of the binary log", question).await?;
    let row = rows.first().ok_or_else(|| {
        Error::stop(
            Code::SourceSettings,
            "the server writes no binary log; set log_bin in its configuration and restart it",
        )
    })?;
    Ok(Place::new(text(row, 0)?, number(row, 1)?))
}

/// The files of the log, the oldest first.
///
/// # Errors
/// What the server says.
pub async fn files(session: &mut Session) -> Result<Vec<LogFile>> {
    let rows = session.query("list the binary logs", sql::LOG_FILES).await?;
    rows.iter().map(|row| Ok(LogFile { name: text(row, 0)?, size: number(row, 1)? })).collect()
}

/// The place where a pipeline begins that has read nothing yet: now.
///
/// # Errors
/// What the server says.
pub async fn begin(session: &mut Session) -> Result<Bookmark> {
    wait_for_xa(session).await?;
    let server = identity(session).await?;
    let place = end(session).await?;
    let flavor = flavor(session.server());
    if flavor == Flavor::Mariadb {
        let gtids = gtids_at(session, &place).await?.ok_or_else(|| {
            let message = "the end of the binary log moved while it was looked at";
            Error::transient(Code::Unreachable, message)
        })?;
        return Ok(Bookmark { server, place, gtids, delivered: None, begun: None });
    }
    if !has_gtids(session).await? {
        return Ok(Bookmark {
            server,
            place,
            gtids: Gtids::none(flavor),
            delivered: None,
            begun: None,
        });
    }
    // Reading by GTID begins at the head of the file, and places are modulo 2^32 in it.
    if place.offset > u64::from(u32::MAX) {
        let message = format!(
            "the source's binary log {} has grown beyond 4 GiB; run FLUSH BINARY LOGS there, and \
             start again",
            place.file
        );
        return Err(Error::stop(Code::SourceSettings, message));
    }
    let executed = first(session, "read gtid_executed", sql::GTID_EXECUTED).await?;
    let previous = previous_gtids(session, &place.file).await?;
    // A list of sets is the union of them.
    let gtids = Gtids::parse(flavor, &format!("{previous},{executed}"))?;
    Ok(Bookmark {
        server,
        place: Place::new(place.file, FIRST_OFFSET),
        gtids,
        delivered: None,
        begun: None,
    })
}

/// What a file of MySQL says of all files before it.
async fn previous_gtids(session: &mut Session, file: &str) -> Result<String> {
    let doing = "read the head of the binary log";
    for row in session.query(doing, &sql::head_of(file)).await? {
        if text(&row, 2)? == "Previous_gtids" {
            return text(&row, 5);
        }
    }
    let what = format!("{doing}: file {file} does not say what the files before it hold");
    Err(Error::stop(Code::Protocol, what))
}

/// MariaDB's own word for what its log holds up to a place; `None` where no transaction ends.
async fn gtids_at(session: &mut Session, place: &Place) -> Result<Option<Gtids>> {
    let doing = "read the GTIDs of a place in the binary log";
    let rows = session.query(doing, &sql::gtids_at(&place.file, place.offset)).await?;
    let said = rows.first().map(|row| optional(row, 0)).transpose()?.flatten();
    said.map(|text| Gtids::parse(Flavor::Mariadb, &text)).transpose()
}

/// Waits until no XA transaction is prepared: the rows of one that is prepared before our
/// beginning and committed after it would be in no part of the log that we read.
async fn wait_for_xa(session: &mut Session) -> Result<()> {
    let start = Instant::now();
    let mut told = false;
    while !prepared_xa(session).await?.unwrap_or_default().is_empty() {
        if !told && start.elapsed() > XA_TELL {
            told = true;
            tracing::warn!(
                "the first copy waits for prepared XA transactions to end; see XA RECOVER"
            );
        }
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// The XA transactions that are prepared; `None` where we may not know. Their end in the log is
/// checked all the same.
///
/// # Errors
/// What the server says.
pub async fn prepared_xa(session: &mut Session) -> Result<Option<Vec<Xid>>> {
    let rows = match session.query("list the XA transactions", sql::XA_RECOVER).await {
        Ok(rows) => rows,
        Err(error) if error.code == Code::Permission => return Ok(None),
        Err(error) => return Err(error),
    };
    rows.iter().map(xid).collect::<Result<Vec<_>>>().map(Some)
}

/// Reads a row of `XA RECOVER`: format, two lengths, and both parts as one string of bytes.
fn xid(row: &mysql_async::Row) -> Result<Xid> {
    let wrong = || Error::stop(Code::Protocol, "the server's list of XA transactions is odd");
    let format = text(row, 0)?.parse().map_err(|_| wrong())?;
    let (global, branch) = (number(row, 1)?, number(row, 2)?);
    let both = row.get_opt::<Vec<u8>, usize>(3).and_then(std::result::Result::ok);
    let both = both.filter(|both| both.len() as u64 == global + branch).ok_or_else(wrong)?;
    let (global, branch) = both.split_at(usize::try_from(global).map_err(|_| wrong())?);
    Ok(Xid { format, global: global.to_vec(), branch: branch.to_vec() })
}

/// Proves that everything after the bookmark is still there, on the server that it belongs to, and
/// says how to ask for it.
///
/// # Errors
/// `source-identity`, `binlog-purged`, `position-ahead`.
pub async fn prove(session: &mut Session, ours: &Bookmark) -> Result<Start> {
    let server = identity(session).await?;
    if server != ours.server || flavor(session.server()) != ours.gtids.flavor() {
        return Err(other_source(&ours.server, &server));
    }
    let files = files(session).await?;
    let gtids = !ours.gtids.is_empty() && has_gtids(session).await?;
    match (ours.gtids.flavor(), gtids) {
        (Flavor::Mariadb, _) => prove_mariadb(session, ours, &files).await,
        (Flavor::Mysql, true) => prove_gtids(session, ours, &files).await,
        (Flavor::Mysql, false) => prove_place(&ours.place, &files),
    }
}

/// MariaDB has no identity that a copy of it has not, so its log has to agree: what it holds up to
/// our place must be what we have read. A log that was begun anew then shows.
async fn prove_mariadb(session: &mut Session, ours: &Bookmark, files: &[LogFile]) -> Result<Start> {
    let place = match prove_place(&ours.place, files) {
        Ok(_) => ours.place.clone(),
        // Our file may have been purged when we had read all of it.
        Err(error) if error.code == Code::BinlogPurged => {
            let first = files.first().map(|file| Place::new(&file.name, FIRST_OFFSET));
            first.ok_or(error)?
        }
        Err(error) => return Err(error),
    };
    let theirs = gtids_at(session, &place).await?;
    if theirs.as_ref() == Some(&ours.gtids) {
        return Ok(Start::Place(place));
    }
    if place != ours.place {
        return Err(purged(&ours.place, files));
    }
    let theirs = theirs.map_or("no transaction ends there".to_owned(), |theirs| theirs.to_string());
    Err(Error::stop(
        Code::SourceIdentity,
        format!(
            "up to {}:{} the target has read {}, but the server's binary log holds {theirs} there: \
             it was begun anew, or the server was replaced; correct the source's URL, or, {RESYNC}",
            place.file, place.offset, ours.gtids
        ),
    ))
}

async fn prove_gtids(session: &mut Session, ours: &Bookmark, files: &[LogFile]) -> Result<Start> {
    let set = ours.gtids.to_string();
    let question = sql::wait_for_gtids(&set, COMMIT_WAIT_SECONDS);
    if first(session, "compare the GTIDs", &question).await? != "0" {
        return Err(Error::stop(
            Code::PositionAhead,
            format!(
                "the target has read transactions that the server does not know ({set}): the \
                 server was restored, or its log was begun anew; {RESYNC}"
            ),
        ));
    }
    // A log that was begun anew reaches the same numbers sooner or later.
    let last = files.last().map(|file| file_number(&file.name)).transpose()?;
    if last.is_none_or(|last| file_number(&ours.place.file).is_ok_and(|ours| ours > last)) {
        return Err(ahead(&ours.place, files));
    }
    let purged_set = first(session, "read gtid_purged", sql::GTID_PURGED).await?;
    let whole = match (&ours.gtids, Gtids::parse(Flavor::Mysql, &purged_set)?) {
        (Gtids::Mysql(ours), Gtids::Mysql(purged)) => ours.contains(&purged),
        _ => false,
    };
    match whole {
        true => Ok(Start::Gtids),
        // The set has only what was read since GTIDs were switched on; the place may still do.
        false => prove_place(&ours.place, files),
    }
}

/// Our place is in a file that is there, and not beyond its end.
fn prove_place(ours: &Place, files: &[LogFile]) -> Result<Start> {
    if let Some(file) = files.iter().find(|file| file.name == ours.file) {
        return match ours.offset <= file.size {
            true => Ok(Start::Place(ours.clone())),
            false => Err(ahead(ours, files)),
        };
    }
    let first = files.first().map(|file| file_number(&file.name)).transpose()?;
    match first {
        Some(first) if file_number(&ours.file)? < first => Err(purged(ours, files)),
        _ => Err(ahead(ours, files)),
    }
}

fn purged(ours: &Place, files: &[LogFile]) -> Error {
    let first = files.first().map_or("nothing", |file| file.name.as_str());
    Error::stop(
        Code::BinlogPurged,
        format!(
            "the server has removed binary log that we have not read: our place is {}:{}, its log \
             begins with {first}; {RESYNC}",
            ours.file, ours.offset
        ),
    )
}

fn ahead(ours: &Place, files: &[LogFile]) -> Error {
    let end =
        files.last().map_or("nowhere".to_owned(), |file| format!("{}:{}", file.name, file.size));
    Error::stop(
        Code::PositionAhead,
        format!(
            "our place {}:{} is beyond the end of the server's binary log ({end}): the server was \
             restored, or its log was begun anew; {RESYNC}",
            ours.file, ours.offset
        ),
    )
}

/// The position belongs to another server.
#[must_use]
pub fn other_source(ours: &str, theirs: &str) -> Error {
    Error::stop(
        Code::SourceIdentity,
        format!(
            "the target holds a copy of server {ours}, but the source is server {theirs}; correct \
             the source's URL, or, {RESYNC}"
        ),
    )
}

/// How many bytes the log has beyond a place.
#[must_use]
pub fn bytes_beyond(place: &Place, files: &[LogFile]) -> u64 {
    let Ok(ours) = file_number(&place.file) else { return 0 };
    let beyond = |file: &LogFile| match file_number(&file.name) {
        Ok(number) if number > ours => file.size,
        Ok(number) if number == ours => file.size.saturating_sub(place.offset),
        _ => 0,
    };
    files.iter().map(beyond).sum()
}

/// The one text that a question is answered with.
///
/// # Errors
/// What the server says.
pub async fn first(session: &mut Session, doing: &str, question: &str) -> Result<String> {
    let rows = session.query(doing, question).await?;
    match rows.first() {
        Some(row) => Ok(optional(row, 0)?.unwrap_or_default()),
        None => Err(Error::stop(Code::Protocol, format!("{doing}: the server answers nothing"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Vec<LogFile> {
        let file = |name: &str, size| LogFile { name: name.into(), size };
        vec![file("b.000003", 500), file("b.000004", 200), file("b.000005", 100)]
    }

    #[test]
    fn a_place_is_in_the_log_purged_or_ahead() {
        let check = |file, offset, expected: Option<Code>| {
            let proof = prove_place(&Place::new(file, offset), &files());
            assert_eq!(proof.err().map(|error| error.code), expected, "{file}:{offset}");
        };
        check("b.000003", 4, None);
        check("b.000005", 100, None);
        check("b.000005", 101, Some(Code::PositionAhead));
        check("b.000002", 4, Some(Code::BinlogPurged));
        check("b.000006", 4, Some(Code::PositionAhead));
    }

    #[test]
    fn the_lag_is_what_the_log_has_beyond_a_place() {
        assert_eq!(bytes_beyond(&Place::new("b.000005", 100), &files()), 0);
        assert_eq!(bytes_beyond(&Place::new("b.000003", 400), &files()), 400);
        assert_eq!(bytes_beyond(&Place::new("b.000002", 4), &files()), 800);
    }
}
