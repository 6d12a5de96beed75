//! What the runtime costs an ordinary container: runc through `spothop-oci`, and runc itself, one after the other.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::command::{command, run};
use crate::error::{Error, Result};

use super::bundle::Bundle;
use super::goals::{Goal, Limit};
use super::results::Figures;
use super::statistics::{Spread, median};
use super::{Bench, Failure, SOURCE, seconds};

/// The runtimes that are compared: what is measured, and what with.
const RUNTIMES: [&str; 2] = ["spothop-oci", "runc"];
const NAME: &str = "bench-wrapper";

/// Containers that were created and started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Wrapper {
    /// Milliseconds of `create` and `start`, through spothop-oci and directly, pair by pair.
    pairs: Vec<[f64; 2]>,
}

/// Creates and starts containers.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Wrapper> {
    let bundle = Bundle::make(bench.bed, SOURCE, NAME, &["sleep", "3600"], None)?;
    let runs = bench.choose("200", "50");
    let words = ["testbed", "runtime-cost", &bundle.path, runs].into_iter().chain(RUNTIMES);
    let said = bench.bed.output(SOURCE, words);
    Bundle::remove_all(bench.bed, SOURCE)?;
    let said = said?;
    let pairs = serde_json::from_str(&said)
        .map_err(|source| Error::Json { what: "what `testbed runtime-cost` printed".to_owned(), source })?;
    Ok(Wrapper { pairs })
}

/// Creates and starts a container from a bundle with each of two runtimes in turn, so many times, on the host that this runs on. Returns
/// the milliseconds of both calls, pair by pair. The one that comes first in a pair changes every time.
///
/// # Errors
/// [`Error::Command`] with the runtime's words; [`Error::OutOfRange`] when there are not two runtimes.
pub fn runtime_cost(bundle: &Path, runs: usize, runtimes: &[String]) -> Result<Vec<[f64; 2]>> {
    let [first, second] = runtimes else {
        return Err(Error::OutOfRange {
            what: "the number of runtimes",
            value: runtimes.len().to_string(),
            allowed: "2".to_owned(),
        });
    };
    // The first calls read programs from the disk.
    for runtime in runtimes {
        create_and_start(bundle, runtime)?;
    }
    let mut pairs = Vec::new();
    for number in 0..runs {
        let mut pair = [0.0; 2];
        for turn in 0..2 {
            let which = (number + turn) % 2;
            pair[which] = create_and_start(bundle, [first, second][which])?;
        }
        pairs.push(pair);
    }
    Ok(pairs)
}

/// Milliseconds of both calls, as an engine makes them: no terminal, a pid file, a log file.
fn create_and_start(bundle: &Path, runtime: &str) -> Result<f64> {
    let directory = bundle.to_string_lossy();
    let (log, pid) = (format!("{directory}/log.json"), format!("{directory}/pid"));
    let begin = Instant::now();
    // With output that nobody reads: a container that has a pipe of ours would keep it open. What goes wrong is in the log.
    let script = "\"$@\" </dev/null >/dev/null 2>&1 || { cat \"$0\" >&2; exit 1; }";
    let call = |words: &[&str]| {
        let global = [script, &*log, runtime, "--log", &log, "--log-format", "json"];
        run(&mut command("sh", ["-c"].into_iter().chain(global).chain(words.iter().copied()))).map(drop)
    };
    let created =
        call(&["create", "--bundle", &directory, "--pid-file", &pid, NAME]).and_then(|()| call(&["start", NAME]));
    let took = seconds(begin.elapsed()) * 1000.0;
    let deleted = run(&mut command("runc", ["delete", "--force", NAME]));
    created?;
    deleted?;
    Ok(took)
}

impl Figures for Wrapper {
    const TITLE: &str = "The runtime on an ordinary container";

    fn markdown(&self) -> String {
        let of = |which: usize| Spread::of(self.pairs.iter().map(move |pair| pair[which]));
        let mut text = "| create and start | p50 | p95 | max |\n|---|--:|--:|--:|\n".to_owned();
        for (index, runtime) in RUNTIMES.iter().enumerate() {
            if let Some(spread) = of(index) {
                text.push_str(&format!(
                    "| {runtime} | {:.1} ms | {:.1} ms | {:.1} ms |\n",
                    spread.p50, spread.p95, spread.max
                ));
            }
        }
        text.push_str(&format!(
            "\n{} pairs in turn; the median difference within a pair is {:.2} ms.\n",
            self.pairs.len(),
            self.difference().unwrap_or_default()
        ));
        text
    }

    fn goals(&self) -> Vec<Goal> {
        vec![Goal::new(
            "spothop-oci on an ordinary create and start, median",
            Limit::AtMost(3.0),
            " ms",
            self.difference(),
        )]
    }

    fn failures(&self) -> &[Failure] {
        &[]
    }
}

impl Wrapper {
    /// Milliseconds that a pair differs by, the median.
    fn difference(&self) -> Option<f64> {
        median(self.pairs.iter().map(|[through, directly]| through - directly))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_compared_among_themselves() {
        // The machine was slow for the second pair.
        let wrapper = Wrapper { pairs: vec![[52.0, 50.0], [104.0, 101.0], [51.0, 50.0]] };
        assert_eq!(wrapper.difference(), Some(2.0));
        assert!(
            wrapper.markdown().contains("| spothop-oci | 52.0 ms | 104.0 ms | 104.0 ms |"),
            "{}",
            wrapper.markdown()
        );
    }

    #[test]
    fn two_runtimes_are_compared_and_no_other_number() {
        let one = runtime_cost(Path::new("/nowhere"), 1, &["runc".to_owned()]);
        assert!(matches!(one, Err(Error::OutOfRange { .. })), "{one:?}");
    }
}
