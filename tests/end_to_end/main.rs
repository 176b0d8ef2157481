//! Real servers, the real binary, real faults: every scenario of the list that needs them.
//!
//! One test executable. A scenario is written once, as a function of the kind of target, and run
//! for each target; its name begins with its id. `support` starts servers and daemons, harms
//! them, and compares both sides by plain SQL.

// All of this is test code, also outside functions that carry #[test].
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[macro_use]
mod support;

mod backfill;
mod bad_input;
mod binlog;
mod crash;
mod ddl;
mod demo;
mod huge;
mod identifiers;
mod images;
mod instances;
mod network;
mod rig;
mod rows;
mod source;
mod values;
mod values_mariadb;
mod workload;
