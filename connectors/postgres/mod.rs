//! PostgreSQL, as source and as target.

mod copy;
