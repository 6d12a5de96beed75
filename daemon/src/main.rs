//! Live migration of containers off spot machines.
fn main() {}
