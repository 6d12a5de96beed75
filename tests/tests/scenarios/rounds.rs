//! How long memory is sent from under a running container before it is frozen.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use spothop_tests::events::{Events, Kind};
use spothop_tests::imds::Action;
use spothop_tests::imds::ahead::lifecycle;

use crate::notices::{Foretold, calm, end};
use crate::post_copy::{Client, Slow, writer};
use crate::scene::{HOSTS, Scene};

/// What the container writes a second, in MiB: half of what the slow link takes, so that each round leaves about half of what it has
/// sent, and it takes several until little is left. (One that writes as fast as the link is frozen after the first whatever the time.)
const RATE: &str = "12";

/// All of its memory takes 4 s on that link, what was written meanwhile 2 s more, and so on.
const AMPLE: Duration = Duration::from_secs(120);
/// After the first round there is no time left for another one, a last one that is as long, and what the freeze takes on a busy host
/// (`policy::rounds`); but there is for the last one.
const NEAR: Duration = Duration::from_secs(14);
/// The same, counted from the beginning of the first round.
const SOONER: Duration = Duration::from_secs(12);

pub(crate) fn a_deadline_that_is_near_cuts_the_rounds_short_and_the_container_is_moved_before_it(scene: &Scene) {
    let [ample, near] = [AMPLE, NEAR].map(|lead| {
        scene.sh("a", "journalctl --rotate --quiet; journalctl --vacuum-time=1s --quiet");
        writer(scene, RATE, "");
        let client = Client::of(scene);
        let slow = Slow::link(scene);
        let record = moved_by_notice(scene, lead);
        drop(slow);
        client.assert_faithful();
        scene.nothing_is_left("b", "w1", &HOSTS);
        calm(scene);
        scene.sh("b", "docker rm -f w1");

        let committed = entered(&record, |phase| phase == "committed");
        let deadline = time(&record["deadline"]);
        assert!(committed.len() == 1 && committed[0] < deadline, "{record:#}");
        let log = scene.sh("a", "journalctl --unit=spothop --output=cat | grep 'the container is frozen now'");
        let rounds = entered(&record, |phase| phase.starts_with("pre-copy("));
        eprintln!("{} rounds, {} before the deadline: {log}", rounds.len(), deadline.duration_since(committed[0]));
        (rounds.len(), log.contains("Deadline"))
    });
    assert!(!ample.1 && near.1 && near.0 < ample.0, "rounds, and whether the deadline ended them: {ample:?}, {near:?}");
}

pub(crate) fn a_sooner_deadline_that_arrives_under_way_cuts_the_rounds_short(scene: &Scene) {
    scene.sh("a", "journalctl --rotate --quiet; journalctl --vacuum-time=1s --quiet");
    writer(scene, RATE, "");
    let client = Client::of(scene);
    let slow = Slow::link(scene);
    let mut events = Events::follow(scene, "a").expect("a stream of events");
    // Its Auto Scaling group takes the host away, at a time that nobody names.
    let foretold = Foretold::of(scene, lifecycle("Terminated"));
    let first = |kind: &Kind| matches!(kind, Kind::Phase { phase } if phase == "pre-copy(1)");
    assert!(events.any(|event| first(&event.expect("an event").kind)), "there was no round");

    let notice = scene.notice("a", Action::Terminate, SOONER).expect("a notice");

    assert_eq!(end(&mut events), ("moved".to_owned(), None));
    drop(slow);
    client.assert_faithful();
    let record = scene.spothop("a", &["history", "--limit", "1"]).json[0].take();
    let committed = entered(&record, |phase| phase == "committed");
    assert!(committed.len() == 1 && committed[0] < notice.time, "{}: {record:#}", notice.time);
    let log = scene.sh("a", "journalctl --unit=spothop --output=cat | grep 'the container is frozen now'");
    assert!(log.contains("Deadline"), "{log}");
    eprintln!("{} before the deadline: {log}", notice.time.duration_since(committed[0]));
    scene.nothing_is_left("b", "w1", &HOSTS);
    drop(foretold);
    calm(scene);
}

/// Takes `a` away in so long; returns the migration that moves `w1` then, as `a` has recorded it.
fn moved_by_notice(scene: &Scene, lead: Duration) -> Value {
    let mut events = Events::follow(scene, "a").expect("a stream of events");
    scene.notice("a", Action::Terminate, lead).expect("a notice");
    assert_eq!(end(&mut events), ("moved".to_owned(), None));
    scene.spothop("a", &["history", "--limit", "1"]).json[0].take()
}

/// When it has entered phases.
fn entered(record: &Value, wanted: impl Fn(&str) -> bool) -> Vec<Timestamp> {
    let phases = record["phases"].as_array().expect("a list").iter();
    phases.filter(|entry| wanted(entry["phase"].as_str().expect("a name"))).map(|entry| time(&entry["at"])).collect()
}

fn time(value: &Value) -> Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("a time: {value}"))
}
