//! Room for the end of a migration on a disk that fills up meanwhile.
//!
//! A container stays frozen until ABORT is on disk. So a file of some size lies beside the journal, which is given up when the disk
//! is full, and without which no migration is begun.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};
use rusqlite::ErrorCode;

/// A migration writes some tens of pages of 4 KiB, several migrations at a time.
const BYTES: i64 = 2 << 20;

/// Makes the file if it is not there.
pub(super) fn take_in(journal: &Path) -> io::Result<()> {
    let path = path(journal);
    if path.exists() {
        return Ok(());
    }
    let made = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .and_then(|file| Ok(fallocate(file.as_fd(), FallocateFlags::empty(), 0, BYTES)?));
    if made.is_err() {
        // Empty it is worth nothing.
        let _ = fs::remove_file(&path);
    }
    made
}

/// Gives the file up; false if there was none.
pub(super) fn drop(journal: &Path) -> bool {
    fs::remove_file(path(journal)).is_ok()
}

/// Whether a transaction failed for want of room.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

fn path(journal: &Path) -> PathBuf {
    journal.with_extension("ballast")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_its_size_on_disk_and_goes_once() {
        let scratch = tempfile::tempdir().unwrap();
        let journal = scratch.path().join("journal.db");
        take_in(&journal).unwrap();
        take_in(&journal).unwrap();
        assert_eq!(fs::metadata(scratch.path().join("journal.ballast")).unwrap().len(), BYTES.unsigned_abs());
        assert!(drop(&journal));
        assert!(!drop(&journal));
    }
}
