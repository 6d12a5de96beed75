//! Containers in an object store: a bucket of an imitation of S3 on the client machine, or a directory.

use std::time::Duration;

use serde_json::Value;
use spothop_tests::imds::Action;
use spothop_tests::moto::Moto;

use crate::files;
use crate::notices;
use crate::provider::{ask_there, moto_beside};
use crate::redis::{assert_faithful, under_load};
use crate::scene::{ABORTED, Answer, HOSTS, MOVED, REFUSED, Scene};

/// `spothop restore` has failed.
const FAILED: i32 = 1;

const BUCKET: &str = "parked";

/// What counts, and can be looked at.
const COUNT: &str = "n=0; while :; do n=$((n+1)); echo $n > /count; sleep 0.1; done";

const KEY: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";

/// A place to park for hosts that are configured for it, until this is dropped.
struct Place<'a> {
    scene: &'a Scene,
    hosts: &'static [&'static str],
}

impl<'a> Place<'a> {
    fn at(scene: &'a Scene, hosts: &'static [&'static str], url: &str) -> Self {
        Self::with(scene, hosts, url, "")
    }

    /// With more tables in the configuration.
    fn with(scene: &'a Scene, hosts: &'static [&'static str], url: &str, tables: &str) -> Self {
        let place = Self { scene, hosts };
        for host in hosts {
            scene.sh(
                host,
                &format!(
                    "echo {KEY} > /etc/spothop/parking.key; chmod 600 /etc/spothop/parking.key; \
                     cp /etc/spothop/config.toml /etc/spothop/config.kept; \
                     printf '\\n[parking]\\nurl = \"{url}\"\\n{tables}\\n' >> /etc/spothop/config.toml"
                ),
            );
            scene.restart_daemon(host);
        }
        place
    }

    /// `spothop park`, which must succeed; returns the checkpoint's URL.
    fn park(&self, host: &str, container: &str) -> String {
        let answer = self.scene.spothop(host, &["park", container]);
        assert_eq!((answer.code, &answer.json["migration"]["outcome"]), (MOVED, &Value::from("moved")), "{answer:?}");
        answer.json["checkpoint"].as_str().expect("a URL").to_owned()
    }

    fn restore(&self, host: &str, arguments: &[&str]) -> Answer {
        let all: Vec<&str> = ["restore"].iter().chain(arguments).copied().collect();
        self.scene.spothop(host, &all)
    }

    fn restored(&self, host: &str, arguments: &[&str]) {
        let answer = self.restore(host, arguments);
        assert_eq!((answer.code, &answer.json["migration"]["outcome"]), (MOVED, &Value::from("moved")), "{answer:?}");
    }

    fn parked(&self, host: &str) -> Vec<Value> {
        let answer = self.scene.spothop(host, &["parked"]);
        answer.json.as_array().unwrap_or_else(|| panic!("{answer:?}")).clone()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        for host in self.hosts {
            // A panic here would hide the reason of another one that is on its way; and a host may be without power.
            let script = "mv /etc/spothop/config.kept /etc/spothop/config.toml; systemctl restart spothop; rm -rf /var/lib/parked";
            if let Err(error) = self.scene.output(host, ["sh", "-ec", script]) {
                eprintln!("{host} is not as it was: {error}");
            }
        }
    }
}

/// A directory of host `a` to park in.
fn directory(scene: &Scene) -> Place<'_> {
    directory_with(scene, "")
}

/// The same, with more tables in the configuration.
fn directory_with<'a>(scene: &'a Scene, tables: &str) -> Place<'a> {
    scene.sh("a", "rm -rf /var/lib/parked; mkdir /var/lib/parked");
    Place::with(scene, &["a"], "file:///var/lib/parked", tables)
}

/// A bucket on the client machine, of which the daemons of both hosts know when they are next started. It goes with its server.
fn bucket(scene: &Scene) -> Moto {
    let moto = moto_beside(scene);
    moto.make_bucket(BUCKET).expect("a bucket");
    for host in HOSTS {
        ask_there(scene, host, "AWS_ENDPOINT_URL", moto.endpoint());
    }
    moto
}

fn assert_refused(answer: &Answer, words: &str) {
    assert_eq!(answer.code, REFUSED, "{answer:?}");
    assert!(answer.stderr.contains(words), "{answer:?}");
}

pub(crate) fn a_redis_is_parked_in_a_bucket_and_restored_by_another_host_after_its_own_has_lost_its_power(_: &Scene) {
    let mut scene = Scene::up("e2e-parking");
    let moto = bucket(&scene);
    let url = format!("s3://{BUCKET}/fleet");
    let (checkpoint, keys) = {
        let place = Place::at(&scene, &HOSTS, &url);
        let (redis, client) = under_load(&scene, 96);
        scene.sh("a", "docker exec r1 redis-cli config set appendonly yes && docker exec r1 redis-cli set parked yes");
        let changes = scene.sh("a", "docker diff r1");
        assert!(changes.contains("appendonly"), "a file of its own: {changes}");
        assert_faithful(client);
        let keys = redis.key_count().expect("a number");

        let checkpoint = place.park("a", "r1");

        assert!(checkpoint.starts_with(&url), "{checkpoint}");
        scene.eventually("a", "test -z \"$(docker ps -aq)\"");
        let objects = moto.objects(BUCKET).expect("a list");
        assert!(objects.iter().any(|(_, tag)| tag.contains('-')), "none came in parts: {objects:?}");
        let view = place.parked("b").pop().expect("a checkpoint");
        assert_eq!((&view["container"], &view["committed"], &view["host"]), (&"r1".into(), &true.into(), &"a".into()));
        eprintln!("{} bytes of memory are {} in the store", view["memory_bytes"], view["stored_bytes"]);
        scene.sh("b", "sed -i s/0f/1f/ /etc/spothop/parking.key");
        assert_refused(&place.restore("b", &[&checkpoint]), "was parked with the key");
        scene.sh("b", "sed -i s/1f/0f/ /etc/spothop/parking.key");
        // What follows is about a host without power, whose configuration cannot be put back, and need not.
        std::mem::forget(place);
        (checkpoint, keys)
    };

    scene.bed().power_off("a").expect("off");

    let place = Place { scene: &scene, hosts: &[] };
    place.restored("b", &[&checkpoint]);
    assert_eq!(scene.sh("b", "docker exec r1 redis-cli dbsize"), keys.to_string());
    assert_eq!(scene.sh("b", "docker exec r1 redis-cli get parked"), "yes");
    assert_eq!(scene.sh("b", "docker exec r1 redis-cli config get appendonly | tail -1"), "yes");
    assert!(scene.sh("b", "docker diff r1").contains("appendonly"));
    let verified = spothop_tests::scenario::Redis::at(&scene, "r1", crate::redis::ADDRESS, 96).verify();
    verified.expect("the data of the beginning");
    scene.nothing_is_left("b", "r1", &["b"]);
    assert_refused(&place.restore("b", &[&checkpoint, "--name", "r2"]), "was claimed by b");
    let view = place.parked("b").pop().expect("a checkpoint");
    assert_eq!(view["claimed_by"], "b");
}

/// Parks a container of `a`, whose daemon is stopped when the manifest is written and COMMIT is not. Returns the checkpoint's URL, as `b` finds
/// it.
fn park_undecided(place: &Place<'_>, container: &str) -> String {
    let scene = place.scene;
    scene.sh("a", "echo 'source:restored stop' > /run/spothop/failpoint");
    scene.sh("a", &format!("setsid spothop park {container} > /dev/null 2>&1 &"));
    scene.eventually("a", "test -e /run/spothop/failpoint.hit");
    let parked = place.parked("b");
    let view = parked.iter().find(|view| view["container"] == container).expect("a checkpoint");
    assert_eq!((&view["committed"], &view["claimed_by"]), (&false.into(), &Value::Null), "{view:#}");
    view["url"].as_str().expect("a URL").to_owned()
}

pub(crate) fn what_was_not_given_away_is_restored_on_somebodys_word_alone_and_runs_once_if_that_was_wrong(_: &Scene) {
    let mut scene = Scene::up("e2e-parking-gone");
    let _moto = bucket(&scene);
    let gone = {
        let place = Place::at(&scene, &HOSTS, &format!("s3://{BUCKET}/fleet"));
        let (redis, client) = under_load(&scene, 8);
        assert_faithful(client);
        let keys = redis.key_count().expect("a number");
        let undecided = park_undecided(&place, "r1");
        assert_refused(&place.restore("b", &[&undecided]), "restore with --source-gone");
        assert_refused(&place.restore("b", &[&undecided, "--copy", "--name", "r2"]), "restore with --source-gone");
        place.restored("b", &[&undecided, "--source-gone"]);
        assert_eq!(scene.sh("b", "docker exec r1 redis-cli dbsize"), keys.to_string());

        // Its source was not gone, and goes on from where it stopped: it lets go.
        scene.sh("a", "kill -CONT $(cat /run/spothop/failpoint.hit); rm /run/spothop/failpoint.*");
        scene.eventually("a", "test -z \"$(docker ps -aq)\"");
        let both = r#""committed":true,"restored":true"#;
        scene.eventually("b", &format!("spothop parked --json | tr -d ' \\n' | grep -q '{both}'"));
        scene.nothing_is_left("b", "r1", &HOSTS);
        assert_refused(&place.restore("a", &[&undecided, "--source-gone"]), "was claimed by b");

        scene.run("a", "g1", "--network=none redis", &["sh", "-c", COUNT]);
        scene.eventually("a", "test $(docker exec g1 cat /count) -gt 20");
        let gone = park_undecided(&place, "g1");
        // What follows is about a host without power, whose configuration cannot be put back, and need not.
        std::mem::forget(place);
        gone
    };

    scene.bed().power_off("a").expect("off");

    let place = Place { scene: &scene, hosts: &[] };
    assert_refused(&place.restore("b", &[&gone]), "restore with --source-gone");
    place.restored("b", &[&gone, "--source-gone"]);
    let first: u32 = scene.sh("b", "docker exec g1 cat /count").parse().expect("a number");
    assert!(first > 20, "it counts from the beginning: {first}");
    scene.eventually("b", &format!("test $(docker exec g1 cat /count) -gt {first}"));
    assert_refused(&place.restore("b", &[&gone, "--source-gone", "--name", "g2"]), "was claimed by b");
}

pub(crate) fn memory_is_parked_in_rounds_at_once_or_by_criu_as_it_is_configured(scene: &Scene) {
    for (way, in_rounds) in [("pre-copy", true), ("stop-and-copy", false), ("dump", false)] {
        let place = directory_with(scene, &format!("[memory]\nmode = \"{way}\""));
        let (redis, client) = under_load(scene, 32);
        assert_faithful(client);
        let answer = scene.spothop("a", &["park", "r1"]);
        let phases = answer.json["migration"]["phases"].as_array().unwrap_or_else(|| panic!("{way}: {answer:?}"));
        let rounds = phases.iter().any(|entered| entered["phase"] == "pre-copy(1)");
        assert_eq!((answer.code, rounds), (MOVED, in_rounds), "{way}: {answer:?}");
        place.restored("a", &[answer.json["checkpoint"].as_str().expect("a URL")]);
        redis.verify().expect("the data of the beginning");
        scene.nothing_is_left("a", "r1", &["a"]);
        scene.sh("a", "docker rm -f r1");
    }
}

pub(crate) fn files_and_volumes_are_the_same_after_a_stay_in_a_directory(scene: &Scene) {
    let place = directory(scene);
    let options = "--restart=always --volume=named:/named --volume=/anonymous python";
    scene.run("a", "f1", options, &["sleep", "1000"]);
    files::python(scene, "a", files::MAKE, "/static /named/static /anonymous/static");
    let tops = "/static /named /anonymous /etc /usr /var /root /tmp /bin /lib";
    let before = files::manifest(scene, "a", tops);

    let checkpoint = place.park("a", "f1");
    scene.eventually("a", "test -z \"$(docker ps -aq)\"");
    assert_eq!(scene.sh("a", "grep -rl sleep /var/lib/parked || true"), "", "what it runs is for nobody to read");
    place.restored("a", &[&checkpoint]);

    files::assert_same(&before, &files::manifest(scene, "a", tops));
    let inspect = scene.inspect("a", "f1");
    assert_eq!(
        (&inspect["RestartCount"], &inspect["HostConfig"]["RestartPolicy"]["Name"]),
        (&0.into(), &"always".into())
    );
    scene.nothing_is_left("a", "f1", &["a"]);
    // A second one must have a name and volumes of its own, which this one has not.
    assert_refused(&place.restore("a", &[&checkpoint]), "was claimed by a");
    let copy = place.restore("a", &[&checkpoint, "--copy", "--name", "f2"]);
    assert_eq!(copy.code, FAILED, "{copy:?}");
    assert!(copy.json["migration"]["reason"].to_string().contains("volume"), "{copy:?}");
    scene.nothing_is_left("a", "f1", &["a"]);
}

/// The container is where it was, as it was, with its client; nothing is left of the attempt.
fn unharmed(scene: &Scene, answer: &Answer, client: spothop_tests::scenario::LiveClient) {
    assert_eq!(answer.code, ABORTED, "{answer:?}");
    scene.nothing_is_left("a", "r1", &["a"]);
    let inspect = scene.inspect("a", "r1");
    assert_eq!((&inspect["State"]["Running"], &inspect["RestartCount"]), (&true.into(), &0.into()));
    assert_eq!(inspect["HostConfig"]["RestartPolicy"]["Name"], "always");
    assert_faithful(client);
}

pub(crate) fn a_store_that_is_full_leaves_the_container_where_it_was(scene: &Scene) {
    let place = directory(scene);
    let (redis, client) = under_load(scene, 64);
    scene.sh("a", "mount -t tmpfs -o size=60m tmpfs /var/lib/parked");

    let answer = scene.spothop("a", &["park", "r1"]);

    let reason = answer.json["migration"]["reason"].to_string();
    let left = scene.sh("a", "find /var/lib/parked -type f; umount /var/lib/parked");
    unharmed(scene, &answer, client);
    assert!(reason.contains("file:///var/lib/parked") && reason.contains("No space left"), "{reason}");
    assert_eq!(left, "");
    redis.verify().expect("the data of the beginning");
    drop(place);
}

pub(crate) fn a_failure_after_the_manifest_leaves_the_container_where_it_was_and_nothing_to_restore(scene: &Scene) {
    let place = directory(scene);
    let (redis, client) = under_load(scene, 4);
    scene.sh("a", "echo 'source:restored error' > /run/spothop/failpoint");
    let answer = scene.spothop("a", &["park", "r1"]);
    unharmed(scene, &answer, client);
    assert_eq!(scene.sh("a", "find /var/lib/parked -type f"), "");
    assert_eq!(place.parked("a"), Vec::<Value>::new());
    redis.verify().expect("the data of the beginning");
    // And it can be tried again.
    let checkpoint = place.park("a", "r1");
    place.restored("a", &[&checkpoint]);
    redis.verify().expect("the data of the beginning");
}

pub(crate) fn a_restore_that_fails_gives_the_checkpoint_back(scene: &Scene) {
    let place = directory(scene);
    let (redis, client) = under_load(scene, 4);
    assert_faithful(client);
    let checkpoint = place.park("a", "r1");
    scene.sh("a", "echo 'target:transferred error' > /run/spothop/failpoint");
    let failed = place.restore("a", &[&checkpoint]);
    assert_eq!(failed.code, FAILED, "{failed:?}");
    scene.eventually("a", "spothop status --json | tr -d ' \\n' | grep -q '\"migrations\":\\[\\]'");
    let back = &place.parked("a")[0];
    assert_eq!((&back["claimed_by"], &back["restored"]), (&Value::Null, &false.into()));
    // A daemon that dies with the restored tasks in its hands finds the checkpoint to be its own, and lets them run.
    scene.sh(
        "a",
        "echo 'target:restored:after kill' > /run/spothop/failpoint; spothop restore $0 || true"
            .replace("$0", &checkpoint)
            .as_str(),
    );
    scene.eventually("a", "docker exec r1 redis-cli ping");
    redis.verify().expect("the data of the beginning");
    scene.nothing_is_left("a", "r1", &["a"]);
    assert_eq!(place.parked("a")[0]["claimed_by"], "a");
    scene.eventually("a", "spothop parked --json | tr -d ' \\n' | grep -q '\"restored\":true'");
}

/// Starts the other daemon again, whatever becomes of the scenario.
struct Alone<'a>(&'a Scene);

impl<'a> Alone<'a> {
    fn of(scene: &'a Scene) -> Self {
        scene.sh("b", "systemctl stop spothop");
        Self(scene)
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.output("b", ["systemctl", "start", "spothop"]) {
            eprintln!("b has no daemon: {error}");
        }
    }
}

pub(crate) fn what_no_host_takes_is_parked_before_a_notices_deadline(scene: &Scene) {
    let place = directory(scene);
    let alone = Alone::of(scene);
    scene.run("a", "p1", "--network=none redis", &["sh", "-c", COUNT]);
    scene.eventually("a", "test $(docker exec p1 cat /count) -gt 20");

    scene.notice("a", Action::Terminate, Duration::from_secs(30)).expect("a notice");

    scene.eventually("a", "test -z \"$(docker ps -aq)\"");
    notices::calm(scene);
    drop(alone);
    let parked = place.parked("a").pop().expect("a checkpoint");
    assert_eq!((&parked["container"], &parked["committed"]), (&"p1".into(), &true.into()), "{parked:#}");
    place.restored("a", &[parked["url"].as_str().expect("a URL")]);
    let first: u32 = scene.sh("a", "docker exec p1 cat /count").parse().expect("a number");
    assert!(first > 20, "it counts from the beginning: {first}");
    scene.eventually("a", &format!("test $(docker exec p1 cat /count) -gt {first}"));
    scene.sh("a", "docker rm -f p1");
}
