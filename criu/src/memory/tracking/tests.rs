//! What trackers promise, tried on a process that writes on command.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::child::{Child, compute};
use super::*;
use crate::cgroup::Freezer;
use crate::memory::{PAGE, bytes, reader};

const PAGES: u64 = 64;

/// The methods that can be tried here: following another process's memory needs root.
fn methods() -> Vec<Method> {
    if geteuid().is_root() { supported() } else { Vec::new() }
}

fn write_protect() -> bool {
    methods().contains(&Method::WriteProtect)
}

/// Numbers of the pages from `address` on that `changed` holds.
fn numbers(changed: &Pages, address: u64) -> BTreeSet<u64> {
    (0..PAGES).filter(|number| changed.contains(&(address + number * PAGE))).collect()
}

/// Reads what changed, and tells the tracker, as whoever sends it does.
fn send(tracker: &Tracker, pid: i32, changed: &Pages) {
    for piece in crate::memory::pieces(changed) {
        let mut buffer = vec![0; (piece.end - piece.start) as usize];
        let count = reader::read(pid, piece.start, &mut buffer).unwrap();
        tracker.sent(piece.start, &buffer[..count]);
    }
}

/// What changed, which is then sent.
fn round(tracker: &mut Tracker, pid: i32) -> Pages {
    let changed = tracker.changed().unwrap();
    send(tracker, pid, &changed);
    changed
}

#[test]
fn exactly_the_pages_that_were_written_are_given_out() {
    for method in methods() {
        let mut child = Child::start();
        let address = child.map(PAGES, 1);
        let mut tracker = Tracker::attach(child.pid(), method).unwrap();
        assert_eq!(tracker.method(), method);
        let first = round(&mut tracker, child.pid());
        assert_eq!(numbers(&first, address), (0..PAGES).collect(), "{method}");
        for page in [3, 17, 18] {
            child.write(address + page * PAGE, 2);
        }
        assert_eq!(numbers(&round(&mut tracker, child.pid()), address), BTreeSet::from([3, 17, 18]), "{method}");
        assert_eq!(numbers(&round(&mut tracker, child.pid()), address), BTreeSet::new(), "{method}");
        // And again, what was written once already.
        child.write(address + 3 * PAGE, 3);
        assert_eq!(numbers(&round(&mut tracker, child.pid()), address), BTreeSet::from([3]), "{method}");
    }
}

#[test]
fn what_is_written_between_the_look_and_the_sending_is_not_lost() {
    for method in methods() {
        let mut child = Child::start();
        let address = child.map(PAGES, 1);
        let mut tracker = Tracker::attach(child.pid(), method).unwrap();
        let changed = tracker.changed().unwrap();
        // Read before the write, sent after it.
        let mut old = vec![0; (PAGES * PAGE) as usize];
        assert_eq!(reader::read(child.pid(), address, &mut old).unwrap(), old.len());
        child.write(address + 5 * PAGE, 2);
        assert!(changed.contains(&(address + 5 * PAGE)));
        tracker.sent(address, &old);
        assert!(numbers(&tracker.changed().unwrap(), address).contains(&5), "{method}");
    }
}

#[test]
fn a_page_that_gets_its_old_content_back_is_given_out() {
    for method in methods() {
        let mut child = Child::start();
        let address = child.map(PAGES, 1);
        let mut tracker = Tracker::attach(child.pid(), method).unwrap();
        round(&mut tracker, child.pid());
        child.write(address, 2);
        assert_eq!(numbers(&round(&mut tracker, child.pid()), address), BTreeSet::from([0]), "{method}");
        child.write(address, 1);
        assert_eq!(numbers(&round(&mut tracker, child.pid()), address), BTreeSet::from([0]), "{method}");
    }
}

#[test]
fn new_memory_where_old_was_is_given_out() {
    for method in methods() {
        let mut child = Child::start();
        let address = child.map(PAGES, 1);
        let mut tracker = Tracker::attach(child.pid(), method).unwrap();
        round(&mut tracker, child.pid());
        assert_eq!(child.ask(&format!("unmap {address} {PAGES}")), "ok");
        assert_eq!(child.number(&format!("map {address} {PAGES}")), address);
        child.write(address + 9 * PAGE, 2);
        assert!(numbers(&round(&mut tracker, child.pid()), address).contains(&9), "{method}");
        // And it is followed.
        assert_eq!(numbers(&round(&mut tracker, child.pid()), address), BTreeSet::new(), "{method}");
        child.write(address + 10 * PAGE, 2);
        assert_eq!(numbers(&round(&mut tracker, child.pid()), address), BTreeSet::from([10]), "{method}");
    }
}

#[test]
fn memory_that_was_discarded_moved_grown_or_hidden_is_followed() {
    for method in methods() {
        let mut child = Child::start();
        let pid = child.pid();
        let discarded = child.map(PAGES, 1);
        let moved = child.map(PAGES, 1);
        let hidden = child.map(PAGES, 1);
        let grown = child.map(PAGES, 1);
        let half = PAGES / 2;
        assert_eq!(child.ask(&format!("unmap {} {half}", grown + half * PAGE)), "ok");
        let mut tracker = Tracker::attach(pid, method).unwrap();
        round(&mut tracker, pid);

        child.ask(&format!("discard {discarded} {PAGES}"));
        child.write(discarded + PAGE, 2);
        child.write(hidden + PAGE, 2);
        child.ask(&format!("forbid {hidden} {PAGES}"));
        let moved = child.number(&format!("move {moved} {PAGES}"));
        assert_eq!(child.number(&format!("grow {grown} {half} {PAGES}")), grown);
        child.write(grown + half * PAGE, 2);
        let changed = round(&mut tracker, pid);
        assert_eq!(numbers(&changed, discarded), BTreeSet::from([1]), "{method}");
        assert_eq!(numbers(&changed, moved), (0..PAGES).collect(), "{method}");
        assert_eq!(numbers(&changed, hidden), BTreeSet::new(), "{method}");
        assert_eq!(numbers(&changed, grown), BTreeSet::from([half]), "{method}");

        child.ask(&format!("allow {hidden} {PAGES}"));
        child.write(moved + 2 * PAGE, 3);
        child.write(grown, 3);
        let changed = round(&mut tracker, pid);
        assert_eq!(numbers(&changed, hidden), BTreeSet::from([1]), "{method}");
        assert_eq!(numbers(&changed, moved), BTreeSet::from([2]), "{method}");
        assert_eq!(numbers(&changed, grown), BTreeSet::from([0]), "{method}");
    }
}

#[test]
fn of_a_huge_page_only_what_was_written_is_given_out() {
    const HUGE: u64 = 2 << 20;
    for method in methods() {
        let mut child = Child::start();
        let pages = 2 * HUGE / PAGE;
        let start = child.number(&format!("map 0 {pages}"));
        // Refused by a kernel without huge pages: then they are small ones.
        child.ask(&format!("huge {start} {pages}"));
        child.ask(&format!("fill {start} {pages} 1"));
        let address = start.next_multiple_of(HUGE);
        let mut tracker = Tracker::attach(child.pid(), method).unwrap();
        assert_eq!(numbers(&round(&mut tracker, child.pid()), address), (0..PAGES).collect(), "{method}");
        child.write(address + 7 * PAGE, 2);
        let changed = round(&mut tracker, child.pid());
        assert_eq!(numbers(&changed, address), BTreeSet::from([7]), "{method}");
        assert!(bytes(&changed) < HUGE, "{method}");
    }
}

#[test]
fn parent_and_child_of_a_fork_are_followed_each_for_itself() {
    for method in methods() {
        let mut child = Child::start();
        let address = child.map(PAGES, 1);
        let mut tracker = Tracker::attach(child.pid(), method).unwrap();
        round(&mut tracker, child.pid());
        let grandchild = child.number(&format!("fork {} 2", address + PAGE)) as i32;
        child.write(address + 2 * PAGE, 3);
        assert_eq!(numbers(&round(&mut tracker, child.pid()), address), BTreeSet::from([2]), "{method}");
        let mut second = Tracker::attach(grandchild, method).unwrap();
        assert_eq!(numbers(&round(&mut second, grandchild), address), (0..PAGES).collect(), "{method}");
        assert_eq!(numbers(&round(&mut second, grandchild), address), BTreeSet::new(), "{method}");
        kill(Pid::from_raw(grandchild), Signal::SIGKILL).unwrap();
    }
}

#[test]
fn a_program_executed_meanwhile_is_followed() {
    for method in methods() {
        let mut child = Child::start();
        let mut tracker = Tracker::attach(child.pid(), method).unwrap();
        round(&mut tracker, child.pid());
        assert_eq!(child.ask("exec"), child.pid().to_string());
        let address = child.map(PAGES, 1);
        assert_eq!(numbers(&round(&mut tracker, child.pid()), address), (0..PAGES).collect(), "{method}");
        child.write(address + 4 * PAGE, 2);
        assert_eq!(numbers(&round(&mut tracker, child.pid()), address), BTreeSet::from([4]), "{method}");
    }
}

#[test]
fn writing_threads_are_followed_and_go_on() {
    for method in methods() {
        let mut child = Child::start();
        let address = child.map(PAGES, 1);
        assert_eq!(child.ask(&format!("spin {address} 3")), "ok");
        let mut tracker = Tracker::attach(child.pid(), method).unwrap();
        round(&mut tracker, child.pid());
        for _ in 0..10 {
            let before: Vec<u64> =
                (0..3).map(|page| child.number(&format!("read {}", address + page * PAGE))).collect();
            for page in 0..3 {
                while child.number(&format!("read {}", address + page * PAGE)) == before[page as usize] {}
            }
            let changed = numbers(&round(&mut tracker, child.pid()), address);
            assert_eq!(changed, BTreeSet::from([0, 1, 2]), "{method}");
        }
    }
}

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
    std::thread::scope(|scope| {
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
    std::thread::scope(|scope| {
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
    std::thread::scope(|scope| {
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
    crate::tasks::descriptors(pid).iter().filter(|(_, link)| is_one(link)).count()
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
        std::thread::yield_now();
    }
    let mut tracker = Tracker::attach(child.pid(), Method::WriteProtect).unwrap();
    assert_eq!(numbers(&tracker.changed().unwrap(), address), (0..PAGES).collect());
    while state(pid) != 'T' {
        std::thread::yield_now();
    }
    kill(pid, Signal::SIGCONT).unwrap();
    child.write(address, 2);
    assert_eq!(numbers(&tracker.changed().unwrap(), address), BTreeSet::from([0]));
}

#[test]
fn direct_io_is_refused_where_it_could_not_be_seen() {
    if !write_protect() {
        return;
    }
    let mut child = Child::start();
    let address = child.map(PAGES, 1);
    let mut tracker = Tracker::attach(child.pid(), Method::WriteProtect).unwrap();
    tracker.changed().unwrap();
    // In the working directory, as not every temporary file system can do it.
    let file = tempfile::NamedTempFile::new_in(std::env::current_dir().unwrap()).unwrap();
    if child.ask(&format!("direct {}", file.path().display())).parse::<i32>().is_err() {
        return;
    }
    assert!(matches!(tracker.changed(), Err(TrackError::DirectIo { .. })));
    assert!(matches!(Tracker::attach(child.pid(), Method::WriteProtect), Err(TrackError::DirectIo { .. })));
    let mut tracker = Tracker::attach(child.pid(), Method::Content).unwrap();
    assert_eq!(numbers(&tracker.changed().unwrap(), address), (0..PAGES).collect());
}

#[test]
fn a_process_that_ended_is_an_error() {
    for method in methods() {
        let child = Child::start();
        let pid = child.pid();
        let mut tracker = Tracker::attach(pid, method).unwrap();
        round(&mut tracker, pid);
        drop(child);
        assert!(matches!(tracker.changed(), Err(TrackError::Gone { .. })), "{method}");
    }
}

#[test]
fn a_frozen_process_can_still_be_looked_at() {
    for method in methods() {
        for mount in cgroups() {
            let mut child = Child::start();
            let address = child.map(PAGES, 1);
            let group = Group::with(&mount, child.pid());
            let freezer = Freezer::of_pid(child.pid()).unwrap();
            assert_eq!(freezer.directory(), group.0);
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
    let writable = paths.filter(|path| nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok());
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
            std::thread::yield_now();
        }
    }
}

#[test]
fn all_threads_stand_still_while_bits_are_reset() {
    if !write_protect() {
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
                std::thread::yield_now();
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
fn a_method_is_known_by_its_name() {
    for method in Method::ALL {
        assert_eq!(method.to_string().parse::<Method>().unwrap(), method);
        assert_eq!(serde_json::to_string(&method).unwrap(), format!("\"{method}\""));
    }
    assert!("guess".parse::<Method>().unwrap_err().to_string().contains("write-protect, soft-dirty, content"));
}
