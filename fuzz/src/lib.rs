//! What the fuzz targets share.

pub mod memory;
mod watch;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use arbitrary::{Arbitrary, Unstructured};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    // Its clock stands still while anything is at work and jumps to the next timeout when nothing is: no input makes a run wait.
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
}

/// Runs a future to its end.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    watch::watched(|| RUNTIME.with(|runtime| runtime.block_on(future)))
}

/// What an input has once in sixteen times: so that most of it is right, and gets far.
#[derive(Clone, Copy, Debug)]
pub struct Rare<T>(pub Option<T>);

impl<'a, T: Arbitrary<'a>> Arbitrary<'a> for Rare<T> {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self(if input.arbitrary::<u8>()? >= 240 { Some(input.arbitrary()?) } else { None }))
    }
}

/// A directory that input is written into, and beside it one that must stay as it is.
pub struct Room {
    directory: TempDir,
    inside: PathBuf,
    before: Vec<String>,
}

impl Room {
    /// Makes both, in memory.
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("spothop-fuzz-").tempdir_in("/dev/shm").unwrap();
        let outside = directory.path().join("outside");
        fs::create_dir_all(outside.join("directory")).unwrap();
        fs::write(outside.join("file"), "precious").unwrap();
        fs::write(outside.join("directory/deep"), "precious too").unwrap();
        fs::set_permissions(outside.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("file", outside.join("link")).unwrap();
        let inside = directory.path().join("inside");
        fs::create_dir(&inside).unwrap();
        fs::create_dir(directory.path().join("inside-volume")).unwrap();
        let mut room = Self { directory, inside, before: Vec::new() };
        room.before = room.look();
        room
    }

    /// Where the input may write.
    pub fn inside(&self) -> &Path {
        &self.inside
    }

    /// Another place where it may.
    pub fn volume(&self) -> PathBuf {
        self.directory.path().join("inside-volume")
    }

    /// Where it may not.
    pub fn outside(&self) -> PathBuf {
        self.directory.path().join("outside")
    }

    /// Panics if anything outside was made, changed, removed or linked.
    pub fn check(&self) {
        assert_eq!(self.look(), self.before, "something outside of the root has changed");
    }

    fn look(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut waiting = vec![self.directory.path().to_owned()];
        while let Some(directory) = waiting.pop() {
            let mut entries: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
            entries.sort();
            for path in entries {
                let about = fs::symlink_metadata(&path).unwrap();
                let inside = path.file_name().unwrap().to_string_lossy().starts_with("inside");
                if inside && path.parent() == Some(self.directory.path()) {
                    lines.push(format!("{path:?} {}", about.ino()));
                    continue;
                }
                let attributes: Vec<_> = xattr::list(&path).map(Iterator::collect).unwrap_or_default();
                let times = (about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec());
                let what = (about.ino(), about.mode(), about.uid(), about.gid(), about.nlink(), about.len(), times);
                let text = if about.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                lines.push(format!("{path:?} {what:?} {attributes:?} {text:?}"));
                if about.is_dir() {
                    waiting.push(path);
                }
            }
        }
        lines
    }
}

impl Default for Room {
    fn default() -> Self {
        Self::new()
    }
}
