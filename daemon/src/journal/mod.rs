//! The journal: what was decided and what was done, durable before anybody acts on it.
//!
//! SQLite, because several processes share it (the daemon, CRIU's action script) and an operator can read it with
//! `sqlite3 /var/lib/spothop/journal.db`. WAL with `synchronous=FULL`: a call that returned is on disk. Calls block for an
//! fsync (milliseconds, more than any other step of a freeze); async callers go through `spawn_blocking`.
//!
//! What nobody acts upon, neither this side after a power cut nor the other one, is written without that fsync: bytes, and the phases
//! for which [`Phase::is_acted_upon`] says no. It outlives the daemon, and is on disk with the next thing that must be.
//!
//! It holds the recipes of containers that are coming, their environment among them: a daemon that comes back must be able to make
//! and unmake them. So it is root's alone (mode 0600), and nothing of a recipe is ever logged.

mod ballast;
mod error;
mod measurement;
mod record;
mod schema;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use spothop_policy::Times;

pub use self::error::JournalError;
use self::record::{RawMigration, parse_phase, parse_time, parse_verdict};
use crate::api::MigrationView;
use crate::migration::protocol::Occasion;
use crate::migration::{Phase, Side, Step, Verdict};
use crate::orchestrator::OldCopy;

/// Where the daemon keeps it.
pub const DEFAULT_PATH: &str = "/var/lib/spothop/journal.db";

/// A migration as it enters the journal, in [`Phase::Planned`].
#[derive(Debug, Clone)]
pub struct NewMigration {
    /// UUIDv7, the same on both sides.
    pub id: String,
    /// Which end this host is.
    pub side: Side,
    /// The engine's id of the container on this host; empty if it has none yet.
    pub container_id: String,
    /// Its name.
    pub container: String,
    /// The other host's name.
    pub peer: String,
    /// A notice's id, or `manual`.
    pub cause: String,
    /// When the source host is taken away, if it is.
    pub deadline: Option<Timestamp>,
    /// How long it was predicted to take; the source alone knows.
    pub predicted: Option<Times>,
}

/// A side effect in the journal; [`Journal::settled`] takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepId(i64);

/// The open journal. Cheap calls, one at a time; share it in an `Arc`.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Journal {
    /// Opens the journal, making it (and its directory, mode 0700) if there is none.
    ///
    /// # Errors
    /// The directory or database cannot be made or read, or comes from a newer version.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        if let Some(directory) = path.parent() {
            use std::os::unix::fs::DirBuilderExt as _;
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|source| JournalError::Directory { path: directory.to_owned(), source })?;
        }
        Ok(Self { path: path.to_owned(), connection: Mutex::new(schema::open(path)?) })
    }

    /// Writes down a new migration in [`Phase::Planned`].
    ///
    /// # Errors
    /// This side of it is known already, the disk is too full to bring it to an end, or the database failed.
    pub fn begin(&self, new: &NewMigration, at: Timestamp) -> Result<(), JournalError> {
        ballast::take_in(&self.path).map_err(|source| JournalError::NoRoom { path: self.path.clone(), source })?;
        self.transact("began a migration", |tx| {
            let added = tx.execute(
                "INSERT INTO migration (id, side, container_id, container, peer, cause, deadline, phase, predicted_total_ms,
                                        predicted_frozen_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT DO NOTHING",
                params![
                    new.id,
                    new.side.to_string(),
                    new.container_id,
                    new.container,
                    new.peer,
                    new.cause,
                    new.deadline.map(|deadline| deadline.to_string()),
                    Phase::Planned.to_string(),
                    new.predicted.map(|times| millis(times.total)),
                    new.predicted.map(|times| millis(times.frozen)),
                ],
            )?;
            if added == 0 {
                return Ok(Err(JournalError::Known { id: new.id.clone(), side: new.side }));
            }
            note_phase(tx, &new.id, new.side, Phase::Planned, at)?;
            Ok(Ok(()))
        })?
    }

    /// Records that a phase was entered; on disk when this returns, if [anybody acts upon it](Phase::is_acted_upon).
    ///
    /// # Errors
    /// The migration is unknown, the order is illegal, or the database failed. [`Phase::Committed`] and
    /// [`Phase::Aborted`] are entered by [`Journal::decide`] alone.
    pub fn enter(&self, id: &str, side: Side, phase: Phase, at: Timestamp) -> Result<(), JournalError> {
        let lasting = if phase.is_acted_upon(side) { Lasting::OnDisk } else { Lasting::Written };
        self.write(lasting, "entered a phase", |tx| {
            let before = match Standing::read(tx, id, side)? {
                Ok(standing) => standing.phase,
                Err(error) => return Ok(Err(error)),
            };
            if before == phase {
                return Ok(Ok(()));
            }
            if matches!(phase, Phase::Committed | Phase::Aborted) || !phase.may_follow(before) {
                return Ok(Err(illegal(id, side, before, phase)));
            }
            note_phase(tx, id, side, phase, at)?;
            Ok(Ok(()))
        })?
    }

    /// The compare-and-set: writes `wanted` if nothing is decided yet, and returns the verdict that stands.
    ///
    /// It is on disk when this returns. COMMIT is taken only in [`Phase::Restored`].
    ///
    /// # Errors
    /// The migration is unknown, COMMIT comes too early, ABORT is the target's to decide ([`JournalError::TargetDecides`]), or the
    /// database failed: then nothing is decided.
    pub fn decide(
        &self,
        id: &str,
        side: Side,
        wanted: Verdict,
        reason: Option<&str>,
        at: Timestamp,
    ) -> Result<Verdict, JournalError> {
        self.transact("decided", |tx| {
            let standing = match Standing::read(tx, id, side)? {
                Ok(standing) => standing,
                Err(error) => return Ok(Err(error)),
            };
            if let Some(verdict) = standing.verdict {
                return Ok(Ok(verdict));
            }
            let after = wanted.phase();
            if !after.may_follow(standing.phase) {
                return Ok(Err(illegal(id, side, standing.phase, after)));
            }
            if side == Side::Source && wanted == Verdict::Abort && !standing.may_abort_alone(at) {
                return Ok(Err(JournalError::TargetDecides { id: id.to_owned() }));
            }
            note_verdict(tx, id, side, wanted, reason, at)?;
            Ok(Ok(wanted))
        })?
    }

    /// At the source: writes down what the target has decided, which is ABORT after our COMMIT (the container comes back), or either
    /// where we may not decide alone. Returns the verdict that stands.
    ///
    /// # Errors
    /// The migration is unknown, it had ended otherwise, or the database failed.
    pub fn adopt(
        &self,
        id: &str,
        targets: Verdict,
        reason: Option<&str>,
        at: Timestamp,
    ) -> Result<Verdict, JournalError> {
        let side = Side::Source;
        self.transact("took over the target's verdict", |tx| {
            let standing = match Standing::read(tx, id, side)? {
                Ok(standing) => standing,
                Err(error) => return Ok(Err(error)),
            };
            let mut before = standing.phase;
            if standing.verdict == Some(targets) {
                return Ok(Ok(targets));
            }
            if (before, targets) == (Phase::Transferred, Verdict::Commit) {
                // It ran what we had not yet heard to be restored.
                note_phase(tx, id, side, Phase::Restored, at)?;
                before = Phase::Restored;
            }
            if !targets.phase().may_follow(before) {
                return Ok(Err(illegal(id, side, before, targets.phase())));
            }
            note_verdict(tx, id, side, targets, reason, at)?;
            Ok(Ok(targets))
        })?
    }

    /// What was decided, if anything was.
    ///
    /// # Errors
    /// The migration is unknown, or the database failed.
    pub fn verdict(&self, id: &str, side: Side) -> Result<Option<Verdict>, JournalError> {
        Ok(self.standing(id, side)?.verdict)
    }

    /// How far it is and what was decided.
    ///
    /// # Errors
    /// The migration is unknown, or the database failed.
    pub fn standing(&self, id: &str, side: Side) -> Result<Standing, JournalError> {
        self.read("read a verdict", |c| Standing::read(c, id, side))?
    }

    /// Writes down a side effect before it is done.
    ///
    /// # Errors
    /// The database failed; then the side effect must not be done.
    pub fn intend(&self, id: &str, side: Side, step: &Step, at: Timestamp) -> Result<StepId, JournalError> {
        self.transact("wrote an intent", |tx| {
            tx.execute(
                "INSERT INTO step (migration, side, step, intended_at) VALUES (?1, ?2, ?3, ?4)",
                params![id, side.to_string(), step.to_json(), at.to_string()],
            )?;
            Ok(StepId(tx.last_insert_rowid()))
        })
    }

    /// Records that a side effect needs no undo any more: undone, or made permanent.
    ///
    /// # Errors
    /// The database failed.
    pub fn settled(&self, step: StepId, at: Timestamp) -> Result<(), JournalError> {
        self.transact("settled a step", |tx| {
            tx.execute("UPDATE step SET settled_at = ?2 WHERE number = ?1", params![step.0, at.to_string()])?;
            Ok(())
        })
    }

    /// The side effects of a migration that may still have to be undone, the latest first.
    ///
    /// # Errors
    /// The database failed, or a step comes from another version.
    pub fn unsettled(&self, id: &str, side: Side) -> Result<Vec<(StepId, Step)>, JournalError> {
        self.select_steps(id, side, "AND settled_at IS NULL")
    }

    /// Every side effect of a migration, settled or not, the latest first.
    ///
    /// # Errors
    /// As [`Journal::unsettled`].
    pub fn steps(&self, id: &str, side: Side) -> Result<Vec<Step>, JournalError> {
        Ok(self.select_steps(id, side, "")?.into_iter().map(|(_, step)| step).collect())
    }

    fn select_steps(&self, id: &str, side: Side, which: &str) -> Result<Vec<(StepId, Step)>, JournalError> {
        let sql =
            format!("SELECT number, step FROM step WHERE migration = ?1 AND side = ?2 {which} ORDER BY number DESC");
        let rows: Vec<(i64, String)> = self.read("read its steps", |c| {
            c.prepare_cached(&sql)?
                .query_map(params![id, side.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })?;
        rows.into_iter()
            .map(|(number, json)| match Step::from_json(&json) {
                Ok(step) => Ok((StepId(number), step)),
                // Not the step itself: it may hold the container's environment, and errors are logged.
                Err(error) => {
                    let value = format!("step {number}, {:?} error at column {}", error.classify(), error.column());
                    Err(JournalError::Unreadable { id: id.to_owned(), field: "step", value })
                }
            })
            .collect()
    }

    /// Notes what is to be known about a migration whatever its end.
    ///
    /// # Errors
    /// The database failed.
    pub fn remark(&self, id: &str, side: Side, reason: &str) -> Result<(), JournalError> {
        self.transact("noted a remark", |tx| {
            tx.execute(
                "UPDATE migration SET reason = ?3 WHERE id = ?1 AND side = ?2",
                params![id, side.to_string(), reason],
            )?;
            Ok(())
        })
    }

    /// Adds to the bytes a migration has sent (or received).
    ///
    /// # Errors
    /// The database failed.
    pub fn count_bytes(&self, id: &str, side: Side, raw: u64, wire: u64) -> Result<(), JournalError> {
        self.write(Lasting::Written, "counted bytes", |tx| {
            tx.execute(
                "UPDATE migration SET bytes_sent = bytes_sent + ?3, bytes_on_wire = bytes_on_wire + ?4
                 WHERE id = ?1 AND side = ?2",
                params![id, side.to_string(), signed(raw), signed(wire)],
            )?;
            Ok(())
        })
    }

    /// Volumes that hold only old copies here: their container took them to another host.
    ///
    /// # Errors
    /// The database failed.
    pub fn departed_volumes(&self) -> Result<Vec<OldCopy>, JournalError> {
        self.read("read the departed volumes", |c| {
            c.prepare_cached("SELECT name, directory FROM departed_volume ORDER BY name")?
                .query_map([], |row| Ok(OldCopy { name: row.get(0)?, directory: row.get(1)? }))?
                .collect()
        })
    }

    /// Records that a migration took these volumes to another host.
    ///
    /// # Errors
    /// The database failed.
    pub fn volumes_departed(&self, id: &str, volumes: &[OldCopy]) -> Result<(), JournalError> {
        self.transact("recorded departed volumes", |tx| {
            for OldCopy { name, directory } in volumes {
                tx.execute(
                    "INSERT OR REPLACE INTO departed_volume (name, directory, migration) VALUES (?1, ?2, ?3)",
                    [name, directory, id],
                )?;
            }
            Ok(())
        })
    }

    /// Records that these volumes are in use here again.
    ///
    /// # Errors
    /// The database failed.
    pub fn volumes_arrived(&self, names: &[String]) -> Result<(), JournalError> {
        self.transact("recorded arrived volumes", |tx| {
            for name in names {
                tx.execute("DELETE FROM departed_volume WHERE name = ?1", [name])?;
            }
            Ok(())
        })
    }

    /// One migration.
    ///
    /// # Errors
    /// It is unknown, the database failed, or the record is unreadable.
    pub fn record(&self, id: &str, side: Side) -> Result<MigrationView, JournalError> {
        self.migration(id, side)?.ok_or_else(|| unknown(id, side))
    }

    /// One migration, if it is known.
    ///
    /// # Errors
    /// The database failed, or the record is unreadable.
    pub fn migration(&self, id: &str, side: Side) -> Result<Option<MigrationView>, JournalError> {
        Ok(self.select("WHERE id = ?1 AND side = ?2", params![id, side.to_string()])?.pop())
    }

    /// The newest migrations, newest first, both sides.
    ///
    /// # Errors
    /// The database failed, or a record is unreadable.
    pub fn history(&self, limit: u32) -> Result<Vec<MigrationView>, JournalError> {
        self.select("ORDER BY number DESC LIMIT ?1", params![limit])
    }

    /// Migrations that are not [`Phase::Cleaned`], oldest first.
    ///
    /// # Errors
    /// The database failed, or a record is unreadable.
    pub fn unfinished(&self) -> Result<Vec<MigrationView>, JournalError> {
        self.select("WHERE phase <> ?1 ORDER BY number", params![Phase::Cleaned.to_string()])
    }

    fn select(&self, which: &str, values: impl rusqlite::Params) -> Result<Vec<MigrationView>, JournalError> {
        let sql = format!(
            "SELECT id, side, container_id, container, peer, cause, deadline, phase, verdict, reason, bytes_sent,
                    bytes_on_wire,
                    (SELECT json_group_array(json_array(phase, at)) FROM
                     (SELECT phase, at FROM phase_entry e WHERE e.migration = m.id AND e.side = m.side ORDER BY e.number)),
                    predicted_total_ms, predicted_frozen_ms
             FROM migration m {which}"
        );
        let raw: Vec<RawMigration> =
            self.read("read migrations", |c| c.prepare_cached(&sql)?.query_map(values, RawMigration::read)?.collect())?;
        raw.into_iter().map(RawMigration::parse).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic while the lock was held rolled its transaction back: the connection is as good as before.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(
        &self,
        doing: &'static str,
        run: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, JournalError> {
        run(&self.lock()).map_err(|source| JournalError::Database { path: self.path.clone(), doing, source })
    }

    fn transact<T>(
        &self,
        doing: &'static str,
        run: impl Fn(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, JournalError> {
        self.write(Lasting::OnDisk, doing, run)
    }

    fn write<T>(
        &self,
        lasting: Lasting,
        doing: &'static str,
        run: impl Fn(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, JournalError> {
        let mut connection = self.lock();
        let mut attempt = || {
            connection.pragma_update(None, "synchronous", lasting.synchronous())?;
            // IMMEDIATE takes the write lock at once, so that a compare-and-set reads what it is about to change.
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = run(&tx)?;
            tx.commit()?;
            Ok(value)
        };
        let mut done = attempt();
        if done.as_ref().is_err_and(ballast::is_full) && ballast::drop(&self.path) {
            done = attempt();
        }
        done.map_err(|source| JournalError::Database { path: self.path.clone(), doing, source })
    }
}

/// What a transaction outlives when its call has returned.
#[derive(Debug, Clone, Copy)]
enum Lasting {
    /// A power cut.
    OnDisk,
    /// The death of every process.
    Written,
}

impl Lasting {
    /// SQLite's `PRAGMA synchronous`: in WAL mode NORMAL leaves the fsync of the log to a later transaction, and keeps the order.
    fn synchronous(self) -> &'static str {
        match self {
            Self::OnDisk => "FULL",
            Self::Written => "NORMAL",
        }
    }
}

/// Where a migration stands on one side.
#[derive(Debug, Clone)]
pub struct Standing {
    /// How far it is.
    pub phase: Phase,
    /// What was decided.
    pub verdict: Option<Verdict>,
    cause: String,
    deadline: Option<Timestamp>,
}

impl Standing {
    /// Whether the source may decide ABORT without its target.
    #[must_use]
    pub fn may_abort_alone(&self, now: Timestamp) -> bool {
        Occasion { cause: &self.cause, deadline: self.deadline }.may_abort_alone(self.phase, now)
    }

    /// The outer error is the database's.
    fn read(c: &Connection, id: &str, side: Side) -> rusqlite::Result<Result<Self, JournalError>> {
        let found: Option<(String, Option<String>, String, Option<String>)> = c
            .prepare_cached("SELECT phase, verdict, cause, deadline FROM migration WHERE id = ?1 AND side = ?2")?
            .query_row(params![id, side.to_string()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
            .optional()?;
        let Some((phase, verdict, cause, deadline)) = found else { return Ok(Err(unknown(id, side))) };
        let parse = || {
            Ok(Self {
                phase: parse_phase(id, &phase)?,
                verdict: verdict.map(|word| parse_verdict(id, &word)).transpose()?,
                cause,
                deadline: deadline.map(|at| parse_time(id, "deadline", &at)).transpose()?,
            })
        };
        Ok(parse())
    }
}

fn note_verdict(
    tx: &Transaction<'_>,
    id: &str,
    side: Side,
    verdict: Verdict,
    reason: Option<&str>,
    at: Timestamp,
) -> rusqlite::Result<()> {
    tx.execute(
        "UPDATE migration SET verdict = ?3, reason = ?4 WHERE id = ?1 AND side = ?2",
        params![id, side.to_string(), verdict.to_string(), reason],
    )?;
    note_phase(tx, id, side, verdict.phase(), at)
}

fn illegal(id: &str, side: Side, before: Phase, after: Phase) -> JournalError {
    JournalError::IllegalOrder { id: id.to_owned(), side, before, after }
}

fn note_phase(tx: &Transaction<'_>, id: &str, side: Side, phase: Phase, at: Timestamp) -> rusqlite::Result<()> {
    tx.execute(
        "UPDATE migration SET phase = ?3 WHERE id = ?1 AND side = ?2",
        params![id, side.to_string(), phase.to_string()],
    )?;
    tx.execute(
        "INSERT INTO phase_entry (migration, side, phase, at) VALUES (?1, ?2, ?3, ?4)",
        params![id, side.to_string(), phase.to_string(), at.to_string()],
    )?;
    Ok(())
}

/// SQLite's integers are signed; no count of bytes reaches their end.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Nor does any time that is worth predicting.
fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn unknown(id: &str, side: Side) -> JournalError {
    JournalError::Unknown { id: id.to_owned(), side }
}

fn unreadable(id: &str, field: &'static str, value: &str) -> JournalError {
    JournalError::Unreadable { id: id.to_owned(), field, value: value.to_owned() }
}

#[cfg(test)]
mod tests;
