//! How long a client hears nothing, and what a move takes in all.

mod tables;

use serde::{Deserialize, Serialize};

use crate::error::Result;

use super::plain::Plain;
use super::podman::Podman;
use super::spothop::Spothop;
use super::statistics::due;
use super::{Bench, Failure, Run, Way, chain, size, too_large};

/// Runs in a row that may fail before a way is left alone with a size.
const PATIENCE: usize = 3;

/// Servers of many sizes, moved in every way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Downtime {
    /// The ways in the order of the tables; the first is spothop as it comes.
    ways: Vec<Way>,
    /// The runs that worked, in their order.
    runs: Vec<Run>,
    /// Those that did not.
    failures: Vec<Failure>,
    /// What was not tried, and why.
    left_out: Vec<String>,
}

/// Those who move.
struct Movers<'a> {
    bench: &'a Bench<'a>,
    spothop: Spothop<'a>,
    /// None where nobody asks for it.
    podman: Option<Podman<'a>>,
    plain: Option<Plain<'a>>,
}

impl<'a> Movers<'a> {
    fn new(bench: &'a Bench<'a>, ways: &[Way]) -> Result<Self> {
        Ok(Self {
            bench,
            spothop: Spothop::new(bench.bed)?,
            podman: ways.contains(&Way::Podman).then(|| Podman::new(bench.bed)).transpose()?,
            plain: ways.contains(&Way::Criu).then(|| Plain::new(bench.bed)).transpose()?,
        })
    }

    fn run(&self, way: &Way, mib: u64) -> Result<Run> {
        self.bench.configure(way)?;
        match (way, &self.podman, &self.plain) {
            (Way::Podman, Some(podman), _) => podman.run(mib),
            (Way::Criu, _, Some(plain)) => plain.run(mib),
            _ => self.spothop.run(way, mib),
        }
    }

    fn end(self) -> Result<()> {
        self.spothop.clear()?;
        self.podman.map_or(Ok(()), Podman::end)?;
        self.plain.map_or(Ok(()), Plain::end)
    }
}

/// Moves servers.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Downtime> {
    let wanted = &bench.options.ways;
    let ways = bench.ways.iter().filter(|way| wanted.is_empty() || wanted.iter().any(|key| way.key() == key));
    let ways: Vec<Way> = ways.cloned().collect();
    if let Some(unknown) = wanted.iter().find(|key| !bench.ways.iter().any(|way| way.key() == *key)) {
        let known: Vec<&str> = bench.ways.iter().map(Way::key).collect();
        return Err(crate::Error::OutOfRange {
            what: "--ways",
            value: unknown.clone(),
            allowed: format!("some of {}", known.join(", ")),
        });
    }
    let sizes = if bench.options.quick { vec![64, 256] } else { bench.options.sizes.clone() };
    let rounds = bench.choose(bench.options.runs.max(1), 2);
    let each = |way: &Way| match way {
        way if way == bench.default_way() => rounds,
        Way::Spothop(_) => bench.choose(bench.options.mode_runs, 1),
        Way::Podman | Way::Criu => bench.choose(bench.options.baseline_runs, 1),
    };
    let movers = Movers::new(bench, &ways)?;
    let mut downtime = Downtime { runs: Vec::new(), failures: Vec::new(), left_out: Vec::new(), ways };
    warm_up(bench, &movers, &downtime.ways, &sizes);
    let mut failed = vec![0; downtime.ways.len() * sizes.len()];
    for number in 1..=rounds {
        // Sizes and ways one after the other, so that a change in the machine's mood meets all of them.
        for (row, &mib) in sizes.iter().enumerate() {
            for (column, way) in downtime.ways.iter().enumerate() {
                let failed = &mut failed[row * downtime.ways.len() + column];
                if !due(number, rounds, each(way)) || *failed >= PATIENCE {
                    continue;
                }
                let what = format!("{} by {}", size(mib), way.name());
                if let Some(reason) = too_large(way, mib) {
                    if !downtime.left_out.iter().any(|told| told.starts_with(&what)) {
                        bench.say(format!("left out: {reason}"));
                        downtime.left_out.push(reason);
                    }
                    continue;
                }
                match movers.run(way, mib) {
                    Ok(run) => {
                        let connection = if run.kept { "kept" } else { "reset" };
                        bench.say(format!(
                            "{what}, round {number}: downtime {:.3} s, total {:.2} s, connection {connection}",
                            run.downtime, run.total
                        ));
                        *failed = 0;
                        downtime.runs.push(run);
                    }
                    Err(error) => {
                        let reason = chain(error);
                        bench.say(format!("{what}, round {number}: failed: {reason}"));
                        *failed += 1;
                        downtime.failures.push(Failure { what, ours: matches!(way, Way::Spothop(_)), reason });
                    }
                }
            }
        }
    }
    movers.end()?;
    Ok(downtime)
}

/// Memory that a virtual machine has never touched comes to it slowly, and CRIU looks at the kernel when it is first called; the first
/// runs would measure that.
fn warm_up(bench: &Bench<'_>, movers: &Movers<'_>, ways: &[Way], sizes: &[u64]) {
    let (Some(&smallest), Some(&largest)) = (sizes.iter().min(), sizes.iter().max()) else { return };
    for (index, way) in ways.iter().enumerate() {
        let mib = if index == 0 && too_large(way, largest).is_none() { largest } else { smallest };
        bench.say(format!("warming up: {} by {}", size(mib), way.name()));
        if let Err(error) = movers.run(way, mib) {
            bench.say(format!("  failed: {}", chain(error)));
        }
    }
}
