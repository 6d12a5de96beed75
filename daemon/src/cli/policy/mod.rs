//! `spothop policy`: the operator's rules on examples, and mass reclaims that are only played.

mod examples;
mod plot;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use spothop_policy::Policy;
use spothop_policy::simulation::{self, Report, Setup};

use super::args::{PolicyCommand, Simulate};
use super::exit::{CliError, Exit};
use super::output::Output;
use crate::config::Config;
use crate::config::units::show_duration;

pub(super) use examples::ExampleError;

pub(super) fn run(command: PolicyCommand, config: Option<&Path>, output: &mut Output) -> Result<Exit, CliError> {
    let config = Config::load(config)?;
    let policy = config.policy.compiled();
    match command {
        PolicyCommand::Test { files } => test(policy, &files, output),
        PolicyCommand::Simulate(what) => simulate(policy, &what, output),
    }
}

/// Plans every example; fails if one does not come out as it says.
fn test(policy: &Policy, files: &[PathBuf], output: &mut Output) -> Result<Exit, CliError> {
    let mut results = Vec::new();
    for file in files {
        results.extend(examples::load(file)?.into_iter().map(|example| example.judge(policy, file)));
    }
    let failed = results.iter().filter(|result| !result.differs.is_empty()).count();
    output.result(&results, || {
        let mut text = String::new();
        for result in &results {
            let verdict = if result.differs.is_empty() { "ok" } else { "FAILED" };
            // Writing into a string cannot fail.
            let _ = writeln!(text, "{verdict} {}: {}", result.file.display(), result.name);
            for difference in &result.differs {
                let _ = writeln!(text, "   {difference}");
            }
        }
        let _ = writeln!(text, "{} of {} examples as expected", results.len() - failed, results.len());
        text
    })?;
    Ok(if failed == 0 { Exit::Ok } else { Exit::Failed })
}

fn simulate(policy: &Policy, what: &Simulate, output: &mut Output) -> Result<Exit, CliError> {
    let setup = Setup {
        hosts: what.hosts,
        reclaimed: what.reclaimed,
        containers: what.containers,
        deadline: what.within,
        link: what.link_mbit.saturating_mul(1_000_000 / 8),
        seed: what.seed,
    };
    let report = simulation::run(&setup, policy);
    if let Some(file) = &what.plot {
        std::fs::write(file, plot::svg(&setup, &report))
            .map_err(|source| CliError::Plot { file: file.clone(), source })?;
    }
    output.result(&report, || render(&setup, &report))?;
    Ok(Exit::Ok)
}

fn render(setup: &Setup, report: &Report) -> String {
    let Report { containers, saved, late, lost, without_target, refused, over_committed, saved_after_ms } = report;
    let last = saved_after_ms.last().map_or_else(
        || "none was saved".to_owned(),
        |ms| format!("the last was safe after {}", show_duration(std::time::Duration::from_millis(*ms))),
    );
    let share = |count: usize| 100.0 * count as f64 / (*containers).max(1) as f64;
    format!(
        "{} of {} hosts reclaimed with {} notice, {containers} containers (seed {}):\n\
         saved {saved} ({:.0} %), late {late} ({:.0} %), lost {lost} ({:.0} %), of which {without_target} without a target\n\
         {refused} offers refused because others had taken the room; {over_committed} hosts over-committed; {last}\n",
        setup.reclaimed.min(setup.hosts),
        setup.hosts,
        show_duration(setup.deadline),
        setup.seed,
        share(*saved),
        share(*late),
        share(*lost),
    )
}
