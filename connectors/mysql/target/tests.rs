//! The target against a real server.
