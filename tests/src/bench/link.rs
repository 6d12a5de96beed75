//! The stream of memory beside iperf3 on the same link.

use std::fmt::Write as _;
use std::thread;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command::{output, run};
use crate::error::{Error, Result};
use crate::events::{Event, Events, Kind};
use crate::redis::data::Values;
use crate::testbed::Testbed;

use super::goals::{Goal, Limit};
use super::migration::{Entered, between};
use super::results::Figures;
use super::spothop::Spothop;
use super::statistics::median;
use super::{Bench, Failure, HOSTS, SOURCE, TARGET, Way, chain, mib, size};

/// Rate of the shaped link, in Mbit/s.
const SHAPED: u32 = 1000;
/// The unit of iperf3's server.
const UNIT: &str = "spothop-bench-iperf";
/// Numbers of iperf3's connections that are tried: one, and as many as spothop has.
const STREAMS: [&str; 2] = ["1", "4"];
/// Progress events that a rate is taken from, at least.
const EVENTS: usize = 5;

/// Memory of two kinds over two links.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Link {
    mib: u64,
    /// The ways in the order of the tables; the first is spothop as it comes.
    ways: Vec<Way>,
    streams: Vec<Stream>,
    failures: Vec<Failure>,
}

/// One stream of memory, and what iperf3 could do just before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Stream {
    way: Way,
    values: Values,
    /// None: as fast as the machine can.
    mbit: Option<u32>,
    /// Bits in a second, the better number of connections.
    iperf: f64,
    /// Bits of memory in a second while it flows.
    flowing: f64,
    /// The same from the beginning of its phase.
    overall: f64,
    /// Seconds of a core that the daemons have used for each GiB that was sent: source, target.
    cpu_per_gib: [f64; 2],
    /// All that was sent, and what of it was on the wire, in bytes.
    sent: u64,
    wire: u64,
}

impl Stream {
    /// What of the memory is still there after compression.
    fn compressed(&self) -> f64 {
        mib(self.wire) / mib(self.sent)
    }

    /// Bits of it on the wire in a second.
    fn on_the_wire(&self) -> f64 {
        self.flowing * self.compressed()
    }
}

/// Hosts' links held to a rate, until this is dropped.
struct Shaped<'a> {
    bed: &'a Testbed,
}

impl<'a> Shaped<'a> {
    fn to(bed: &'a Testbed, mbit: u32) -> Result<Self> {
        let shaped = Self { bed };
        HOSTS.iter().try_for_each(|host| bed.shape(host, Some(mbit))).map(|()| shaped)
    }
}

impl Drop for Shaped<'_> {
    fn drop(&mut self) {
        for host in HOSTS {
            // As the testbed was brought up. Where this fails the host is gone.
            let _ = self.bed.shape(host, self.bed.state().link_mbit);
        }
    }
}

/// Streams memory.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Link> {
    let spothop = Spothop::new(bench.bed)?;
    output(&mut bench.bed.exec(TARGET, ["systemctl", "stop", UNIT])?)?; // of a benchmark that was ended in the middle
    bench.sh(TARGET, &format!("systemd-run --quiet --collect --unit {UNIT} iperf3 --server"))?;
    let ways = bench.ways.iter().filter(|way| matches!(way, Way::Spothop(mode) if !mode.table.contains("eager")));
    let mut link =
        Link { mib: bench.choose(1024, 256), ways: ways.cloned().collect(), streams: Vec::new(), failures: Vec::new() };
    for number in 1..=bench.choose(3, 1) {
        for mbit in [None, Some(SHAPED)] {
            for values in [Values::Random, Values::Text] {
                for way in link.ways.clone() {
                    let what = format!("{} ({}), {}, by {}", size(link.mib), values.name(), rate(mbit), way.name());
                    let stream = one(bench, &spothop, (&way, values, mbit), link.mib);
                    spothop.clear()?;
                    match stream {
                        Ok(stream) => {
                            bench.say(format!(
                                "{what}, run {number}: {:.2} Gbit/s flowing, {:.2} overall; iperf3 {:.2}",
                                stream.flowing / 1e9,
                                stream.overall / 1e9,
                                stream.iperf / 1e9
                            ));
                            link.streams.push(stream);
                        }
                        Err(error) => {
                            let reason = chain(error);
                            bench.say(format!("{what}, run {number}: failed: {reason}"));
                            link.failures.push(Failure { what, ours: true, reason });
                        }
                    }
                }
            }
        }
    }
    run(&mut bench.bed.exec(TARGET, ["systemctl", "stop", UNIT])?)?;
    Ok(link)
}

fn one(bench: &Bench<'_>, spothop: &Spothop<'_>, of: (&Way, Values, Option<u32>), mib: u64) -> Result<Stream> {
    let (way, values, mbit) = of;
    bench.configure(way)?;
    let server = spothop.start()?;
    server.fill_with(values, mib)?;
    let shaped = mbit.map(|mbit| Shaped::to(bench.bed, mbit)).transpose()?;
    let mut iperf = 0.0_f64;
    for streams in STREAMS {
        iperf = iperf.max(iperf3(bench, streams)?);
    }
    let events = Events::follow(bench.bed, SOURCE)?;
    let listener = thread::spawn(move || until_finished(events));
    let moved = spothop.migrate(SOURCE, TARGET)?;
    drop(shaped);
    server.verify_with(values, mib)?;
    let events = listener.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let told =
        || Error::Unexpected { what: "the progress of memory".to_owned(), text: format!("{} events", events.len()) };
    let rates = rates(&events, &moved.migration.phases).ok_or_else(told)?;
    let gib = super::gib(moved.migration.bytes_sent);
    Ok(Stream {
        way: way.clone(),
        values,
        mbit,
        iperf,
        flowing: rates.0,
        overall: rates.1,
        cpu_per_gib: [0, 1].map(|host| moved.profile.usage.hosts[host].daemon_cpu_seconds / gib),
        sent: moved.migration.bytes_sent,
        wire: moved.migration.bytes_on_wire,
    })
}

fn until_finished(events: Events) -> Result<Vec<Event>> {
    let mut all = Vec::new();
    for event in events {
        let event = event?;
        let finished = matches!(event.kind, Kind::Finished { .. });
        all.push(event);
        if finished {
            break;
        }
    }
    Ok(all)
}

/// Bits in a second that iperf3 gets from the source to the target.
fn iperf3(bench: &Bench<'_>, streams: &str) -> Result<f64> {
    let target = bench.bed.state().host(TARGET)?.address;
    let seconds = bench.choose(5, 2);
    let client = format!(
        "for _ in $(seq 100); do \
         iperf3 --client {target} --parallel {streams} --time {seconds} --omit 1 --json > /run/spothop-bench.json && break; sleep 0.1; done; \
         cat /run/spothop-bench.json; rm /run/spothop-bench.json"
    );
    let said = bench.sh(SOURCE, &client)?;
    let document: Value =
        serde_json::from_str(&said).map_err(|source| Error::Json { what: "what iperf3 said".to_owned(), source })?;
    received(&document).ok_or_else(|| Error::Unexpected { what: "what iperf3 said".to_owned(), text: said })
}

/// What its server has received.
fn received(document: &Value) -> Option<f64> {
    document["end"]["sum_received"]["bits_per_second"].as_f64().filter(|bits| *bits > 0.0)
}

/// Bits in a second of the longest stream of memory: while it flows, and from the beginning of its phase. The first is the second where
/// too little was told.
fn rates(events: &[Event], phases: &[Entered]) -> Option<(f64, f64)> {
    let progress: Vec<(Timestamp, u64, u64)> = events
        .iter()
        .filter_map(|event| match &event.kind {
            Kind::Progress { what, sent, total: Some(total) } if what == "pre-copy" || what == "memory" => {
                Some((event.at, *sent, *total))
            }
            _ => None,
        })
        .collect();
    // Streams follow one another; one whose numbers fall is another.
    let streams = progress.chunk_by(|before, after| before.2 == after.2 && before.1 <= after.1);
    let stream = streams.max_by_key(|stream| stream.last().map_or(0, |last| last.1))?;
    let (first, last) = (stream.first()?, stream.last()?);
    let begin = phases.iter().rfind(|entered| entered.at <= first.0)?.at;
    let bits = |bytes: u64, seconds: f64| (seconds > 0.0).then_some(bytes as f64 * 8.0 / seconds);
    let overall = bits(last.1, between(begin, last.0))?;
    let flowing = (stream.len() >= EVENTS).then(|| bits(last.1 - first.1, between(first.0, last.0))).flatten();
    Some((flowing.unwrap_or(overall), overall))
}

fn rate(mbit: Option<u32>) -> String {
    mbit.map_or_else(|| "an unlimited link".to_owned(), |mbit| format!("{mbit} Mbit/s"))
}

impl Link {
    fn of(&self, way: &Way, values: Values, mbit: Option<u32>) -> impl Iterator<Item = &Stream> {
        self.streams.iter().filter(move |one| one.way == *way && one.values == values && one.mbit == mbit)
    }

    /// Median of what the streams make of the link: what is on the wire beside what iperf3 got just before. Even a server full of random
    /// values has memory that compresses.
    fn share(&self, way: &Way, values: Values, mbit: Option<u32>) -> Option<f64> {
        median(self.of(way, values, mbit).map(|one| one.on_the_wire() / one.iperf))
    }
}

impl Figures for Link {
    const TITLE: &str = "The stream of memory beside iperf3";

    fn markdown(&self) -> String {
        let mut text = "| link | memory | moved by | iperf3 | memory | with its beginning | compressed to | on the wire | ÷ iperf3 | daemons' CPU per GiB, source | target |\n\
                        |---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
        for mbit in [None, Some(SHAPED)] {
            for values in [Values::Random, Values::Text] {
                for way in &self.ways {
                    let of = |figure: fn(&Stream) -> f64| median(self.of(way, values, mbit).map(figure));
                    let Some(share) = self.share(way, values, mbit) else { continue };
                    let figure = |figure: fn(&Stream) -> f64| of(figure).unwrap_or_default();
                    // Writing to a String cannot fail.
                    let _ = writeln!(
                        text,
                        "| {} | {} | {} | {:.2} Gbit/s | {:.2} Gbit/s | {:.2} Gbit/s | {:.0} % | {:.2} Gbit/s | {:.0} % | {:.2} s | {:.2} s |",
                        rate(mbit),
                        values.name(),
                        way.name(),
                        figure(|one| one.iperf / 1e9),
                        figure(|one| one.flowing / 1e9),
                        figure(|one| one.overall / 1e9),
                        figure(|one| one.compressed() * 100.0),
                        figure(|one| one.on_the_wire() / 1e9),
                        share * 100.0,
                        figure(|one| one.cpu_per_gib[0]),
                        figure(|one| one.cpu_per_gib[1]),
                    );
                }
            }
        }
        let _ = writeln!(
            text,
            "\nMedians. A Redis of {} that nobody asks; iperf3 just before each stream, the better of {} connections, what its server received. Memory: \
             before compression, from the first word about the largest stream to the last; with its beginning: from when its phase \
             began, which for a container that is frozen includes CRIU's dump. Random values do not compress, but what a server keeps \
             around them does a little; text is records of JSON.",
            size(self.mib),
            STREAMS.join(" and "),
        );
        text
    }

    fn goals(&self) -> Vec<Goal> {
        let Some(way) = self.ways.first() else { return Vec::new() };
        let line = f64::from(SHAPED) * 1e6;
        vec![
            Goal::new(
                "1 Gbit/s, random memory: on the wire, of iperf3",
                Limit::AtLeast(95.0),
                " %",
                self.share(way, Values::Random, Some(SHAPED)).map(|share| share * 100.0),
            ),
            Goal::new(
                "1 Gbit/s, text: memory ÷ line rate",
                Limit::AtLeast(2.2),
                "",
                median(self.of(way, Values::Text, Some(SHAPED)).map(|one| one.flowing / line)),
            ),
        ]
    }

    fn failures(&self) -> &[Failure] {
        &self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(millis: u32) -> Timestamp {
        format!("2026-01-02T03:04:05.{millis:03}Z").parse().unwrap()
    }

    fn progress(at: u32, what: &str, sent: u64, total: u64) -> Event {
        let kind = Kind::Progress { what: what.to_owned(), sent, total: Some(total) };
        Event { container: "r".to_owned(), at: moment(at), kind }
    }

    #[test]
    fn a_rate_is_that_of_the_largest_stream() {
        let entered = |phase: &str, at| Entered { phase: phase.to_owned(), at: moment(at) };
        let phases = [entered("prepared", 0), entered("pre-copy(1)", 100), entered("frozen", 700)];
        let mut events: Vec<_> = (0..=5).map(|n| progress(200 + n * 80, "pre-copy", u64::from(n) * 100, 500)).collect();
        events.insert(0, progress(10, "files", 900_000, 900_000));
        events.push(progress(720, "memory", 50, 50));
        let (flowing, overall) = rates(&events, &phases).unwrap();
        assert_eq!((flowing.round(), overall.round()), (10_000.0, 8_000.0));
        let (flowing, overall) = rates(&events[6..7], &phases).unwrap();
        assert_eq!((flowing.round(), overall.round()), (8_000.0, 8_000.0));
        assert_eq!(rates(&events[..1], &phases), None);
    }

    #[test]
    fn iperf3_s_words_are_understood() {
        let document = serde_json::json!({"end": {"sum_sent": {}, "sum_received": {"bits_per_second": 9.5e8}}});
        assert_eq!(received(&document), Some(9.5e8));
        assert_eq!(received(&serde_json::json!({"error": "busy"})), None);
    }

    #[test]
    fn the_goals_are_about_the_shaped_link() {
        let way = Way::Spothop(super::super::ways::Mode { name: "pre-copy".to_owned(), table: String::new() });
        let stream = |values, flowing, wire| Stream {
            way: way.clone(),
            values,
            mbit: Some(SHAPED),
            iperf: 0.95e9,
            flowing,
            overall: flowing,
            cpu_per_gib: [1.0, 1.0],
            sent: 200,
            wire,
        };
        let streams = vec![stream(Values::Random, 1.128_125e9, 160), stream(Values::Text, 3.3e9, 60)];
        let link = Link { mib: 1024, ways: vec![way.clone()], streams, failures: Vec::new() };
        let measured: Vec<_> = link.goals().iter().map(|goal| goal.measured.unwrap()).collect();
        assert!((measured[0] - 95.0).abs() < 1e-9 && (measured[1] - 3.3).abs() < 1e-9, "{measured:?}");
        let line = "| 1000 Mbit/s | random | spothop, pre-copy | 0.95 Gbit/s | 1.13 Gbit/s | 1.13 Gbit/s | 80 % | 0.90 Gbit/s | 95 % |";
        assert!(link.markdown().contains(line), "{}", link.markdown());
    }
}
