//! The names of a container's processes in their own pid namespace.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::Vpid;
use crate::tasks::{self, TaskError};

/// The processes of the container whose init is `init_pid`: by the id that they have in the container, and will have at the target, the
/// id that they have here. CRIU's images of a process are named by the former.
///
/// # Errors
/// When the container is gone. Processes that end meanwhile are left out.
pub fn vpids(init_pid: i32) -> Result<BTreeMap<Vpid, i32>, TaskError> {
    let ids = |pid: i32| {
        let path = PathBuf::from(format!("/proc/{pid}/status"));
        fs::read_to_string(&path)
            .map(|status| in_namespaces(&status))
            .map_err(|source| TaskError::Read { path, source })
    };
    // Ours comes first, and that of the container's namespace where its init has its last one.
    let depth = ids(init_pid)?.len();
    let named = tasks::tasks(init_pid)?.into_iter().filter_map(|task| {
        let vpid = *ids(task.pid).ok()?.get(depth.checked_sub(1)?)?;
        Some((vpid, task.pid))
    });
    Ok(named.collect())
}

/// The line `NSpid` of a `/proc/PID/status`: the id in our namespace, and in each below it that the process is in (proc(5)).
fn in_namespaces(status: &str) -> Vec<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.map(|ids| ids.split_whitespace().filter_map(|id| id.parse().ok()).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_are_read_from_the_outermost_namespace_to_the_innermost() {
        assert_eq!(in_namespaces("Name:\tx\nNStgid:\t9\t8\t7\nNSpid:\t4711\t12\t1\n"), [4711, 12, 1]);
        assert!(in_namespaces("Name:\tx\n").is_empty());
        let own = std::process::id().cast_signed();
        assert_eq!(in_namespaces(&fs::read_to_string("/proc/self/status").unwrap()).first(), Some(&own));
    }
}
