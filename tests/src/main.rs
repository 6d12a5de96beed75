//! `testbed`: see `testbed --help`, and the library for what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    spothop_tests::cli::main()
}
