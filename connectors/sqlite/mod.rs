//! SQLite, as target: one file, one writer, any number of readers.
//!
//! In reading order: where the file is (`config`), what things are called in it (`quote`,
//! `names`), what values become (`types`, `time`), every statement's text (`sql`), what a table
//! that exists looks like (`shape`), what SQLite's errors mean (`failure`), the open file
//! (`store`) and what is recorded in it (`records`), the work on it (`claim`, `prepare`,
//! `apply`, `read`, `check`), and the door (`target`), which keeps blocking calls off the
//! runtime's threads.

mod apply;
mod check;
mod claim;
mod config;
mod failure;
mod names;
mod prepare;
mod quote;
mod read;
mod records;
mod shape;
mod sql;
mod store;
mod target;
mod time;
mod types;

#[cfg(test)]
mod tests;

pub(crate) use target::target;
