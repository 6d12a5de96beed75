//! What in a running container CRIU cannot move, found *before* anything is frozen.
//!
//! The list follows what CRIU 4.2 dumps (criu/files.c): regular files, directories, pipes, terminals, sockets, a few memory
//! devices, and the anonymous kernel objects listed below. Anything else would fail the dump under the freeze.

use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::netns::{self, Backlog};
use crate::tasks::{self, Task, TaskError};

/// Anonymous kernel objects that CRIU can dump, as `/proc/PID/fd` names them.
const SUPPORTED: &[&str] = &["[eventpoll]", "[eventfd]", "[signalfd]", "[timerfd]", "inotify", "[fanotify]", "[pidfd]"];

/// Major number of the memory devices, and the minors among them that CRIU can dump: null, zero, full, random, urandom.
const MEMORY_MAJOR: u64 = 1;
const MEMORY_MINORS: &[u64] = &[3, 5, 7, 8, 9];

/// Major numbers of terminals: /dev/tty*, /dev/tty and /dev/console and /dev/ptmx, and Unix98 pseudo-terminals.
const TERMINALS: &[std::ops::RangeInclusive<u64>] = &[4..=5, 136..=143];

/// Protocols of sockets that CRIU does not know (criu/sockets.c and criu/sk-inet.c), by the kernel's `struct proto.name`.
const PROTOCOLS: &[&str] =
    &["AF_VSOCK", "ALG", "CAN_RAW", "CAN_BCM", "DCCP", "KCM", "RDS", "SCTP", "SMC", "TIPC", "XDP"];

/// The kernel's name for a socket's protocol, by which it shows also those that it does not list, such as unconnected ones
/// (`net/socket.c`, `sockfs_xattr_handler`).
const PROTOCOL_NAME: &str = "system.sockprotoname";

/// A connection that is accepted within this time does not stand in the way: it is there at most of all moments, and never for long.
const ACCEPTS_WITHIN: Duration = Duration::from_millis(250);

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
    /// A socket of another protocol that CRIU does not know; its name.
    Socket(String),
    /// A unix listener that does not accept what waits, closed or with data.
    UnixBacklog,
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
/// A task is named once per kind. Takes a few milliseconds, and [`ACCEPTS_WITHIN`] when a listener has a backlog; does not
/// disturb the tasks.
///
/// # Errors
/// When the container is gone. Tasks that end meanwhile are left out.
pub fn obstacles(init_pid: i32) -> Result<Vec<Obstacle>, TaskError> {
    let stuck = stuck_listeners(init_pid);
    let mut found = Vec::new();
    for task in tasks::tasks(init_pid)? {
        let mut kinds: Vec<ObstacleKind> = Vec::new();
        for (descriptor, link) in tasks::descriptors(task.pid) {
            kinds.extend(of_link(&link));
            kinds.extend(of_device(&descriptor, &link));
            if let Some(inode) = tasks::socket_inode(&link) {
                kinds.extend(of_protocol(xattr::get_deref(&descriptor, PROTOCOL_NAME).ok().flatten()));
                kinds.extend(stuck.contains(&inode).then_some(ObstacleKind::UnixBacklog));
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
        ObstacleKind::Socket(protocol) => format!("has a socket of the protocol {protocol}, which CRIU cannot move"),
        ObstacleKind::UnixBacklog => {
            "does not accept connections to its unix socket that wait with data or closed, and CRIU cannot move those"
                .to_owned()
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

/// By the name of a socket's protocol, which ends with a NUL.
fn of_protocol(name: Option<Vec<u8>>) -> Option<ObstacleKind> {
    let name = String::from_utf8(name?).ok()?;
    let name = name.trim_end_matches('\0');
    if name.starts_with("MPTCP") {
        return Some(ObstacleKind::MultipathTcp);
    }
    let plain = name.trim_end_matches("v6").trim_end_matches('6');
    PROTOCOLS.contains(&plain).then(|| ObstacleKind::Socket(name.to_owned()))
}

/// The unix listeners in the container's network namespace that have not accepted for a while what CRIU cannot move. Without the
/// kernel's diagnostics nothing is known of them.
fn stuck_listeners(init_pid: i32) -> Vec<u32> {
    let before = netns::backlogs(init_pid).unwrap_or_default();
    if before.is_empty() {
        return Vec::new();
    }
    sleep(ACCEPTS_WITHIN);
    still_there(&before, &netns::backlogs(init_pid).unwrap_or_default())
}

fn still_there(before: &[Backlog], after: &[Backlog]) -> Vec<u32> {
    let same = |one: &Backlog, other: &Backlog| {
        one.listener == other.listener && one.waiting.iter().any(|inode| other.waiting.contains(inode))
    };
    before.iter().filter(|one| after.iter().any(|other| same(one, other))).map(|one| one.listener).collect()
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
    fn sockets_are_judged_by_their_protocol() {
        let of = |name: &[u8]| of_protocol(Some(name.to_vec()));
        assert_eq!(of(b"MPTCPv6\0"), Some(ObstacleKind::MultipathTcp));
        assert_eq!(of(b"AF_VSOCK\0"), Some(ObstacleKind::Socket("AF_VSOCK".into())));
        assert_eq!(of(b"SCTPv6"), Some(ObstacleKind::Socket("SCTPv6".into())));
        for movable in ["TCP", "TCPv6", "UDPv6", "RAW", "UNIX-STREAM", "NETLINK", "PACKET", ""] {
            assert_eq!(of(movable.as_bytes()), None, "{movable}");
        }
        assert_eq!(of_protocol(None), None);
    }

    #[test]
    fn the_kernel_names_the_protocol_of_a_socket_that_it_does_not_list() {
        use std::os::fd::AsRawFd;
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let descriptor = format!("/proc/self/fd/{}", socket.as_raw_fd());
        assert_eq!(xattr::get_deref(descriptor, PROTOCOL_NAME).unwrap().as_deref(), Some(&b"UDP\0"[..]));
    }

    #[test]
    fn only_a_listener_that_leaves_the_same_connection_waiting_is_stuck() {
        let backlog = |listener, waiting: &[u32]| Backlog { listener, waiting: waiting.to_vec() };
        let before = [backlog(1, &[7]), backlog(2, &[8]), backlog(3, &[0]), backlog(4, &[9])];
        let after = [backlog(1, &[7, 5]), backlog(2, &[6]), backlog(3, &[0])];
        assert_eq!(still_there(&before, &after), [1, 3]);
    }

    #[test]
    fn an_obstacle_reads_as_a_sentence() {
        let task = Task { pid: 5, comm: "db".into() };
        let text = obstacle(&task, ObstacleKind::Device("/dev/fuse".into())).to_string();
        assert_eq!(text, "process 5 (db) uses the device /dev/fuse, whose state cannot be moved");
    }
}
