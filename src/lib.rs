//! The engine and the command line of driftless.

pub mod demo;
