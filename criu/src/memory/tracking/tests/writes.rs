//! Which pages are given out.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::child::Child;
use super::{PAGES, methods, numbers, round};
use crate::memory::tracking::{Method, TrackError, Tracker, supported};
use crate::memory::{PAGE, bytes, reader};

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
        if method == Method::SoftDirty {
            // The kernel has one bit for all of it.
            assert!(numbers(&changed, address).contains(&7));
            let others = address + HUGE..start + pages * PAGE;
            assert!(!changed.overlaps(&others), "{changed:?} has pages of {others:?}");
            continue;
        }
        assert_eq!(numbers(&changed, address), BTreeSet::from([7]), "{method}");
        assert!(bytes(&changed) < HUGE, "{method}");
    }
}

/// Areas of this many bytes, and at addresses that are multiples of it, move by their page tables.
const TABLE: u64 = 2 << 20;

/// The first such area within twice as much memory of the child, of small pages.
fn table(child: &mut Child, value: u64) -> u64 {
    let pages = 2 * TABLE / PAGE;
    let start = child.number(&format!("map 0 {pages}"));
    assert_eq!(child.ask(&format!("small {start} {pages}")), "ok");
    let address = start.next_multiple_of(TABLE);
    assert_eq!(child.ask(&format!("fill {address} {} {value}", TABLE / PAGE)), "ok");
    address
}

#[test]
fn memory_that_replaces_other_by_moving_is_given_out() {
    for method in methods() {
        let mut child = Child::start();
        let (one, other) = (table(&mut child, 1), table(&mut child, 2));
        let mut tracker = Tracker::attach(child.pid(), method).unwrap();
        round(&mut tracker, child.pid());
        assert!(round(&mut tracker, child.pid()).iter().all(|range| !(one..one + TABLE).contains(&range.start)));
        assert_eq!(child.number(&format!("replace {other} {} {one}", TABLE / PAGE)), one);
        let changed = round(&mut tracker, child.pid());
        assert!(changed.gaps(&(one..one + TABLE)).next().is_none(), "{method}: {changed:?}");
        // And it is followed where it is now.
        assert!(!round(&mut tracker, child.pid()).overlaps(&(one..one + TABLE)), "{method}");
        child.write(one + 3 * PAGE, 3);
        assert_eq!(numbers(&round(&mut tracker, child.pid()), one), BTreeSet::from([3]), "{method}");
    }
}

#[test]
fn memory_that_was_hidden_from_the_beginning_is_given_out_once_it_can_be_read() {
    for method in methods() {
        let mut child = Child::start();
        let address = child.map(PAGES, 1);
        assert_eq!(child.ask(&format!("forbid {address} {PAGES}")), "ok");
        let mut tracker = Tracker::attach(child.pid(), method).unwrap();
        for _ in 0..2 {
            assert_eq!(numbers(&round(&mut tracker, child.pid()), address), BTreeSet::new(), "{method}");
        }
        assert_eq!(child.ask(&format!("allow {address} {PAGES}")), "ok");
        assert_eq!(numbers(&round(&mut tracker, child.pid()), address), (0..PAGES).collect(), "{method}");
        assert_eq!(numbers(&round(&mut tracker, child.pid()), address), BTreeSet::new(), "{method}");
    }
}

#[test]
fn a_child_that_shares_the_memory_takes_nothing_from_its_parent() {
    for method in methods() {
        let mut child = Child::start();
        let address = child.map(PAGES, 1);
        let mut tracker = Tracker::attach(child.pid(), method).unwrap();
        round(&mut tracker, child.pid());
        child.write(address + 5 * PAGE, 2);
        let sharing = child.number("share") as i32;
        let mut second = Tracker::attach(sharing, method).unwrap();
        for _ in 0..2 {
            let changed = numbers(&second.changed().unwrap(), address);
            assert!(changed.contains(&5), "{method}");
        }
        // Until then its parent cannot be stopped.
        kill(Pid::from_raw(sharing), Signal::SIGKILL).unwrap();
        assert_eq!(child.answer(), "gone");
        assert!(numbers(&round(&mut tracker, child.pid()), address).contains(&5), "{method}");
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
fn what_is_shared_since_a_fork_is_still_shared_after_it_was_read() {
    let mut child = Child::start();
    let address = child.map(PAGES, 1);
    let grandchild = child.number(&format!("fork {address} 2")) as i32;
    // Of both together: what they share counts half for each (proc_pid_smaps(5)).
    let memory = |pid: i32| -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss_Anon:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    };
    let before = memory(child.pid()) + memory(grandchild);
    for pid in [child.pid(), grandchild] {
        let mut bytes = vec![0; (PAGES * PAGE) as usize];
        assert_eq!(reader::read(pid, address, &mut bytes).unwrap(), bytes.len());
    }
    let more = (memory(child.pid()) + memory(grandchild)).saturating_sub(before);
    assert!(more < PAGES * PAGE / 1024 / 2, "{more} KiB more since they were read");
    kill(Pid::from_raw(grandchild), Signal::SIGKILL).unwrap();
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
            let written = BTreeSet::from([0, 1, 2]);
            // What a thread maps for itself meanwhile may become one area with these pages, and all of it is dirty then.
            let right = changed == written || method == Method::SoftDirty && changed.is_superset(&written);
            assert!(right, "{method}: {changed:?}");
        }
    }
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
fn a_method_is_known_by_its_name() {
    for method in Method::ALL {
        assert_eq!(method.to_string().parse::<Method>().unwrap(), method);
        assert_eq!(serde_json::to_string(&method).unwrap(), format!("\"{method}\""));
    }
    assert!("guess".parse::<Method>().unwrap_err().to_string().contains("write-protect, soft-dirty, content"));
}

#[test]
fn a_method_that_the_kernel_does_not_have_is_refused() {
    let own = std::process::id().cast_signed();
    for method in Method::ALL.into_iter().filter(|method| !supported().contains(method)) {
        assert!(Tracker::attach(own, method).is_err() || method == Method::Content);
    }
}

#[test]
fn a_tracker_may_be_told_from_several_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Tracker>();
}
