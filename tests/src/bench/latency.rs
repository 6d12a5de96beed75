//! What a client feels before the freeze: the time of each request while pages are read and sent, beside that of before.

use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::redis::live::Report;

use super::migration::Migration;
use super::results::Figures;
use super::spothop::{Moved, Spothop};
use super::statistics::Spread;
use super::witness::Talk;
use super::{Bench, Failure, SOURCE, TARGET, chain, size};

/// Pause of the client between a reply and the next request, in microseconds.
const PAUSE_US: u32 = 500;
/// Parts of a move, in their order.
const PARTS: [&str; 5] = ["before", "prepare", "pre-copy", "being filled", "after"];
/// How long memory may still come in after the container runs again, for the client's sake; what comes later is told apart.
const FILLING: Duration = Duration::from_secs(1);

/// Requests of a client, by the part of the move that they fall into.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Latency {
    mib: u64,
    way: String,
    runs: usize,
    /// Milliseconds from request to reply, of all runs together.
    parts: Vec<(String, Spread)>,
    failures: Vec<Failure>,
}

/// Moves servers under the eyes of a client.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Latency> {
    let spothop = Spothop::new(bench.bed)?;
    let mib = bench.choose(1024, 256);
    let mut parts = vec![Vec::new(); PARTS.len()];
    let way = bench.default_way();
    let mut latency = Latency { mib, way: way.name(), runs: 0, parts: Vec::new(), failures: Vec::new() };
    bench.configure(way)?;
    for number in 1..=bench.choose(10, 2) {
        let seen = one(bench, &spothop, mib);
        spothop.clear()?;
        match seen {
            Ok((report, migration)) => {
                latency.runs += 1;
                sort(&report, &migration, &mut parts);
                bench.say(format!("{} of a client, run {number}: {} requests", size(mib), report.samples.len()));
            }
            Err(error) => {
                let (what, reason) = (format!("{} under a client", size(mib)), chain(error));
                bench.say(format!("{what}, run {number}: failed: {reason}"));
                latency.failures.push(Failure { what, ours: true, reason });
            }
        }
    }
    let spreads = PARTS.iter().zip(parts).filter_map(|(name, times)| Some(((*name).to_owned(), Spread::of(times)?)));
    latency.parts = spreads.collect();
    Ok(latency)
}

fn one(bench: &Bench<'_>, spothop: &Spothop<'_>, mib: u64) -> Result<(Report, Migration)> {
    let server = spothop.start()?;
    server.fill(mib)?;
    let witness = server.watch(Talk { pause_us: PAUSE_US, samples: true })?;
    // What is to be compared with.
    thread::sleep(bench.choose(Duration::from_secs(5), Duration::from_secs(2)));
    let Moved { migration, .. } = spothop.migrate(SOURCE, TARGET)?;
    thread::sleep(bench.choose(Duration::from_secs(3), Duration::from_secs(2)));
    Ok((witness.report()?, migration))
}

/// Puts every request that begins and ends in one part there, in milliseconds. One that the freeze cuts in two belongs to the downtime.
fn sort(report: &Report, migration: &Migration, parts: &mut [Vec<f64>]) {
    let offset = |at: Timestamp| at.duration_since(report.began).as_micros();
    let at = |phase| migration.at(phase).map(offset);
    let (planned, frozen) = (at("planned"), at("frozen"));
    let (Some(planned), Some(frozen)) = (planned, frozen) else { return };
    let first = at("pre-copy(1)").unwrap_or(frozen);
    let runs = offset(report.longest_gap_at + report.longest_gap());
    let filled = runs + FILLING.as_micros() as i128;
    let bounds = [(i128::MIN, planned), (planned, first), (first, frozen), (runs, filled), (filled, i128::MAX)];
    for sample in &report.samples {
        let begin = i128::from(sample.at_us);
        let end = begin + i128::from(sample.reply_us);
        if let Some(part) = bounds.iter().position(|(from, to)| *from <= begin && end <= *to) {
            parts[part].push(f64::from(sample.reply_us) / 1000.0);
        }
    }
}

impl Figures for Latency {
    const TITLE: &str = "What a client feels before and after the freeze";

    fn markdown(&self) -> String {
        let mut text = "| | requests | p50 | p95 | p99 | max |\n|---|--:|--:|--:|--:|--:|\n".to_owned();
        for (name, spread) in &self.parts {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "| {name} | {} | {:.2} ms | {:.2} ms | {:.2} ms | {:.2} ms |",
                spread.count, spread.p50, spread.p95, spread.p99, spread.max
            );
        }
        let of = |name: &str| self.parts.iter().find(|part| part.0 == name).map(|part| part.1);
        if let (Some(before), Some(during)) = (of("before"), of("pre-copy")) {
            let _ = writeln!(
                text,
                "| *pre-copy ÷ before* | | {:.1} | {:.1} | {:.1} | {:.1} |",
                during.p50 / before.p50,
                during.p95 / before.p95,
                during.p99 / before.p99,
                during.max / before.max
            );
        }
        let _ = writeln!(
            text,
            "\nTime from request to reply of one client (SET and GET, a request every {:.1} ms) of a Redis of {}, moved by {}; {} runs. Pre-copy: its \
             memory is read and sent while it runs. Being filled: the second after it runs at the target. Requests that the freeze cuts are \
             the downtime and not counted here.",
            f64::from(PAUSE_US) / 1000.0,
            size(self.mib),
            self.way,
            self.runs
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
    use crate::redis::live::Sample;

    #[test]
    fn requests_belong_to_the_part_that_they_lie_in() {
        let began: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let sample = |at_ms: u64, reply_ms: u32| Sample { at_us: at_ms * 1000, reply_us: reply_ms * 1000 };
        let report = Report {
            requests: 0,
            acknowledged_writes: 0,
            lost_writes: 0,
            connections: 1,
            longest_gap_ms: 300.0,
            longest_gap_at: began + Duration::from_millis(190),
            median_ms: 1.0,
            seconds: 2.0,
            began,
            samples: vec![
                sample(10, 1),
                sample(120, 2),
                sample(98, 5), // from one part into another
                sample(150, 3),
                sample(191, 299), // the freeze
                sample(495, 4),
                sample(1600, 5),
            ],
        };
        let phases = [("planned", 100), ("pre-copy(1)", 140), ("frozen", 200)]
            .map(|(phase, ms)| format!(r#"{{"phase":"{phase}","at":"{}"}}"#, began + Duration::from_millis(ms)));
        let text = format!(r#"{{"migrations":[{{"bytes_sent":1,"phases":[{}]}}]}}"#, phases.join(","));
        let mut parts = vec![Vec::new(); PARTS.len()];
        sort(&report, &Migration::printed(&text).unwrap(), &mut parts);
        assert_eq!(parts, [vec![1.0], vec![2.0], vec![3.0], vec![4.0], vec![5.0]]);
    }
}
