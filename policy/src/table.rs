//! Every container beside every host: what speaks against it, and what it costs.

use std::cmp::Reverse;

use crate::Policy;
use crate::constraints;
use crate::container::Container;
use crate::cost::{Cost, Tariff};
use crate::fallback::NextBest;
use crate::host::{CpuVerdict, Facts, Host, HostState};
use crate::mode::{self, Choice, Question};
use crate::plan::Request;
use crate::rank::Score;
use crate::rates::{Leaves, Times};
use crate::refusal::Refusal;
use crate::timetable::Job;

/// One container and one host, whatever else the plan does.
#[derive(Debug)]
pub(crate) struct Pair {
    /// What speaks against it.
    pub(crate) refusals: Vec<Refusal>,
    /// What it would be like; none of a host that has not answered.
    pub(crate) offer: Option<Offer>,
}

/// What it would be like to send a container to a host.
#[derive(Debug)]
pub(crate) struct Offer {
    /// Without what depends on the rest of the plan.
    pub(crate) cost: Cost,
    /// Its total.
    pub(crate) cost_us: i64,
    /// How its memory would go.
    pub(crate) mode: Leaves,
    pub(crate) times: Times,
    pub(crate) job: Job,
    /// Bytes that come to lie on the target's disk. Two containers of one image that the target lacks count it twice: which of them
    /// brings it is known only when they go, and this way the figure is never too small.
    pub(crate) disk_bytes: u64,
    image_present: bool,
}

/// All pairs. Containers are in the order in which they choose: of higher priority first, within a priority the largest; hosts are in
/// the order of their names. Both are known by their places in it from here on.
#[derive(Debug)]
pub(crate) struct Table<'r> {
    pub(crate) request: &'r Request,
    pub(crate) containers: Vec<&'r Container>,
    pub(crate) hosts: Vec<&'r Host>,
    pub(crate) tariff: Tariff<'r>,
    /// By container, then by host.
    pub(crate) pairs: Vec<Vec<Pair>>,
    /// What a rule does with a container instead of moving it, and the rule's name.
    pub(crate) instead: Vec<Option<(NextBest, String)>>,
    /// What the operator should know of his labels and rules.
    pub(crate) notes: Vec<String>,
    /// How many stagings a target holds at the same time.
    concurrency: usize,
    /// The place of each container in the order of names.
    pub(crate) by_name: Vec<usize>,
    /// Which containers cannot be with which, and why.
    conflicts: Vec<Vec<Option<Refusal>>>,
}

/// The containers that the plan sends to each host.
pub(crate) type Members = Vec<Vec<usize>>;

impl<'r> Table<'r> {
    pub(crate) fn new(policy: &'r Policy, request: &'r Request) -> Self {
        let mut containers: Vec<&Container> = request.containers.iter().collect();
        containers.sort_by_key(|c| (Reverse(c.priority), Reverse(c.memory_bytes), &c.name, &c.id));
        let mut hosts: Vec<&Host> = request.hosts.iter().collect();
        hosts.sort_by_key(|host| &host.name);
        let tariff = Tariff::new(&policy.weights, &request.source, hosts.iter().filter_map(|host| facts(host)));

        let mut notes = Vec::new();
        let mut judge = policy.rules.judge(request, &containers, &hosts);
        let instead = (0..containers.len()).map(|container| judge.instead(container)).collect();
        let link = request.estimates.link();
        let mut pair = |c: usize, h: usize| {
            let (container, host) = (containers[c], hosts[h]);
            let (facts, mut refusals) = constraints::check(&request.source, container, host);
            let offer = facts.map(|facts| {
                let verdict = judge.pair(c, h);
                refusals.extend(verdict.refusals);
                let mut offer = offer(request, &tariff, container, host, facts, link);
                offer.cost.rules_us = verdict.cost_us;
                offer.cost_us = offer.cost.total_us();
                offer
            });
            Pair { refusals, offer }
        };
        let pairs = (0..containers.len()).map(|c| (0..hosts.len()).map(|h| pair(c, h)).collect()).collect();
        notes.extend(judge.into_notes());
        for container in &containers {
            let (_, unknown) = crate::labels::fallback(container.labels.get(crate::labels::FALLBACK));
            let said =
                |word| format!("{}: label {}: {}", container.name, crate::labels::FALLBACK, NextBest::unknown(word));
            notes.extend(unknown.into_iter().map(said));
            if let Some(word) = container.labels.get(crate::labels::POST_COPY).filter(|word| word.trim() != "never") {
                let label = crate::labels::POST_COPY;
                notes.push(format!(
                    "{}: label {label}: `{word}` is not `never`, which is taken to be meant",
                    container.name
                ));
            }
        }

        let mut order: Vec<usize> = (0..containers.len()).collect();
        order.sort_by_key(|&c| (&containers[c].name, &containers[c].id));
        let mut by_name = vec![0; containers.len()];
        for (place, &container) in order.iter().enumerate() {
            by_name[container] = place;
        }
        let conflicts = containers
            .iter()
            .enumerate()
            .map(|(n, one)| {
                let with = |(m, other): (usize, &&Container)| if n == m { None } else { one.conflict(other) };
                containers.iter().enumerate().map(with).collect()
            })
            .collect();
        let concurrency = request.concurrency.max(1);
        Self { request, containers, hosts, tariff, pairs, instead, notes, concurrency, by_name, conflicts }
    }

    /// What a host is like; none of one that has not answered.
    pub(crate) fn facts(&self, host: usize) -> Option<&'r Facts> {
        facts(self.hosts[host])
    }

    /// Why its memory would go there as it would; none of a host that has not answered.
    pub(crate) fn mode(&self, container: usize, host: usize) -> Option<Choice> {
        let offer = self.pairs[container][host].offer.as_ref()?;
        Some(choose(self.request, self.containers[container], self.hosts[host], offer.disk_bytes))
    }

    /// The pair's offer, if nothing speaks against the host and it has room for this container alone.
    pub(crate) fn would_do(&self, container: usize, host: usize) -> Option<&Offer> {
        let Pair { refusals, offer } = &self.pairs[container][host];
        let offer = offer.as_ref().filter(|_| refusals.is_empty())?;
        self.fits(container, host, &[]).then_some(offer)
    }

    /// Whether the host has room for the container beside these.
    pub(crate) fn fits(&self, container: usize, host: usize, members: &[usize]) -> bool {
        let Some((memory, disk)) = self.needs(container, host, members) else { return false };
        memory.0 <= memory.1
            && disk.0 <= disk.1
            && members.iter().all(|&other| self.conflicts[container][other].is_none())
    }

    /// What speaks against the host because of the containers that are planned to be there already.
    pub(crate) fn lacks(&self, container: usize, host: usize, members: &[usize]) -> Vec<Refusal> {
        let mut refusals: Vec<_> =
            members.iter().filter_map(|&other| self.conflicts[container][other].clone()).collect();
        if let Some(((needs_bytes, has_bytes), disk)) = self.needs(container, host, members) {
            if needs_bytes > has_bytes {
                refusals.push(Refusal::NoMemory { needs_bytes, has_bytes });
            }
            let (needs_bytes, has_bytes) = disk;
            if needs_bytes > has_bytes {
                refusals.push(Refusal::NoDisk { needs_bytes, has_bytes });
            }
        }
        refusals
    }

    /// Memory and disk: what is needed, and what there is.
    fn needs(&self, container: usize, host: usize, members: &[usize]) -> Option<((u64, u64), (u64, u64))> {
        let facts = self.facts(host)?;
        let disk_of = |container: usize| self.pairs[container][host].offer.as_ref().map_or(0, |offer| offer.disk_bytes);
        let (mut memory, mut disk) = (0u64, 0u64);
        // The largest of those that may be there at the same time: the promise is kept whatever their order.
        let mut stagings = Vec::with_capacity(members.len() + 1);
        for &member in members {
            memory = memory.saturating_add(self.containers[member].memory_bytes);
            stagings.push(self.containers[member].staging_bytes);
            disk = disk.saturating_add(disk_of(member));
        }
        stagings.push(self.containers[container].staging_bytes);
        stagings.sort_unstable_by_key(|bytes| Reverse(*bytes));
        let own = self.containers[container].memory_bytes;
        let needs = stagings.into_iter().take(self.concurrency).fold(own, u64::saturating_add);
        Some((
            (needs, facts.room_bytes().saturating_sub(memory)),
            (disk_of(container), facts.free_disk_bytes.saturating_sub(disk)),
        ))
    }

    /// What a host costs for all that the plan sends there, besides what each of them costs: for load and for balance.
    pub(crate) fn crowding(&self, host: usize, members: impl Iterator<Item = usize>) -> (i64, i64) {
        let Some(facts) = self.facts(host) else { return (0, 0) };
        let used = members.fold((0u64, 0u64), |(memory, cpu), member| {
            let Container { memory_bytes, cpu_milli, .. } = self.containers[member];
            (memory.saturating_add(*memory_bytes), cpu.saturating_add(*cpu_milli))
        });
        self.tariff.crowding(facts, used.0, used.1)
    }

    /// What the container adds to that.
    pub(crate) fn adds(&self, container: usize, host: usize, members: &[usize]) -> (i64, i64) {
        let before = self.crowding(host, members.iter().copied());
        let after = self.crowding(host, members.iter().copied().chain([container]));
        (after.0 - before.0, after.1 - before.1)
    }

    /// What a host is like for a container, beside these.
    pub(crate) fn score(&self, container: usize, host: usize, members: &[usize]) -> Score {
        let taken = members.iter().fold(0u64, |sum, &member| sum.saturating_add(self.containers[member].memory_bytes));
        let room = self.facts(host).map_or(0, Facts::room_bytes).saturating_sub(taken);
        Score {
            cpu_checked: self.facts(host).is_some_and(|facts| facts.cpu == CpuVerdict::Compatible),
            image_present: self.pairs[container][host].offer.as_ref().is_some_and(|offer| offer.image_present),
            free_memory_after_bytes: room.saturating_sub(self.containers[container].memory_bytes),
        }
    }
}

fn facts(host: &Host) -> Option<&Facts> {
    match &host.state {
        HostState::Reachable(facts) => Some(facts),
        HostState::Unreachable { .. } => None,
    }
}

fn offer(
    request: &Request,
    tariff: &Tariff<'_>,
    container: &Container,
    host: &Host,
    facts: &Facts,
    link: u64,
) -> Offer {
    let image_present = facts.images.contains(&container.image);
    let disk_bytes = container.disk_bytes.saturating_add(if image_present { 0 } else { container.image_bytes });
    let Choice { mode, stages, .. } = choose(request, container, host, disk_bytes);
    let times = stages.times();
    let cost = tariff.of(container, facts, &times, disk_bytes);
    Offer { cost, cost_us: cost.total_us(), mode, times, job: Job::new(&stages, link), disk_bytes, image_present }
}

fn choose(request: &Request, container: &Container, host: &Host, other_bytes: u64) -> Choice {
    mode::choose(&Question {
        best: request.estimates.leaves,
        memory_bytes: container.memory_bytes,
        other_bytes,
        habits: request.estimates.habits.get(&container.name).copied(),
        rates: request.estimates.rates(&host.name),
        budget: request.budget,
        never_post_copy: container.labels.contains_key(crate::labels::POST_COPY),
        failed_by: container.failed_by,
    })
}
