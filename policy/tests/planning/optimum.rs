//! Small plans against all that there could be.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use spothop_policy::{Container, Estimates, Facts, Host, HostState, Plan, Rates, Request, labels, plan};

use crate::support::{MIB, container, facts, request};

/// Few hosts and containers that hardly fit.
fn any_small() -> impl Strategy<Value = Request> {
    let host = (256..3_000u64, 0..3_000u64, any::<bool>(), 0..8u32, 0..300u64);
    let one = (64..1_500u64, 0..300u64, 0..200u64, 0..2i64, prop::bool::weighted(0.3));
    let budget = proptest::option::of((1_000..60_000u64).prop_map(Duration::from_millis));
    (vec(host, 1..4), vec(one, 1..6), budget).prop_map(|(hosts, containers, budget)| {
        let hosts = hosts.into_iter().enumerate().map(|(n, (memory, disk, image, cpus, price))| {
            let facts = Facts {
                free_memory_bytes: memory * MIB,
                reserved_memory_bytes: 0,
                free_disk_bytes: disk * MIB,
                images: if image { facts().images } else { Vec::new() },
                cpus,
                load_milli: price * 3,
                price_micros: Some(price * 1_000),
                ..facts()
            };
            Host { name: ["b", "c", "d", "e"][n].to_owned(), state: HostState::Reachable(facts) }
        });
        let containers =
            containers.into_iter().enumerate().map(|(n, (memory, staging, image, priority, grouped))| Container {
                id: format!("id-{n}"),
                priority,
                staging_bytes: staging * MIB,
                image_bytes: image * MIB,
                cpu_milli: staging * 3,
                labels: if grouped {
                    BTreeMap::from([(labels::GROUP.to_owned(), "g".to_owned())])
                } else {
                    BTreeMap::new()
                },
                ..container(&format!("name-{n}"), memory * MIB)
            });
        // To each host its own speed, so that where a container goes decides what is in time.
        let rates = |n: u64| Rates { bytes_per_second: (40 + 60 * n) * 1_000_000, ..Rates::default() };
        let peers = ["b", "c", "d", "e"].iter().zip(0..).map(|(name, n)| ((*name).to_owned(), rates(n))).collect();
        let estimates = Estimates { peers, ..Estimates::default() };
        Request { budget, estimates, ..request(containers.collect(), hosts.collect()) }
    })
}

/// What a plan is worth: priorities of those in time, of those moved, highest first, and what it costs.
type Worth = (Vec<i64>, Vec<i64>, Reverse<i64>);

/// Without a plan's own word on anything but the static cost of each pair: where everybody goes is all that it takes.
fn worth(request: &Request, alone: &BTreeMap<(String, String), Plan>, places: &[(usize, usize)]) -> Option<Worth> {
    let mut members: BTreeMap<usize, Vec<&Container>> = BTreeMap::new();
    let mut moves = Vec::new();
    let mut cost = 0;
    for &(container, host) in places {
        let about = &request.containers[container];
        let step = alone.get(&(about.id.clone(), request.hosts[host].name.clone()))?.moves.first()?.clone();
        let own = step.candidates[0].cost;
        cost += own.total_us();
        moves.push((Reverse(about.priority), step.predicted.total, about.name.clone(), own));
        members.entry(host).or_default().push(about);
    }
    for (host, there) in &members {
        let HostState::Reachable(facts) = &request.hosts[*host].state else { return None };
        let memory: u64 = there.iter().map(|c| c.memory_bytes).sum();
        let staging = there.iter().map(|c| c.staging_bytes).max().unwrap_or(0);
        let image = |c: &&Container| if facts.images.contains(&c.image) { 0 } else { c.image_bytes };
        let disk: u64 = there.iter().map(|c| c.disk_bytes + image(c)).sum();
        let grouped = there.iter().filter(|c| c.groups().next().is_some()).count();
        if memory + staging > facts.room_bytes() || disk > facts.free_disk_bytes || grouped > 1 {
            return None;
        }
        // What they cost together, besides what each would cost alone: both grow with the square.
        let share = |bytes: u64| (bytes as f64 / facts.room_bytes() as f64).powi(2);
        let busy = |milli: u64| {
            if facts.cpus == 0 {
                0.0
            } else {
                ((facts.load_milli + milli) as f64 / 1000.0 / f64::from(facts.cpus)).powi(2)
            }
        };
        let micros = |seconds: f64| (seconds * 1e6).round() as i64;
        let crowd = |memory: u64, cpu: u64| micros(share(memory)) + micros(5.0 * (busy(cpu) - busy(0)));
        cost += crowd(memory, there.iter().map(|c| c.cpu_milli).sum());
        cost -= there.iter().map(|c| crowd(c.memory_bytes, c.cpu_milli)).sum::<i64>();
    }
    // All orders need not be tried: of one priority, the shortest first have the most in time, whatever comes later.
    moves.sort_by(|a, b| (a.0, a.1, &a.2).cmp(&(b.0, b.1, &b.2)));
    let mut clock = Duration::ZERO;
    let mut on_time = Vec::new();
    for (priority, takes, ..) in &moves {
        if request.budget.is_none_or(|budget| clock + *takes <= budget) {
            clock += *takes;
            on_time.push(priority.0);
        }
    }
    Some((on_time, moves.iter().map(|step| step.0.0).collect(), Reverse(cost)))
}

fn best(request: &Request) -> (Worth, Option<Worth>) {
    let mut alone = BTreeMap::new();
    for container in &request.containers {
        for host in &request.hosts {
            let only = Request { containers: vec![container.clone()], hosts: vec![host.clone()], ..request.clone() };
            alone.insert((container.id.clone(), host.name.clone()), plan(&only));
        }
    }
    let choices = request.hosts.len() + 1;
    let all = choices.pow(u32::try_from(request.containers.len()).unwrap());
    let places = |mut number: usize| {
        let mut places = Vec::new();
        for container in 0..request.containers.len() {
            if !number.is_multiple_of(choices) {
                places.push((container, number % choices - 1));
            }
            number /= choices;
        }
        places
    };
    let best = (0..all).filter_map(|number| worth(request, &alone, &places(number))).max().expect("nobody moves");
    let found = plan(request);
    let chosen: Vec<(usize, usize)> = found
        .moves
        .iter()
        .map(|step| {
            let container = request.containers.iter().position(|c| c.id == step.container).unwrap();
            (container, request.hosts.iter().position(|host| host.name == step.target).unwrap())
        })
        .collect();
    assert!(found.proven, "small plans are searched to the end");
    let own: Vec<_> = found.moves.iter().filter(|step| step.fits_deadline).map(|step| step.priority).collect();
    let mine = worth(request, &alone, &chosen);
    assert_eq!(mine.as_ref().map(|worth| &worth.0), Some(&own));
    (best, mine)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn no_other_plan_is_better(request in any_small()) {
        let (best, mine) = best(&request);
        let mine = mine.expect("a plan that nobody is over-committed by");
        prop_assert_eq!((&mine.0, &mine.1), (&best.0, &best.1));
        prop_assert_eq!(mine.2, best.2);
    }

    #[test]
    fn more_room_never_saves_fewer(request in any_small(), more in 0..4_000u64, which in 0..4usize, another in any_small()) {
        let saved = |plan: &Plan| {
            let mut priorities: Vec<i64> =
                plan.moves.iter().filter(|step| step.fits_deadline).map(|step| step.priority).collect();
            priorities.sort_by_key(|priority| Reverse(*priority));
            priorities
        };
        let before = saved(&plan(&request));
        let mut larger = request.clone();
        let count = larger.hosts.len();
        if let HostState::Reachable(facts) = &mut larger.hosts[which % count].state {
            facts.free_memory_bytes += more * MIB;
            facts.free_disk_bytes += more * MIB;
        }
        prop_assert!(saved(&plan(&larger)) >= before);
        let mut wider = request.clone();
        wider.hosts.push(Host { name: "z".to_owned(), ..another.hosts[0].clone() });
        prop_assert!(saved(&plan(&wider)) >= before);
    }
}
