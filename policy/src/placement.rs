//! What the search has found, with all its reasons.

use std::time::Duration;

use crate::Policy;
use crate::fallback::{Fallback, NextBest};
use crate::labels;
use crate::plan::{Move, Stay};
use crate::rank::Candidate;
use crate::refusal::HostRefusal;
use crate::search::Places;
use crate::table::{Members, Table};

/// Turns places in a table into what a plan says.
pub(crate) struct Placement<'t, 'r> {
    policy: &'r Policy,
    table: &'t Table<'r>,
    /// Who goes where; a container that is to be started anew is where it would be started.
    members: Members,
}

impl<'t, 'r> Placement<'t, 'r> {
    pub(crate) fn new(policy: &'r Policy, table: &'t Table<'r>, places: &Places) -> Self {
        let mut members = vec![Vec::new(); table.hosts.len()];
        for (container, host) in places.iter().enumerate() {
            if let Some(host) = host {
                members[*host].push(container);
            }
        }
        Self { policy, table, members }
    }

    /// A container that moves to a host; times are those of the whole plan.
    pub(crate) fn moves(&self, container: usize, host: usize, span: (Duration, Duration), fits_deadline: bool) -> Move {
        let (mut candidates, refusals) = self.judge(container);
        let target = &self.table.hosts[host].name;
        // The one that is best for the plan as a whole comes first, the others as they would cost.
        candidates.sort_by_key(|one| (one.host != *target, one.cost.total_us(), one.host.clone()));
        let about = self.table.containers[container];
        let offer = self.table.pairs[container][host].offer.as_ref();
        let predicted = offer.map(|offer| offer.times).unwrap_or_default();
        Move {
            container: about.id.clone(),
            name: about.name.clone(),
            priority: about.priority,
            target: target.clone(),
            candidates,
            refusals,
            mode: offer.map(|offer| offer.mode).unwrap_or_default(),
            why_mode: self.table.mode(container, host).map(|choice| choice.to_string()).unwrap_or_default(),
            streams: self.table.request.streams,
            predicted,
            starts_after: span.0,
            ends_after: span.1,
            fits_deadline,
            next_best: None,
        }
    }

    /// A container that has no target.
    pub(crate) fn stays(&self, container: usize) -> Stay {
        let about = self.table.containers[container];
        let mut obstacles = about.obstacles.clone();
        let instead = self.table.instead[container].as_ref();
        obstacles.extend(instead.map(|(then, rule)| format!("rule {rule}: {then}, and do not move it")));
        Stay {
            container: about.id.clone(),
            name: about.name.clone(),
            priority: about.priority,
            obstacles,
            refusals: self.judge(container).1,
            next_best: None,
        }
    }

    /// The hosts that would do beside the rest of the plan, and those that would not, by name.
    fn judge(&self, container: usize) -> (Vec<Candidate>, Vec<HostRefusal>) {
        let (mut candidates, mut refused) = (Vec::new(), Vec::new());
        for (host, about) in self.table.hosts.iter().enumerate() {
            let others = self.others(container, host);
            let pair = &self.table.pairs[container][host];
            let mut refusals = pair.refusals.clone();
            refusals.extend(self.table.lacks(container, host, &others));
            match &pair.offer {
                Some(offer) if refusals.is_empty() => {
                    let mut cost = offer.cost;
                    let (load, balance) = self.table.adds(container, host, &others);
                    cost.load_us += load;
                    cost.balance_us += balance;
                    let score = self.table.score(container, host, &others);
                    let reason = format!("{score}; costs {cost}");
                    candidates.push(Candidate {
                        host: about.name.clone(),
                        mode: offer.mode,
                        score,
                        cost,
                        reason,
                        predicted: offer.times,
                    });
                }
                _ => refused.push(HostRefusal { host: about.name.clone(), refusals }),
            }
        }
        (candidates, refused)
    }

    fn others(&self, container: usize, host: usize) -> Vec<usize> {
        self.members[host].iter().copied().filter(|&member| member != container).collect()
    }

    /// What becomes of a container that is not moved in time: the first possible of what a rule, its label or the configuration says.
    pub(crate) fn next_best(&mut self, container: usize) -> Fallback {
        let (wanted, by) = self.wanted(container);
        let mut instead_of = Vec::new();
        for then in wanted {
            let takes = match then {
                NextBest::Park => self.park(container).map(|takes| (None, Some(takes))),
                NextBest::Cold => self.cold(container).map(|(host, takes)| (Some(host), Some(takes))),
                NextBest::Drop => Ok((None, None)),
            };
            match takes {
                Ok((host, takes)) => {
                    if let Some(host) = host {
                        self.members[host].push(container);
                    }
                    let target = host.map(|host| self.table.hosts[host].name.clone());
                    return Fallback { then, target, takes, by, instead_of };
                }
                Err(reason) => instead_of.push(format!("{then}: {reason}")),
            }
        }
        Fallback {
            then: NextBest::Drop,
            target: None,
            takes: None,
            by: "nothing else can be done".to_owned(),
            instead_of,
        }
    }

    fn wanted(&self, container: usize) -> (Vec<NextBest>, String) {
        if let Some((then, rule)) = &self.table.instead[container] {
            return (vec![*then], format!("rule {rule}"));
        }
        let (label, _) = labels::fallback(self.table.containers[container].labels.get(labels::FALLBACK));
        if label.is_empty() {
            return (self.policy.fallback.clone(), "[policy] fallback".to_owned());
        }
        (label, format!("label {}", labels::FALLBACK))
    }

    /// How long it takes to send it to the object store, or why it cannot be.
    fn park(&self, container: usize) -> Result<Duration, String> {
        if !self.table.request.can_park {
            return Err("no parking place is configured".to_owned());
        }
        let about = self.table.containers[container];
        if !about.obstacles.is_empty() {
            return Err("it cannot be checkpointed".to_owned());
        }
        let estimates = &self.table.request.estimates;
        let stages = estimates.stages("", &about.name, about.memory_bytes, about.disk_bytes);
        self.in_time(stages.times().total)
    }

    /// Where it can be started anew, and how long it takes to send its files there, or why it cannot be.
    fn cold(&self, container: usize) -> Result<(usize, Duration), String> {
        if self.table.request.never_cold {
            return Err("spothop does not start containers elsewhere yet".to_owned());
        }
        let about = self.table.containers[container];
        let mut best: Option<(i64, usize, Duration)> = None;
        for (host, there) in self.table.hosts.iter().enumerate() {
            let pair = &self.table.pairs[container][host];
            let Some(offer) = &pair.offer else { continue };
            let would_do = pair.refusals.iter().all(|refusal| refusal.is_about_restoring())
                && self.table.fits(container, host, &self.others(container, host));
            let stages = self.table.request.estimates.stages(&there.name, &about.name, 0, offer.disk_bytes);
            let takes = stages.times().total;
            if would_do && self.in_time(takes).is_ok() && best.is_none_or(|(cost, ..)| offer.cost_us < cost) {
                best = Some((offer.cost_us, host, takes));
            }
        }
        best.map(|(_, host, takes)| (host, takes)).ok_or_else(|| "no host has room for it in time".to_owned())
    }

    fn in_time(&self, takes: Duration) -> Result<Duration, String> {
        match self.table.request.budget {
            Some(budget) if takes > budget => {
                Err(format!("takes {:.1} s, and only {:.1} s are left", takes.as_secs_f64(), budget.as_secs_f64()))
            }
            _ => Ok(takes),
        }
    }
}
