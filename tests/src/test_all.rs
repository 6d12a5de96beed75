//! `cargo test-all`: everything that must hold before a change is taken, from a machine with nothing installed.

use std::time::{Duration, Instant};

use crate::base;
use crate::error::Result;
use crate::etcd;
use crate::machine::{self, cargo};
use crate::moto;
use crate::older_kernel;

/// One stage: its name, and what it does.
type Stage = (&'static str, fn() -> Result<()>);

/// All stages in their order. All cargo stages use the release profile, so that what they share is built once.
const STAGES: &[Stage] = &[
    ("set-up", set_up),
    ("format", || cargo(["fmt", "--all", "--check"])),
    ("clippy", || {
        cargo([
            "clippy",
            "--release",
            "--workspace",
            "--all-targets",
            // What is built for fuzz/ alone, too: that is no member of the workspace.
            "--features=spothop-tests/e2e,spothop-aws/e2e,spothop/e2e,spothop/fuzzing,spothop-criu/fuzzing,spothop-transfer/fuzzing",
            "--",
            "--deny=warnings",
        ])
    }),
    ("unit tests", || cargo(["test", "--release", "--workspace"])),
    ("older kernel", || older_kernel::run(&["--release", "--workspace"])),
    // The whole workspace is named so that the SDK is the one that the other stages have built.
    ("cloud tests", || {
        cargo([
            "test",
            "--release",
            "--workspace",
            "--features=spothop-aws/e2e,spothop/e2e",
            "--test=moto",
            "--test=etcd",
        ])
    }),
    ("build", || cargo(["build", "--release", "--workspace", "--bins"])),
    ("end-to-end tests", || {
        cargo([
            "test",
            "--release",
            "--package=spothop-tests",
            "--features=e2e",
            "--test=*",
            "--",
            // One testbed at a time: two of them would measure each other.
            "--test-threads=1",
        ])
    }),
];

/// How a stage ended.
#[derive(Debug)]
struct Outcome {
    name: &'static str,
    took: Duration,
    passed: bool,
}

/// Runs the stages until one fails, then prints how each went.
///
/// # Errors
/// That of the stage that failed; its output has been shown.
pub fn run() -> Result<()> {
    let mut outcomes = Vec::new();
    let mut result = Ok(());
    for (name, stage) in STAGES {
        eprintln!("\n== {name}");
        let start = Instant::now();
        result = stage();
        outcomes.push(Outcome { name, took: start.elapsed(), passed: result.is_ok() });
        if result.is_err() {
            break;
        }
    }
    eprint!("{}", summary(&outcomes));
    result
}

fn set_up() -> Result<()> {
    let say = |line: &str| eprintln!("{line}");
    machine::prepare(&say)?;
    moto::ensure(&say)?;
    etcd::ensure(&say)?;
    older_kernel::prepare(&say)?;
    base::ensure(&say).map(drop)
}

/// A line for every stage, also for those that were not reached.
fn summary(outcomes: &[Outcome]) -> String {
    let mut text = "\n== summary\n".to_owned();
    for (index, (name, _)) in STAGES.iter().enumerate() {
        let line = match outcomes.get(index) {
            Some(outcome) => {
                let verdict = if outcome.passed { "passed" } else { "FAILED" };
                format!("{:<18} {verdict} {:>8.1} s\n", outcome.name, outcome.took.as_secs_f64())
            }
            None => format!("{name:<18} not run\n"),
        };
        text.push_str(&line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_shows_where_it_stopped() {
        let outcome = |name, passed| Outcome { name, took: Duration::from_millis(1500), passed };
        let text = summary(&[outcome("set-up", true), outcome("format", false)]);
        assert!(text.contains("set-up             passed      1.5 s"), "{text}");
        assert!(text.contains("format             FAILED"), "{text}");
        assert!(text.contains("end-to-end tests   not run"), "{text}");
    }
}
