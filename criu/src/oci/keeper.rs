//! The keeper: the parent of `runc restore`, which outlives `create` and notes how the restore ended.
//!
//! It holds a lock on `keeper.lock` while it lives. `create` and `start` learn the end from `restored.json`; `start` waits
//! for it by waiting for the lock, which the kernel gives up even if the keeper is killed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid};
use serde::{Deserialize, Serialize};

use crate::handoff::Directory;
use crate::tasks;

/// The hidden verb by which `create` starts the keeper.
const VERB: &str = "--spothop-keeper";
const LOCK: &str = "keeper.lock";
const RESULT: &str = "restored.json";

/// For what was killed to be dead; a task that hangs in the kernel is not waited for.
const LAST_WORDS: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How a restore ended.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ending {
    /// Did the tasks get to run?
    pub(super) success: bool,
    /// What the runtime ended with, in words.
    pub(super) status: String,
}

/// Starts the keeper of `command`; returns when it is under way. Standard streams are inherited.
pub(super) fn spawn(directory: &Path, command: &[&OsStr]) -> io::Result<Child> {
    let _ = fs::remove_file(directory.join(RESULT));
    Command::new(std::env::current_exe()?).arg(VERB).arg(directory).args(command).spawn()
}

/// How the restore ended; `None` when the keeper was killed before it could note it (or has not ended).
pub(super) fn ending(directory: &Path) -> Option<Ending> {
    serde_json::from_slice(&fs::read(directory.join(RESULT)).ok()?).ok()
}

/// Waits until the keeper has ended.
pub(super) fn wait(directory: &Path) -> io::Result<()> {
    File::open(directory.join(LOCK))?.lock()
}

/// Does the keeper's work when this process is one; `None` when it is not.
pub(super) fn called_by_create(arguments: &[OsString]) -> Option<ExitCode> {
    let [_, verb, directory, program, rest @ ..] = arguments else { return None };
    if verb != VERB {
        return None;
    }
    let ending = keep(Path::new(directory), Command::new(program).args(rest));
    Some(if ending.success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn keep(directory: &Path, command: &mut Command) -> Ending {
    // Best effort: a CRIU whose runtime was killed is ours then, and not the engine's.
    let _ = set_child_subreaper(true);
    // Both are best effort: without the lock `start` only loses the wait, without the note it says so.
    let lock = File::create(directory.join(LOCK));
    let _locked = lock.as_ref().map(File::lock);
    let ending = match command.status() {
        Ok(status) => Ending { success: status.success(), status: format!("runtime: {status}") },
        Err(error) => {
            let program = command.get_program().to_string_lossy();
            Ending { success: false, status: format!("cannot run the runtime {program}: {error}") }
        }
    };
    if !ending.success && !Directory::at(directory).may_have_run() {
        kill_children();
    }
    let new = directory.join("restored.json.new");
    let _ =
        fs::write(&new, serde_json::json!(ending).to_string()).and_then(|()| fs::rename(&new, directory.join(RESULT)));
    ending
}

/// Kills what a failed runtime has left to us. CRIU cannot go on without it, and may wait for ever for tasks that wait for CRIU; with
/// CRIU gone, its tasks are our children too.
///
/// None of them is reaped here: the dead go on to the engine's shim when we end, which waits for the death of the container's init.
fn kill_children() {
    let end = Instant::now() + LAST_WORDS;
    while let alive = living_children()
        && !alive.is_empty()
        && Instant::now() < end
    {
        for child in alive {
            let _ = kill(child, Signal::SIGKILL);
        }
        sleep(LOOK_AGAIN);
    }
}

/// Our children that are not zombies.
fn living_children() -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/self/task/{}/children", gettid())).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    children.filter(|&pid| !tasks::is_dead(pid)).map(Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_noted_and_the_lock_is_free_afterwards() {
        let scratch = tempfile::tempdir().unwrap();
        assert_eq!(ending(scratch.path()), None);
        let good = keep(scratch.path(), &mut Command::new("true"));
        assert!(good.success);
        wait(scratch.path()).unwrap();
        assert_eq!(ending(scratch.path()), Some(good));
        let bad = keep(scratch.path(), Command::new("sh").args(["-c", "exit 3"]));
        assert_eq!((bad.success, bad.status.as_str()), (false, "runtime: exit status: 3"));
        let none = keep(scratch.path(), &mut Command::new("/nonexistent/runc"));
        assert!(none.status.contains("/nonexistent/runc"));
    }

    #[test]
    fn waiting_ends_with_the_keeper() {
        let scratch = tempfile::tempdir().unwrap();
        let held = File::create(scratch.path().join(LOCK)).unwrap();
        held.lock().unwrap();
        let waiter = std::thread::spawn({
            let path = scratch.path().to_owned();
            move || wait(&path).unwrap()
        });
        assert!(!waiter.is_finished());
        drop(held);
        waiter.join().unwrap();
    }

    #[test]
    fn other_calls_are_not_the_keepers() {
        assert_eq!(called_by_create(&["spothop-oci".into(), "create".into(), "c".into(), "d".into()]), None);
        assert_eq!(called_by_create(&["spothop-oci".into(), VERB.into()]), None);
    }
}
