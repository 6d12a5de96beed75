//! Many containers that leave by one notice; many threads and many processes in one.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::command::output;
use crate::error::{Error, Result};
use crate::imds::Action;
use crate::layout::LAN;
use crate::workload::Workload;

use super::migration::{Migration, between};
use super::results::Figures;
use super::statistics::{Spread, median};
use super::{Bench, Failure, HOSTS, SOURCE, TARGET, chain, seconds};

/// Memory of each of many containers, in MiB.
const MIB: u64 = 20;
/// Time from the notice until the host would be taken away: as much as AWS gives.
const LEAD: Duration = Duration::from_secs(120);
/// Addresses of the containers are these and a number: none of the hosts' or of what the hosts give to others.
const ADDRESSES: (&str, usize) = ("172.30.0.", 10);
const NAME: &str = "bench-many";
/// Random bytes, `$1` MiB.
const FILLED: &str = "import os, signal, sys\nheld = bytearray(os.urandom(int(sys.argv[1]) << 20))\nprint('ready', flush=True)\nsignal.pause()\n";
const THREADS: &str = include_str!("threads.py");
const PROCESSES: &str = include_str!("processes.py");
/// Tasks of one container: what they are, the program, and what it is told beside their number.
const CROWDS: [(&str, &str, &[&str]); 3] =
    [("threads", THREADS, &[]), ("processes", PROCESSES, &["sleep"]), ("forked processes", PROCESSES, &[])];

/// Containers that are many, or consist of many.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Many {
    evacuations: Vec<Evacuation>,
    crowds: Vec<Crowd>,
    failures: Vec<Failure>,
}

/// All containers of a host, by one notice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Evacuation {
    containers: usize,
    /// From the notice until the last of them runs at the target, in seconds.
    seconds: f64,
    /// From the first plan until then.
    moving: f64,
    /// How long each was frozen.
    frozen: Vec<f64>,
    /// All that was sent, in bytes.
    sent: u64,
}

/// One container with many tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Crowd {
    /// Of what.
    what: String,
    count: usize,
    /// From the call to its end, in seconds.
    total: f64,
    frozen: f64,
    /// From one phase to the next, by the later one's name.
    phases: Vec<(String, f64)>,
}

/// Makes many containers, and a notice.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Many> {
    clear(bench)?;
    let mut many = Many { evacuations: Vec::new(), crowds: Vec::new(), failures: Vec::new() };
    let containers = bench.choose(50, 6);
    for number in 1..=bench.choose(3, 1) {
        let evacuated = evacuate(bench, containers);
        // A host without a notice is a target again.
        bench.bed.cancel_notice(SOURCE)?;
        clear(bench)?;
        match evacuated {
            Ok(evacuation) => {
                bench.say(format!(
                    "{containers} containers, run {number}: all of them run after {:.1} s, frozen for {:.3} s (median)",
                    evacuation.seconds,
                    median(evacuation.frozen.iter().copied()).unwrap_or_default()
                ));
                many.evacuations.push(evacuation);
            }
            Err(error) => many.fail(bench, format!("the evacuation of {containers} containers"), error),
        }
        let count = bench.choose(500, 100);
        for (what, program, arguments) in CROWDS {
            let moved = crowd(bench, what, program, count, arguments);
            clear(bench)?;
            match moved {
                Ok(crowd) => {
                    bench.say(format!(
                        "{count} {what}, run {number}: frozen for {:.3} s, total {:.2} s",
                        crowd.frozen, crowd.total
                    ));
                    many.crowds.push(crowd);
                }
                Err(error) => many.fail(bench, format!("a container with {count} {what}"), error),
            }
        }
    }
    Ok(many)
}

fn evacuate(bench: &Bench<'_>, count: usize) -> Result<Evacuation> {
    for number in 0..count {
        run(bench, &format!("{NAME}-{number}"), ADDRESSES.1 + number, FILLED, &[&MIB.to_string()])?;
    }
    for number in 0..count {
        until_ready(bench, &format!("{NAME}-{number}"))?;
    }
    let noticed = Timestamp::now();
    bench.bed.notice(SOURCE, Action::Terminate, LEAD)?;
    let end = Instant::now() + LEAD;
    let moved = loop {
        let history = bench.bed.output(SOURCE, ["spothop", "history", "--json", "--limit", "200"])?;
        let moved: Vec<Migration> = Migration::history(&history)?
            .into_iter()
            .filter(|migration| {
                migration.container.starts_with(NAME) && migration.phases.iter().all(|p| p.at > noticed)
            })
            .collect();
        let ended = moved.iter().filter(|migration| migration.outcome.is_some()).count();
        // A refusal makes no migration: the time decides then.
        if ended == count || Instant::now() > end {
            break moved;
        }
        thread::sleep(Duration::from_millis(200));
    };
    let running: Vec<Timestamp> = moved
        .iter()
        .filter(|migration| migration.outcome.as_deref() == Some("moved"))
        .filter_map(|migration| migration.at("running"))
        .collect();
    let there = bench.sh(TARGET, &format!("docker ps --quiet --filter name={NAME} | wc -l"))?;
    let (Some(last), true) = (running.iter().max(), running.len() == count && there == count.to_string()) else {
        let reasons: Vec<_> =
            moved.iter().filter_map(|one| Some(format!("{}: {}", one.id, one.reason.as_deref()?))).collect();
        return Err(Error::Unexpected {
            what: "an evacuation".to_owned(),
            text: format!("{} of {count} moved, {there} run at the target; {}", running.len(), reasons.join("; ")),
        });
    };
    let first = moved.iter().filter_map(|migration| migration.at("planned")).min().unwrap_or(noticed);
    Ok(Evacuation {
        containers: count,
        seconds: between(noticed, *last),
        moving: between(first, *last),
        frozen: moved.iter().filter_map(Migration::frozen_for).collect(),
        sent: moved.iter().map(|migration| migration.bytes_sent).sum(),
    })
}

fn crowd(bench: &Bench<'_>, what: &str, program: &str, count: usize, arguments: &[&str]) -> Result<Crowd> {
    let name = format!("{NAME}-{}", what.replace(' ', "-"));
    run(bench, &name, ADDRESSES.1, program, &[&[&*count.to_string()], arguments].concat())?;
    until_ready(bench, &name)?;
    let begin = Instant::now();
    let migration = Migration::make(bench.bed, SOURCE, &name, TARGET)?;
    let total = seconds(begin.elapsed());
    let code =
        bench.sh(TARGET, &format!("docker kill --signal USR1 {name} >/dev/null; timeout 60 docker wait {name}"))?;
    if code != "0" {
        return Err(Error::Unexpected { what: format!("the exit code of {count} {what}"), text: code });
    }
    let phases = migration.phases.windows(2);
    Ok(Crowd {
        what: what.to_owned(),
        count,
        total,
        frozen: migration.frozen_for().unwrap_or_default(),
        phases: phases.map(|pair| (pair[1].phase.clone(), between(pair[0].at, pair[1].at))).collect(),
    })
}

/// Starts a container that runs a program of Python.
fn run(bench: &Bench<'_>, name: &str, address: usize, program: &str, arguments: &[&str]) -> Result<()> {
    let address = format!("{}{address}", ADDRESSES.0);
    let docker = ["docker", "run", "--detach", "--name", name, "--network", LAN, "--ip", &address];
    let words = [Workload::Python.image(), "python3", "-c", program];
    bench.bed.output(SOURCE, docker.iter().chain(&words).chain(arguments)).map(drop)
}

fn until_ready(bench: &Bench<'_>, name: &str) -> Result<()> {
    let wait = format!("timeout 60 sh -c 'until docker logs {name} | grep -q ready; do sleep 0.1; done'");
    bench.sh(SOURCE, &wait).map(drop)
}

/// Removes all of our containers.
fn clear(bench: &Bench<'_>) -> Result<()> {
    for host in HOSTS {
        let remove =
            format!("docker ps --all --quiet --filter name={NAME} | xargs --no-run-if-empty docker rm --force");
        // One that a migration is just letting go of is removed by that.
        output(&mut bench.bed.exec(host, ["sh", "-c", &remove])?)?;
    }
    Ok(())
}

impl Many {
    fn fail(&mut self, bench: &Bench<'_>, what: String, error: Error) {
        let reason = chain(error);
        bench.say(format!("{what} failed: {reason}"));
        self.failures.push(Failure { what, ours: true, reason });
    }
}

impl Figures for Many {
    const TITLE: &str = "Many containers, many tasks";

    fn markdown(&self) -> String {
        let mut text = "| containers | until the last runs, from the notice | from the first plan | sent | frozen p50 | p95 | max |\n\
                        |--:|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
        for one in &self.evacuations {
            let Some(frozen) = Spread::of(one.frozen.iter().copied()) else { continue };
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "| {} | {:.1} s | {:.1} s | {:.2} GiB | {:.3} s | {:.3} s | {:.3} s |",
                one.containers,
                one.seconds,
                one.moving,
                super::gib(one.sent),
                frozen.p50,
                frozen.p95,
                frozen.max
            );
        }
        let _ = writeln!(
            text,
            "\nEach with {MIB} MiB of random bytes, a line for each run; {} s until the host is taken away. Frozen is by spothop's own timeline, as nobody talks \
             to them.\n",
            LEAD.as_secs()
        );
        text.push_str("| one container with | frozen p50 | max | total p50 | dump and last bytes | restore | engine |\n|---|--:|--:|--:|--:|--:|--:|\n");
        let mut kinds: Vec<(&str, usize)> =
            self.crowds.iter().map(|crowd| (crowd.what.as_str(), crowd.count)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for (what, count) in kinds {
            let of = || self.crowds.iter().filter(move |crowd| crowd.what == what && crowd.count == count);
            let (Some(frozen), Some(total)) =
                (Spread::of(of().map(|crowd| crowd.frozen)), median(of().map(|crowd| crowd.total)))
            else {
                continue;
            };
            let phase = |names: &[&str]| {
                let sum = |crowd: &Crowd| {
                    let parts = crowd.phases.iter().filter(|(name, _)| names.contains(&name.as_str()));
                    parts.map(|(_, seconds)| seconds).sum::<f64>()
                };
                median(of().map(sum)).unwrap_or_default()
            };
            let _ = writeln!(
                text,
                "| {count} {what} | {:.3} s | {:.3} s | {total:.2} s | {:.3} s | {:.3} s | {:.3} s |",
                frozen.p50,
                frozen.max,
                phase(&["transferred"]),
                phase(&["restored"]),
                phase(&["committed", "running"])
            );
        }
        text.push_str(
            "\nAll tasks were counted again at the target. Processes: each a program of its own; forked processes share the memory of the first one.\n",
        );
        text
    }

    fn failures(&self) -> &[Failure] {
        &self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_a_kind_share_a_line() {
        let crowd = |what: &str, frozen| Crowd {
            what: what.to_owned(),
            count: 500,
            total: 2.0,
            frozen,
            phases: vec![("transferred".to_owned(), 0.2), ("restored".to_owned(), 0.3), ("running".to_owned(), 0.1)],
        };
        let evacuation =
            Evacuation { containers: 50, seconds: 20.0, moving: 19.0, frozen: vec![0.3, 0.2, 0.4], sent: 3 << 30 };
        let many = Many {
            evacuations: vec![evacuation],
            crowds: vec![crowd("threads", 0.6), crowd("processes", 0.9), crowd("threads", 0.5), crowd("threads", 0.7)],
            failures: Vec::new(),
        };
        let text = many.markdown();
        for line in [
            "| 50 | 20.0 s | 19.0 s | 3.00 GiB | 0.300 s | 0.400 s | 0.400 s |",
            "| 500 processes | 0.900 s | 0.900 s | 2.00 s | 0.200 s | 0.300 s | 0.100 s |",
            "| 500 threads | 0.600 s | 0.700 s | 2.00 s | 0.200 s | 0.300 s | 0.100 s |",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line:?} in\n{text}");
        }
    }
}
