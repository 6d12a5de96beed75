//! The fault matrix in short, and the soak in short: the same engine and checker as `cargo testbed torture` and `… soak`, which
//! run for as long as one likes.

use std::path::Path;
use std::time::Duration;

use spothop_tests::layout::Layout;
use spothop_tests::machine::workspace;
use spothop_tests::soak;
use spothop_tests::switch::Direction;
use spothop_tests::testbed::down;
use spothop_tests::torture::arena::Arena;
use spothop_tests::torture::check::leftovers;
use spothop_tests::torture::inside::Inside;
use spothop_tests::torture::plan::{At, Cause, Fault, Plan, Side, Until, Victim};
use spothop_tests::torture::run;
use spothop_tests::torture::sampler::Sampler;

use crate::scene::Scene;

/// One run for each kind of fault, each at the point where it hurts most.
const RUNS: [(&str, Fault); 12] = [
    ("source:committed", Fault::Kill),
    ("source:committed:after", Fault::Kill),
    ("source:frozen:after", Fault::KillOther { side: Side::Source, victim: Victim::Dockerd }),
    ("source:hook:before", Fault::KillOther { side: Side::Source, victim: Victim::Criu }),
    ("source:hook:held", Fault::KillOther { side: Side::Source, victim: Victim::Runc }),
    ("source:hook:verdict", Fault::KillOther { side: Side::Source, victim: Victim::Daemon }),
    ("target:hook:go", Fault::KillOther { side: Side::Target, victim: Victim::Shim }),
    ("target:create:done", Fault::Kill),
    ("target:memory:10", Fault::StreamCut),
    ("target:restored:after", Fault::Error),
    (
        "target:wrapper:held",
        Fault::Partition {
            side: Side::Source,
            direction: Direction::In,
            until: Until::Passed(Duration::from_millis(1500)),
        },
    ),
    ("source:committed:after", Fault::PowerOff { side: Side::Source, back_after: Duration::ZERO }),
];

/// Hosts that end with the scenario, however that ends.
struct Hosts {
    arena: Arena,
    layout: Layout,
}

impl Hosts {
    fn up(name: &str) -> Self {
        let layout = Layout::new(name).expect("a name that fits");
        let program = Path::new(env!("CARGO_BIN_EXE_testbed"));
        down(&layout).expect("what an earlier run has left goes away");
        let arena = Arena::up(program, &layout, "", false, &|line| eprintln!("{line}")).expect("a testbed");
        Self { arena, layout }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if let Err(error) = down(&self.layout) {
            eprintln!("the testbed {} does not go away: {error}", self.layout.name());
        }
    }
}

pub(crate) fn faults_of_every_kind_in_the_dangerous_windows_neither_lose_nor_double_anything(_: &Scene) {
    let mut hosts = Hosts::up("e2e-matrix");
    let mut wrong = Vec::new();
    for (index, (point, fault)) in (0..).zip(RUNS) {
        let plan = Plan { at: Some(At::Point(point.to_owned())), fault, cause: Cause::Manual };
        let evidence = workspace().join(format!("target/torture/e2e.run-{index}"));
        hosts.arena.ready().expect("hosts that are ready");
        let line = run::run(&mut hosts.arena, 0, index, &plan, &evidence).expect("a run");
        eprintln!("{}", line.text());
        if line.done.is_none() {
            wrong.push(format!("{plan}: was not reached"));
        }
        if !line.violations.is_empty() {
            // What is left of this run must not be the next one's.
            hosts.arena.renew(&|line| eprintln!("{line}")).expect("a testbed");
        }
        wrong.extend(line.violations.iter().map(|what| format!("{plan}: {what}; see {}", evidence.display())));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

pub(crate) fn ten_moves_on_one_connection_leave_nothing_behind(_: &Scene) {
    let hosts = Hosts::up("e2e-soak");
    let outcome = soak::hop(&hosts.arena, 10, &|_| ()).expect("a soak");
    eprintln!("{}", outcome.text());
    assert_eq!(outcome.hops, 10);
    assert!(outcome.wrong.is_empty(), "{:#?}", outcome.wrong);
}

pub(crate) fn the_checker_finds_two_that_run_and_what_is_left(_: &Scene) {
    let hosts = Hosts::up("e2e-checker");
    let arena = &hosts.arena;
    let look = || {
        let sampler = Sampler::start(["a", "b"].map(|host| Inside::of(&arena.bed, host).expect("a host")));
        std::thread::sleep(Duration::from_millis(300)); // some ten looks
        sampler.finish()
    };
    assert_eq!(leftovers(arena).expect("a look"), Vec::<String>::new());
    assert_eq!(look().doubled, 0);
    arena.sh("b", "docker run --detach --name=second redis-python").expect("a second server");
    assert!(arena.source().is_err(), "two of them");
    let watch = look();
    assert!(watch.doubled > 0 && watch.doubled == watch.samples, "{watch:?}");
    // One that stands still cannot do any harm.
    arena.sh("b", "docker pause second").expect("a pause");
    assert_eq!(look().doubled, 0);
    let make = "mkdir -p /run/spothop/dump/x/images /var/lib/spothop/pending; mount -t tmpfs none /run/spothop/dump/x/images; \
                nft add table inet spothop; ip netns add spothop-x; touch /var/lib/spothop/pending/x; \
                docker update --restart=no r1";
    arena.sh("a", make).expect("things that are left");
    let left = leftovers(arena).expect("a look").join("\n");
    for what in [
        "b: frozen",
        "b: containers \"second paused\"",
        "a: mount none /run/spothop/dump/x/images",
        "a: /run/spothop/dump/x",
        "a: /var/lib/spothop/pending/x",
        "a: network namespace spothop-x",
        "a: nft table inet spothop",
        "a: restart policy no",
    ] {
        assert!(left.contains(what), "{what} is not in:\n{left}");
    }
}
