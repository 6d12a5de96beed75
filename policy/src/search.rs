//! Who goes where, so that the plan as a whole is the best.
//!
//! One plan is better than another ([`Worth`]) if more containers of the highest priorities are safe in time; if these are as many, if
//! more have a target at all; if these are as many, if it costs less ([`crate::Cost`], summed).
//!
//! 1. *Few hosts matter.* Of `n` containers the others use up `n - 1` hosts at most. So a host is of no use for a container if `n` others
//!    are as fast for it and as cheap: one of them is free in every plan.
//! 2. *Greedy*, twice: each container in its turn takes the host that costs the least (spread), or the one with the least room (pack).
//! 3. *Local search* from the better one: move one container, let two change places, make room for one that has no place.
//! 4. *Branch and bound* over what is left. If it comes to its end, the plan is proven to be the best; it gives up after a fixed amount
//!    of work, which depends on the request alone, so that the same request has the same answer on any machine.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::host::Facts;
use crate::plan::Strategy;
use crate::table::{Members, Table};
use crate::timetable::{self, Job};

/// Work after which the search is given up, in units of about a microsecond.
const WORK: u64 = 200_000;

/// With so many hosts or fewer all are looked at.
const FEW: usize = 16;

/// The host of each container; none for one that stays.
pub(crate) type Places = Vec<Option<usize>>;

/// How good a plan is; greater is better.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Worth {
    /// Priorities of those that are safe in time, highest first.
    on_time: Vec<i64>,
    /// Of those that have a target.
    moved: Vec<i64>,
    cost_us: Reverse<i64>,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) places: Places,
    pub(crate) strategy: Strategy,
    /// Whether no other plan is better.
    pub(crate) proven: bool,
}

/// The best plan that was found.
pub(crate) fn best(table: &Table<'_>) -> Found {
    let mut search = Search::new(table);
    let spread = search.greedy(Strategy::Spread);
    let spread_worth = search.worth(&spread);
    let packed = search.greedy(Strategy::Pack);
    let packed_worth = search.worth(&packed);
    let (mut places, mut worth) =
        if packed_worth > spread_worth { (packed, packed_worth) } else { (spread, spread_worth.clone()) };
    search.improve(&mut places, &mut worth);
    search.best = (places, worth);
    let mut members = vec![Vec::new(); table.hosts.len()];
    let mut prefix = vec![None; table.containers.len()];
    let proven = search.descend(0, &mut prefix, &mut members, 0);
    let (places, worth) = search.best;
    // Spreading is the rule; it is worth a word where it would have left somebody behind.
    let as_many = worth.on_time == spread_worth.on_time && worth.moved == spread_worth.moved;
    let strategy = if as_many { Strategy::Spread } else { Strategy::Pack };
    Found { places, strategy, proven }
}

/// A host that may be chosen for a container.
#[derive(Debug, Clone, Copy)]
struct Choice {
    host: usize,
    /// What it costs if nobody else goes there.
    alone_us: i64,
    job: Job,
}

struct Search<'t, 'r> {
    table: &'t Table<'r>,
    /// For each container, the cheapest first.
    choices: Vec<Vec<Choice>>,
    /// For each container, all that would do: the order of names.
    all: Vec<Vec<usize>>,
    /// Hosts of one number are the same for everybody.
    alike: Vec<usize>,
    /// The least that the containers from this one on cost.
    least_us: Vec<i64>,
    /// The fastest host of each container.
    fastest: Vec<Option<Job>>,
    work: u64,
    best: (Places, Worth),
}

impl<'t, 'r> Search<'t, 'r> {
    fn new(table: &'t Table<'r>) -> Self {
        let count = table.containers.len();
        let may_move = |c: usize| table.containers[c].obstacles.is_empty() && table.instead[c].is_none();
        let mut all = vec![Vec::new(); count];
        let mut choices = vec![Vec::new(); count];
        for c in (0..count).filter(|&c| may_move(c)) {
            let mut found = Vec::new();
            for host in 0..table.hosts.len() {
                let Some(offer) = table.would_do(c, host) else { continue };
                let (load, balance) = table.adds(c, host, &[]);
                all[c].push(host);
                found.push(Choice { host, alone_us: offer.cost_us + load + balance, job: offer.job });
            }
            choices[c] = that_matter(found, count);
        }
        let mut least_us = vec![0; count + 1];
        for c in (0..count).rev() {
            least_us[c] = least_us[c + 1] + choices[c].first().map_or(0, |choice| choice.alone_us);
        }
        let fastest = choices.iter().map(|all| all.iter().min_by_key(|one| one.job.alone).map(|one| one.job)).collect();
        let nothing = Worth { on_time: Vec::new(), moved: Vec::new(), cost_us: Reverse(0) };
        let alike = alike(table, &choices);
        Self { table, choices, all, alike, least_us, fastest, work: 0, best: (vec![None; count], nothing) }
    }

    fn priority(&self, container: usize) -> i64 {
        self.table.containers[container].priority
    }

    /// Jobs of containers in the order in which they go, and who they are of.
    fn in_order(&self, jobs: impl Iterator<Item = (usize, Job)>) -> Vec<(usize, Job)> {
        let mut jobs: Vec<_> = jobs.collect();
        jobs.sort_by_key(|(c, job)| (Reverse(self.priority(*c)), job.alone, self.table.by_name[*c]));
        jobs
    }

    /// Priorities of those that are over in time.
    fn on_time(&self, jobs: impl Iterator<Item = (usize, Job)>) -> Vec<i64> {
        let request = self.table.request;
        let ordered = self.in_order(jobs);
        let jobs: Vec<Job> = ordered.iter().map(|(_, job)| *job).collect();
        let in_time = timetable::in_time(&jobs, request.concurrency, request.budget);
        ordered.iter().zip(in_time).filter(|(_, fits)| *fits).map(|((c, _), _)| self.priority(*c)).collect()
    }

    fn job(&self, container: usize, host: usize) -> Option<Job> {
        self.table.pairs[container][host].offer.as_ref().map(|offer| offer.job)
    }

    fn cost_us(&self, places: &Places) -> i64 {
        let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut cost = 0;
        for (container, host) in places.iter().enumerate() {
            let Some(host) = *host else { continue };
            members.entry(host).or_default().push(container);
            cost += self.table.pairs[container][host].offer.as_ref().map_or(0, |offer| offer.cost_us);
        }
        let crowding = |(host, members): (&usize, &Vec<usize>)| {
            let (load, balance) = self.table.crowding(*host, members.iter().copied());
            load + balance
        };
        cost + members.iter().map(crowding).sum::<i64>()
    }

    fn worth(&mut self, places: &Places) -> Worth {
        let placed = || places.iter().enumerate().filter_map(|(c, host)| Some((c, (*host)?)));
        let on_time = self.on_time(placed().filter_map(|(c, host)| Some((c, self.job(c, host)?))));
        let moved: Vec<i64> = placed().map(|(c, _)| self.priority(c)).collect();
        // What sharing a link takes to work out grows with those that share it, and once more if not all are in time.
        let many = moved.len() as u64;
        self.work += match (self.table.request.budget.is_some() && self.table.request.concurrency > 1, on_time.len()) {
            (false, _) => 2,
            (true, fits) if fits == moved.len() => 2 + many,
            (true, _) => 2 + many * many,
        };
        Worth { on_time, moved, cost_us: Reverse(self.cost_us(places)) }
    }

    fn members(&self, places: &Places) -> Members {
        let mut members = vec![Vec::new(); self.table.hosts.len()];
        for (container, host) in places.iter().enumerate() {
            if let Some(host) = host {
                members[*host].push(container);
            }
        }
        members
    }

    fn greedy(&self, strategy: Strategy) -> Places {
        let mut members: Members = vec![Vec::new(); self.table.hosts.len()];
        let mut places = vec![None; self.table.containers.len()];
        for (container, place) in places.iter_mut().enumerate() {
            let fits = |host: &usize| self.table.fits(container, *host, &members[*host]);
            let costs = |host: usize| {
                let (load, balance) = self.table.adds(container, host, &members[host]);
                self.table.pairs[container][host].offer.as_ref().map_or(0, |offer| offer.cost_us) + load + balance
            };
            *place = match strategy {
                Strategy::Spread => {
                    let hosts = self.choices[container].iter().map(|choice| choice.host);
                    hosts.filter(fits).min_by_key(|&host| (costs(host), host))
                }
                Strategy::Pack => {
                    let left = |host: usize| self.table.score(container, host, &members[host]);
                    let key = |host: usize| {
                        let score = left(host);
                        (!score.cpu_checked, score.free_memory_after_bytes, costs(host), host)
                    };
                    self.all[container].iter().copied().filter(fits).min_by_key(|&host| key(host))
                }
            };
            if let Some(host) = *place {
                members[host].push(container);
            }
        }
        places
    }

    /// Goes on as long as a small change makes it better.
    fn improve(&mut self, places: &mut Places, worth: &mut Worth) {
        while self.work < WORK / 2 && self.better_neighbour(places, worth) {}
    }

    /// Takes `change` if it is better.
    fn take(&mut self, places: &mut Places, worth: &mut Worth, change: Places) -> bool {
        self.work += 1;
        // With as many in time and as many moved, only the cost is left, which is quick to see.
        let all_in_time = worth.on_time.len() == self.table.containers.len();
        if all_in_time && self.cost_us(&change) >= worth.cost_us.0 {
            return false;
        }
        let better = self.worth(&change);
        if better <= *worth {
            return false;
        }
        (*places, *worth) = (change, better);
        true
    }

    fn better_neighbour(&mut self, places: &mut Places, worth: &mut Worth) -> bool {
        let count = places.len();
        let members = self.members(places);
        for one in 0..count {
            for n in 0..self.choices[one].len() {
                if self.work >= WORK / 2 {
                    return false;
                }
                let to = self.choices[one][n].host;
                if places[one] == Some(to) {
                    continue;
                }
                if self.table.fits(one, to, &members[to]) {
                    let mut change = places.clone();
                    change[one] = Some(to);
                    if self.take(places, worth, change) {
                        return true;
                    }
                    continue;
                }
                // Somebody who is there changes places with it, or goes somewhere else to make room.
                for &other in &members[to] {
                    let there: Vec<usize> = members[to].iter().copied().filter(|&member| member != other).collect();
                    if !self.table.fits(one, to, &there) {
                        continue;
                    }
                    let elsewhere = self.choices[other].iter().map(|choice| choice.host).chain(places[one]);
                    let goes_to = |host: usize| {
                        let stays: Vec<usize> = members[host].iter().copied().filter(|&member| member != one).collect();
                        host != to && self.table.would_do(other, host).is_some() && self.table.fits(other, host, &stays)
                    };
                    let found = elsewhere.filter(|&host| goes_to(host)).map(Some).take(FEW).collect::<Vec<_>>();
                    for host in found.into_iter().chain([None]) {
                        let mut change = places.clone();
                        (change[one], change[other]) = (Some(to), host);
                        if self.take(places, worth, change) {
                            return true;
                        }
                    }
                }
            }
        }
        false
    }

    /// The best that can become of a plan in which the places of the first containers are given.
    fn bound(&self, from: usize, prefix: &Places, cost_us: i64) -> Worth {
        let request = self.table.request;
        let given = || prefix[..from].iter().enumerate().filter_map(|(c, host)| Some((c, (*host)?)));
        let open = || (from..prefix.len()).filter_map(|c| Some((c, self.fastest[c]?)));
        let moved: Vec<i64> = given().map(|(c, _)| c).chain(open().map(|(c, _)| c)).map(|c| self.priority(c)).collect();
        let on_time = match request.budget {
            // One after the other, the shortest of a priority first: no other order has more of them in time.
            Some(_) if request.concurrency <= 1 => {
                self.on_time(given().filter_map(|(c, host)| Some((c, self.job(c, host)?))).chain(open()))
            }
            _ => moved.clone(),
        };
        Worth { on_time, moved, cost_us: Reverse(cost_us + self.least_us[from]) }
    }

    /// Tries all places of the containers from `from` on. False if it was given up.
    fn descend(&mut self, from: usize, prefix: &mut Places, members: &mut Members, cost_us: i64) -> bool {
        if from == prefix.len() {
            let worth = self.worth(prefix);
            if worth > self.best.1 {
                self.best = (prefix.clone(), worth);
            }
            return true;
        }
        self.work += 2;
        if self.bound(from, prefix, cost_us) <= self.best.1 {
            return true;
        }
        let mut tried = Vec::new();
        for n in 0..self.choices[from].len() {
            if self.work >= WORK {
                return false;
            }
            self.work += 1;
            let Choice { host, .. } = self.choices[from][n];
            if members[host].is_empty() {
                // Of empty hosts that are the same for everybody one is enough.
                if tried.contains(&self.alike[host]) {
                    continue;
                }
                tried.push(self.alike[host]);
            }
            if !self.table.fits(from, host, &members[host]) {
                continue;
            }
            let (load, balance) = self.table.adds(from, host, &members[host]);
            let own = self.table.pairs[from][host].offer.as_ref().map_or(0, |offer| offer.cost_us);
            prefix[from] = Some(host);
            members[host].push(from);
            let ended = self.descend(from + 1, prefix, members, cost_us + own + load + balance);
            members[host].pop();
            prefix[from] = None;
            if !ended {
                return false;
            }
        }
        self.descend(from + 1, prefix, members, cost_us)
    }
}

/// Those for which there are not `count` others that are as fast and as cheap, the cheapest first.
fn that_matter(mut found: Vec<Choice>, count: usize) -> Vec<Choice> {
    if found.len() > FEW.max(count) {
        found.sort_by_key(|choice| (choice.job.alone, choice.alone_us, choice.host));
        // The cheapest so far; all of them are as fast as what comes.
        let mut cheapest: Vec<i64> = Vec::with_capacity(count + 1);
        found.retain(|choice| {
            let kept = cheapest.len() < count || cheapest.last().is_some_and(|most| choice.alone_us < *most);
            if kept {
                cheapest.insert(cheapest.partition_point(|cost| *cost <= choice.alone_us), choice.alone_us);
                cheapest.truncate(count);
            }
            kept
        });
    }
    found.sort_by_key(|choice| (choice.alone_us, choice.job.alone, choice.host));
    found
}

/// What a host is to a container, as far as the search can tell: its costs, how long it takes, and bytes of disk.
type Kind = Option<(i64, i64, Duration, u64)>;

/// Numbers the hosts so that two of one number are the same for every container.
fn alike(table: &Table<'_>, choices: &[Vec<Choice>]) -> Vec<usize> {
    let mut numbers = vec![0; table.hosts.len()];
    let mut known: BTreeMap<(Vec<Kind>, [u64; 4]), usize> = BTreeMap::new();
    let mut wanted: Vec<usize> = choices.iter().flatten().map(|choice| choice.host).collect();
    wanted.sort_unstable();
    wanted.dedup();
    for host in wanted {
        let kind = |c: usize| {
            let choice = choices[c].iter().find(|choice| choice.host == host)?;
            let offer = table.pairs[c][host].offer.as_ref()?;
            Some((offer.cost_us, choice.alone_us, offer.job.alone, offer.disk_bytes))
        };
        let kinds = (0..choices.len()).map(kind).collect();
        let room = table.facts(host).map_or([0; 4], |facts: &Facts| {
            [facts.room_bytes(), facts.free_disk_bytes, u64::from(facts.cpus), facts.load_milli]
        });
        let next = known.len();
        numbers[host] = *known.entry((kinds, room)).or_insert(next);
    }
    numbers
}
