//! The OCI runtime that restores at `create`.
fn main() {}
