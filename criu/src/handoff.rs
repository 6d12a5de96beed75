//! The conversation between the daemon at the target and `spothop-oci`, the runtime that the engine calls.
//!
//! Each migration has a directory at the target, [`Directory`], made by the daemon before it asks the engine to create
//! the container. The daemon listens on its `handoff.sock`; the wrapper connects once per verb of the engine. Messages
//! are JSON, one per line, tagged by `"say"`:
//!
//! ```text
//! engine calls `create`                       engine calls `start`
//!   wrapper → Waiting {container_id, pid}       wrapper → Attached {container_id}
//!   daemon  → Restore | Abort {reason}          daemon  → Run | Abort {reason}
//!   wrapper → Restored {init_pid} | Failed      wrapper → Running | Failed {error}
//! ```
//! After its last message the wrapper closes. When the socket breaks (the daemon was restarted) the wrapper connects again
//! and repeats its last message, for as long as there is a request; it decides nothing by itself. A message may
//! therefore arrive twice, and the daemon answers each time. Once the request is gone the answer is taken to be `Abort`.
//!
//! Commands for a restore are in `request.json` ([`RestoreRequest`]); an image set is used once ([`Directory::used`]). Who works in
//! the directory holds a shared lock on `lock` ([`Directory::enter`]), and the daemon removes nothing below anybody's feet
//! ([`Directory::give_up`]).

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::TcpMode;

/// The annotation (in Docker: `--annotation`) that makes `create` a restore; its value is the migration id.
pub const ANNOTATION: &str = "io.spothop.migration";

/// Where the directories of restores are.
pub const RESTORE_ROOT: &str = "/run/spothop/restore";

/// Where the pending markers are: `pending/<migration id>`, an empty file.
///
/// Written by the daemon (durably) before it creates the container, removed when the container runs or is removed. While
/// it is there and no request is, `create` is refused: a half-made target must never start cold, that would be a
/// second copy. It is on disk, unlike [`RESTORE_ROOT`], because it must outlive a reboot.
pub const PENDING_ROOT: &str = "/var/lib/spothop/pending";

/// How long the wrapper waits before it connects again to a daemon that is away.
const RECONNECT: Duration = Duration::from_millis(50);

/// Is `text` a migration id: a lower-case UUID (36 characters)? Only such text may become part of a path.
pub fn is_migration_id(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}

/// The pending marker of a migration, see [`PENDING_ROOT`].
pub fn pending_marker(migration: &str) -> PathBuf {
    Path::new(PENDING_ROOT).join(migration)
}

/// The directory of one restore: `/run/spothop/restore/<migration id>`, made by the daemon with mode 0700.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// The directory of `migration` in [`RESTORE_ROOT`]. Nothing is created.
    pub fn of(migration: &str) -> Self {
        Self::at(Path::new(RESTORE_ROOT).join(migration))
    }

    /// The directory at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `request.json`: a [`RestoreRequest`], written (atomically) by the daemon before the engine is called.
    pub fn request(&self) -> PathBuf {
        self.path.join("request.json")
    }

    /// `handoff.sock`: the daemon listens here.
    pub fn socket(&self) -> PathBuf {
        self.path.join("handoff.sock")
    }

    /// `images/`: CRIU's images and runc's `descriptors.json`; whole when the daemon answers [`Verdict::Restore`].
    pub fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// `images/memory/`: the pages of the tasks ([`crate::memory::Store`]), where they do not come in CRIU's images.
    pub fn pages(&self) -> PathBuf {
        self.images().join("memory")
    }

    /// `work/`: CRIU's `restore.log` and statistics, and where it finds the pager of a lazy restore; made by the wrapper.
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// `owed.sock`: the pager listens here, where pages come after the tasks run ([`crate::memory::pager::ask`]).
    pub fn owed_socket(&self) -> PathBuf {
        self.path.join("owed.sock")
    }

    /// `paged.json`: how the pager of a lazy restore has ended ([`crate::paged`]).
    pub fn paged(&self) -> PathBuf {
        self.path.join("paged.json")
    }

    /// `criu.conf`: CRIU's options for this restore; written by the wrapper.
    pub fn criu_conf(&self) -> PathBuf {
        self.path.join("criu.conf")
    }

    /// `used`: written by the wrapper just before the tasks may run; from then on a `create` of the container is an
    /// ordinary one, whether or not the daemon has cleaned up.
    pub fn used(&self) -> PathBuf {
        self.path.join("used")
    }

    /// `resuming`: written by CRIU's action script right before the tasks run. Once it is there, what they have done since must not be
    /// undone by restoring them again.
    pub fn resuming_mark(&self) -> PathBuf {
        self.path.join("resuming")
    }

    /// May the tasks have run?
    pub fn may_have_run(&self) -> bool {
        self.resuming_mark().exists()
    }

    /// `resumed`: written by CRIU's action script when the tasks run.
    pub fn resumed_mark(&self) -> PathBuf {
        self.path.join("resumed")
    }

    /// Has CRIU said that the tasks run?
    pub fn resumed(&self) -> bool {
        self.resumed_mark().exists()
    }

    /// Has the daemon given the migration up? It takes its request back then.
    pub fn given_up(&self) -> bool {
        !self.request().exists()
    }

    /// Takes part in the restore: until the file is closed, [`Directory::give_up`] waits.
    ///
    /// # Errors
    /// [`HandoffError::Gone`] when the migration is given up already.
    pub fn enter(&self) -> Result<File, HandoffError> {
        let lock = File::create(self.lock()).and_then(|lock| lock.lock_shared().map(|()| lock));
        // Looked at after locking: who gives up takes the request away first, and waits for the lock then.
        match lock {
            Ok(lock) if !self.given_up() => Ok(lock),
            _ => Err(HandoffError::Gone { path: self.path.clone() }),
        }
    }

    /// Waits until nobody takes part in the restore any more.
    ///
    /// # Errors
    /// The lock cannot be opened.
    pub fn wait_until_left(&self) -> io::Result<()> {
        File::open(self.lock())?.lock()
    }

    /// Takes the request back, and returns when nobody works here any more and nobody will: each of the wrapper, the keeper and CRIU's
    /// action script sees that it is gone. Does nothing where there is no request.
    ///
    /// # Errors
    /// The request cannot be removed, or the lock cannot be opened.
    pub fn give_up(&self) -> io::Result<()> {
        let missing_is_fine = |done: io::Result<()>| match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        missing_is_fine(fs::remove_file(self.request()))?;
        missing_is_fine(self.wait_until_left())
    }

    fn lock(&self) -> PathBuf {
        self.path.join("lock")
    }
}

/// What `create` shall restore, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// The migration's id, the same as in the annotation and in the directory's name.
    pub migration: String,
    /// Where the images are (or will be, once [`Verdict::Restore`] came): usually [`Directory::images`].
    pub images: PathBuf,
    /// What becomes of TCP connections; the same as at the dump.
    pub tcp: TcpMode,
    /// The network namespace in which CRIU restores the sockets.
    pub network: Network,
    /// The runtime that does the work: a path or a name to be looked up in PATH. Only runc is supported.
    pub runtime: PathBuf,
    /// The directory of the page store ([`crate::memory::Store`]), when the tasks shall run before all of their memory is in place; the
    /// images are composed for that ([`crate::memory::Restore::Lazy`]). `None`: everything is in the images.
    #[serde(default)]
    pub lazy: Option<PathBuf>,
    /// Where the container's first descriptors led at the source ([`crate::runtime_state::RuntimeState::descriptors`]).
    #[serde(default)]
    pub descriptors: Vec<String>,
}

/// The network namespace of a restored container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Network {
    /// The wrapper makes a namespace that has these addresses on its loopback, silenced until `start`, and names it in the
    /// bundle; the engine plugs its interfaces into it between `create` and `start` (Docker with a network of its
    /// own). CRIU runs in it; the dump must have been made in the same way ([`crate::dump::Checkpoint::in_its_network`]).
    Own {
        /// Addresses to which restored sockets are bound: those of the container at the source.
        addresses: Vec<IpAddr>,
    },
    /// Whatever the bundle says: the host's network, or a namespace that the engine made and configured before `create`.
    Given,
}

/// What the wrapper says to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum Report {
    /// `create` was called, everything that can be prepared without images is; waits for [`Verdict::Restore`].
    Waiting {
        /// The engine's id of the container.
        container_id: String,
        /// The wrapper's process id (as the wrapper's PID namespace sees it).
        pid: i32,
    },
    /// All tasks are restored and stopped; no user code has run. `create` returns to the engine.
    Restored {
        /// The process id of the container's init.
        init_pid: i32,
    },
    /// `start` was called: the engine has attached its network. Waits for [`Verdict::Run`].
    Attached {
        /// The engine's id of the container.
        container_id: String,
    },
    /// The tasks run.
    Running,
    /// The verb failed; nothing of the container runs, and the engine gets the same text.
    Failed {
        /// What happened, with CRIU's first error and its likely cause.
        error: String,
    },
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum Verdict {
    /// To [`Report::Waiting`]: images and files are whole, restore them.
    Restore,
    /// To [`Report::Attached`]: the source has committed, let the tasks run.
    Run,
    /// To either: undo everything and fail the engine's call.
    Abort {
        /// Why; shown by the engine as the error of its call.
        reason: String,
    },
}

/// Why a request or a message could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    /// A file of the directory could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `request.json` is not what this version of the wrapper understands.
    #[error("{path} is not a restore request: {source}; are spothop and spothop-oci of the same version?")]
    Request {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// The daemon has taken its request back: the migration is given up.
    #[error("the spothop daemon has given the migration up (there is no request in {path} any more)")]
    Gone {
        /// The directory.
        path: PathBuf,
    },
}

impl RestoreRequest {
    /// The request in `directory`; `None` when there is none.
    ///
    /// # Errors
    /// When it is there and cannot be read or understood.
    pub fn read(directory: &Directory) -> Result<Option<Self>, HandoffError> {
        let path = directory.request();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(HandoffError::Read { path, source }),
        };
        serde_json::from_slice(&text).map(Some).map_err(|source| HandoffError::Request { path, source })
    }
}

/// The wrapper's end of one conversation. Blocking.
#[derive(Debug)]
pub struct Client {
    directory: Directory,
    connection: Option<BufReader<UnixStream>>,
}

impl Client {
    /// A client for `directory`; it connects when it has something to say.
    pub fn new(directory: Directory) -> Self {
        Self { directory, connection: None }
    }

    /// Says `report` and waits for the verdict, however long that takes.
    ///
    /// # Errors
    /// [`HandoffError::Gone`] when the migration is given up meanwhile.
    pub fn ask(&mut self, report: &Report) -> Result<Verdict, HandoffError> {
        loop {
            match self.say(report).and_then(|()| self.hear()) {
                Ok(verdict) => return Ok(verdict),
                Err(_) => self.pause()?,
            }
        }
    }

    /// Says `report`, to which there is no answer; returns when the daemon's socket took it.
    ///
    /// # Errors
    /// [`HandoffError::Gone`] when the migration is given up meanwhile.
    pub fn tell(&mut self, report: &Report) -> Result<(), HandoffError> {
        loop {
            match self.say(report) {
                Ok(()) => return Ok(()),
                Err(_) => self.pause()?,
            }
        }
    }

    /// Says `report` if the daemon can hear it at once; for errors, which the engine hears as well.
    pub fn try_tell(&mut self, report: &Report) {
        if self.say(report).is_err() {
            self.connection = None;
            let _ = self.say(report);
        }
    }

    fn say(&mut self, report: &Report) -> io::Result<()> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            empty => empty.insert(BufReader::new(UnixStream::connect(self.directory.socket())?)),
        };
        connection.get_mut().write_all(&line(report)?)
    }

    fn hear(&mut self) -> io::Result<Verdict> {
        let connection = self.connection.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        read_line(connection)
    }

    fn pause(&mut self) -> Result<(), HandoffError> {
        self.connection = None;
        if self.directory.given_up() {
            return Err(HandoffError::Gone { path: self.directory.path().to_owned() });
        }
        std::thread::sleep(RECONNECT);
        Ok(())
    }
}

/// A message as it goes over the socket: JSON and a newline.
///
/// # Errors
/// Never for [`Report`] and [`Verdict`]; the type is `io::Result` so that it composes with the writing.
pub fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// The longest message, in bytes: the errors of CRIU and of an engine, which are the longest part of any, have some kilobytes.
pub const LONGEST_LINE: u64 = 1 << 20;

/// The next message of `connection`; an end of stream is [`io::ErrorKind::UnexpectedEof`].
///
/// # Errors
/// When the connection breaks or the line (of at most [`LONGEST_LINE`]) is no such message.
pub fn read_line<T: DeserializeOwned>(connection: &mut impl BufRead) -> io::Result<T> {
    let mut text = String::new();
    if connection.take(LONGEST_LINE).read_line(&mut text)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&text)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn messages_are_one_line_of_tagged_json() {
        let cases = [
            (Report::Waiting { container_id: "c1".into(), pid: 7 }, r#"{"say":"waiting","container_id":"c1","pid":7}"#),
            (Report::Restored { init_pid: 9 }, r#"{"say":"restored","init_pid":9}"#),
            (Report::Attached { container_id: "c1".into() }, r#"{"say":"attached","container_id":"c1"}"#),
            (Report::Running, r#"{"say":"running"}"#),
            (Report::Failed { error: "no\nway".into() }, r#"{"say":"failed","error":"no\nway"}"#),
        ];
        for (report, text) in cases {
            assert_eq!(line(&report).unwrap(), format!("{text}\n").into_bytes());
            assert_eq!(serde_json::from_str::<Report>(text).unwrap(), report);
        }
        assert_eq!(line(&Verdict::Run).unwrap(), b"{\"say\":\"run\"}\n");
        assert_eq!(serde_json::from_str::<Verdict>(r#"{"say":"restore"}"#).unwrap(), Verdict::Restore);
        assert_eq!(
            serde_json::from_str::<Verdict>(r#"{"say":"abort","reason":"x"}"#).unwrap(),
            Verdict::Abort { reason: "x".into() }
        );
    }

    #[test]
    fn the_request_reads_back_and_a_missing_one_is_none() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::at(scratch.path());
        assert_eq!(RestoreRequest::read(&directory).unwrap(), None);
        let request = RestoreRequest {
            migration: "0191e0a0-0000-7000-8000-000000000001".into(),
            images: directory.images(),
            tcp: TcpMode::Established,
            network: Network::Own { addresses: vec!["172.30.0.50".parse().unwrap(), "fd00::5".parse().unwrap()] },
            runtime: "runc".into(),
            lazy: Some(directory.images().join("memory")),
            descriptors: vec!["/dev/null".into(), "pipe:[1]".into()],
        };
        fs::write(directory.request(), serde_json::to_vec(&request).unwrap()).unwrap();
        assert_eq!(RestoreRequest::read(&directory).unwrap(), Some(request));
        fs::write(directory.request(), "{}").unwrap();
        assert!(matches!(RestoreRequest::read(&directory), Err(HandoffError::Request { .. })));
    }

    #[test]
    fn a_line_without_an_end_is_given_up() {
        let mut endless = BufReader::new(io::repeat(b' '));
        let error = read_line::<Report>(&mut endless).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
    }

    #[test]
    fn only_a_lower_case_uuid_is_a_migration_id() {
        assert!(is_migration_id("0191e0a0-0000-7000-8000-0000000000ff"));
        for wrong in [
            "",
            "..",
            "0191E0A0-0000-7000-8000-0000000000FF",
            "0191e0a0/0000-7000-8000-0000000000ff",
            "../../../../../../../../../../../etc/x",
        ] {
            assert!(!is_migration_id(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_client_repeats_its_word_to_a_daemon_that_came_back() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::at(scratch.path());
        fs::write(directory.request(), "").unwrap();
        let listener = UnixListener::bind(directory.socket()).unwrap();
        let daemon = std::thread::spawn(move || {
            let mut heard = Vec::new();
            for answer in [None, Some(Verdict::Run)] {
                let (stream, _) = listener.accept().unwrap();
                let mut stream = BufReader::new(stream);
                heard.push(read_line::<Report>(&mut stream).unwrap());
                if let Some(verdict) = answer {
                    stream.get_mut().write_all(&line(&verdict).unwrap()).unwrap();
                }
            }
            heard
        });
        let report = Report::Attached { container_id: "c".into() };
        assert_eq!(Client::new(directory).ask(&report).unwrap(), Verdict::Run);
        assert_eq!(daemon.join().unwrap(), [report.clone(), report]);
    }

    #[test]
    fn a_client_gives_up_when_the_request_is_gone() {
        let scratch = tempfile::tempdir().unwrap();
        for directory in [Directory::at(scratch.path()), Directory::at(scratch.path().join("gone"))] {
            let error = Client::new(directory).ask(&Report::Running).unwrap_err();
            assert!(matches!(error, HandoffError::Gone { .. }));
        }
    }

    #[test]
    fn giving_up_waits_for_those_who_work_there_and_lets_nobody_in() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::at(scratch.path());
        fs::write(directory.request(), "").unwrap();
        let two_at_work = [directory.enter().unwrap(), directory.enter().unwrap()];
        let giving_up = std::thread::spawn({
            let directory = directory.clone();
            move || directory.give_up().unwrap()
        });
        while !directory.given_up() {
            std::thread::yield_now();
        }
        assert!(matches!(directory.enter(), Err(HandoffError::Gone { .. })));
        assert!(!giving_up.is_finished());
        drop(two_at_work);
        giving_up.join().unwrap();
        directory.give_up().unwrap();
        Directory::at(scratch.path().join("gone")).give_up().unwrap();
    }
}
