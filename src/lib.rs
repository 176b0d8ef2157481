//! The engine and the command line of driftless.

pub mod config;
pub mod control;
pub mod daemon;
pub mod merge;
pub mod status;
pub mod verify;
