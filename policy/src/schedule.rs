//! In which order to go, and what ends before the deadline.

use std::cmp::Reverse;
use std::time::Duration;

use crate::Policy;
use crate::placement::Placement;
use crate::plan::Plan;
use crate::rates::LONGEST;
use crate::search::Found;
use crate::table::Table;
use crate::timetable::{self, Job};

/// Orders by priority (highest first), then by predicted time (shortest first: most are safe when it goes wrong), then by name.
///
/// A move that would not end before the deadline does not hold up those that would: it stands after them, to be tried with
/// whatever time the predictions were too cautious about, and with what to do instead.
pub(crate) fn schedule(policy: &Policy, table: &Table<'_>, found: Found) -> Plan {
    let request = table.request;
    let mut placed: Vec<(usize, usize, Job)> = Vec::new();
    let mut left = Vec::new();
    for (container, host) in found.places.iter().enumerate() {
        match host.and_then(|host| Some((host, table.pairs[container][host].offer.as_ref()?.job))) {
            Some((host, job)) => placed.push((container, host, job)),
            None => left.push(container),
        }
    }
    placed.sort_by_key(|(c, _, job)| (Reverse(table.containers[*c].priority), job.alone, table.by_name[*c]));
    left.sort_by_key(|&c| (Reverse(table.containers[c].priority), table.by_name[c]));

    let jobs: Vec<Job> = placed.iter().map(|(.., job)| *job).collect();
    let in_time = timetable::in_time(&jobs, request.concurrency, request.budget);
    let split =
        |wanted: bool| placed.iter().zip(&in_time).filter(move |(_, fits)| **fits == wanted).map(|(one, _)| *one);
    let (punctual, late): (Vec<_>, Vec<_>) = (split(true).collect(), split(false).collect());

    let mut placement = Placement::new(policy, table, &found.places);
    let mut plan =
        Plan { strategy: found.strategy, proven: found.proven, notes: table.notes.clone(), ..Plan::default() };
    // Late ones wait: they would slow down those that can still be saved.
    let mut begin = Duration::ZERO;
    for (group, fits) in [(&punctual, true), (&late, false)] {
        let jobs: Vec<Job> = group.iter().map(|(.., job)| *job).collect();
        let spans = timetable::run(&jobs, request.concurrency);
        let after = |time: Duration| begin.saturating_add(time).min(LONGEST);
        for ((container, host, _), (from, to)) in group.iter().zip(&spans) {
            plan.moves.push(placement.moves(*container, *host, (after(*from), after(*to)), fits));
        }
        begin = spans.iter().map(|(_, to)| after(*to)).max().unwrap_or(begin);
    }
    plan.stays = left.iter().map(|&container| placement.stays(container)).collect();

    // Only where the host goes away; otherwise what stays simply stays. The important ones choose first.
    if request.budget.is_some() {
        let mut wanting: Vec<usize> =
            late.iter().map(|(container, ..)| *container).chain(left.iter().copied()).collect();
        wanting.sort_unstable();
        for container in wanting {
            let fallback = Some(placement.next_best(container));
            let id = &table.containers[container].id;
            let of_moves = plan.moves.iter_mut().filter(|one| one.container == *id).map(|one| &mut one.next_best);
            let of_stays = plan.stays.iter_mut().filter(|one| one.container == *id).map(|one| &mut one.next_best);
            of_moves.chain(of_stays).for_each(|next| next.clone_from(&fallback));
        }
    }
    plan
}
