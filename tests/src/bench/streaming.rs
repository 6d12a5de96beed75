//! Memory that the daemons take while a container moves.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::error::Result;

use super::goals::{Goal, Limit};
use super::results::Figures;
use super::spothop::Spothop;
use super::statistics::median;
use super::usage::Usage;
use super::{Bench, Failure, HOSTS, SOURCE, TARGET, Way, chain, mib, size, too_large};

/// Containers that were moved to and fro, by daemons that had done nothing before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Streaming {
    moves: Vec<Move>,
    failures: Vec<Failure>,
    left_out: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Move {
    way: Way,
    mib: u64,
    usage: Usage,
}

/// Moves servers that nobody asks, in all of spothop's modes.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Streaming> {
    let spothop = Spothop::new(bench.bed)?;
    let mut streaming = Streaming { moves: Vec::new(), failures: Vec::new(), left_out: Vec::new() };
    let sizes = bench.choose([1024, 4096].as_slice(), [256].as_slice());
    for _ in 0..bench.choose(3, 1) {
        for &mib in sizes {
            for way in bench.ways.iter().filter(|way| matches!(way, Way::Spothop(_))) {
                let what = format!("{} by {}", size(mib), way.name());
                if let Some(reason) = too_large(way, mib) {
                    if !streaming.left_out.contains(&reason) {
                        streaming.left_out.push(reason);
                    }
                    continue;
                }
                match one(bench, &spothop, way, mib) {
                    Ok(usage) => {
                        let peaks =
                            usage.hosts.iter().map(|host| format!("{:.1} MiB", self::mib(host.daemon_peak_bytes)));
                        bench.say(format!("{what}: daemons {}", peaks.collect::<Vec<_>>().join(" and ")));
                        streaming.moves.push(Move { way: way.clone(), mib, usage });
                    }
                    Err(error) => {
                        let reason = chain(error);
                        bench.say(format!("{what}: failed: {reason}"));
                        streaming.failures.push(Failure { what, ours: true, reason });
                    }
                }
            }
        }
    }
    Ok(streaming)
}

fn one(bench: &Bench<'_>, spothop: &Spothop<'_>, way: &Way, mib: u64) -> Result<Usage> {
    bench.configure(way)?;
    // Without what earlier moves have left in the allocators.
    bench.configuration.restart()?;
    let moved = spothop.start().and_then(|server| {
        server.fill(mib)?;
        let moved = spothop.migrate(SOURCE, TARGET)?;
        server.verify(mib)?;
        Ok(moved)
    });
    spothop.clear()?;
    moved.map(|moved| moved.profile.usage)
}

impl Streaming {
    fn rows(&self) -> Vec<(&Way, u64)> {
        let mut rows: Vec<(&Way, u64)> = Vec::new();
        for one in &self.moves {
            if !rows.contains(&(&one.way, one.mib)) {
                rows.push((&one.way, one.mib));
            }
        }
        rows
    }

    fn most(&self, row: (&Way, u64), host: usize, figure: impl Fn(&super::usage::HostUsage) -> u64) -> u64 {
        let of = self.moves.iter().filter(|one| (&one.way, one.mib) == row);
        of.map(|one| figure(&one.usage.hosts[host])).max().unwrap_or_default()
    }
}

impl Figures for Streaming {
    const TITLE: &str = "Memory of the daemons";

    fn markdown(&self) -> String {
        let mut text = "| Redis | moved by | daemon on | resident at most | of its own | in shared memory | store at most | CPU of the daemon and what it starts |\n\
                        |---|---|---|--:|--:|--:|--:|--:|\n"
            .to_owned();
        for row in self.rows() {
            for (index, host) in HOSTS.iter().enumerate() {
                let of = self.moves.iter().filter(|one| (&one.way, one.mib) == row);
                let cpu = median(of.map(|one| one.usage.hosts[index].daemon_cpu_seconds)).unwrap_or_default();
                // Writing to a String cannot fail.
                let _ = writeln!(
                    text,
                    "| {} | {} | {host} | {:.1} MiB | {:.1} MiB | {:.1} MiB | {:.0} MiB | {cpu:.2} s |",
                    size(row.1),
                    row.0.name(),
                    mib(self.most(row, index, |host| host.daemon_peak_bytes)),
                    mib(self.most(row, index, |host| host.daemon_own_bytes)),
                    mib(self.most(row, index, |host| host.daemon_shared_bytes)),
                    mib(self.most(row, index, |host| host.store_bytes)),
                );
            }
        }
        text.push_str(
            "\nThe largest of all runs, daemons started anew before each. Resident is the kernel's own mark (VmHWM), with the pages of the program's \
             file; its own and shared memory are what was seen every 40 ms. The store (the pages and images of a container, in a tmpfs) is not in \
             the daemon's memory.\n",
        );
        for reason in &self.left_out {
            let _ = writeln!(text, "\nLeft out: {reason}.");
        }
        text
    }

    fn goals(&self) -> Vec<Goal> {
        // In the mode that is spothop's own: the first.
        let Some((way, _)) = self.rows().first().copied() else { return Vec::new() };
        let rows: Vec<_> = self.rows().into_iter().filter(|row| row.0 == way).collect();
        rows.into_iter()
            .map(|row| {
                let most = (0..HOSTS.len()).map(|host| self.most(row, host, |host| host.daemon_peak_bytes)).max();
                let what = format!("daemon while {} moves: resident at most", size(row.1));
                Goal::new(what, Limit::AtMost(96.0), " MiB", most.map(mib))
            })
            .collect()
    }

    fn failures(&self) -> &[Failure] {
        &self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::super::usage::HostUsage;
    use super::super::ways::Mode;
    use super::*;

    #[test]
    fn the_goal_takes_the_worse_daemon_of_the_worst_run() {
        let way = |name: &str| Way::Spothop(Mode { name: name.to_owned(), table: String::new() });
        let host = |peak: u64| HostUsage { daemon_peak_bytes: peak << 20, ..HostUsage::default() };
        let one = |name, a, b| Move {
            way: way(name),
            mib: 1024,
            usage: Usage { hosts: [host(a), host(b)], ..Usage::default() },
        };
        let moves = vec![one("pre-copy", 40, 48), one("dump", 99, 99), one("pre-copy", 50, 44)];
        let streaming = Streaming { moves, failures: Vec::new(), left_out: Vec::new() };
        let goals = streaming.goals();
        assert_eq!((goals.len(), goals[0].measured), (1, Some(50.0)));
        let line = "| 1 GiB | spothop, pre-copy | b | 48.0 MiB | 0.0 MiB | 0.0 MiB | 0 MiB | 0.00 s |";
        assert!(streaming.markdown().contains(line), "{}", streaming.markdown());
    }
}
