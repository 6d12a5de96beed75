//! What is known of the migrations that a command waits for, from their events. Pure state.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use spothop_policy::Bytes;

use super::exit::Exit;
use super::show::span;
use crate::api::{Event, EventKind, Outcome};
use crate::config::units::show_duration;
use crate::migration::Phase;

/// One migration as far as its events told.
#[derive(Debug, Default)]
struct Seen {
    phases: Vec<(Phase, Timestamp)>,
    /// The last part announced, by what is being sent.
    progress: HashMap<String, u64>,
    outcome: Option<Outcome>,
}

/// The migrations that are waited for.
#[derive(Debug)]
pub(super) struct Watch {
    migrations: Vec<String>,
    seen: HashMap<String, Seen>,
}

/// Progress of one kind of bytes is printed as a line each time it passes another such part.
const PARTS: u64 = 4;

impl Watch {
    pub(super) fn new(migrations: &[String]) -> Self {
        Self { migrations: migrations.to_vec(), seen: HashMap::new() }
    }

    /// Takes note of an event; returns the line to print for it where there is no terminal, none when it says nothing new.
    /// After a reconnection the daemon tells everything once more: what was seen before is nothing new.
    pub(super) fn note(&mut self, event: &Event) -> Option<String> {
        let seen = self.seen.entry(event.migration.clone()).or_default();
        let name = &event.container;
        match &event.what {
            EventKind::Phase { phase } => {
                if seen.phases.iter().any(|(known, _)| known == phase) {
                    return None;
                }
                seen.phases.push((*phase, event.at));
                let start = seen.phases.first().map_or(event.at, |(_, at)| *at);
                Some(format!("{name}: {phase} (after {})", show_duration(span(start, event.at))))
            }
            EventKind::Progress { what, sent, total } => {
                let total = total.filter(|&total| total > 0)?;
                let part = (sent.saturating_mul(PARTS) / total).min(PARTS);
                let last = seen.progress.entry(what.clone()).or_default();
                if part <= *last {
                    return None;
                }
                *last = part;
                Some(format!("{name}: sending {what}: {} of {}", Bytes(*sent), Bytes(total)))
            }
            EventKind::Finished { outcome, reason } => {
                if seen.outcome.replace(*outcome).is_some() {
                    return None;
                }
                let because = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
                Some(match outcome {
                    Outcome::Moved => format!("{name}: moved"),
                    Outcome::Aborted => format!("{name}: aborted{because}"),
                })
            }
        }
    }

    /// Time since this migration's first event, as of another.
    pub(super) fn elapsed(&self, event: &Event) -> Duration {
        let first = self.seen.get(&event.migration).and_then(|seen| seen.phases.first());
        first.map_or(Duration::ZERO, |(_, at)| span(*at, event.at))
    }

    /// Whether every one has finished.
    pub(super) fn done(&self) -> bool {
        self.unfinished().is_empty()
    }

    /// Those that have not finished.
    pub(super) fn unfinished(&self) -> Vec<String> {
        let finished = |id: &&String| self.seen.get(*id).is_some_and(|seen| seen.outcome.is_some());
        self.migrations.iter().filter(|id| !finished(id)).cloned().collect()
    }

    /// The exit code for these ends: all moved, or at least one aborted.
    pub(super) fn exit(&self) -> Exit {
        let aborted = self.seen.values().any(|seen| seen.outcome == Some(Outcome::Aborted));
        if aborted { Exit::Aborted } else { Exit::Ok }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::Side;

    fn event(millis: i64, what: EventKind) -> Event {
        Event {
            migration: "m".to_owned(),
            side: Side::Source,
            container: "redis".to_owned(),
            at: Timestamp::from_millisecond(millis).unwrap(),
            what,
        }
    }

    fn progress(sent: u64) -> EventKind {
        EventKind::Progress { what: "memory".to_owned(), sent, total: Some(1 << 30) }
    }

    #[test]
    fn lines_are_printed_once_also_when_the_daemon_repeats_itself() {
        let mut watch = Watch::new(&["m".to_owned()]);
        let story = [
            event(0, EventKind::Phase { phase: Phase::Planned }),
            event(1_250, EventKind::Phase { phase: Phase::Frozen }),
            event(1_260, EventKind::Progress { what: "files".to_owned(), sent: 5, total: Some(5) }),
            event(1_270, EventKind::Progress { what: "image".to_owned(), sent: 5, total: None }),
            event(1_300, progress(10 << 20)),
            event(1_400, progress(300 << 20)),
            event(1_500, progress(400 << 20)),
            event(1_900, progress(1 << 30)),
            event(2_000, EventKind::Finished { outcome: Outcome::Moved, reason: None }),
        ];
        let lines: Vec<String> = story.iter().filter_map(|event| watch.note(event)).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        redis: planned (after 0 ms)
        redis: frozen (after 1.25 s)
        redis: sending files: 5 B of 5 B
        redis: sending memory: 300.0 MiB of 1.0 GiB
        redis: sending memory: 1.0 GiB of 1.0 GiB
        redis: moved
        ");
        assert!(story.iter().all(|event| watch.note(event).is_none()));
        assert_eq!(watch.elapsed(&story[7]), Duration::from_millis(1_900));
    }

    #[test]
    fn it_is_done_when_every_one_is_and_one_abort_decides_the_exit_code() {
        let mut watch = Watch::new(&["m".to_owned(), "n".to_owned()]);
        watch.note(&event(0, EventKind::Finished { outcome: Outcome::Moved, reason: None }));
        assert_eq!((watch.done(), watch.unfinished()), (false, vec!["n".to_owned()]));
        let mut other = event(0, EventKind::Finished { outcome: Outcome::Aborted, reason: Some("why".to_owned()) });
        other.migration = "n".to_owned();
        assert_eq!(watch.note(&other).unwrap(), "redis: aborted: why");
        assert_eq!((watch.done(), watch.exit()), (true, Exit::Aborted));
    }
}
