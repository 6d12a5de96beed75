//! The tasks of a container and their memory.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cgroup::{CgroupError, Freezer};

/// A process of a container (a thread group).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Process id, as this host sees it.
    pub pid: i32,
    /// The kernel's short name of it (at most 15 bytes).
    pub comm: String,
}

/// Why a container's tasks could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// Its cgroup cannot be found.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A file of its cgroup or of a task cannot be read.
    #[error("cannot read {path}: {source}; does the container still run?")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// All processes of the container whose init is `init_pid`, in the order of their ids; those of its cgroup and of the cgroups
/// below it.
///
/// # Errors
/// When the container is gone. Tasks that end meanwhile are left out.
pub fn tasks(init_pid: i32) -> Result<Vec<Task>, TaskError> {
    let freezer = Freezer::of_pid(init_pid)?;
    let mut pids = BTreeSet::from([init_pid]);
    collect(freezer.directory(), &mut pids).map_err(|(path, source)| TaskError::Read { path, source })?;
    Ok(pids.into_iter().filter_map(task).collect())
}

/// The memory, in bytes, that the tasks of the container whose init is `init_pid` need once they have moved: what is theirs alone, and of
/// what they share each its part. But private memory that a child still shares with its parent counts for each of them, because each
/// gets its own. Reads each task's page tables: about 10 ms per GiB.
///
/// # Errors
/// When the container is gone.
pub fn memory(init_pid: i32) -> Result<u64, TaskError> {
    let mut sum = 0;
    for task in tasks(init_pid)? {
        let path = PathBuf::from(format!("/proc/{}/smaps_rollup", task.pid));
        match fs::read_to_string(&path) {
            Ok(text) => sum += moved_bytes(&text),
            Err(error) if ended(&error) => {}
            Err(source) => return Err(TaskError::Read { path, source }),
        }
    }
    Ok(sum)
}

/// Ticks of the kernel's clock in a second, as `/proc` counts them: USER_HZ, which is 100 on all that this runs on (time(7)).
const TICKS: f64 = 100.0;

/// The processor time that the container whose init is `init_pid` uses, in thousandths of a processor: on average since it began, or came.
///
/// # Errors
/// When the container is gone, or its cgroup does not count.
pub fn cpu_milli(init_pid: i32) -> Result<u64, TaskError> {
    let read = |path: PathBuf| match fs::read_to_string(&path) {
        Ok(text) => Ok(text),
        Err(source) => Err(TaskError::Read { path, source }),
    };
    let used = read(Freezer::of_pid(init_pid)?.directory().join("cpu.stat"))?;
    let (stat, uptime) = (read(format!("/proc/{init_pid}/stat").into())?, read("/proc/uptime".into())?);
    Ok(average_milli(&used, &stat, &uptime))
}

/// From cpu.stat (kernel documentation, cgroup-v2), proc_pid_stat(5) and proc_uptime(5); 0 where one of them does not say it.
fn average_milli(used: &str, stat: &str, uptime: &str) -> u64 {
    let used = used.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse::<f64>().ok());
    // The name, in brackets, may have anything in it; the start is the 22nd field, and the 20th after it.
    let began = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse::<f64>().ok());
    let now = uptime.split_whitespace().next().and_then(|seconds| seconds.parse::<f64>().ok());
    let (Some(used), Some(began), Some(now)) = (used, began, now) else { return 0 };
    // Of a container that began within this tick nothing is known yet. The cast takes a whole number that is not negative.
    let seconds = (now - began / TICKS).max(1.0 / TICKS);
    (used / 1_000.0 / seconds).round() as u64
}

/// Of one task, by its smaps_rollup (kernel documentation, filesystems/proc).
fn moved_bytes(rollup: &str) -> u64 {
    let private = field(rollup, "Anonymous:") + field(rollup, "Swap:");
    (field(rollup, "Pss:") + private).saturating_sub(field(rollup, "Pss_Anon:"))
}

/// Inodes of every socket that a task of the container has open; empty when the container is gone.
pub(crate) fn socket_inodes(init_pid: i32) -> HashSet<u32> {
    let mut inodes = HashSet::new();
    for task in tasks(init_pid).unwrap_or_default() {
        for (_, link) in descriptors(task.pid) {
            inodes.extend(socket_inode(&link));
        }
    }
    inodes
}

/// The inode in a link `socket:[123]`.
pub(crate) fn socket_inode(link: &Path) -> Option<u32> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The open descriptors of a process: the path in /proc and where it points; empty when the process is gone.
pub(crate) fn descriptors(pid: i32) -> Vec<(PathBuf, PathBuf)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    entries.flatten().filter_map(|entry| Some((entry.path(), fs::read_link(entry.path()).ok()?))).collect()
}

fn task(pid: i32) -> Option<Task> {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(Task { pid, comm: comm.trim_end().to_owned() })
}

/// The processes of the cgroup in `directory` and of those below it.
pub(crate) fn collect(directory: &Path, pids: &mut BTreeSet<i32>) -> Result<(), (PathBuf, io::Error)> {
    let path = directory.join("cgroup.procs");
    match fs::read_to_string(&path) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        // A threaded cgroup (v2) has no processes of its own: they are in the one above.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(source) => return Err((path, source)),
    }
    let entries = fs::read_dir(directory).map_err(|source| (directory.to_owned(), source))?;
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            // One that is removed meanwhile holds no task.
            let _ = collect(&entry.path(), pids);
        }
    }
    Ok(())
}

/// A line `Rss:     1234 kB` as bytes; 0 when missing.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}

fn ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Whether a process is gone, or waits as a zombie for somebody to notice.
pub(crate) fn is_dead(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in brackets and may hold some itself (proc(5)).
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// Whether a process has begun to end and is not dead yet. Where it stays like that, somebody who traces its threads does not let go of
/// them, or it is the init of a pid namespace whose other processes do.
pub(crate) fn is_dying(pid: i32) -> bool {
    /// `PF_EXITING` in the field `flags` (proc_pid_stat(5), include/linux/sched.h).
    const EXITING: u64 = 0x4;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let mut fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    let dead = fields.next().is_none_or(|state| matches!(state, "" | "Z" | "X"));
    // Between the state and it are the parent, group, session, terminal, and its group.
    let flags = fields.nth(5).and_then(|flags| flags.parse::<u64>().ok());
    !dead && flags.is_some_and(|flags| flags & EXITING != 0)
}

/// When a process started, in clock ticks since the boot (proc_pid_stat(5), field 22): with it a process id means one process. `None` for
/// one that is dead.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    if is_dead(pid) {
        return None;
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The state follows the name, which is in brackets and may hold some itself.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// The threads of a process; empty when it is gone.
pub(crate) fn threads(pid: i32) -> impl Iterator<Item = i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The children of all threads of a process.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    threads(pid).flat_map(|tid| children_of_thread(pid, tid)).collect()
}

/// Those that one thread has made or inherited (proc_pid_task(5), needs CONFIG_PROC_CHILDREN, as CRIU does).
pub(crate) fn children_of_thread(pid: i32, tid: i32) -> Vec<i32> {
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{tid}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_an_average_since_the_beginning() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 100000 0 0";
        let used = "usage_usec 2500000\nuser_usec 2000000\n";
        assert_eq!(average_milli(used, stat, "1010.00 5.0\n"), 250);
        assert_eq!(average_milli(used, stat, "999.00 5.0\n"), 250_000);
        assert_eq!(average_milli("", stat, "1010.00 5.0\n"), 0);
        assert_eq!(average_milli(used, "", "1010.00 5.0\n"), 0);
    }

    #[test]
    fn tasks_are_those_of_the_cgroup_and_below() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("below")).unwrap();
        fs::write(scratch.path().join("cgroup.procs"), "12\n3\n").unwrap();
        fs::write(scratch.path().join("below/cgroup.procs"), "7\n").unwrap();
        let mut pids = BTreeSet::new();
        collect(scratch.path(), &mut pids).unwrap();
        assert_eq!(pids, BTreeSet::from([3, 7, 12]));
        assert!(collect(&scratch.path().join("gone"), &mut pids).is_err());
    }

    #[test]
    fn what_a_child_shares_with_its_parent_counts_for_both() {
        // Both have the same 2 MiB, and 1 MiB of files.
        let text = "00400000-7fff [rollup]\nRss:    4096 kB\nPss:    1536 kB\nPss_Anon:    1024 kB\nPss_File:    512 kB\n\
                    Anonymous:    2048 kB\nSwap:    8 kB\n";
        assert_eq!(moved_bytes(text), (2048 + 512 + 8) << 10);
        assert_eq!(moved_bytes(""), 0);
    }

    #[test]
    fn a_sockets_inode_is_read_from_its_link() {
        assert_eq!(socket_inode(Path::new("socket:[4711]")), Some(4711));
        assert_eq!(socket_inode(Path::new("pipe:[4711]")), None);
    }

    #[test]
    fn a_process_is_known_by_when_it_started() {
        let own = start_time(std::process::id().cast_signed());
        assert!(own.is_some_and(|ticks| ticks > 0));
        assert_eq!(start_time(1 << 23), None);
    }

    #[test]
    fn a_zombie_is_as_dead_as_one_that_is_gone() {
        assert!(!is_dead(std::process::id().cast_signed()));
        // No process has an id above the kernel's limit (2^22).
        assert!(is_dead(1 << 23));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id().cast_signed();
        nix::sys::wait::waitid(
            nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(pid)),
            nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT,
        )
        .unwrap();
        assert!(is_dead(pid));
        child.wait().unwrap();
        assert!(!is_dying(pid), "that is over");
    }
}
