//! How long a plan takes: a thousand hosts, twenty containers.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use spothop_policy::rules::{Then, Written};
use spothop_policy::simulation::{Setup, first_request};
use spothop_policy::{HostState, NextBest, Policy, Request, Rules};

use crate::error::{Error, Result};

use super::goals::{Goal, Limit};
use super::results::Figures;
use super::statistics::Spread;
use super::{Bench, Failure, seconds};

const HOSTS: usize = 1_000;
const CONTAINERS: usize = 20;

/// Rules as an operator writes them: of a host, of a container, and of both, which is what has to be asked for every pair.
const RULES: [(&str, &str, Then); 3] = [
    ("no full hosts", "host.cpus > 0 && host.load / double(host.cpus) > 0.9", Then::Forbid),
    ("scratch", "container.priority < 0", Then::Instead(NextBest::Drop)),
    (
        "the large ones on demand",
        "container.memory_mib > 2048 && host.spot && !(host.zone == source.zone && host.price < 0.01)",
        Then::Costs(20.0),
    ),
];

/// Plans that were made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Planner {
    cases: Vec<Case>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Case {
    name: String,
    /// Of each run.
    milliseconds: Vec<f64>,
    moved: usize,
    in_time: usize,
    proven: bool,
}

/// Makes the same plans again and again, in this process.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Planner> {
    let written = RULES.map(|(name, when, then)| Written { name: name.to_owned(), when: when.to_owned(), then });
    let rules = Rules::compile(&written)
        .map_err(|error| Error::Bench { what: "rules for the planner".to_owned(), reason: error.to_string() })?;
    let (plain, ruled) = (Policy::default(), Policy { rules, ..Policy::default() });
    let runs = bench.choose(20, 3);
    let mut cases = Vec::new();
    for (name, policy, request) in [
        ("no rules, room for all", &plain, roomy()),
        ("three rules, room for all", &ruled, roomy()),
        ("three rules, two at a time, late for some", &ruled, late()),
        ("three rules, room for half", &ruled, scarce()),
    ] {
        let mut case = Case { name: name.to_owned(), milliseconds: Vec::new(), moved: 0, in_time: 0, proven: false };
        for _ in 0..runs {
            let begin = Instant::now();
            let plan = policy.plan(&request);
            case.milliseconds.push(seconds(begin.elapsed()) * 1e3);
            case.moved = plan.moves.len();
            case.in_time = plan.moves.iter().filter(|step| step.fits_deadline).count();
            case.proven = plan.proven;
        }
        bench.say(format!("{name}: {:.0} ms at most", case.slowest()));
        cases.push(case);
    }
    Ok(Planner { cases })
}

fn roomy() -> Request {
    let deadline = Duration::from_secs(600);
    first_request(&Setup { hosts: HOSTS, reclaimed: 1, containers: CONTAINERS, deadline, link: 125_000_000, seed: 1 })
}

fn late() -> Request {
    Request { budget: Some(Duration::from_secs(120)), concurrency: 2, ..roomy() }
}

/// Nearly all hosts are full, and what is left is too little.
fn scarce() -> Request {
    let mut request = late();
    let needed: u64 = request.containers.iter().map(|container| container.memory_bytes).sum();
    for (number, host) in request.hosts.iter_mut().enumerate() {
        if let HostState::Reachable(facts) = &mut host.state {
            let room = if number % 100 == 50 { needed / 20 } else { 0 };
            facts.free_memory_bytes = facts.reserved_memory_bytes + room;
        }
    }
    request
}

impl Case {
    fn slowest(&self) -> f64 {
        self.milliseconds.iter().copied().fold(0.0, f64::max)
    }
}

impl Figures for Planner {
    const TITLE: &str = "The planner";

    fn markdown(&self) -> String {
        let mut text = format!(
            "{CONTAINERS} containers of one host, {HOSTS} hosts.\n\n\
             | | runs | p50 | max | moved | in time | proven to be the best |\n|---|--:|--:|--:|--:|--:|---|\n"
        );
        for case in &self.cases {
            let Some(spread) = Spread::of(case.milliseconds.iter().copied()) else { continue };
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {:.1} ms | {:.1} ms | {} | {} | {} |",
                case.name,
                spread.count,
                spread.p50,
                spread.max,
                case.moved,
                case.in_time,
                if case.proven { "yes" } else { "no" }
            );
        }
        text
    }

    fn goals(&self) -> Vec<Goal> {
        let slowest = self.cases.iter().map(Case::slowest).reduce(f64::max);
        let what = format!("a plan of {HOSTS} hosts and {CONTAINERS} containers, the slowest");
        vec![Goal::new(what, Limit::AtMost(1_000.0), " ms", slowest)]
    }

    fn failures(&self) -> &[Failure] {
        &[]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cases_are_what_they_say() {
        let plan = |request: &Request| spothop_policy::plan(request);
        let roomy = plan(&roomy());
        assert_eq!((roomy.moves.len(), roomy.stays.len()), (CONTAINERS, 0));
        let late = plan(&late());
        assert!(late.moves.iter().any(|step| !step.fits_deadline), "{late:?}");
        assert!(!plan(&scarce()).stays.is_empty());
    }
}
