//! Understands ALTER TABLE, clause by clause. Pure.
//!
//! Only a clause that is known to leave the rows as they are is let through; one that is unknown
//! counts as a change.

use super::lexer::{Token, Tokens};
use super::{AddedColumn, Effect, OTHER_OBJECTS, Place, Statement, is_any, one};

/// After ALTER.
pub fn statement(tokens: &mut Tokens<'_>, database: &str) -> Option<Statement> {
    let mut ignores_rows = false;
    loop {
        match tokens.next_of_head()?.as_str() {
            // With a unique index, rows that do not fit are deleted.
            "IGNORE" => ignores_rows = true,
            "TABLE" => break,
            "DATABASE" | "SCHEMA" => return Some(Statement::Nothing),
            other if OTHER_OBJECTS.contains(&other) => return Some(Statement::Nothing),
            _ => {}
        }
    }
    tokens.skip_if_exists();
    let table = tokens.table(database)?;
    tokens.skip_wait();
    if ignores_rows {
        return Some(one(table, Effect::Change("was altered with IGNORE")));
    }
    let mut alteration = Alteration::default();
    while tokens.peek().is_some() {
        let mut clause = tokens.clause();
        if let Err(change) = alteration.read(&mut clause) {
            return Some(one(table, Effect::Change(change)));
        }
    }
    let Alteration { added, drops_index } = alteration;
    let effect = match added.is_empty() && !drops_index {
        true => Effect::Nothing,
        false => Effect::Alter { added, drops_index },
    };
    Some(one(table, effect))
}

#[derive(Default)]
struct Alteration {
    added: Vec<AddedColumn>,
    drops_index: bool,
}

type Followed = Result<(), &'static str>;

const NOT_UNDERSTOOD: &str = "was altered in a way that is not understood";
const KEY: &str = "has another primary key";

impl Alteration {
    fn read(&mut self, clause: &mut Tokens<'_>) -> Followed {
        let Some(Token::Word(word)) = clause.next() else { return Err(NOT_UNDERSTOOD) };
        match word.to_ascii_uppercase().as_str() {
            "ADD" => self.add(clause),
            "DROP" => self.drop(clause),
            "RENAME" if clause.is("INDEX") || clause.is("KEY") => Ok(()),
            "RENAME" if clause.is("COLUMN") => Err("has a column that was renamed"),
            "RENAME" => Err("was renamed"),
            "CHANGE" => Err("has a column that was changed or renamed"),
            "MODIFY" => Err("has a column that was changed"),
            "CONVERT" => Err("was converted to another character set"),
            // Defaults and visibility: rows are logged with all columns and values.
            "ALTER" => Ok(()),
            "ENGINE" | "TYPE" => engine(clause),
            "TRUNCATE" | "EXCHANGE" | "DISCARD" | "IMPORT" | "UNION" => {
                Err("has lost or exchanged rows")
            }
            _ if is_any(word, &HARMLESS) => Ok(()),
            _ => Err(NOT_UNDERSTOOD),
        }
    }

    fn add(&mut self, clause: &mut Tokens<'_>) -> Followed {
        let Some(first) = clause.peek() else { return Err(NOT_UNDERSTOOD) };
        if let Token::Word(word) = first {
            let mut after = *clause;
            after.next();
            if is_any(word, &["INDEX", "KEY", "FULLTEXT", "SPATIAL", "FOREIGN", "CHECK", "UNIQUE"])
                || word.eq_ignore_ascii_case("PARTITION")
                || (word.eq_ignore_ascii_case("VECTOR") && (after.is("INDEX") || after.is("KEY")))
            {
                return Ok(());
            }
            if word.eq_ignore_ascii_case("CONSTRAINT") {
                return if has_word(after, "PRIMARY") { Err(KEY) } else { Ok(()) };
            }
            if word.eq_ignore_ascii_case("PRIMARY") {
                return Err(KEY);
            }
            let is_versioning = word.eq_ignore_ascii_case("SYSTEM") && after.is("VERSIONING");
            if is_versioning || (word.eq_ignore_ascii_case("PERIOD") && after.is("FOR")) {
                return Err("has system versioning, which is not replicated");
            }
        }
        clause.skip("COLUMN");
        let if_not_exists = clause.skip_if_not_exists();
        match clause.parenthesised() {
            Some(mut columns) => {
                while columns.peek().is_some() {
                    self.add_in_parentheses(columns.clause(), if_not_exists)?;
                }
                Ok(())
            }
            None => self.add_column(*clause, if_not_exists),
        }
    }

    fn add_in_parentheses(&mut self, definition: Tokens<'_>, if_not_exists: bool) -> Followed {
        let mut definition = definition;
        match definition.peek() {
            Some(Token::Word(word))
                if is_any(
                    word,
                    &["INDEX", "KEY", "FULLTEXT", "SPATIAL", "FOREIGN", "CHECK", "UNIQUE"],
                ) =>
            {
                Ok(())
            }
            Some(Token::Word(word)) if is_any(word, &["PRIMARY", "CONSTRAINT", "PERIOD"]) => {
                Err(NOT_UNDERSTOOD)
            }
            _ => {
                let if_not_exists = if_not_exists || definition.skip_if_not_exists();
                self.add_column(definition, if_not_exists)
            }
        }
    }

    fn add_column(&mut self, definition: Tokens<'_>, if_not_exists: bool) -> Followed {
        let mut definition = definition;
        let name = definition.name().ok_or(NOT_UNDERSTOOD)?;
        if has_word(definition, "PRIMARY") {
            return Err(KEY);
        }
        let mut place = Place::Last;
        let mut depth = 0;
        while let Some(token) = definition.next() {
            match token {
                Token::Symbol('(') => depth += 1,
                Token::Symbol(')') => depth -= 1,
                Token::Word(word) if depth == 0 && word.eq_ignore_ascii_case("FIRST") => {
                    place = Place::First;
                }
                Token::Word(word) if depth == 0 && word.eq_ignore_ascii_case("AFTER") => {
                    place = Place::After(definition.name().ok_or(NOT_UNDERSTOOD)?);
                }
                _ => {}
            }
        }
        self.added.push(AddedColumn { name, place, if_not_exists });
        Ok(())
    }

    fn drop(&mut self, clause: &mut Tokens<'_>) -> Followed {
        match clause.next() {
            Some(Token::Word(word)) if is_any(word, &["INDEX", "KEY", "CONSTRAINT"]) => {
                self.drops_index = true;
                Ok(())
            }
            Some(Token::Word(word)) if is_any(word, &["FOREIGN", "CHECK", "DEFAULT"]) => Ok(()),
            Some(Token::Word(word)) if word.eq_ignore_ascii_case("PRIMARY") => Err(KEY),
            Some(Token::Word(word)) if word.eq_ignore_ascii_case("PARTITION") => {
                Err("has lost a partition")
            }
            _ => Err("has lost a column"),
        }
    }
}

fn has_word(tokens: Tokens<'_>, keyword: &str) -> bool {
    let mut tokens = tokens;
    tokens.find(keyword).is_some()
}

/// Only engines that keep the rows that they are given.
fn engine(clause: &mut Tokens<'_>) -> Followed {
    clause.skip_symbol('=');
    let name = match clause.next() {
        Some(Token::Word(name) | Token::Quoted(name) | Token::Text(name)) => name,
        _ => return Err(NOT_UNDERSTOOD),
    };
    match is_any(name, &["InnoDB", "MyISAM", "Aria", "RocksDB"]) {
        true => Ok(()),
        false => Err("has another storage engine"),
    }
}

/// First words of clauses that leave rows and columns as they are.
const HARMLESS: [&str; 48] = [
    "ALGORITHM",
    "ANALYZE",
    "AUTOEXTEND_SIZE",
    "AUTO_INCREMENT",
    "AVG_ROW_LENGTH",
    "CHARACTER",
    "CHARSET",
    "CHECK",
    "CHECKSUM",
    "COALESCE",
    "COLLATE",
    "COMMENT",
    "COMPRESSION",
    "DATA",
    "DEFAULT",
    "DELAY_KEY_WRITE",
    "DISABLE",
    "ENABLE",
    "ENCRYPTED",
    "ENCRYPTION",
    "ENCRYPTION_KEY_ID",
    "ENGINE_ATTRIBUTE",
    "FORCE",
    "INDEX",
    "INSERT_METHOD",
    "KEY_BLOCK_SIZE",
    "LOCK",
    "MAX_ROWS",
    "MIN_ROWS",
    "NOWAIT",
    "OPTIMIZE",
    "ORDER",
    "PACK_KEYS",
    "PAGE_CHECKSUM",
    "PAGE_COMPRESSED",
    "PAGE_COMPRESSION_LEVEL",
    "PARTITION",
    "REBUILD",
    "REMOVE",
    "REORGANIZE",
    "ROW_FORMAT",
    "STATS_AUTO_RECALC",
    "STATS_PERSISTENT",
    "STATS_SAMPLE_PAGES",
    "TABLESPACE",
    "TRANSACTIONAL",
    "WAIT",
    "WITH",
];
