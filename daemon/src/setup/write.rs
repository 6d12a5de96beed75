//! Replacing a file so that a reader, or a power cut, sees either all of the old content or all of the new.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

/// Puts `content` into the file at `path`: a temporary file beside it, synced, then renamed over it. Mode and owner of the
/// old file are kept; a new file gets `mode`. A symbolic link is followed, not replaced.
///
/// # Errors
/// The first failing step's; then the old file is untouched and the temporary one is gone.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let (path, old) = match path.canonicalize() {
        Ok(path) => {
            let old = fs::metadata(&path)?;
            (path, Some(old))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => (path.to_owned(), None),
        Err(e) => return Err(e),
    };
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(ErrorKind::InvalidInput, "the path names no file"));
    };
    let temporary = dir.join(format!(".{}.{}.spothop", name.to_string_lossy(), std::process::id()));
    let write = || -> io::Result<()> {
        // Private until it has the owner and mode of the old file, which may be a secret.
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        let mode = match &old {
            Some(old) => {
                fchown(&file, Some(old.uid()), Some(old.gid()))?;
                old.mode() & 0o7777
            }
            None => mode,
        };
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        // The rename itself is durable only once its directory is.
        File::open(dir)?.sync_all()
    };
    write().inspect_err(|_| {
        // Best effort: the first error is the one that matters.
        let _ = fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_and_link_are_kept_and_nothing_is_left_beside() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, "old").unwrap();
        fs::set_permissions(&real, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        write_atomically(&link, b"new", 0o644).unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "new");
        assert_eq!(fs::metadata(&real).unwrap().mode() & 0o7777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_new_file_gets_the_asked_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        write_atomically(&path, b"x", 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = write_atomically(&dir.path().join("no/file"), b"x", 0o600).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
