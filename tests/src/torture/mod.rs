//! Torture: a container moves again and again, each time something goes wrong, and somebody who believes neither daemon looks
//! whether the promises hold.
//!
//! | file | what |
//! |---|---|
//! | [`plan`] | what happens in which run: a pure function of seed and index |
//! | [`arena`] | two hosts, a client, and the server that moves, with a program beside it that knows its memory |
//! | [`fault`] | faults, done and undone |
//! | [`run`] | one run: cause, point, fault, settling |
//! | [`sampler`], [`check`] | the checker: what really runs, and what is left |
//! | [`inside`] | how both look into a host |
//! | [`report`] | the table of runs |

pub mod arena;
pub mod check;
mod draw;
pub mod fault;
pub mod inside;
pub mod plan;
pub mod report;
pub mod run;
pub mod sampler;

use std::path::{Path, PathBuf};

use self::arena::Arena;
use self::draw::plan;
use self::report::{Line, Report};
use crate::error::{Error, Result};
use crate::layout::Layout;

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many runs.
    pub runs: u64,
    /// The first of them.
    pub first: u64,
    /// From which all of them follow.
    pub seed: u64,
    /// Only combinations whose name (`point × fault`) contains this.
    pub only: Option<String>,
    /// The table, one JSON object a line; what is kept of runs that went wrong lies beside it.
    pub report: PathBuf,
    /// Lines under `[memory]` in the daemons' configuration. With `mode = "post-copy"` the container writes more than its link takes, and
    /// the plan has the points at which memory follows.
    pub memory: Vec<String>,
    /// Whether to build spothop first.
    pub build: bool,
}

impl Options {
    /// The options of `testbed torture` with which one of these runs, and only that, is made again; in one line, as a shell reads them.
    #[must_use]
    pub fn again(&self, index: u64) -> String {
        let (seed, index) = (self.seed.to_string(), index.to_string());
        let only = self.only.iter().flat_map(|filter| ["--only", filter]);
        let memory = self.memory.iter().flat_map(|lines| lines.lines()).flat_map(|line| ["--memory", line]);
        let words = ["--seed", &seed, "--at", &index].into_iter().chain(only).chain(memory);
        // An argument that was given to us has no NUL, and nothing else is refused.
        shlex::try_join(words).unwrap_or_else(|error| error.to_string())
    }
}

/// Brings a testbed up, does all runs, and takes it down. The table grows with every run. `say` hears how they end.
///
/// # Errors
/// What keeps the testbed itself from working; violations are in the report.
pub fn torture(program: &Path, layout: &Layout, options: &Options, say: &dyn Fn(&str)) -> Result<Report> {
    let mut report = Report::create(options)?;
    let mut arena = Arena::up(program, layout, &options.memory.join("\n"), options.build, say)?;
    let result = (options.first..options.first + options.runs).try_for_each(|index| {
        let line = match one(&mut arena, options, index, say)? {
            Ok(line) => line,
            Err(why) => {
                report.give_up(why);
                return arena.renew(say);
            }
        };
        say(&line.text());
        let wrong = !line.violations.is_empty();
        report.add(line)?;
        // Whatever is wrong now must not be the next run's.
        if wrong { arena.renew(say) } else { Ok(()) }
    });
    let down = arena.down();
    report.close()?;
    result.and(down)?;
    Ok(report)
}

/// One run, on an arena that may have to be made anew before; or why it could not be done.
fn one(arena: &mut Arena, options: &Options, index: u64, say: &dyn Fn(&str)) -> Result<Result<Line, String>> {
    let plan =
        plan(options.seed, index, options.only.as_deref(), arena.follows()).ok_or_else(|| Error::OutOfRange {
            what: "--only",
            value: options.only.clone().unwrap_or_default(),
            allowed: "part of the name of at least one combination, such as source:frozen or 'power-off target'"
                .to_owned(),
        })?;
    if let Err(error) = arena.ready() {
        say(&format!("the testbed is made anew: {error}"));
        arena.renew(say)?;
        arena.ready()?;
    }
    let evidence = options.report.with_extension(format!("run-{index}"));
    match run::run(arena, options.seed, index, &plan, &evidence) {
        Ok(line) => Ok(Ok(line)),
        // Not the product's failure, but the testbed's: once more, on fresh hosts.
        Err(error) => {
            say(&format!("run {index} ({plan}) could not be done, and is done again: {error}"));
            arena.renew(say)?;
            let again = run::run(arena, options.seed, index, &plan, &evidence);
            Ok(again.map_err(|error| format!("run {index} ({plan}) could not be done: {error}")))
        }
    }
}
