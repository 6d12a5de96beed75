//! A migration's row as the rest of the program sees it.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Row;
use spothop_policy::Times;

use super::{JournalError, unreadable};
use crate::api::{MigrationView, Outcome, PhaseEntry};
use crate::migration::{Phase, Side, Verdict};

pub(super) fn parse_phase(id: &str, word: &str) -> Result<Phase, JournalError> {
    word.parse().map_err(|_| unreadable(id, "phase", word))
}

pub(super) fn parse_verdict(id: &str, word: &str) -> Result<Verdict, JournalError> {
    [Verdict::Commit, Verdict::Abort]
        .into_iter()
        .find(|verdict| verdict.to_string() == word)
        .ok_or_else(|| unreadable(id, "verdict", word))
}

pub(super) fn parse_time(id: &str, field: &'static str, text: &str) -> Result<Timestamp, JournalError> {
    text.parse().map_err(|_| unreadable(id, field, text))
}

/// A row before its words are understood.
pub(super) struct RawMigration {
    id: String,
    side: String,
    container_id: String,
    container: String,
    peer: String,
    cause: String,
    deadline: Option<String>,
    phase: String,
    verdict: Option<String>,
    reason: Option<String>,
    bytes_sent: i64,
    bytes_on_wire: i64,
    phases: String,
    predicted: Option<(i64, i64)>,
}

impl RawMigration {
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            side: row.get(1)?,
            container_id: row.get(2)?,
            container: row.get(3)?,
            peer: row.get(4)?,
            cause: row.get(5)?,
            deadline: row.get(6)?,
            phase: row.get(7)?,
            verdict: row.get(8)?,
            reason: row.get(9)?,
            bytes_sent: row.get(10)?,
            bytes_on_wire: row.get(11)?,
            phases: row.get(12)?,
            predicted: row.get::<_, Option<i64>>(13)?.zip(row.get(14)?),
        })
    }

    pub(super) fn parse(self) -> Result<MigrationView, JournalError> {
        let id = &self.id;
        let side = [Side::Source, Side::Target]
            .into_iter()
            .find(|side| side.to_string() == self.side)
            .ok_or_else(|| unreadable(id, "side", &self.side))?;
        let entries: Vec<(String, String)> =
            serde_json::from_str(&self.phases).map_err(|_| unreadable(id, "phases", &self.phases))?;
        let phases = entries
            .iter()
            .map(|(phase, at)| Ok(PhaseEntry { phase: parse_phase(id, phase)?, at: parse_time(id, "time", at)? }))
            .collect::<Result<Vec<_>, JournalError>>()?;
        let verdict = self.verdict.as_deref().map(|word| parse_verdict(id, word)).transpose()?;
        let outcome = match verdict {
            Some(Verdict::Abort) => Some(Outcome::Aborted),
            Some(Verdict::Commit) if phases.iter().any(|entry| entry.phase == Phase::Running) => Some(Outcome::Moved),
            Some(Verdict::Commit) | None => None,
        };
        let millis = |ms: i64| Duration::from_millis(ms.unsigned_abs());
        let mut view = MigrationView {
            side,
            deadline: self.deadline.as_deref().map(|at| parse_time(id, "deadline", at)).transpose()?,
            phase: parse_phase(id, &self.phase)?,
            outcome,
            phases,
            bytes_sent: self.bytes_sent.unsigned_abs(),
            bytes_on_wire: self.bytes_on_wire.unsigned_abs(),
            container_id: self.container_id,
            container: self.container,
            peer: self.peer,
            cause: self.cause,
            reason: self.reason,
            predicted: self.predicted.map(|(total, frozen)| Times { total: millis(total), frozen: millis(frozen) }),
            measured: None,
            log: None,
            id: self.id,
        };
        view.measured = view.times();
        Ok(view)
    }
}
