//! The freezer of a container's cgroup, v2 or v1.
//!
//! We freeze before CRIU does: its own way on cgroup v1 sleeps 100 ms, and a cgroup that is frozen by us keeps the tasks
//! still even if CRIU dies. CRIU seizes the tasks of a frozen cgroup, thaws the cgroup (the tasks stay stopped by
//! ptrace), and freezes it again only when the tasks are resumed: hence after a rollback the caller thaws.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{pidfd, tasks};

/// How often a v1 freezer is asked again; the kernel has no event for it.
const V1_POLL: Duration = Duration::from_millis(1);

/// After how many v1 polls FROZEN is written again: the v1 freezer may stay at FREEZING until asked once more
/// (kernel documentation, cgroup-v1/freezer-subsystem).
const V1_RETRY: u32 = 20;

/// How long a container that was killed is waited for, in milliseconds, before it is killed again.
const DYING: u16 = 100;

/// Docker, Podman and containerd name a container's cgroup with its 64-digit id.
const CONTAINER_ID_DIGITS: usize = 64;

/// A container's freezer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freezer {
    version: CgroupVersion,
    directory: PathBuf,
}

/// Which kind of hierarchy a cgroup is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupVersion {
    /// `freezer.state`.
    V1,
    /// `cgroup.freeze` and `cgroup.events`.
    V2,
}

/// Kills a container that is frozen, by its first process and with it its pid namespace, and thaws what is left: a runtime refuses to
/// delete a container whose cgroup is frozen. Does nothing to one that is not frozen.
pub fn kill_frozen(init_pid: i32) {
    let Ok(freezer) = Freezer::of_pid(init_pid) else { return };
    if !freezer.is_frozen().unwrap_or(false) {
        return;
    }
    // Whoever hears of the end finds a cgroup that is not frozen. Stopped one by one, no thread leaves the kernel in between. Nobody would
    // let go of others that are in the same cgroup.
    if freezer.is_of_one_container() && stop_threads(init_pid) {
        let _ = freezer.thaw();
    }
    // It may have ended by itself meanwhile.
    let _ = kill(Pid::from_raw(init_pid), Signal::SIGKILL);
    // If they could not be stopped: the signal is pending, and no user code runs. On cgroup v1 the tasks die only now.
    let _ = freezer.thaw();
}

/// Sends SIGSTOP to every thread of the container, which is frozen and so has no new ones. False when one may not have got it.
fn stop_threads(init_pid: i32) -> bool {
    let Ok(processes) = tasks::tasks(init_pid) else { return false };
    let mut threads = processes.iter().flat_map(|process| tasks::threads(process.pid).map(|tid| (process.pid, tid)));
    threads.all(|(pid, tid)| stop_thread(pid, tid).is_ok())
}

/// A thread that is gone is none to be stopped.
#[expect(unsafe_code, reason = "neither std nor nix can send a signal to one thread of another process")]
fn stop_thread(pid: i32, tid: i32) -> nix::Result<()> {
    // SAFETY: a system call on numbers.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGSTOP) };
    match Errno::result(sent) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// A container, held by its init and its cgroup rather than by their names: what has the same name later is another one.
#[derive(Debug)]
pub struct Grip {
    init: OwnedFd,
    /// `None` when the cgroup does not bear the container's id: others may be in it.
    cgroup: Option<File>,
}

impl Grip {
    /// The container whose init is `init_pid`.
    ///
    /// # Errors
    /// When that is gone.
    pub fn on(init_pid: i32) -> io::Result<Self> {
        let init = pidfd::open(init_pid)?;
        let own = Freezer::of_pid(init_pid).ok().filter(Freezer::is_of_one_container);
        Ok(Self { init, cgroup: own.and_then(|freezer| File::open(freezer.directory()).ok()) })
    }

    /// Kills every process of the container and returns when all of them are dead: none of them does anything any more.
    pub fn kill(&self) {
        loop {
            // One that is dead already cannot be killed.
            let _ = pidfd::send_signal(&self.init, Signal::SIGKILL);
            let others = self.kill_members();
            let mut init = [PollFd::new(self.init.as_fd(), PollFlags::POLLIN)];
            let dead = poll(&mut init, DYING).is_ok_and(|ready| ready > 0);
            if dead && others == 0 {
                return;
            }
            if dead {
                std::thread::sleep(V1_POLL);
            }
        }
    }

    /// Says how many there were.
    fn kill_members(&self) -> usize {
        let Some(cgroup) = &self.cgroup else { return 0 };
        let directory = PathBuf::from(format!("/proc/self/fd/{}", cgroup.as_raw_fd()));
        // All at once, those that are just being forked too (v2, Linux 5.14).
        let _ = std::fs::write(directory.join("cgroup.kill"), "1");
        let mut members = BTreeSet::new();
        // A cgroup that is gone has none.
        let _ = tasks::collect(&directory, &mut members);
        members.retain(|&pid| !tasks::is_dead(pid));
        for &pid in &members {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        members.len()
    }
}

/// Why a cgroup could not be found, frozen or thawed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file could not be read or written.
    #[error("cannot access {path}: {source}; does the container still run?")]
    Access {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The process is in no cgroup of its own that can be frozen.
    #[error("process {pid} is in no cgroup of its own with a freezer; only containers in cgroups can be frozen")]
    NoFreezer {
        /// The process.
        pid: i32,
    },
    /// The tasks did not all stop in time; they were thawed again.
    #[error(
        "{directory} was not frozen within {timeout:?} (a task may hang in the kernel, see its /proc/PID/stack); thawed again"
    )]
    Timeout {
        /// The cgroup.
        directory: PathBuf,
        /// The time it was given.
        timeout: Duration,
    },
}

impl Freezer {
    /// The freezer of the container whose init is `pid`.
    ///
    /// # Errors
    /// When the process is gone or has no cgroup of its own.
    pub fn of_pid(pid: i32) -> Result<Self, CgroupError> {
        let memberships = read(Path::new(&format!("/proc/{pid}/cgroup")))?;
        let mounts = read(Path::new("/proc/self/mountinfo"))?;
        locate(&memberships, &mounts).ok_or(CgroupError::NoFreezer { pid })
    }

    /// The cgroup's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// v1 or v2.
    pub fn version(&self) -> CgroupVersion {
        self.version
    }

    /// Stops every task of the cgroup and returns when they are stopped (2 to 6 ms); at once when they already are.
    ///
    /// # Errors
    /// [`CgroupError::Timeout`] after `timeout`; the cgroup is then thawed.
    pub fn freeze(&self, timeout: Duration) -> Result<(), CgroupError> {
        let deadline = Instant::now() + timeout;
        let frozen = match self.version {
            CgroupVersion::V1 => self.freeze_v1(deadline)?,
            CgroupVersion::V2 => self.freeze_v2(deadline)?,
        };
        if frozen {
            return Ok(());
        }
        self.thaw()?;
        Err(CgroupError::Timeout { directory: self.directory.clone(), timeout })
    }

    /// Whether the cgroup bears a container's id: then nobody else is in it.
    fn is_of_one_container(&self) -> bool {
        bears_id(&self.directory.file_name().unwrap_or_default().to_string_lossy())
    }

    /// Lets the tasks go on; no error when the cgroup is gone with its tasks, or was not frozen.
    ///
    /// # Errors
    /// When the cgroup is there and cannot be thawed.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        let (name, value) = match self.version {
            CgroupVersion::V1 => ("freezer.state", "THAWED"),
            CgroupVersion::V2 => ("cgroup.freeze", "0"),
        };
        match self.write(name, value) {
            Err(CgroupError::Access { source, .. })
                if source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc::ENODEV) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Are all tasks stopped by the freezer?
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        match self.version {
            CgroupVersion::V1 => Ok(read(&self.directory.join("freezer.state"))?.trim() == "FROZEN"),
            CgroupVersion::V2 => Ok(says_frozen(&read(&self.directory.join("cgroup.events"))?)),
        }
    }

    fn freeze_v2(&self, deadline: Instant) -> Result<bool, CgroupError> {
        let path = self.directory.join("cgroup.events");
        let error = |source| CgroupError::Access { path: path.clone(), source };
        let mut events = File::open(&path).map_err(error)?;
        self.write("cgroup.freeze", "1")?;
        loop {
            let mut text = String::new();
            events.rewind().map_err(error)?;
            events.read_to_string(&mut text).map_err(error)?;
            if says_frozen(&text) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // cgroup.events raises POLLPRI when it changes since it was last read.
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(error(errno.into())),
            }
        }
    }

    fn freeze_v1(&self, deadline: Instant) -> Result<bool, CgroupError> {
        for round in 0.. {
            if round % V1_RETRY == 0 {
                self.write("freezer.state", "FROZEN")?;
            }
            if self.is_frozen()? {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(V1_POLL);
        }
        Ok(false)
    }

    fn write(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.directory.join(name);
        let written = File::options().write(true).open(&path).and_then(|mut file| file.write_all(value.as_bytes()));
        written.map_err(|source| CgroupError::Access { path, source })
    }
}

fn read(path: &Path) -> Result<String, CgroupError> {
    std::fs::read_to_string(path).map_err(|source| CgroupError::Access { path: path.to_owned(), source })
}

fn says_frozen(events: &str) -> bool {
    events.lines().any(|line| line == "frozen 1")
}

/// Finds the freezer in a process's memberships (`/proc/PID/cgroup`) and the mounts (`/proc/self/mountinfo`).
///
/// A v1 freezer that is mounted and where the process is not in the root comes first: on hybrid machines containers are
/// there.
fn locate(memberships: &str, mounts: &str) -> Option<Freezer> {
    let member = |wanted: &str| {
        memberships.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            (controllers.split(',').any(|c| c == wanted) && path != "/").then(|| container_cgroup(path))
        })
    };
    let v1 = || Some((CgroupVersion::V1, mount(mounts, "cgroup", Some("freezer"))?, member("freezer")?));
    let v2 = || Some((CgroupVersion::V2, mount(mounts, "cgroup2", None)?, member("")?));
    let (version, (root, mount_point), path) = v1().or_else(v2)?;
    let below = Path::new(path).strip_prefix(root).unwrap_or_else(|_| Path::new(path.trim_start_matches('/')));
    Some(Freezer { version, directory: Path::new(mount_point).join(below) })
}

/// The root and the mount point of the first mount of `fs_type` whose super-block options contain `controller`.
fn mount<'a>(mounts: &'a str, fs_type: &str, controller: Option<&str>) -> Option<(&'a str, &'a str)> {
    mounts.lines().find_map(|line| {
        let (mount, super_block) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, mount_point) = (mount.next()?, mount.next()?);
        let mut super_block = super_block.split(' ');
        let right_type = super_block.next()? == fs_type;
        let options = super_block.nth(1).unwrap_or_default();
        (right_type && controller.is_none_or(|c| options.split(',').any(|o| o == c))).then_some((root, mount_point))
    })
}

/// The part of a cgroup path that is the container: up to the component that carries the container's id. A container's
/// init may have moved itself into a cgroup below (systemd does).
fn container_cgroup(path: &str) -> &str {
    let mut end = 0;
    for component in path.split_inclusive('/') {
        end += component.len();
        let name = component.trim_end_matches('/');
        if bears_id(name) {
            return path[..end].trim_end_matches('/');
        }
    }
    path
}

/// Is there a container's id in the name of a cgroup?
fn bears_id(name: &str) -> bool {
    name.split(|c: char| !c.is_ascii_hexdigit()).any(|run| run.len() == CONTAINER_ID_DIGITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2_MOUNT: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1_MOUNT: &str = "40 23 0:33 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n";

    #[test]
    fn a_v2_container_is_found_by_its_scope() {
        let id = "a".repeat(64);
        let memberships = format!("0::/system.slice/docker-{id}.scope/init.scope\n");
        let freezer = locate(&memberships, V2_MOUNT).unwrap();
        assert_eq!(freezer.version(), CgroupVersion::V2);
        assert_eq!(freezer.directory(), Path::new(&format!("/sys/fs/cgroup/system.slice/docker-{id}.scope")));
    }

    #[test]
    fn a_v1_freezer_counts_only_when_it_is_mounted() {
        let memberships = "5:freezer:/docker/x\n1:name=systemd:/y\n0::/z\n";
        let both = format!("{V2_MOUNT}{V1_MOUNT}");
        assert_eq!(locate(memberships, &both).unwrap().directory(), Path::new("/sys/fs/cgroup/freezer/docker/x"));
        assert_eq!(locate(memberships, V2_MOUNT).unwrap().directory(), Path::new("/sys/fs/cgroup/z"));
    }

    #[test]
    fn only_in_a_cgroup_of_its_own_a_container_is_alone() {
        let freezer =
            |name: &str| Freezer { version: CgroupVersion::V2, directory: Path::new("/sys/fs/cgroup").join(name) };
        assert!(freezer(&format!("system.slice/docker-{}.scope", "a".repeat(64))).is_of_one_container());
        assert!(!freezer(&format!("docker-{}.scope/below", "a".repeat(64))).is_of_one_container());
        assert!(!freezer("user.slice").is_of_one_container());
    }

    #[test]
    fn a_process_in_the_root_cgroup_has_no_freezer() {
        assert_eq!(locate("5:freezer:/\n0::/\n", &format!("{V2_MOUNT}{V1_MOUNT}")), None);
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_is_taken_off_the_path() {
        let mounts = "30 23 0:26 /host /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(locate("0::/host/c\n", mounts).unwrap().directory(), Path::new("/sys/fs/cgroup/c"));
    }

    #[test]
    fn a_container_in_somebody_elses_cgroup_is_killed_alone() {
        let mut container = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let grip = Grip::on(container.id().cast_signed()).unwrap();
        if grip.cgroup.is_none() {
            grip.kill();
        } else {
            // The tests are in a container.
            container.kill().unwrap();
        }
        container.wait().unwrap();
        assert!(Grip::on(1 << 23).is_err());
    }

    #[test]
    fn a_thread_is_stopped_for_itself_and_one_that_is_gone_is_no_failure() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id().cast_signed();
        stop_thread(pid, pid).unwrap();
        let stopped = nix::sys::wait::waitpid(Pid::from_raw(pid), Some(nix::sys::wait::WaitPidFlag::WUNTRACED));
        assert!(matches!(stopped, Ok(nix::sys::wait::WaitStatus::Stopped(_, Signal::SIGSTOP))));
        child.kill().unwrap();
        child.wait().unwrap();
        stop_thread(1 << 23, 1 << 23).unwrap();
    }

    #[test]
    fn frozen_is_what_cgroup_events_says() {
        assert!(says_frozen("populated 1\nfrozen 1\n"));
        assert!(!says_frozen("populated 1\nfrozen 0\n"));
    }
}
