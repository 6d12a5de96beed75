//! What is told, as docs/webhooks.md has it: the envelope that Standard Webhooks recommends, with what happened in `data`.

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::{Accepted, MigrationView, Outcome};
use crate::config::notification::Kind;
use crate::notice::Notice;

/// Something to tell.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    id: String,
    kind: Kind,
    at: Timestamp,
    data: Value,
    /// The cloud's id of this host, where it is about that and known.
    instance: Option<String>,
}

impl Message {
    fn new(kind: Kind, data: Value) -> Self {
        Self { id: format!("msg_{}", Uuid::now_v7().simple()), kind, at: Timestamp::now(), data, instance: None }
    }

    /// A notice was received, or has changed.
    pub(crate) fn received(host: &str, notice: &Notice) -> Self {
        Self::new(Kind::NoticeReceived, json!({ "host": host, "notice": notice }))
    }

    /// A notice was withdrawn.
    pub(crate) fn withdrawn(host: &str, notice: &str) -> Self {
        Self::new(Kind::NoticeWithdrawn, json!({ "host": host, "notice": { "id": notice } }))
    }

    /// Containers begin to leave.
    pub(crate) fn started(host: &str, notice: &str, accepted: &Accepted) -> Self {
        let stays = accepted.plan.stays.iter().map(|stay| json!({ "container": stay.name, "reasons": stay.reasons() }));
        let data = json!({
            "host": host, "evacuation": notice, "migrations": accepted.migrations, "stays": stays.collect::<Vec<_>>(),
        });
        Self::new(Kind::EvacuationStarted, data)
    }

    /// Nothing is left on this host.
    pub(crate) fn finished(host: &str, notice: &Notice) -> Self {
        let instance = Some(notice.instance.clone());
        Self { instance, ..Self::new(Kind::EvacuationFinished, json!({ "host": host, "evacuation": notice.id })) }
    }

    /// The time of a notice is over, and something is left.
    pub(crate) fn failed(host: &str, notice: &Notice) -> Self {
        let data = json!({ "host": host, "evacuation": notice.id, "deadline": notice.deadline });
        Self::new(Kind::EvacuationFailed, data)
    }

    /// A migration from this host has ended.
    pub(crate) fn ended(host: &str, view: &MigrationView) -> Self {
        let moved = view.outcome == Some(Outcome::Moved);
        let milliseconds = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let data = json!({
            "host": host,
            "migration": view.id,
            "container": view.container,
            "cause": view.cause,
            "target": view.peer,
            "reason": view.reason,
            "total_ms": view.measured.as_ref().map(|times| milliseconds(times.total)),
            "frozen_ms": view.measured.as_ref().map(|times| milliseconds(times.frozen)),
        });
        Self::new(if moved { Kind::ContainerMoved } else { Kind::ContainerStayed }, data)
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn instance(&self) -> Option<&str> {
        self.instance.as_deref()
    }

    pub(super) fn to_json(&self) -> String {
        json!({ "type": self.kind.name(), "timestamp": self.at, "data": self.data }).to_string()
    }
}
