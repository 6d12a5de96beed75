//! The tree of metadata: paths below the version, and their values.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::json;

use super::{Action, Instance, Notice};

/// What is found at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// A value.
    Value(String),
    /// Names of what is below, one a line, a `/` after those that have something below.
    Listing(String),
}

/// What is at `path`, which has no slash in front; `None` is 404.
pub(super) fn find(path: &str, instance: &Instance, notice: Option<Notice>) -> Option<Found> {
    let values = values(instance, notice);
    if let Some(value) = values.get(path) {
        return Some(Found::Value(value.clone()));
    }
    let directory = match path.trim_end_matches('/') {
        "" => String::new(),
        path => format!("{path}/"),
    };
    let names: BTreeSet<&str> = values
        .keys()
        .filter_map(|key| key.strip_prefix(&directory))
        .map(|rest| rest.find('/').map_or(rest, |slash| &rest[..=slash]))
        .collect();
    if names.is_empty() {
        return None;
    }
    Some(Found::Listing(names.into_iter().collect::<Vec<_>>().join("\n")))
}

/// All there is to tell. `spot/` is there only while a notice is out, and `spot/termination-time` only when the action is to
/// terminate.
fn values(instance: &Instance, notice: Option<Notice>) -> BTreeMap<&'static str, String> {
    let region = instance.zone.trim_end_matches(|letter: char| letter.is_ascii_lowercase());
    let mut values = BTreeMap::from([
        ("meta-data/ami-id", "ami-0123456789abcdef0".to_owned()),
        ("meta-data/hostname", instance.name.clone()),
        // What the instance's bundling is to do (not the spot notice): nothing, always.
        ("meta-data/instance-action", "none".to_owned()),
        ("meta-data/instance-id", instance.id.clone()),
        ("meta-data/instance-life-cycle", "spot".to_owned()),
        ("meta-data/instance-type", instance.kind.clone()),
        ("meta-data/local-hostname", instance.name.clone()),
        ("meta-data/local-ipv4", instance.address.to_string()),
        ("meta-data/mac", instance.mac.clone()),
        ("meta-data/placement/availability-zone", instance.zone.clone()),
        // The same zone for every account; `euc1-az1` and the like.
        ("meta-data/placement/availability-zone-id", zone_id(&instance.zone)),
        ("meta-data/placement/region", region.to_owned()),
        ("meta-data/services/domain", "amazonaws.com".to_owned()),
        ("meta-data/services/partition", "aws".to_owned()),
        ("dynamic/instance-identity/document", identity_document(instance, region)),
    ]);
    if let Some(notice) = notice {
        let time = seconds(notice.time);
        let action = json!({"action": notice.action, "time": time});
        values.insert("meta-data/spot/instance-action", action.to_string());
        if notice.action == Action::Terminate {
            values.insert("meta-data/spot/termination-time", time);
        }
    }
    values
}

/// `eu-central-1b` is `euc1-az2` here; for a real account any letter may be any number.
fn zone_id(zone: &str) -> String {
    let parts: Vec<&str> = zone.split('-').collect();
    let [area, direction, last] = parts[..] else { return zone.to_owned() };
    let letter = last.bytes().last().unwrap_or(b'a');
    let number = last.trim_end_matches(|letter: char| letter.is_ascii_lowercase());
    format!("{area}{}{number}-az{}", &direction[..1], u32::from(letter.saturating_sub(b'a')) + 1)
}

/// ISO 8601 in UTC without fractions, like `2017-09-18T08:22:00Z`.
pub(super) fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn identity_document(instance: &Instance, region: &str) -> String {
    let document = json!({
        "accountId": "123456789012",
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" },
        "availabilityZone": instance.zone,
        "billingProducts": null,
        "devpayProductCodes": null,
        "marketplaceProductCodes": null,
        "imageId": "ami-0123456789abcdef0",
        "instanceId": instance.id,
        "instanceType": instance.kind,
        "kernelId": null,
        "pendingTime": "2026-01-01T00:00:00Z",
        "privateIp": instance.address,
        "ramdiskId": null,
        "region": region,
        "version": "2017-09-30",
    });
    format!("{document:#}")
}
