//! The journal's tables and their versions.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::JournalError;

/// What leads to each `PRAGMA user_version`, from an empty database on. A change adds one here, never edits the past.
const VERSIONS: [&str; 2] = [TABLES, PREDICTIONS];

/// Another process holds the write lock for one transaction, an fsync; a disk that takes longer than this is broken.
const BUSY: Duration = Duration::from_secs(10);

const TABLES: &str = "
    CREATE TABLE migration (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL,
        side TEXT NOT NULL CHECK (side IN ('source', 'target')),
        container_id TEXT NOT NULL,
        container TEXT NOT NULL,
        peer TEXT NOT NULL,
        cause TEXT NOT NULL,
        deadline TEXT,
        phase TEXT NOT NULL,
        verdict TEXT CHECK (verdict IN ('commit', 'abort')),
        reason TEXT,
        bytes_sent INTEGER NOT NULL DEFAULT 0,
        bytes_on_wire INTEGER NOT NULL DEFAULT 0,
        UNIQUE (id, side)
    ) STRICT;
    CREATE TABLE phase_entry (
        number INTEGER PRIMARY KEY,
        migration TEXT NOT NULL,
        side TEXT NOT NULL,
        phase TEXT NOT NULL,
        at TEXT NOT NULL,
        FOREIGN KEY (migration, side) REFERENCES migration (id, side)
    ) STRICT;
    CREATE INDEX phase_entry_of ON phase_entry (migration, side);
    CREATE TABLE step (
        number INTEGER PRIMARY KEY,
        migration TEXT NOT NULL,
        side TEXT NOT NULL,
        step TEXT NOT NULL,
        intended_at TEXT NOT NULL,
        settled_at TEXT,
        FOREIGN KEY (migration, side) REFERENCES migration (id, side)
    ) STRICT;
    CREATE INDEX step_of ON step (migration, side);
    CREATE TABLE departed_volume (
        name TEXT PRIMARY KEY,
        directory TEXT NOT NULL,
        migration TEXT NOT NULL
    ) STRICT;
";

/// Version 2: what was predicted of a migration, in milliseconds, and what its source counted (`spothop_policy::Counted` as JSON).
const PREDICTIONS: &str = "
    ALTER TABLE migration ADD COLUMN predicted_total_ms INTEGER;
    ALTER TABLE migration ADD COLUMN predicted_frozen_ms INTEGER;
    CREATE TABLE measurement (
        number INTEGER PRIMARY KEY,
        migration TEXT NOT NULL UNIQUE,
        peer TEXT NOT NULL,
        counted TEXT NOT NULL
    ) STRICT;
    CREATE INDEX measurement_of ON measurement (peer, number);
";

/// Opens the database and brings its tables to the newest version.
pub(super) fn open(path: &Path) -> Result<Connection, JournalError> {
    let failed = |doing| move |source| JournalError::Database { path: path.to_owned(), doing, source };
    // SQLite makes its files as the umask has it, and those beside the database with the database's own mode.
    let private = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    private
        .and_then(|file| file.set_permissions(Permissions::from_mode(0o600)))
        .map_err(|source| JournalError::Private { path: path.to_owned(), source })?;
    let mut connection = Connection::open(path).map_err(failed("was opened"))?;
    let found = prepare(&mut connection).map_err(failed("was prepared"))?;
    let known = VERSIONS.len() as i64;
    if found > known {
        return Err(JournalError::TooNew { path: path.to_owned(), found, known });
    }
    Ok(connection)
}

/// Sets the pragmas, brings the tables up to date, all or nothing, and returns the schema's version as it was found.
fn prepare(connection: &mut Connection) -> rusqlite::Result<i64> {
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let found: i64 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (version, change) in (1..).zip(VERSIONS) {
        if version > found {
            tx.execute_batch(change)?;
            tx.pragma_update(None, "user_version", version)?;
        }
    }
    tx.commit()?;
    Ok(found)
}
