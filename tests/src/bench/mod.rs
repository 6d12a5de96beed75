//! `cargo bench-all`: a Redis under load is moved from host a to host b, by spothop and by Podman's own checkpoint, copy and
//! restore, and a client on a third machine measures how long it was away.
//!
//! Every run is a fresh container with fresh data; [`spothop`] and [`podman`] move it, [`witness`] is the client, [`profile`] looks
//! at what the machine does meanwhile, [`report`] makes tables of it. No time is judged here: the figures are for the reader.

mod facts;
mod podman;
mod profile;
mod report;
mod spothop;
mod witness;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::error::{Context, Error, Result};
use crate::layout::Layout;
use crate::machine::workspace;
use crate::state::json;
use crate::testbed::{self, Testbed};
use crate::workload::Workload;

pub use self::facts::Facts;
pub use self::podman::Podman;
pub use self::report::{Quantiles, Report, Row};
pub use self::spothop::Spothop;

/// Where the container is at first.
const SOURCE: &str = "a";
/// Where it goes.
const TARGET: &str = "b";

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often each size is moved in each way.
    pub runs: usize,
    /// Sizes of the data in MiB.
    pub sizes: Vec<u64>,
    /// Where `results.md` and `results.json` go; `target/bench` in the workspace if not given.
    pub out: Option<PathBuf>,
}

/// A way to move a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// `spothop migrate`.
    Spothop,
    /// `podman container checkpoint`, a copy of the archive, `podman container restore`.
    Podman,
}

impl Way {
    /// Both, in the order of the tables.
    pub const ALL: [Self; 2] = [Self::Spothop, Self::Podman];

    /// Its name in the tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Spothop => "spothop",
            Self::Podman => "Podman",
        }
    }
}

/// A part of a move.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// What was done.
    pub name: &'static str,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How many of the machine's cores were busy meanwhile, on average; none where nobody looked.
    pub busy_cores: Option<f64>,
    /// Seconds of a core that programs on the hosts have used, by name; those that used next to none are left out.
    pub programs: Vec<(String, f64)>,
}

/// One move, measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// How it was moved.
    pub way: Way,
    /// Data in the server, in MiB.
    pub mib: u64,
    /// The client's longest time from one right answer to the next, in seconds.
    pub downtime: f64,
    /// From the call until nothing of the container is left on the source, in seconds.
    pub total: f64,
    /// Whether the client's one connection lived through it.
    pub kept: bool,
    /// Acknowledged writes that the server does not have afterwards.
    pub lost_writes: u64,
    /// Bytes that were sent, where that is told.
    pub sent_bytes: Option<u64>,
    /// What the total consists of, in order.
    pub steps: Vec<Step>,
}

/// A move that did not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// How it should have been moved.
    pub way: Way,
    /// Data in the server, in MiB.
    pub mib: u64,
    /// Why it was not.
    pub reason: String,
}

/// Runs the benchmark on the testbed of this layout, which is brought up and ended again unless it is up already; prints the
/// tables, and writes them to files.
///
/// # Errors
/// [`Error::Bench`] when spothop failed a run, after all is printed; those of the testbed.
pub fn run(program: &Path, layout: Layout, options: &Options, say: &dyn Fn(&str)) -> Result<()> {
    let mine = match Testbed::open(program, layout.clone()) {
        Ok(bed) => {
            say("using the testbed that is up, with the spothop that is on it");
            return measure_and_report(&bed, options, say);
        }
        Err(_) => Testbed::up(program, layout, &testbed::Options::default(), say)?,
    };
    let result = measure_and_report(&mine, options, say);
    let down = mine.down();
    result.and(down)
}

fn measure_and_report(bed: &Testbed, options: &Options, say: &dyn Fn(&str)) -> Result<()> {
    let report = measure(bed, options, say)?;
    let markdown = report.markdown();
    println!("{markdown}");
    let out = options.out.clone().unwrap_or_else(|| workspace().join("target/bench"));
    fs::create_dir_all(&out).on("make", &out)?;
    for (name, text) in [("results.md", markdown), ("results.json", json(&report)?)] {
        let path = out.join(name);
        fs::write(&path, text).on("write", &path)?;
        say(&format!("written: {}", path.display()));
    }
    match report.failures.iter().find(|failure| failure.way == Way::Spothop) {
        Some(failure) => Err(Error::Bench { mib: failure.mib, reason: failure.reason.clone() }),
        None => Ok(()),
    }
}

fn measure(bed: &Testbed, options: &Options, say: &dyn Fn(&str)) -> Result<Report> {
    bed.import_workload(Workload::Redis)?;
    let spothop = Spothop::new(bed)?;
    let podman = Podman::new(bed)?;
    let once = |way, mib| match way {
        Way::Spothop => spothop.run(mib),
        Way::Podman => podman.run(mib),
    };
    let mut report = Report {
        at: Timestamp::now(),
        runs_each: options.runs,
        facts: Facts::gather(bed)?,
        runs: Vec::new(),
        failures: Vec::new(),
    };
    // Memory that a virtual machine has never touched comes to it slowly, and the first runs would measure that.
    if let Some(largest) = options.sizes.iter().copied().max() {
        for way in Way::ALL {
            say(&format!("warming up: {largest} MiB by {}", way.name()));
            if let Err(error) = once(way, largest) {
                say(&format!("  failed: {:#}", anyhow::Error::from(error)));
            }
        }
    }
    for &mib in &options.sizes {
        for number in 1..=options.runs {
            // One after the other, so that a change in the machine's mood meets both.
            for way in Way::ALL {
                match once(way, mib) {
                    Ok(run) => {
                        say(&format!(
                            "{mib} MiB by {}, run {number}: downtime {:.2} s, total {:.2} s, connection {}",
                            way.name(),
                            run.downtime,
                            run.total,
                            if run.kept { "kept" } else { "reset" }
                        ));
                        report.runs.push(run);
                    }
                    Err(error) => {
                        let reason = format!("{:#}", anyhow::Error::from(error));
                        say(&format!("{mib} MiB by {}, run {number}: failed: {reason}", way.name()));
                        report.failures.push(Failure { way, mib, reason });
                    }
                }
            }
        }
    }
    Ok(report)
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}
