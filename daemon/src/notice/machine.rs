//! What a cloud's metadata service says of the machine itself: its type, its zone, and whether it is a spot machine.
//!
//! None of it changes while the machine runs, so each is asked for until there is an answer, and 404 is one: it is not said there. Where it is
//! said:
//!
//! | cloud | type | zone | spot |
//! |---|---|---|---|
//! | AWS | `instance-type` | `placement/availability-zone`, its id in `…-zone-id` | `instance-life-cycle` (`spot`) |
//! | Google | `machine-type` (`projects/N/machineTypes/T`) | `zone` (`projects/N/zones/Z`) | `scheduling/preemptible` (`TRUE`) |
//! | Azure | `vmSize` of `instance/compute` | `location` and `zone` of it | `priority` of it (`Spot`, `Low`) |
//! | Alibaba | `instance/instance-type` | `zone-id` | not said |
//! | Tencent | `instance/instance-type` | `placement/zone` | not said |
//!
//! From the documentation of each ("Instance metadata categories", "Predefined metadata keys", "Azure Instance Metadata Service", "View instance
//! metadata", "Querying instance metadata"). What an operator says in `[host]` stands before all of it.

#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use super::Cloud;
use super::metadata::{Service, identifier};

/// Between two rounds of questions that had no answer, the first and the longest. There is no hurry: this is for others' plans.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A metadata service answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is known of this machine; each is empty until somebody has said it.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// The zone it is in, in the cloud's own words.
    pub zone: Arc<OnceLock<String>>,
    /// The zone's id, which is the same for every account where the names of zones are not (AWS).
    pub zone_id: Arc<OnceLock<String>>,
    /// Its type, in the cloud's own words (`c7i.large`).
    pub machine_type: Arc<OnceLock<String>>,
    /// Whether the cloud may take it away at any time.
    pub spot: Arc<OnceLock<bool>>,
}

impl Machine {
    /// The pool of machines that are taken back together with this one: those of its type in its zone. None of a machine that nobody
    /// takes back, or of which that is not known.
    #[must_use]
    pub fn pool(&self) -> Option<String> {
        let (spot, kind, zone) = (self.spot.get()?, self.machine_type.get()?, self.zone.get()?);
        spot.then(|| format!("{kind}/{zone}"))
    }

    /// What the operator says, before anybody else does.
    pub(crate) fn say(&self, machine_type: Option<String>, zone: Option<String>, spot: Option<bool>) {
        learn(&self.machine_type, machine_type);
        learn(&self.zone, zone);
        learn(&self.spot, spot);
    }

    /// A fact that was heard; the first word stands.
    fn hear(&self, fact: Fact, text: &str) {
        match fact {
            Fact::Type => learn(&self.machine_type, identifier(last(text))),
            Fact::Zone => learn(&self.zone, identifier(last(text))),
            Fact::ZoneId => learn(&self.zone_id, identifier(text)),
            Fact::Spot => learn(&self.spot, Some(["spot", "TRUE"].contains(&text.trim()))),
            Fact::Compute => self.hear_compute(text),
        }
    }

    /// Azure says all of it in one document. Zones are numbers there, which mean something only in their location.
    fn hear_compute(&self, text: &str) {
        let Ok(document) = serde_json::from_str::<Value>(text) else { return };
        let word = |key: &str| document[key].as_str().and_then(identifier);
        learn(&self.machine_type, word("vmSize"));
        let zone = word("location").zip(word("zone")).map(|(location, zone)| format!("{location}-{zone}"));
        learn(&self.zone, zone);
        // "" is regular as well ("Azure Instance Metadata Service": Regular, Low or Spot).
        let spot = document["priority"].as_str().map(|priority| ["Spot", "Low"].contains(&priority));
        learn(&self.spot, spot);
    }
}

/// Something that a service says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fact {
    Type,
    Zone,
    ZoneId,
    Spot,
    /// Azure's document.
    Compute,
}

/// A path, its query, and what is found there.
type Question = (&'static str, &'static [(&'static str, &'static str)], Fact);

fn questions(cloud: Cloud) -> &'static [Question] {
    match cloud {
        Cloud::Aws => &[
            ("latest/meta-data/instance-type", &[], Fact::Type),
            ("latest/meta-data/placement/availability-zone", &[], Fact::Zone),
            ("latest/meta-data/placement/availability-zone-id", &[], Fact::ZoneId),
            ("latest/meta-data/instance-life-cycle", &[], Fact::Spot),
        ],
        Cloud::Gcp => &[
            ("computeMetadata/v1/instance/machine-type", &[], Fact::Type),
            ("computeMetadata/v1/instance/zone", &[], Fact::Zone),
            ("computeMetadata/v1/instance/scheduling/preemptible", &[], Fact::Spot),
        ],
        Cloud::Azure => &[("metadata/instance/compute", super::azure::COMPUTE_QUERY, Fact::Compute)],
        Cloud::Alibaba => &[
            ("latest/meta-data/instance/instance-type", &[], Fact::Type),
            ("latest/meta-data/zone-id", &[], Fact::Zone),
        ],
        Cloud::Tencent => &[
            ("latest/meta-data/instance/instance-type", &[], Fact::Type),
            ("latest/meta-data/placement/zone", &[], Fact::Zone),
        ],
        Cloud::Machine | Cloud::Webhook => &[],
    }
}

/// Asks one of these addresses of the cloud's service until everything has an answer, whatever it is.
pub(super) async fn ask(cloud: Cloud, services: &mut [Service], machine: &Machine) {
    let mut open: Vec<&Question> = questions(cloud).iter().collect();
    let mut pause = PAUSES.0;
    loop {
        for service in services.iter_mut() {
            open = ask_one(service, open, machine).await;
        }
        if open.is_empty() {
            let (kind, zone) = (machine.machine_type.get(), machine.zone.get());
            tracing::info!(%cloud, ?kind, ?zone, spot = ?machine.spot.get(), "what is known of this machine");
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Returns what has no answer yet.
async fn ask_one<'q>(service: &mut Service, open: Vec<&'q Question>, machine: &Machine) -> Vec<&'q Question> {
    let mut left = Vec::new();
    for question in open {
        let (path, query, fact) = *question;
        match service.ask(path, query, PATIENCE).await {
            Ok(Some(answer)) => machine.hear(fact, &answer.body),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!("what this machine is cannot be asked yet: {error}");
                left.push(question);
            }
        }
    }
    left
}

fn learn<T>(what: &OnceLock<T>, word: Option<T>) {
    if let Some(word) = word {
        // Whoever said it first is believed.
        let _ = what.set(word);
    }
}

/// The name at the end of a path: Google's types and zones have their project in front.
fn last(text: &str) -> &str {
    let text = text.trim();
    text.rsplit('/').next().unwrap_or(text)
}
