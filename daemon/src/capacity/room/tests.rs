//! Promises against a host of which every byte is known.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

/// A host whose memory is what it has less what lies in tmpfs and in containers.
#[derive(Debug)]
struct Host {
    memory: u64,
    disk: u64,
    /// What has arrived, by tmpfs.
    tmpfs: Mutex<BTreeMap<PathBuf, u64>>,
    /// What others use.
    used: AtomicU64,
    written: AtomicU64,
    start: Instant,
    seconds: AtomicU64,
}

impl Host {
    fn new(memory: u64, disk: u64) -> Arc<Self> {
        Arc::new(Self {
            memory,
            disk,
            tmpfs: Mutex::default(),
            used: AtomicU64::new(0),
            written: AtomicU64::new(0),
            start: Instant::now(),
            seconds: AtomicU64::new(0),
        })
    }

    fn room(self: &Arc<Self>, reserve: u64) -> Room {
        Room::new(Arc::clone(self) as Arc<dyn Readings>, reserve)
    }

    fn arrives(&self, migration: &str, bytes: u64) {
        *self.tmpfs.lock().unwrap().entry(images(migration)).or_default() += bytes;
    }

    fn used(&self) -> u64 {
        self.tmpfs.lock().unwrap().values().sum::<u64>() + self.used.load(Ordering::SeqCst)
    }

    /// It runs: its memory is a container's, and its tmpfs is gone.
    fn runs(&self, migration: &str, bytes: u64) {
        let mut tmpfs = self.tmpfs.lock().unwrap();
        self.used.fetch_add(bytes, Ordering::SeqCst);
        tmpfs.remove(&images(migration));
    }

    fn passes(&self, time: Duration) {
        self.seconds.fetch_add(time.as_secs(), Ordering::SeqCst);
    }
}

impl Readings for Host {
    fn memory(&self) -> u64 {
        self.memory.saturating_sub(self.used())
    }

    fn disk(&self) -> u64 {
        self.disk.saturating_sub(self.written.load(Ordering::SeqCst))
    }

    fn arrived(&self, images: &Path) -> u64 {
        self.tmpfs.lock().unwrap().get(images).copied().unwrap_or(0)
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_secs(self.seconds.load(Ordering::SeqCst))
    }
}

fn images(migration: &str) -> PathBuf {
    Path::new("/restore").join(migration).join("images")
}

fn promise(migration: &str, memory: u64, disk: u64) -> Promise {
    Promise { migration: migration.to_owned(), memory, disk, images: images(migration), patience: MINUTE }
}

#[test]
fn memory_is_never_promised_twice() {
    let host = Host::new(1_000, 0);
    let room = host.room(100);
    let first = room.reserve(promise("m1", 500, 0)).unwrap();
    let refused = room.reserve(promise("m2", 401, 0)).unwrap_err();
    assert_eq!(refused, NoRoom { what: "memory", needs: 401, free: 400 });
    drop(first);
    room.reserve(promise("m2", 900, 0)).unwrap();
    let again = room.reserve(promise("m2", 400, 0)).unwrap();
    assert_eq!(room.figures().reserved_memory, 500, "the same migration has one promise");
    drop(again);
    assert_eq!(room.figures(), Figures { free_memory: 1_000, reserved_memory: 100, free_disk: 0, promises: 0 });
}

#[test]
fn what_has_arrived_is_counted_once() {
    let host = Host::new(1_000, 0);
    let room = host.room(0);
    let _first = room.reserve(promise("m1", 600, 0)).unwrap();
    host.arrives("m1", 250);
    let figures = room.figures();
    assert_eq!((figures.free_memory, figures.reserved_memory), (750, 350));
    room.reserve(promise("m2", 401, 0)).unwrap_err();
    let _second = room.reserve(promise("m2", 400, 0)).unwrap();
    host.arrives("m1", 500);
    assert_eq!(room.figures().reserved_memory, 400, "more came than was promised, which is nobody else's room");
}

#[test]
fn disk_is_promised_like_memory() {
    let host = Host::new(1_000, 1_000);
    let room = host.room(0);
    let first = room.reserve(promise("m1", 0, 700)).unwrap();
    assert_eq!(room.reserve(promise("m2", 0, 301)).unwrap_err(), NoRoom { what: "disk", needs: 301, free: 300 });
    host.written.fetch_add(600, Ordering::SeqCst);
    first.wrote(600);
    assert_eq!(room.figures().free_disk, 300);
}

#[test]
fn a_promise_ends_with_its_sources_silence_and_not_before() {
    let host = Host::new(1_000, 0);
    let room = host.room(0);
    let first = room.reserve(promise("m1", 1_000, 0)).unwrap();
    host.passes(MINUTE - Duration::from_secs(1));
    first.renew();
    host.passes(MINUTE - Duration::from_secs(1));
    room.reserve(promise("m2", 1, 0)).unwrap_err();
    host.passes(Duration::from_secs(1));
    let second = room.reserve(promise("m2", 1_000, 0)).unwrap();
    first.renew();
    drop(first);
    assert_eq!(room.figures().promises, 1, "whose promise has ended takes nothing from others");
    drop(second);
}

#[test]
fn a_reserve_larger_than_the_host_leaves_no_room() {
    let refused = Host::new(1 << 30, 0).room(u64::MAX).reserve(promise("m1", 1 << 20, 0)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "no room: the container needs 1.0 MiB of memory here, 0 B are free beyond the reserve and what is promised to others"
    );
    Host::new(0, 0).room(0).reserve(promise("m1", 0, 0)).expect("what needs nothing has room anywhere");
}

#[test]
fn a_cgroup_with_a_limit_is_as_large_as_that() {
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| std::fs::write(directory.path().join(file), text).unwrap();
    assert_eq!(in_cgroup(directory.path()), None, "the kernel's own root has no such files");
    write("memory.current", "700\n");
    write("memory.stat", "anon 500\nfile 200\ninactive_file 50\nactive_file 100\nslab_reclaimable 20\n");
    write("memory.max", "max\n");
    assert_eq!(in_cgroup(directory.path()), None);
    write("memory.max", "1000\n");
    assert_eq!(in_cgroup(directory.path()), Some(360));
    write("memory.max", "600\n");
    assert_eq!(in_cgroup(directory.path()), Some(0));
}

/// A hundred sources at once, each of which sends what it was granted, in pieces, and then runs. At no moment is more in use, or
/// promised and not in use, than the host has beyond its reserve.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn a_hundred_sources_at_once_do_not_overcommit() {
    const RESERVE: u64 = 10_000;
    let host = Host::new(100_000, u64::MAX);
    let room = Arc::new(host.room(RESERVE));
    let start = Arc::new(tokio::sync::Barrier::new(100));
    let tasks: Vec<_> = (0..100_u64)
        .map(|number| {
            let (host, room, start) = (Arc::clone(&host), Arc::clone(&room), Arc::clone(&start));
            tokio::spawn(async move {
                let (migration, needs) = (format!("m{number}"), 1_000 + number * 37 % 2_000);
                start.wait().await;
                let Ok(reservation) = room.reserve(promise(&migration, needs, 0)) else { return 0 };
                for _ in 0..10 {
                    host.arrives(&migration, needs / 10);
                    tokio::task::yield_now().await;
                    assert!(host.used() <= 100_000 - RESERVE, "over-committed: {} bytes are used", host.used());
                }
                host.arrives(&migration, needs % 10);
                host.runs(&migration, needs);
                drop(reservation);
                needs
            })
        })
        .collect();
    let mut granted = 0;
    for task in tasks {
        granted += task.await.unwrap();
    }
    assert_eq!(host.used(), granted);
    assert!(granted <= 100_000 - RESERVE, "{granted}");
}

/// What may happen on a host, with a number for which migration and one for how much.
#[derive(Debug, Clone)]
enum Event {
    Asks(u8, u16),
    Arrives(u8, u16),
    Runs(u8),
    GivesUp(u8),
    OthersUse(u16),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0..12_u8, any::<u16>()).prop_map(|(who, bytes)| Event::Asks(who, bytes)),
        6 => (0..12_u8, any::<u16>()).prop_map(|(who, bytes)| Event::Arrives(who, bytes)),
        1 => (0..12_u8).prop_map(Event::Runs),
        1 => (0..12_u8).prop_map(Event::GivesUp),
        1 => (0..500_u16).prop_map(Event::OthersUse),
    ];
    prop::collection::vec(event, 1..200)
}

proptest! {
    /// In whatever order they ask, send, run and give up: what is in use and what is promised and still to come fit into the host
    /// together, as long as nothing else takes memory without asking; and what then is lacking is just that.
    #[test]
    fn nothing_is_ever_promised_twice(events in events(), memory in 50_000..300_000_u64, reserve in 0..20_000_u64) {
        let host = Host::new(memory, u64::MAX);
        let room = host.room(reserve);
        let mut held: BTreeMap<u8, (Reservation, u64, u64)> = BTreeMap::new();
        let mut others = 0;
        for event in events {
            match event {
                Event::Asks(who, bytes) if !held.contains_key(&who) => {
                    let name = format!("m{who}");
                    let free_before = memory - host.used().min(memory);
                    let to_come: u64 = held.values().map(|(_, promised, arrived)| promised - arrived).sum();
                    match room.reserve(promise(&name, bytes.into(), 0)) {
                        Ok(reservation) => { held.insert(who, (reservation, bytes.into(), 0)); }
                        Err(refused) => prop_assert!(refused.needs + to_come + reserve > free_before, "refused although there was room"),
                    }
                }
                Event::Arrives(who, bytes) => if let Some((_, promised, arrived)) = held.get_mut(&who) {
                    let bytes = u64::from(bytes).min(*promised - *arrived);
                    host.arrives(&format!("m{who}"), bytes);
                    *arrived += bytes;
                },
                Event::Runs(who) => if let Some((reservation, _, arrived)) = held.remove(&who) {
                    host.runs(&format!("m{who}"), arrived);
                    drop(reservation);
                },
                Event::GivesUp(who) => if held.remove(&who).is_some() {
                    host.runs(&format!("m{who}"), 0);
                },
                Event::OthersUse(bytes) => {
                    host.used.fetch_add(bytes.into(), Ordering::SeqCst);
                    others += u64::from(bytes);
                }
                Event::Asks(..) => {}
            }
            let to_come: u64 = held.values().map(|(_, promised, arrived)| promised - arrived).sum();
            prop_assert!(host.used() + to_come <= memory.saturating_sub(reserve) + others);
            prop_assert_eq!(room.figures().reserved_memory, reserve + to_come);
        }
    }
}
