//! Tables from runs.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;

use super::{Facts, Failure, Run, Way};

/// The steps of spothop's way during which the container does not run.
const FROZEN: [&str; 4] = ["dump", "transfer", "restore", "commit and start"];

/// Everything that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// When it began.
    pub at: Timestamp,
    /// How often each size was to be moved in each way.
    pub runs_each: usize,
    /// On what.
    pub facts: Facts,
    /// The runs that worked, in their order.
    pub runs: Vec<Run>,
    /// Those that did not.
    pub failures: Vec<Failure>,
}

/// Median and maximum of some seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// The lower median.
    pub p50: f64,
    /// The largest.
    pub max: f64,
}

/// All runs of one size in one way.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The client's longest gap.
    pub downtime: Quantiles,
    /// From the call to its end.
    pub total: Quantiles,
    /// Runs whose connection lived.
    pub kept: usize,
    /// Runs that worked.
    pub runs: usize,
}

impl Quantiles {
    /// Of no values there are none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Some(Self { p50: *values.get(values.len().checked_sub(1)? / 2)?, max: *values.last()? })
    }
}

impl Report {
    /// The sizes that were measured, smallest first.
    fn sizes(&self) -> Vec<u64> {
        let mut sizes: Vec<u64> =
            self.runs.iter().map(|run| run.mib).chain(self.failures.iter().map(|failure| failure.mib)).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    fn runs(&self, way: Way, mib: u64) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.way == way && run.mib == mib)
    }

    /// The figures of one size in one way; none when no run worked.
    #[must_use]
    pub fn row(&self, way: Way, mib: u64) -> Option<Row> {
        Some(Row {
            downtime: Quantiles::of(self.runs(way, mib).map(|run| run.downtime))?,
            total: Quantiles::of(self.runs(way, mib).map(|run| run.total))?,
            kept: self.runs(way, mib).filter(|run| run.kept).count(),
            runs: self.runs(way, mib).count(),
        })
    }

    /// The tables, with all that is needed to read them.
    #[must_use]
    pub fn markdown(&self) -> String {
        // Writing to a String cannot fail.
        let mut text = String::new();
        let _ = writeln!(text, "{}\n", self.heading());
        text.push_str(&self.comparison());
        let _ = writeln!(text, "\n{}\n", self.notes());
        text.push_str("**Where the time goes** (medians, seconds; in brackets the cores that were busy)\n\n");
        for way in Way::ALL {
            text.push_str(&self.split(way));
        }
        if let Some(sentence) = self.frozen() {
            let _ = writeln!(text, "{sentence}");
        }
        text
    }

    fn heading(&self) -> String {
        let facts = &self.facts;
        let link =
            facts.link_mbit.map_or_else(|| "an unlimited link".to_owned(), |mbit| format!("a link of {mbit} Mbit/s"));
        let versions: Vec<_> = facts.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        format!(
            "Measured {} by `cargo bench-all`: both hosts and the client on one machine with {} cores, {:.0} GiB and Linux {}, {link}; \
             {}. {} runs each; the machine's load before them was {}.",
            self.at.strftime("%Y-%m-%d"),
            facts.cores,
            facts.memory_gib,
            facts.kernel,
            versions.join(", "),
            self.runs_each,
            facts.load,
        )
    }

    fn comparison(&self) -> String {
        let mut text = "| Redis | moved by | downtime p50 | max | total p50 | max | connection |\n\
                        |---|---|--:|--:|--:|--:|---|\n"
            .to_owned();
        for mib in self.sizes() {
            let rows = Way::ALL.map(|way| (way, self.row(way, mib)));
            for (way, row) in &rows {
                let _ = match row {
                    Some(row) => writeln!(
                        text,
                        "| {} | {} | {:.2} s | {:.2} s | {:.2} s | {:.2} s | {} |",
                        size(mib),
                        way.name(),
                        row.downtime.p50,
                        row.downtime.max,
                        row.total.p50,
                        row.total.max,
                        self.connection(*way, mib, row)
                    ),
                    None => writeln!(text, "| {} | {} | failed | | | | |", size(mib), way.name()),
                };
            }
            if let [(_, Some(ours)), (_, Some(theirs))] = &rows {
                let _ = writeln!(
                    text,
                    "| | *Podman ÷ spothop* | {:.1} | {:.1} | {:.1} | {:.1} | |",
                    theirs.downtime.p50 / ours.downtime.p50,
                    theirs.downtime.max / ours.downtime.max,
                    theirs.total.p50 / ours.total.p50,
                    theirs.total.max / ours.total.max,
                );
            }
        }
        text
    }

    fn connection(&self, way: Way, mib: u64, row: &Row) -> String {
        let mut text = format!("kept {} of {}", row.kept, row.runs);
        let lost: u64 = self.runs(way, mib).map(|run| run.lost_writes).sum();
        if lost > 0 {
            let _ = write!(text, ", {lost} writes lost");
        }
        let failed = self.failures.iter().filter(|failure| failure.way == way && failure.mib == mib).count();
        if failed > 0 {
            let _ = write!(text, ", {failed} more failed");
        }
        text
    }

    fn notes(&self) -> String {
        let mut text = "Downtime is the client's longest time from one right answer to the next (one connection, SET and GET, a request every \
                        2 ms; where the connection was reset, until the first right answer on a new one). Total is the time from the call until \
                        nothing is left on the source. Podman: `container checkpoint --export --compress=none --tcp-established` with runc, the \
                        archive in memory and fetched over HTTP, `container restore --import --tcp-established` on a macvlan network with the same \
                        addresses, `rm`. All data were read again and compared after every run."
            .to_owned();
        for failure in &self.failures {
            let _ = write!(text, "\n\n{} by {} failed: {}", size(failure.mib), failure.way.name(), failure.reason);
        }
        text
    }

    /// A table of the steps: a line for every size.
    fn split(&self, way: Way) -> String {
        let mut text = String::new();
        for mib in self.sizes() {
            let steps = self.steps(way, mib);
            if steps.is_empty() {
                continue;
            }
            if text.is_empty() {
                let names: Vec<_> = steps.iter().map(|step| step.name).collect();
                let _ = writeln!(text, "| {} | {} |", way.name(), names.join(" | "));
                let _ = writeln!(text, "|---{}|", "|--:".repeat(names.len()));
            }
            let _ = write!(text, "| {} |", size(mib));
            for step in steps {
                let _ = match step.busy_cores {
                    Some(cores) => write!(text, " {:.3} ({cores:.1}) |", step.seconds),
                    None => write!(text, " {:.3} |", step.seconds),
                };
            }
            text.push('\n');
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text
    }

    /// The median of every step; steps are those of the first run.
    fn steps(&self, way: Way, mib: u64) -> Vec<super::Step> {
        let Some(first) = self.runs(way, mib).next() else {
            return Vec::new();
        };
        let all = |name| self.runs(way, mib).flat_map(|run| &run.steps).filter(move |step| step.name == name);
        first
            .steps
            .iter()
            .filter_map(|step| {
                Some(super::Step {
                    name: step.name,
                    seconds: Quantiles::of(all(step.name).map(|step| step.seconds))?.p50,
                    busy_cores: Quantiles::of(all(step.name).filter_map(|step| step.busy_cores)).map(|cores| cores.p50),
                    programs: step
                        .programs
                        .iter()
                        .filter_map(|(program, _)| {
                            let used = all(step.name).flat_map(|step| &step.programs);
                            let used = used.filter(|(name, _)| name == program).map(|(_, seconds)| *seconds);
                            Some((program.clone(), Quantiles::of(used)?.p50))
                        })
                        .collect(),
                })
            })
            .collect()
    }

    /// What the frozen time of the largest size consists of.
    fn frozen(&self) -> Option<String> {
        let mib = *self.sizes().last()?;
        let frozen: Vec<_> =
            self.steps(Way::Spothop, mib).into_iter().filter(|step| FROZEN.contains(&step.name)).collect();
        let all: f64 = frozen.iter().map(|step| step.seconds).sum();
        let parts: Vec<_> = frozen
            .iter()
            .map(|step| {
                let used: Vec<_> =
                    step.programs.iter().map(|(name, seconds)| format!("{name} {seconds:.2} s")).collect();
                let used = if used.is_empty() { String::new() } else { format!(" (of a core: {})", used.join(", ")) };
                format!("{} {:.0} %{used}", step.name, step.seconds / all * 100.0)
            })
            .collect();
        let downtime = self.row(Way::Spothop, mib)?.downtime.p50;
        let sent = Quantiles::of(self.sent_gigabytes(mib)).map_or(0.0, |sent| sent.p50);
        Some(format!(
            "At {} spothop sends {sent:.2} GB and the container is frozen for {all:.2} s: {}. The other {:.2} s of the client's downtime are \
             the freeze itself and, when a request was lost on the way into it, TCP's wait before it is sent again.",
            size(mib),
            parts.join(", "),
            (downtime - all).max(0.0)
        ))
    }

    fn sent_gigabytes(&self, mib: u64) -> impl Iterator<Item = f64> {
        // To the megabyte, which is exact in a float.
        let megabytes = |bytes: u64| u32::try_from(bytes / 1_000_000).ok().map(f64::from);
        self.runs(Way::Spothop, mib).filter_map(move |run| Some(megabytes(run.sent_bytes?)? / 1000.0))
    }
}

fn size(mib: u64) -> String {
    if mib >= 1024 && mib.is_multiple_of(1024) { format!("{} GiB", mib / 1024) } else { format!("{mib} MiB") }
}

#[cfg(test)]
mod tests {
    use super::super::Step;
    use super::*;

    fn run(way: Way, downtime: f64, kept: bool) -> Run {
        let step = |name, seconds| Step {
            name,
            seconds,
            busy_cores: Some(1.5),
            programs: vec![("criu on a".to_owned(), seconds / 2.0)],
        };
        let steps = match way {
            Way::Spothop => vec![step("prepare", 0.2), step("dump", downtime / 2.0), step("restore", downtime / 2.0)],
            Way::Podman => vec![step("checkpoint", downtime)],
        };
        Run {
            way,
            mib: 1024,
            downtime,
            total: downtime * 2.0,
            kept,
            lost_writes: 0,
            sent_bytes: Some(1_370_000_000),
            steps,
        }
    }

    fn report() -> Report {
        Report {
            at: "2026-01-02T03:04:05Z".parse().unwrap(),
            runs_each: 3,
            facts: Facts {
                cores: 2,
                memory_gib: 23.6,
                kernel: "6.18.0".to_owned(),
                load: "0.10".to_owned(),
                link_mbit: None,
                versions: vec![("criu", "4.2.1".to_owned())],
            },
            runs: vec![
                run(Way::Spothop, 1.0, true),
                run(Way::Podman, 8.0, false),
                run(Way::Spothop, 2.0, true),
                run(Way::Podman, 12.0, true),
                run(Way::Spothop, 1.5, true),
            ],
            failures: vec![Failure { way: Way::Podman, mib: 1024, reason: "no such thing".to_owned() }],
        }
    }

    #[test]
    fn the_median_is_one_of_the_values() {
        assert_eq!(Quantiles::of([3.0, 1.0, 2.0]), Some(Quantiles { p50: 2.0, max: 3.0 }));
        assert_eq!(Quantiles::of([4.0, 1.0]), Some(Quantiles { p50: 1.0, max: 4.0 }));
        assert_eq!(Quantiles::of([]), None);
    }

    #[test]
    fn the_table_shows_both_ways_and_their_ratio() {
        let text = report().markdown();
        for line in [
            "| 1 GiB | spothop | 1.50 s | 2.00 s | 3.00 s | 4.00 s | kept 3 of 3 |",
            "| 1 GiB | Podman | 8.00 s | 12.00 s | 16.00 s | 24.00 s | kept 1 of 2, 1 more failed |",
            "| | *Podman ÷ spothop* | 5.3 | 6.0 | 5.3 | 6.0 | |",
            "| spothop | prepare | dump | restore |",
            "| 1 GiB | 0.200 (1.5) | 0.750 (1.5) | 0.750 (1.5) |",
            "1 GiB by Podman failed: no such thing",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line:?} in\n{text}");
        }
        assert!(
            text.contains(
                "2 cores, 24 GiB and Linux 6.18.0, an unlimited link; criu 4.2.1. 3 runs each; the machine's load"
            ),
            "{text}"
        );
        assert!(
            text.contains(
                "sends 1.37 GB and the container is frozen for 1.50 s: dump 50 % (of a core: criu on a 0.38 s), restore"
            ),
            "{text}"
        );
    }
}
