//! What holds for every plan whatsoever.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use spothop_policy::{
    Container, CpuVerdict, Estimates, Facts, Habits, Host, HostState, Leaves, NetworkIdentity, Rates, Refusal, Request,
    Version, labels, plan,
};

use crate::support::{MIB, bridge, container, facts, request, source};

/// Mostly hosts that differ in room; some with one defect.
fn any_state() -> impl Strategy<Value = HostState> {
    let room = (0..4_096u64, 0..512u64, 0..4_096u64, any::<bool>()).prop_map(|(free, reserved, disk, image)| Facts {
        free_memory_bytes: free * MIB,
        reserved_memory_bytes: reserved * MIB,
        cpus: (free % 5) as u32,
        load_milli: reserved * 4,
        price_micros: (disk % 3 > 0).then_some(disk * 10),
        spot: [None, Some(true), Some(false)][(free % 3) as usize],
        free_disk_bytes: disk * MIB,
        images: if image { facts().images } else { Vec::new() },
        ..facts()
    });
    let defect = select(vec![
        (|_| {}) as fn(&mut Facts),
        |f| f.cpu = CpuVerdict::Unknown,
        |f| f.cpu = CpuVerdict::Incompatible { reason: "avx2 is missing".to_owned() },
        |f| f.architecture = "arm64".to_owned(),
        |f| f.kernel = Version::new(5, 4, 0),
        |f| f.criu = None,
        |f| f.networks.clear(),
        |f| f.declines = Some("drained".to_owned()),
    ]);
    let reachable = |defect| {
        (room.clone(), defect).prop_map(|(mut facts, change): (Facts, fn(&mut Facts))| {
            change(&mut facts);
            HostState::Reachable(facts)
        })
    };
    prop_oneof![
        6 => reachable(Just((|_| {}) as fn(&mut Facts)).boxed()),
        3 => reachable(defect.boxed()),
        1 => Just(HostState::Unreachable { reason: "timed out".to_owned() }),
    ]
}

/// Up to eight hosts, the source sometimes among them.
fn any_hosts() -> impl Strategy<Value = Vec<Host>> {
    vec(any_state(), 0..8).prop_map(|states| {
        let host = |(n, state): (usize, HostState)| Host {
            name: ["c", "b", "a", "d", "e", "f", "g", "h"][n].to_owned(),
            state,
        };
        states.into_iter().enumerate().map(host).collect()
    })
}

fn any_container() -> impl Strategy<Value = Container> {
    let sizes = (0..2_048u64, 0..512u64, 0..512u64, 0..512u64);
    let obstacle = prop::bool::weighted(0.1);
    (sizes, -1..3i64, any::<bool>(), obstacle).prop_map(|(sizes, priority, keep_ip, obstacle)| Container {
        priority,
        staging_bytes: sizes.1 * MIB,
        disk_bytes: sizes.2 * MIB,
        image_bytes: sizes.3 * MIB,
        cpu_milli: sizes.1,
        labels: if sizes.2 % 3 == 0 {
            BTreeMap::from([(labels::GROUP.to_owned(), "g".to_owned())])
        } else {
            BTreeMap::new()
        },
        identity: if keep_ip { NetworkIdentity::KeepIp } else { NetworkIdentity::NewIp },
        networks: if keep_ip { vec![bridge()] } else { Vec::new() },
        obstacles: if obstacle { vec!["io_uring".to_owned()] } else { Vec::new() },
        ..container("", sizes.0 * MIB)
    })
}

fn any_request() -> impl Strategy<Value = Request> {
    let budget = proptest::option::of((0..120_000u64).prop_map(Duration::from_millis));
    let leaves = select(vec![Leaves::PostCopy, Leaves::PreCopy, Leaves::StopAndCopy, Leaves::Dump]);
    let habits = vec((0..5u64, 0..4_000_000u64, 0..1_200_000u64), 0..5);
    let habits = habits.prop_map(|all| {
        all.into_iter().map(|(n, sent_ppm, left_ppm)| (format!("name-{n}"), Habits { sent_ppm, left_ppm })).collect()
    });
    (any_hosts(), vec(any_container(), 0..12), budget, 0..1_000_000_000u64, 0..4usize, (leaves, habits)).prop_map(
        |(hosts, mut containers, budget, bytes_per_second, concurrency, (leaves, habits))| {
            for (n, container) in containers.iter_mut().enumerate() {
                // Names may be shared (by containers of two engines); ids may not.
                container.name = format!("name-{}", n % 5);
                container.id = format!("id-{n}");
            }
            Request {
                source: source(),
                containers,
                hosts,
                budget,
                estimates: Estimates {
                    leaves,
                    habits,
                    everywhere: Rates { bytes_per_second, ..Rates::default() },
                    ..Estimates::default()
                },
                concurrency,
                ..Request::default()
            }
        },
    )
}

/// A request, and the same one with its lists in another order.
fn any_request_twice() -> impl Strategy<Value = (Request, Request)> {
    any_request().prop_flat_map(|request| {
        let containers = Just(request.containers.clone()).prop_shuffle();
        let hosts = Just(request.hosts.clone()).prop_shuffle();
        (Just(request), containers, hosts).prop_map(|(request, containers, hosts)| {
            let shuffled = Request { containers, hosts, ..request.clone() };
            (request, shuffled)
        })
    })
}

fn is_room(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::NoMemory { .. }
            | Refusal::NoDisk { .. }
            | Refusal::GroupTaken { .. }
            | Refusal::AvoidsContainer { .. }
    )
}

proptest! {
    #[test]
    fn the_order_of_the_lists_does_not_matter((request, shuffled) in any_request_twice()) {
        prop_assert_eq!(plan(&request), plan(&shuffled));
    }

    #[test]
    fn every_container_appears_exactly_once(request in any_request()) {
        let plan = plan(&request);
        let moves = plan.moves.iter().map(|step| &step.container);
        let mut ids: Vec<_> = moves.chain(plan.stays.iter().map(|stay| &stay.container)).collect();
        ids.sort();
        let mut expected: Vec<_> = request.containers.iter().map(|container| &container.id).collect();
        expected.sort();
        prop_assert_eq!(ids, expected);
    }

    #[test]
    fn no_host_is_promised_more_than_it_has(request in any_request()) {
        let containers: BTreeMap<_, _> = request.containers.iter().map(|c| (&c.id, c)).collect();
        let plan = plan(&request);
        for host in &request.hosts {
            let sent: Vec<&Container> =
                plan.moves.iter().filter(|step| step.target == host.name).map(|step| containers[&step.container]).collect();
            let HostState::Reachable(facts) = &host.state else {
                prop_assert!(sent.is_empty());
                continue;
            };
            let memory: u64 = sent.iter().map(|c| c.memory_bytes).sum();
            let mut stagings: Vec<u64> = sent.iter().map(|c| c.staging_bytes).collect();
            stagings.sort_by_key(|bytes| std::cmp::Reverse(*bytes));
            let staging: u64 = stagings.iter().take(request.concurrency.max(1)).sum();
            prop_assert!(sent.is_empty() || memory + staging <= facts.room_bytes());
            let groups: Vec<&str> = sent.iter().flat_map(|c| c.groups()).collect();
            prop_assert!(groups.len() <= 1, "two of a group on {}", host.name);
            let has_image = |c: &Container| facts.images.contains(&c.image);
            let disk: u64 = sent.iter().map(|c| c.disk_bytes + if has_image(c) { 0 } else { c.image_bytes }).sum();
            prop_assert!(disk <= facts.free_disk_bytes);
        }
    }

    #[test]
    fn every_host_is_a_candidate_or_refused_with_reasons(request in any_request()) {
        let names: BTreeSet<_> = request.hosts.iter().map(|host| &host.name).collect();
        let plan = plan(&request);
        for step in &plan.moves {
            let candidates = step.candidates.iter().map(|candidate| &candidate.host);
            let all: Vec<_> = candidates.chain(step.refusals.iter().map(|refusal| &refusal.host)).collect();
            prop_assert_eq!(all.len(), names.len());
            prop_assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), names.clone());
            prop_assert_eq!(&step.target, &step.candidates[0].host);
            prop_assert_ne!(&step.target, &request.source.name);
        }
        let refusals = plan.moves.iter().flat_map(|m| &m.refusals).chain(plan.stays.iter().flat_map(|s| &s.refusals));
        for refusal in refusals {
            prop_assert!(!refusal.refusals.is_empty());
        }
        for stay in &plan.stays {
            prop_assert!(!stay.obstacles.is_empty() || stay.refusals.len() == names.len());
            prop_assert!(!stay.reasons().is_empty());
        }
    }

    #[test]
    fn what_would_move_alone_stays_only_for_want_of_room(request in any_request()) {
        let plan_of_all = plan(&request);
        for stay in plan_of_all.stays {
            let containers = request.containers.iter().filter(|c| c.id == stay.container).cloned().collect();
            let alone = plan(&Request { containers, ..request.clone() });
            if !alone.moves.is_empty() {
                prop_assert!(stay.refusals.iter().any(|host| host.refusals.iter().all(is_room)));
            }
        }
    }

    #[test]
    fn the_first_to_choose_of_those_that_end_in_time_moves(request in any_request()) {
        let ends_in_time = |c: &&Container| {
            let alone = plan(&Request { containers: vec![(*c).clone()], ..request.clone() });
            alone.moves.iter().any(|step| step.fits_deadline)
        };
        if let Some(highest) = request.containers.iter().filter(ends_in_time).map(|c| c.priority).max() {
            let plan = plan(&request);
            prop_assert!(plan.moves.iter().any(|step| step.priority == highest && step.fits_deadline));
        }
    }

    #[test]
    fn the_first_to_choose_moves_whenever_it_can_without_a_deadline(request in any_request()) {
        let request = Request { budget: None, ..request };
        let movable = |c: &&Container| {
            plan(&Request { containers: vec![(*c).clone()], ..request.clone() }).stays.is_empty()
        };
        if let Some(highest) = request.containers.iter().filter(movable).map(|c| c.priority).max() {
            let plan = plan(&request);
            prop_assert!(plan.moves.iter().any(|step| step.priority == highest));
        }
    }

    #[test]
    fn another_host_never_makes_a_single_container_unmovable(
        hosts in any_hosts(), another in any_state(), container in any_container(),
    ) {
        let mut request = request(vec![container], hosts);
        let before = plan(&request);
        request.hosts.push(Host { name: "z".to_owned(), state: another });
        prop_assert!(before.moves.is_empty() || !plan(&request).moves.is_empty());
    }

    #[test]
    fn moves_are_in_order_and_one_after_the_other_their_times_add_up(mut request in any_request()) {
        // What follows is needed here longer than until the container runs there, which is what is predicted.
        request.estimates.leaves = request.estimates.all_at_once();
        let plan = plan(&request);
        let order = |m: &spothop_policy::Move| {
            (!m.fits_deadline, std::cmp::Reverse(m.priority), m.predicted.total, m.name.clone(), m.container.clone())
        };
        prop_assert!(plan.moves.is_sorted_by_key(order));
        let mut clock = Duration::ZERO;
        for step in &plan.moves {
            if request.concurrency <= 1 {
                prop_assert_eq!(step.starts_after, clock);
            }
            clock = clock.saturating_add(step.predicted.total).min(Duration::from_millis(u64::MAX));
            if request.concurrency <= 1 {
                prop_assert_eq!(step.ends_after, clock);
            }
            // Sharing the link is no sooner than having it alone, and no later than one after the other.
            let slack = Duration::from_millis(1);
            prop_assert!(step.ends_after.saturating_add(slack) >= step.starts_after.saturating_add(step.predicted.total).min(Duration::from_millis(u64::MAX)));
            prop_assert_eq!(step.fits_deadline, request.budget.is_none_or(|budget| step.ends_after <= budget));
        }
        let all_over = plan.moves.iter().map(|step| step.ends_after).max().unwrap_or_default();
        prop_assert!(all_over <= clock.saturating_add(Duration::from_millis(1)));
    }

    #[test]
    fn no_way_is_better_than_allowed_and_each_is_explained(request in any_request()) {
        let plan = plan(&request);
        for step in &plan.moves {
            prop_assert!(step.mode >= request.estimates.leaves && !step.why_mode.is_empty());
            prop_assert_eq!(step.mode, step.candidates[0].mode);
            if step.mode == Leaves::PostCopy {
                let there = step.starts_after.saturating_add(step.predicted.total);
                prop_assert!(step.ends_after.saturating_add(Duration::from_millis(1)) >= there);
            }
        }
    }

    #[test]
    fn what_is_not_moved_in_time_is_told_what_becomes_of_it(request in any_request()) {
        let plan = plan(&request);
        let of_moves = plan.moves.iter().map(|step| (!step.fits_deadline, &step.next_best));
        let of_stays = plan.stays.iter().map(|stay| (request.budget.is_some(), &stay.next_best));
        for (wanted, next) in of_moves.chain(of_stays) {
            prop_assert_eq!(wanted, next.is_some());
        }
    }

    #[test]
    fn json_carries_requests_and_plans_unchanged(request in any_request()) {
        let plan = plan(&request);
        prop_assert_eq!(&serde_json::from_str::<Request>(&serde_json::to_string(&request).unwrap()).unwrap(), &request);
        prop_assert_eq!(serde_json::from_str::<spothop_policy::Plan>(&serde_json::to_string(&plan).unwrap()).unwrap(), plan);
    }
}
