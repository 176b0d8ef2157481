//! Understands the statements in the binary log as far as is needed to know what they do to the
//! rows and the shape of which tables. Pure; read by `transaction.rs`.
//!
//! Surprise: a statement that is not understood is not ignored. Most statements that change rows
//! come as row events; the few that do not (TRUNCATE, a session in statement format) and those
//! that change a table's shape come as text only.

mod alter;
mod lexer;

#[cfg(test)]
mod tests;

use self::lexer::{Token, Tokens};
use super::binlog::{Query, Xid};
use crate::schema::TableName;

/// What a statement does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// Nothing to rows or shapes of tables.
    Nothing,
    /// A transaction begins.
    Begin,
    /// It ends.
    Commit,
    /// It ends, and was for nothing.
    Rollback,
    /// A place to go back to.
    Savepoint(String),
    /// Going back there.
    RollbackTo(String),
    /// An XA transaction begins.
    XaStart,
    /// Its last change was made.
    XaEnd,
    /// A prepared XA transaction is committed.
    XaCommit(Xid),
    /// A prepared XA transaction is undone.
    XaRollback(Xid),
    /// Something to these tables.
    Tables(Vec<(TableName, Effect)>),
    /// Everything in this database is gone.
    DropDatabase(String),
    /// Rows of this table are changed, and their values are not in the log.
    Write(TableName),
    /// Rows of one of these tables are changed, and their values are not in the log.
    WriteAny(Vec<TableName>),
    /// Not understood.
    Unknown,
}

/// What a statement does to one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing to its rows or its shape.
    Nothing,
    /// All rows are gone.
    Truncate,
    /// It is there from now on, if it was not before.
    Create,
    /// It has more columns, and maybe an index less.
    Alter {
        /// The new columns in the order of the statement.
        added: Vec<AddedColumn>,
        /// Whether an index was dropped, which may have been the key.
        drops_index: bool,
    },
    /// Something that is not followed, in words that go on after the table's name.
    Change(&'static str),
}

/// A column that was added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedColumn {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// Whether it may be there already.
    pub if_not_exists: bool,
}

/// Where a column was added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before all others.
    First,
    /// Behind this one.
    After(String),
    /// Behind all others.
    Last,
}

impl Statement {
    /// Understands a statement.
    #[must_use]
    pub fn read(query: &Query<'_>) -> Statement {
        let tokens = lexer::tokens(&query.text, query.ansi_quotes, query.no_backslash);
        match tokens {
            Some(tokens) => {
                statement(&mut Tokens::new(&tokens), query.database).unwrap_or(Statement::Unknown)
            }
            None => Statement::Unknown,
        }
    }
}

/// `None` where it is not understood.
fn statement(tokens: &mut Tokens<'_>, database: &str) -> Option<Statement> {
    let Some(first) = tokens.next() else { return Some(Statement::Nothing) };
    let Token::Word(word) = first else { return None };
    Some(match word.to_ascii_uppercase().as_str() {
        "BEGIN" => Statement::Begin,
        "START" if tokens.skip("TRANSACTION") => Statement::Begin,
        "COMMIT" => Statement::Commit,
        "ROLLBACK" => return rollback(tokens),
        "SAVEPOINT" => Statement::Savepoint(tokens.name()?),
        "XA" => return xa(tokens),
        "TRUNCATE" => {
            tokens.skip("TABLE");
            one(tokens.table(database)?, Effect::Truncate)
        }
        "CREATE" => return create(tokens, database),
        "DROP" => return drop(tokens, database),
        "ALTER" => return alter::statement(tokens, database),
        "RENAME" => return rename(tokens, database),
        "REPAIR" => return repair(tokens, database),
        "INSERT" | "REPLACE" => return insert(tokens, database),
        "UPDATE" => update(tokens, database),
        "DELETE" => delete(tokens, database),
        "LOAD" => Statement::WriteAny(tokens.all_names(database)),
        "SET" if tokens.skip("STATEMENT") => {
            tokens.find("FOR")?;
            return statement(tokens, database);
        }
        // Of variables, only passwords and roles are logged.
        "SET" => match tokens.next()? {
            Token::Word(word) if is_any(word, &["PASSWORD", "DEFAULT", "ROLE", "RESOURCE"]) => {
                Statement::Nothing
            }
            _ => return None,
        },
        "GRANT" | "REVOKE" | "FLUSH" | "ANALYZE" | "OPTIMIZE" | "CHECK" | "CHECKSUM" | "LOCK"
        | "UNLOCK" | "INSTALL" | "UNINSTALL" | "RELEASE" | "RESET" | "CACHE" | "COMMENT"
        | "IMPORT" | "RESTART" | "SHUTDOWN" | "KILL" => Statement::Nothing,
        _ => return None,
    })
}

fn one(table: TableName, effect: Effect) -> Statement {
    Statement::Tables(vec![(table, effect)])
}

fn is_any(word: &str, words: &[&str]) -> bool {
    words.iter().any(|other| word.eq_ignore_ascii_case(other))
}

fn rollback(tokens: &mut Tokens<'_>) -> Option<Statement> {
    if !tokens.skip("TO") {
        return Some(Statement::Rollback);
    }
    tokens.skip("SAVEPOINT");
    Some(Statement::RollbackTo(tokens.name()?))
}

fn xa(tokens: &mut Tokens<'_>) -> Option<Statement> {
    let Token::Word(word) = tokens.next()? else { return None };
    Some(match word.to_ascii_uppercase().as_str() {
        "START" | "BEGIN" => Statement::XaStart,
        "END" => Statement::XaEnd,
        // The event that follows says it again, and says which.
        "PREPARE" => Statement::Nothing,
        "COMMIT" => {
            let xid = tokens.xid()?;
            match tokens.skip("ONE") {
                true => Statement::Commit,
                false => Statement::XaCommit(xid),
            }
        }
        "ROLLBACK" => Statement::XaRollback(tokens.xid()?),
        _ => return None,
    })
}

/// What does not concern rows of tables, after CREATE, ALTER or DROP.
const OTHER_OBJECTS: [&str; 17] = [
    "VIEW",
    "TRIGGER",
    "PROCEDURE",
    "FUNCTION",
    "EVENT",
    "USER",
    "ROLE",
    "SERVER",
    "SEQUENCE",
    "PACKAGE",
    "TABLESPACE",
    "LOGFILE",
    "UNDO",
    "RESOURCE",
    "LIBRARY",
    "INSTANCE",
    "CATALOG",
];

fn create(tokens: &mut Tokens<'_>, database: &str) -> Option<Statement> {
    let mut replaces = false;
    loop {
        match tokens.next_of_head()?.as_str() {
            "REPLACE" => replaces = true,
            "TEMPORARY" => return Some(Statement::Nothing),
            "TABLE" => break,
            "INDEX" => {
                tokens.find("ON")?;
                return Some(one(tokens.table(database)?, Effect::Nothing));
            }
            "DATABASE" | "SCHEMA" => return Some(Statement::Nothing),
            // A spatial reference system, unless an index follows.
            "REFERENCE" => return Some(Statement::Nothing),
            other if OTHER_OBJECTS.contains(&other) => return Some(Statement::Nothing),
            _ => {}
        }
    }
    tokens.skip_if_not_exists();
    let table = tokens.table(database)?;
    let effect = match replaces {
        true => Effect::Change("was dropped and created again"),
        false => Effect::Create,
    };
    Some(one(table, effect))
}

fn drop(tokens: &mut Tokens<'_>, database: &str) -> Option<Statement> {
    let Token::Word(word) = tokens.next()? else { return None };
    match word.to_ascii_uppercase().as_str() {
        "TEMPORARY" | "PREPARE" | "SPATIAL" => Some(Statement::Nothing),
        "TABLE" | "TABLES" => {
            tokens.skip_if_exists();
            let effect = Effect::Change("was dropped");
            let tables = tokens.tables(database)?;
            Some(Statement::Tables(
                tables.into_iter().map(|table| (table, effect.clone())).collect(),
            ))
        }
        "INDEX" => {
            tokens.find("ON")?;
            let effect = Effect::Alter { added: Vec::new(), drops_index: true };
            Some(one(tokens.table(database)?, effect))
        }
        "DATABASE" | "SCHEMA" => {
            tokens.skip_if_exists();
            Some(Statement::DropDatabase(tokens.name()?))
        }
        other if OTHER_OBJECTS.contains(&other) => Some(Statement::Nothing),
        _ => None,
    }
}

fn rename(tokens: &mut Tokens<'_>, database: &str) -> Option<Statement> {
    if tokens.skip("USER") {
        return Some(Statement::Nothing);
    }
    if !tokens.skip("TABLE") && !tokens.skip("TABLES") {
        return None;
    }
    tokens.skip_if_exists();
    let mut effects = Vec::new();
    loop {
        effects.push((tokens.table(database)?, Effect::Change("was renamed")));
        tokens.skip_wait();
        if !tokens.skip("TO") {
            return None;
        }
        effects.push((tokens.table(database)?, Effect::Change("is another table now")));
        if !tokens.skip_symbol(',') {
            break;
        }
    }
    Some(Statement::Tables(effects))
}

fn repair(tokens: &mut Tokens<'_>, database: &str) -> Option<Statement> {
    while tokens.skip("NO_WRITE_TO_BINLOG") || tokens.skip("LOCAL") {}
    if !tokens.skip("TABLE") && !tokens.skip("TABLES") {
        return tokens.skip("VIEW").then_some(Statement::Nothing);
    }
    let effect = Effect::Change("was repaired and may have lost rows");
    let tables = tokens.tables(database)?;
    Some(Statement::Tables(tables.into_iter().map(|table| (table, effect.clone())).collect()))
}

fn insert(tokens: &mut Tokens<'_>, database: &str) -> Option<Statement> {
    while ["LOW_PRIORITY", "DELAYED", "HIGH_PRIORITY", "IGNORE", "INTO"]
        .iter()
        .any(|word| tokens.skip(word))
    {}
    Some(Statement::Write(tokens.table(database)?))
}

/// Of one table, or of those of a join.
fn update(tokens: &mut Tokens<'_>, database: &str) -> Statement {
    let mut one = *tokens;
    while one.skip("LOW_PRIORITY") || one.skip("IGNORE") {}
    if let Some(table) = one.table(database) {
        one.skip("AS");
        if one.is("SET") || (one.name().is_some() && one.is("SET")) {
            return Statement::Write(table);
        }
    }
    Statement::WriteAny(tokens.all_names(database))
}

/// From one table, or from those of a join.
fn delete(tokens: &mut Tokens<'_>, database: &str) -> Statement {
    let mut one = *tokens;
    while one.skip("LOW_PRIORITY") || one.skip("QUICK") || one.skip("IGNORE") {}
    if one.skip("FROM")
        && let Some(table) = one.table(database)
    {
        // A server that was restarted writes this of tables that it keeps in memory.
        if one.peek().is_none() {
            return self::one(table, Effect::Truncate);
        }
        if ["WHERE", "ORDER", "LIMIT"].iter().any(|word| one.is(word)) {
            return Statement::Write(table);
        }
    }
    Statement::WriteAny(tokens.all_names(database))
}
