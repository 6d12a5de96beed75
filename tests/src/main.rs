//! The testbed: hosts in namespaces.
fn main() {}
