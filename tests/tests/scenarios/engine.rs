//! What Docker and its users see of a moved container.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use spothop_tests::imds::Action;

use crate::scene::Scene;

/// Prints a number every tenth of a second, and a line for every signal and every line that it reads.
const TALKER: &str = include_str!("programs/talker.py");

/// Prints what a container's first process sees of its own limits, rights and mounts, and kernel parameters.
const INSIDE: &str = include_str!("programs/inside.py");

/// What must not change about a container.
fn identity(inspect: &Value) -> Value {
    let mut host = inspect["HostConfig"].clone();
    for ours in ["Runtime", "Annotations"] {
        host.as_object_mut().expect("an object").remove(ours);
    }
    // An anonymous volume keeps its name, by being asked for by that name.
    let binds = host["Binds"].as_array().cloned().unwrap_or_default();
    host["Binds"] = binds.into_iter().filter(|bind| !bind.to_string().ends_with(":/anonymous\"")).collect();
    let mut mounts = inspect["Mounts"].as_array().expect("a list").clone();
    for mount in &mut mounts {
        // "z" or nothing, as the volume was asked for; only SELinux cares.
        mount.as_object_mut().expect("an object").remove("Mode");
    }
    mounts.sort_by_key(|mount| mount["Destination"].to_string());
    let networks = inspect["NetworkSettings"]["Networks"].as_object().expect("an object").iter();
    let networks: Vec<Value> = networks
        .map(|(name, network)| {
            json!([name, network["IPAddress"], network["IPPrefixLen"], network["MacAddress"], network["Gateway"]])
        })
        .collect();
    let fields = ["Name", "Path", "Args", "Image", "Config"].map(|field| inspect[field].clone());
    json!({"fields": fields, "host": host, "mounts": mounts, "networks": networks})
}

fn assert_same(before: &Value, after: &Value) {
    let (before, after) = (identity(before), identity(after));
    // What differs is easier to see in lines.
    assert_same_lines(&format!("{before:#}"), &format!("{after:#}"));
    assert_eq!(before, after);
}

fn assert_same_lines(before: &str, after: &str) {
    let missing_in = |text: &str, line: &&str| !text.lines().any(|other| other == *line);
    let gone: Vec<&str> = before.lines().filter(|line| missing_in(after, line)).collect();
    let come: Vec<&str> = after.lines().filter(|line| missing_in(before, line)).collect();
    assert!(gone.is_empty() && come.is_empty(), "gone: {gone:#?}\ncome: {come:#?}");
}

pub(crate) fn the_container_is_the_same_to_the_engine_and_never_restarted_at_the_source(scene: &Scene) {
    let options = "--network=lan --ip=172.30.0.51 --mac-address=02:00:00:00:00:51 --restart=always --env=COLOUR=blue \
        --label=tier=gold --label=io.spothop.priority=3 --hostname=talker --workdir=/tmp --volume=kept:/kept \
        --volume=/anonymous --tmpfs=/scratch:size=1m --memory=512m --cpu-shares=512 --ulimit=nofile=1024:2048 \
        --cap-add=NET_ADMIN --cap-drop=MKNOD --log-opt=max-size=1m --stop-signal=SIGTERM --stop-timeout=3 \
        --health-cmd=true --health-interval=1s --add-host=elsewhere:10.1.2.3 --dns=10.9.9.9 --init=false \
        --shm-size=8m --sysctl=net.ipv4.ip_local_port_range='2000 3000' --oom-score-adj=100 --read-only=false python";
    let id = scene.run("a", "t1", options, &["python3", "-c", TALKER]);
    let before = scene.inspect("a", "t1");
    let inside =
        |host| scene.output(host, ["docker", "exec", "t1", "python3", "-c", INSIDE]).expect("a view from inside");
    let view = inside("a");
    let since = scene.sh("a", "date +%s.%N");

    scene.migrate("a", "t1", "b");

    assert_same(&before, &scene.inspect("b", "t1"));
    assert_same_lines(&view, &inside("b"));
    let actions = scene.sh(
        "a",
        &format!(
            "docker events --since={since} --until=$(date +%s.%N) --filter=container={id} --format={{{{.Action}}}}"
        ),
    );
    assert!(actions.contains("die") && actions.contains("destroy"), "{actions}");
    assert!(!actions.lines().any(|action| action == "start"), "{actions}");
    scene.nothing_is_left("b", "t1", &["a", "b"]);

    // The same once more: what was restored can be moved like what was started.
    scene.migrate("b", "t1", "a");
    assert_same(&before, &scene.inspect("a", "t1"));
    assert_same_lines(&view, &inside("a"));
}

pub(crate) fn logs_exec_and_stop_work_after_the_move(scene: &Scene) {
    scene.run("a", "t1", "--network=lan --ip=172.30.0.51 --restart=on-failure:3 python", &["python3", "-c", TALKER]);
    let mut talk = scene.follow("a", "docker logs --follow t1");
    talk.until(|line| line == "number 3");

    scene.migrate("a", "t1", "b");

    let mut talk = scene.follow("b", "docker logs --follow t1");
    let number = talk.until(|line| line.starts_with("number"));
    let number: u64 = number.trim_start_matches("number ").parse().expect("a number");
    assert!(number > 3, "it began anew");
    talk.until(|line| line == format!("number {}", number + 3));
    scene.sh("b", "docker kill --signal=USR1 t1");
    talk.until(|line| line == "heard");
    let inside =
        scene.sh("b", "docker exec t1 python3 -c 'import os; print(os.getpid() > 1, os.path.exists(\"/proc/1\"))'");
    assert_eq!(inside, "True True");
    assert!(scene.sh("b", "docker top t1").contains("python3"));
    scene.sh("b", "docker pause t1; docker unpause t1; docker stats --no-stream t1");
    scene.sh("b", "docker stop --time=10 t1");
    let state = scene.inspect("b", "t1")["State"].take();
    assert_eq!((&state["Status"], &state["ExitCode"]), (&json!("exited"), &json!(7)), "{state:#}");
    assert_eq!(talk.end().0, 0);
    // By hand it starts from the beginning, on the same host, without spothop.
    // What it says first is soon past, on a busy machine before anybody listens.
    let since = scene.sh("b", "date +%s.%N");
    scene.sh("b", "systemctl stop spothop; docker start t1");
    let mut talk = scene.follow("b", &format!("docker logs --follow --since={since} t1"));
    talk.until(|line| line.starts_with("begin"));
    talk.until(|line| line == "number 0");
    scene.sh("b", "systemctl start spothop");
}

pub(crate) fn a_terminal_lives_on(scene: &Scene) {
    scene.run("a", "t1", "--tty --interactive --network=lan --ip=172.30.0.51 python", &["python3", "-c", TALKER]);
    let mut talk = scene.follow("a", "docker logs --follow t1");
    let begin = talk.until(|line| line.starts_with("begin"));
    assert_eq!(begin.trim(), "begin True True");
    talk.until(|line| line.trim() == "number 3");

    scene.migrate("a", "t1", "b");

    let mut talk = scene.follow("b", "docker logs --follow t1");
    let number = talk.until(|line| line.starts_with("number"));
    let number: u64 = number.trim().trim_start_matches("number ").parse().expect("a number");
    assert!(number > 3, "it began anew");
    talk.until(|line| line.trim() == format!("number {}", number + 3));
    // What is typed is echoed and read. The terminal stays attached until the process's answer was seen.
    let mut attached = scene.follow("b", "{ echo typed; sleep 100; } | script -qec 'docker attach t1' /dev/null");
    attached.until(|line| line.trim() == "read typed");
    talk.until(|line| line.trim() == "typed");
    talk.until(|line| line.trim() == "read typed");
}

pub(crate) fn an_image_that_the_target_lacks_is_shipped(scene: &Scene) {
    let image =
        scene.sh("a", "printf 'FROM python\\nLABEL only=here\\n' | DOCKER_BUILDKIT=0 docker build -q -t lonely -");
    scene.sh("b", "docker image rm -f lonely 2>/dev/null || true");
    scene.run("a", "t1", "--network=lan --ip=172.30.0.51 lonely", &["python3", "-c", TALKER]);

    scene.migrate("a", "t1", "b");

    assert_eq!(scene.sh("b", "docker image inspect --format={{.Id}} lonely"), image);
    assert_eq!(scene.inspect("b", "t1")["Config"]["Image"], "lonely");
    let mut talk = scene.follow("b", "docker logs --follow t1");
    talk.until(|line| line.starts_with("number"));
}

pub(crate) fn a_notice_moves_all_containers_in_the_order_of_their_priority(scene: &Scene) {
    for (name, address, priority) in [("low", 52, 1), ("high", 53, 9), ("middle", 54, 5)] {
        let options = format!("--network=lan --ip=172.30.0.{address} --label=io.spothop.priority={priority} python");
        scene.run("a", name, &options, &["python3", "-c", TALKER]);
    }
    scene.notice("a", Action::Terminate, Duration::from_secs(120)).expect("a notice");

    for name in ["low", "high", "middle"] {
        scene.eventually("b", &format!("docker inspect --format={{{{.State.Running}}}} {name} | grep true"));
        scene.eventually("a", &format!("! docker inspect {name}"));
    }
    let mut history = scene.spothop("a", &["history", "-n", "3"]).json.as_array().expect("a list").clone();
    // Ids are UUIDv7, which sort by the time at which they were made.
    history.sort_by_key(|one| one["id"].to_string());
    assert_eq!(history.iter().map(|one| &one["container"]).collect::<Vec<_>>(), ["high", "middle", "low"]);
    // Two at a time: the third waits for the first that is done.
    let at = |one: &Value, phase: &str| -> Timestamp {
        let entry = one["phases"].as_array().and_then(|all| all.iter().find(|entry| entry["phase"] == phase));
        let text = entry.and_then(|entry| entry["at"].as_str()).unwrap_or_else(|| panic!("no {phase} in {one:#}"));
        text.parse().expect("a time")
    };
    let done = history[..2].iter().map(|one| at(one, "cleaned")).min();
    assert!(Some(at(&history[2], "planned")) >= done, "{history:#?}");
    scene.cancel_notice("a").expect("a cancellation");
    scene.eventually("a", "spothop status --json | tr -d ' \\n' | grep -q '\"notices\":\\[\\]'");
}

pub(crate) fn containers_with_an_init_a_read_only_root_or_a_command_under_way_move(scene: &Scene) {
    let kinds = ["--init", "--read-only --tmpfs=/tmp", "--network=none", "--restart=unless-stopped"];
    for (number, options) in kinds.iter().enumerate() {
        let name = format!("k{number}");
        scene.run("a", &name, &format!("{options} python"), &["python3", "-c", TALKER]);
        // What `docker exec` runs is no part of the container: it ends, and must not be in the way.
        scene.sh("a", &format!("docker exec --detach {name} sleep 1000"));

        scene.migrate("a", &name, "b");

        scene.follow("b", &format!("docker logs --follow {name}")).until(|line| line.starts_with("number"));
        let top = scene.sh("b", &format!("docker top {name}"));
        assert_eq!(top.contains("docker-init"), *options == "--init", "{top}");
        assert!(!top.contains("sleep 1000"), "{top}");
        scene.nothing_is_left("b", &name, &["a", "b"]);
        scene.sh("b", &format!("docker rm -f {name}"));
    }
}

pub(crate) fn an_image_of_the_same_name_at_the_target_is_not_taken_for_the_container_s(scene: &Scene) {
    let build = |host, value| {
        let script =
            format!("printf 'FROM python\\nENV WHICH={value}\\n' | DOCKER_BUILDKIT=0 docker build -q -t twin -");
        scene.sh(host, &script)
    };
    let (ours, theirs) = (build("a", "ours"), build("b", "theirs"));
    assert_ne!(ours, theirs);
    scene.run("a", "t1", "--network=lan --ip=172.30.0.51 twin", &["sleep", "1000"]);

    scene.migrate("a", "t1", "b");

    assert_eq!(scene.inspect("b", "t1")["Image"], Value::String(ours));
    assert_eq!(scene.sh("b", "docker exec t1 sh -c 'echo $WHICH'"), "ours");
    assert_eq!(scene.sh("b", "docker image inspect --format={{.Id}} twin"), theirs, "the target's own name was moved");
}
