//! Tables from runs.

use std::fmt::Write as _;

use super::super::goals::{Goal, Limit};
use super::super::results::Figures;
use super::super::statistics::{Spread, median, slope};
use super::super::{Failure, Run, Step, Way, mib, size};
use super::Downtime;

/// The steps during which the container does not run.
const AWAY: [&str; 6] = ["freeze", "dump", "last bytes", "restore", "engine", "network"];
/// What the slope is taken over, in MiB.
const SLOPE: std::ops::RangeInclusive<u64> = 1024..=4096;
/// The size that the goals are about, in MiB.
const GOAL: u64 = 1024;

const NOTES: &str = "Downtime is the client's longest time from one right answer to the next (one connection, SET and GET, a request every 2 ms; \
    where the connection was reset, until the first right answer on a new one). Total is the time from the call until nothing is left on the \
    source. Podman: `container checkpoint --export --compress=none --tcp-established` with runc, the archive in memory and fetched over HTTP, \
    `container restore --import --tcp-established` on a macvlan network with the same addresses, `rm`. Plain CRIU: `runc checkpoint` into \
    memory, `tar` over one plain TCP connection into the target's memory, `runc restore` into a network that waits there. Where the downtime is \
    longer than the total, a request was lost on the way into the freeze, and TCP waits before it is sent again. All data were read \
    again and compared after every run.";

const SPLIT: &str = "Medians, seconds; in brackets the cores that were busy. Freeze: from the client's last answer until all tasks stand \
    still. Dump: until CRIU's images are complete. Last bytes: until the target has everything. Restore: until all tasks are there, with \
    their network. Engine: COMMIT on both sides, and the engine's start. Network: until the client's next answer.";

const COSTS: &str = "Medians; memory: the largest. Processor time is that of all of a host (its cgroup), the server's own included, in brackets that of \
    spothop's daemon and of what it starts. Daemon: the most that it had resident. Store: what was in its file systems in memory. Machine: by \
    how much less memory was free on the whole machine than before. Wire: after compression; link: all that left the source.";

impl Downtime {
    fn sizes(&self) -> Vec<u64> {
        let mut sizes: Vec<u64> = self.runs.iter().map(|run| run.mib).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    fn of(&self, way: &Way, mib: u64) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.way == *way && run.mib == mib)
    }

    fn spread(&self, way: &Way, mib: u64, figure: impl Fn(&Run) -> f64) -> Option<Spread> {
        Spread::of(self.of(way, mib).map(figure))
    }

    /// Median downtimes in seconds over sizes in GiB.
    fn line(&self, way: &Way) -> Vec<(f64, f64)> {
        let sizes = self.sizes().into_iter().filter(|mib| SLOPE.contains(mib));
        sizes.filter_map(|mib| Some((mib as f64 / 1024.0, self.spread(way, mib, |run| run.downtime)?.p50))).collect()
    }

    fn comparison(&self) -> String {
        let mut text = "| Redis | moved by | downtime p50 | p95 | max | total p50 | max | connection |\n\
                        |---|---|--:|--:|--:|--:|--:|---|\n"
            .to_owned();
        for mib in self.sizes() {
            let rows: Vec<_> = self
                .ways
                .iter()
                .filter_map(|way| {
                    Some((way, self.spread(way, mib, |run| run.downtime)?, self.spread(way, mib, |run| run.total)?))
                })
                .collect();
            for (way, downtime, total) in &rows {
                // Writing to a String cannot fail.
                let _ = writeln!(
                    text,
                    "| {} | {} | {:.3} s | {:.3} s | {:.3} s | {:.2} s | {:.2} s | {} |",
                    size(mib),
                    way.name(),
                    downtime.p50,
                    downtime.p95,
                    downtime.max,
                    total.p50,
                    total.max,
                    self.connection(way, mib)
                );
            }
            let Some((first, ours, our_total)) = rows.first() else { continue };
            for (way, theirs, their_total) in rows.iter().filter(|(way, ..)| matches!(way, Way::Podman | Way::Criu)) {
                let _ = writeln!(
                    text,
                    "| | *{} ÷ {}* | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | |",
                    way.name(),
                    first.name(),
                    theirs.p50 / ours.p50,
                    theirs.p95 / ours.p95,
                    theirs.max / ours.max,
                    their_total.p50 / our_total.p50,
                    their_total.max / our_total.max,
                );
            }
        }
        text
    }

    fn connection(&self, way: &Way, mib: u64) -> String {
        let (kept, runs) = (self.of(way, mib).filter(|run| run.kept).count(), self.of(way, mib).count());
        let mut text = format!("kept {kept} of {runs}");
        let lost: u64 = self.of(way, mib).map(|run| run.lost_writes).sum();
        if lost > 0 {
            let _ = write!(text, ", {lost} writes lost");
        }
        let what = format!("{} by {}", size(mib), way.name());
        let failed = self.failures.iter().filter(|failure| failure.what == what).count();
        if failed > 0 {
            let _ = write!(text, ", {failed} more failed");
        }
        text
    }

    /// A table of the steps: a line for every size.
    fn split(&self, way: &Way) -> String {
        let sizes: Vec<_> = self.sizes().into_iter().map(|mib| (mib, self.steps(way, mib))).collect();
        let Some((_, longest)) =
            sizes.iter().max_by_key(|(_, steps)| steps.len()).filter(|(_, steps)| !steps.is_empty())
        else {
            return String::new();
        };
        let names: Vec<_> = longest.iter().map(|step| step.name.as_str()).collect();
        let mut text = format!("| {} | {} |\n|---{}|\n", way.name(), names.join(" | "), "|--:".repeat(names.len()));
        for (mib, steps) in sizes.iter().filter(|(_, steps)| !steps.is_empty()) {
            let _ = write!(text, "| {} |", size(*mib));
            for name in &names {
                let _ = match steps.iter().find(|step| step.name == *name) {
                    Some(Step { seconds, busy_cores: Some(cores), .. }) => write!(text, " {seconds:.3} ({cores:.1}) |"),
                    Some(step) => write!(text, " {:.3} |", step.seconds),
                    None => write!(text, " |"),
                };
            }
            text.push('\n');
        }
        text.push('\n');
        text
    }

    /// The median of every step that most runs have, in the order of the run that has most.
    fn steps(&self, way: &Way, mib: u64) -> Vec<Step> {
        let Some(model) = self.of(way, mib).max_by_key(|run| run.steps.len()) else { return Vec::new() };
        let all = |name: &str| {
            let of = |run: &'_ Run| run.steps.iter().find(|step| step.name == name).cloned();
            self.of(way, mib).filter_map(of).collect::<Vec<Step>>()
        };
        let most = self.of(way, mib).count().div_ceil(2);
        let steps = model.steps.iter().map(|step| (step, all(&step.name))).filter(|(_, all)| all.len() >= most);
        steps
            .filter_map(|(step, all)| {
                let programs = step.programs.iter().filter_map(|(program, _)| {
                    let used = all.iter().flat_map(|step| &step.programs).filter(|(name, _)| name == program);
                    Some((program.clone(), median(used.map(|(_, seconds)| *seconds))?))
                });
                Some(Step {
                    name: step.name.clone(),
                    seconds: median(all.iter().map(|step| step.seconds))?,
                    busy_cores: median(all.iter().filter_map(|step| step.busy_cores)),
                    programs: programs.collect(),
                })
            })
            .collect()
    }

    fn costs(&self) -> String {
        let mut text = "| Redis | moved by | sent | wire | link | source CPU | target CPU | daemon source | target | store source | target | machine |\n\
                        |---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
        for mib in self.sizes() {
            for way in self.ways.iter().filter(|way| self.of(way, mib).next().is_some()) {
                let _ = writeln!(text, "| {} | {} | {} |", size(mib), way.name(), self.cost(way, mib).join(" | "));
            }
        }
        text
    }

    fn cost(&self, way: &Way, of: u64) -> Vec<String> {
        let ours = matches!(way, Way::Spothop(_));
        let bytes = |figure: fn(&Run) -> Option<u64>| {
            let median = median(self.of(way, of).filter_map(figure).map(mib));
            median.map_or_else(|| "–".to_owned(), |mib| format!("{mib:.0} MiB"))
        };
        let most = |figure: &dyn Fn(&Run) -> u64| {
            let most = self.of(way, of).map(figure).max().unwrap_or_default();
            if most > 0 { format!("{:.0} MiB", mib(most)) } else { "–".to_owned() }
        };
        let cpu = |host: usize| {
            let all = median(self.of(way, of).map(|run| run.usage.hosts[host].cpu_seconds)).unwrap_or_default();
            let daemon =
                median(self.of(way, of).map(|run| run.usage.hosts[host].daemon_cpu_seconds)).unwrap_or_default();
            if ours { format!("{all:.2} s ({daemon:.2})") } else { format!("{all:.2} s") }
        };
        let daemon = |host: usize| {
            if ours { most(&|run| run.usage.hosts[host].daemon_peak_bytes) } else { "–".to_owned() }
        };
        vec![
            bytes(|run| run.sent_bytes),
            bytes(|run| run.wire_bytes),
            bytes(|run| Some(run.usage.link_bytes)),
            cpu(0),
            cpu(1),
            daemon(0),
            daemon(1),
            most(&|run| run.usage.hosts[0].store_bytes),
            most(&|run| run.usage.hosts[1].store_bytes),
            most(&|run| run.usage.machine_bytes),
        ]
    }

    /// What the slope consists of: how the steps of the downtime grow.
    fn growth(&self) -> Option<String> {
        let way = self.ways.first()?;
        let all = slope(&self.line(way))?;
        let sizes: Vec<u64> = self.sizes().into_iter().filter(|mib| SLOPE.contains(mib)).collect();
        let parts = AWAY.iter().filter_map(|name| {
            let of = |mib: &u64| {
                let steps = self.steps(way, *mib);
                Some((*mib as f64 / 1024.0, steps.iter().find(|step| step.name == *name)?.seconds))
            };
            let points: Vec<_> = sizes.iter().filter_map(of).collect();
            slope(&points).map(|part| format!("{name} {part:+.3}"))
        });
        Some(format!(
            "From {} to {} {} takes {all:.3} s more for every GiB: {}.",
            size(*sizes.first()?),
            size(*sizes.last()?),
            way.name(),
            parts.collect::<Vec<_>>().join(", ")
        ))
    }

    /// What the frozen time of the largest size consists of.
    fn frozen(&self) -> Option<String> {
        let (way, mib) = (self.ways.first()?, *self.sizes().last()?);
        let steps = self.steps(way, mib);
        let away: Vec<_> = steps.iter().filter(|step| AWAY.contains(&step.name.as_str())).collect();
        let all: f64 = away.iter().map(|step| step.seconds).sum();
        let parts = away.iter().map(|step| {
            let used: Vec<_> = step.programs.iter().map(|(name, seconds)| format!("{name} {seconds:.2} s")).collect();
            let used = if used.is_empty() { String::new() } else { format!(" (of a core: {})", used.join(", ")) };
            format!("{} {:.0} %{used}", step.name, step.seconds / all * 100.0)
        });
        Some(format!("At {} by {}: {}.", size(mib), way.name(), parts.collect::<Vec<_>>().join(", ")))
    }
}

impl Figures for Downtime {
    const TITLE: &str = "Downtime";

    fn markdown(&self) -> String {
        let mut text = format!("{}\n{NOTES}\n\n", self.comparison());
        for reason in &self.left_out {
            let _ = writeln!(text, "Left out: {reason}.\n");
        }
        let _ = writeln!(text, "**Where the time goes.** {SPLIT}\n");
        self.ways.iter().for_each(|way| text.push_str(&self.split(way)));
        for sentence in [self.frozen(), self.growth()].into_iter().flatten() {
            let _ = writeln!(text, "{sentence}\n");
        }
        let _ = writeln!(text, "**What it costs.** {COSTS}\n\n{}", self.costs());
        text
    }

    fn goals(&self) -> Vec<Goal> {
        let Some(way) = self.ways.first() else { return Vec::new() };
        let downtime = |way: &Way| self.spread(way, GOAL, |run| run.downtime).map(|spread| spread.p50);
        let ours = downtime(way);
        let theirs = downtime(&Way::Podman);
        let needed = self.sizes().into_iter().filter(|mib| *mib >= GOAL).filter_map(|mib| {
            let each = self.of(way, mib).filter_map(|run| run.source_needed);
            Some(median(each)? / (mib as f64 / 1024.0))
        });
        vec![
            Goal::new("1 GiB: downtime, median", Limit::AtMost(250.0), " ms", ours.map(|s| s * 1000.0)),
            Goal::new(
                "1 GiB: Podman's downtime ÷ spothop's",
                Limit::AtLeast(40.0),
                "",
                theirs.zip(ours).map(|(theirs, ours)| theirs / ours),
            ),
            Goal::new("downtime, 1 GiB to 4 GiB", Limit::AtMost(0.05), " s/GiB", slope(&self.line(way))),
            Goal::new(
                "source no longer needed after the freeze (the worst size from 1 GiB on)",
                Limit::AtMost(0.5),
                " s/GiB",
                needed.max_by(f64::total_cmp),
            ),
        ]
    }

    fn failures(&self) -> &[Failure] {
        &self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::usage::{HostUsage, Usage};
    use super::super::super::ways::Mode;
    use super::*;

    fn spothop() -> Way {
        Way::Spothop(Mode { name: "pre-copy".to_owned(), table: String::new() })
    }

    fn run(way: Way, mib: u64, downtime: f64, kept: bool) -> Run {
        let step = |name: &str, seconds| Step {
            name: name.to_owned(),
            seconds,
            busy_cores: Some(1.5),
            programs: vec![("criu on a".to_owned(), seconds / 2.0)],
        };
        let steps = match way {
            Way::Spothop(_) => {
                vec![step("prepare", 0.2), step("dump", downtime / 2.0), step("restore", downtime / 2.0)]
            }
            _ => vec![step("checkpoint", downtime)],
        };
        let host = HostUsage {
            cpu_seconds: 1.0,
            daemon_cpu_seconds: 0.5,
            daemon_peak_bytes: 48 << 20,
            store_bytes: mib << 20,
            ..HostUsage::default()
        };
        Run {
            way,
            mib,
            downtime,
            total: downtime * 2.0,
            kept,
            lost_writes: 0,
            sent_bytes: Some(1300 << 20),
            wire_bytes: Some(1000 << 20),
            source_needed: Some(downtime),
            steps,
            usage: Usage { hosts: [host.clone(), host], link_bytes: 1001 << 20, machine_bytes: 3 << 30 },
        }
    }

    fn figures() -> Downtime {
        Downtime {
            ways: vec![spothop(), Way::Podman],
            runs: vec![
                run(spothop(), 1024, 0.4, true),
                run(Way::Podman, 1024, 8.0, false),
                run(spothop(), 1024, 0.6, true),
                run(Way::Podman, 1024, 12.0, true),
                run(spothop(), 1024, 0.5, true),
                run(spothop(), 4096, 0.8, true),
            ],
            failures: vec![Failure {
                what: "1 GiB by Podman".to_owned(),
                ours: false,
                reason: "no such thing".to_owned(),
            }],
            left_out: vec!["4 GiB by Podman: takes up to 18 GiB, 17 GiB are free".to_owned()],
        }
    }

    #[test]
    fn the_tables_show_every_way_their_ratio_and_what_it_costs() {
        let text = figures().markdown();
        for line in [
            "| 1 GiB | spothop, pre-copy | 0.500 s | 0.600 s | 0.600 s | 1.00 s | 1.20 s | kept 3 of 3 |",
            "| 1 GiB | Podman | 8.000 s | 12.000 s | 12.000 s | 16.00 s | 24.00 s | kept 1 of 2, 1 more failed |",
            "| | *Podman ÷ spothop, pre-copy* | 16.0 | 20.0 | 20.0 | 16.0 | 20.0 | |",
            "| spothop, pre-copy | prepare | dump | restore |",
            "| 1 GiB | 0.200 (1.5) | 0.250 (1.5) | 0.250 (1.5) |",
            "| 1 GiB | spothop, pre-copy | 1300 MiB | 1000 MiB | 1001 MiB | 1.00 s (0.50) | 1.00 s (0.50) | 48 MiB | 48 MiB | 1024 MiB | 1024 MiB | 3072 MiB |",
            "Left out: 4 GiB by Podman: takes up to 18 GiB, 17 GiB are free.",
            "At 4 GiB by spothop, pre-copy: dump 50 % (of a core: criu on a 0.20 s), restore 50 % (of a core: criu on a 0.20 s).",
            "From 1 GiB to 4 GiB spothop, pre-copy takes 0.100 s more for every GiB: dump +0.050, restore +0.050.",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line:?} in\n{text}");
        }
    }

    #[test]
    fn the_goals_are_about_spothop_as_it_comes() {
        let measured: Vec<_> = figures().goals().into_iter().map(|goal| goal.measured.unwrap()).collect();
        for (found, expected) in measured.iter().zip([500.0, 16.0, 0.1, 0.5]) {
            assert!((found - expected).abs() < 1e-9, "{measured:?}");
        }
    }
}
