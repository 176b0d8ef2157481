//! The entry of the command line.
//!
//! Surprise: the C library gives each thread a heap of its own, up to eight a core, and keeps what
//! was freed on each. Rows are made by one thread and dropped by another, so all of them grew to the
//! size of the largest: half of our memory was theirs.

use std::process::ExitCode;

fn main() -> ExitCode {
    share_heaps();
    driftless::cli::main()
}

/// Two heaps for all threads: measured, neither is waited for.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "a setting of the C library, made before there is a second thread")]
fn share_heaps() {
    // SAFETY: it takes two numbers, and changes nothing that is in use.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn share_heaps() {}
