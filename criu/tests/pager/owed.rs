//! Tasks that run while some of their memory is still elsewhere.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use spothop_criu::memory::pager::{Counters, Ending, Held, Lacking, Memory, PagerError, Piece, ask, lose};
use spothop_criu::memory::{PAGE, Pages, Store, Vpid};
use tempfile::TempDir;

use crate::task::{BASE, END_MARK, Scenario, content, is_hole, shuffled};
use crate::{PAGES, Task, paged, possible, store};

/// Of four pages one is there from the beginning; all that is in the store of the others is older.
fn is_owed(page: u64) -> bool {
    page % 4 != 1
}

/// A restore of tasks that lack pages.
struct Owing {
    scratch: TempDir,
    tasks: Vec<(Vpid, u64)>,
}

impl Owing {
    fn of(tasks: &[(Vpid, u64)]) -> Self {
        Self { scratch: tempfile::tempdir_in("/dev/shm").unwrap(), tasks: tasks.to_vec() }
    }

    fn store(&self) -> PathBuf {
        self.scratch.path().join("memory")
    }

    fn socket(&self) -> PathBuf {
        self.scratch.path().join("owed.sock")
    }

    fn memory(&self) -> Memory {
        let store = Store::at(self.store());
        store.create().unwrap();
        let lazy = crate::store(store.directory(), &self.tasks);
        let mut owed = BTreeMap::new();
        for &(vpid, pages) in &self.tasks {
            let mut all = Pages::new();
            for page in (0..pages).filter(|page| is_owed(*page)) {
                let at = BASE + page * PAGE;
                all.insert(at..at + PAGE);
                // Nothing, or something old.
                match page % 3 {
                    0 => store.zero(vpid, at, PAGE).unwrap(),
                    _ => store.put(vpid, at, &[0xee; PAGE as usize]).unwrap(),
                }
            }
            owed.insert(vpid, all);
        }
        Memory::owing(&store, lazy, &owed, UnixListener::bind(self.socket()).unwrap()).unwrap()
    }
}

/// Brings pages into the store.
fn bring(store: &Path, (vpid, start, end): Piece) {
    let store = Store::at(store);
    for at in (start..end).step_by(PAGE as usize) {
        let page = (at - BASE) / PAGE;
        match is_hole(page) {
            true => store.zero(vpid, at, PAGE).unwrap(),
            false => store.put(vpid, at, &content(vpid, page)).unwrap(),
        }
    }
}

/// How the daemon brings what it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// All that it is told, in large pieces.
    Swift,
    /// A single page at a time, the first that it is told.
    Slow,
    /// The last half of what it is told, from its end on, and says all of it twice.
    Backwards,
}

impl Way {
    const ALL: [Self; 3] = [Self::Swift, Self::Slow, Self::Backwards];

    fn of(self, pages: Vec<Piece>) -> Vec<Piece> {
        match self {
            Self::Swift => pages,
            Self::Slow => pages.first().map(|&(vpid, start, _)| (vpid, start, start + PAGE)).into_iter().collect(),
            Self::Backwards => {
                let half = pages.len() / 2;
                let last: Vec<_> = pages.into_iter().skip(half).rev().collect();
                last.iter().chain(&last).copied().collect()
            }
        }
    }
}

/// One that ends may not answer any more; asked again, there is nobody.
fn asked(socket: &Path, arrived: &[Piece], most: u64) -> Option<Lacking> {
    ask(socket, arrived.to_vec(), most).or_else(|_| ask(socket, arrived.to_vec(), most)).unwrap()
}

/// A daemon that begins when it is told, ends when nothing is owed any more, and says what it has brought.
fn daemon(owing: &Owing, way: Way, begin: Receiver<()>) -> thread::JoinHandle<u64> {
    let (socket, store) = (owing.socket(), owing.store());
    thread::spawn(move || {
        // Dropped, it begins as well.
        let _ = begin.recv();
        let (mut arrived, mut bytes) = (Vec::new(), 0);
        while let Some(lacking) = asked(&socket, &arrived, if way == Way::Swift { 1 << 20 } else { 0 }) {
            if lacking.pages.is_empty() {
                assert_eq!(lacking.bytes, 0);
                break;
            }
            arrived = way.of(lacking.pages);
            for &piece in &arrived {
                bring(&store, piece);
                bytes += piece.2 - piece.1;
            }
        }
        bytes
    })
}

fn run(tasks: &[(Vpid, u64)], scenario: Scenario, way: Way) -> Counters {
    let owing = Owing::of(tasks);
    let memory = owing.memory();
    let (begin, begins) = channel();
    let daemon = daemon(&owing, way, begins);
    let (ending, ()) = paged(memory, |mut criu, word| {
        let mut processes: Vec<_> =
            tasks.iter().map(|&(vpid, pages)| Task::start(criu, vpid, pages, scenario)).collect();
        word.say().unwrap();
        criu.write_all(&END_MARK.to_ne_bytes()).unwrap();
        // They run for a while before anything comes.
        processes.iter_mut().for_each(Task::go);
        processes.iter_mut().for_each(Task::go);
        drop(begin);
        processes.into_iter().for_each(Task::assert_well);
    });
    let Ok(Ending::Whole(counters)) = ending else { panic!("{scenario:?} {way:?}: {ending:?}") };
    daemon.join().unwrap();
    counters
}

/// One run for each of these ways; none where a pager is not possible.
fn run_each(tasks: &[(Vpid, u64)], scenario: Scenario, ways: &[Way]) -> Vec<Counters> {
    if !possible() {
        return Vec::new();
    }
    ways.iter().map(|&way| run(tasks, scenario, way)).collect()
}

/// How the restore of one task ends that lacks pages and reads all of them, while `script` plays CRIU; none where a pager is not possible.
fn one(script: impl FnOnce(&Owing, &UnixStream, &mut Held, Task)) -> Option<(Owing, Result<Ending, PagerError>)> {
    if !possible() {
        return None;
    }
    let owing = Owing::of(&[(1, PAGES)]);
    let (ending, ()) = paged(owing.memory(), |criu, word| {
        let task = Task::start(criu, 1, PAGES, Scenario::Touch);
        script(&owing, criu, word, task);
    });
    Some((owing, ending))
}

#[test]
fn every_byte_that_is_owed_is_the_right_one_in_whatever_order_it_comes() {
    for counters in run_each(&[(1, PAGES), (7, 3), (8, 0)], Scenario::Touch, &Way::ALL) {
        assert!(counters.faults > 0, "{counters:?}");
    }
}

#[test]
fn children_have_what_their_parent_is_owed() {
    run_each(&[(1, PAGES / 2), (2, PAGES / 2)], Scenario::Fork, &Way::ALL);
}

#[test]
fn what_is_owed_follows_memory_that_is_moved() {
    run_each(&[(1, PAGES)], Scenario::Move, &Way::ALL);
}

#[test]
fn what_a_task_has_dropped_does_not_come_any_more() {
    run_each(&[(1, PAGES)], Scenario::Drop, &Way::ALL);
}

#[test]
fn threads_that_change_mappings_while_pages_come_see_nothing_but_their_own() {
    run_each(&[(1, 4 * PAGES)], Scenario::Churn, &[Way::Swift, Way::Backwards]);
}

#[test]
fn what_a_thread_waits_for_comes_before_all_else() {
    let restored = one(|owing, mut criu, word, mut task| {
        word.say().unwrap();
        criu.write_all(&END_MARK.to_ne_bytes()).unwrap();
        let socket = owing.socket();
        let named = |arrived| ask(&socket, arrived, 64 << 10).unwrap().unwrap();
        assert_eq!(named(vec![]).pages[0].1, BASE);
        task.go();
        // It reads pages in an order that jumps about, far from the first.
        let first = loop {
            let first = named(vec![]).pages[0];
            if first.1 != BASE {
                break first;
            }
            thread::yield_now();
        };
        let page = shuffled(PAGES).find(|page| is_owed(*page)).unwrap();
        let block = (BASE + page * PAGE) & !0xffff;
        assert!(block <= first.1 && first.2 <= block + 0x10000, "{first:x?}");
        task.go();
        let (begin, begins) = channel();
        drop(begin);
        daemon(owing, Way::Swift, begins).join().unwrap();
        task.assert_well();
    });
    let Some((_, ending)) = restored else { return };
    assert!(matches!(ending, Ok(Ending::Whole(_))), "{ending:?}");
}

#[test]
fn nobody_is_waited_for_who_has_ended() {
    let restored = one(|owing, mut criu, _, mut task| {
        criu.write_all(&END_MARK.to_ne_bytes()).unwrap();
        assert!(ask(&owing.socket(), vec![], 0).unwrap().unwrap().bytes > 0);
        task.kill();
        crate::wait_for_the_end(criu);
    });
    let Some((owing, ending)) = restored else { return };
    assert!(matches!(ending, Ok(Ending::Whole(_))), "{ending:?}");
    assert_eq!(ask(&owing.socket(), vec![], 0).unwrap(), None, "there is nobody to ask");
}

#[test]
fn what_is_lost_is_never_given_out_as_anything_else() {
    let restored = one(|owing, mut criu, _, mut task| {
        criu.write_all(&END_MARK.to_ne_bytes()).unwrap();
        task.go();
        lose(&owing.socket(), "the source is gone").unwrap();
        crate::wait_for_the_end(criu);
        // The guard's part.
        task.kill();
    });
    let Some((owing, ending)) = restored else { return };
    let Err(PagerError::Lost { why }) = ending else { panic!("{ending:?}") };
    assert_eq!(why, "the source is gone");
    lose(&owing.socket(), "again").unwrap();
}

#[test]
fn a_page_that_is_needed_before_the_tasks_run_fails_the_restore() {
    let restored = one(|_, criu, _, mut task| {
        task.go();
        crate::wait_for_the_end(criu);
        task.kill();
    });
    let Some((_, ending)) = restored else { return };
    assert!(matches!(ending, Err(PagerError::TooEarly { vpid: 1, .. })), "{ending:?}");
}

#[test]
fn pages_that_are_not_lazy_are_not_owed() {
    let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
    let lazy = store(scratch.path(), &[(3, 8)]);
    for (vpid, pages) in [(4, 0..1), (3, 7..9)] {
        let mut owed = Pages::new();
        owed.insert(BASE + pages.start * PAGE..BASE + pages.end * PAGE);
        let owed = [(vpid, owed)].into();
        let socket = UnixListener::bind(scratch.path().join(format!("{vpid}.sock"))).unwrap();
        let error = Memory::owing(&Store::at(scratch.path()), lazy.clone(), &owed, socket).unwrap_err();
        assert!(matches!(error, PagerError::Owed { .. }), "{error}");
    }
}
