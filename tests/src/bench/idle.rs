//! What a daemon costs that has nothing to do.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::Result;

use super::goals::{Goal, Limit};
use super::results::Figures;
use super::spothop::Spothop;
use super::usage::{Gauge, Resident};
use super::{Bench, Failure, HOSTS, SOURCE, TARGET, mib, seconds, size};

/// What the daemon was asked to do before.
const STATES: [&str; 2] = ["just started", "after two moves"];

/// Both daemons at rest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Idle {
    /// Data of the server that was moved to and fro, in MiB.
    mib: u64,
    rests: Vec<Rest>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Rest {
    state: String,
    host: String,
    /// How long it was looked at.
    seconds: f64,
    /// Seconds of a core, the daemon and what it started.
    cpu_seconds: f64,
    resident: Resident,
}

/// Looks at daemons that do nothing, twice.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Idle> {
    let time = bench.choose(Duration::from_secs(90), Duration::from_secs(10));
    let mib = bench.choose(1024, 64);
    let spothop = Spothop::new(bench.bed)?;
    let mut idle = Idle { mib, rests: Vec::new() };
    bench.configuration.restart()?;
    rest(bench, STATES[0], time, &mut idle.rests)?;
    let moved = spothop.start().and_then(|server| {
        server.fill(mib)?;
        spothop.migrate(SOURCE, TARGET)?;
        spothop.migrate(TARGET, SOURCE)
    });
    spothop.clear()?;
    moved?;
    rest(bench, STATES[1], time, &mut idle.rests)?;
    Ok(idle)
}

fn rest(bench: &Bench<'_>, state: &str, time: Duration, rests: &mut Vec<Rest>) -> Result<()> {
    let gauges = Gauge::both(bench.bed)?;
    let clocks = || -> Result<Vec<f64>> { gauges.iter().map(Gauge::daemon_cpu_seconds).collect() };
    let (begin, before) = (Instant::now(), clocks()?);
    thread::sleep(time);
    let after = clocks()?;
    let looked_at = seconds(begin.elapsed());
    for (index, host) in HOSTS.iter().enumerate() {
        let cpu_seconds = after[index] - before[index];
        let resident = gauges[index].daemon();
        bench.say(format!(
            "{host}, {state}: {:.1} MiB, {:.3} % of a core",
            mib(resident.all()),
            cpu_seconds / looked_at * 100.0
        ));
        rests.push(Rest {
            state: state.to_owned(),
            host: (*host).to_owned(),
            seconds: looked_at,
            cpu_seconds,
            resident,
        });
    }
    Ok(())
}

impl Rest {
    fn per_cent(&self) -> f64 {
        self.cpu_seconds / self.seconds * 100.0
    }
}

impl Figures for Idle {
    const TITLE: &str = "An idle daemon";

    fn markdown(&self) -> String {
        let mut text =
            "| daemon on | | resident | of its own | of files | of a core |\n|---|---|--:|--:|--:|--:|\n".to_owned();
        for rest in &self.rests {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {:.1} MiB | {:.1} MiB | {:.1} MiB | {:.3} % |",
                rest.host,
                rest.state,
                mib(rest.resident.all()),
                mib(rest.resident.own),
                mib(rest.resident.files),
                rest.per_cent()
            );
        }
        let longest = self.rests.iter().map(|rest| rest.seconds).fold(0.0, f64::max);
        let _ = writeln!(
            text,
            "\nLooked at for {longest:.0} s each time, with a metadata service that is asked for a notice every second, and a peer. The moves were of a Redis of {} \
             from a to b and back. Of files: pages of the program, which the kernel takes back when it needs them.",
            size(self.mib)
        );
        text
    }

    fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for state in STATES {
            let worst = |figure: fn(&Rest) -> f64| {
                self.rests.iter().filter(|rest| rest.state == state).map(figure).max_by(f64::total_cmp)
            };
            let resident = worst(|rest| mib(rest.resident.all()));
            goals.push(Goal::new(format!("idle daemon, {state}: resident"), Limit::AtMost(20.0), " MiB", resident));
            let busy = worst(Rest::per_cent);
            goals.push(Goal::new(format!("idle daemon, {state}: of a core"), Limit::AtMost(0.2), " %", busy));
        }
        goals
    }

    fn failures(&self) -> &[Failure] {
        &[]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) fn figures() -> Idle {
        let rest = |state: &str, host: &str, own: u64| Rest {
            state: state.to_owned(),
            host: host.to_owned(),
            seconds: 60.0,
            cpu_seconds: 0.06,
            resident: Resident { peak: 64 << 20, own: own << 20, files: 10 << 20, shared: 0 },
        };
        let rests =
            vec![rest(STATES[0], "a", 4), rest(STATES[0], "b", 5), rest(STATES[1], "a", 20), rest(STATES[1], "b", 12)];
        Idle { mib: 1024, rests }
    }

    #[test]
    fn the_goals_take_the_worse_daemon() {
        let measured: Vec<_> = figures().goals().iter().map(|goal| goal.measured.unwrap()).collect();
        assert_eq!((measured[0], measured[2]), (15.0, 30.0));
        assert!((measured[1] - 0.1).abs() < 1e-9, "{measured:?}");
        assert!(figures().markdown().contains("| a | after two moves | 30.0 MiB | 20.0 MiB | 10.0 MiB | 0.100 % |"));
    }
}
