//! The keeper: the parent of `runc restore`, which outlives `create` and notes how the restore ended.
//!
//! `create` and `start` learn the end from `restored.json`; `start` waits for it by waiting until the keeper has left the directory,
//! which the kernel sees to even if the keeper is killed.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::mem::replace;
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, gettid};
use serde::{Deserialize, Serialize};

use crate::breakpoints;
use crate::handoff::Directory;
use crate::tasks;

/// The hidden verb by which `create` starts the keeper.
const VERB: &str = "--spothop-keeper";
const RESULT: &str = "restored.json";

/// For what was killed to be dead; a task that hangs in the kernel is not waited for.
const LAST_WORDS: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Between two looks whether the migration goes on.
const STILL_WANTED: Duration = Duration::from_millis(500);

/// For a restore to end by itself once its migration is given up: CRIU's action script says no by then, and CRIU tidies up after it.
const GRACE: Duration = Duration::from_secs(5);

/// How a restore ended.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ending {
    /// Did the tasks get to run?
    pub(super) success: bool,
    /// What the runtime ended with, in words.
    pub(super) status: String,
}

/// Starts the keeper of `command`, to which it gives these variables; returns when it is under way. Standard streams are inherited.
pub(super) fn spawn(
    directory: &Directory,
    command: &[&OsStr],
    environment: impl IntoIterator<Item = (&'static str, OsString)>,
) -> io::Result<Child> {
    let _ = fs::remove_file(directory.path().join(RESULT));
    let mut keeper = Command::new(std::env::current_exe()?);
    keeper.arg(VERB).arg(directory.path()).args(command).envs(environment).spawn()
}

/// How the restore ended; `None` when the keeper was killed before it could note it (or has not ended).
pub(super) fn ending(directory: &Directory) -> Option<Ending> {
    serde_json::from_slice(&fs::read(directory.path().join(RESULT)).ok()?).ok()
}

/// Does the keeper's work when this process is one; `None` when it is not.
pub(super) fn called_by_create(arguments: &[OsString]) -> Option<ExitCode> {
    let [_, verb, directory, program, rest @ ..] = arguments else { return None };
    if verb != VERB {
        return None;
    }
    let ending = keep(&Directory::at(Path::new(directory)), Command::new(program).args(rest));
    Some(if ending.success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn keep(directory: &Directory, command: &mut Command) -> Ending {
    let _here = match directory.enter() {
        Ok(here) => here,
        Err(given_up) => return Ending { success: false, status: given_up.to_string() },
    };
    // Best effort: a CRIU whose runtime was killed is ours then, and not the engine's.
    let _ = set_child_subreaper(true);
    let (watched, keeper) = (directory.clone(), gettid());
    let killing = Arc::new(Mutex::new(()));
    let watcher = Arc::clone(&killing);
    thread::spawn(move || end_unwanted(&watched, keeper, &watcher));
    let _breakpoints = breakpoints::Quick::keep();
    let ending = match command.status() {
        Ok(status) => Ending { success: status.success(), status: format!("runtime: {status}") },
        Err(error) => {
            let program = command.get_program().to_string_lossy();
            Ending { success: false, status: format!("cannot run the runtime {program}: {error}") }
        }
    };
    // The death of the runtime may be the beginning of what the other thread is at, and that is to be finished.
    let _finished = killing.lock();
    if !ending.success && !directory.may_have_run() {
        kill_children(gettid());
    }
    // Best effort: without the note `start` says that there is none.
    let [new, note] = ["restored.json.new", RESULT].map(|name| directory.path().join(name));
    let _ = fs::write(&new, serde_json::json!(ending).to_string()).and_then(|()| fs::rename(&new, note));
    ending
}

/// Ends a restore that does not end by itself: when its migration is given up (CRIU may wait for ever for images that are not whole),
/// and when its tasks die while CRIU has them in hand: they wait for it to let go of their threads, or it waits for what they would have
/// done next. It does not hear of the death of a container's init, which is the runtime's child. As long as CRIU holds its threads nobody
/// can reap it either, and who deletes the container waits for that.
///
/// `killing` is held from the first kill to the last.
fn end_unwanted(directory: &Directory, keeper: Pid, killing: &Mutex<()>) {
    let mut dying = BTreeSet::new();
    while !directory.given_up() {
        sleep(STILL_WANTED);
        let before = replace(&mut dying, dying_tasks(keeper));
        if !before.is_disjoint(&dying) {
            let _killing = killing.lock();
            kill_children(keeper);
        }
    }
    sleep(GRACE);
    if !directory.may_have_run() {
        let _killing = killing.lock();
        kill_children(keeper);
    }
}

/// Processes below us that are about to end and have not yet, and children of the runtime that it has not noticed to be dead.
fn dying_tasks(keeper: Pid) -> BTreeSet<i32> {
    let runtimes = tasks::children_of_thread(getpid().as_raw(), keeper.as_raw());
    let mut found: BTreeSet<i32> = runtimes.iter().flat_map(|&runtime| tasks::children(runtime)).collect();
    let mut parents: Vec<i32> = found.iter().copied().collect();
    found.retain(|&child| tasks::is_dead(child));
    while let Some(parent) = parents.pop() {
        parents.extend(tasks::children(parent));
        if tasks::is_dying(parent) {
            found.insert(parent);
        }
    }
    found
}

/// Kills what a failed runtime has left to us. CRIU cannot go on without it, and may wait for ever for tasks that wait for CRIU; with
/// CRIU gone, its tasks are our children too.
///
/// None of them is reaped here: the dead go on to the engine's shim when we end, which waits for the death of the container's init.
fn kill_children(keeper: Pid) {
    let end = Instant::now() + LAST_WORDS;
    while let alive = living_children(keeper)
        && !alive.is_empty()
        && Instant::now() < end
    {
        for child in alive {
            let _ = kill(child, Signal::SIGKILL);
        }
        sleep(LOOK_AGAIN);
    }
}

/// Our children but for zombies: what the keeper's thread has started, and what that leaves, which goes to our first thread. In the
/// keeper they are one.
fn living_children(keeper: Pid) -> Vec<Pid> {
    let process = getpid();
    let children =
        [keeper, process].into_iter().flat_map(|thread| tasks::children_of_thread(process.as_raw(), thread.as_raw()));
    children.filter(|&pid| !tasks::is_dead(pid)).map(Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_noted_and_the_lock_is_free_afterwards() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::at(scratch.path());
        fs::write(directory.request(), "").unwrap();
        assert_eq!(ending(&directory), None);
        let good = keep(&directory, &mut Command::new("true"));
        assert!(good.success);
        directory.wait_until_left().unwrap();
        assert_eq!(ending(&directory), Some(good));
        let bad = keep(&directory, Command::new("sh").args(["-c", "exit 3"]));
        assert_eq!((bad.success, bad.status.as_str()), (false, "runtime: exit status: 3"));
        let none = keep(&directory, &mut Command::new("/nonexistent/runc"));
        assert!(none.status.contains("/nonexistent/runc"));
    }

    #[test]
    fn a_runtime_whose_child_is_dead_and_that_does_not_notice_is_ended() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::at(scratch.path());
        fs::write(directory.request(), "").unwrap();
        // The shell becomes a program that waits for nobody.
        let began = Instant::now();
        let ended = keep_in_a_process(&directory, "true & exec sleep 1000");
        assert!(!ended && began.elapsed() < Duration::from_secs(100), "{:?}", began.elapsed());
    }

    #[test]
    fn what_such_a_runtime_leaves_is_ended_too_also_when_tasks_may_have_run() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::at(scratch.path());
        fs::write(directory.request(), "").unwrap();
        fs::write(directory.used(), "").unwrap();
        let left = scratch.path().join("left");
        let script = format!("sleep 1000 & echo $! > {}; true & exec sleep 1000", left.display());
        assert!(!keep_in_a_process(&directory, &script));
        let left: i32 = fs::read_to_string(left).unwrap().trim().parse().unwrap();
        assert!(tasks::is_dead(left));
    }

    /// The keeper is the only thread's work there, as in its own process: it knows what is its own by its process id.
    fn keep_in_a_process(directory: &Directory, script: &str) -> bool {
        let program = std::env::current_exe().unwrap();
        let mut keeper = Command::new(program);
        keeper.args(["--exact", "oci::keeper::tests::the_keeper_itself", "--ignored", "--test-threads=1"]);
        keeper.env("KEEPER_DIRECTORY", directory.path()).env("KEEPER_SCRIPT", script);
        keeper.output().unwrap();
        ending(directory).unwrap().success
    }

    #[test]
    #[ignore = "what another test runs as a process"]
    fn the_keeper_itself() {
        let directory = Directory::at(std::env::var_os("KEEPER_DIRECTORY").unwrap());
        let script = std::env::var("KEEPER_SCRIPT").unwrap();
        keep(&directory, Command::new("sh").args(["-c", &script]));
    }

    #[test]
    fn a_restore_that_is_given_up_is_not_begun() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::at(scratch.path().join("gone"));
        let unwanted = keep(&directory, &mut Command::new("true"));
        assert!(unwanted.status.contains("given the migration up"), "{}", unwanted.status);
        assert!(!directory.path().exists());
    }

    #[test]
    fn other_calls_are_not_the_keepers() {
        assert_eq!(called_by_create(&["spothop-oci".into(), "create".into(), "c".into(), "d".into()]), None);
        assert_eq!(called_by_create(&["spothop-oci".into(), VERB.into()]), None);
    }
}
