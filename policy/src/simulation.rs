//! Mass reclaims: many hosts are noticed at once, and all of them ask the same targets.
//!
//! Every host that goes away makes its plan from what it was told at the notice, as real ones do, and none knows of the others' plans. A
//! target knows only its own promises: it takes a container while it has room, and refuses it afterwards; the source then asks the next
//! host of its plan. So the plans are those of the daemon, and what comes of them is counted.
//!
//! What is simplified: a source moves one container after the other; a target that several send to gives each an equal part of its link, as
//! many as send when a migration begins; predictions come true. Nothing here is random but for the seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use crate::Policy;
use crate::container::Container;
use crate::estimates::Estimates;
use crate::host::{CpuVerdict, Facts, Host, HostState, Source};
use crate::plan::{Move, Request};
use crate::rates::{GIB, Rates};
use crate::version::{ProtocolRange, Version};

/// What an offer and its refusal take.
const ASKING: Duration = Duration::from_millis(50);

/// What is played.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// How many hosts there are.
    pub hosts: usize,
    /// How many of them are noticed at once.
    pub reclaimed: usize,
    /// How many containers each of them has.
    pub containers: usize,
    /// Time from the notice until they are gone.
    pub deadline: Duration,
    /// Of every host's link, in bytes per second.
    pub link: u64,
    /// From what all sizes and places are drawn.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Containers of the hosts that went away.
    pub containers: usize,
    /// Those that were moved in time.
    pub saved: usize,
    /// Those that were under way when their host went.
    pub late: usize,
    /// Those that no host took, or whose turn did not come.
    pub lost: usize,
    /// Those that every host of their plan refused, or that had none; they are among the lost.
    pub without_target: usize,
    /// Offers that a target refused because others had taken its room.
    pub refused: usize,
    /// Hosts that promised more than they have.
    pub over_committed: usize,
    /// When the saved ones were safe, in milliseconds after the notice, in order.
    pub saved_after_ms: Vec<u64>,
}

/// Plays it.
pub fn run(setup: &Setup, policy: &Policy) -> Report {
    let (fleet, mut draw) = fleet(setup);
    let reclaimed = setup.reclaimed.min(setup.hosts);
    let mut report = Report::default();
    let mut targets: BTreeMap<&str, Target> = fleet
        .iter()
        .enumerate()
        .filter_map(|(number, host)| Some((host.name.as_str(), Target::new(facts(host)?, number < reclaimed))))
        .collect();

    let sources: Vec<(Vec<Container>, Vec<Move>)> = (0..reclaimed)
        .map(|number| {
            let containers: Vec<Container> = (0..setup.containers).map(|n| container(number, n, &mut draw)).collect();
            let moves = policy.plan(&request(setup, &fleet, number, containers.clone())).moves;
            (containers, moves)
        })
        .collect();
    report.containers = sources.iter().map(|(containers, _)| containers.len()).sum();

    // Whoever is free first goes on first; at the same moment, the first by number.
    let mut turns: BinaryHeap<Reverse<(Duration, usize, usize)>> =
        (0..sources.len()).map(|source| Reverse((Duration::ZERO, source, 0))).collect();
    while let Some(Reverse((now, source, turn))) = turns.pop() {
        let (containers, moves) = &sources[source];
        let Some(step) = moves.get(turn) else { continue };
        if now >= setup.deadline {
            continue;
        }
        let Some(container) = containers.iter().find(|container| container.id == step.container) else { continue };
        let mut asked_at = now;
        let mut free_at = None;
        for candidate in &step.candidates {
            let Some(target) = targets.get_mut(candidate.host.as_str()) else { continue };
            asked_at += ASKING;
            if !target.takes(container, asked_at) {
                report.refused += 1;
                continue;
            }
            let sharing = u32::try_from(target.sending.len()).unwrap_or(u32::MAX).saturating_add(1);
            let frozen = candidate.predicted.frozen;
            let sent = candidate.predicted.total.saturating_sub(frozen);
            let end = asked_at.saturating_add(sent.saturating_mul(sharing)).saturating_add(frozen);
            target.promise(container, end);
            if end <= setup.deadline {
                report.saved += 1;
                report.saved_after_ms.push(u64::try_from(end.as_millis()).unwrap_or(u64::MAX));
            } else {
                report.late += 1;
            }
            free_at = Some(end);
            break;
        }
        if free_at.is_none() {
            report.without_target += 1;
        }
        turns.push(Reverse((free_at.unwrap_or(asked_at), source, turn + 1)));
    }
    let planned: usize = sources.iter().map(|(_, moves)| moves.len()).sum();
    report.without_target += report.containers - planned;
    report.lost = report.containers - report.saved - report.late;
    report.over_committed = targets.values().filter(|target| target.promised > target.room).count();
    report.saved_after_ms.sort_unstable();
    report
}

/// What the first of the hosts asks of its planner.
pub fn first_request(setup: &Setup) -> Request {
    let (fleet, mut draw) = fleet(setup);
    let containers = (0..setup.containers).map(|n| container(0, n, &mut draw)).collect();
    request(setup, &fleet, 0, containers)
}

fn fleet(setup: &Setup) -> (Vec<Host>, Draw) {
    let mut draw = Draw(setup.seed);
    ((0..setup.hosts.max(1)).map(|number| host(number, &mut draw)).collect(), draw)
}

/// A target's own truth.
struct Target {
    room: u64,
    /// Memory of containers that are there or on their way.
    promised: u64,
    /// Migrations under way: their staging, and when they end.
    sending: Vec<(u64, Duration)>,
    goes_away: bool,
}

impl Target {
    fn new(facts: &Facts, goes_away: bool) -> Self {
        Self { room: facts.room_bytes(), promised: 0, sending: Vec::new(), goes_away }
    }

    fn takes(&mut self, container: &Container, now: Duration) -> bool {
        self.sending.retain(|(_, end)| *end > now);
        let staging: u64 = self.sending.iter().map(|(staging, _)| staging).sum();
        let needs = container.memory_bytes + container.staging_bytes + staging;
        !self.goes_away && self.promised + needs <= self.room
    }

    fn promise(&mut self, container: &Container, end: Duration) {
        self.promised += container.memory_bytes;
        self.sending.push((container.staging_bytes, end));
    }
}

fn facts(host: &Host) -> Option<&Facts> {
    match &host.state {
        HostState::Reachable(facts) => Some(facts),
        HostState::Unreachable { .. } => None,
    }
}

/// Hosts of some sizes in three zones, most of them spot; every tenth is busy.
fn host(number: usize, draw: &mut Draw) -> Host {
    let zone = format!("zone-{}", draw.below(3));
    let size = [8, 16, 32, 64][draw.below(4)];
    let spot = draw.below(5) > 0;
    let used = draw.below(90) as u64;
    let facts = Facts {
        architecture: "amd64".to_owned(),
        kernel: Version::new(6, 1, 0),
        criu: Some(Version::new(4, 2, 1)),
        protocol: ProtocolRange { min: 1, max: 1 },
        free_memory_bytes: size * GIB * (100 - used) / 100,
        reserved_memory_bytes: GIB / 4,
        free_disk_bytes: 100 * GIB,
        cpu: CpuVerdict::Compatible,
        pool: spot.then(|| format!("m{size}/{zone}")),
        zone: Some(zone),
        cpus: u32::try_from(size / 4).unwrap_or(1),
        load_milli: if draw.below(10) == 0 { size * 250 } else { size * 50 },
        price_micros: Some(size * if spot { 3_000 } else { 10_000 }),
        spot: Some(spot),
        ..Facts::default()
    };
    Host { name: format!("host-{number:04}"), state: HostState::Reachable(facts) }
}

fn container(host: usize, number: usize, draw: &mut Draw) -> Container {
    let memory_bytes = GIB * (1 + draw.below(32) as u64) / 8;
    Container {
        id: format!("{host}-{number}"),
        name: format!("container-{host}-{number}"),
        priority: draw.below(3) as i64,
        memory_bytes,
        staging_bytes: memory_bytes / 10,
        disk_bytes: GIB / 100,
        architecture: "amd64".to_owned(),
        cpu_milli: draw.below(500) as u64,
        ..Container::default()
    }
}

fn request(setup: &Setup, fleet: &[Host], number: usize, containers: Vec<Container>) -> Request {
    let own = facts(&fleet[number]);
    let rates = Rates { bytes_per_second: setup.link, frozen_bytes_per_second: setup.link, ..Rates::default() };
    let hosts = fleet.iter().enumerate().map(|(n, host)| {
        let mut host = host.clone();
        if let HostState::Reachable(facts) = &mut host.state
            && n < setup.reclaimed
        {
            facts.under_notice = Some("reclaimed".to_owned());
        }
        host
    });
    Request {
        source: Source {
            name: fleet[number].name.clone(),
            kernel: Version::new(6, 1, 0),
            criu: Version::new(4, 2, 1),
            protocol: ProtocolRange { min: 1, max: 1 },
            zone: own.and_then(|facts| facts.zone.clone()),
            pool: own.and_then(|facts| facts.pool.clone()),
            ..Source::default()
        },
        containers,
        hosts: hosts.collect(),
        budget: Some(setup.deadline),
        estimates: Estimates { everywhere: rates, ..Estimates::default() },
        concurrency: 1,
        ..Request::default()
    }
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): numbers from a seed, the same everywhere.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to one less than `limit`, which is small.
    fn below(&mut self, limit: usize) -> usize {
        // The remainder is below `limit`.
        (self.next() % limit as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(hosts: usize, reclaimed: usize, seed: u64) -> Setup {
        let deadline = Duration::from_secs(120);
        Setup { hosts, reclaimed, containers: 4, deadline, link: 1_000_000_000, seed }
    }

    #[test]
    fn nothing_is_over_committed_and_everybody_is_counted() {
        for seed in 0..4 {
            let report = run(&setup(40, 24, seed), &Policy::default());
            assert_eq!(report.containers, 96);
            assert_eq!(report.saved + report.late + report.lost, 96, "{report:?}");
            assert_eq!(report.over_committed, 0);
            assert_eq!(report.saved_after_ms.len(), report.saved);
        }
    }

    #[test]
    fn the_seed_decides_everything() {
        let play = |seed| run(&setup(30, 15, seed), &Policy::default());
        assert_eq!(play(7), play(7));
        assert_ne!(play(7), play(8));
    }

    #[test]
    fn few_that_go_are_all_saved_and_when_all_go_nobody_is() {
        let few = run(&setup(40, 2, 1), &Policy::default());
        assert_eq!((few.saved, few.lost), (8, 0), "{few:?}");
        let all = run(&setup(40, 40, 1), &Policy::default());
        assert_eq!((all.saved, all.lost, all.without_target), (0, 160, 160));
    }
}
