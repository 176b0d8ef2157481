//! The contract, kept by the source and the target in memory.
