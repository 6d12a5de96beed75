//! Why the journal could not answer.

use std::path::PathBuf;

use crate::migration::{Phase, Side};

/// Why the journal could not answer.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database failed: full disk, bad permissions, damage.
    #[error("the journal {path} failed while it {doing}; check its disk and permissions", path = path.display())]
    Database {
        /// The database's file.
        path: PathBuf,
        /// What was going on.
        doing: &'static str,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// There is not even room for the end of a migration.
    #[error("the disk of the journal {path} is too full to begin a migration", path = path.display())]
    NoRoom {
        /// The database's file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Its directory cannot be made.
    #[error("the journal's directory {path} cannot be made", path = path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Its file cannot be made, or made root's alone.
    #[error("the journal {path} cannot be opened for this user alone; check its disk and permissions", path = path.display())]
    Private {
        /// The database's file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// It was written by a newer spothop.
    #[error("the journal {path} has schema {found}, this spothop knows up to {known}; install the newer version again", path = path.display())]
    TooNew {
        /// The database's file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// No such migration on this side.
    #[error("the journal knows no migration {id} with this host as {side}")]
    Unknown {
        /// The migration.
        id: String,
        /// The side asked for.
        side: Side,
    },
    /// A migration of this id was begun before.
    #[error("the journal knows migration {id} with this host as {side} already; a migration is begun once")]
    Known {
        /// The migration.
        id: String,
        /// Which side.
        side: Side,
    },
    /// The protocol forbids this order.
    #[error("migration {id} ({side}) is {before}, so it cannot become {after}")]
    IllegalOrder {
        /// The migration.
        id: String,
        /// Which side.
        side: Side,
        /// Where it is.
        before: Phase,
        /// Where it was to go.
        after: Phase,
    },
    /// The deadline has passed, and a target that has restored the container may run it because of that.
    #[error(
        "migration {id}: this host was to be taken away by now, so its target may run the container; the target must be asked first"
    )]
    TargetDecides {
        /// The migration.
        id: String,
    },
    /// A record that this version cannot read.
    #[error("the journal's record of migration {id} has an unreadable {field}: `{value}`")]
    Unreadable {
        /// The migration.
        id: String,
        /// Which column.
        field: &'static str,
        /// What stands there, or, of a step, where it cannot be read.
        value: String,
    },
}
