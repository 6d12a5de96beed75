//! Pager and guard as processes of `spothop-oci`, and what becomes of tasks when they die.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prost::Message;
use spothop_criu::TcpMode;
use spothop_criu::handoff::{Directory, Network, RestoreRequest};
use tempfile::TempDir;

use crate::task::{BASE, END_MARK, Scenario, WRONG};
use crate::{PAGES, Task, possible, store};

const PROGRAM: &str = env!("CARGO_BIN_EXE_spothop-oci");

/// pagemap_head of CRIU (images/pagemap.proto).
#[derive(Message)]
struct Head {
    #[prost(uint32, required, tag = "1")]
    pages_id: u32,
}

/// pagemap_entry.
#[derive(Message)]
struct Entry {
    #[prost(uint64, required, tag = "1")]
    vaddr: u64,
    #[prost(uint32, required, tag = "2")]
    compat_nr_pages: u32,
    #[prost(uint32, optional, tag = "4")]
    flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    nr_pages: Option<u64>,
}

const PE_LAZY: u32 = 2;
const PE_PRESENT: u32 = 4;

/// The directory of a restore of one task with [`PAGES`], and its guard.
struct Restore {
    directory: Directory,
    guard: Child,
    said: String,
    _scratch: TempDir,
}

impl Restore {
    fn begin(flags: u32) -> Self {
        let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
        let directory = Directory::at(scratch.path().join("migration"));
        let memory = directory.images().join("memory");
        fs::create_dir_all(&memory).unwrap();
        fs::create_dir(directory.work()).unwrap();
        store(&memory, &[(1, PAGES)]);
        let mut pagemap: Vec<u8> =
            [0x5456_4319_u32, 0x5608_4025].iter().flat_map(|magic| magic.to_le_bytes()).collect();
        let entry = Entry { vaddr: BASE, compat_nr_pages: 0, flags: Some(flags), nr_pages: Some(PAGES) };
        for message in [Head { pages_id: 1 }.encode_to_vec(), entry.encode_to_vec()] {
            pagemap.extend((message.len() as u32).to_le_bytes());
            pagemap.extend(message);
        }
        fs::write(directory.images().join("pagemap-1.img"), pagemap).unwrap();
        let request = RestoreRequest {
            migration: "0191e0a0-0000-7000-8000-000000000001".into(),
            images: directory.images(),
            tcp: TcpMode::Close,
            network: Network::Given,
            runtime: "runc".into(),
            lazy: Some(memory),
            descriptors: Vec::new(),
        };
        fs::write(directory.request(), serde_json::to_vec(&request).unwrap()).unwrap();
        let mut command = Command::new(PROGRAM);
        command.arg("--spothop-pager").arg(directory.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut guard = command.spawn().unwrap();
        let mut said = String::new();
        // To the end: the container's logs would wait for it too.
        guard.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        Self { directory, guard, said, _scratch: scratch }
    }

    fn criu(&self) -> UnixStream {
        UnixStream::connect(self.directory.work().join("lazy-pages.socket")).unwrap()
    }

    /// CRIU's post-restore hook for `init`, until it holds; returns what it becomes when it is let go.
    fn hook(&self, init: i32) -> Hook {
        let path = self.directory.path();
        symlink(PROGRAM, path.join("hook")).unwrap();
        let create = UnixListener::bind(path.join("create.sock")).unwrap();
        let mut command = Command::new(path.join("hook"));
        command.env("CRTOOLS_SCRIPT_ACTION", "post-restore").env("CRTOOLS_INIT_PID", init.to_string());
        let mut hook = Hook { process: command.spawn().unwrap(), directory: self.directory.clone(), holds: false };
        create.set_nonblocking(true).unwrap();
        while !hook.holds && hook.process.try_wait().unwrap().is_none() {
            hook.holds = create.accept().is_ok();
            std::thread::yield_now();
        }
        hook
    }

    fn pager(&self) -> Pid {
        Pid::from_raw(only_child(self.guard.id().cast_signed()))
    }

    fn end(mut self) -> ExitStatus {
        self.guard.wait().unwrap()
    }
}

struct Hook {
    process: Child,
    directory: Directory,
    holds: bool,
}

impl Hook {
    fn go(mut self) {
        assert!(self.holds);
        let mut gate = UnixStream::connect(self.directory.path().join("gate.sock")).unwrap();
        gate.write_all(b"go\n").unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

fn only_child(pid: i32) -> i32 {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap().trim().parse().unwrap()
}

/// Everything that the task and its children say from now on until all of them are dead.
fn last_words(task: &mut Task) -> String {
    let mut said = Vec::new();
    // It is an error, after what was said, if they have not heard everything.
    let _ = task.control.read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn a_container_is_filled_though_its_directory_is_gone_and_then_nobody_is_left() {
    if !possible() {
        return;
    }
    let restore = Restore::begin(PE_LAZY);
    assert_eq!(restore.said, "ready");
    let mut criu = restore.criu();
    let mut task = Task::start(&criu, 1, PAGES, Scenario::Touch);
    restore.hook(task.process.id().cast_signed()).go();
    fs::remove_dir_all(restore.directory.path()).unwrap();
    criu.write_all(&END_MARK.to_ne_bytes()).unwrap();
    task.go();
    task.go();
    task.assert_well();
    assert!(restore.end().success());
}

#[test]
fn no_task_reads_zeros_when_the_pager_is_killed() {
    if !possible() {
        return;
    }
    for scenario in [Scenario::Touch, Scenario::Fork] {
        let restore = Restore::begin(PE_LAZY);
        let mut criu = restore.criu();
        let mut task = Task::start_init(&criu, PAGES, scenario);
        // Half of it with a pager, and then without one: before it is held nothing is put in but what is asked for.
        task.go();
        task.wait_for("midway");
        kill(restore.pager(), Signal::SIGSTOP).unwrap();
        restore.hook(only_child(task.process.id().cast_signed())).go();
        criu.write_all(&END_MARK.to_ne_bytes()).unwrap();
        task.go();
        kill(restore.pager(), Signal::SIGKILL).unwrap();
        let said = last_words(&mut task);
        assert!(!said.contains(WRONG), "{scenario:?}: {said}");
        // unshare(1) says by this what its child died of.
        let status = task.process.wait().unwrap();
        assert!(!status.success(), "{scenario:?}: {status}");
        assert!(!restore.end().success());
    }
}

#[test]
fn the_pager_goes_on_without_its_guard() {
    if !possible() {
        return;
    }
    let mut restore = Restore::begin(PE_LAZY);
    let mut criu = restore.criu();
    let mut task = Task::start(&criu, 1, PAGES, Scenario::Fork);
    task.go();
    task.wait_for("midway");
    let pager = restore.pager();
    restore.hook(task.process.id().cast_signed()).go();
    restore.guard.kill().unwrap();
    restore.guard.wait().unwrap();
    criu.write_all(&END_MARK.to_ne_bytes()).unwrap();
    task.go();
    task.assert_well();
    // Its descriptors are closed when it ends, and CRIU's socket is one of them.
    assert_eq!(criu.read(&mut [0]).unwrap_or(0), 0, "{pager}");
}

#[test]
fn without_guard_or_pager_no_task_gets_to_run() {
    if !possible() {
        return;
    }
    for killed in ["create", "guard", "pager"] {
        let mut restore = Restore::begin(PE_LAZY);
        let mut criu = restore.criu();
        let mut task = Task::start(&criu, 1, PAGES, Scenario::Touch);
        match killed {
            "create" => drop(restore.guard.stdin.take()),
            "guard" => restore.guard.kill().unwrap(),
            _ => kill(restore.pager(), Signal::SIGKILL).unwrap(),
        }
        restore.guard.wait().unwrap();
        let mut hook = restore.hook(task.process.id().cast_signed());
        assert!(!hook.holds, "{killed}");
        assert!(!hook.process.wait().unwrap().success(), "{killed}");
        task.kill();
        criu.shutdown(std::net::Shutdown::Both).unwrap();
        // Nobody is left.
        assert_eq!(criu.read(&mut [0]).unwrap_or(0), 0, "{killed}");
    }
}

#[test]
fn create_that_dies_before_there_is_a_criu_leaves_nobody() {
    let mut restore = Restore::begin(PE_LAZY);
    assert_eq!(restore.said, "ready");
    drop(restore.guard.stdin.take());
    assert!(!restore.end().success());
}

#[test]
fn images_that_were_not_composed_are_refused_with_a_reason() {
    let restore = Restore::begin(PE_LAZY | PE_PRESENT);
    assert!(restore.said.contains("pagemap-1.img"), "{}", restore.said);
    assert!(!restore.end().success());
}
