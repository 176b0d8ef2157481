//! The engine and the command line of driftless, in the order in which to read them.
//!
//! `merge` is the idea, as pure functions. `reader`, `batcher` and `applier` carry the log from a
//! source into a target; `backfill` copies rows beside it; `pipeline` ties them together for one
//! session and `daemon` keeps sessions going. `verify` proves the result. `cli` is what people see.

pub mod merge;

pub mod applier;
pub mod backfill;
pub mod batcher;
pub mod floor;
pub mod gate;
pub mod history;
pub mod order;
pub mod persist;
pub mod queue;
pub mod reader;
pub mod supply;
pub mod tables;
pub mod upcoming;

pub mod connect;
pub mod daemon;
pub mod monitor;
pub mod pipeline;
pub mod resume;
pub mod retry;

pub mod verify;

pub mod config;
pub mod control;
pub mod logging;
pub mod status;

pub mod cli;
pub mod demo;
