//! A host looked into from outside: its processes by cgroup, its files through process 1. Asks neither daemon nor engine.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::error::{Result, system};
use crate::testbed::Testbed;

/// The program that the container runs.
const SERVER: &str = "/usr/bin/redis-server";

/// One host.
#[derive(Debug, Clone)]
pub struct Inside {
    /// Its name.
    pub host: String,
    /// The cgroup that it sees as the root.
    cgroup: PathBuf,
    /// Its process 1; another one after a new boot.
    pid: i32,
}

/// A process of a host, as the carrying machine numbers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Path of its program; empty for one that is about to be gone.
    pub program: String,
    /// Its arguments, the program's name included.
    pub arguments: Vec<String>,
    /// Whether it belongs to a container.
    pub in_container: bool,
}

impl Process {
    /// The program's name without directories.
    #[must_use]
    pub fn name(&self) -> &str {
        self.program.rsplit('/').next().unwrap_or_default()
    }

    /// The number of its parent; none for one that is gone already.
    #[must_use]
    pub fn parent(&self) -> Option<i32> {
        fields(&fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?).nth(1)?.parse().ok()
    }

    /// Ends it at once; one that is gone already is no error.
    pub fn kill(&self) {
        signal(self.pid, Signal::SIGKILL);
    }
}

/// Sends a signal; one that is gone already is no error.
pub fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

impl Inside {
    /// The host as it runs now.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchHost`], [`crate::Error::NoCgroup2`].
    pub fn of(bed: &Testbed, host: &str) -> Result<Self> {
        let pid = bed.state().host(host)?.pid;
        let cgroup = Cgroup::at(&bed.layout().machine_root_cgroup(host))?.path().to_owned();
        Ok(Self { host: host.to_owned(), cgroup, pid })
    }

    /// Where a file of the host is found from outside. Links in it that are absolute would lead astray; none of ours has any.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.pid))
    }

    /// The host's network namespace.
    #[must_use]
    pub fn network(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid))
    }

    /// Its mounts, one a line.
    #[must_use]
    pub fn mounts(&self) -> String {
        fs::read_to_string(format!("/proc/{}/mounts", self.pid)).unwrap_or_default()
    }

    /// Directories of containers' cgroups, of every engine's scope.
    #[must_use]
    pub fn containers(&self) -> Vec<PathBuf> {
        let slice = self.cgroup.join("system.slice");
        let entries = fs::read_dir(slice).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        entries.filter(|path| is_container(path)).collect()
    }

    /// All processes of the host.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        let mut found = Vec::new();
        collect(&self.cgroup, false, &mut found);
        found
    }

    /// The processes with a program of this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Vec<Process> {
        self.processes().into_iter().filter(|process| process.name() == name).collect()
    }

    /// The processes with this first argument.
    #[must_use]
    pub fn with_argument(&self, word: &str) -> Vec<Process> {
        let has = |process: &Process| process.arguments.get(1).is_some_and(|first| first == word);
        self.processes().into_iter().filter(has).collect()
    }

    /// spothop's daemon.
    #[must_use]
    pub fn daemon(&self) -> Option<Process> {
        self.named("spothop").into_iter().find(|process| process.arguments.iter().skip(1).any(|word| word == "daemon"))
    }

    /// The server processes that run their own code at this moment.
    #[must_use]
    pub fn running(&self) -> Vec<Running> {
        self.containers().iter().flat_map(|cgroup| running(cgroup)).collect()
    }

    /// The number outside of a process that knows itself by `inner`: NSpid in proc_pid_status(5) has the number in every namespace
    /// from ours down.
    #[must_use]
    pub fn outer(&self, inner: i32) -> Option<i32> {
        let mut processes = self.processes().into_iter().map(|process| process.pid);
        processes.find(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            numbers.is_some_and(|numbers| numbers.split_whitespace().last() == Some(inner.to_string().as_str()))
                || numbers.is_some_and(|numbers| numbers.split_whitespace().nth(1) == Some(inner.to_string().as_str()))
        })
    }
}

/// A server process that runs: its number and when it was started, which together are never given twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Running {
    /// As the carrying machine numbers it.
    pub pid: i32,
    /// Clock ticks from the machine's boot.
    pub started: u64,
}

/// Whether `path` is the cgroup of a container: systemd's scope that runc asks for.
fn is_container(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("docker-") && name.ends_with(".scope")
}

fn collect(cgroup: &Path, in_container: bool, found: &mut Vec<Process>) {
    let in_container = in_container || is_container(cgroup);
    for pid in members(cgroup) {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments = arguments.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        found.push(Process {
            pid,
            program: program.to_string_lossy().into_owned(),
            arguments: arguments.filter(|word| !word.is_empty()).collect(),
            in_container,
        });
    }
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), in_container, found);
        }
    }
}

/// A cgroup that goes away in between has no members.
fn members(cgroup: &Path) -> Vec<i32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Whether a cgroup says that all of it stands still (`frozen 1` in cgroup.events, cgroup-v2.rst), or is told to.
#[must_use]
pub fn frozen(cgroup: &Path) -> bool {
    let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "frozen 1")
}

fn running(cgroup: &Path) -> Vec<Running> {
    if frozen(cgroup) {
        return Vec::new();
    }
    members(cgroup).into_iter().filter_map(in_its_own_code).collect()
}

/// The process, if it is the server and CRIU does not have it in hand.
///
/// While CRIU dumps, tasks are traced, but for the one that runs its parasite. While it restores, the process is CRIU's own
/// program first; from then until the very end its restorer is mapped, writable and executable, which nothing of the server's
/// own is. A process that is dying (no memory map, or a SIGKILL pending) will run nothing any more.
fn in_its_own_code(pid: i32) -> Option<Running> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let program = fs::read_link(process.join("exe")).ok()?;
    if program != Path::new(SERVER) {
        return None;
    }
    let started = start_time(&fs::read_to_string(process.join("stat")).ok()?)?;
    for thread in fs::read_dir(process.join("task")).ok()?.flatten() {
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        // T: stopped, t: traced, Z and X: dead (proc_pid_stat(5)).
        if matches!(fields(&stat).next()?.as_bytes(), [b'T' | b't' | b'Z' | b'X', ..]) {
            return None;
        }
    }
    let status = fs::read_to_string(process.join("status")).ok()?;
    if killed(&status) {
        return None;
    }
    let maps = fs::read_to_string(process.join("maps")).ok()?;
    let mut rights = maps.lines().filter_map(|line| line.split(' ').nth(1)).peekable();
    rights.peek()?;
    rights.all(|rights| !rights.starts_with("rwx")).then_some(Running { pid, started })
}

/// The fields after the name, which may contain anything: state, parent… (proc_pid_stat(5)).
fn fields(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ')
}

/// Field 22 of proc_pid_stat(5).
fn start_time(stat: &str) -> Option<u64> {
    fields(stat).nth(19)?.parse().ok()
}

/// Whether SIGKILL is pending for the process or its first thread: bit 8 of the masks in proc_pid_status(5).
fn killed(status: &str) -> bool {
    let masks = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
    masks.filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok()).any(|mask| mask & (1 << 8) != 0)
}

/// Waits for nothing: whether a process stands still by SIGSTOP.
#[must_use]
pub fn stopped(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| fields(&stat).next() == Some("T"))
}

/// The number of a namespace's file.
///
/// # Errors
/// [`crate::Error::System`] when it is gone.
pub fn inode(path: &Path) -> Result<u64> {
    system("look at a namespace", nix::sys::stat::stat(path)).map(|stat| stat.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_words_about_a_process_are_understood() {
        let stat = "7 (a) b) T 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1 1";
        assert_eq!(fields(stat).next(), Some("T"));
        assert_eq!(start_time(stat), Some(4711));
        assert!(killed("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n"));
        assert!(!killed("SigPnd:\t0000000000000200\nShdPnd:\t0000000000000000\n"));
    }

    #[test]
    fn this_process_is_no_server() {
        assert_eq!(in_its_own_code(std::process::id().cast_signed()), None);
        assert!(!stopped(std::process::id().cast_signed()));
    }

    #[test]
    fn only_scopes_of_the_engine_are_containers() {
        assert!(is_container(Path::new("/x/system.slice/docker-1f.scope")));
        assert!(!is_container(Path::new("/x/system.slice/docker.service")));
    }
}
