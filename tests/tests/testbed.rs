//! The testbed keeps its own promises.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::Bed;
use spothop_tests::command::output;
use spothop_tests::imds::Action;
use spothop_tests::switch::Direction;
use spothop_tests::testbed::{Options, Testbed, down};
use spothop_tests::workload::Workload;
use spothop_tests::{Error, layout::Layout};

fn options() -> Options {
    Options { build: false, ..Options::default() }
}

/// What the metadata service of a host answers at a path, with a fresh token.
fn metadata(bed: &Testbed, host: &str, path: &str) -> String {
    let script = "token=$(curl -s -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' \
                  http://169.254.169.254/latest/api/token); \
                  curl -s -g -w ' %{http_code}' -H \"X-aws-ec2-metadata-token: $token\" \"$0\"";
    bed.output(host, ["sh", "-c", script, path]).expect("curl runs")
}

#[test]
fn hosts_are_booted_machines_that_run_containers_on_one_network() {
    let bed = Bed::up("e2e-hosts", &options());
    for host in ["a", "b"] {
        assert_eq!(bed.output(host, ["systemctl", "is-system-running"]).expect("systemd answers"), "running");
        assert_eq!(bed.output(host, ["hostname"]).expect("a name"), host);
    }
    let id = bed.import_workload(Workload::Redis).expect("an image");
    for host in ["a", "b"] {
        let found = bed.output(host, ["docker", "image", "inspect", "--format={{.Id}}", "redis"]);
        assert_eq!(found.expect("the image"), id);
    }
    bed.output("a", ["docker", "run", "-d", "--network=lan", "--ip=172.30.0.50", "redis"]).expect("a container");
    let ping = ["sh", "-c", "until redis-cli -h 172.30.0.50 ping; do :; done 2>/dev/null"];
    let answer = output(&mut bed.client(ping).expect("a client")).expect("redis-cli runs");
    assert_eq!(answer.stdout.trim_ascii(), b"PONG");
}

#[test]
fn exec_passes_streams_and_the_exit_code() {
    let bed = Bed::up("e2e-exec", &Options { hosts: 1, ..options() });
    let mut cat = bed.exec("a", ["sh", "-c", "cat; echo oops >&2; exit 7"]).expect("a command");
    let input = fs::File::open("/etc/os-release").expect("a file");
    let output = cat.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).output().expect("it runs");
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(output.stdout, fs::read("/etc/os-release").expect("a file"));
    assert_eq!(output.stderr, b"oops\n");
    assert!(matches!(bed.exec("z", ["true"]), Err(Error::NoSuchHost { .. })));
}

#[test]
fn a_notice_is_told_on_both_addresses_and_can_be_taken_back() {
    let bed = Bed::up("e2e-notice", &options());
    let path = "http://169.254.169.254/latest/meta-data/spot/instance-action";
    assert!(metadata(&bed, "a", path).ends_with(" 404"));
    let notice = bed.notice("a", Action::Terminate, Duration::from_secs(120)).expect("a notice");
    let expected = format!("{{\"action\":\"terminate\",\"time\":\"{}\"}} 200", notice.time);
    assert_eq!(metadata(&bed, "a", path), expected);
    assert_eq!(metadata(&bed, "a", "http://[fd00:ec2::254]/latest/meta-data/spot/instance-action"), expected);
    assert!(metadata(&bed, "b", path).ends_with(" 404"), "the other host was told too");
    bed.cancel_notice("a").expect("a cancellation");
    assert!(metadata(&bed, "a", path).ends_with(" 404"));
}

/// Whether a ping from the client to a host is answered.
fn reaches(bed: &Testbed, host: &str) -> bool {
    let mut ping = bed.client(["ping", "-c1", "-W1", host]).expect("a client");
    output(&mut ping).expect("ping runs").status.success()
}

#[test]
fn a_host_can_be_cut_off_in_one_direction_or_both() {
    let bed = Bed::up("e2e-cut", &options());
    let sent = |from: &str| -> u64 {
        let file = format!("/sys/class/net/eth0/statistics/{from}_packets");
        bed.output("a", ["cat", &file]).expect("a counter").parse().expect("a number")
    };
    assert!(reaches(&bed, "a"));
    for direction in [Direction::In, Direction::Out, Direction::Both] {
        bed.cut("a", direction).expect("cut");
        // Seen from the other side of the cut: the client's frames arrive only while the way in is open.
        let before = sent("rx");
        assert!(!reaches(&bed, "a"), "{direction:?}");
        assert_eq!(sent("rx") > before, direction == Direction::Out, "{direction:?}");
        bed.heal("a").expect("healed");
        assert!(reaches(&bed, "a"), "{direction:?}");
    }
    assert!(reaches(&bed, "b"));
}

#[test]
fn a_host_that_lost_its_power_boots_again_on_its_disks() {
    let mut bed = Bed::up("e2e-power", &Options { state_mib: Some(8), ..options() });
    assert!(matches!(bed.power_on("a"), Err(Error::HostOn(_))));
    let write = "echo kept | tee /etc/kept /var/lib/kept /var/lib/spothop/kept /run/lost > /tmp/lost";
    bed.output("a", ["sh", "-c", write]).expect("files");
    bed.import_workload(Workload::Redis).expect("an image");
    bed.output("a", ["docker", "run", "-d", "--name=r1", "--restart=always", "--network=lan", "redis"])
        .expect("a container");

    bed.power_off("a").expect("off");

    assert!(!reaches(&bed, "a"));
    assert!(matches!(bed.exec("a", ["true"]), Err(Error::HostOff(_))));
    assert!(matches!(bed.cut("a", Direction::Both), Err(Error::HostOff(_))));
    assert!(reaches(&bed, "b"));

    bed.power_on("a").expect("on");

    assert!(reaches(&bed, "a"));
    assert_eq!(bed.output("a", ["systemctl", "is-system-running"]).expect("systemd answers"), "running");
    let kept = bed.output("a", ["cat", "/etc/kept", "/var/lib/kept", "/var/lib/spothop/kept"]).expect("files");
    assert_eq!(kept, "kept\nkept\nkept");
    bed.output("a", ["sh", "-c", "! test -e /run/lost && ! test -e /tmp/lost"]).expect("a memory that is empty");
    // The engine starts what its policy says.
    let running = ["sh", "-c", "until docker inspect --format='{{.State.Running}}' r1 | grep true; do :; done"];
    bed.output("a", running).expect("the container");
    // And it can be done again.
    bed.power_off("a").expect("off");
    bed.power_on("a").expect("on");
    assert!(reaches(&bed, "a"));
}

#[test]
fn down_leaves_nothing_after_a_crash() {
    let name = "e2e-crash";
    let bed = Bed::up(name, &options());
    let layout = Layout::new(name).expect("a name");
    // The worst case: a supervisor killed, the state lost.
    let supervisor = bed.state().host("a").expect("a host").supervisor;
    let killed = Command::new("kill").args(["-KILL", &supervisor.to_string()]).status();
    assert!(killed.expect("kill runs").success());
    fs::remove_file(layout.state_file()).expect("a state file");
    let processes: Vec<i32> = bed.state().hosts.iter().flat_map(|host| [host.pid, host.supervisor]).collect();

    down(&layout).expect("down");

    for pid in processes {
        assert!(!Path::new("/proc").join(pid.to_string()).exists(), "process {pid} is left");
    }
    assert!(!layout.run_dir().exists());
    assert!(!layout.data_dir().exists());
    assert!(!layout.switch_namespace_file().exists());
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(name), "{mounts}");
    down(&layout).expect("down once more");
}
