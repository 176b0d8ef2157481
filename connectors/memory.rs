//! A source and a target in memory, for the engine's tests.
