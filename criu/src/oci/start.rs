//! `start` and `delete` of a container that `create` has restored.

use std::ffi::OsString;
use std::fs;
use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::args::Invocation;
use super::error::{OciError, file};
use super::marker::Marker;
use super::{Handled, create, gate, keeper, remains, runtime};
use crate::failpoint;
use crate::handoff::{Client, Directory, Report, Verdict};
use crate::netns::{NetnsError, Opening, OwnNetns};

/// What CRIU may take from the word to running tasks; it takes about 40 ms.
const TAIL: Duration = Duration::from_secs(5);
const TAIL_POLL: Duration = Duration::from_millis(20);

/// Lets the held tasks run once the daemon says so.
pub(super) fn start(invocation: &Invocation) -> Result<Handled, OciError> {
    let Some(marker) = Marker::read(invocation) else { return Ok(Handled::Ordinary) };
    let directory = Directory::at(&marker.directory);
    if directory.used().exists() {
        return Ok(Handled::Ordinary);
    }
    let mut client = Client::new(directory.clone());
    let container_id = invocation.container.to_string_lossy().into_owned();
    let opening = marker.silent_netns.as_deref().map(Opening::prepare).transpose();
    let asked = failpoint::reach("target:wrapper:attached")
        .map_err(OciError::from)
        .and_then(|()| Ok(client.ask(&Report::Attached { container_id })?));
    let done = asked.and_then(|verdict| match verdict {
        Verdict::Run => let_go(invocation, opening, &directory),
        Verdict::Abort { reason } => Err(OciError::Aborted { reason }),
        verdict @ Verdict::Restore => Err(OciError::Unexpected { verdict: format!("{verdict:?}"), verb: "start" }),
    });
    match done {
        Ok(()) => {
            // The tasks run, whatever becomes of the message.
            let _ = failpoint::reach("target:wrapper:gone");
            client.try_tell(&Report::Running);
            Ok(Handled::Done(ExitCode::SUCCESS))
        }
        Err(error) => {
            abandon(&marker, &directory);
            client.try_tell(&Report::Failed { error: error.to_string() });
            Err(error)
        }
    }
}

fn let_go(
    invocation: &Invocation,
    opening: Result<Option<Opening>, NetnsError>,
    directory: &Directory,
) -> Result<(), OciError> {
    if let Some(opening) = opening? {
        opening.open()?;
    }
    // Before the word, not after: an image set that may have run must never be restored again.
    fs::write(directory.used(), "").map_err(file("write", directory.used()))?;
    failpoint::reach("target:wrapper:go")?;
    gate::decide(directory.path(), true).map_err(file("open the gate in", directory.path()))?;
    directory.wait_until_left().map_err(file("wait for the restore in", directory.path()))?;
    match keeper::ending(directory) {
        Some(ending) if ending.success => Ok(()),
        None if resumes_without_keeper(directory) => Ok(()),
        _ => Err(create::failure(invocation, directory)),
    }
}

/// The keeper was killed, and CRIU goes on without it: does it say that the tasks run?
fn resumes_without_keeper(directory: &Directory) -> bool {
    let deadline = Instant::now() + TAIL;
    while Instant::now() < deadline {
        if directory.resumed() {
            return true;
        }
        sleep(TAIL_POLL);
    }
    false
}

/// Has CRIU kill what it holds; no error, because the tasks may be dead already.
fn abandon(marker: &Marker, directory: &Directory) {
    if gate::decide(directory.path(), false).is_ok() {
        let _ = directory.wait_until_left();
    }
    if let Some(name) = &marker.own_netns {
        OwnNetns::named(name).delete();
    }
}

/// runc's `delete`, without the container's files, and then the network namespace that was made for the container.
pub(super) fn delete(invocation: &Invocation, arguments: &[OsString]) -> Result<Handled, OciError> {
    remains::detach_root(invocation);
    let Some(name) = Marker::read(invocation).and_then(|marker| marker.own_netns) else { return Ok(Handled::Ordinary) };
    let runtime = runtime::resolve("runc".as_ref());
    let status = Command::new(&runtime).args(arguments).status().map_err(file("run", runtime))?;
    if status.success() {
        OwnNetns::named(name).delete();
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(Handled::Done(code.map_or(ExitCode::FAILURE, ExitCode::from)))
}
