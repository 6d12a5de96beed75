//! The table of runs: one JSON object a line, and a summary.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Options;
use super::plan::{At, Plan};
use crate::error::{Context, Error, Result};

/// Where the server is in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// At the target, with its memory.
    Moved,
    /// At the source, with its memory.
    Stayed,
    /// Somewhere, started anew from its volume.
    Restarted,
    /// Nowhere, or in two places.
    Lost,
}

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// The seed.
    pub seed: u64,
    /// The run's number: what was done follows from it, the seed and [`Options::only`].
    pub index: u64,
    /// What was to happen.
    pub plan: Plan,
    /// The source's name.
    pub source: String,
    /// Whether the point was reached.
    pub reached: bool,
    /// What was done there; none when there was nothing to do it to.
    pub done: Option<String>,
    /// How the command line ended; none for a notice.
    pub cli: Option<String>,
    /// Where the server is.
    pub outcome: Outcome,
    /// Whether the client's first connection lived.
    pub kept: bool,
    /// The longest time between two replies, in milliseconds.
    pub gap_ms: f64,
    /// From the last fault undone to the end of all migrations, in seconds.
    pub settle_s: f64,
    /// The whole run, in seconds.
    pub total_s: f64,
    /// Writes that the server had acknowledged.
    pub acknowledged_writes: u64,
    /// How often both hosts were looked at.
    pub samples: u64,
    /// The longest time between two looks, in milliseconds.
    pub longest_look_ms: f64,
    /// What must not be.
    pub violations: Vec<String>,
}

impl Line {
    /// It in one line of text.
    #[must_use]
    pub fn text(&self) -> String {
        let outcome = serde_json::to_value(self.outcome).unwrap_or_default();
        let mut text = format!(
            "{:>4} {}→ {:<58} {:<9} {:<6} gap {:>7.0} ms  settled {:>5.1} s  {:>5.1} s  ",
            self.index,
            self.source,
            format!("{}{}", self.plan, if self.done.is_some() { "" } else { " (missed)" }),
            outcome.as_str().unwrap_or_default(),
            if self.kept { "kept" } else { "reset" },
            self.gap_ms,
            self.settle_s,
            self.total_s,
        );
        text.push_str(&if self.violations.is_empty() { "OK".to_owned() } else { self.violations.join("; ") });
        text
    }
}

/// The table.
#[derive(Debug)]
pub struct Report {
    options: Options,
    lines: Vec<Line>,
    /// Runs that the testbed could not do, and why.
    given_up: Vec<String>,
    file: File,
}

impl Report {
    /// An empty one of what is to run.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(options: &Options) -> Result<Self> {
        let path = &options.report;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).on("make", directory)?;
        }
        let file = File::create(path).on("create", path)?;
        Ok(Self { options: options.clone(), lines: Vec::new(), given_up: Vec::new(), file })
    }

    /// Adds a run, and writes it at once.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add(&mut self, line: Line) -> Result<()> {
        let text = serde_json::to_string(&line)
            .map_err(|source| Error::Json { what: "a line of the report".to_owned(), source })?;
        writeln!(self.file, "{text}").on("write", self.path())?;
        self.lines.push(line);
        Ok(())
    }

    /// Notes a run that the testbed could not do.
    pub fn give_up(&mut self, why: String) {
        self.given_up.push(why);
    }

    /// Writes the summary beside the table, as text.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn close(&self) -> Result<()> {
        let path = self.path().with_extension("txt");
        fs::write(&path, self.summary()).on("write", &path)
    }

    /// Where it is written.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.options.report
    }

    /// All runs.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// How many runs broke a promise, or were not done.
    #[must_use]
    pub fn wrong(&self) -> usize {
        self.lines.iter().filter(|line| !line.violations.is_empty()).count() + self.given_up.len()
    }

    /// Runs by point and by fault, how they ended, and what was wrong.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<52} {:>5} {:>6} {:>6} {:>9} {:>5} {:>6} {:>6}",
            "", "runs", "moved", "stayed", "restarted", "reset", "missed", "wrong"
        );
        let mut by: [BTreeMap<String, Vec<&Line>>; 2] = Default::default();
        for line in &self.lines {
            let point = line.plan.at.as_ref().map_or_else(|| "undisturbed".to_owned(), At::to_string);
            by[0].entry(point).or_default().push(line);
            by[1].entry(line.plan.fault.to_string()).or_default().push(line);
        }
        let never: Vec<&str> = by[0]
            .iter()
            .filter(|(_, lines)| lines.iter().all(|line| !line.reached))
            .map(|(name, _)| name.as_str())
            .collect();
        for (title, groups) in ["by point", "by fault"].iter().zip(&by) {
            let _ = writeln!(text, "{title}");
            for (name, lines) in groups {
                row(&mut text, &format!("  {name}"), lines);
            }
        }
        if !never.is_empty() {
            let _ = writeln!(text, "never reached: {}", never.join(", "));
        }
        row(&mut text, "all", &self.lines.iter().collect::<Vec<_>>());
        let with = |word: &str| {
            self.lines.iter().filter(|line| line.violations.iter().any(|what| what.contains(word))).count()
        };
        let _ =
            writeln!(text, "runs that lost something: {}; that doubled something: {}", with("LOST"), with("DOUBLED"));
        let mut gaps: Vec<f64> = self.lines.iter().filter(|line| line.kept).map(|line| line.gap_ms).collect();
        let _ = writeln!(text, "longest gaps where the connection lived: {}", distribution(&mut gaps));
        let _ = writeln!(text, "seed {}; the table is in {}", self.options.seed, self.path().display());
        for why in &self.given_up {
            let _ = writeln!(text, "NOT DONE {why}");
        }
        for line in self.lines.iter().filter(|line| !line.violations.is_empty()) {
            let _ = writeln!(
                text,
                "WRONG {}: {}: {}",
                self.options.again(line.index),
                line.plan,
                line.violations.join("; ")
            );
        }
        text
    }
}

fn row(text: &mut String, name: &str, lines: &[&Line]) {
    let count = |what: &dyn Fn(&Line) -> bool| lines.iter().filter(|line| what(line)).count();
    let _ = writeln!(
        text,
        "{name:<52} {:>5} {:>6} {:>6} {:>9} {:>5} {:>6} {:>6}",
        lines.len(),
        count(&|line| line.outcome == Outcome::Moved),
        count(&|line| line.outcome == Outcome::Stayed),
        count(&|line| line.outcome == Outcome::Restarted),
        count(&|line| !line.kept),
        count(&|line| line.done.is_none()),
        count(&|line| !line.violations.is_empty()),
    );
}

/// Least, median, 90 and 99 per cent, and most of some milliseconds.
#[must_use]
pub fn distribution(milliseconds: &mut [f64]) -> String {
    milliseconds.sort_by(f64::total_cmp);
    let Some(last) = milliseconds.len().checked_sub(1) else { return "none".to_owned() };
    // The nearest rank.
    let at = |percent: usize| milliseconds[(milliseconds.len() * percent).div_ceil(100).saturating_sub(1).min(last)];
    format!(
        "{} of them, min {:.0}, p50 {:.0}, p90 {:.0}, p99 {:.0}, max {:.0} ms",
        milliseconds.len(),
        at(0),
        at(50),
        at(90),
        at(99),
        at(100)
    )
}

#[cfg(test)]
mod tests {
    use super::super::draw::plan;
    use super::*;

    #[test]
    fn a_distribution_is_told_by_nearest_ranks() {
        let mut hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(distribution(&mut hundred), "100 of them, min 1, p50 50, p90 90, p99 99, max 100 ms");
        assert_eq!(distribution(&mut [7.0]), "1 of them, min 7, p50 7, p90 7, p99 7, max 7 ms");
        assert_eq!(distribution(&mut []), "none");
    }

    #[test]
    fn a_run_that_is_wrong_is_told_with_all_that_it_takes_to_make_it_again() {
        let scratch = tempfile::tempdir().unwrap();
        let options = Options {
            runs: 3,
            first: 0,
            seed: 5,
            only: Some("source:frozen × kill".to_owned()),
            report: scratch.path().join("report.jsonl"),
            memory: vec![r#"mode = "post-copy""#.to_owned()],
            build: false,
        };
        let mut report = Report::create(&options).unwrap();
        for (index, violations) in [vec![], vec!["LOST a key".to_owned()], vec![]].into_iter().enumerate() {
            let index = index as u64;
            report
                .add(Line {
                    seed: options.seed,
                    index,
                    plan: plan(options.seed, index, options.only.as_deref(), true).unwrap(),
                    source: "a".to_owned(),
                    reached: true,
                    done: Some("killed".to_owned()),
                    cli: None,
                    outcome: Outcome::Stayed,
                    kept: true,
                    gap_ms: 1.0,
                    settle_s: 1.0,
                    total_s: 1.0,
                    acknowledged_writes: 1,
                    samples: 1,
                    longest_look_ms: 1.0,
                    violations,
                })
                .unwrap();
        }
        let summary = report.summary();
        let wrong: Vec<_> = summary.lines().filter(|line| line.starts_with("WRONG")).collect();
        let [wrong] = *wrong else { panic!("{summary}") };
        let words = r#"WRONG --seed 5 --at 1 --only 'source:frozen × kill' --memory 'mode = "post-copy"': "#;
        assert!(wrong.starts_with(words) && wrong.ends_with(": LOST a key"), "{wrong}");
    }
}
