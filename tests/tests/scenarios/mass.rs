//! Several hosts that are taken away at once, and fewer that have room.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use spothop_tests::cgroup::Cgroup;
use spothop_tests::imds::Action;

use crate::scene::Scene;

/// Those that are taken away, and those that stay.
const TAKEN: [&str; 3] = ["a", "b", "c"];
const STAYING: [&str; 2] = ["d", "e"];

/// Containers on each host that is taken.
const EACH: usize = 3;

/// Keeps so many MiB that it has written to, and goes on.
const HOLDER: &str =
    "import time\nkept = bytearray(b'x' * (48 << 20))\nprint('ready', flush=True)\nwhile True: time.sleep(1)";

/// What the daemon keeps back by default ([limits] memory_reserve), and what each staying host has beside it, in bytes: room for some
/// of nine containers while they come, and not for all.
const RESERVE: u64 = 256 << 20;
const ROOM: u64 = 330 << 20;

/// A staying host, as small as a machine of its own would be: the kernel holds all that its processes take from now on to a limit, and
/// its /proc/meminfo tells of what is left, as LXCFS does it for containers.
struct Small {
    host: &'static str,
    cgroup: PathBuf,
    stop: Arc<AtomicBool>,
    teller: Option<JoinHandle<()>>,
}

impl Small {
    fn make(scene: &Scene, host: &'static str) -> Self {
        // The controller of memory is in the first version's hierarchy on the machines that carry this.
        let cgroup = Path::new("/sys/fs/cgroup/memory").join(format!("spothop-{}-{host}", scene.state().name));
        fs::create_dir_all(&cgroup).expect("a cgroup for memory");
        let write = |file: &str, text: String| fs::write(cgroup.join(file), text);
        write("memory.limit_in_bytes", (RESERVE + ROOM).to_string()).expect("a limit");
        let machine = Cgroup::at(&scene.layout().machine_cgroup(host)).expect("the machine's cgroup");
        for process in processes(machine.path()) {
            // It may have ended.
            let _ = write("cgroup.procs", process);
        }
        let root = PathBuf::from(format!("/proc/{}/root", scene.state().host(host).expect("a host").pid));
        let real = fs::read_to_string("/proc/meminfo").expect("the machine's memory");
        let (told, stop) = (root.join("run/meminfo"), Arc::new(AtomicBool::new(false)));
        let mut small = Self { host, cgroup, stop: Arc::clone(&stop), teller: None };
        let tell = {
            let (cgroup, told) = (small.cgroup.clone(), told.clone());
            move || {
                let line = format!("MemAvailable:   {:>8} kB", free(&cgroup) >> 10);
                let other = |line: &&str| !line.starts_with("MemAvailable:");
                let text: String =
                    real.lines().filter(other).chain([line.as_str()]).map(|line| format!("{line}\n")).collect();
                // In place: what is bound over /proc/meminfo is this very file.
                OpenOptions::new()
                    .create(true)
                    .write(true)
                    .truncate(false)
                    .open(&told)?
                    .write_all_at(text.as_bytes(), 0)
            }
        };
        tell().expect("what is left");
        scene.sh(host, "mount --bind /run/meminfo /proc/meminfo");
        small.teller = Some(thread::spawn(move || {
            // Nothing tells when it changes.
            while !stop.load(Ordering::SeqCst) && tell().is_ok() {
                thread::sleep(Duration::from_millis(5));
            }
        }));
        small
    }

    fn number(&self, file: &str) -> u64 {
        fs::read_to_string(self.cgroup.join(file)).expect("a figure").trim().parse().expect("a number")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.teller.take().map(JoinHandle::join);
        // Its processes are the testbed's, which ends them; without one of its own it can be removed.
        let own = "/sys/fs/cgroup/memory/cgroup.procs";
        for process in fs::read_to_string(self.cgroup.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(own, process);
        }
        let _ = fs::remove_dir(&self.cgroup);
    }
}

/// Bytes that a cgroup leaves below its limit, what its files have in memory not counted.
fn free(cgroup: &Path) -> u64 {
    let read = |file: &str| fs::read_to_string(cgroup.join(file)).unwrap_or_default();
    let number = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
    let statistics = read("memory.stat");
    let files = statistics.lines().find_map(|line| line.strip_prefix("total_inactive_file ")).map_or(0, number);
    (RESERVE + ROOM).saturating_sub(number(&read("memory.usage_in_bytes")).saturating_sub(files))
}

/// The processes of a cgroup and of all below it.
fn processes(cgroup: &Path) -> Vec<String> {
    let own = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let below =
        fs::read_dir(cgroup).expect("a cgroup").flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    own.lines().map(str::to_owned).chain(below.flat_map(|path| processes(&path))).collect()
}

/// When a host heard that it is taken away.
fn noticed(scene: &Scene, host: &str) -> Timestamp {
    let status = scene.spothop(host, &["status"]).json;
    time(&status["notices"][0]["received"])
}

/// When a host had made a container ready that came to it: the source may freeze it from then on.
fn ready(scene: &Scene, host: &str, container: &str) -> Timestamp {
    let history = scene.spothop(host, &["history", "-n", "50"]).json;
    let all = history.as_array().expect("a list");
    let is_it = |one: &&Value| one["container"] == container && one["side"] == "target" && one["outcome"] == "moved";
    let it = all.iter().find(is_it).unwrap_or_else(|| panic!("{container} has never come to {host}: {all:#?}"));
    let ready = it["phases"].as_array().expect("a list").iter().find(|entry| entry["phase"] == "prepared");
    time(&ready.expect("a phase")["at"])
}

fn time(value: &Value) -> Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("a time: {value}"))
}

pub(crate) fn three_of_five_hosts_are_taken_at_once_and_nothing_is_over_committed(_: &Scene) {
    let scene = Scene::up_with("e2e-mass", 5);
    let names: Vec<(&str, String)> =
        TAKEN.iter().flat_map(|host| (0..EACH).map(move |number| (*host, format!("{host}{number}")))).collect();
    for (host, name) in &names {
        scene.run(host, name, "python", &["python3", "-c", HOLDER]);
    }
    for (host, name) in &names {
        scene.eventually(host, &format!("docker logs {name} | grep -q ready"));
    }
    let small = STAYING.map(|host| Small::make(&scene, host));

    for host in TAKEN {
        scene.notice(host, Action::Terminate, Duration::from_secs(60)).expect("a notice");
    }
    for host in TAKEN {
        scene.eventually(host, "spothop history --json | grep -q '\"cause\": \"aws:'");
    }
    // The next of several begins as soon as one has ended; a second without any is the end.
    let none = "spothop status --json | tr -d ' \\n' | grep -q '\"migrations\":\\[\\]'";
    for host in TAKEN {
        scene.eventually(host, &format!("( for time in $(seq 20); do {none} || exit 1; sleep 0.05; done )"));
    }

    let running = |host: &str| -> Vec<String> {
        let text = scene.sh(host, "docker ps --format='{{.Names}}'");
        text.lines().map(str::to_owned).collect()
    };
    let (mut moved, mut stayed) = (0, 0);
    for (source, name) in &names {
        let on: Vec<&str> = TAKEN.into_iter().chain(STAYING).filter(|host| running(host).contains(name)).collect();
        assert_eq!(on.len(), 1, "{name} runs on {on:?}");
        if on[0] == *source {
            stayed += 1;
        } else {
            // Three metadata services do not speak at the same moment: what was frozen for a host before that one heard of its own end is there.
            let before_its_notice = || ready(&scene, on[0], name) < noticed(&scene, on[0]);
            assert!(STAYING.contains(&on[0]) || before_its_notice(), "{name} went to {on:?}, which is to be taken too");
            moved += 1;
        }
        scene.sh(on[0], &format!("docker exec {name} python3 -c pass"));
    }
    eprintln!("{moved} moved, {stayed} found no room and stayed");
    for one in &small {
        let control = fs::read_to_string(one.cgroup.join("memory.oom_control")).expect("a cgroup's fate");
        let killed = control.lines().find_map(|line| line.strip_prefix("oom_kill ")).unwrap_or("0");
        let (least, free) =
            (RESERVE + ROOM - one.number("memory.max_usage_in_bytes").min(RESERVE + ROOM), free(&one.cgroup));
        eprintln!(
            "host {}: has {} MiB, free {} MiB, at the least {} MiB with its files, killed for want of memory: {killed}",
            one.host,
            (RESERVE + ROOM) >> 20,
            free >> 20,
            least >> 20
        );
        assert_eq!(killed, "0", "host {} promised more than it had", one.host);
        assert!(free >= RESERVE, "host {} gave its reserve away: {free} bytes are free", one.host);
    }
    assert!(moved >= 3, "{moved}");
    for host in TAKEN {
        let history = scene.spothop(host, &["history", "-n", "50"]).json.to_string();
        eprintln!("host {host}: refused {} times for want of room", history.matches("no room: ").count());
    }
}
