//! The commands, one file each.

pub mod check;
mod connect;
pub mod teardown;
pub mod verify;
