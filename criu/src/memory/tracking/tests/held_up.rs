//! What the process notices of being followed: nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, fs, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{AccessFlags, Pid, access};

use super::child::{Child, compute};
use super::{PAGES, REQUIRED, blind_to_devices, methods, numbers, round, write_protect};
use crate::cgroup::Freezer;
use crate::memory::tracking::{Method, TrackError, Tracker, tracee};
use crate::memory::{PAGE, Process, processes, reader};
use crate::tasks;

#[test]
fn sleeping_system_calls_do_not_notice() {
    if !write_protect() {
        return;
    }
    let calls = [
        ("readv", libc::SYS_readv, "5 hell".to_owned()),
        ("nanosleep", libc::SYS_nanosleep, "0".to_owned()),
        ("poll", libc::SYS_poll, "0".to_owned()),
        ("futex", libc::SYS_futex, format!("error {} signals 0", libc::ETIMEDOUT)),
        ("suspend", libc::SYS_rt_sigsuspend, format!("error {} signals 2", libc::EINTR)),
    ];
    thread::scope(|scope| {
        for (call, number, expected) in calls {
            scope.spawn(move || {
                let mut child = Child::start();
                child.block(call, number);
                let mut tracker = Tracker::attach(child.pid(), Method::WriteProtect).unwrap();
                assert!(!tracker.changed().unwrap().is_empty());
                match call {
                    "readv" => child.tell("hell"),
                    "suspend" => kill(Pid::from_raw(child.pid()), Signal::SIGUSR1).unwrap(),
                    _ => {}
                }
                assert_eq!(child.answer(), expected, "{call}");
            });
        }
    });
}

#[test]
fn a_computing_thread_keeps_its_registers() {
    const STEPS: u64 = 20_000_000;
    if !write_protect() {
        return;
    }
    let mut child = Child::start();
    let expected = compute(STEPS);
    let pid = child.pid();
    child.tell(&format!("compute {STEPS}"));
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let attaching = scope.spawn(|| {
            let mut count = 0;
            while !ended.load(Ordering::SeqCst) {
                Tracker::attach(pid, Method::WriteProtect).unwrap();
                count += 1;
            }
            count
        });
        let answer = child.answer();
        ended.store(true, Ordering::SeqCst);
        assert_eq!(answer, expected);
        assert!(attaching.join().unwrap() > 1);
    });
}

#[test]
fn signals_that_come_while_it_is_held_up_are_not_lost() {
    const SIGNALS: u64 = 300;
    if !write_protect() {
        return;
    }
    let mut child = Child::start();
    let address = child.map(PAGES, 1);
    child.ask("count");
    child.ask(&format!("spin {address} 2"));
    let pid = child.pid();
    thread::scope(|scope| {
        let attaching = scope.spawn(move || {
            for _ in 0..20 {
                Tracker::attach(pid, Method::WriteProtect).unwrap().changed().unwrap();
            }
        });
        for _ in 0..SIGNALS {
            child.signal();
        }
        attaching.join().unwrap();
    });
    assert_eq!(child.number("counted"), SIGNALS);
}

/// How many userfaultfds a process has open.
fn userfaultfds(pid: i32) -> usize {
    let is_one = |link: &PathBuf| link == Path::new("anon_inode:[userfaultfd]");
    tasks::descriptors(pid).iter().filter(|(_, link)| is_one(link)).count()
}

#[test]
fn no_child_that_is_forked_meanwhile_keeps_the_userfaultfd() {
    const CHILDREN: usize = 400;
    if !write_protect() {
        return;
    }
    let mut child = Child::start();
    let pid = child.pid();
    assert_eq!(child.ask(&format!("forks {CHILDREN}")), "ok");
    let children = || -> Vec<i32> {
        let of = |tid| fs::read_to_string(format!("/proc/{pid}/task/{tid}/children")).unwrap_or_default();
        let listed: String = tracee::threads(pid).into_iter().map(of).collect();
        listed.split_whitespace().map(|child| child.parse().unwrap()).collect()
    };
    while children().len() < CHILDREN {
        Tracker::attach(pid, Method::WriteProtect).unwrap();
    }
    assert_eq!(children().into_iter().map(userfaultfds).sum::<usize>(), 0);
}

#[test]
fn nothing_is_left_when_the_tracker_is_dropped() {
    if !write_protect() {
        return;
    }
    let mut child = Child::start();
    let address = child.map(PAGES, 1);
    let smaps = format!("/proc/{}/smaps", child.pid());
    // `uw` is "write-protected by userfaultfd" (proc_pid_smaps(5)).
    let protected = |smaps: &str| {
        let text = fs::read_to_string(smaps).unwrap();
        text.lines()
            .filter(|line| line.starts_with("VmFlags:"))
            .any(|line| line.split(' ').any(|flag| flag == "uw" || flag == "um"))
    };
    let mut tracker = Tracker::attach(child.pid(), Method::WriteProtect).unwrap();
    tracker.changed().unwrap();
    assert!(protected(&smaps));
    assert_eq!(userfaultfds(child.pid()), 0);
    drop(tracker);
    assert!(!protected(&smaps));
    child.write(address, 2);
    // Nothing of it is in the way of another one.
    let mut tracker = Tracker::attach(child.pid(), Method::WriteProtect).unwrap();
    assert_eq!(numbers(&tracker.changed().unwrap(), address), (0..PAGES).collect());
}

#[test]
fn memory_that_somebody_else_protects_is_given_out_every_time() {
    if !write_protect() {
        return;
    }
    let mut child = Child::start();
    let address = child.map(PAGES, 1);
    let mut first = Tracker::attach(child.pid(), Method::WriteProtect).unwrap();
    first.changed().unwrap();
    let mut second = Tracker::attach(child.pid(), Method::WriteProtect).unwrap();
    for _ in 0..2 {
        assert_eq!(numbers(&second.changed().unwrap(), address), (0..PAGES).collect());
    }
    // And the first is not disturbed.
    child.write(address + PAGE, 2);
    assert_eq!(numbers(&second.changed().unwrap(), address), (0..PAGES).collect());
    assert_eq!(numbers(&first.changed().unwrap(), address), BTreeSet::from([1]));
}

#[test]
fn seccomp_filters_do_not_judge_our_calls() {
    if !write_protect() {
        return;
    }
    let mut child = Child::start();
    let address = child.map(PAGES, 1);
    assert_eq!(child.ask("filter"), "ok");
    let mut tracker = Tracker::attach(child.pid(), Method::WriteProtect).unwrap();
    tracker.changed().unwrap();
    child.write(address, 2);
    assert_eq!(numbers(&tracker.changed().unwrap(), address), BTreeSet::from([0]));
}

#[test]
fn a_stopped_process_can_be_followed_and_stays_stopped() {
    if !write_protect() {
        return;
    }
    let mut child = Child::start();
    let address = child.map(PAGES, 1);
    let pid = Pid::from_raw(child.pid());
    let state = |pid: Pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
    };
    kill(pid, Signal::SIGSTOP).unwrap();
    while state(pid) != 'T' {
        thread::yield_now();
    }
    let mut tracker = Tracker::attach(child.pid(), Method::WriteProtect).unwrap();
    assert_eq!(numbers(&tracker.changed().unwrap(), address), (0..PAGES).collect());
    while state(pid) != 'T' {
        thread::yield_now();
    }
    kill(pid, Signal::SIGCONT).unwrap();
    child.write(address, 2);
    assert_eq!(numbers(&tracker.changed().unwrap(), address), BTreeSet::from([0]));
}

#[test]
fn direct_io_is_refused_where_it_could_not_be_seen() {
    for method in blind_to_devices() {
        let mut child = Child::start();
        let address = child.map(PAGES, 1);
        let mut tracker = Tracker::attach(child.pid(), method).unwrap();
        tracker.changed().unwrap();
        // In the working directory, as not every temporary file system can do it.
        let file = tempfile::NamedTempFile::new_in(env::current_dir().unwrap()).unwrap();
        let opened = child.ask(&format!("direct {}", file.path().display()));
        if opened.parse::<i32>().is_err() {
            assert!(env::var_os(REQUIRED).is_none(), "no direct I/O in the working directory: {opened}");
            return;
        }
        assert!(matches!(tracker.changed(), Err(TrackError::DirectIo { .. })), "{method}");
        assert!(matches!(Tracker::attach(child.pid(), method), Err(TrackError::DirectIo { .. })), "{method}");
        let mut tracker = Tracker::attach(child.pid(), Method::Content).unwrap();
        assert_eq!(numbers(&tracker.changed().unwrap(), address), (0..PAGES).collect());
    }
}

#[test]
fn a_frozen_process_can_still_be_looked_at() {
    for method in methods() {
        for mount in cgroups() {
            let mut child = Child::start();
            let address = child.map(PAGES, 1);
            // What is mapped next lies below, and does not become a part of that area.
            let between = child.map(1, 1);
            assert_eq!(child.ask(&format!("forbid {between} 1")), "ok");
            let group = Group::with(&mount, child.pid());
            let freezer = Freezer::of_pid(child.pid()).unwrap();
            assert_eq!(freezer.directory(), group.0);
            // Its id in its own pid namespace is the last one it has.
            let status = fs::read_to_string(format!("/proc/{}/status", child.pid())).unwrap();
            let vpid =
                status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().last()?.parse().ok());
            let expected = Process { pid: child.pid(), vpid: vpid.unwrap() };
            assert_eq!(processes(child.pid()).unwrap(), [expected]);
            let mut tracker = Tracker::attach(child.pid(), method).unwrap();
            round(&mut tracker, child.pid());
            child.write(address + 6 * PAGE, 2);
            // New areas are registered in a frozen process as well.
            let new = child.map(PAGES, 1);
            freezer.freeze(Duration::from_secs(10)).unwrap();
            let changed = round(&mut tracker, child.pid());
            assert_eq!(numbers(&changed, address), BTreeSet::from([6]), "{method}");
            assert_eq!(numbers(&changed, new), (0..PAGES).collect(), "{method}");
            assert!(round(&mut tracker, child.pid()).is_empty(), "{method}");
            // Nobody can be injected into now; it is not harmed either.
            assert!(method != Method::WriteProtect || Tracker::attach(child.pid(), method).is_err());
            freezer.thaw().unwrap();
            child.write(address + 7 * PAGE, 2);
            assert!(numbers(&round(&mut tracker, child.pid()), address).contains(&7), "{method}");
            drop(child);
        }
    }
}

/// Where freezers are mounted that we may use: of cgroup v1, v2, or both.
fn cgroups() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let freezes =
        |line: &&str| line.contains(" - cgroup2 ") || line.contains(" - cgroup ") && line.ends_with(",freezer");
    let paths = mounts.lines().filter(freezes).filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let writable = paths.filter(|path| access(path, AccessFlags::W_OK).is_ok());
    writable.collect()
}

/// A cgroup for one process, which is gone before it.
struct Group(PathBuf);

impl Group {
    fn with(mount: &Path, pid: i32) -> Self {
        let directory = mount.join(format!("spothop-test-{pid}"));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("cgroup.procs"), pid.to_string()).unwrap();
        Self(directory)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for file in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            if self.0.join(file.0).exists() {
                let _ = fs::write(self.0.join(file.0), file.1);
            }
        }
        // A process that ends leaves its cgroup a moment after it was reaped.
        while fs::remove_dir(&self.0).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)) {
            let left = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
            left.lines().for_each(|pid| {
                let _ = kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL);
            });
            thread::yield_now();
        }
    }
}

#[test]
fn all_threads_stand_still_while_bits_are_reset() {
    if methods().is_empty() {
        return;
    }
    let mut child = Child::start();
    let address = child.map(PAGES, 1);
    child.ask(&format!("spin {address} 3"));
    let pid = child.pid();
    let counters = move || {
        let mut bytes = vec![0; (3 * PAGE) as usize];
        assert_eq!(reader::read(pid, address, &mut bytes).unwrap(), bytes.len());
        bytes
    };
    let (before, after) = tracee::on_tracer(pid, move || {
        tracee::while_stopped(pid, || {
            let before = counters();
            // Time for whoever still runs.
            for _ in 0..1000 {
                thread::yield_now();
            }
            Ok((before, counters()))
        })
    })
    .unwrap();
    assert_eq!(before, after);
    // They go on.
    while counters() == after {}
    assert_eq!(child.ask(&format!("fill {} 1 1", address + 9 * PAGE)), "ok");
}

#[test]
fn threads_that_come_and_go_are_no_reason_not_to_stop_the_others() {
    if methods().is_empty() {
        return;
    }
    let mut child = Child::start();
    let pid = child.pid();
    assert_eq!(child.ask("churn"), "ok");
    for _ in 0..1500 {
        tracee::on_tracer(pid, move || tracee::while_stopped(pid, || Ok(()))).unwrap();
    }
}
