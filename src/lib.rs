//! The engine and the command line of driftless.

pub mod config;
pub mod merge;
pub mod verify;
