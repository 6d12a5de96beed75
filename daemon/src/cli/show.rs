//! The daemon's answers as text. Pure: an answer in, text out, each line ended.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use spothop_criu::log::FailureKind;
use spothop_policy::{Bytes, CpuVerdict, Fallback, HostState, Move, Plan, Stay, Times};

use super::table::Table;
use crate::api::{ContainerView, HostView, LogSummary, MachineView, MigrationView, Open, Outcome, ParkedView, Status};
use crate::config::units::show_duration;
use crate::inventory::STATIC;
use crate::migration::{MEMORY_LOST, Phase, Side};

/// `spothop ps`.
pub(super) fn containers(containers: &[ContainerView]) -> String {
    if containers.is_empty() {
        return "No containers are running.\n".to_owned();
    }
    let mut table = Table::new(&["NAME", "ID", "IMAGE", ">MEMORY", ">PRIORITY", "NETWORK", "MIGRATES"]);
    for container in containers {
        let migrates = match container.obstacles.as_slice() {
            [] => "yes".to_owned(),
            obstacles => format!("no: {}", obstacles.join("; ")),
        };
        table.row([
            container.name.clone(),
            container.id.chars().take(12).collect(),
            container.image.clone(),
            Bytes(container.memory_bytes).to_string(),
            container.priority.to_string(),
            container.network.clone(),
            migrates,
        ]);
    }
    table.render()
}

/// `spothop hosts`.
pub(super) fn hosts(hosts: &[HostView], now: Timestamp) -> String {
    if hosts.is_empty() {
        return "The inventory is empty; add [[peers]] or a source of [inventory] to the configuration.\n".to_owned();
    }
    let mut table = Table::new(&[
        "NAME", "ADDRESS", "SOURCE", "STATE", "ARCH", "KERNEL", "CRIU", ">ROOM", ">DISK", "CPU", "MACHINE",
    ]);
    for host in hosts {
        // The configuration does not grow old.
        let age = Duration::try_from(now.duration_since(host.told)).unwrap_or_default();
        let source = match host.source.as_str() {
            STATIC => STATIC.to_owned(),
            source => format!("{source}, {} ago", show_duration(age)),
        };
        let HostState::Reachable(facts) = &host.state else {
            let HostState::Unreachable { reason } = &host.state else { continue };
            let none = || "-".to_owned();
            let state = format!("unreachable: {reason}");
            table.row([
                host.name.clone(),
                host.address.clone(),
                source,
                state,
                none(),
                none(),
                none(),
                none(),
                none(),
                none(),
                none(),
            ]);
            continue;
        };
        let state = match (&facts.under_notice, &facts.declines) {
            (Some(notice), _) => format!("under notice: {notice}"),
            (None, Some(reason)) => format!("declines: {reason}"),
            (None, None) => "ready".to_owned(),
        };
        let cpu = match &facts.cpu {
            CpuVerdict::Compatible => "compatible".to_owned(),
            CpuVerdict::Incompatible { reason } => format!("incompatible: {reason}"),
            CpuVerdict::Unknown => "not checked".to_owned(),
        };
        table.row([
            host.name.clone(),
            host.address.clone(),
            source,
            state,
            facts.architecture.clone(),
            facts.kernel.to_string(),
            facts.criu.map_or_else(|| "missing".to_owned(), |criu| criu.to_string()),
            Bytes(facts.room_bytes()).to_string(),
            Bytes(facts.free_disk_bytes).to_string(),
            cpu,
            machine(&MachineView::of(facts)).unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table.render()
}

/// What is known of a machine, if anything is.
fn machine(about: &MachineView) -> Option<String> {
    Some(about.to_string()).filter(|text| !text.is_empty())
}

/// `spothop parked`.
pub(super) fn parked(parked: &[ParkedView], zone: &TimeZone) -> String {
    if parked.is_empty() {
        return "Nothing is parked there.\n".to_owned();
    }
    let mut table = Table::new(&["CONTAINER", "IMAGE", "FROM", "PARKED", ">MEMORY", ">STORED", "STATE", "CHECKPOINT"]);
    let time = |at: Timestamp| at.to_zoned(zone.clone()).strftime("%F %T").to_string();
    for one in parked {
        let state = match (&one.claimed_by, one.claimed_at) {
            (Some(host), Some(at)) => {
                format!("{} by {host} at {}", if one.restored { "restored" } else { "claimed" }, time(at))
            }
            _ if one.committed => "ready".to_owned(),
            _ => format!("not given away by {}", one.host),
        };
        table.row([
            one.container.clone(),
            one.image.clone(),
            one.host.clone(),
            time(one.created),
            Bytes(one.memory_bytes).to_string(),
            Bytes(one.stored_bytes).to_string(),
            state,
            one.url.clone(),
        ]);
    }
    table.render()
}

/// `spothop park`: the record, and what to do next.
pub(super) fn parking(checkpoint: &str, record: &MigrationView) -> String {
    let mut out = migration(record);
    if record.outcome == Some(Outcome::Moved) {
        let _ = writeln!(out, "Parked. On any host with the same key: spothop restore {checkpoint}");
    }
    out
}

/// `spothop plan`, and `--dry-run`.
pub(super) fn plan(plan: &Plan) -> String {
    if plan.moves.is_empty() && plan.stays.is_empty() {
        return "Nothing to move: no containers are running.\n".to_owned();
    }
    let mut out = String::new();
    for (n, planned) in plan.moves.iter().enumerate() {
        planned_move(&mut out, n + 1, planned);
    }
    stays(&mut out, &plan.stays);
    for note in &plan.notes {
        let _ = writeln!(out, "note: {note}");
    }
    out
}

fn planned_move(out: &mut String, number: usize, planned: &Move) {
    let Move { name, target, predicted, ends_after, fits_deadline, mode, why_mode, .. } = planned;
    let late = if *fits_deadline { "" } else { "; AFTER THE DEADLINE" };
    // Writing into a string cannot fail, here and below.
    let _ = writeln!(
        out,
        "{number}. {name} -> {target} by {mode}: takes {}, frozen for {}; done after {}{late}",
        show_duration(predicted.total),
        show_duration(predicted.frozen),
        show_duration(*ends_after)
    );
    if !why_mode.is_empty() {
        let _ = writeln!(out, "   why {mode}: {why_mode}");
    }
    next_best(out, planned.next_best.as_ref());
    for candidate in &planned.candidates {
        let mark = if candidate.host == *target { '*' } else { ' ' };
        let _ = writeln!(out, "   {mark} {}: {}", candidate.host, candidate.reason);
    }
    for refusal in &planned.refusals {
        let _ = writeln!(out, "   x {refusal}");
    }
}

/// The containers without a target, each with every reason.
pub(super) fn stays(out: &mut String, stays: &[Stay]) {
    for stay in stays {
        let _ = writeln!(out, "{} stays:", stay.name);
        next_best(out, stay.next_best.as_ref());
        for reason in stay.reasons() {
            let _ = writeln!(out, "   x {reason}");
        }
    }
}

/// What is done with a container that is not moved in time.
fn next_best(out: &mut String, next: Option<&Fallback>) {
    let Some(Fallback { then, target, takes, by, instead_of }) = next else { return };
    let target = target.as_ref().map(|host| format!(" on {host}")).unwrap_or_default();
    let takes = takes.map(|takes| format!(", takes {}", show_duration(takes))).unwrap_or_default();
    let _ = writeln!(out, "   > instead: {then}{target}{takes} ({by})");
    for reason in instead_of {
        let _ = writeln!(out, "     not {reason}");
    }
}

/// `spothop status`.
pub(super) fn status(status: &Status, now: Timestamp, zone: &TimeZone) -> String {
    let mut out = format!("{}: spothop {}, running since {}\n", status.host, status.version, time(status.since, zone));
    if let Some(machine) = machine(&status.machine) {
        let _ = writeln!(out, "{machine}");
    }
    for notice in &status.notices {
        let deadline = notice
            .deadline
            .map_or_else(|| "at any moment".to_owned(), |at| format!("at {} ({})", time(at, zone), left(at, now)));
        let (cloud, action, instance, certainty) = (notice.cloud, notice.action, &notice.instance, notice.certainty);
        let _ = writeln!(out, "NOTICE: {cloud} {certainty} {action} this host ({instance}) {deadline}");
    }
    if status.notices.is_empty() {
        out.push_str("no interruption notice\n");
    }
    if status.migrations.is_empty() {
        out.push_str("no migrations under way\n");
    } else {
        out.push('\n');
        out.push_str(&history(&status.migrations, zone));
    }
    out
}

fn left(deadline: Timestamp, now: Timestamp) -> String {
    match Duration::try_from(deadline.duration_since(now)) {
        Ok(left) => format!("in {}", show_duration(left)),
        Err(_) => "past".to_owned(),
    }
}

/// `spothop history`.
pub(super) fn history(migrations: &[MigrationView], zone: &TimeZone) -> String {
    if migrations.is_empty() {
        return "No migrations yet.\n".to_owned();
    }
    let mut table = Table::new(&[
        "STARTED",
        "ID",
        "CONTAINER",
        "WAY",
        "CAUSE",
        "STATE",
        ">TOOK (PREDICTED)",
        ">FROZEN (PREDICTED)",
        ">SENT",
    ]);
    for migration in migrations {
        table.row([
            migration.phases.first().map_or_else(|| "-".to_owned(), |entry| time(entry.at, zone)),
            migration.id.clone(),
            migration.container.clone(),
            match migration.side {
                Side::Source => format!("to {}", migration.peer),
                Side::Target => format!("from {}", migration.peer),
            },
            migration.cause.clone(),
            state(migration),
            both(migration, |times| times.total),
            both(migration, |times| times.frozen),
            Bytes(migration.bytes_sent).to_string(),
        ]);
    }
    table.render()
}

/// A measured time with the predicted one, as far as they are known: `1.42 s (1.60 s)`.
fn both(migration: &MigrationView, time: fn(&Times) -> Duration) -> String {
    let show = |times: &Times| show_duration(time(times));
    let measured = migration.measured.as_ref().map_or_else(|| "-".to_owned(), show);
    match &migration.predicted {
        None => measured,
        Some(predicted) => format!("{measured} ({})", show(predicted)),
    }
}

fn state(migration: &MigrationView) -> String {
    match (migration.outcome, &migration.reason) {
        (None, _) => migration.phase.to_string(),
        (Some(Outcome::Moved), _) => {
            lost(migration).map_or_else(|| "moved".to_owned(), |lost| format!("moved: {lost}"))
        }
        (Some(Outcome::Aborted), None) => "aborted".to_owned(),
        (Some(Outcome::Aborted), Some(reason)) => format!("aborted: {reason}"),
    }
}

/// What became of memory that was to follow, if it did not.
fn lost(migration: &MigrationView) -> Option<&str> {
    migration.reason.as_deref().filter(|reason| reason.starts_with(MEMORY_LOST))
}

/// One migration with its phases: when each was entered, counted from the first, and how long it lasted.
pub(super) fn migration(migration: &MigrationView) -> String {
    let MigrationView { id, container, peer, .. } = migration;
    let (from_to, stay) = match migration.side {
        Side::Source => ("to", "goes on on this host"),
        Side::Target => ("from", "goes on there"),
    };
    // What comes after the container runs is only tidying up.
    let last = migration.phases.iter().find(|entry| entry.phase == Phase::Running).or(migration.phases.last());
    let total = match (migration.phases.first(), last) {
        (Some(first), Some(last)) => span(first.at, last.at),
        _ => Duration::ZERO,
    };
    let mut out = format!("{container} {from_to} {peer} ({id}): ");
    let reason = migration.reason.as_deref().unwrap_or("no reason was recorded");
    let _ = match migration.outcome {
        None => writeln!(out, "{}", migration.phase),
        Some(Outcome::Aborted) => {
            writeln!(out, "aborted after {}; the container {stay}\n  because: {reason}", show_duration(total))
        }
        Some(Outcome::Moved) => {
            let predicted = |time: fn(&Times) -> Duration| {
                migration.predicted.as_ref().map(|times| format!(" (predicted {})", show_duration(time(times))))
            };
            let frozen = migration.measured.map(|measured| {
                let predicted = predicted(|times| times.frozen).unwrap_or_default();
                format!(", frozen for {}{predicted}", show_duration(measured.frozen))
            });
            writeln!(
                out,
                "moved in {}{}{}; {} sent, {} on the wire",
                show_duration(total),
                predicted(|times| times.total).unwrap_or_default(),
                frozen.unwrap_or_default(),
                Bytes(migration.bytes_sent),
                Bytes(migration.bytes_on_wire)
            )
            .and_then(|()| lost(migration).map_or(Ok(()), |lost| writeln!(out, "  but {lost}")))
        }
    };
    out.push_str(&timeline(migration));
    if let Some(log) = &migration.log {
        criu_log(&mut out, migration, log);
    }
    out
}

/// What is known about a migration that only a person can end.
pub(super) fn open(open: &Open) -> String {
    let MigrationView { id, peer, .. } = &open.migration;
    let mut out = migration(&open.migration);
    let _ = writeln!(out, "\n{}.", open.known);
    let _ = match &open.unreachable {
        Some(why) => writeln!(out, "{peer} does not answer: {why}"),
        None => writeln!(out, "{peer} answers, so this ends by itself."),
    };
    if let Some(at) = open.source_taken_away {
        let _ = writeln!(out, "The cloud takes the source away at {at}.");
    }
    if open.unreachable.is_some() {
        let _ = writeln!(out, "\nOnly if {peer} never comes back:");
        let _ = writeln!(out, "  spothop resolve {id} --here   {}", open.here);
        let _ = writeln!(out, "  spothop resolve {id} --there  {}", open.there);
    }
    out
}

/// Where CRIU's log is, and what it means if it says why.
fn criu_log(out: &mut String, migration: &MigrationView, log: &LogSummary) {
    // A dump that was given up because of somebody else says no more than that.
    let kind = log.triage.kind.filter(|kind| *kind != FailureKind::Script);
    if let (Some(Outcome::Aborted), Some(error), Some(kind)) = (migration.outcome, &log.triage.error, kind) {
        if !migration.reason.as_deref().is_some_and(|reason| reason.contains(error.as_str())) {
            let _ = writeln!(out, "  {}", log.triage);
        }
        let _ = writeln!(out, "  {}", kind.remedy());
    }
    let _ = writeln!(out, "  CRIU's log: {} (spothop status {} --log)", log.path.display(), migration.id);
}

fn timeline(migration: &MigrationView) -> String {
    let Some(first) = migration.phases.first() else {
        return String::new();
    };
    let mut table = Table::new(&["  PHASE", ">AFTER", ">LASTED"]);
    for (n, entry) in migration.phases.iter().enumerate() {
        let lasted = migration.phases.get(n + 1).map(|next| show_duration(span(entry.at, next.at)));
        table.row([format!("  {}", entry.phase), show_duration(span(first.at, entry.at)), lasted.unwrap_or_default()]);
    }
    table.render()
}

/// Time between two moments; zero if the clock was set back in between.
pub(super) fn span(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or_default()
}

fn time(at: Timestamp, zone: &TimeZone) -> String {
    at.to_zoned(zone.clone()).strftime("%F %T").to_string()
}

#[cfg(test)]
mod tests;
