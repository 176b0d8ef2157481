//! The SQLite target against real files: merging, claims, shapes, values, and random histories.

mod apply;
mod claim;
mod model;
mod prepare;
pub(crate) mod support;
mod values;
