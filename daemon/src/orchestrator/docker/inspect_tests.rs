//! The fixture is what Docker 28.5 says of a container that was given almost every option of `docker run`.

use serde_json::{Value, json};

use super::*;

const FIXTURE: &str = include_str!("fixtures/inspect-28.json");
const ID: &str = "51325d03e9cb414c1a04620abc695f3e815301f26ec2d74ce29828a979102fbc";

/// The fixture, with some values set: JSON pointers and what to put there.
pub(crate) fn found(changes: &[(&str, Value)]) -> ContainerInspectResponse {
    let mut fixture: Value = serde_json::from_str(FIXTURE).expect("json");
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        fixture.pointer_mut(parent).expect("there")[key] = value.clone();
    }
    serde_json::from_value(fixture).expect("an inspect answer")
}

fn network(name: &str, driver: &str, scope: &str) -> (String, Network) {
    let keeps_addresses = driver == "macvlan";
    let (driver, scope) = (driver.to_owned(), scope.to_owned());
    (name.to_owned(), Network { name: name.to_owned(), driver, scope, subnets: Vec::new(), keeps_addresses })
}

fn volume(name: &str, driver: &str, options: &Value) -> (String, DockerVolume) {
    let volume = json!({
        "Name": name, "Driver": driver, "Mountpoint": format!("/volumes/{name}"), "Scope": "local", "Options": options,
        "Labels": { "team": "x", MIGRATION: "an earlier one" },
    });
    (name.to_owned(), serde_json::from_value(volume).expect("a volume"))
}

pub(crate) fn around() -> Surroundings {
    let names = volume_names(&found(&[]));
    Surroundings {
        networks: [network("lan", "macvlan", "local"), network("bridge", "bridge", "local")].into(),
        volumes: names.iter().map(|name| volume(name, "local", &Value::Null)).collect(),
        storage_driver: "overlay2".to_owned(),
        ..Surroundings::default()
    }
}

pub(crate) fn python() -> Image {
    let found = json!({
        "Id": "sha256:1", "RepoTags": ["python:latest", "<none>:<none>"], "RepoDigests": ["python@sha256:2", "<none>@<none>"],
        "Architecture": "arm64", "Os": "linux", "Variant": "v8", "Size": 42,
    });
    image("python".to_owned(), "sha256:1".to_owned(), serde_json::from_value(found).expect("an image"))
}

pub(crate) fn judge(changes: &[(&str, Value)], around: &Surroundings) -> Container {
    container(found(changes), python(), around).expect("a container")
}

fn docker(container: &Container) -> &DockerRecipe {
    let EngineRecipe::Docker(docker) = &container.recipe.engine;
    docker
}

#[test]
fn a_container_says_where_its_parts_lie() {
    let container = judge(&[], &around());
    assert_eq!((container.name.as_str(), container.id.as_str()), ("full", ID));
    assert_eq!(container.priority(), 7);
    assert!(container.tty && !container.has_our_runtime());
    assert_eq!(container.restart_policy, RestartPolicy { name: "on-failure".to_owned(), maximum_retries: 3 });
    assert!(container.upper_dir.as_deref().is_some_and(|path| path.ends_with("diff")));
    assert!(container.merged_dir.as_deref().is_some_and(|path| path.ends_with("merged")));
    let destinations: Vec<_> =
        container.volumes.iter().map(|volume| volume.destination.to_str().expect("utf-8")).collect();
    assert_eq!(destinations, ["/anon", "/anon2", "/data", "/data2"]);
    assert_eq!(container.volumes[2].path, Path::new("/volumes/named"));
    assert!(container.volumes[3].read_only);
    assert_eq!(container.obstacles, []);
}

#[test]
fn an_address_on_macvlan_is_kept() {
    let container = judge(&[], &around());
    assert_eq!(container.network.mode, Mode::KeepIp);
    assert_eq!(container.network.addresses(), ["172.30.0.60".parse::<IpAddr>().expect("an address")]);
    assert_eq!(container.network.attachments[0].mac.as_deref(), Some("02:00:00:00:00:60"));
    assert_eq!(docker(&container).endpoints[0].aliases, ["al1"]);
}

#[test]
fn one_bridge_among_the_networks_makes_the_address_new() {
    let two = json!({ "bridge": { "IPAddress": "172.17.0.2" }, "lan": { "IPAddress": "172.30.0.60" } });
    let container = judge(&[("/NetworkSettings/Networks", two)], &around());
    assert_eq!(container.network.mode, Mode::NewIp);
    let kept: Vec<_> = container.network.attachments.iter().map(|attachment| attachment.keeps_address).collect();
    assert_eq!(kept, [false, true]);
}

#[test]
fn the_hosts_network_and_no_network_are_modes_of_their_own() {
    for (name, mode) in [("host", Mode::Host), ("none", Mode::None)] {
        let changes = [("/HostConfig/NetworkMode", json!(name)), ("/NetworkSettings/Networks", json!({ name: {} }))];
        let container = judge(&changes, &around());
        assert_eq!(container.network, Identity { mode, attachments: Vec::new() });
        assert_eq!(container.obstacles, []);
    }
}

#[test]
fn what_belongs_to_one_host_stays_behind() {
    let changes = [
        ("/HostConfig/ContainerIDFile", json!("/tmp/id")),
        ("/HostConfig/VolumesFrom", json!(["other"])),
        ("/HostConfig/Annotations", json!({ "x.y": "z", MIGRATION: "an earlier one" })),
        ("/HostConfig/NetworkMode", json!("70dd0f33f416271628265395e3cad0eade52f616b69be2b5f0d499d5e0df8403")),
    ];
    let container = judge(&changes, &around());
    let host = &docker(&container).host_config;
    assert_eq!((&host.container_id_file, &host.volumes_from, &host.runtime), (&None, &None, &None));
    assert_eq!(host.annotations, Some([("x.y".to_owned(), "z".to_owned())].into()));
    assert_eq!(host.network_mode.as_deref(), Some("lan"));
    let labels: Vec<_> = container.recipe.volumes.iter().flat_map(|volume| volume.labels.keys()).collect();
    assert_eq!(labels, ["team", "team", "team"]);
}

#[test]
fn volumes_without_a_name_are_bound_by_the_name_they_got() {
    let container = judge(&[], &around());
    let host = &docker(&container).host_config;
    let anonymous = &container.volumes[0].name;
    assert_eq!(host.binds.as_ref().expect("binds")[2], format!("{anonymous}:/anon"));
    assert_eq!(host.mounts.as_ref().expect("mounts")[0].source.as_ref(), Some(&container.volumes[1].name));
    let names: BTreeSet<_> = container.recipe.volumes.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(names.len(), 3, "a volume that is mounted twice is copied once");
}

#[test]
fn a_recipe_survives_its_way_over_the_wire() {
    // Compared as JSON: the library has ports and volumes as lists in no order.
    let told = serde_json::to_value(judge(&[], &around()).recipe).expect("json");
    let heard: Recipe = serde_json::from_value(told.clone()).expect("a recipe");
    assert_eq!(serde_json::to_value(heard).expect("json"), told);
}

/// Texts of the obstacles when one thing is changed.
fn obstacles(pointer: &str, value: Value) -> Vec<String> {
    let container = judge(&[(pointer, value)], &around());
    container.obstacles.iter().map(ToString::to_string).collect()
}

#[test]
fn everything_that_cannot_move_is_named() {
    let bind =
        |destination: &str| json!([{ "Type": "bind", "Source": "/srv", "Destination": destination, "RW": true }]);
    let cases = [
        ("/Config/Labels", json!({ "io.spothop.migrate": "never" }), "migrate=never"),
        ("/Config/Labels", json!({ "com.docker.swarm.service.name": "web" }), "swarm service web"),
        ("/State/Paused", json!(true), "paused"),
        ("/HostConfig/PidMode", json!("host"), "host's pid namespace"),
        ("/HostConfig/IpcMode", json!("host"), "host's ipc namespace"),
        ("/HostConfig/IpcMode", json!("container:abc"), "ipc namespace of container abc"),
        ("/HostConfig/PidMode", json!("container:abc"), "pid namespace of container abc"),
        ("/HostConfig/NetworkMode", json!("container:abc"), "network namespace of container abc"),
        ("/HostConfig/Privileged", json!(true), "privileged"),
        ("/HostConfig/Devices", json!([{ "PathOnHost": "/dev/fuse" }]), "/dev/fuse"),
        ("/HostConfig/DeviceRequests", json!([{ "Driver": "", "Capabilities": [["gpu"]] }]), "driver gpu"),
        ("/HostConfig/Runtime", json!("runsc"), "runtime runsc"),
        ("/HostConfig/Links", json!(["/db:/full/db"]), "/db:/full/db"),
        (
            "/HostConfig/PortBindings",
            json!({ "80/tcp": [{ "HostIp": "10.0.0.1", "HostPort": "80" }] }),
            "address 10.0.0.1",
        ),
        ("/Mounts", bind("/srv"), "label io.spothop.mount./srv=shared"),
        ("/Mounts", json!([{ "Type": "cluster", "Destination": "/c" }]), "type cluster"),
        ("/GraphDriver", json!({ "Name": "overlayfs", "Data": null }), "containerd"),
    ];
    for (pointer, value, words) in cases {
        let told = obstacles(pointer, value);
        assert_eq!(told.len(), 1, "{pointer}: {told:?}");
        assert!(told[0].contains(words), "{pointer}: {told:?}");
    }
}

#[test]
fn what_can_move_is_not_refused() {
    let cases = [
        ("/HostConfig/IpcMode", json!("shareable")),
        ("/HostConfig/UTSMode", json!("host")),
        ("/HostConfig/AutoRemove", json!(true)),
        ("/HostConfig/Runtime", json!("spothop")),
        ("/HostConfig/PortBindings", json!({ "80/tcp": [{ "HostIp": "127.0.0.1", "HostPort": "" }], "81/tcp": null })),
        ("/Mounts", json!([{ "Type": "tmpfs", "Destination": "/t" }])),
    ];
    for (pointer, value) in cases {
        assert_eq!(obstacles(pointer, value), Vec::<String>::new(), "{pointer}");
    }
}

#[test]
fn a_label_makes_a_mount_the_targets_own() {
    let mounts = json!([
        { "Type": "bind", "Source": "/srv/data", "Destination": "/data", "RW": true },
        { "Type": "volume", "Name": "nfs", "Source": "", "Destination": "/nfs", "Driver": "nfs", "RW": true },
    ]);
    let labels = json!({ "io.spothop.mount./data": "shared", "io.spothop.mount./nfs": "shared" });
    let container = judge(&[("/Mounts", mounts), ("/Config/Labels", labels)], &around());
    assert_eq!(container.obstacles, []);
    assert_eq!(container.volumes, []);
    let shared: Vec<_> = container.recipe.shared_mounts.iter().map(|mount| mount.volume.as_deref()).collect();
    assert_eq!(shared, [None, Some("nfs")]);
}

#[test]
fn surroundings_can_speak_against_it() {
    let mut around = around();
    around.volumes.extend([volume("named", "local", &json!({ "type": "nfs" }))]);
    around.networks.extend([network("lan", "overlay", "swarm")]);
    around.remapped_users = true;
    let other = json!([
        { "Id": "other", "Names": ["/other"], "HostConfig": { "NetworkMode": format!("container:{ID}") }, "Mounts": [] },
        { "Id": "third", "Names": ["/third"], "Mounts": [{ "Name": found(&[]).mounts.expect("mounts")[3].name }] },
        { "Id": ID, "Names": ["/full"], "Mounts": [{ "Name": "named" }] },
    ]);
    around.running = serde_json::from_value(other).expect("summaries");
    let told: Vec<_> = judge(&[], &around).obstacles.iter().map(ToString::to_string).collect();
    let words = [
        "user namespace",
        "container other shares",
        "container third",
        "swarm network lan",
        "driver local",
        "driver local",
    ];
    assert_eq!(told.len(), words.len(), "{told:?}");
    for (told, words) in told.iter().zip(words) {
        assert!(told.contains(words), "{told:?}");
    }
}

#[test]
fn a_container_without_a_process_is_not_running() {
    let changes = [("/State/Pid", json!(0)), ("/State/Running", json!(false)), ("/State/Status", json!("exited"))];
    let error = container(found(&changes), python(), &around()).expect_err("refused").to_string();
    assert!(error.contains("full") && error.contains("exited"), "{error}");
}

#[test]
fn a_container_whose_image_is_gone_is_still_listed() {
    let image = image("redis:7".to_owned(), "sha256:1".to_owned(), ImageInspect::default());
    let container = container(found(&[]), image, &around()).expect("a container");
    assert_eq!(container.obstacles, [Obstacle::NoImage { image: "redis:7".to_owned() }]);
}

#[test]
fn lost_names_of_an_image_are_no_names() {
    let image = python();
    assert_eq!((image.tags.as_slice(), image.digests.len()), (["python:latest".to_owned()].as_slice(), 1));
    assert_eq!(image.platform(), "linux/arm64/v8");
}
