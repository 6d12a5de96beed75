//! The OCI runtime that restores at `create`; see [`spothop_criu::oci`].

use std::process::ExitCode;

fn main() -> ExitCode {
    spothop_criu::oci::run(std::env::args_os().collect())
}
