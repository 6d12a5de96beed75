//! The gate: CRIU's action script, which holds the dump twice: before it begins, and when it is whole.
//!
//! At `pre-dump` CRIU has not touched the tasks yet. It waits there until the daemon has frozen them, so that neither its start nor that
//! of the runtime is downtime; without a word from the daemon there is no dump.
//!
//! At `post-dump` all images are written and all tasks are frozen. The script's exit code decides: 0 and CRIU kills the
//! tasks, anything else and it lets them run. So the script exits 0 only when the journal says that the target runs: the commit gate. The
//! socket merely wakes it: if the daemon dies, the script reads the journal by itself, and after [`ABANDONED`] without a daemon it
//! writes ABORT there, by the same compare-and-set as everybody else.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream as BlockingUnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use spothop_criu::cgroup;
use spothop_criu::dump;
use spothop_criu::failpoint;
use spothop_criu::hook::{Action, Event};
use spothop_criu::netns;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::protocol::{self, Hold};
use super::{Side, Verdict};
use crate::journal::{Journal, JournalError};

/// How long a held dump waits for a daemon that does not answer before it gives the container back to its host.
///
/// systemd restarts a crashed daemon within a second or two; a minute is long past that, and short enough for clients.
const ABANDONED: Duration = Duration::from_secs(60);

/// Between two looks into the journal while no daemon holds the other end of the socket.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The gate's files, in the migration's directory.
const SOCKET: &str = "gate.sock";
const TICKET: &str = "gate.json";
const SCRIPT: &str = "criu-hook";

/// What the script says at `pre-dump` and at `post-dump`, and what it hears at the first when the tasks are frozen.
const BEFORE: u8 = b'b';
const HELD: u8 = b'\n';
const FROZEN: u8 = b'f';

/// What the script needs to know when it has nothing but its own path.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ticket {
    /// The migration.
    pub migration: String,
    /// Where the journal is.
    pub journal: PathBuf,
    /// Upon COMMIT, tell the container's peers that their connections are gone before the tasks are.
    pub reset_connections: bool,
}

/// What can go wrong at the gate.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The gate's files cannot be made.
    #[error("the commit gate {path} cannot be made", path = path.display())]
    Make {
        /// Socket or script.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The script cannot read what it is to wait for.
    #[error("CRIU's action script cannot read {path}", path = path.display())]
    Ticket {
        /// The ticket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The script cannot note which CRIU it belongs to.
    #[error("CRIU's action script cannot write in {path}", path = path.display())]
    Note {
        /// The migration's directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Waiting for CRIU's script failed.
    #[error("waiting for CRIU at the commit gate failed")]
    Wait(#[source] io::Error),
    /// A test asked for it.
    #[error(transparent)]
    Injected(#[from] failpoint::Injected),
    /// The journal did not answer.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// The daemon's end. Dropping it (or the daemon's death) wakes the script, which then reads the journal until that says what to do.
#[derive(Debug)]
pub struct Gate {
    listener: UnixListener,
    script: PathBuf,
    /// The script that waits, at whichever of the two places.
    waiting: Option<UnixStream>,
}

impl Gate {
    /// Makes the gate's socket and the action script in `directory`, the migration's own.
    ///
    /// CRIU runs the script as a bare path, without arguments (criu, `criu/action-scripts.c`, `run_shell_scripts`). So it
    /// is a symbolic link to this very program, which knows itself by the link's name and finds the rest beside the
    /// link: no shell, and it works on a runtime directory that is mounted noexec.
    ///
    /// # Errors
    /// The files cannot be made.
    pub fn make(directory: &Path, program: &Path, ticket: &Ticket) -> Result<Self, GateError> {
        let made = |path: &Path| {
            let path = path.to_owned();
            move |source| GateError::Make { path, source }
        };
        let socket = directory.join(SOCKET);
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(made(&socket)(error)),
            _ => {}
        }
        let ticket_path = directory.join(TICKET);
        let text = serde_json::to_vec(ticket).map_err(|error| made(&ticket_path)(error.into()))?;
        std::fs::write(&ticket_path, text).map_err(made(&ticket_path))?;
        let script = directory.join(SCRIPT);
        match symlink(program, &script) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(made(&script)(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&socket).map_err(made(&socket))?;
        Ok(Self { listener, script, waiting: None })
    }

    /// The action script for CRIU's configuration.
    #[must_use]
    pub fn script(&self) -> &Path {
        &self.script
    }

    /// Waits until CRIU is about to touch the tasks. Safe to cancel.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn before(&mut self) -> Result<(), GateError> {
        self.hear(BEFORE).await
    }

    /// Lets CRIU begin: the tasks are frozen.
    ///
    /// # Errors
    /// Nobody waits for that any more.
    pub async fn begin(&mut self) -> Result<(), GateError> {
        let mut waiting = self.waiting.take().ok_or(GateError::Wait(io::ErrorKind::NotConnected.into()))?;
        waiting.write_u8(FROZEN).await.map_err(GateError::Wait)
    }

    /// Waits until CRIU holds the dump. Safe to cancel.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn reached(&mut self) -> Result<(), GateError> {
        self.hear(HELD).await
    }

    async fn hear(&mut self, wanted: u8) -> Result<(), GateError> {
        let (mut stream, _) = self.listener.accept().await.map_err(GateError::Wait)?;
        let word = stream.read_u8().await.map_err(GateError::Wait)?;
        if word != wanted {
            return Err(GateError::Wait(io::ErrorKind::InvalidData.into()));
        }
        self.waiting = Some(stream);
        Ok(())
    }

    /// Wakes the script, which looks into the journal and comes back if there is nothing.
    #[cfg(test)]
    fn open(&mut self) {
        self.waiting = None;
    }
}

/// The directory of the gate whose action script this process is, if `program` (`argv[0]`) says that it is one.
#[must_use]
pub fn called_as_script(program: &Path) -> Option<&Path> {
    program.file_name().filter(|name| *name == SCRIPT).and_then(|_| program.parent())
}

/// The action script: returns at once for every event but `pre-dump`, and then when the tasks are frozen, and `post-dump`, and then when
/// there is a verdict.
///
/// True means exit code 0: at `pre-dump` CRIU begins, at `post-dump` it kills the tasks.
///
/// # Errors
/// The ticket or the journal cannot be read. The caller exits non-zero, which gives the container back to its host.
pub fn script(directory: &Path, event: Option<&Event>) -> Result<bool, GateError> {
    let event = match event {
        Some(event) if event.action == Action::PostDump => event,
        Some(event) if event.action == Action::PreDump => {
            failpoint::reach("source:hook:before")?;
            dump::note_criu(directory, event)
                .map_err(|source| GateError::Note { path: directory.to_owned(), source })?;
            return Ok(may_begin(&directory.join(SOCKET)));
        }
        _ => return Ok(true),
    };
    let path = directory.join(TICKET);
    let ticket: Ticket = std::fs::read(&path)
        .and_then(|text| Ok(serde_json::from_slice(&text)?))
        .map_err(|source| GateError::Ticket { path, source })?;
    failpoint::reach("source:hook:held")?;
    let kill = hold(&Journal::open(&ticket.journal)?, directory, &ticket.migration, ABANDONED);
    failpoint::reach("source:hook:verdict")?;
    if kill && ticket.reset_connections {
        // The tasks are given up whatever comes of this: their peers would merely notice later.
        if let Some(Err(error)) = event.init_pid.map(netns::reset_connections) {
            eprintln!("connections were not reset: {error}");
        }
    }
    if let Some(init_pid) = event.init_pid.filter(|_| kill) {
        // CRIU would leave the cgroup frozen, and the engine cannot delete a container that is.
        cgroup::kill_frozen(init_pid);
    }
    Ok(kill)
}

/// Blocks until the journal says what becomes of the tasks: true, and CRIU may kill them. An error of the journal says nothing, so it
/// is asked again.
fn hold(journal: &Journal, directory: &Path, migration: &str, abandoned: Duration) -> bool {
    let mut alone_since = Instant::now();
    loop {
        let standing = journal.standing(migration, Side::Source);
        match standing.as_ref().map(|standing| protocol::hold(standing.phase, standing.verdict)) {
            Ok(Hold::Kill) => return true,
            Ok(Hold::Release) => return false,
            Ok(Hold::On) => {}
            Err(error) => eprintln!("the dump is held on: {error}"),
        }
        if wait_for_daemon(&directory.join(SOCKET)).is_ok() {
            alone_since = Instant::now();
            continue;
        }
        if alone_since.elapsed() >= abandoned && standing.is_ok_and(|standing| standing.verdict.is_none()) {
            // Where the target may run by now this is refused, and only a daemon can ask it.
            let reason = "the daemon was gone for too long while the container was frozen";
            if journal.decide(migration, Side::Source, Verdict::Abort, Some(reason), Timestamp::now()).is_ok() {
                continue;
            }
        }
        // Nobody is there to wake us: a daemon that comes back decides in the journal first.
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Whether the daemon says that the tasks are frozen. If it dies instead, or gives the migration up, nothing has happened to them.
fn may_begin(socket: &Path) -> bool {
    let asked = BlockingUnixStream::connect(socket).and_then(|mut stream| {
        stream.write_all(&[BEFORE])?;
        let mut word = [0];
        stream.read_exact(&mut word).map(|()| word)
    });
    asked.is_ok_and(|word| word == [FROZEN])
}

/// Says that the dump is held and returns when the daemon closes its end, for whatever reason.
fn wait_for_daemon(socket: &Path) -> io::Result<()> {
    let mut stream = BlockingUnixStream::connect(socket)?;
    stream.write_all(&[HELD])?;
    io::BufReader::new(stream).skip_until(b'\n')?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::NewMigration;
    use crate::migration::Phase;

    fn frozen_migration(directory: &Path) -> Journal {
        let journal = Journal::open(&directory.join("journal.db")).unwrap();
        let new = NewMigration {
            id: "m1".into(),
            side: Side::Source,
            container_id: "c".into(),
            container: "c".into(),
            peer: "b".into(),
            cause: "manual".into(),
            deadline: None,
            predicted: None,
        };
        journal.begin(&new, Timestamp::now()).unwrap();
        for phase in [Phase::Reserved, Phase::Prepared, Phase::Frozen, Phase::Transferred, Phase::Restored] {
            journal.enter("m1", Side::Source, phase, Timestamp::now()).unwrap();
        }
        journal
    }

    fn event(action: Action) -> Event {
        Event { action, init_pid: None, criu_pid: Some(std::process::id().cast_signed()) }
    }

    #[tokio::test]
    async fn the_dump_is_held_until_the_journal_says_how_it_ended() {
        for wanted in [Verdict::Commit, Verdict::Abort] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().to_owned();
            let journal = frozen_migration(&path);
            let ticket = Ticket { migration: "m1".into(), journal: path.join("journal.db"), reset_connections: false };
            let mut gate = Gate::make(&path, Path::new("/usr/bin/spothop"), &ticket).unwrap();
            let script = gate.script().to_owned();
            let hook = tokio::task::spawn_blocking(move || {
                let gate = called_as_script(&script).unwrap();
                assert!(super::script(gate, Some(&event(Action::NetworkLock))).unwrap());
                super::script(gate, Some(&event(Action::PostDump))).unwrap()
            });
            gate.reached().await.unwrap();
            // Waking it without a verdict must not let it through: it comes back.
            gate.open();
            gate.reached().await.unwrap();
            journal.decide("m1", Side::Source, wanted, None, Timestamp::now()).unwrap();
            gate.open();
            if wanted == Verdict::Commit {
                // The target may still give the container back.
                gate.reached().await.unwrap();
                journal.enter("m1", Side::Source, Phase::Running, Timestamp::now()).unwrap();
                gate.open();
            }
            assert_eq!(hook.await.unwrap(), wanted == Verdict::Commit);
        }
    }

    #[tokio::test]
    async fn criu_begins_only_when_the_daemon_says_that_the_tasks_are_frozen() {
        for frozen in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().to_owned();
            let ticket = Ticket { migration: "m1".into(), journal: path.join("journal.db"), reset_connections: false };
            let mut gate = Gate::make(&path, Path::new("/usr/bin/spothop"), &ticket).unwrap();
            let hook = tokio::task::spawn_blocking(move || script(&path, Some(&event(Action::PreDump))).unwrap());
            gate.before().await.unwrap();
            if frozen {
                gate.begin().await.unwrap();
            }
            drop(gate);
            assert_eq!(hook.await.unwrap(), frozen);
        }
        let nobody = tempfile::tempdir().unwrap();
        assert!(!script(nobody.path(), Some(&event(Action::PreDump))).unwrap());
    }

    #[tokio::test]
    async fn a_script_that_comes_after_the_verdict_does_not_wait_at_the_gate() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let journal = frozen_migration(&path);
        let ticket = Ticket { migration: "m1".into(), journal: path.join("journal.db"), reset_connections: false };
        let gate = Gate::make(&path, Path::new("/usr/bin/spothop"), &ticket).unwrap();
        let hook = tokio::task::spawn_blocking(move || hold(&journal, &path, "m1", Duration::MAX));
        // It has connected, and nobody takes the connection: the verdict fell while CRIU still wrote its images.
        let journal = Journal::open(&directory.path().join("journal.db")).unwrap();
        journal.decide("m1", Side::Source, Verdict::Abort, None, Timestamp::now()).unwrap();
        drop(gate);
        assert!(!hook.await.unwrap());
    }

    #[tokio::test]
    async fn without_a_daemon_the_container_is_given_back() {
        let directory = tempfile::tempdir().unwrap();
        let journal = frozen_migration(directory.path());
        assert!(!hold(&journal, directory.path(), "m1", Duration::ZERO));
        assert_eq!(journal.verdict("m1", Side::Source).unwrap(), Some(Verdict::Abort));
    }

    #[tokio::test]
    async fn an_end_counts_even_if_the_daemon_died_right_after_it() {
        let directory = tempfile::tempdir().unwrap();
        let journal = frozen_migration(directory.path());
        journal.decide("m1", Side::Source, Verdict::Commit, None, Timestamp::now()).unwrap();
        journal.enter("m1", Side::Source, Phase::Running, Timestamp::now()).unwrap();
        assert!(hold(&journal, directory.path(), "m1", Duration::ZERO));
    }
}
