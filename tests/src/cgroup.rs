//! The cgroup under which everything of a testbed runs: the one thing that always knows all its processes.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Context, Error, Result, system};

/// How long dead processes are waited for.
const REAPING_LIMIT: Duration = Duration::from_secs(5);

/// A cgroup of the unified (v2) hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The cgroup at `relative` below the root of the unified hierarchy, wherever that is mounted; it need not exist.
    ///
    /// # Errors
    /// [`Error::NoCgroup2`] when it is mounted nowhere.
    pub fn at(relative: &Path) -> Result<Self> {
        let mountinfo = Path::new("/proc/self/mountinfo");
        let mounts = fs::read_to_string(mountinfo).on("read", mountinfo)?;
        let root = unified_root(&mounts).ok_or(Error::NoCgroup2)?;
        Ok(Self { path: root.join(relative) })
    }

    /// A cgroup below this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self { path: self.path.join(name) }
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is there.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Makes it, and moves the calling process into it.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel refuses.
    pub fn join(&self) -> Result<()> {
        fs::create_dir_all(&self.path).on("make the cgroup", &self.path)?;
        let procs = self.path.join("cgroup.procs");
        fs::write(&procs, "0").on("join the cgroup through", &procs)
    }

    /// Kills every process in it and below, waits until the last is gone, and removes it. Nothing to do when it is not there.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel refuses, or when a directory below cannot be removed.
    pub fn destroy(&self) -> Result<()> {
        if !self.exists() {
            return Ok(());
        }
        let mut processes = Vec::new();
        list_processes(&self.path, &mut processes)?;
        let kill = self.path.join("cgroup.kill");
        fs::write(&kill, "1").on("kill all processes through", &kill)?;
        self.wait_until_empty()?;
        remove_tree(&self.path)?;
        wait_until_reaped(&processes);
        Ok(())
    }

    /// Returns when no process is left in it and below. The kernel reports changes of `cgroup.events` as POLLPRI
    /// (cgroup-v2.rst, "[Un]populated Notification").
    fn wait_until_empty(&self) -> Result<()> {
        let path = self.path.join("cgroup.events");
        loop {
            let events = fs::File::open(&path).on("open", &path)?;
            let text = std::io::read_to_string(&events).on("read", &path)?;
            if text.lines().any(|line| line == "populated 0") {
                return Ok(());
            }
            let mut watched = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            // A second at most: the change may have come between open and poll.
            system("wait for a cgroup to become empty", poll(&mut watched, PollTimeout::from(1000u16)))?;
        }
    }
}

/// Adds the processes of a cgroup and of all below it to `found`.
fn list_processes(path: &Path, found: &mut Vec<u32>) -> Result<()> {
    let procs = path.join("cgroup.procs");
    let text = fs::read_to_string(&procs).on("read", &procs)?;
    found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(path).on("list", path)? {
        let entry = entry.on("list", path)?;
        if entry.file_type().on("look at", &entry.path())?.is_dir() {
            list_processes(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// Waits until killed processes are not even zombies any more. They have become children of the machine's process 1, which may reap
/// at its leisure; nothing tells others when it does, and after [`REAPING_LIMIT`] it is its own affair.
fn wait_until_reaped(processes: &[u32]) {
    let end = Instant::now() + REAPING_LIMIT;
    while Instant::now() < end && processes.iter().any(|pid| Path::new("/proc").join(pid.to_string()).exists()) {
        thread::sleep(Duration::from_millis(20));
    }
}

/// Removes the directories from the leaves up; the files in them are the kernel's and go with them.
fn remove_tree(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).on("list", path)? {
        let entry = entry.on("list", path)?;
        if entry.file_type().on("look at", &entry.path())?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path).on("remove the cgroup", path)
}

/// Mount point of the first cgroup2 file system in a `mountinfo` (proc_pid_mountinfo(5): mount point is field 5, the type
/// follows the lone `-`).
fn unified_root(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (fields, rest) = line.split_once(" - ")?;
        let kind = rest.split(' ').next()?;
        let mount_point = fields.split(' ').nth(4)?;
        (kind == "cgroup2").then(|| PathBuf::from(mount_point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_on_hybrid_and_pure_machines() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      31 24 0:27 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(unified_root(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let pure = "31 24 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(unified_root(pure), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(unified_root("1 0 0:1 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
