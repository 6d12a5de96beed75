//! What was measured, this time and before: two files that belong together, one for programs and one for people.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};
use crate::state::json;

use super::Failure;
use super::downtime::Downtime;
use super::facts::Facts;
use super::goals::{self, Goal};
use super::idle::Idle;
use super::latency::Latency;
use super::link::Link;
use super::many::Many;
use super::planner::Planner;
use super::streaming::Streaming;
use super::wrapper::Wrapper;

const JSON: &str = "results.json";
const MARKDOWN: &str = "results.md";

/// The figures of a part.
pub(super) trait Figures {
    /// Its heading.
    const TITLE: &str;

    /// Tables, with all that is needed to read them.
    fn markdown(&self) -> String;

    /// What was to be reached; nothing, unless the part says otherwise.
    fn goals(&self) -> Vec<Goal> {
        Vec::new()
    }

    /// What did not work.
    fn failures(&self) -> &[Failure];
}

/// A part, and what it was measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Measured<T> {
    /// When it began.
    pub(super) at: Timestamp,
    pub(super) facts: Facts,
    /// Whether it was only a look.
    pub(super) quick: bool,
    /// How long it took.
    pub(super) minutes: f64,
    pub(super) figures: T,
}

/// All parts that were ever measured into one directory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Results {
    pub(super) downtime: Option<Measured<Downtime>>,
    pub(super) latency: Option<Measured<Latency>>,
    pub(super) streaming: Option<Measured<Streaming>>,
    pub(super) link: Option<Measured<Link>>,
    pub(super) many: Option<Measured<Many>>,
    pub(super) idle: Option<Measured<Idle>>,
    pub(super) wrapper: Option<Measured<Wrapper>>,
    pub(super) planner: Option<Measured<Planner>>,
}

impl Results {
    /// Those in a directory; none where there are none. What another version has left is put aside, which `say` hears.
    pub(super) fn load(directory: &Path, say: &dyn Fn(&str)) -> Result<Self> {
        let path = directory.join(JSON);
        if !path.is_file() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(&path).on("read", &path)?;
        serde_json::from_str(&text).or_else(|error| {
            let aside = path.with_extension("json.old");
            say(&format!("{} is of another version ({error}); it is {} now", path.display(), aside.display()));
            fs::rename(&path, &aside).on("rename", &path)?;
            Ok(Self::default())
        })
    }

    /// Writes both files.
    pub(super) fn save(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).on("make", directory)?;
        for (name, text) in [(JSON, json(self)?), (MARKDOWN, self.markdown())] {
            let path = directory.join(name);
            fs::write(&path, text).on("write", &path)?;
        }
        Ok(())
    }

    /// All tables, and the goals at the end.
    pub(super) fn markdown(&self) -> String {
        let mut page = Page::default();
        page.add(self.downtime.as_ref());
        page.add(self.latency.as_ref());
        page.add(self.streaming.as_ref());
        page.add(self.link.as_ref());
        page.add(self.many.as_ref());
        page.add(self.idle.as_ref());
        page.add(self.wrapper.as_ref());
        page.add(self.planner.as_ref());
        format!(
            "{}## Goals\n\nEach from the part of the same run that it belongs to.\n\n{}",
            page.text,
            goals::table(&page.goals)
        )
    }
}

#[derive(Default)]
struct Page {
    text: String,
    goals: Vec<Goal>,
}

impl Page {
    fn add<T: Figures>(&mut self, measured: Option<&Measured<T>>) {
        let Some(Measured { at, facts, quick, minutes, figures }) = measured else { return };
        let quick = if *quick { " --quick, which is a look and no measurement" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            self.text,
            "## {}\n\nMeasured {} by `cargo bench-all`{quick}, in {minutes:.0} min: {}.\n\n{}",
            T::TITLE,
            at.strftime("%Y-%m-%d"),
            facts.sentence(),
            figures.markdown()
        );
        for Failure { what, reason, .. } in figures.failures() {
            let _ = writeln!(self.text, "{what} failed: {reason}\n");
        }
        self.goals.extend(figures.goals());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::idle::tests::figures;

    fn facts() -> Facts {
        Facts {
            cores: 2,
            memory_gib: 23.6,
            kernel: "6.18.0".to_owned(),
            load: "0.10".to_owned(),
            link_mbit: None,
            versions: vec![("criu".to_owned(), "4.2.1".to_owned())],
        }
    }

    #[test]
    fn what_was_measured_before_stays_and_the_goals_come_last() {
        let directory = tempfile::tempdir().unwrap();
        let nothing = |_: &str| panic!("nothing to say");
        assert_eq!(Results::load(directory.path(), &nothing).unwrap(), Results::default());
        let measured = Measured {
            at: "2026-01-02T03:04:05Z".parse().unwrap(),
            facts: facts(),
            quick: false,
            minutes: 2.0,
            figures: figures(),
        };
        let results = Results { idle: Some(measured), ..Results::default() };
        results.save(directory.path()).unwrap();
        assert_eq!(Results::load(directory.path(), &nothing).unwrap(), results);
        let text = fs::read_to_string(directory.path().join(MARKDOWN)).unwrap();
        assert!(text.contains("Measured 2026-01-02 by `cargo bench-all`, in 2 min: both hosts and the client on one machine with 2 cores, 24 GiB and Linux 6.18.0, an unlimited link; criu 4.2.1;"), "{text}");
        assert!(text.rsplit("## ").next().unwrap().starts_with("Goals"), "{text}");
    }

    #[test]
    fn results_of_another_version_are_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(JSON), r#"{"runs":[]}"#).unwrap();
        let said = std::cell::RefCell::new(String::new());
        let results = Results::load(directory.path(), &|line| said.borrow_mut().push_str(line)).unwrap();
        assert_eq!(results, Results::default());
        assert!(said.borrow().contains("of another version"), "{}", said.borrow());
        assert!(directory.path().join("results.json.old").is_file());
    }
}
