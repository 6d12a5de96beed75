//! The processes of a container, by the names that they have on both hosts.

use std::fs;
use std::path::PathBuf;

use super::Vpid;
use crate::tasks::{self, TaskError};

/// A process of a container (a thread group) that has memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id on this host.
    pub pid: i32,
    /// Its id in the pid namespace of the container's init.
    pub vpid: Vpid,
}

/// The processes of the container whose init is `init_pid`, in the order of their ids here. Zombies are left out, and so are processes
/// of its cgroup that its init cannot see.
///
/// # Errors
/// When the container is gone.
pub fn processes(init_pid: i32) -> Result<Vec<Process>, TaskError> {
    let path = PathBuf::from(format!("/proc/{init_pid}/status"));
    let init = fs::read_to_string(&path).map_err(|source| TaskError::Read { path, source })?;
    let depth = ids(&init).count();
    let found = tasks::tasks(init_pid)?.into_iter().filter_map(|task| {
        // One that ended meanwhile is left out.
        let status = fs::read_to_string(format!("/proc/{}/status", task.pid)).ok()?;
        Some(Process { pid: task.pid, vpid: vpid(&status, depth)? })
    });
    Ok(found.collect())
}

/// The id that a process has `depth` pid namespaces down from ours, counted from 1; none for a zombie, or where it is not in
/// that many.
fn vpid(status: &str, depth: usize) -> Option<Vpid> {
    let state = status.lines().find_map(|line| line.strip_prefix("State:"))?;
    // Z is a zombie, X is dead (proc(5)).
    let alive = !state.trim_start().starts_with(['Z', 'X']);
    alive.then(|| ids(status).nth(depth.checked_sub(1)?)).flatten()
}

/// `NSpid:  4711  12  1`: the ids in our own namespace, in the next one inside, and so on to the process's own.
fn ids(status: &str) -> impl Iterator<Item = i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    line.split_whitespace().filter_map(|id| id.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_at_the_depth_of_init() {
        let inside = "Name:\ta\nState:\tS (sleeping)\nNSpid:\t4711\t12\n";
        let nested = "Name:\tb\nState:\tR (running)\nNSpid:\t4712\t13\t1\n";
        let outside = "Name:\tc\nState:\tR (running)\nNSpid:\t4713\n";
        assert_eq!(vpid(inside, 2), Some(12));
        assert_eq!(vpid(nested, 2), Some(13));
        assert_eq!(vpid(outside, 2), None);
        assert_eq!(vpid(outside, 1), Some(4713));
    }

    #[test]
    fn a_zombie_has_no_memory() {
        assert_eq!(vpid("State:\tZ (zombie)\nNSpid:\t4711\t12\n", 2), None);
        assert_eq!(vpid("", 1), None);
    }
}
