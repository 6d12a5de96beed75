//! The gate at `post-restore`: CRIU's action script holds the tasks there until `start` lets them go.
//!
//! CRIU calls `<migration directory>/hook`, a symbolic link to this program. At `post-restore` the hook says `held <pid>` on
//! `create.sock`, where `create` listens, and then waits on `gate.sock` for one line: `go` or `abort`. The tasks
//! can only run after somebody in this directory (root only) said `go`; if the hook dies, CRIU kills them. When the
//! daemon takes its request back it has given the migration up, and the hook says no by itself.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::pager;
use crate::failpoint;
use crate::handoff::Directory;
use crate::hook::{Action, Event};
use crate::tasks;

/// The link's name in the migration's directory.
const HOOK: &str = "hook";

/// How often, in milliseconds, the hook looks whether its request and its tasks are still there.
const STILL_THERE: u16 = 500;

/// `held` and a process id have 16 bytes at most; what is longer is none of our words.
const LONGEST_WORD: u64 = 64;

/// Makes the link that CRIU shall call, and returns its path.
pub(super) fn install(directory: &Path) -> io::Result<PathBuf> {
    let link = directory.join(HOOK);
    let _ = std::fs::remove_file(&link);
    // Of a former attempt, which has failed.
    pager::forget(directory);
    for mark in [Directory::at(directory).resuming_mark(), Directory::at(directory).resumed_mark()] {
        let _ = std::fs::remove_file(mark);
    }
    symlink(std::env::current_exe()?, &link)?;
    Ok(link)
}

/// Where `create` waits to hear that the tasks are held.
pub(super) fn listen_for_held(directory: &Path) -> io::Result<UnixListener> {
    bind(&directory.join("create.sock"))
}

/// The process id of init in the message of a hook that holds; `None` for anything else.
pub(super) fn held_pid(stream: UnixStream) -> Option<i32> {
    held_pid_in(stream)
}

pub(super) fn held_pid_in(stream: impl Read) -> Option<i32> {
    let mut text = String::new();
    BufReader::new(stream.take(LONGEST_WORD)).read_line(&mut text).ok()?;
    text.strip_prefix("held ")?.trim().parse().ok()
}

/// What a hook that holds says.
pub(super) fn held_word(init_pid: i32) -> String {
    format!("held {init_pid}\n")
}

/// Lets the held tasks go (`go`), or lets CRIU kill them.
pub(super) fn decide(directory: &Path, go: bool) -> io::Result<()> {
    let mut stream = UnixStream::connect(directory.join("gate.sock"))?;
    stream.write_all(if go { b"go\n" } else { b"abort\n" })
}

/// Does the hook's work when this process is one; `None` when it is not.
pub(super) fn called_by_criu(arguments: &[OsString]) -> Option<ExitCode> {
    let path = Path::new(arguments.first()?);
    if path.file_name()? != HOOK {
        return None;
    }
    let event = Event::from_env()?;
    match event.action {
        Action::PostRestore => {}
        Action::PreResume => {
            // CRIU resumes the tasks whatever we answer, so this must not fail: the directory is on a tmpfs, and an empty file needs no
            // room there.
            let _ = path.parent().map(|directory| std::fs::write(Directory::at(directory).resuming_mark(), ""));
            return Some(ExitCode::SUCCESS);
        }
        Action::PostResume => {
            // Best effort: without it `start` still has the keeper's word.
            let _ = path.parent().map(|directory| std::fs::write(Directory::at(directory).resumed_mark(), ""));
            return Some(ExitCode::SUCCESS);
        }
        _ => return Some(ExitCode::SUCCESS),
    }
    let go = event.init_pid.zip(path.parent()).is_some_and(|(pid, directory)| hold(directory, pid).unwrap_or(false));
    Some(if go { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reports the tasks as held and waits for the word. An error is a no: nobody else knows of the tasks.
fn hold(directory: &Path, init_pid: i32) -> io::Result<bool> {
    let gate = bind(&directory.join("gate.sock"))?;
    // First: once `create` has heard of them, the tasks may run.
    pager::tell_held(directory, init_pid)?;
    let mut create = UnixStream::connect(directory.join("create.sock"))?;
    create.write_all(held_word(init_pid).as_bytes())?;
    drop(create);
    failpoint::reach("target:hook:held").map_err(io::Error::other)?;
    loop {
        let mut fds = [PollFd::new(gate.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(STILL_THERE)) == Ok(0) {
            // An engine whose `start` was killed kills the container; CRIU, which waits for us, does not notice.
            if !Directory::at(directory).given_up() && !tasks::is_dead(init_pid) {
                continue;
            }
            return Ok(false);
        }
        let (stream, _) = gate.accept()?;
        let mut word = String::new();
        // One that connects and says nothing has died; another will come.
        let _ = BufReader::new(stream.take(LONGEST_WORD)).read_line(&mut word);
        match word.trim() {
            "go" => {
                failpoint::reach("target:hook:go").map_err(io::Error::other)?;
                return Ok(true);
            }
            "abort" => return Ok(false),
            _ => {}
        }
    }
}

pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that lives as long as the test.
    fn ours() -> i32 {
        std::process::id().cast_signed()
    }

    /// The directory of a migration that goes on.
    fn migration() -> tempfile::TempDir {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(Directory::at(scratch.path()).request(), "").unwrap();
        scratch
    }

    fn held(word: Option<bool>) -> (Option<i32>, bool) {
        let scratch = migration();
        let directory = scratch.path().to_owned();
        let create = listen_for_held(&directory).unwrap();
        let hook = std::thread::spawn({
            let directory = directory.clone();
            move || hold(&directory, ours()).unwrap()
        });
        let pid = held_pid(create.accept().unwrap().0);
        if word.is_none() {
            drop(UnixStream::connect(directory.join("gate.sock")).unwrap());
        }
        decide(&directory, word.unwrap_or(true)).unwrap();
        (pid, hook.join().unwrap())
    }

    #[test]
    fn held_tasks_go_or_die_by_one_word() {
        assert_eq!(held(Some(true)), (Some(ours()), true));
        assert_eq!(held(Some(false)), (Some(ours()), false));
    }

    #[test]
    fn a_silent_visitor_decides_nothing() {
        assert_eq!(held(None), (Some(ours()), true));
    }

    #[test]
    fn tasks_of_a_migration_that_is_given_up_are_not_held() {
        let scratch = migration();
        let create = listen_for_held(scratch.path()).unwrap();
        let hook = std::thread::spawn({
            let directory = scratch.path().to_owned();
            move || hold(&directory, ours()).unwrap()
        });
        assert_eq!(held_pid(create.accept().unwrap().0), Some(ours()));
        std::fs::remove_file(Directory::at(scratch.path()).request()).unwrap();
        assert!(!hook.join().unwrap());
    }

    #[test]
    fn tasks_that_are_dead_are_not_held() {
        let scratch = migration();
        let create = listen_for_held(scratch.path()).unwrap();
        let hook = std::thread::spawn({
            let directory = scratch.path().to_owned();
            // No process has an id above the kernel's limit (2^22).
            move || hold(&directory, 1 << 23).unwrap()
        });
        assert_eq!(held_pid(create.accept().unwrap().0), Some(1 << 23));
        assert!(!hook.join().unwrap());
    }

    #[test]
    fn tasks_that_nobody_waits_for_are_not_held() {
        let scratch = migration();
        assert!(hold(scratch.path(), 1).is_err());
    }

    #[test]
    fn only_crius_call_of_the_link_is_a_hook() {
        assert_eq!(called_by_criu(&["/usr/bin/spothop-oci".into()]), None);
        assert_eq!(called_by_criu(&[]), None);
    }
}
