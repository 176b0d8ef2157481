//! Splits a statement into words, names, texts and symbols. Pure.
//!
//! Surprise: comments of the form `/*!40005 ... */` are not comments; servers execute what is in
//! them, and write it so themselves.

use super::super::binlog::Xid;
use crate::hex;
use crate::schema::TableName;

/// The smallest part that means something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A keyword, a name without quotes, or a number.
    Word(String),
    /// A quoted name.
    Quoted(String),
    /// A quoted text.
    Text(String),
    /// Anything else.
    Symbol(char),
}

/// The tokens of a statement; `None` if a quote or comment is not closed.
#[must_use]
pub fn tokens(text: &str, ansi_quotes: bool, no_backslash: bool) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    // Inside a comment that is executed.
    let mut executed = false;
    while let Some(first) = rest.chars().next() {
        if first.is_whitespace() || first == '\0' {
            rest = &rest[first.len_utf8()..];
        } else if executed && rest.starts_with("*/") {
            executed = false;
            rest = &rest[2..];
        } else if let Some(inside) = rest.strip_prefix("/*!").or(rest.strip_prefix("/*M!")) {
            executed = true;
            rest = inside.trim_start_matches(|c: char| c.is_ascii_digit());
        } else if let Some(inside) = rest.strip_prefix("/*") {
            rest = inside.split_once("*/")?.1;
        } else if first == '#' || is_dashes(rest) {
            rest = rest.split_once('\n').map_or("", |(_, next)| next);
        } else if first == '`' || first == '\'' || first == '"' {
            let is_name = first == '`' || (first == '"' && ansi_quotes);
            let (content, next) = quoted(rest, first, is_name || no_backslash)?;
            tokens.push(if is_name { Token::Quoted(content) } else { Token::Text(content) });
            rest = next;
        } else if is_word(first) {
            let end = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        } else {
            tokens.push(Token::Symbol(first));
            rest = &rest[first.len_utf8()..];
        }
    }
    (!executed).then_some(tokens)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$' || c as u32 > 0x7f
}

/// A comment to the end of the line, unlike `1--1`.
fn is_dashes(text: &str) -> bool {
    let mut after = match text.strip_prefix("--") {
        Some(after) => after.chars(),
        None => return false,
    };
    after.next().is_none_or(|c| c.is_whitespace() || c.is_control())
}

/// What is between quotes, and what follows them. The quote itself is doubled inside.
fn quoted(text: &str, quote: char, no_backslash: bool) -> Option<(String, &str)> {
    let mut content = String::new();
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if character == quote {
            match characters.next_if(|&(_, next)| next == quote) {
                Some(_) => content.push(quote),
                None => return Some((content, &text[at + 1..])),
            }
        } else if character == '\\' && !no_backslash {
            content.push(characters.next()?.1);
        } else {
            content.push(character);
        }
    }
    None
}

/// Reads tokens from the front.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    rest: &'a [Token],
}

impl<'a> Tokens<'a> {
    /// From the beginning.
    #[must_use]
    pub fn new(tokens: &'a [Token]) -> Tokens<'a> {
        Tokens { rest: tokens }
    }

    /// The next token, taken.
    pub fn next(&mut self) -> Option<&'a Token> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    /// The next keyword of a statement's head, in capital letters, taken; what stands there between
    /// the keywords goes with it: DEFINER with its account, and the like.
    pub fn next_of_head(&mut self) -> Option<String> {
        loop {
            match self.next()? {
                Token::Word(word) => return Some(word.to_ascii_uppercase()),
                Token::Symbol('=' | '@' | '(' | ')') | Token::Quoted(_) | Token::Text(_) => {}
                Token::Symbol(_) => return None,
            }
        }
    }

    /// The next token, left where it is.
    #[must_use]
    pub fn peek(&self) -> Option<&'a Token> {
        self.rest.first()
    }

    /// Whether the next token is this keyword.
    #[must_use]
    pub fn is(&self, keyword: &str) -> bool {
        matches!(self.peek(), Some(Token::Word(word)) if word.eq_ignore_ascii_case(keyword))
    }

    /// Takes this keyword, if it is next.
    pub fn skip(&mut self, keyword: &str) -> bool {
        let is = self.is(keyword);
        if is {
            self.next();
        }
        is
    }

    /// Takes this symbol, if it is next.
    pub fn skip_symbol(&mut self, symbol: char) -> bool {
        let is = self.peek() == Some(&Token::Symbol(symbol));
        if is {
            self.next();
        }
        is
    }

    /// Takes `IF EXISTS`.
    pub fn skip_if_exists(&mut self) -> bool {
        self.skip("IF") && self.skip("EXISTS")
    }

    /// Takes `IF NOT EXISTS`.
    pub fn skip_if_not_exists(&mut self) -> bool {
        self.skip("IF") && self.skip("NOT") && self.skip("EXISTS")
    }

    /// Takes `WAIT 5` or `NOWAIT`.
    pub fn skip_wait(&mut self) {
        if self.skip("WAIT") {
            self.next();
        }
        self.skip("NOWAIT");
    }

    /// Takes everything up to this keyword and the keyword itself; `None` if it does not come.
    pub fn find(&mut self, keyword: &str) -> Option<()> {
        while !self.is(keyword) {
            self.next()?;
        }
        self.next().map(|_| ())
    }

    /// A name.
    pub fn name(&mut self) -> Option<String> {
        match self.next()? {
            Token::Word(name) | Token::Quoted(name) => Some(name.clone()),
            Token::Text(_) | Token::Symbol(_) => None,
        }
    }

    /// A table's name, with its database or without.
    pub fn table(&mut self, database: &str) -> Option<TableName> {
        let name = self.name()?;
        match self.skip_symbol('.') {
            true => Some(TableName::new(name, self.name()?)),
            false => Some(TableName::new(database, name)),
        }
    }

    /// Names of tables with commas between.
    pub fn tables(&mut self, database: &str) -> Option<Vec<TableName>> {
        let mut tables = vec![self.table(database)?];
        while self.skip_symbol(',') {
            tables.push(self.table(database)?);
        }
        Some(tables)
    }

    /// Everything that is left and could be the name of a table.
    pub fn all_names(&mut self, database: &str) -> Vec<TableName> {
        let mut names = Vec::new();
        while let Some(token) = self.next() {
            let (Token::Word(name) | Token::Quoted(name)) = token else { continue };
            names.push(TableName::new(database, name));
            let mut after = *self;
            if after.skip_symbol('.')
                && let Some(second) = after.name()
            {
                names.push(TableName::new(name, second));
            }
        }
        names
    }

    /// The tokens up to the next comma outside of parentheses, which is taken too.
    pub fn clause(&mut self) -> Tokens<'a> {
        let mut depth = 0;
        let ends = |token: &Token| {
            match token {
                Token::Symbol('(') => depth += 1,
                Token::Symbol(')') => depth -= 1,
                _ => {}
            }
            depth == 0 && *token == Token::Symbol(',')
        };
        let at = self.rest.iter().position(ends).unwrap_or(self.rest.len());
        let clause = Tokens { rest: &self.rest[..at] };
        self.rest = self.rest.get(at + 1..).unwrap_or_default();
        clause
    }

    /// The tokens between a parenthesis, which is next, and its other half; both are taken.
    pub fn parenthesised(&mut self) -> Option<Tokens<'a>> {
        if !self.skip_symbol('(') {
            return None;
        }
        let mut depth = 1;
        let at = self.rest.iter().position(|token| {
            match token {
                Token::Symbol('(') => depth += 1,
                Token::Symbol(')') => depth -= 1,
                _ => {}
            }
            depth == 0
        })?;
        let inside = Tokens { rest: &self.rest[..at] };
        self.rest = &self.rest[at + 1..];
        Some(inside)
    }

    /// The identifier of an XA transaction: `X'6162',X'',1`.
    pub fn xid(&mut self) -> Option<Xid> {
        let global = self.hexadecimal()?;
        let branch = if self.skip_symbol(',') { self.hexadecimal()? } else { Vec::new() };
        let format = if self.skip_symbol(',') { self.name()?.parse().ok()? } else { 1 };
        Some(Xid { format, global, branch })
    }

    fn hexadecimal(&mut self) -> Option<Vec<u8>> {
        let is_hexadecimal = self.skip("X");
        let Token::Text(text) = self.next()? else { return None };
        if !is_hexadecimal {
            return Some(text.clone().into_bytes());
        }
        hex::parse(text)
    }
}
