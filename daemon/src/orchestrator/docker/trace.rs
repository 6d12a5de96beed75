//! Every container there is, as far as a search for leftovers wants to know it.

use std::time::Duration;

use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum};
use bollard::query_parameters::ListContainersOptionsBuilder;
use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::time::timeout;

use super::{Docker, made_by};
use crate::orchestrator::{Error, RestartPolicy};

/// The engine answers no question about a container that is being started, as a restored one is for seconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// A container, running or not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    /// The engine's id.
    pub id: String,
    /// Name without the leading slash.
    pub name: String,
    /// Its first process; 0 when it does not run.
    pub pid: i32,
    /// Paused through the engine.
    pub paused: bool,
    /// Whether it ever ran.
    pub started: bool,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// The migration that made it.
    pub migration: Option<String>,
    /// What the engine does when it ends.
    pub restart_policy: RestartPolicy,
}

impl Docker {
    /// All containers, those left out that are being started or go away meanwhile.
    ///
    /// # Errors
    /// The engine does not list them.
    pub async fn traces(&self) -> Result<Vec<Trace>, Error> {
        let all = ListContainersOptionsBuilder::new().all(true).build();
        let listed =
            self.client.list_containers(Some(all)).await.map_err(self.failed("list all containers".to_owned()))?;
        let ids: Vec<String> = listed.into_iter().filter_map(|container| container.id).collect();
        let looked = join_all(ids.iter().map(|id| timeout(PATIENCE, self.look_at(id)))).await;
        Ok(looked.into_iter().filter_map(|found| found.ok()?.ok()).map(trace).collect())
    }
}

fn trace(found: ContainerInspectResponse) -> Trace {
    let migration = made_by(&found).map(str::to_owned);
    let policy = found.host_config.and_then(|host| host.restart_policy);
    let state = found.state.unwrap_or_default();
    Trace {
        id: found.id.unwrap_or_default(),
        name: found.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        pid: state.pid.and_then(|pid| pid.try_into().ok()).unwrap_or_default(),
        paused: state.paused.unwrap_or_default(),
        started: state.status != Some(ContainerStateStatusEnum::CREATED),
        created: found.created.and_then(|at| at.to_string().parse().ok()),
        migration,
        restart_policy: RestartPolicy {
            name: policy.as_ref().and_then(|policy| policy.name).map(|name| name.to_string()).unwrap_or_default(),
            maximum_retries: policy.and_then(|policy| policy.maximum_retry_count).unwrap_or_default(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_a_migration_made_and_never_started_is_told_by_its_annotation() {
        let found = serde_json::json!({
            "Id": "c0ffee", "Name": "/redis", "Created": "2026-11-23T05:00:00.5Z",
            "State": {"Status": "created", "Pid": 0, "Paused": false},
            "HostConfig": {
                "Annotations": {"io.spothop.migration": "m1"}, "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}
            }
        });
        let trace = trace(serde_json::from_value(found).unwrap());
        assert_eq!((trace.name.as_str(), trace.pid, trace.started), ("redis", 0, false));
        assert_eq!(trace.migration.as_deref(), Some("m1"));
        assert_eq!(trace.created, Some("2026-11-23T05:00:00.5Z".parse().unwrap()));
        assert!(trace.restart_policy.is_no());
    }

    #[test]
    fn the_fixture_of_a_running_container_has_its_process() {
        let trace = trace(serde_json::from_str(include_str!("fixtures/inspect-28.json")).unwrap());
        assert!(trace.pid > 0 && trace.started && !trace.paused && trace.created.is_some(), "{trace:?}");
    }
}
