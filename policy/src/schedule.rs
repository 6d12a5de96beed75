//! In which order to go, and what ends before the deadline.

use std::cmp::Reverse;
use std::time::Duration;

use crate::placement::{Placed, Placement};
use crate::plan::{Move, Plan, Request};
use crate::rates::LONGEST;

/// Orders by priority (highest first), then by predicted time (shortest first: most are safe when it goes wrong), then by name.
///
/// A move that would not end before the deadline does not hold up those that would: it stands after them, to be tried with
/// whatever time the predictions were too cautious about.
pub(crate) fn schedule(request: &Request, mut placement: Placement<'_>) -> Plan {
    placement.placed.sort_by(|a, b| key(a).cmp(&key(b)));
    placement.stays.sort_by(|a, b| {
        b.priority.cmp(&a.priority).then_with(|| (&a.name, &a.container).cmp(&(&b.name, &b.container)))
    });

    let mut clock = Duration::ZERO;
    let mut moves = Vec::with_capacity(placement.placed.len());
    let mut late = Vec::new();
    for placed in placement.placed {
        let ends_after = end(clock, &placed);
        if request.budget.is_none_or(|budget| ends_after <= budget) {
            clock = ends_after;
            moves.push(to_move(placed, ends_after, true));
        } else {
            late.push(placed);
        }
    }
    for placed in late {
        clock = end(clock, &placed);
        moves.push(to_move(placed, clock, false));
    }
    Plan { strategy: placement.strategy, moves, stays: placement.stays }
}

fn key<'a>(placed: &'a Placed<'_>) -> (Reverse<i64>, Duration, &'a str, &'a str) {
    let container = placed.container;
    (Reverse(container.priority), placed.target.predicted.total, &container.name, &container.id)
}

fn end(clock: Duration, placed: &Placed<'_>) -> Duration {
    clock.saturating_add(placed.target.predicted.total).min(LONGEST)
}

fn to_move(placed: Placed<'_>, ends_after: Duration, fits_deadline: bool) -> Move {
    Move {
        container: placed.container.id.clone(),
        name: placed.container.name.clone(),
        priority: placed.container.priority,
        target: placed.target.host,
        predicted: placed.target.predicted,
        candidates: placed.candidates,
        refusals: placed.refusals,
        ends_after,
        fits_deadline,
    }
}
