//! What the planner decides in situations that an operator meets.

use std::time::Duration;

use crate::support::{GIB, MIB, bridge, container, host, request};
use insta::assert_snapshot;
use spothop_policy::{
    Container, CpuVerdict, Host, HostState, Network, NetworkIdentity, Plan, ProtocolRange, Refusal, Request, Strategy,
    Times, Version, plan,
};

/// `name → target` in the order of the moves.
fn moves(plan: &Plan) -> Vec<String> {
    plan.moves.iter().map(|step| format!("{} → {}", step.name, step.target)).collect()
}

fn with_priority(priority: i64, container: Container) -> Container {
    Container { priority, ..container }
}

#[test]
fn each_unmet_constraint_is_named_with_its_figures() {
    let macvlan = |subnet: &str| Network {
        name: "lan".to_owned(),
        driver: "macvlan".to_owned(),
        subnets: vec![subnet.to_owned()],
    };
    let unreachable = HostState::Unreachable { reason: "connection refused by 10.0.0.9:7077".to_owned() };
    let hosts = vec![
        host("a", |_| {}),
        Host { name: "b-unreachable".to_owned(), state: unreachable },
        host("c-notice", |f| f.under_notice = Some("aws will terminate i-0 at 2026-01-01T00:02:00Z".to_owned())),
        host("d-declines", |f| {
            f.declines = Some("docker has no runtime `spothop`; run `spothop setup docker`".to_owned())
        }),
        host("e-protocol", |f| f.protocol = ProtocolRange { min: 3, max: 4 }),
        host("f-architecture", |f| f.architecture = "arm64".to_owned()),
        host("g-cpu", |f| f.cpu = CpuVerdict::Incompatible { reason: "avx512f is missing".to_owned() }),
        host("h-kernel", |f| f.kernel = Version::new(5, 15, 200)),
        host("i-no-criu", |f| f.criu = None),
        host("j-old-criu", |f| f.criu = Some(Version::new(4, 1, 9))),
        host("k-no-network", |f| f.networks = vec![bridge()]),
        host("l-other-network", |f| f.networks = vec![macvlan("192.168.7.0/24")]),
        host("m-memory", |f| f.free_memory_bytes = 3 * GIB),
        host("n-disk", |f| f.free_disk_bytes = 5 * MIB),
        host("o-all", |f| {
            f.declines = Some("drained".to_owned());
            f.architecture = "arm64".to_owned();
            f.kernel = Version::new(5, 10, 0);
            f.free_memory_bytes = 0;
        }),
    ];
    let hosts = hosts.into_iter().map(|mut host| {
        let name = host.name.clone();
        if let HostState::Reachable(facts) = &mut host.state
            && !name.contains("network")
        {
            facts.networks.push(macvlan("10.0.0.0/24"));
        }
        host
    });
    let redis = Container {
        staging_bytes: GIB + GIB / 2,
        disk_bytes: 10 * MIB,
        identity: NetworkIdentity::KeepIp,
        networks: vec![macvlan("10.0.0.0/24")],
        ..container("redis", GIB)
    };
    let plan = plan(&request(vec![redis], hosts.collect()));
    assert!(plan.moves.is_empty());
    assert_snapshot!(plan.stays[0].reasons().join("\n"), @r"
    a: the container is on this host
    b-unreachable: unreachable: connection refused by 10.0.0.9:7077
    c-notice: under notice itself: aws will terminate i-0 at 2026-01-01T00:02:00Z
    d-declines: takes no containers: docker has no runtime `spothop`; run `spothop setup docker`
    e-protocol: speaks spothop protocol 3 to 4, the source speaks 1 to 2; upgrade the older one
    f-architecture: architecture is arm64, the image is for amd64
    g-cpu: CPU incompatible: avx512f is missing
    h-kernel: kernel 5.15.200 is older than 6.1.140 of the source
    i-no-criu: CRIU is missing; install 4.2.0 or newer
    j-old-criu: CRIU 4.1.9 is too old; install 4.2.0 or newer
    k-no-network: network lan is missing
    l-other-network: network lan is macvlan 192.168.7.0/24, the container needs macvlan 10.0.0.0/24 to keep its address
    m-memory: no room: needs 2.5 GiB of memory, has 2.0 GiB
    n-disk: no room: needs 10.0 MiB of disk, has 5.0 MiB
    o-all: takes no containers: drained; architecture is arm64, the image is for amd64; kernel 5.10.0 is older than 6.1.140 of the source; no room: needs 2.5 GiB of memory, has 0 B
    ");
}

#[test]
fn the_whole_answer_as_json() {
    let containers = vec![
        with_priority(5, container("redis", GIB)),
        Container { obstacles: vec!["host PID namespace".to_owned()], ..container("agent", 10 * MIB) },
    ];
    let hosts = vec![host("b", |f| f.free_memory_bytes = 4 * GIB), host("c", |_| {}), host("d", |f| f.criu = None)];
    let mut request = request(containers, hosts);
    request.budget = Some(Duration::from_secs(108));
    assert_snapshot!(serde_json::to_string_pretty(&plan(&request)).unwrap());
}

#[test]
fn an_empty_inventory_is_a_reason() {
    let plan = plan(&request(vec![container("redis", GIB)], vec![]));
    assert_eq!(plan.stays[0].reasons(), ["the inventory has no other host; add peers to the configuration"]);
}

#[test]
fn the_best_host_has_a_checked_cpu_then_the_image_then_the_most_memory() {
    let hosts = vec![
        host("unchecked", |f| {
            f.cpu = CpuVerdict::Unknown;
            f.free_memory_bytes = 500 * GIB;
        }),
        host("no-image", |f| {
            f.images.clear();
            f.free_memory_bytes = 200 * GIB;
        }),
        host("small", |_| {}),
        host("large-2", |f| f.free_memory_bytes = 64 * GIB),
        host("large-1", |f| f.free_memory_bytes = 64 * GIB),
    ];
    let plan = plan(&request(vec![container("redis", GIB)], hosts));
    let ranking: Vec<_> = plan.moves[0].candidates.iter().map(|c| format!("{}: {}", c.host, c.reason)).collect();
    assert_snapshot!(ranking.join("\n"), @r"
    large-1: CPU compatible, image present, 62.0 GiB free afterwards; costs 24.88 s (time 13.51, downtime 8.87, interruption 2.50)
    large-2: CPU compatible, image present, 62.0 GiB free afterwards; costs 24.88 s (time 13.51, downtime 8.87, interruption 2.50)
    small: CPU compatible, image present, 6.0 GiB free afterwards; costs 24.90 s (time 13.51, downtime 8.87, interruption 2.50, balance 0.02)
    no-image: CPU compatible, image must be sent, 198.0 GiB free afterwards; costs 25.93 s (time 14.56, downtime 8.87, interruption 2.50)
    unchecked: CPU not checked, image present, 498.0 GiB free afterwards; costs 100024.88 s (time 13.51, downtime 8.87, interruption 2.50, unchecked CPU 100000.00)
    ");
}

#[test]
fn high_priority_goes_first_then_the_quick_then_by_name() {
    let containers = vec![
        container("slow", 2 * GIB),
        container("quick-b", GIB),
        container("quick-a", GIB),
        with_priority(10, container("important", 2 * GIB)),
        with_priority(-1, container("scratch", MIB)),
    ];
    let plan = plan(&request(containers, vec![host("b", |f| f.free_memory_bytes = 64 * GIB)]));
    assert_eq!(moves(&plan), ["important → b", "quick-a → b", "quick-b → b", "slow → b", "scratch → b"]);
}

#[test]
fn scarce_room_goes_to_the_higher_priority() {
    let containers = vec![container("cache", 3 * GIB), with_priority(1, container("database", 5 * GIB))];
    let plan = plan(&request(containers, vec![host("b", |_| {})]));
    assert_eq!(moves(&plan), ["database → b"]);
    let no_room = Refusal::NoMemory { needs_bytes: 3 * GIB, has_bytes: 2 * GIB };
    assert_eq!(plan.stays[0].refusals[0].refusals, [no_room]);
}

#[test]
fn hosts_are_packed_only_when_spreading_would_leave_one_behind() {
    // Spread alone would send the important small one to the emptier host, and then the big one fits nowhere.
    let containers = vec![with_priority(1, container("small", 2 * GIB)), container("big", 7 * GIB)];
    let hosts = || vec![host("b", |f| f.free_memory_bytes = 8 * GIB), host("c", |f| f.free_memory_bytes = 3 * GIB)];
    let packed = plan(&request(containers.clone(), hosts()));
    assert_eq!((packed.strategy, moves(&packed)), (Strategy::Pack, vec!["small → c".to_owned(), "big → b".to_owned()]));

    let alone = plan(&request(containers[..1].to_vec(), hosts()));
    assert_eq!((alone.strategy, moves(&alone)), (Strategy::Spread, vec!["small → b".to_owned()]));
}

#[test]
fn staging_is_needed_for_the_moves_that_run_at_the_same_time() {
    let staged = |name: &str| Container { staging_bytes: 2 * GIB, ..container(name, 2 * GIB) };
    let moved = |concurrency, room: u64| {
        let hosts = vec![host("b", |f| f.free_memory_bytes = room + f.reserved_memory_bytes)];
        let request = request(vec![staged("one"), staged("two"), staged("three")], hosts);
        plan(&Request { concurrency, ..request }).moves.len()
    };
    assert_eq!((moved(1, 8 * GIB), moved(1, 8 * GIB - 1)), (3, 2));
    assert_eq!((moved(2, 10 * GIB), moved(2, 10 * GIB - 1)), (3, 2));
    assert_eq!((moved(9, 12 * GIB), moved(9, 12 * GIB - 1)), (3, 2));
}

#[test]
fn what_cannot_end_in_time_does_not_hold_up_what_can() {
    // The first would take 23.9 s at the default 100 MB/s, a tenth of it twice. Nothing of it is in time, so it goes the way that is over
    // soonest: all of it under the freeze, 20 s and 1.9 s of other costs. The second takes 3.7 s.
    let containers = vec![with_priority(9, container("huge", 2_000_000_000)), container("tiny", 200_000_000)];
    let mut request = request(containers, vec![host("b", |_| {})]);
    request.budget = Some(Duration::from_secs(10));
    let plan = plan(&request);
    let shown = plan.moves.iter().map(|m| (m.name.as_str(), m.fits_deadline, m.ends_after.as_millis()));
    assert_eq!(shown.collect::<Vec<_>>(), [("tiny", true, 3_738), ("huge", false, 25_611)]);
}

#[test]
fn an_image_that_must_be_sent_takes_time_and_disk() {
    let missing = |f: &mut spothop_policy::Facts| {
        f.images.clear();
        f.free_disk_bytes = 100 * MIB;
    };
    let plan = plan(&request(vec![container("one", 0), container("two", 0)], vec![host("b", missing)]));
    assert_eq!(plan.moves.len(), 1, "both would need the room for the image");
    let image = Times { total: Duration::from_millis(1_500 + 1_049), frozen: Duration::from_millis(500) };
    assert_eq!(plan.moves[0].predicted, image);
    let no_disk = Refusal::NoDisk { needs_bytes: 100 * MIB, has_bytes: 0 };
    assert_eq!(plan.stays[0].refusals[0].refusals, [no_disk]);
}

#[test]
fn a_target_may_be_newer_but_not_older() {
    let accepts = |kernel: Version, criu: Version| {
        let hosts = vec![host("b", |f| (f.kernel, f.criu) = (kernel, Some(criu)))];
        plan(&request(vec![container("redis", GIB)], hosts)).stays.is_empty()
    };
    assert!(accepts(Version::new(6, 1, 0), Version::new(4, 2, 0)), "patch levels do not matter");
    assert!(accepts(Version::new(6, 12, 0), Version::new(5, 0, 0)));
    assert!(!accepts(Version::new(6, 0, 200), Version::new(4, 2, 1)));
    assert!(!accepts(Version::new(6, 1, 140), Version::new(4, 1, 9)));
}

#[test]
fn new_ip_needs_only_the_networks_name() {
    let mut other = bridge();
    other.subnets = vec!["172.30.0.0/16".to_owned()];
    let hosts = vec![host("b", |f| f.networks = vec![other])];
    let keep_ip = Container { identity: NetworkIdentity::KeepIp, ..container("kept", GIB) };
    let plan = plan(&request(vec![container("new", GIB), keep_ip], hosts));
    assert_eq!(moves(&plan), ["new → b"]);
}

#[test]
fn a_thousand_hosts_and_twenty_containers_are_planned_also_when_not_all_fit() {
    // The last containers fit nowhere, so that the search has something to look for. How long it takes: `cargo bench-all --only planner`.
    let hosts = (0..1_000).map(|n| host(&format!("host-{n:04}"), |f| f.free_memory_bytes = (n % 32) * GIB)).collect();
    let containers = (1..=20).map(|n| container(&format!("c-{n}"), n * 2 * GIB)).collect();
    let request = request(containers, hosts);
    let plan = plan(&request);
    assert_eq!((plan.moves.len(), plan.stays.len()), (15, 5));
}
