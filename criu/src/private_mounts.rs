//! Mounts that one helper program sees and nobody else.

use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const NONE: Option<&str> = None;

/// Runs `work` on a thread whose mount namespace is a private copy of ours; processes that it starts are in it as well.
///
/// # Errors
/// The namespace cannot be made.
pub(crate) fn within<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
            Ok(work())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Puts the file `source` over the file `target`, which must be there.
///
/// # Errors
/// What the system says.
pub(crate) fn bind(source: &Path, target: &Path) -> io::Result<()> {
    Ok(mount(Some(source), target, NONE, MsFlags::MS_BIND, NONE)?)
}
