//! `cargo bench-all`: what a move from host a to host b costs, beside what one would do without spothop, and beside what was to be
//! reached.
//!
//! Each [`Section`] is a module of its own, which measures, makes tables and names goals: [`downtime`], [`latency`], [`streaming`],
//! [`link`], [`many`], [`idle`], [`wrapper`], [`planner`]. What they share: [`ways`] and those who go them ([`spothop`], [`podman`], [`plain`]);
//! [`witness`] is the client, [`profile`] and [`usage`] look at what the machine does meanwhile, [`migration`] reads spothop's own
//! timeline, [`configuration`] changes the daemons' and puts it back; [`results`] keeps all of it. No time is judged here but beside
//! the goals: the figures are for the reader, and only ratios within one run mean anything.

mod bundle;
mod configuration;
mod downtime;
mod facts;
mod goals;
mod idle;
mod latency;
mod link;
mod many;
mod migration;
mod plain;
mod planner;
mod podman;
mod profile;
mod results;
mod spothop;
mod statistics;
mod streaming;
mod usage;
mod ways;
mod witness;
mod wrapper;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::machine::workspace;
use crate::redis::live;
use crate::testbed::{self, Testbed};
use crate::workload::Workload;

use self::configuration::Configuration;
use self::facts::Facts;
use self::results::{Measured, Results};
use self::usage::Usage;
use self::ways::Way;

pub use self::wrapper::runtime_cost;

/// Where the container is at first.
const SOURCE: &str = "a";
/// Where it goes.
const TARGET: &str = "b";
/// Both.
const HOSTS: [&str; 2] = [SOURCE, TARGET];
/// Memory that is left for everything else when a size is chosen, in bytes.
const RESERVE: u64 = 2 << 30;

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "kebab-case")]
pub enum Section {
    /// How long a client hears nothing, and what a move takes in all, for servers of many sizes in every way.
    Downtime,
    /// What a client feels before the freeze.
    Latency,
    /// Memory that the daemons take while a container moves.
    Streaming,
    /// The stream of memory beside iperf3 on the same link.
    Link,
    /// Many containers at once; many threads and many processes in one.
    Many,
    /// What a daemon costs that has nothing to do.
    Idle,
    /// What the runtime costs an ordinary container.
    Wrapper,
    /// How long a plan takes.
    Planner,
}

/// What to measure.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Only this part; may be repeated.
    #[arg(long, value_enum, value_name = "NAME")]
    pub only: Vec<Section>,
    /// How often each size is moved by spothop as it comes.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub runs: usize,
    /// How often by spothop in its other modes.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub mode_runs: usize,
    /// How often by Podman and by plain CRIU, which take long.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub baseline_runs: usize,
    /// Sizes of the server's data in MiB.
    #[arg(long, value_name = "MIB", value_delimiter = ',', default_values_t = [64, 256, 1024, 2048, 4096])]
    pub sizes: Vec<u64>,
    /// Only these ways, for downtime: `podman`, `criu`, or one of spothop's modes; all if not given.
    #[arg(long, value_name = "WAY", value_delimiter = ',')]
    pub ways: Vec<String>,
    /// Few runs of little data, to see that everything works.
    #[arg(long)]
    pub quick: bool,
    /// Directory of results.md and results.json; target/bench if not given.
    #[arg(long, value_name = "DIRECTORY")]
    pub out: Option<PathBuf>,
    /// Install spothop as it was built last.
    #[arg(long)]
    pub no_build: bool,
}

/// A part of a move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Step {
    /// What was done.
    name: String,
    /// How long it took.
    seconds: f64,
    /// How many of the machine's cores were busy meanwhile, on average; none where nobody looked.
    busy_cores: Option<f64>,
    /// Seconds of a core that programs on the hosts have used, by name; those that used next to none are left out.
    programs: Vec<(String, f64)>,
}

impl Step {
    fn timed(name: &str, start: Instant) -> Self {
        Self { name: name.to_owned(), seconds: seconds(start.elapsed()), busy_cores: None, programs: Vec::new() }
    }
}

/// One move of a server under load, measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Run {
    /// How it was moved.
    way: Way,
    /// Data in the server, in MiB.
    mib: u64,
    /// The client's longest time from one right answer to the next, in seconds.
    downtime: f64,
    /// From the call until nothing of the container is left on the source, in seconds.
    total: f64,
    /// Whether the client's one connection lived through it.
    kept: bool,
    /// Acknowledged writes that the server does not have afterwards.
    lost_writes: u64,
    /// Bytes that were sent, before compression.
    sent_bytes: Option<u64>,
    /// After it.
    wire_bytes: Option<u64>,
    /// From the freeze until the source is not needed any more, in seconds; none where all is at the target when the restore begins.
    source_needed: Option<f64>,
    /// What the total consists of, in order.
    steps: Vec<Step>,
    usage: Usage,
}

impl Run {
    /// What a client has seen of it; nothing else is known.
    fn seen(way: Way, mib: u64, total: f64, report: &live::Report) -> Self {
        Self {
            way,
            mib,
            downtime: report.longest_gap_ms / 1000.0,
            total,
            kept: report.connections == 1,
            lost_writes: report.lost_writes,
            sent_bytes: None,
            wire_bytes: None,
            source_needed: None,
            steps: Vec::new(),
            usage: Usage::default(),
        }
    }
}

/// What did not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Failure {
    /// What should have been done.
    what: String,
    /// Whether it was spothop that should have done it.
    ours: bool,
    /// Why it was not.
    reason: String,
}

/// What every section works with.
struct Bench<'a> {
    bed: &'a Testbed,
    options: &'a Options,
    configuration: Configuration<'a>,
    ways: Vec<Way>,
    say: &'a dyn Fn(&str),
}

impl Bench<'_> {
    /// Runs a script on a host; returns what it printed.
    fn sh(&self, host: &str, script: &str) -> Result<String> {
        self.bed.output(host, ["sh", "-ec", script])
    }

    fn say(&self, what: impl AsRef<str>) {
        (self.say)(what.as_ref());
    }

    /// Makes the daemons what this way needs.
    fn configure(&self, way: &Way) -> Result<()> {
        match way {
            Way::Spothop(mode) => self.configuration.set_memory(&mode.table),
            Way::Podman | Way::Criu => Ok(()),
        }
    }

    /// spothop as it comes.
    fn default_way(&self) -> &Way {
        &self.ways[0]
    }

    /// A figure for a measurement, or for a quick look.
    fn choose<T>(&self, measured: T, quick: T) -> T {
        if self.options.quick { quick } else { measured }
    }

    /// A measured part, with what it was measured on.
    fn measured<T>(&self, measure: impl FnOnce(&Self) -> Result<T>) -> Result<Measured<T>> {
        let (at, facts) = (jiff::Timestamp::now(), Facts::gather(self.bed)?);
        let begin = Instant::now();
        let figures = measure(self)?;
        Ok(Measured { at, facts, quick: self.options.quick, minutes: seconds(begin.elapsed()) / 60.0, figures })
    }
}

/// Runs the benchmark on the testbed of this layout, which is brought up and ended again unless it is up already; prints the
/// tables, and writes them to files.
///
/// # Errors
/// [`Error::Bench`] when spothop failed anywhere, after all is printed; those of the testbed.
pub fn run(program: &Path, layout: Layout, options: &Options, say: &dyn Fn(&str)) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(|| workspace().join("target/bench"));
    let mut results = Results::load(&out, say)?;
    let mine = match Testbed::open(program, layout.clone()) {
        Ok(bed) => {
            say("using the testbed that is up, with the spothop that is on it");
            return measure(&bed, options, &mut results, &out, say);
        }
        Err(_) => {
            let wanted = testbed::Options { build: !options.no_build, ..testbed::Options::default() };
            Testbed::up(program, layout, &wanted, say)?
        }
    };
    let result = measure(&mine, options, &mut results, &out, say);
    let down = mine.down();
    result.and(down)
}

fn measure(bed: &Testbed, options: &Options, results: &mut Results, out: &Path, say: &dyn Fn(&str)) -> Result<()> {
    for workload in [Workload::Redis, Workload::Python] {
        bed.import_workload(workload)?;
    }
    let configuration = Configuration::new(bed)?;
    let bench = Bench { bed, options, configuration, ways: ways::all(bed)?, say };
    let mut failures = Vec::new();
    for section in Section::value_variants() {
        if !options.only.is_empty() && !options.only.contains(section) {
            continue;
        }
        let name = section.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        say(&format!("== {name}"));
        bench.configuration.put_back()?;
        failures.extend(measure_section(&bench, *section, results)?);
        // What is measured is kept, whatever happens to the rest.
        results.save(out)?;
    }
    println!("{}", results.markdown());
    say(&format!("written: {}", out.join("results.md").display()));
    match failures.into_iter().find(|failure| failure.ours) {
        Some(Failure { what, reason, .. }) => Err(Error::Bench { what, reason }),
        None => Ok(()),
    }
}

/// Measures one part, and returns what failed in it.
fn measure_section(bench: &Bench<'_>, section: Section, results: &mut Results) -> Result<Vec<Failure>> {
    fn keep<T: results::Figures>(slot: &mut Option<Measured<T>>, measured: Measured<T>) -> Vec<Failure> {
        slot.insert(measured).figures.failures().to_vec()
    }
    Ok(match section {
        Section::Downtime => keep(&mut results.downtime, bench.measured(downtime::measure)?),
        Section::Latency => keep(&mut results.latency, bench.measured(latency::measure)?),
        Section::Streaming => keep(&mut results.streaming, bench.measured(streaming::measure)?),
        Section::Link => keep(&mut results.link, bench.measured(link::measure)?),
        Section::Many => keep(&mut results.many, bench.measured(many::measure)?),
        Section::Idle => keep(&mut results.idle, bench.measured(idle::measure)?),
        Section::Wrapper => keep(&mut results.wrapper, bench.measured(wrapper::measure)?),
        Section::Planner => keep(&mut results.planner, bench.measured(planner::measure)?),
    })
}

/// Why a container of this size cannot be moved in this way here; none if it can. Part of the memory is needed more than once.
fn too_large(way: &Way, mib: u64) -> Option<String> {
    let (needed, free) = (needed_bytes(way, mib), usage::available_bytes());
    (needed > free).then(|| {
        format!("{} by {}: takes up to {:.0} GiB, {:.0} GiB are free", size(mib), way.name(), gib(needed), gib(free))
    })
}

/// Redis needs nearly a third more for its data than they have bytes.
fn needed_bytes(way: &Way, mib: u64) -> u64 {
    ((mib << 20) + (mib << 20) * 3 / 10) * way.copies() + RESERVE
}

fn chain(error: Error) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

fn gib(bytes: u64) -> f64 {
    mib(bytes) / 1024.0
}

/// Bytes of anything here are exact enough in a float.
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn size(mib: u64) -> String {
    if mib >= 1024 && mib.is_multiple_of(1024) { format!("{} GiB", mib / 1024) } else { format!("{mib} MiB") }
}
