//! The entry of the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    driftless::cli::main()
}
