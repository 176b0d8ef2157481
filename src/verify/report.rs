//! What a comparison found: for machines through serde, for people through `Display`.
//!
//! Surprise: it holds keys, which are the user's data. It is printed because the user asked for
//! it, and must never be logged; nothing that holds keys derives `Debug` for that reason.

use std::fmt;
use std::time::Duration;

use connectors::change::Key;
use connectors::schema::{TableName, TableSchema};
use serde::Serialize;
use serde_json::{Map, Value};

use super::Unproven;

/// So many keys of each kind are listed.
pub(super) const LISTED_MAX: usize = 20;
/// So many keys of each kind are kept for a repair; where more differ, a backfill is quicker.
const KEPT_MAX: usize = 10_000;

/// The outcome of a whole comparison. Its fields are the schema of `verify --json`.
#[derive(Clone, PartialEq, Serialize)]
pub struct Report {
    /// The pipeline's name.
    pub pipeline: String,
    /// `equal` only if every table is.
    pub outcome: Outcome,
    /// Source rows compared, in all tables.
    pub rows: u64,
    /// What to know when judging differences.
    pub notes: Vec<String>,
    /// One for each table, in the order of their names.
    pub tables: Vec<TableReport>,
    /// Wall-clock time, in milliseconds.
    pub elapsed_ms: u64,
}

/// Whether something is equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Proven equal.
    Equal,
    /// Not equal, or too busy to tell.
    Different,
    /// Could not be compared; the reason is beside it.
    Unproven,
}

/// The outcome for one table.
#[derive(Clone, PartialEq, Serialize)]
pub struct TableReport {
    /// Its name, for code.
    #[serde(skip)]
    pub name: TableName,
    /// Its name in the source.
    pub table: String,
    /// Its name in the target.
    pub target_table: String,
    /// Whether it is equal.
    pub outcome: Outcome,
    /// Source rows compared.
    pub rows: u64,
    /// BLAKE3 of the source's rows in key order, in the form in which the target gives them
    /// back; hexadecimal. The same rows have the same digest in every run. Empty if unproven.
    pub digest: String,
    /// What differs.
    #[serde(flatten)]
    pub differences: Differences,
    /// Why it could not be compared; empty unless unproven.
    pub reason: String,
    /// What to type next; empty if equal.
    pub remedy: String,
    /// Wall-clock time, in milliseconds.
    pub elapsed_ms: u64,
}

/// The keys that differ, by kind.
#[derive(Clone, Default, PartialEq, Serialize)]
pub struct Differences {
    /// Rows that only the source has.
    pub missing: Found,
    /// Rows that both have, with different values.
    pub differing: Found,
    /// Rows that only the target has.
    pub extra: Found,
    /// Rows that changed at every look.
    pub unsettled: Found,
}

/// Keys of one kind.
#[derive(Clone, Default, PartialEq, Serialize)]
pub struct Found {
    /// How many.
    pub count: u64,
    /// The first of them.
    pub keys: Vec<Listed>,
    #[serde(skip)]
    kept: Vec<Key>,
}

/// One row that differs.
#[derive(Clone, PartialEq, Serialize)]
pub struct Listed {
    /// The columns of its key and their values, in canonical text.
    pub key: Map<String, Value>,
    /// The names of the columns whose values differ, where that is the difference.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
}

impl Report {
    pub(super) fn new(
        pipeline: &str,
        tables: Vec<TableReport>,
        notes: Vec<String>,
        elapsed: Duration,
    ) -> Report {
        let mut report = Report {
            pipeline: pipeline.to_owned(),
            outcome: Outcome::Equal,
            rows: tables.iter().map(|table| table.rows).sum(),
            notes,
            tables,
            elapsed_ms: elapsed.as_millis() as u64,
        };
        report.judge();
        report
    }

    /// Replaces what was found in one table, after a repair.
    pub fn replace(&mut self, table: &TableName, differences: Differences) {
        for report in self.tables.iter_mut().filter(|report| report.name == *table) {
            report.differences = report.differences.after_repair(&differences);
            report.judge();
        }
        self.judge();
    }

    fn judge(&mut self) {
        let is = |outcome| self.tables.iter().any(|table| table.outcome == outcome);
        self.outcome = match (is(Outcome::Different), is(Outcome::Unproven)) {
            (true, _) => Outcome::Different,
            (false, true) => Outcome::Unproven,
            (false, false) => Outcome::Equal,
        };
    }
}

impl TableReport {
    pub(super) fn compared(
        name: &TableName,
        target_table: String,
        rows: u64,
        digest: blake3::Hash,
        differences: Differences,
        elapsed: Duration,
    ) -> TableReport {
        let mut report = TableReport {
            name: name.clone(),
            table: name.to_string(),
            target_table,
            outcome: Outcome::Equal,
            rows,
            digest: digest.to_hex().to_string(),
            differences,
            reason: String::new(),
            remedy: String::new(),
            elapsed_ms: elapsed.as_millis() as u64,
        };
        report.judge();
        report
    }

    pub(super) fn unproven(
        name: &TableName,
        target_table: String,
        unproven: Unproven,
    ) -> TableReport {
        TableReport {
            name: name.clone(),
            table: name.to_string(),
            target_table,
            outcome: Outcome::Unproven,
            rows: 0,
            digest: String::new(),
            differences: Differences::default(),
            reason: unproven.reason,
            remedy: unproven.remedy,
            elapsed_ms: 0,
        }
    }

    fn judge(&mut self) {
        let found = &self.differences;
        let settled = found.count() - found.unsettled.count;
        let repairable = found.kept().next().is_some();
        self.outcome = match found.count() {
            0 => Outcome::Equal,
            _ => Outcome::Different,
        };
        self.remedy = match (settled, found.unsettled.count) {
            (0, 0) => String::new(),
            (0, _) => "`driftless verify` again when these rows change less often".into(),
            _ if settled > KEPT_MAX as u64 => {
                format!("`driftless backfill --table {}`", self.name)
            }
            _ if repairable => format!("`driftless verify --repair --table {}`", self.name),
            _ => "delete these rows by hand; they are not of driftless".into(),
        };
    }
}

impl Differences {
    /// How many keys differ.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.kinds().iter().map(|(_, found)| found.count).sum()
    }

    /// The keys that a repair can mend, as many as are kept.
    #[must_use]
    pub fn repairable(&self) -> Vec<Key> {
        self.kept().cloned().collect()
    }

    fn kept(&self) -> impl Iterator<Item = &Key> {
        [&self.missing, &self.differing, &self.extra].into_iter().flat_map(|found| &found.kept)
    }

    fn kinds(&self) -> [(&'static str, &Found); 4] {
        [
            ("missing", &self.missing),
            ("differing", &self.differing),
            ("extra", &self.extra),
            ("unsettled", &self.unsettled),
        ]
    }

    /// What is left when the keys that were kept have been looked at again, with this result.
    fn after_repair(&self, again: &Differences) -> Differences {
        let left = |before: &Found, now: &Found| Found {
            count: now.count + before.count - before.kept.len() as u64,
            ..now.clone()
        };
        let mut unsettled = self.unsettled.clone();
        unsettled.absorb(&again.unsettled);
        Differences {
            missing: left(&self.missing, &again.missing),
            differing: left(&self.differing, &again.differing),
            extra: left(&self.extra, &again.extra),
            unsettled,
        }
    }
}

impl Found {
    /// Counts a key, and lists and keeps it while there is room.
    pub(super) fn add(&mut self, table: &TableSchema, key: &Key) {
        self.add_beyond_repair(table, key);
        if self.kept.len() < KEPT_MAX {
            self.kept.push(key.clone());
        }
    }

    /// Counts a key that nobody can be asked for.
    pub(super) fn add_beyond_repair(&mut self, table: &TableSchema, key: &Key) {
        self.count += 1;
        if self.keys.len() < LISTED_MAX {
            self.keys.push(Listed { key: key_columns(table, key), columns: Vec::new() });
        }
    }

    /// The keys that are listed without the columns that differ, and where to write these.
    pub(super) fn unexplained(&mut self) -> impl Iterator<Item = (&Key, &mut Listed)> {
        self.kept.iter().zip(&mut self.keys).filter(|(_, listed)| listed.columns.is_empty())
    }

    fn absorb(&mut self, other: &Found) {
        self.count += other.count;
        let room = LISTED_MAX - self.keys.len();
        self.keys.extend(other.keys.iter().take(room).cloned());
        let room = KEPT_MAX - self.kept.len();
        self.kept.extend(other.kept.iter().take(room).cloned());
    }
}

fn key_columns(table: &TableSchema, key: &Key) -> Map<String, Value> {
    let text = |value: &[u8]| Value::String(String::from_utf8_lossy(value).into_owned());
    table.key_columns().map(|column| column.name.clone()).zip(key.values().map(text)).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for table in self.tables.iter().filter(|table| table.outcome != Outcome::Equal) {
            write!(f, "{table}")?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        let equal = self.tables.iter().filter(|table| table.outcome == Outcome::Equal);
        let (equal, all) = (equal.count(), self.tables.len());
        let rows = thousands(self.rows);
        match self.outcome {
            Outcome::Equal => write!(f, "equal: {}, {rows} rows", count(all, "table"))?,
            Outcome::Different => write!(
                f,
                "different: {} of {}, {rows} rows compared",
                all - equal,
                count(all, "table")
            )?,
            Outcome::Unproven => write!(
                f,
                "not proven: {} of {}, {rows} rows compared",
                all - equal,
                count(all, "table")
            )?,
        }
        writeln!(f, " in {:.1} s", self.elapsed_ms as f64 / 1000.0)
    }
}

impl fmt::Display for TableReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.outcome == Outcome::Unproven {
            writeln!(f, "{}: not proven: {}", self.table, self.reason)?;
        } else {
            let kinds = self.differences.kinds().into_iter().filter(|(_, found)| found.count > 0);
            let counts: Vec<String> =
                kinds.map(|(kind, found)| format!("{} {kind}", thousands(found.count))).collect();
            writeln!(f, "{}: {}", self.table, counts.join(", "))?;
        }
        for (kind, found) in self.differences.kinds() {
            for listed in &found.keys {
                writeln!(f, "  {kind:<10} {listed}")?;
            }
            let unlisted = found.count - found.keys.len() as u64;
            if unlisted > 0 {
                writeln!(f, "  {kind:<10} and {} more", thousands(unlisted))?;
            }
        }
        match self.remedy.is_empty() {
            true => Ok(()),
            false => writeln!(f, "  next: {}", self.remedy),
        }
    }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (column, value) in &self.key {
            // Escaped: a key may hold anything, also what would rewrite the terminal.
            let value = value.as_str().unwrap_or_default().escape_debug();
            write!(f, "{separator}{column}={value}")?;
            separator = " ";
        }
        match self.columns.is_empty() {
            true => Ok(()),
            false => write!(f, " (columns: {})", self.columns.join(", ")),
        }
    }
}

fn count(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

// Keys are row values, so a debug print shows only how many there are.
impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let different: u64 = self.tables.iter().map(|table| table.differences.count()).sum();
        write!(f, "Report({:?}, {} tables, {different} keys)", self.outcome, self.tables.len())
    }
}
