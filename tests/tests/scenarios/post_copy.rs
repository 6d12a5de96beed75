//! Memory that follows a container which runs already: it writes faster than a slow link takes it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use spothop_tests::imds::Action;
use spothop_tests::torture::fault::PAGER;
use spothop_tests::torture::inside::{Inside, Process};

use crate::configured::Configured;
use crate::scene::{ABORTED, HOSTS, MOVED, Scene};

/// See there.
const WRITER: &str = include_str!("programs/writer.py");

const ADDRESS: &str = "172.30.0.71";

/// What `w1` writes a second, in MiB: more than the slow link takes.
const FAST: &str = "100";

const POST_COPY: &str = "mode = 'post-copy'";

/// A link that takes 25 MB a second, until this is dropped.
pub(crate) struct Slow<'a>(&'a Scene);

impl<'a> Slow<'a> {
    pub(crate) fn link(scene: &'a Scene) -> Self {
        scene.sh("a", "tc qdisc replace dev eth0 root tbf rate 200mbit burst 256kb latency 50ms");
        Self(scene)
    }
}

impl Drop for Slow<'_> {
    fn drop(&mut self) {
        // One that has lost its power comes back without it.
        let _ = self.0.output("a", ["tc", "qdisc", "delete", "dev", "eth0", "root"]);
    }
}

/// The container `w1` on host `a`, which writes so many MiB a second to 96 MiB.
pub(crate) fn writer(scene: &Scene, mib_per_second: &str, options: &str) {
    let options = format!("--network=lan --ip={ADDRESS} {options} python");
    scene.run("a", "w1", &options, &["python3", "-c", WRITER, "96", mib_per_second]);
    scene.follow("a", "docker logs --follow w1").until(|line| line == "ready");
}

/// A client that tells the container one number after the other.
pub(crate) struct Client {
    enough: Arc<AtomicBool>,
    thread: JoinHandle<(u64, Duration, String)>,
}

impl Client {
    pub(crate) fn of(scene: &Scene) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&enough);
        let thread = scene.on_client(move || {
            let mut stream = TcpStream::connect((ADDRESS, 7000)).expect("a connection");
            stream.set_read_timeout(Some(Duration::from_secs(100))).expect("a limit");
            let mut answers = BufReader::new(stream.try_clone().expect("the same connection"));
            let mut ask = |line: &str| {
                stream.write_all(line.as_bytes()).expect("the connection lives");
                let mut answer = String::new();
                answers.read_line(&mut answer).expect("the connection lives");
                answer.trim().to_owned()
            };
            let (mut number, mut gap) = (0, Duration::ZERO);
            while !over.load(Ordering::Relaxed) {
                let asked = Instant::now();
                assert_eq!(ask(&format!("note {number}\n")), number.to_string());
                gap = gap.max(asked.elapsed());
                number += 1;
            }
            (number, gap, ask("check\n"))
        });
        Self { enough, thread }
    }

    /// Every page is what it should be, and every number that was acknowledged is there. Returns the longest wait for an answer.
    pub(crate) fn assert_faithful(self) -> Duration {
        self.enough.store(true, Ordering::Relaxed);
        let (numbers, gap, check) = self.thread.join().expect("one connection to the end");
        assert!(check.starts_with(&format!("{numbers} notes, ")), "{numbers} acknowledged: {check}");
        gap
    }
}

/// Whether memory has followed the last migration from `a`.
fn followed(scene: &Scene) -> bool {
    scene.sh("a", "journalctl -u spothop -n 200 --output=cat").contains("the rest of its memory follows")
}

pub(crate) fn a_container_that_writes_faster_than_the_link_runs_before_all_of_its_memory_is_there(scene: &Scene) {
    let mut gaps = Vec::new();
    for (table, options, follows) in [
        ("mode = 'pre-copy'", "", false),
        (POST_COPY, "--label=io.spothop.post-copy=never", false),
        (POST_COPY, "", true),
    ] {
        let configured = Configured::memory(scene, table);
        scene.sh("a", "journalctl --rotate --quiet; journalctl --vacuum-time=1s --quiet");
        writer(scene, FAST, options);
        let client = Client::of(scene);
        let slow = Slow::link(scene);
        scene.migrate("a", "w1", "b");
        drop(slow);
        gaps.push(client.assert_faithful());
        assert_eq!(followed(scene), follows, "{table} {options}");
        scene.nothing_is_left("b", "w1", &HOSTS);
        scene.sh("b", "docker rm -f w1");
        drop(configured);
    }
    eprintln!("longest gaps: {gaps:?}");
    assert!(gaps[2] < gaps[0], "{gaps:?}");
}

pub(crate) fn after_an_abort_of_a_move_whose_memory_was_to_follow_it_goes_another_way(scene: &Scene) {
    let _configured = Configured::memory(scene, POST_COPY);
    scene.sh("a", "journalctl --rotate --quiet; journalctl --vacuum-time=1s --quiet");
    writer(scene, FAST, "");
    let planned = |more: &[&str]| {
        let plan = scene.spothop("a", &[&["plan", "w1", "--to", "b"], more].concat()).json;
        let text = |key: &str| plan["moves"][0][key].as_str().unwrap_or_else(|| panic!("{plan:#}")).to_owned();
        (text("mode"), text("why_mode"))
    };
    let (mode, why) = planned(&[]);
    assert_eq!(mode, "post-copy", "{why}");
    // Nothing follows before a deadline that leaves no time for what may go wrong.
    let (mode, why) = planned(&["--in", "5s"]);
    assert!(mode != "post-copy" && why.contains("not post-copy: may take"), "{mode}: {why}");

    let client = Client::of(scene);
    let slow = Slow::link(scene);
    scene.sh("b", "echo 'target:restored error' > /run/spothop/failpoint");
    let (code, said) = scene.begin("a", "w1", "b").end();
    assert_eq!(code, ABORTED, "{said}");
    let log = scene.sh("a", "journalctl -u spothop -n 200 --output=cat");
    assert!(log.contains("what is left of the memory will follow"), "{log}");

    // Also a daemon that was not there knows it.
    scene.restart_daemon("a");
    scene.eventually("a", "spothop hosts --json | grep -q reachable");
    let (mode, why) = planned(&[]);
    assert!(mode != "post-copy" && why.contains("not post-copy: the last attempt was aborted"), "{mode}: {why}");
    scene.migrate("a", "w1", "b");
    drop(slow);
    client.assert_faithful();
    assert!(!followed(scene));
    scene.nothing_is_left("b", "w1", &HOSTS);
    scene.sh("b", "docker rm -f w1");
}

pub(crate) fn a_daemon_that_dies_while_memory_follows_delays_it_and_loses_nothing(scene: &Scene) {
    let _configured = Configured::memory(scene, POST_COPY);
    for (host, point) in [("b", "target:fill"), ("a", "source:fill")] {
        writer(scene, FAST, "");
        let client = Client::of(scene);
        let slow = Slow::link(scene);
        scene.sh(host, &format!("echo '{point} kill' > /run/spothop/failpoint"));
        let (code, said) = scene.begin("a", "w1", "b").end();
        assert_eq!(code, MOVED, "{said}");
        scene.sh(host, "test -e /run/spothop/failpoint.hit; rm /run/spothop/failpoint.*");
        scene.eventually("b", "spothop status --json | tr -d ' \n' | grep -q '\"migrations\":\\[\\]'");
        drop(slow);
        client.assert_faithful();
        scene.nothing_is_left("b", "w1", &HOSTS);
        scene.sh("b", "docker rm -f w1");
    }
}

pub(crate) fn a_source_that_is_lost_while_memory_follows_takes_it_along_and_the_container_starts_anew(_: &Scene) {
    let mut scene = Scene::up("e2e-post-copy");
    let configured = Configured::memory(&scene, POST_COPY);
    std::mem::forget(configured); // The hosts end with this scenario.
    writer(&scene, FAST, "");
    std::mem::forget(Slow::link(&scene));
    scene.sh("a", "echo 'source:fill stop' > /run/spothop/failpoint");
    scene.notice("a", Action::Terminate, Duration::from_secs(50)).expect("a notice");
    scene.eventually("a", "test -e /run/spothop/failpoint.hit");
    let id = scene.spothop("b", &["status"]).json["migrations"][0]["id"].as_str().expect("an id").to_owned();

    scene.bed().power_off("a").expect("off");

    let over = format!("spothop status {id} --json | grep -q '\"phase\": *\"cleaned\"'");
    scene.sh("b", &format!("until {over}; do sleep 0.2; done"));
    let record = scene.spothop("b", &["status", &id]).json;
    assert_eq!(record["outcome"], "moved", "{record:#}");
    let reason = record["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("part of its memory was lost"), "{record:#}");
    scene.eventually("b", "test \"$(docker logs w1 | grep -c ready)\" = 1 && docker top w1");
    let client = Client::of(&scene);
    client.assert_faithful();
    scene.nothing_is_left("b", "w1", &["b"]);
}

/// The programs that give a container on host `b` its memory: the guard, and the pager, which is its child.
fn guard_and_pager(scene: &Scene) -> [Process; 2] {
    let mut both = Inside::of(scene, "b").expect("host b").with_argument(PAGER);
    let parents: Vec<i32> = both.iter().map(|process| process.pid).collect();
    both.sort_by_key(|process| process.parent().is_some_and(|parent| parents.contains(&parent)));
    both.try_into().expect("two of them")
}

pub(crate) fn what_dies_of_a_pager_while_memory_follows_leaves_a_whole_container_or_one_that_starts_anew(
    scene: &Scene,
) {
    let _configured = Configured::memory(scene, POST_COPY);
    // Nobody but us starts it again.
    for (guard_dies, pager_dies) in [(true, false), (false, true), (true, true)] {
        writer(scene, FAST, "--restart=no");
        let client = (!pager_dies).then(|| Client::of(scene));
        let slow = Slow::link(scene);
        scene.sh("b", "echo 'target:fill stop' > /run/spothop/failpoint");
        let moving = scene.begin("a", "w1", "b");
        scene.eventually("b", "test -e /run/spothop/failpoint.hit");
        let id = scene.spothop("a", &["status"]).json["migrations"][0]["id"].as_str().expect("an id").to_owned();
        let [guard, pager] = guard_and_pager(scene);
        for (process, _) in [(guard, guard_dies), (pager, pager_dies)].iter().filter(|(_, dies)| *dies) {
            process.kill();
        }
        scene.sh("b", "kill -CONT $(cat /run/spothop/failpoint.hit); rm /run/spothop/failpoint.*");

        let (code, said) = moving.end();
        assert_eq!(code, MOVED, "{said}");
        drop(slow);
        scene.nothing_is_left("b", "w1", &HOSTS);
        let records = ["b", "a"].map(|host| scene.spothop(host, &["status", &id]).json);
        for record in &records {
            assert_eq!(record["outcome"], "moved", "{record:#}");
            let reason = record["reason"].as_str().unwrap_or_default();
            assert_eq!(reason.contains("part of its memory was lost"), pager_dies, "{record:#}");
        }
        let record = &records[0];
        let client = client.unwrap_or_else(|| {
            let reason =
                if guard_dies { "its pager and the pager's guard here have died" } else { "the pager has ended" };
            assert!(record["reason"].as_str().unwrap_or_default().contains(reason), "{record:#}");
            scene.follow("b", "docker logs --follow w1").until(|line| line == "ready");
            Client::of(scene)
        });
        client.assert_faithful();
        scene.sh("b", "docker rm -f w1");
    }
}
