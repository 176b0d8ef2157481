//! The engine and the command line of driftless.

pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod logging;
pub mod merge;
pub mod status;
pub mod verify;
