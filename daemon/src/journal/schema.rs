//! The journal's tables and their versions.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::JournalError;

/// `PRAGMA user_version` of the tables below. A change adds a migration here, never edits the past.
const VERSION: i64 = 1;

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

/// Opens the database and brings its tables to [`VERSION`].
pub(super) fn open(path: &Path) -> Result<Connection, JournalError> {
    let failed = |doing| move |source| JournalError::Database { path: path.to_owned(), doing, source };
    // SQLite makes its files as the umask has it, and those beside the database with the database's own mode.
    let private = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    private
        .and_then(|file| file.set_permissions(Permissions::from_mode(0o600)))
        .map_err(|source| JournalError::Private { path: path.to_owned(), source })?;
    let mut connection = Connection::open(path).map_err(failed("was opened"))?;
    let found = prepare(&mut connection).map_err(failed("was prepared"))?;
    if found > VERSION {
        return Err(JournalError::TooNew { path: path.to_owned(), found, known: VERSION });
    }
    Ok(connection)
}

/// Sets the pragmas, makes the tables if there are none, and returns the schema's version.
fn prepare(connection: &mut Connection) -> rusqlite::Result<i64> {
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let found: i64 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found == 0 {
        tx.execute_batch(TABLES)?;
        tx.pragma_update(None, "user_version", VERSION)?;
    }
    tx.commit()?;
    Ok(found)
}
