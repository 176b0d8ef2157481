//! The target against a real server. `support` builds tables, rows and batches; the other files
//! hold the promises by theme.

mod ahead;
mod claims;
mod loads;
mod model;
mod rows;
mod shapes;
mod support;
mod values;
