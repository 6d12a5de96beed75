//! What trackers promise, tried on a process that writes on command.

mod child;
mod held_up;
mod writes;

use std::collections::BTreeSet;
use std::env;

use nix::unistd::geteuid;

use super::{Method, Tracker, supported};
use crate::memory::{PAGE, Pages, pieces, reader};

/// Pages of an area that a test looks at.
const PAGES: u64 = 64;

/// Names the methods that must be there, all of them, where it is known of the kernel: then no test passes for want of one.
pub(in crate::memory) const REQUIRED: &str = "SPOTHOP_TEST_METHODS";

/// The methods that can be tried here: following another process's memory needs root.
fn methods() -> Vec<Method> {
    let methods = if geteuid().is_root() { supported() } else { Vec::new() };
    if let Ok(required) = env::var(REQUIRED) {
        let required: Vec<Method> = required.split(',').map(|name| name.parse().unwrap()).collect();
        assert_eq!(methods, required, "{REQUIRED} says otherwise");
    }
    methods
}

/// Those of them that do not see what devices write.
fn blind_to_devices() -> impl Iterator<Item = Method> {
    methods().into_iter().filter(|method| *method != Method::Content)
}

fn write_protect() -> bool {
    methods().contains(&Method::WriteProtect)
}

/// Numbers of the pages from `address` on that `changed` holds.
fn numbers(changed: &Pages, address: u64) -> BTreeSet<u64> {
    (0..PAGES).filter(|number| changed.contains(&(address + number * PAGE))).collect()
}

/// Reads what changed, and tells the tracker, as whoever sends it does.
fn send(tracker: &Tracker, pid: i32, changed: &Pages) {
    for piece in pieces(changed) {
        let mut buffer = vec![0; (piece.end - piece.start) as usize];
        let count = reader::read(pid, piece.start, &mut buffer).unwrap();
        tracker.sent(piece.start, &buffer[..count]);
    }
}

/// What changed, which is then sent.
fn round(tracker: &mut Tracker, pid: i32) -> Pages {
    let changed = tracker.changed().unwrap();
    send(tracker, pid, &changed);
    changed
}
