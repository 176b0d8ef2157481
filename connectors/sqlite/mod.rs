//! SQLite, as target.
