//! What migrations have measured, for the predictions of the next.

use std::collections::HashMap;

use jiff::Timestamp;
use rusqlite::params;
use spothop_policy::{Counted, Leaves, Sample};

use super::{Journal, JournalError};
use crate::migration::{Phase, Side};

impl Journal {
    /// Records what the source counted, once for each migration: of a second attempt at the same, the last.
    ///
    /// # Errors
    /// The database failed.
    pub fn count(&self, id: &str, peer: &str, counted: &Counted) -> Result<(), JournalError> {
        self.transact("recorded what was counted", |tx| {
            // Numbers and words are always JSON.
            let counted = serde_json::to_string(counted).unwrap_or_default();
            tx.execute(
                "INSERT OR REPLACE INTO measurement (migration, peer, counted) VALUES (?1, ?2, ?3)",
                [id, peer, &counted],
            )?;
            Ok(())
        })
    }

    /// Containers, by their ids here, with an aborted migration whose memory was to follow, and how it went.
    ///
    /// # Errors
    /// The database failed.
    pub fn aborted_while_following(&self) -> Result<HashMap<String, Leaves>, JournalError> {
        const SQL: &str = "
            SELECT DISTINCT m.container_id FROM measurement s JOIN migration m ON m.id = s.migration AND m.side = ?1
            WHERE m.verdict = 'abort' AND s.counted ->> '$.leaves' = ?2";
        let values = [Side::Source.to_string(), Leaves::PostCopy.to_string()];
        let ids: Vec<String> =
            self.read("read measurements", |c| c.prepare_cached(SQL)?.query_map(values, |row| row.get(0))?.collect())?;
        Ok(ids.into_iter().map(|id| (id, Leaves::PostCopy)).collect())
    }

    /// What migrations from here measured whose container runs at its target, the newest first, and at most `each` of them for
    /// each target. One that another version has written and that cannot be read is left out.
    ///
    /// # Errors
    /// The database failed.
    pub fn samples(&self, each: u32) -> Result<Vec<Sample>, JournalError> {
        const SQL: &str = "
            SELECT counted, container, peer,
                   (SELECT at FROM phase_entry e WHERE e.migration = id AND e.side = ?2 AND e.phase = ?3),
                   (SELECT at FROM phase_entry e WHERE e.migration = id AND e.side = ?2 AND e.phase = ?4),
                   (SELECT at FROM phase_entry e WHERE e.migration = id AND e.side = ?2 AND e.phase = ?5)
            FROM (SELECT s.number, s.counted, m.id, m.container, s.peer,
                         ROW_NUMBER() OVER (PARTITION BY s.peer ORDER BY s.number DESC) AS age
                  FROM measurement s JOIN migration m ON m.id = s.migration AND m.side = ?2
                  WHERE m.verdict = 'commit' AND m.phase IN (?5, ?6))
            WHERE age <= ?1 ORDER BY number DESC";
        type Raw = (String, String, String, Option<String>, Option<String>, Option<String>);
        let phases = [Phase::Planned, Phase::Frozen, Phase::Running, Phase::Cleaned];
        let [planned, frozen, running, cleaned] = phases.map(|phase| phase.to_string());
        let raw: Vec<Raw> = self.read("read measurements", |c| {
            let values = params![each, Side::Source.to_string(), planned, frozen, running, cleaned];
            c.prepare_cached(SQL)?.query_map(values, |row| row.try_into())?.collect()
        })?;
        Ok(raw
            .into_iter()
            .filter_map(|(counted, container, peer, planned, frozen, running)| {
                let at = |text: Option<String>| text?.parse::<Timestamp>().ok();
                let (planned, frozen, running) = (at(planned)?, at(frozen)?, at(running)?);
                let counted = serde_json::from_str(&counted).ok()?;
                // None of a clock that was set back meanwhile.
                let until_frozen = frozen.duration_since(planned).try_into().ok()?;
                let frozen_for = running.duration_since(frozen).try_into().ok()?;
                Some(Sample { peer, container, counted, until_frozen, frozen_for })
            })
            .collect())
    }
}
