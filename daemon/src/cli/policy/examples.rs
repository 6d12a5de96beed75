//! Examples of plans: what there is, and where the containers shall go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use spothop_policy::{
    Container, CpuVerdict, Facts, Host, HostState, Notice, Plan, Policy, ProtocolRange, Request, Source, Version,
};

use crate::config::units;

/// Why a file of examples cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExampleError {
    /// It could not be read.
    #[error("cannot read the examples {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is not what was expected.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        problem: String,
    },
}

/// A file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    examples: Vec<Example>,
}

/// One example.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Example {
    name: String,
    /// Time until the source is taken away.
    #[serde(default, rename = "in")]
    within: Option<String>,
    #[serde(default)]
    can_park: bool,
    #[serde(default)]
    source: Place,
    #[serde(default)]
    notice: Notice,
    containers: Vec<ExampleContainer>,
    #[serde(default)]
    hosts: Vec<ExampleHost>,
    /// For each container: a host's name, `stays`, or `park`, `cold` or `drop`.
    expect: BTreeMap<String, String>,
    /// For a container and a host: a part of the reason why it is refused.
    #[serde(default)]
    refused: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Place {
    zone: Option<String>,
    pool: Option<String>,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExampleContainer {
    name: String,
    #[serde(default = "gib")]
    memory: String,
    #[serde(default = "nothing")]
    disk: String,
    #[serde(default)]
    cpus: f64,
    #[serde(default)]
    priority: i64,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExampleHost {
    name: String,
    #[serde(default)]
    zone: Option<String>,
    #[serde(default)]
    pool: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default = "much")]
    memory: String,
    #[serde(default = "much")]
    disk: String,
    #[serde(default)]
    cpus: u32,
    #[serde(default)]
    load: f64,
    /// Dollars an hour.
    #[serde(default)]
    price: Option<f64>,
    #[serde(default)]
    spot: Option<bool>,
    #[serde(default)]
    placement_score: Option<u8>,
    #[serde(default)]
    notices: u32,
    #[serde(default)]
    runs: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
}

fn gib() -> String {
    "1GiB".to_owned()
}

fn nothing() -> String {
    "0".to_owned()
}

fn much() -> String {
    "64GiB".to_owned()
}

/// How an example came out.
#[derive(Debug, Serialize)]
pub(super) struct Judged {
    pub(super) file: PathBuf,
    pub(super) name: String,
    /// What is not as it says; empty if all is.
    pub(super) differs: Vec<String>,
}

/// Reads a file, TOML unless its name ends in `.json`.
pub(super) fn load(path: &Path) -> Result<Vec<Example>, ExampleError> {
    let text = fs::read_to_string(path).map_err(|source| ExampleError::Read { path: path.to_owned(), source })?;
    let content = |problem| ExampleError::Content { path: path.to_owned(), problem };
    let file: File = if path.extension().is_some_and(|extension| extension == "json") {
        serde_json::from_str(&text).map_err(|error| content(error.to_string()))?
    } else {
        toml::from_str(&text).map_err(|error| content(error.to_string()))?
    };
    for example in &file.examples {
        example.request().map_err(|problem| content(format!("{}: {problem}", example.name)))?;
    }
    Ok(file.examples)
}

impl Example {
    /// Plans it, and compares.
    pub(super) fn judge(&self, policy: &Policy, file: &Path) -> Judged {
        let differs = match self.request() {
            Ok(request) => self.differences(&policy.plan(&request)),
            Err(error) => vec![error.to_string()],
        };
        Judged { file: file.to_owned(), name: self.name.clone(), differs }
    }

    fn request(&self) -> Result<Request, units::UnitError> {
        let (kernel, criu) = (Version::new(6, 1, 0), Version::new(4, 2, 1));
        let protocol = ProtocolRange { min: 1, max: 1 };
        let Place { zone, pool, labels } = &self.source;
        let (zone, pool, labels) = (zone.clone(), pool.clone(), labels.clone());
        // No host of an example has this name: the source is not among its hosts.
        let source = Source { name: String::new(), kernel, criu, protocol, zone, pool, labels };
        let containers = self.containers.iter().map(ExampleContainer::for_policy).collect::<Result<_, _>>()?;
        let hosts = self.hosts.iter().map(|host| host.for_policy(kernel, criu, protocol)).collect::<Result<_, _>>()?;
        let budget = self.within.as_deref().map(units::parse_duration).transpose()?;
        let (notice, can_park) = (self.notice.clone(), self.can_park);
        Ok(Request { source, containers, hosts, budget, concurrency: 1, notice, can_park, ..Request::default() })
    }

    fn differences(&self, plan: &Plan) -> Vec<String> {
        let mut differs = Vec::new();
        for container in self.containers.iter().filter(|container| !self.expect.contains_key(&container.name)) {
            differs.push(format!("{}: the example does not say where it goes", container.name));
        }
        for (container, expected) in &self.expect {
            let Some((came_out, why)) = outcome(plan, container) else {
                differs.push(format!("{container}: the example has no such container"));
                continue;
            };
            if !came_out.contains(expected) {
                let came_out = came_out.join(", ");
                differs.push(format!("{container}: expected {expected}, came out as {came_out}: {why}"));
            }
        }
        for (container, hosts) in &self.refused {
            for (host, part) in hosts {
                let said = refusal(plan, container, host);
                match said {
                    Some(said) if said.contains(part.as_str()) => {}
                    Some(said) => differs.push(format!("{container}: {host} is refused for another reason: {said}")),
                    None => differs.push(format!("{container}: {host} is not refused")),
                }
            }
        }
        differs
    }
}

/// All that can be said of where a container goes, and why.
fn outcome(plan: &Plan, container: &str) -> Option<(Vec<String>, String)> {
    if let Some(step) = plan.moves.iter().find(|step| step.name == container) {
        let mut words = vec![step.target.clone()];
        words.extend(step.next_best.as_ref().map(|next| next.then.to_string()));
        let why = step.candidates.iter().map(|one| format!("{}: {}", one.host, one.reason)).collect::<Vec<_>>();
        return Some((words, why.join("; ")));
    }
    let stay = plan.stays.iter().find(|stay| stay.name == container)?;
    let mut words = vec!["stays".to_owned()];
    words.extend(stay.next_best.as_ref().map(|next| next.then.to_string()));
    Some((words, stay.reasons().join("; ")))
}

fn refusal(plan: &Plan, container: &str, host: &str) -> Option<String> {
    let moves = plan.moves.iter().filter(|step| step.name == container).flat_map(|step| &step.refusals);
    let stays = plan.stays.iter().filter(|stay| stay.name == container).flat_map(|stay| &stay.refusals);
    moves.chain(stays).find(|refusal| refusal.host == host).map(ToString::to_string)
}

impl ExampleContainer {
    fn for_policy(&self) -> Result<Container, units::UnitError> {
        Ok(Container {
            id: self.name.clone(),
            name: self.name.clone(),
            priority: self.priority,
            memory_bytes: units::parse_bytes(&self.memory)?,
            disk_bytes: units::parse_bytes(&self.disk)?,
            architecture: "amd64".to_owned(),
            labels: self.labels.clone(),
            cpu_milli: thousandths(self.cpus),
            ..Container::default()
        })
    }
}

impl ExampleHost {
    /// A host against which nothing speaks but what the example says.
    fn for_policy(&self, kernel: Version, criu: Version, protocol: ProtocolRange) -> Result<Host, units::UnitError> {
        let facts = Facts {
            architecture: "amd64".to_owned(),
            kernel,
            criu: Some(criu),
            protocol,
            free_memory_bytes: units::parse_bytes(&self.memory)?,
            free_disk_bytes: units::parse_bytes(&self.disk)?,
            images: vec![String::new()],
            cpu: CpuVerdict::Compatible,
            zone: self.zone.clone(),
            pool: self.pool.clone(),
            labels: self.labels.clone(),
            cpus: self.cpus,
            load_milli: thousandths(self.load),
            price_micros: self.price.map(|dollars| thousandths(dollars * 1000.0)),
            spot: self.spot,
            placement_score: self.placement_score,
            notices_last_day: self.notices,
            runs: self.runs.clone(),
            groups: self.groups.clone(),
            ..Facts::default()
        };
        Ok(Host { name: self.name.clone(), state: HostState::Reachable(facts) })
    }
}

fn thousandths(number: f64) -> u64 {
    // The cast takes what is negative or no number as 0, and nothing here is too large.
    (number * 1000.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const RULES: &str = "
        [[policy.rules]]
        name = \"databases leave the zone\"
        when = \"has(container.labels.kind) && container.labels.kind == 'database' && host.zone == source.zone\"
        then = \"forbid\"
        [[policy.rules]]
        name = \"not worth it\"
        when = \"container.priority < 0 && notice.seconds_left >= 0\"
        then = \"drop\"
    ";

    const EXAMPLES: &str = r#"
        [[examples]]
        name = "a database"
        in = "120s"
        source = { zone = "z1" }
        containers = [
            { name = "db", memory = "2GiB", labels = { kind = "database" } },
            { name = "web" },
            { name = "scratch", priority = -1 },
        ]
        hosts = [{ name = "near", zone = "z1", spot = false }, { name = "far", zone = "z2" }]
        expect = { db = "far", web = "near", scratch = "drop" }
        refused = { db = { near = "databases leave the zone" } }
    "#;

    fn judge(examples: &str, name: &str) -> Result<Vec<Judged>, ExampleError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        fs::write(&path, examples).unwrap();
        let config = Config::parse(RULES, Path::new("config.toml"), "here").unwrap();
        Ok(load(&path)?.iter().map(|example| example.judge(config.policy.compiled(), &path)).collect())
    }

    #[test]
    fn examples_come_out_as_the_rules_say() {
        let judged = judge(EXAMPLES, "examples.toml").unwrap();
        assert_eq!(judged[0].differs, Vec::<String>::new());
    }

    #[test]
    fn what_differs_is_said_with_the_reason() {
        let wrong = EXAMPLES.replace("db = \"far\"", "db = \"near\"").replace("web = \"near\", ", "");
        let differs = judge(&wrong, "examples.toml").unwrap().remove(0).differs;
        assert_eq!(differs.len(), 2, "{differs:?}");
        assert_eq!(differs[0], "web: the example does not say where it goes");
        assert!(differs[1].starts_with("db: expected near, came out as far: far: CPU compatible"), "{differs:?}");
    }

    #[test]
    fn json_does_as_well_and_a_wrong_file_is_refused() {
        let json = r#"{"examples": [{"name": "none", "containers": [{"name": "a"}], "expect": {"a": "stays"}}]}"#;
        assert!(judge(json, "examples.json").unwrap()[0].differs.is_empty());
        let error = judge(&EXAMPLES.replace("priority", "importance"), "examples.toml").unwrap_err();
        assert!(error.to_string().contains("importance"), "{error}");
        let error = judge(&EXAMPLES.replace("2GiB", "2 gig"), "examples.toml").unwrap_err();
        assert!(error.to_string().contains("is not a size"), "{error}");
    }
}
