//! What a restore that was killed leaves in runc's state directory.
//!
//! There is a trap in it. For CRIU runc binds the container's root filesystem on `criu-root` in that directory (runc,
//! `libcontainer/criu_linux.go`), and a runc that is killed leaves it mounted. `runc delete --force`, which engines call upon any
//! failure, removes the directory of a container whose `state.json` is missing recursively (runc, `delete.go`): through
//! the mount, that is every file of the container. So the mount goes before runc may delete anything.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, umount2};

use super::args::Invocation;
use super::error::{OciError, file};
use super::runtime;

/// Where runc binds the root filesystem.
const ROOT: &str = "criu-root";

/// runc's directory for this container.
fn state(invocation: &Invocation) -> PathBuf {
    invocation.root.join(&invocation.container)
}

/// Takes the container's files out of the way of `runc delete`.
pub(super) fn detach_root(invocation: &Invocation) {
    detach(&state(invocation).join(ROOT));
}

fn detach(root: &Path) {
    // Lazily, because CRIU may still be ending; and as often as it was mounted.
    while umount2(root, MntFlags::MNT_DETACH).is_ok() {}
}

/// The engine calls `create` only for a container that does not run, so whatever a former attempt left goes: tasks, and the state
/// directory.
pub(super) fn clear(invocation: &Invocation, runtime: &Path) -> Result<(), OciError> {
    let state = state(invocation);
    if !state.exists() {
        return Ok(());
    }
    detach_root(invocation);
    let runtime = runtime::resolve(runtime);
    let mut delete = Command::new(&runtime);
    delete.args(&invocation.globals).args(["delete", "--force"]).arg(&invocation.container).stdin(Stdio::null());
    delete.output().map(drop).map_err(file("run", runtime))?;
    // Without its state.json runc does not know the container. What is in the way still, the restore will say.
    let _ = remove(&state);
    Ok(())
}

/// Removes a state directory that runc has not finished. Never recursively.
fn remove(state: &Path) -> io::Result<()> {
    detach(&state.join(ROOT));
    for entry in state.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { fs::remove_dir(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    fs::remove_dir(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_state_goes_but_never_the_files_of_a_root_filesystem() {
        let scratch = tempfile::tempdir().unwrap();
        let state = scratch.path().join("c1");
        fs::create_dir_all(state.join(ROOT)).unwrap();
        fs::write(state.join("spothop.json"), "{}").unwrap();
        remove(&state).unwrap();
        assert!(!state.exists());

        fs::create_dir_all(state.join(ROOT)).unwrap();
        fs::write(state.join(ROOT).join("precious"), "").unwrap();
        remove(&state).unwrap_err();
        assert!(state.join(ROOT).join("precious").exists());
    }
}
