//! What spothop tells of a migration.

use jiff::Timestamp;
use serde::Deserialize;

use crate::command::{check, output};
use crate::error::{Error, Result};
use crate::testbed::Testbed;

use super::Step;
use super::profile::Profile;

/// A migration, as far as it is needed here.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Migration {
    #[serde(default)]
    pub(super) id: String,
    #[serde(default)]
    pub(super) container: String,
    #[serde(default)]
    pub(super) outcome: Option<String>,
    #[serde(default)]
    pub(super) reason: Option<String>,
    pub(super) phases: Vec<Entered>,
    /// Before compression.
    pub(super) bytes_sent: u64,
    /// After it, with the headers of the pieces.
    #[serde(default)]
    pub(super) bytes_on_wire: u64,
}

/// A phase and when it began.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Entered {
    pub(super) phase: String,
    pub(super) at: Timestamp,
}

/// What `spothop migrate --json` prints.
#[derive(Debug, Deserialize)]
struct Printed {
    migrations: Vec<Migration>,
}

/// The client's longest time without an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Gap {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
}

impl Migration {
    /// Moves a container, and returns when it has moved.
    ///
    /// # Errors
    /// [`Error::Unexpected`] with spothop's reason when it has not; [`Error::Command`] with its words.
    pub(super) fn make(bed: &Testbed, from: &str, container: &str, to: &str) -> Result<Self> {
        let mut command = bed.exec(from, ["spothop", "migrate", container, "--to", to, "--json"])?;
        let ended = output(&mut command)?;
        match Self::printed(&String::from_utf8_lossy(&ended.stdout)) {
            Ok(migration) if migration.outcome.as_deref() == Some("moved") => Ok(migration),
            Ok(Self { id, reason: Some(reason), .. }) => {
                Err(Error::Unexpected { what: format!("the end of migration {id}"), text: reason })
            }
            _ => check(&command, ended).and_then(|ended| Self::printed(&String::from_utf8_lossy(&ended.stdout))),
        }
    }

    /// The one that `spothop migrate --json` has made.
    pub(super) fn printed(text: &str) -> Result<Self> {
        let printed: Printed = serde_json::from_str(text)
            .map_err(|source| Error::Json { what: "what `spothop migrate --json` printed".to_owned(), source })?;
        printed.migrations.into_iter().next().ok_or_else(|| Error::Unexpected {
            what: "what `spothop migrate --json` printed".to_owned(),
            text: text.to_owned(),
        })
    }

    /// Those that `spothop history --json` prints.
    pub(super) fn history(text: &str) -> Result<Vec<Self>> {
        serde_json::from_str(text)
            .map_err(|source| Error::Json { what: "what `spothop history --json` printed".to_owned(), source })
    }

    /// When a phase began, the first time.
    pub(super) fn at(&self, phase: &str) -> Option<Timestamp> {
        self.phases.iter().find(|entered| entered.phase == phase).map(|entered| entered.at)
    }

    /// From the freeze until the container runs again, in seconds.
    pub(super) fn frozen_for(&self) -> Option<f64> {
        Some(between(self.at("frozen")?, self.at("running")?))
    }

    /// From the freeze until the source is not needed any more, in seconds: until the last thing that is done before it is cleaned.
    pub(super) fn source_needed_for(&self) -> Option<f64> {
        let last = self.phases.iter().rfind(|entered| entered.phase != "cleaned")?;
        Some(between(self.at("frozen")?, last.at))
    }

    /// Splits the timeline. Between `frozen` and `transferred` CRIU writes its images and then what is left is sent; that the one has
    /// ended is seen in the file system. Before `frozen` and after `running` the client tells the rest of what it has missed.
    pub(super) fn steps(&self, profile: &Profile, gap: Option<Gap>) -> Vec<Step> {
        // What ends at each moment.
        let mut moments: Vec<(&'static str, Timestamp)> = Vec::new();
        let mut before_freeze = "prepare";
        // Of the move, if it meets the freeze: some server that was slow before may have been longer.
        let gap = gap.filter(|gap| {
            let (frozen, running) = (self.at("frozen"), self.at("running"));
            frozen.zip(running).is_some_and(|(frozen, running)| gap.from < running && frozen < gap.to)
        });
        for entered in &self.phases {
            let ends = match entered.phase.as_str() {
                "planned" => "",
                "pre-copy(1)" => std::mem::replace(&mut before_freeze, "pre-copy"),
                "frozen" => {
                    // A request that is lost on the way into the freeze was sent before it.
                    let last = moments.last().map_or(entered.at, |(_, at)| *at);
                    let begin = gap.map_or(entered.at, |gap| gap.from.max(last).min(entered.at));
                    moments.push((before_freeze, begin));
                    "freeze"
                }
                "transferred" => {
                    moments.extend(profile.dumped.map(|at| ("dump", at)));
                    "last bytes"
                }
                "restored" => "restore",
                "running" => {
                    // The client may hear from the target before the source does.
                    let heard = gap.map_or(entered.at, |gap| gap.to.min(entered.at));
                    moments.push(("engine", heard.max(moments.last().map_or(heard, |(_, at)| *at))));
                    moments.extend(gap.map(|gap| ("network", gap.to.max(heard))));
                    continue;
                }
                "cleaned" => "clean up",
                _ => continue,
            };
            moments.push((ends, entered.at));
        }
        let between = moments.windows(2).map(|pair| {
            let ((_, from), (name, to)) = (pair[0], pair[1]);
            Step {
                name: name.to_owned(),
                seconds: between(from, to).max(0.0),
                busy_cores: profile.busy_cores(from, to),
                programs: profile.programs(from, to),
            }
        });
        between.collect()
    }
}

/// Seconds from one moment to the other.
pub(super) fn between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(millis: u32) -> Timestamp {
        format!("2026-01-02T03:04:05.{millis:03}Z").parse().unwrap()
    }

    fn printed(phases: &[(&str, u32)]) -> Migration {
        let phases: Vec<_> =
            phases.iter().map(|(phase, at)| format!(r#"{{"phase":"{phase}","at":"{}"}}"#, moment(*at))).collect();
        let text =
            format!(r#"{{"plan":{{}},"migrations":[{{"id":"x","bytes_sent":1,"phases":[{}]}}]}}"#, phases.join(","));
        Migration::printed(&text).unwrap()
    }

    const PHASES: [(&str, u32); 11] = [
        ("planned", 0),
        ("reserved", 10),
        ("prepared", 30),
        ("pre-copy(1)", 40),
        ("pre-copy(2)", 90),
        ("frozen", 100),
        ("transferred", 400),
        ("restored", 600),
        ("committed", 610),
        ("running", 650),
        ("cleaned", 900),
    ];

    fn split(migration: &Migration, gap: Option<Gap>) -> Vec<(String, f64)> {
        let profile = Profile { dumped: Some(moment(250)), ..Profile::default() };
        migration.steps(&profile, gap).into_iter().map(|step| (step.name, (step.seconds * 1000.0).round())).collect()
    }

    #[test]
    fn the_timeline_is_split_where_the_dump_is_complete_and_where_the_client_heard_nothing() {
        let gap = Gap { from: moment(93), to: moment(670) };
        let expected = [
            ("prepare", 40.0),
            ("pre-copy", 53.0),
            ("freeze", 7.0),
            ("dump", 150.0),
            ("last bytes", 150.0),
            ("restore", 200.0),
            ("engine", 50.0),
            ("network", 20.0),
            ("clean up", 230.0),
        ];
        assert_eq!(split(&printed(&PHASES), Some(gap)), expected.map(|(name, ms)| (name.to_owned(), ms)));
    }

    #[test]
    fn a_client_may_hear_of_the_target_before_the_source_does() {
        let steps = split(&printed(&PHASES), Some(Gap { from: moment(110), to: moment(640) }));
        let of = |name: &str| steps.iter().find(|step| step.0 == name).map(|step| step.1);
        assert_eq!(
            (of("freeze"), of("engine"), of("network"), of("clean up")),
            (Some(0.0), Some(40.0), Some(0.0), Some(260.0))
        );
    }

    #[test]
    fn a_gap_that_is_none_of_the_move_s_splits_nothing() {
        let elsewhere = Gap { from: moment(1), to: moment(30) };
        let steps = split(&printed(&PHASES), Some(elsewhere));
        assert!(steps.contains(&("pre-copy".to_owned(), 60.0)), "{steps:?}");
        assert!(!steps.iter().any(|(name, _)| name == "network"), "{steps:?}");
    }

    #[test]
    fn the_source_is_needed_until_the_last_thing_before_it_is_cleaned() {
        let migration = printed(&PHASES);
        assert_eq!(migration.frozen_for().map(|s| (s * 1000.0).round()), Some(550.0));
        assert_eq!(migration.source_needed_for().map(|s| (s * 1000.0).round()), Some(550.0));
        let longer = [&PHASES[..10], &[("filled", 800), ("cleaned", 900)]].concat();
        assert_eq!(printed(&longer).source_needed_for().map(|s| (s * 1000.0).round()), Some(700.0));
    }
}
