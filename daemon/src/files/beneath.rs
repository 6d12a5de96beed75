//! A directory that no name leads out of.
//!
//! Every directory below is opened by `openat2` with `RESOLVE_BENEATH` and without following symbolic links, so neither a
//! container that swaps a directory for a link while we read, nor an archive with hostile names, reaches anything else.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::Error;

/// The directory, and the last directory below it that was used: entries come sorted, so the next one is mostly there too.
#[derive(Debug)]
pub(super) struct Beneath {
    directory: OwnedFd,
    path: PathBuf,
    last: Option<(PathBuf, OwnedFd)>,
}

/// An entry's place: its open parent directory and its name in it (`.` for the root itself).
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// The parent directory.
    pub(super) parent: BorrowedFd<'a>,
    /// One name, without slashes.
    pub(super) name: &'a OsStr,
}

impl Place<'_> {
    /// A path for system calls that take no directory descriptor (those on extended attributes). Its last part is not followed when
    /// the call does not follow links.
    pub(super) fn proc_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.parent.as_raw_fd())).join(self.name)
    }

    /// What is there, links not followed.
    pub(super) fn look(&self) -> nix::Result<FileStat> {
        fstatat(self.parent, self.name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// Opens without following a link.
    pub(super) fn open(&self, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat2(self.parent, self.name, OpenHow::new().flags(flags).mode(mode).resolve(resolve()))
    }

    /// Removes whatever is there, directories with all they hold. Nothing there is a success.
    pub(super) fn remove(&self) -> nix::Result<()> {
        match unlinkat(self.parent, self.name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::EISDIR | Errno::EPERM) => {
                let directory = self.open(OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
                clear(directory.as_fd())?;
                unlinkat(self.parent, self.name, UnlinkatFlags::RemoveDir)
            }
            Err(errno) => Err(errno),
        }
    }
}

fn resolve() -> ResolveFlag {
    ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS
}

/// Removes everything in a directory.
fn clear(directory: BorrowedFd<'_>) -> nix::Result<()> {
    for name in names(directory).map_err(errno)? {
        Place { parent: directory, name: &name }.remove()?;
    }
    Ok(())
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The names in an open directory, sorted.
pub(super) fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let entries = fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
    let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

impl Beneath {
    /// Opens the directory itself; links are followed here, as the caller names it.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = nix::fcntl::open(path, flags, Mode::empty()).map_err(Error::io("open", path))?;
        Ok(Self { directory, path: path.to_owned(), last: None })
    }

    /// The directory's descriptor.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The full path of an entry, for messages.
    pub(super) fn full(&self, entry: &Path) -> PathBuf {
        if entry.as_os_str().is_empty() { self.path.clone() } else { self.path.join(entry) }
    }

    /// Opens a directory below, for reading its names.
    pub(super) fn directory(&self, entry: &Path) -> nix::Result<OwnedFd> {
        let entry = if entry.as_os_str().is_empty() { Path::new(".") } else { entry };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        openat2(&self.directory, entry, OpenHow::new().flags(flags).resolve(resolve()))
    }

    /// The place of an entry, whose parent must be there.
    pub(super) fn place<'a>(&'a mut self, entry: &'a Path) -> nix::Result<Place<'a>> {
        let Some(name) = entry.file_name() else {
            return Ok(Place { parent: self.directory.as_fd(), name: OsStr::new(".") });
        };
        let parent = entry.parent().unwrap_or(Path::new(""));
        if self.last.as_ref().is_none_or(|(path, _)| path != parent) {
            self.last = Some((parent.to_owned(), self.directory(parent)?));
        }
        let directory = self.last.as_ref().map_or(self.directory.as_fd(), |(_, directory)| directory.as_fd());
        Ok(Place { parent: directory, name })
    }

    /// To be called when directories were removed: the remembered one may be among them.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    /// Removes everything in it.
    pub(super) fn clear(&mut self) -> Result<(), Error> {
        self.forget();
        clear(self.directory.as_fd()).map_err(Error::io("clear", &self.path))
    }
}

/// A relative path of plain names: no `..`, no `.`, no root. The empty path is the tree itself.
pub(super) fn is_plain(path: &Path) -> bool {
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    // `components` tidies up `a//b`, `a/./b` and `a/`: a name that is not the same as its parts is not plain.
    plain && path.components().collect::<PathBuf>().as_os_str() == path.as_os_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_paths_have_names_only() {
        for path in ["", "a", "a/b", "...", "a b/\n"] {
            assert!(is_plain(Path::new(path)), "{path:?}");
        }
        for path in ["/", "/a", "..", "a/..", "a/../b", "./a", "a/./b", "a//b", "a/", "."] {
            assert!(!is_plain(Path::new(path)), "{path:?}");
        }
    }

    #[test]
    fn links_on_the_way_are_not_followed() {
        let outside = tempfile::tempdir().expect("a directory");
        let inside = tempfile::tempdir().expect("a directory");
        fs::write(outside.path().join("file"), "kept").expect("write");
        std::os::unix::fs::symlink(outside.path(), inside.path().join("link")).expect("link");
        let mut beneath = Beneath::open(inside.path()).expect("open");
        assert_eq!(beneath.place(Path::new("link/file")).expect_err("refused"), Errno::ELOOP);
        beneath.clear().expect("cleared");
        assert!(outside.path().join("file").exists());
        assert!(!inside.path().join("link").exists());
    }
}
