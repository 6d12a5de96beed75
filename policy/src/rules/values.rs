//! Containers and hosts as rules see them.
//!
//! Every field is always there and always of the same kind: what nobody knows is empty or 0. Only labels may be missing.

use std::collections::{BTreeMap, HashMap};

use cel::Value;

use crate::container::{Container, NetworkIdentity};
use crate::host::{Facts, Source};
use crate::plan::Request;

/// The variables of rules, with their fields.
pub const VARIABLES: [(&str, &[&str]); 4] = [
    ("container", &["name", "image", "priority", "memory_mib", "disk_mib", "cpus", "network", "labels", "groups"]),
    (
        "host",
        &[
            "name",
            "architecture",
            "kernel",
            "zone",
            "pool",
            "labels",
            "cpus",
            "load",
            "free_memory_mib",
            "free_disk_mib",
            "price",
            "spot",
            "placement_score",
            "notices",
            "runs",
            "groups",
        ],
    ),
    ("notice", &["cloud", "action", "certain", "seconds_left"]),
    ("source", &["name", "zone", "pool", "labels"]),
];

/// The fields of a variable.
pub(super) type Fields = Vec<(&'static str, Value)>;

pub(super) fn container(about: &Container) -> Fields {
    let network = match about.identity {
        NetworkIdentity::KeepIp => "keep-ip",
        NetworkIdentity::NewIp => "new-ip",
        NetworkIdentity::Host => "host",
        NetworkIdentity::None => "none",
    };
    vec![
        ("name", text(&about.name)),
        ("image", text(&about.image)),
        ("priority", Value::Int(about.priority)),
        ("memory_mib", mib(about.memory_bytes)),
        ("disk_mib", mib(about.disk_bytes)),
        ("cpus", Value::Float(about.cpu_milli as f64 / 1000.0)),
        ("network", text(network)),
        ("labels", labels(&about.labels)),
        ("groups", list(about.groups())),
    ]
}

pub(super) fn host(name: &str, facts: &Facts) -> Fields {
    vec![
        ("name", text(name)),
        ("architecture", text(&facts.architecture)),
        ("kernel", text(&facts.kernel.to_string())),
        ("zone", text(facts.zone.as_deref().unwrap_or_default())),
        ("pool", text(facts.pool.as_deref().unwrap_or_default())),
        ("labels", labels(&facts.labels)),
        ("cpus", Value::Int(facts.cpus.into())),
        ("load", Value::Float(facts.load_milli as f64 / 1000.0)),
        ("free_memory_mib", mib(facts.room_bytes())),
        ("free_disk_mib", mib(facts.free_disk_bytes)),
        ("price", Value::Float(facts.price_micros.unwrap_or(0) as f64 / 1e6)),
        ("spot", Value::Bool(facts.spot == Some(true))),
        ("placement_score", Value::Int(facts.placement_score.unwrap_or(0).into())),
        ("notices", Value::Int(facts.notices_last_day.into())),
        ("runs", list(facts.runs.iter().map(String::as_str))),
        ("groups", list(facts.groups.iter().map(String::as_str))),
    ]
}

pub(super) fn notice(request: &Request) -> Fields {
    let left = request.budget.map_or(-1, |budget| i64::try_from(budget.as_secs()).unwrap_or(i64::MAX));
    vec![
        ("cloud", text(&request.notice.cloud)),
        ("action", text(&request.notice.action)),
        ("certain", Value::Bool(request.notice.certain)),
        ("seconds_left", Value::Int(left)),
    ]
}

pub(super) fn source(about: &Source) -> Fields {
    vec![
        ("name", text(&about.name)),
        ("zone", text(about.zone.as_deref().unwrap_or_default())),
        ("pool", text(about.pool.as_deref().unwrap_or_default())),
        ("labels", labels(&about.labels)),
    ]
}

/// Those fields that somebody reads, as a map.
pub(super) fn map(fields: Fields, read: impl Fn(&str) -> bool) -> Value {
    let fields = fields.into_iter().filter(|(name, _)| read(name));
    fields.map(|(name, value)| (name.to_owned(), value)).collect::<HashMap<String, Value>>().into()
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned().into())
}

fn mib(bytes: u64) -> Value {
    // Below 2^44, so that it fits.
    Value::Int(i64::try_from(bytes >> 20).unwrap_or(i64::MAX))
}

fn labels(labels: &BTreeMap<String, String>) -> Value {
    labels.iter().map(|(key, value)| (key.clone(), text(value))).collect::<HashMap<String, Value>>().into()
}

fn list<'w>(words: impl Iterator<Item = &'w str>) -> Value {
    Value::List(words.map(text).collect::<Vec<Value>>().into())
}
