//! Targets that will not do: the container goes on where it is, and the reason is precise.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use spothop_tests::imds::Action;
use spothop_tests::imds::ahead::maintenance;

use crate::notices::{Foretold, calm};
use crate::post_copy::{Client, Slow, writer};
use crate::redis::{assert_faithful, under_load};
use crate::scene::{ABORTED, Answer, HOSTS, REFUSED, Scene};

/// Asks for a migration that must be refused for each of these reasons, with the container and its connection untouched.
fn assert_refused(scene: &Scene, reasons: &[&str]) {
    let (_redis, client) = under_load(scene, 1);
    let answer = scene.spothop("a", &["migrate", "r1", "--to", "b"]);
    let text = said_by(&answer);
    assert_eq!(answer.code, REFUSED, "{text}");
    for reason in reasons {
        assert!(text.contains(reason), "{reason} is not in: {text}");
    }
    assert_faithful(client);
    scene.nothing_is_left("a", "r1", &["a", "b"]);
    assert_eq!(scene.inspect("a", "r1")["HostConfig"]["RestartPolicy"]["Name"], "always");
}

fn said_by(answer: &Answer) -> String {
    format!("{} {}", answer.json, answer.stderr)
}

/// Puts a file of a host back, and restarts its daemon, when a scenario is over.
pub(crate) struct PutBack<'a> {
    scene: &'a Scene,
    host: &'static str,
    path: &'static str,
}

impl<'a> PutBack<'a> {
    pub(crate) fn later(scene: &'a Scene, host: &'static str, path: &'static str) -> Self {
        scene.sh(host, &format!("rm -rf {path}.kept; cp -a {path} {path}.kept"));
        Self { scene, host, path }
    }
}

impl Drop for PutBack<'_> {
    fn drop(&mut self) {
        let path = self.path;
        // A panic here, while another one is on its way, would hide the reason of both.
        let script = format!("rm -rf {path}; mv {path}.kept {path}; systemctl restart spothop");
        if let Err(error) = self.scene.output(self.host, ["sh", "-ec", &script]) {
            eprintln!("{} is not as it was: {error}", self.host);
        }
    }
}

pub(crate) fn a_target_without_memory_refuses_with_figures(scene: &Scene) {
    let _later = PutBack::later(scene, "b", "/etc/spothop/config.toml");
    scene.sh("b", "printf '\\n[limits]\\nmemory_reserve = \"1TiB\"\\n' >> /etc/spothop/config.toml");
    scene.restart_daemon("b");
    assert_refused(scene, &["memory", "MiB"]);
}

pub(crate) fn a_certificate_of_another_authority_is_named_as_the_reason(scene: &Scene) {
    let _later = PutBack::later(scene, "b", "/etc/spothop/tls");
    scene.sh(
        "b",
        "rm -rf /tmp/other; spothop cert init --dir /tmp/other; rm -r /etc/spothop/tls; \
         spothop cert issue b --dir /tmp/other --out /etc/spothop/tls",
    );
    scene.restart_daemon("b");
    let hosts = said_by(&scene.spothop("a", &["hosts"]));
    assert!(hosts.contains("UnknownIssuer") && hosts.contains("ca.pem"), "{hosts}");
    assert_refused(scene, &["UnknownIssuer", "ca.pem"]);
}

pub(crate) fn a_certificate_of_another_host_is_named_as_the_reason(scene: &Scene) {
    let _later = PutBack::later(scene, "b", "/etc/spothop/tls");
    // Of the right authority, whose key is not on the hosts.
    scene.issue_certificate("mallory", "b");
    scene.restart_daemon("b");
    let hosts = said_by(&scene.spothop("a", &["hosts"]));
    assert!(hosts.contains("mallory"), "{hosts}");
    assert_refused(scene, &["mallory"]);
}

/// Writes a file into a host's tls directory.
fn put(scene: &Scene, host: &str, file: &str, text: &str) {
    scene.sh(host, &format!("cat > /etc/spothop/tls/{file} <<'END'\n{text}\nEND"));
}

pub(crate) fn a_certificate_is_rotated_without_a_restart(scene: &Scene) {
    let _later = HOSTS.map(|host| PutBack::later(scene, host, "/etc/spothop/tls"));
    let daemons = || HOSTS.map(|host| scene.sh(host, "systemctl show --property=MainPID --value spothop"));
    let (redis, client) = under_load(scene, 4);
    let before = daemons();
    scene.migrate("a", "r1", "b");

    scene.sh(
        "a",
        "rm -rf /tmp/new; spothop cert init --dir /tmp/new; \
         for host in a b; do spothop cert issue $host --dir /tmp/new --out /tmp/new/$host; done",
    );
    let new = |file: &str| scene.sh("a", &format!("cat /tmp/new/{file}"));
    // The new authority is trusted everywhere before it has issued anything that is used.
    for host in HOSTS {
        let old = scene.sh(host, "cat /etc/spothop/tls/ca.pem");
        put(scene, host, "ca.pem", &format!("{old}\n{}", new("ca.pem")));
    }
    // One host after the other; in between they are of two authorities, and half of a pair changes nothing.
    put(scene, "a", "host.pem", &new("a/host.pem"));
    scene.migrate("b", "r1", "a");
    put(scene, "a", "host.key", &new("a/host.key"));
    scene.migrate("a", "r1", "b");
    put(scene, "b", "host.pem", &new("b/host.pem"));
    put(scene, "b", "host.key", &new("b/host.key"));
    scene.sh("b", "systemctl reload spothop");
    scene.eventually("b", "journalctl --unit=spothop --lines=50 | grep -q 'certificates were read again'");
    // The old one goes.
    for host in HOSTS {
        put(scene, host, "ca.pem", &new("ca.pem"));
    }
    scene.migrate("b", "r1", "a");

    assert_eq!(daemons(), before, "no daemon was started again");
    assert_faithful(client);
    redis.verify().expect("the data of the beginning");
}

pub(crate) fn a_host_that_is_not_in_the_inventory_is_refused_and_named_in_the_log(scene: &Scene) {
    let _later = PutBack::later(scene, "b", "/etc/spothop/config.toml");
    scene.sh("b", "sed -i 's/^name = \"a\"$/name = \"somebody\"/' /etc/spothop/config.toml");
    scene.restart_daemon("b");
    let hosts = said_by(&scene.spothop("a", &["hosts"]));
    assert!(hosts.contains("does not know this host"), "{hosts}");
    scene.eventually(
        "b",
        "journalctl --unit=spothop --lines=50 | grep -q 'good certificate for .*a.*, which is not under'",
    );
    assert_refused(scene, &["does not know this host"]);
}

pub(crate) fn a_name_that_is_taken_at_the_target_is_left_alone(scene: &Scene) {
    let (_redis, client) = under_load(scene, 1);
    let theirs = scene.run("b", "r1", "python", &["sleep", "1000"]);
    let answer = scene.spothop("a", &["migrate", "r1", "--to", "b"]);
    assert_eq!(answer.code, ABORTED, "{answer:?}");
    let reason = answer.json["migrations"][0]["reason"].to_string();
    assert!(reason.contains("already has a container named r1"), "{reason}");
    assert_faithful(client);
    assert_eq!(scene.inspect("b", "r1")["Id"], theirs);
    scene.sh("b", "docker rm -f r1");
    scene.nothing_is_left("a", "r1", &["a", "b"]);
}

pub(crate) fn a_host_that_is_about_to_be_maintained_accepts_nothing(scene: &Scene) {
    let id = scene.run("b", "t1", "--network=lan --ip=172.30.0.59 python", &["sleep", "1000"]);
    let before = scene.inspect("b", "t1")["State"].clone();
    let start = Timestamp::now() + SignedDuration::from_mins(5);
    let foretold = Foretold::of(scene, maintenance("system-reboot", start, "active"));
    // The others see it, too, and so choose nothing that would be refused.
    scene.eventually("b", "spothop hosts | grep -q 'under notice'");

    let answer = scene.spothop("b", &["migrate", "t1", "--to", "a"]);

    assert_eq!(answer.code, REFUSED, "{answer:?}");
    let text = said_by(&answer);
    assert!(text.contains("notice") && text.contains("reboot"), "{text}");
    assert_eq!(scene.inspect("b", "t1")["State"], before);
    drop(foretold);
    calm(scene);
    // When that is off it takes what comes.
    scene.eventually("b", "! spothop hosts | grep -q 'under notice'");
    scene.migrate("b", "t1", "a");
    assert_ne!(scene.inspect("a", "t1")["Id"], id);
}

pub(crate) fn a_target_that_is_taken_away_itself_gives_back_what_is_not_frozen(scene: &Scene) {
    // Half of what the slow link takes: the rounds go on for seconds.
    writer(scene, "12", "");
    let before = scene.inspect("a", "w1")["State"].clone();
    let client = Client::of(scene);
    let slow = Slow::link(scene);
    let mut moving = scene.begin("a", "w1", "b");
    moving.until("pre-copy(1)");

    scene.notice("b", Action::Terminate, Duration::from_secs(120)).expect("a notice");

    let (code, said) = moving.end();
    drop(slow);
    scene.cancel_notice("b").expect("a cancellation");
    assert_eq!(code, ABORTED, "{said}");
    assert!(said.contains("under notice itself") && !said.contains("frozen (after"), "{said}");
    assert_eq!(scene.inspect("a", "w1")["State"], before);
    client.assert_faithful();
    scene.nothing_is_left("a", "w1", &HOSTS);
    scene.eventually("b", "spothop status --json | tr -d ' \\n' | grep -q '\"notices\":\\[\\]'");
}
