//! The pager with real processes: each makes a userfaultfd on its own memory, as a task that CRIU restores, and looks at every byte.
//!
//! A process is this very program, called for the one test [`a_task`]. Nothing of this can be tried without the right to use
//! userfaultfd with events (CAP_SYS_PTRACE): then there is nothing to see.

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;

use spothop_criu::memory::pager::{Counters, Ending, Held, Memory, PagerError, serve};
use spothop_criu::memory::{PAGE, Pages, Store, Vpid};

#[path = "pager/owed.rs"]
mod owed;
#[path = "pager/process.rs"]
mod process;
#[path = "pager/task.rs"]
mod task;

use task::{BASE, END_MARK, ENVIRONMENT, Scenario, UNUSED, content, is_hole};

/// Pages of a task, unless the test says something else; more than the pager puts in at once.
const PAGES: u64 = 2048;

/// The process that the tests start: a task, if the environment says so.
#[test]
fn a_task() {
    if let Ok(order) = env::var(ENVIRONMENT) {
        task::run(&order);
    }
}

/// A restored task: a process that has announced itself and waits.
struct Task {
    process: Child,
    control: BufReader<UnixStream>,
}

impl Task {
    fn start(criu: &UnixStream, vpid: Vpid, pages: u64, scenario: Scenario) -> Self {
        Self::start_as(Command::new(env::current_exe().unwrap()), criu, vpid, pages, scenario)
    }

    /// Init of a pid namespace of its own, which dies with it.
    fn start_init(criu: &UnixStream, pages: u64, scenario: Scenario) -> Self {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork"]).arg(env::current_exe().unwrap());
        Self::start_as(unshare, criu, 1, pages, scenario)
    }

    fn start_as(mut command: Command, criu: &UnixStream, vpid: Vpid, pages: u64, scenario: Scenario) -> Self {
        let (control, theirs) = UnixStream::pair().unwrap();
        command
            .args(["a_task", "--exact", "--nocapture", "--test-threads=1"])
            .env(ENVIRONMENT, format!("{vpid} {pages} {scenario:?}"))
            .stdin(OwnedFd::from(criu.try_clone().unwrap()))
            .stdout(OwnedFd::from(theirs));
        let process = command.spawn().unwrap();
        // It keeps what the child was to have.
        drop(command);
        let mut task = Self { process, control: BufReader::new(control) };
        task.wait_for("announced");
        task
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while !line.trim_end().ends_with(word) {
            line.clear();
            assert_ne!(self.control.read_line(&mut line).unwrap(), 0, "the task ended before it said {word:?}");
        }
    }

    /// Says once that it may go on: at the beginning, and in the middle of its scenario.
    fn go(&mut self) {
        // One that has no middle may have ended; how, is another question.
        let _ = self.control.get_mut().write_all(b"go\n");
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn assert_well(mut self) {
        let status = self.process.wait().unwrap();
        let mut said = String::new();
        // It is an error, after what was said, if it has not heard everything.
        let _ = self.control.read_to_string(&mut said);
        assert!(status.success(), "{status}: {said}");
    }
}

/// A store with the pages of `tasks` and the list of them.
fn store(directory: &Path, tasks: &[(Vpid, u64)]) -> BTreeMap<Vpid, Pages> {
    let mut lazy = BTreeMap::new();
    for &(vpid, pages) in tasks {
        let store = Store::at(directory);
        for page in (0..pages).filter(|&page| !is_hole(page)) {
            store.put(vpid, BASE + page * PAGE, &content(vpid, page)).unwrap();
        }
        let range = (pages > 0).then_some(BASE..BASE + pages * PAGE);
        lazy.insert(vpid, range.into_iter().collect());
    }
    lazy
}

/// The right to use what a pager needs is there.
fn possible() -> bool {
    let possible = task::userfaultfd().is_ok();
    if !possible {
        eprintln!("no right to use userfaultfd with its events: nothing is tried");
    }
    possible
}

/// What the pager does while `script` plays CRIU.
fn paged<T>(memory: Memory, script: impl FnOnce(&UnixStream, &mut Held) -> T) -> (Result<Ending, PagerError>, T) {
    let (criu, ours) = UnixStream::pair().unwrap();
    let (mut held, hears) = Held::new().unwrap();
    let pager = thread::spawn(move || serve(&ours, hears, memory));
    let done = script(&criu, &mut held);
    // The tasks that were started have it no longer.
    criu.shutdown(Shutdown::Both).unwrap();
    (pager.join().unwrap(), done)
}

/// When the pager may fill what nobody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// When the hook holds the tasks, well before they run.
    Held,
    /// When they run.
    Running,
    /// Later than CRIU would let it: a task does the first half of its scenario by faults alone.
    Midway,
}

const EVERY_BEGIN: [Begin; 3] = [Begin::Held, Begin::Running, Begin::Midway];

/// Returns when the pager has ended, and its end of the connection with it.
fn wait_for_the_end(mut criu: &UnixStream) {
    // If it has not read everything the end looks like an error.
    assert_eq!(criu.read(&mut [0]).unwrap_or(0), 0);
}

/// Restores tasks that each do `scenario`.
fn restored(tasks: &[(Vpid, u64)], scenario: Scenario, begin: Begin) -> Counters {
    let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
    let memory = Memory::open(&Store::at(scratch.path()), store(scratch.path(), tasks)).unwrap();
    let (ending, ()) = paged(memory, |mut criu, word| {
        let mut processes: Vec<_> =
            tasks.iter().map(|&(vpid, pages)| Task::start(criu, vpid, pages, scenario)).collect();
        criu.write_all(&(-99_i32).to_ne_bytes()).unwrap();
        if begin == Begin::Midway {
            processes.iter_mut().for_each(Task::go);
            processes.iter_mut().for_each(|task| task.wait_for("midway"));
        }
        if begin == Begin::Held {
            word.say().unwrap();
        }
        criu.write_all(&END_MARK.to_ne_bytes()).unwrap();
        if begin != Begin::Midway {
            processes.iter_mut().for_each(Task::go);
        }
        processes.iter_mut().for_each(Task::go);
        processes.into_iter().for_each(Task::assert_well);
    });
    let Ok(Ending::Whole(counters)) = ending else { panic!("{ending:?}") };
    assert_eq!(counters.tasks, tasks.len() as u64);
    counters
}

/// Pages of which the store has bytes.
fn filled(pages: u64) -> u64 {
    (0..pages).filter(|&page| !is_hole(page)).count() as u64
}

#[test]
fn every_byte_is_there_when_it_is_touched_in_any_order() {
    if !possible() {
        return;
    }
    for begin in EVERY_BEGIN {
        let counters = restored(&[(1, PAGES)], Scenario::Touch, begin);
        assert_eq!((counters.pages, counters.gone_pages, counters.forks), (filled(PAGES), 0, 0), "{counters:?}");
    }
}

#[test]
fn tasks_that_never_touch_a_thing_are_filled_all_the_same() {
    if !possible() {
        return;
    }
    let tasks = [(1, PAGES), (7, 3), (8, 0)];
    let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
    let memory = Memory::open(&Store::at(scratch.path()), store(scratch.path(), &tasks)).unwrap();
    let (ending, processes) = paged(memory, |mut criu, held| {
        let processes = tasks.map(|(vpid, pages)| Task::start(criu, vpid, pages, Scenario::Touch));
        held.say().unwrap();
        criu.write_all(&END_MARK.to_ne_bytes()).unwrap();
        wait_for_the_end(criu);
        processes
    });
    let Ok(Ending::Whole(counters)) = ending else { panic!("{ending:?}") };
    assert_eq!((counters.tasks, counters.faults, counters.pages), (3, 0, filled(PAGES) + filled(3)), "{counters:?}");
    assert_eq!(counters.background_pages, counters.pages, "{counters:?}");
    for mut task in processes {
        task.go();
        task.go();
        task.assert_well();
    }
}

#[test]
fn several_tasks_are_filled_at_once_each_with_its_own() {
    if !possible() {
        return;
    }
    let tasks: Vec<_> = (1..=5).map(|vpid: Vpid| (vpid, PAGES / 2 * u64::from(vpid.unsigned_abs()))).collect();
    let counters = restored(&tasks, Scenario::Touch, Begin::Running);
    assert_eq!(counters.pages, tasks.iter().map(|&(_, pages)| filled(pages)).sum::<u64>(), "{counters:?}");
}

#[test]
fn a_child_that_is_forked_meanwhile_has_what_its_parent_had() {
    if !possible() {
        return;
    }
    for begin in EVERY_BEGIN {
        let counters = restored(&[(1, PAGES), (2, PAGES)], Scenario::Fork, begin);
        assert!(counters.forks == 8 || begin != Begin::Midway, "{counters:?}");
    }
}

#[test]
fn memory_that_is_moved_takes_its_contents_along() {
    if !possible() {
        return;
    }
    for begin in EVERY_BEGIN {
        let counters = restored(&[(1, PAGES)], Scenario::Move, begin);
        assert_eq!((counters.pages, counters.gone_pages), (filled(PAGES), 0), "{begin:?} {counters:?}");
    }
}

#[test]
fn what_a_task_has_dropped_or_unmapped_never_comes_back() {
    if !possible() {
        return;
    }
    for begin in EVERY_BEGIN {
        let counters = restored(&[(1, PAGES)], Scenario::Drop, begin);
        assert!(counters.pages < filled(PAGES) || begin != Begin::Midway, "{counters:?}");
    }
}

#[test]
fn threads_that_change_mappings_all_the_time_see_nothing_but_their_own() {
    if !possible() {
        return;
    }
    restored(&[(1, 8 * PAGES)], Scenario::Churn, Begin::Running);
}

#[test]
fn a_task_that_dies_meanwhile_is_no_trouble() {
    if !possible() {
        return;
    }
    let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
    let memory = Memory::open(&Store::at(scratch.path()), store(scratch.path(), &[(1, PAGES), (2, PAGES)])).unwrap();
    let (ending, ()) = paged(memory, |mut criu, _| {
        let mut dies = Task::start(criu, 1, PAGES, Scenario::Touch);
        let mut lives = Task::start(criu, 2, PAGES, Scenario::Touch);
        dies.kill();
        criu.write_all(&END_MARK.to_ne_bytes()).unwrap();
        lives.go();
        lives.go();
        lives.assert_well();
    });
    let Ok(Ending::Whole(counters)) = ending else { panic!("{ending:?}") };
    assert_eq!(counters.pages, filled(PAGES), "{counters:?}");
}

#[test]
fn a_restore_that_ends_before_its_end_mark_is_given_up() {
    if !possible() {
        return;
    }
    for held in [false, true] {
        let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
        let memory = Memory::open(&Store::at(scratch.path()), store(scratch.path(), &[(1, PAGES)])).unwrap();
        let (ending, ()) = paged(memory, |criu, word| {
            let mut task = Task::start(criu, 1, PAGES, Scenario::Touch);
            if held {
                word.say().unwrap();
            }
            task.kill();
        });
        assert!(matches!(ending, Ok(Ending::GivenUp)), "{ending:?}");
    }
}

#[test]
fn a_task_that_nobody_expects_fails_the_restore() {
    if !possible() {
        return;
    }
    let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
    let memory = Memory::open(&Store::at(scratch.path()), store(scratch.path(), &[(1, PAGES)])).unwrap();
    let (ending, ()) = paged(memory, |criu, _| {
        let mut task = Task::start(criu, 2, PAGES, Scenario::Touch);
        task.kill();
    });
    assert!(matches!(ending, Err(PagerError::Unexpected { vpid: 2 })), "{ending:?}");
}

#[test]
fn images_that_do_not_fit_the_restored_mappings_fail_the_restore_while_it_is_held() {
    if !possible() {
        return;
    }
    // More pages than the task has registered.
    let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
    let memory = Memory::open(&Store::at(scratch.path()), store(scratch.path(), &[(1, PAGES + UNUSED + 5)])).unwrap();
    let (ending, ()) = paged(memory, |criu, word| {
        let mut task = Task::start(criu, 1, PAGES, Scenario::Touch);
        word.say().unwrap();
        // CRIU has not closed yet.
        wait_for_the_end(criu);
        task.kill();
    });
    assert!(matches!(ending, Err(PagerError::NotRegistered { vpid: 1, .. })), "{ending:?}");

    // A page that was there before.
    let memory = Memory::open(&Store::at(scratch.path()), store(scratch.path(), &[(1, PAGES)])).unwrap();
    let (ending, ()) = paged(memory, |criu, word| {
        let mut task = Task::start(criu, 1, PAGES, Scenario::Early);
        word.say().unwrap();
        wait_for_the_end(criu);
        task.kill();
    });
    assert!(matches!(ending, Err(PagerError::There { vpid: 1, .. })), "{ending:?}");
}

#[test]
fn no_store_and_pages_that_are_none_are_refused_before_anything() {
    let scratch = tempfile::tempdir().unwrap();
    let lazy = |range: std::ops::Range<u64>| BTreeMap::from([(3, Pages::from_iter([range]))]);
    let missing = Memory::open(&Store::at(scratch.path().join("none")), lazy(PAGE..2 * PAGE));
    assert!(matches!(missing, Err(PagerError::Open(_))), "{missing:?}");
    let store = Store::at(scratch.path());
    for wrong in [1..PAGE, PAGE..2 * PAGE + 1, PAGE..!(PAGE - 1)] {
        let error = Memory::open(&store, lazy(wrong)).unwrap_err();
        assert!(matches!(error, PagerError::Pages { vpid: 3, .. }), "{error}");
    }
    // Of a task without a file no page but zeros has arrived.
    assert!(Memory::open(&store, lazy(PAGE..2 * PAGE)).is_ok());
}
