//! The entry of the command line.
//!
//! Surprise: rows are made by one thread and dropped by another, hundreds of thousands a second. The
//! C library pays for each of them, and for memory that it gives back and takes again at once.
//! jemalloc does not: measured, our own work is a fifth less, and so is the memory.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// jemalloc's settings: two heaps for all threads, which is enough for none to wait; what is free for a
/// second goes back to the system.
#[expect(unsafe_code, reason = "the name under which jemalloc looks for them")]
// SAFETY: it is what jemalloc declares under that name, a text that ends with a zero.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static SETTINGS: &[u8; 47] = b"narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

fn main() -> ExitCode {
    driftless::cli::main()
}
