//! A migration's own directory on this host, with a tmpfs for CRIU's images: memory must not touch a disk.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Logs, Side};

/// Where all runtime state lives; systemd makes it (`RuntimeDirectory=`) and keeps it over a restart of the daemon.
pub const RUNTIME_DIRECTORY: &str = "/run/spothop";

/// Besides the pages: CRIU's other images and logs. A thousand tasks need about 30 MiB of them.
const METADATA_BYTES: u64 = 64 << 20;

/// The directory cannot be made or removed.
#[derive(Debug, thiserror::Error)]
#[error("the migration's directory {path} cannot be {doing}", path = path.display())]
pub struct WorkspaceError {
    path: PathBuf,
    doing: &'static str,
    source: io::Error,
}

/// The directory of one migration: `<runtime>/dump/<id>` at the source, `<runtime>/restore/<id>` at the target.
#[derive(Debug, Clone)]
pub struct Workspace {
    directory: PathBuf,
}

impl Workspace {
    /// Names it, without making it.
    #[must_use]
    pub fn of(runtime: &Path, side: Side, migration: &str) -> Self {
        let room = match side {
            Side::Source => "dump",
            Side::Target => "restore",
        };
        Self { directory: runtime.join(room).join(migration) }
    }

    /// The one at `directory`, as the journal has it.
    #[must_use]
    pub fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The tmpfs for CRIU's images.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.directory.join("images")
    }

    /// Makes the directory (0700) and mounts its tmpfs, which holds the images of a container of `memory_bytes` at most.
    ///
    /// # Errors
    /// The directory or mount cannot be made; nothing is left then.
    pub fn make(&self, memory_bytes: u64) -> Result<(), WorkspaceError> {
        let failed = |doing| move |source| WorkspaceError { path: self.directory.clone(), doing, source };
        let images = self.images();
        DirBuilder::new().recursive(true).mode(0o700).create(&images).map_err(failed("made"))?;
        // Pages may be written while CRIU dumps, a tenth more than was counted before; a tmpfs takes what it uses only.
        let size = memory_bytes + memory_bytes / 10 + METADATA_BYTES;
        let options = format!("mode=0700,size={size}");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("spothop"), &images, Some("tmpfs"), flags, Some(options.as_str()))
            .map_err(|errno| failed("given a tmpfs")(errno.into()))
            .inspect_err(|_| {
                // The first error is the one to tell; an empty directory that stays is harmless.
                let _ = fs::remove_dir_all(&self.directory);
            })
    }

    /// Unmounts and removes it, but for CRIU's logs, which are kept below `state`. Does nothing if it is not there.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub fn remove(&self, state: &Path) -> Result<(), WorkspaceError> {
        Logs::of(state).keep(self);
        let failed = |doing| move |source| WorkspaceError { path: self.directory.clone(), doing, source };
        loop {
            // Lazily: a CRIU that is just ending may still have its directory open.
            match umount2(&self.images(), MntFlags::MNT_DETACH) {
                Ok(()) => {}
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(errno) => return Err(failed("unmounted")(errno.into())),
            }
        }
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removed")(error)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// On a thread with mounts of its own, which end with it.
    #[test]
    fn memory_lies_where_only_root_can_read_it() {
        if !nix::unistd::geteuid().is_root() {
            return; // Nobody else may mount.
        }
        let seen = std::thread::spawn(|| {
            let none = None::<&str>;
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
            let scratch = tempfile::tempdir().unwrap();
            let workspace = Workspace::of(scratch.path(), Side::Source, "m");
            workspace.make(1 << 20).unwrap();
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            let modes = [mode(workspace.directory()), mode(&workspace.images())];
            let mounted = nix::sys::statfs::statfs(&workspace.images()).unwrap().filesystem_type();
            workspace.remove(scratch.path()).unwrap();
            (modes, mounted, workspace.directory().exists())
        });
        let tmpfs = nix::sys::statfs::TMPFS_MAGIC;
        assert_eq!(seen.join().unwrap(), ([0o700, 0o700], tmpfs, false));
    }
}
