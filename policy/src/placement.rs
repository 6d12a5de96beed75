//! Who goes where.

use std::cmp::Reverse;

use crate::constraints;
use crate::container::Container;
use crate::host::{CpuVerdict, Facts, Host, HostState};
use crate::plan::{Request, Stay, Strategy};
use crate::rank::{self, Candidate, Score};
use crate::refusal::{HostRefusal, Refusal};

/// A container with its target, before anything is said about order and time.
#[derive(Debug)]
pub(crate) struct Placed<'r> {
    pub(crate) container: &'r Container,
    /// The first of the candidates.
    pub(crate) target: Candidate,
    /// Best first.
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) refusals: Vec<HostRefusal>,
}

/// The outcome of one strategy.
#[derive(Debug)]
pub(crate) struct Placement<'r> {
    pub(crate) strategy: Strategy,
    pub(crate) placed: Vec<Placed<'r>>,
    pub(crate) stays: Vec<Stay>,
}

impl Placement<'_> {
    /// Priorities of what is placed, highest first: the greater list is the better placement (more containers of the higher
    /// priorities, then more of the lower).
    fn worth(&self) -> Vec<i64> {
        let mut priorities: Vec<i64> = self.placed.iter().map(|placed| placed.container.priority).collect();
        priorities.sort_by_key(|priority| Reverse(*priority));
        priorities
    }
}

/// Spreads the containers over the hosts; when that leaves one without room, tries to pack them and takes the better outcome.
pub(crate) fn place(request: &Request) -> Placement<'_> {
    let spread = with_strategy(request, Strategy::Spread);
    if !spread.stays.iter().any(lacks_only_room) {
        return spread;
    }
    let packed = with_strategy(request, Strategy::Pack);
    if packed.worth() > spread.worth() { packed } else { spread }
}

/// Whether some host would take the container were it not for the rest of the plan (or its own size).
fn lacks_only_room(stay: &Stay) -> bool {
    let room = |refusal: &Refusal| matches!(refusal, Refusal::NoMemory { .. } | Refusal::NoDisk { .. });
    stay.obstacles.is_empty() && stay.refusals.iter().any(|host| host.refusals.iter().all(room))
}

fn with_strategy(request: &Request, strategy: Strategy) -> Placement<'_> {
    let mut ledgers: Vec<Ledger<'_>> =
        request.hosts.iter().map(|host| Ledger::new(host, request.concurrency)).collect();
    ledgers.sort_by_key(|ledger| &ledger.host.name);

    // The largest first within a priority: small ones fit into what is left, not the other way round.
    let mut containers: Vec<&Container> = request.containers.iter().collect();
    containers.sort_by_key(|c| (Reverse(c.priority), Reverse(c.memory_bytes), &c.name, &c.id));

    let mut placement = Placement { strategy, placed: Vec::new(), stays: Vec::new() };
    for container in containers {
        let (candidates, refusals) = judge(request, container, &ledgers, strategy);
        match candidates.first().cloned() {
            Some(target) if container.obstacles.is_empty() => {
                if let Some(ledger) = ledgers.iter_mut().find(|ledger| ledger.host.name == target.host) {
                    ledger.book(container);
                }
                placement.placed.push(Placed { container, target, candidates, refusals });
            }
            _ => placement.stays.push(Stay {
                container: container.id.clone(),
                name: container.name.clone(),
                priority: container.priority,
                obstacles: container.obstacles.clone(),
                refusals,
            }),
        }
    }
    placement
}

/// The hosts that would do, best first, and those that would not, by name.
fn judge(
    request: &Request,
    container: &Container,
    ledgers: &[Ledger<'_>],
    strategy: Strategy,
) -> (Vec<Candidate>, Vec<HostRefusal>) {
    let mut candidates = Vec::new();
    let mut refused = Vec::new();
    for ledger in ledgers {
        let (facts, mut refusals) = constraints::check(&request.source, container, ledger.host);
        if let Some(facts) = facts {
            refusals.extend(ledger.lacks(container, facts));
        }
        match facts {
            Some(facts) if refusals.is_empty() => candidates.push(candidate(request, container, ledger, facts)),
            _ => refused.push(HostRefusal { host: ledger.host.name.clone(), refusals }),
        }
    }
    rank::sort(&mut candidates, strategy);
    (candidates, refused)
}

fn candidate(request: &Request, container: &Container, ledger: &Ledger<'_>, facts: &Facts) -> Candidate {
    let score = Score {
        cpu_checked: facts.cpu == CpuVerdict::Compatible,
        image_present: has_image(facts, container),
        free_memory_after_bytes: ledger.room(facts).saturating_sub(container.memory_bytes),
    };
    let (peer, other_bytes) = (&ledger.host.name, disk_needed(facts, container));
    let predicted = request.estimates.predict(peer, &container.name, container.memory_bytes, other_bytes);
    Candidate { host: peer.clone(), score, reason: score.to_string(), predicted }
}

fn has_image(facts: &Facts, container: &Container) -> bool {
    facts.images.contains(&container.image)
}

/// Bytes that come to lie on the target's disk. Two containers of one image that the target lacks count it twice: which of them
/// brings it is known only when they go, and this way the figure is never too small.
fn disk_needed(facts: &Facts, container: &Container) -> u64 {
    let image = if has_image(facts, container) { 0 } else { container.image_bytes };
    container.disk_bytes.saturating_add(image)
}

/// What the plan has already promised of one host.
#[derive(Debug)]
struct Ledger<'r> {
    host: &'r Host,
    /// Memory of all containers placed there.
    memory_bytes: u64,
    /// The stagings of as many of them as may move at the same time, the largest first. Taking the largest keeps the promise
    /// whatever their order.
    stagings: Vec<u64>,
    /// How many may move at the same time, at least one.
    concurrency: usize,
    /// Disk of all containers placed there.
    disk_bytes: u64,
}

impl<'r> Ledger<'r> {
    fn new(host: &'r Host, concurrency: usize) -> Self {
        Self { host, memory_bytes: 0, stagings: Vec::new(), concurrency: concurrency.max(1), disk_bytes: 0 }
    }

    /// The stagings that may be there at the same time once `container` is placed here too.
    fn stagings_with(&self, container: &Container) -> Vec<u64> {
        let mut stagings = self.stagings.clone();
        stagings.push(container.staging_bytes);
        stagings.sort_by_key(|bytes| Reverse(*bytes));
        stagings.truncate(self.concurrency);
        stagings
    }

    /// Memory that is not promised yet.
    fn room(&self, facts: &Facts) -> u64 {
        facts.room_bytes().saturating_sub(self.memory_bytes)
    }

    fn lacks(&self, container: &Container, facts: &Facts) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        let needs_bytes = self.stagings_with(container).into_iter().fold(container.memory_bytes, u64::saturating_add);
        let has_bytes = self.room(facts);
        if needs_bytes > has_bytes {
            refusals.push(Refusal::NoMemory { needs_bytes, has_bytes });
        }
        let needs_bytes = disk_needed(facts, container);
        let has_bytes = facts.free_disk_bytes.saturating_sub(self.disk_bytes);
        if needs_bytes > has_bytes {
            refusals.push(Refusal::NoDisk { needs_bytes, has_bytes });
        }
        refusals
    }

    /// Only for a container that [`lacks`](Self::lacks) nothing here, so that the sums cannot overflow.
    fn book(&mut self, container: &Container) {
        self.memory_bytes += container.memory_bytes;
        self.stagings = self.stagings_with(container);
        if let HostState::Reachable(facts) = &self.host.state {
            self.disk_bytes += disk_needed(facts, container);
        }
    }
}
