//! Containers: half-made, frozen, and with a restart policy that was switched off.

use std::time::SystemTime;

use spothop_criu::cgroup::{CgroupVersion, Freezer};

use super::{Known, Owner, SUBJECT, Thing, words};
use crate::doctor::Check;
use crate::migration::Step;
use crate::orchestrator::{RestartPolicy, Trace};

pub(super) fn things(traces: &[Trace]) -> Vec<Thing> {
    let frozen = traces.iter().filter(|trace| trace.pid > 0 && !trace.paused).filter_map(|trace| {
        let freezer = Freezer::of_pid(trace.pid).ok()?;
        freezer.is_frozen().ok()?.then(|| frozen(trace, &freezer))
    });
    traces.iter().filter_map(half_made).chain(frozen).collect()
}

/// Made by a migration and never started.
fn half_made(trace: &Trace) -> Option<Thing> {
    let migration = trace.migration.clone().filter(|_| !trace.started)?;
    Some(Thing {
        what: format!("the half-made container {}", trace.name),
        owner: Owner::Migration(migration),
        since: trace.created.map(SystemTime::from),
        remove: format!("docker rm --volumes {}", trace.name),
        harms: false,
    })
}

fn frozen(trace: &Trace, freezer: &Freezer) -> Thing {
    let directory = freezer.directory().display();
    let remove = match freezer.version() {
        CgroupVersion::V1 => format!("echo THAWED > {directory}/freezer.state"),
        CgroupVersion::V2 => format!("echo 0 > {directory}/cgroup.freeze"),
    };
    Thing {
        what: format!("container {} stands still: its cgroup is frozen, and the engine has not paused it", trace.name),
        owner: Owner::Container { id: trace.id.clone(), name: trace.name.clone() },
        since: None,
        remove,
        harms: true,
    }
}

/// What the journal says has still to be undone, of migrations that are over but for that.
pub(super) fn undone(known: &Known, traces: &[Trace]) -> Vec<Check> {
    let checks = known.unsettled.iter().filter_map(|(id, step)| {
        let record = known.records.iter().find(|record| record.id == *id)?;
        let again = "the daemon tries again when it starts: systemctl restart spothop";
        let check = |what: String, advice: String| {
            Some(Check::warning(SUBJECT, format!("{what}, of {}", words(record)), advice))
        };
        match step {
            Step::HoldRestarts { container, policy } => {
                let trace = traces.iter().find(|trace| trace.id == *container)?;
                let held = trace.restart_policy.is_no() && !policy.is_no();
                let what =
                    format!("container {} has no restart policy any more, and had `{}`", trace.name, words_of(policy));
                let advice = format!("docker update --restart={} {}; or {again}", words_of(policy), trace.name);
                held.then(|| check(what, advice)).flatten()
            }
            // These are things that are looked for, and there or not.
            Step::Workspace { .. } | Step::Pending { .. } | Step::Create { .. } | Step::Freeze { .. } => None,
            Step::Silence { .. } | Step::Checkpoint | Step::Depart { .. } | Step::Made { .. } => None,
            Step::Lost { .. } | Step::Upload { .. } => None,
        }
    });
    checks.collect()
}

/// As `docker update --restart` takes it.
fn words_of(policy: &RestartPolicy) -> String {
    match policy.maximum_retries {
        0 => policy.name.clone(),
        retries => format!("{}:{retries}", policy.name),
    }
}
