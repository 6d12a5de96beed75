//! What in a running container CRIU cannot move, found *before* anything is frozen.
//!
//! The list follows what CRIU 4.2 dumps (criu/files.c): regular files, directories, pipes, terminals, sockets, a few memory
//! devices, and the anonymous kernel objects listed below. Anything else would fail the dump under the freeze.

use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::netns;
use crate::tasks::{self, Task, TaskError};

/// Anonymous kernel objects that CRIU can dump, as `/proc/PID/fd` names them.
const SUPPORTED: &[&str] = &["[eventpoll]", "[eventfd]", "[signalfd]", "[timerfd]", "inotify", "[fanotify]", "[pidfd]"];

/// Major number of the memory devices, and the minors among them that CRIU can dump: null, zero, full, random, urandom.
const MEMORY_MAJOR: u64 = 1;
const MEMORY_MINORS: &[u64] = &[3, 5, 7, 8, 9];

/// Major numbers of terminals: /dev/tty*, /dev/tty and /dev/console and /dev/ptmx, and Unix98 pseudo-terminals.
const TERMINALS: &[std::ops::RangeInclusive<u64>] = &[4..=5, 136..=143];

/// Something in a task that cannot be moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obstacle {
    /// The task's process id, as this host sees it.
    pub pid: i32,
    /// The task's short name.
    pub comm: String,
    /// What it is.
    pub kind: ObstacleKind,
    /// The same in words, with what to do about it.
    pub reason: String,
}

/// Kinds of [`Obstacle`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObstacleKind {
    /// An io_uring.
    IoUring,
    /// A userfaultfd of the task's own.
    Userfaultfd,
    /// A perf event.
    PerfEvent,
    /// A BPF map, program or link.
    Bpf,
    /// A device file that has state in a driver; its path in the container.
    Device(String),
    /// Another kernel object without CRIU support; its name in /proc.
    KernelObject(String),
    /// A socket of multipath TCP.
    MultipathTcp,
    /// A tracer (debugger, strace) is attached.
    Traced,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}) {}", self.pid, self.comm, self.reason)
    }
}

/// Everything in the container whose init is `init_pid` that CRIU cannot move; empty when nothing is known.
///
/// A task is named once per kind. Takes a few milliseconds; does not disturb the tasks.
///
/// # Errors
/// When the container is gone. Tasks that end meanwhile are left out.
pub fn obstacles(init_pid: i32) -> Result<Vec<Obstacle>, TaskError> {
    let multipath = multipath_inodes(init_pid);
    let mut found = Vec::new();
    for task in tasks::tasks(init_pid)? {
        let mut kinds: Vec<ObstacleKind> = Vec::new();
        for (descriptor, link) in tasks::descriptors(task.pid) {
            kinds.extend(of_link(&link));
            kinds.extend(of_device(&descriptor, &link));
            if tasks::socket_inode(&link).is_some_and(|inode| multipath.contains(&inode)) {
                kinds.push(ObstacleKind::MultipathTcp);
            }
        }
        kinds.extend(of_maps(&fs::read_to_string(format!("/proc/{}/maps", task.pid)).unwrap_or_default()));
        kinds.extend(of_status(&fs::read_to_string(format!("/proc/{}/status", task.pid)).unwrap_or_default()));
        for kind in kinds {
            if !found.iter().any(|o: &Obstacle| o.pid == task.pid && o.kind == kind) {
                found.push(obstacle(&task, kind));
            }
        }
    }
    Ok(found)
}

fn obstacle(task: &Task, kind: ObstacleKind) -> Obstacle {
    let reason = match &kind {
        ObstacleKind::IoUring => "uses io_uring, which CRIU cannot move; turn it off in the application".to_owned(),
        ObstacleKind::Userfaultfd => "uses userfaultfd, which CRIU cannot move".to_owned(),
        ObstacleKind::PerfEvent => "has a perf event open, which CRIU cannot move; stop the profiler".to_owned(),
        ObstacleKind::Bpf => "has a BPF object open, which CRIU cannot move".to_owned(),
        ObstacleKind::Device(path) => format!("uses the device {path}, whose state cannot be moved"),
        ObstacleKind::KernelObject(name) => format!("has a kernel object open that CRIU cannot move ({name})"),
        ObstacleKind::MultipathTcp => {
            "uses multipath TCP, which CRIU cannot move; Go programs: set GODEBUG=multipathtcp=0".to_owned()
        }
        ObstacleKind::Traced => "is being traced; detach the debugger".to_owned(),
    };
    Obstacle { pid: task.pid, comm: task.comm.clone(), kind, reason }
}

/// By the name that /proc gives an anonymous object: `anon_inode:[io_uring]`, `anon_inode:bpf-map`, `anon_inode:inotify`.
fn of_link(link: &Path) -> Option<ObstacleKind> {
    let name = link.to_str()?.strip_prefix("anon_inode:")?;
    match name {
        "[io_uring]" => Some(ObstacleKind::IoUring),
        "[userfaultfd]" => Some(ObstacleKind::Userfaultfd),
        "[perf_event]" => Some(ObstacleKind::PerfEvent),
        _ if name.starts_with("bpf") || name.starts_with("[bpf") => Some(ObstacleKind::Bpf),
        _ if SUPPORTED.contains(&name) => None,
        _ => Some(ObstacleKind::KernelObject(name.to_owned())),
    }
}

fn of_device(descriptor: &Path, link: &Path) -> Option<ObstacleKind> {
    if !link.starts_with("/dev") && !link.is_absolute() {
        return None;
    }
    let metadata = fs::metadata(descriptor).ok()?;
    let kind = metadata.file_type();
    let device = kind.is_block_device() || (kind.is_char_device() && !movable(metadata.rdev()));
    device.then(|| ObstacleKind::Device(link.to_string_lossy().into_owned()))
}

fn movable(device: u64) -> bool {
    let (major, minor) = (libc::major(device).into(), libc::minor(device).into());
    (major == MEMORY_MAJOR && MEMORY_MINORS.contains(&minor)) || TERMINALS.iter().any(|range| range.contains(&major))
}

/// Objects that live on as mappings after their descriptor was closed.
fn of_maps(maps: &str) -> Option<ObstacleKind> {
    maps.contains("anon_inode:[io_uring]").then_some(ObstacleKind::IoUring)
}

fn of_status(status: &str) -> Option<ObstacleKind> {
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    (tracer.trim() != "0").then_some(ObstacleKind::Traced)
}

fn multipath_inodes(init_pid: i32) -> Vec<u32> {
    // A kernel without multipath TCP has none, and says so by an error.
    let sockets = netns::sockets(init_pid, netns::IPPROTO_MPTCP).unwrap_or_default();
    sockets.iter().map(|socket| socket.inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_objects_are_judged_by_their_name() {
        for (name, kind) in [
            ("anon_inode:[io_uring]", Some(ObstacleKind::IoUring)),
            ("anon_inode:[userfaultfd]", Some(ObstacleKind::Userfaultfd)),
            ("anon_inode:[perf_event]", Some(ObstacleKind::PerfEvent)),
            ("anon_inode:bpf-prog", Some(ObstacleKind::Bpf)),
            ("anon_inode:kvm-vm", Some(ObstacleKind::KernelObject("kvm-vm".into()))),
            ("anon_inode:[eventpoll]", None),
            ("anon_inode:inotify", None),
            ("socket:[7]", None),
            ("/data/file", None),
        ] {
            assert_eq!(of_link(Path::new(name)), kind, "{name}");
        }
    }

    #[test]
    fn devices_are_movable_when_they_have_no_state() {
        for (major, minor, expected) in
            [(1, 3, true), (1, 9, true), (1, 1, false), (5, 2, true), (136, 0, true), (10, 229, false)]
        {
            assert_eq!(movable(libc::makedev(major, minor)), expected, "{major}:{minor}");
        }
        assert_eq!(of_device(Path::new("/dev/null"), Path::new("/dev/null")), None);
    }

    #[test]
    fn a_closed_ring_is_still_seen_in_the_mappings_and_a_tracer_in_the_status() {
        assert_eq!(of_maps("7f00-7f01 rw-s 0 00:0f 1 anon_inode:[io_uring]\n"), Some(ObstacleKind::IoUring));
        assert_eq!(of_status("Name:\tx\nTracerPid:\t0\n"), None);
        assert_eq!(of_status("Name:\tx\nTracerPid:\t99\n"), Some(ObstacleKind::Traced));
    }

    #[test]
    fn an_obstacle_reads_as_a_sentence() {
        let task = Task { pid: 5, comm: "db".into() };
        let text = obstacle(&task, ObstacleKind::Device("/dev/fuse".into())).to_string();
        assert_eq!(text, "process 5 (db) uses the device /dev/fuse, whose state cannot be moved");
    }
}
