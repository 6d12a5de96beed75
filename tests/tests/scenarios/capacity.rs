//! More hosts, launched while two of them are taken away and no other one has room.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use spothop_tests::etcd::Etcd;
use spothop_tests::imds::Action;
use spothop_tests::layout::CLIENT_ADDRESS;
use spothop_tests::moto::REGION;
use spothop_tests::scenario::Redis;

use crate::provider::cloud_over;
use crate::redis::{ADDRESS, assert_faithful, under_load};
use crate::scene::Scene;

/// Those that are taken away. They and `c` have no room; `d` is off until it is launched.
const TAKEN: [&str; 2] = ["a", "b"];

/// Data in the Redis.
const MIB: u64 = 16;

/// Long enough for a launch, a boot and two moves.
const LEAD: Duration = Duration::from_secs(120);

/// Every host finds the others in etcd; those that are taken may have one instance launched, all together.
fn configure(scene: &Scene, etcd: &str) {
    let launch = format!(
        "[capacity.ec2]\nregion = \"{REGION}\"\ntemplate = \"spothop\"\nroom = \"1GiB\"\nfleet = \"prod\"\nmax_instances = 1\nmax_price = \"0.2\"\n"
    );
    let full = "[limits]\nmemory_reserve = \"1024TiB\"\n";
    let both = format!("{launch}{full}");
    for (host, more) in [("a", both.as_str()), ("b", both.as_str()), ("c", full), ("d", "")] {
        let text =
            format!("[host]\nname = \"{host}\"\n[inventory.etcd]\nendpoints = [\"{etcd}\"]\nttl = \"5s\"\n{more}");
        scene.sh(host, &format!("rm -f /var/lib/spothop/inventory.json; printf '{text}' > /etc/spothop/config.toml"));
        scene.restart_daemon(host);
    }
}

/// Waits until a daemon has said this.
fn said(scene: &Scene, host: &str, words: &str) {
    scene.eventually(host, &format!("journalctl -u spothop -b | grep -q '{words}'"));
}

pub(crate) fn what_has_no_room_anywhere_goes_to_an_instance_that_is_launched_for_it_within_the_fleets_budget(
    _: &Scene,
) {
    let mut scene = Scene::up_with("e2e-capacity", 4);
    let network = PathBuf::from(format!("/proc/{}/ns/net", scene.state().client.pid));
    let etcd = Etcd::start(CLIENT_ADDRESS, Some(&network), &|line| eprintln!("{line}")).expect("etcd");
    let (moto, _) = cloud_over(&scene);
    moto.make_template("spothop").expect("a launch template");
    configure(&scene, &etcd.endpoint());
    scene.eventually("a", "spothop hosts | grep -q '^d .* ready'");
    scene.bed().power_off("d").expect("off");
    for host in TAKEN {
        scene.eventually(host, "! spothop hosts | grep -q '^d '");
        scene.eventually(host, "spothop hosts | grep -q '^c '");
    }
    let launched = || -> Vec<String> { moto.tagged("spothop:fleet=prod").expect("a list") };
    let (_, client) = under_load(&scene, MIB);
    scene.run("b", "k1", "--network=lan --ip=172.30.0.56 python", &["sleep", "1000"]);

    let notice = scene.notice("a", Action::Terminate, LEAD).expect("a notice");
    let since = Instant::now();
    said(&scene, "a", "instances are launched for what has no room elsewhere");
    let first = launched();
    assert_eq!(first.len(), 1, "{first:?}");
    // The other one of the fleet has a budget of its own no more.
    scene.notice("b", Action::Terminate, LEAD).expect("a notice");
    said(
        &scene,
        "b",
        "the budget of .capacity.ec2. is used up: 1 instances of this fleet live, for up to .0.20 an hour",
    );
    for (host, container) in [("a", "r1"), ("b", "k1")] {
        assert_eq!(scene.sh(host, &format!("docker inspect --format={{{{.State.Running}}}} {container}")), "true");
    }

    // What is only an id at EC2 becomes a host: its image starts the daemon, which enters itself.
    scene.bed().power_on("d").expect("on");
    scene.identify("d", &first[0]).expect("a metadata service");

    scene.eventually("d", "docker inspect --format={{.State.Running}} r1 | grep true");
    scene.eventually("d", "docker inspect --format={{.State.Running}} k1 | grep true");
    eprintln!("{} s from the notice until both run at the new host", since.elapsed().as_secs());
    assert!(Timestamp::now() < notice.time, "that was too late");
    for (host, container) in [("a", "r1"), ("b", "k1")] {
        scene.eventually(host, &format!("! docker inspect {container}"));
    }
    let report = assert_faithful(client);
    eprintln!("longest gap {:.0} ms", report.longest_gap_ms);
    assert_eq!(scene.sh("d", "docker inspect --format={{.RestartCount}} r1"), "0");
    Redis::at(&scene, "r1", ADDRESS, MIB).verify().expect("the data of the beginning");
    assert_eq!(launched(), first, "never more than the budget");
}
