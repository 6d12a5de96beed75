//! The words of the protocol: phases, verdicts, outcomes. The same in code, journal, logs, metrics and CLI.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How far a migration has come, on either side.
///
/// The order of the variants is the order of the protocol; [`Phase::may_follow`] is its transition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Phase {
    /// Policy chose a target; nothing has been asked of it yet.
    Planned,
    /// The target granted room for the container.
    Reserved,
    /// The target holds image, volumes, filesystem and a container whose `create` waits for the memory.
    Prepared,
    /// Round `n` of sending memory while the container runs.
    PreCopy(u32),
    /// The container's tasks are frozen. Downtime starts here.
    Frozen,
    /// The target holds every byte, verified.
    Transferred,
    /// The target restored the tasks and keeps them stopped.
    Restored,
    /// COMMIT is durable in the source's journal: the target runs, the source never again.
    Committed,
    /// The target's tasks run. Downtime ends here.
    Running,
    /// Nothing of the migration is left on this side but its record.
    Cleaned,
    /// ABORT is durable: the source runs on, the target lets go.
    Aborted,
}

impl Phase {
    /// Whether the journal may record `self` right after `before`.
    ///
    /// Forward moves may skip only [`Phase::PreCopy`]; a round may follow a round with the next number; ABORT may come
    /// from anywhere before COMMIT, and after it at the source alone, when the target gives back what it never ran
    /// ([`super::protocol`]); `Cleaned` ends both ways.
    #[must_use]
    pub fn may_follow(self, before: Phase) -> bool {
        use Phase::*;
        match (before, self) {
            (Planned, Reserved)
            | (Reserved, Prepared)
            | (Prepared, PreCopy(1) | Frozen)
            | (PreCopy(_), Frozen)
            | (Frozen, Transferred)
            | (Transferred, Restored)
            | (Restored, Committed)
            | (Committed, Running)
            | (Running | Aborted, Cleaned) => true,
            (PreCopy(n), PreCopy(m)) => n.checked_add(1) == Some(m),
            (Planned | Reserved | Prepared | PreCopy(_) | Frozen | Transferred | Restored | Committed, Aborted) => true,
            _ => false,
        }
    }

    /// Whether this side after a power cut, or the other side, acts upon this one having entered it: then it must be on disk before
    /// anything else happens.
    ///
    /// - A power cut kills frozen tasks, and what else there is to undo are intents of their own. A source that comes back from it aborts
    ///   by itself before its deadline, whatever it had sent, and is not started again after that where the target may open the fence.
    /// - The target may give up by itself until it has restored, whatever has arrived.
    /// - That the target has restored is followed by COMMIT at the source, which is on disk together with it.
    #[must_use]
    pub fn is_acted_upon(self, by: Side) -> bool {
        !matches!((by, self), (_, Phase::Frozen | Phase::Transferred) | (Side::Source, Phase::Restored))
    }

    /// Whether nothing follows.
    #[must_use]
    pub fn is_final(self) -> bool {
        self == Phase::Cleaned
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self {
            Phase::Planned => "planned",
            Phase::Reserved => "reserved",
            Phase::Prepared => "prepared",
            Phase::PreCopy(round) => return f.pad(&format!("pre-copy({round})")),
            Phase::Frozen => "frozen",
            Phase::Transferred => "transferred",
            Phase::Restored => "restored",
            Phase::Committed => "committed",
            Phase::Running => "running",
            Phase::Cleaned => "cleaned",
            Phase::Aborted => "aborted",
        };
        f.pad(word)
    }
}

/// A word that names no phase, as found in a journal written by another version.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no phase of a migration")]
pub struct UnknownPhase(String);

impl FromStr for Phase {
    type Err = UnknownPhase;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let plain = [
            Phase::Planned,
            Phase::Reserved,
            Phase::Prepared,
            Phase::Frozen,
            Phase::Transferred,
            Phase::Restored,
            Phase::Committed,
            Phase::Running,
            Phase::Cleaned,
            Phase::Aborted,
        ];
        if let Some(phase) = plain.into_iter().find(|phase| phase.to_string() == word) {
            return Ok(phase);
        }
        word.strip_prefix("pre-copy(")
            .and_then(|rest| rest.strip_suffix(')'))
            .and_then(|round| round.parse().ok())
            .map(Phase::PreCopy)
            .ok_or_else(|| UnknownPhase(word.to_owned()))
    }
}

impl From<Phase> for String {
    fn from(phase: Phase) -> Self {
        phase.to_string()
    }
}

impl TryFrom<String> for Phase {
    type Error = UnknownPhase;

    fn try_from(word: String) -> Result<Self, UnknownPhase> {
        word.parse()
    }
}

/// The one decision of a migration. COMMIT and ABORT exclude each other; the first one written stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The target runs; the source's tasks are killed.
    Commit,
    /// The source runs on; the target's tasks are killed.
    Abort,
}

impl Verdict {
    /// The phase that records it.
    #[must_use]
    pub fn phase(self) -> Phase {
        match self {
            Verdict::Commit => Phase::Committed,
            Verdict::Abort => Phase::Aborted,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Commit => "commit",
            Verdict::Abort => "abort",
        })
    }
}

/// Which end of a migration this host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The container leaves this host.
    Source,
    /// The container comes to this host.
    Target,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Side::Source => "source",
            Side::Target => "target",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Phase; 12] = [
        Phase::Planned,
        Phase::Reserved,
        Phase::Prepared,
        Phase::PreCopy(1),
        Phase::PreCopy(2),
        Phase::Frozen,
        Phase::Transferred,
        Phase::Restored,
        Phase::Committed,
        Phase::Running,
        Phase::Cleaned,
        Phase::Aborted,
    ];

    #[test]
    fn every_phase_reads_back_as_it_was_written() {
        for phase in ALL {
            assert_eq!(phase.to_string().parse::<Phase>().unwrap(), phase);
        }
        // Those who read our JSON compare words.
        let json = serde_json::to_string(&Phase::PreCopy(3)).unwrap();
        assert_eq!(
            (json.as_str(), serde_json::from_str::<Phase>(&json).unwrap()),
            (r#""pre-copy(3)""#, Phase::PreCopy(3))
        );
        assert!("pre-copy(x)".parse::<Phase>().is_err());
        assert!("".parse::<Phase>().is_err());
    }

    #[test]
    fn no_abort_once_the_target_runs_and_no_commit_after_abort() {
        for before in [Phase::Running, Phase::Cleaned] {
            assert!(!Phase::Aborted.may_follow(before));
        }
        for after in ALL {
            assert_eq!(after.may_follow(Phase::Aborted), after == Phase::Cleaned);
        }
    }

    #[test]
    fn what_either_side_acts_upon_is_on_disk() {
        let written = |side| ALL.into_iter().filter(|phase| !phase.is_acted_upon(side)).collect::<Vec<_>>();
        assert_eq!(written(Side::Source), [Phase::Frozen, Phase::Transferred, Phase::Restored]);
        assert_eq!(written(Side::Target), [Phase::Frozen, Phase::Transferred]);
    }

    #[test]
    fn commit_has_exactly_one_predecessor() {
        let before: Vec<_> = ALL.into_iter().filter(|&p| Phase::Committed.may_follow(p)).collect();
        assert_eq!(before, [Phase::Restored]);
    }
}
