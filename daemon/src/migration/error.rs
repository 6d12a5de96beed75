//! Why a migration fails.

use std::time::Duration;

use super::gate::GateError;
use super::workspace::WorkspaceError;
use crate::journal::JournalError;
use crate::{files, orchestrator};

/// Why a migration did not happen. Before COMMIT each of these leaves the container running at the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection to the other host, or what came over it.
    #[error(transparent)]
    Transfer(#[from] spothop_transfer::Error),
    /// The container engine.
    #[error(transparent)]
    Engine(#[from] orchestrator::Error),
    /// The container's files.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// A checkpoint or its store.
    #[error(transparent)]
    Parking(#[from] crate::parking::Error),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The commit gate.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The migration's directory.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// The container's cgroup.
    #[error(transparent)]
    Freeze(#[from] spothop_criu::cgroup::CgroupError),
    /// The container's network namespace.
    #[error(transparent)]
    Network(#[from] spothop_criu::netns::NetnsError),
    /// The dump.
    #[error(transparent)]
    Dump(#[from] spothop_criu::dump::DumpError),
    /// Its tasks.
    #[error(transparent)]
    Tasks(#[from] spothop_criu::tasks::TaskError),
    /// CRIU's images.
    #[error(transparent)]
    Images(#[from] spothop_criu::memory::ImageError),
    /// CRIU was replaced since this daemon started, and the new one cannot be kept from dumping pages.
    #[error("CRIU cannot leave the memory to spothop any more; restart spothop, which finds another way")]
    NoParent(#[from] spothop_criu::memory::Why),
    /// CRIU dumped a process that was not there when the tasks were frozen.
    #[error("CRIU dumped a process {vpid} that nobody knows of")]
    StrangeTask {
        /// Its id in the container's pid namespace.
        vpid: i32,
    },
    /// The container cannot be moved at all.
    #[error("container {container} cannot be moved: {reasons}")]
    Obstacles {
        /// Its name.
        container: String,
        /// All that is in the way.
        reasons: String,
    },
    /// The target does not take it.
    #[error("{peer} does not take the container: {reason}")]
    Refused {
        /// The target.
        peer: String,
        /// Its words.
        reason: String,
    },
    /// This host has no room.
    #[error(transparent)]
    NoRoom(#[from] crate::capacity::NoRoom),
    /// This host is going to be taken away.
    #[error("this host is under notice itself ({notice})")]
    UnderNotice {
        /// The notice's id.
        notice: String,
    },
    /// There is no reason to move any more.
    #[error("the notice {notice} was withdrawn before the container was frozen")]
    Withdrawn {
        /// The notice's id.
        notice: String,
    },
    /// The source asks for steps in an order that makes no sense.
    #[error("there is no container yet to do this to")]
    NotCreated,
    /// The engine started the container without calling the wrapper: a second copy, which is removed again.
    #[error(
        "the engine ended {step} without restoring; is the runtime `spothop` in its daemon.json really spothop-oci?"
    )]
    ColdStart {
        /// What was waited for.
        step: &'static str,
    },
    /// A step failed on the other host.
    #[error("{peer} failed: {reason}")]
    Peer {
        /// The other host.
        peer: String,
        /// Its words.
        reason: String,
    },
    /// The other host said something that has no place here.
    #[error("{peer} answered {step} with something else; are both of the same spothop version?")]
    OutOfTurn {
        /// The other host.
        peer: String,
        /// What was asked.
        step: &'static str,
    },
    /// The other host ended the conversation.
    #[error("{peer} closed the connection during {step}")]
    HungUp {
        /// The other host.
        peer: String,
        /// What was asked.
        step: &'static str,
    },
    /// A step took longer than there was time.
    #[error("{step} was not finished within {limit:?}")]
    TimedOut {
        /// What.
        step: &'static str,
        /// The time it had.
        limit: Duration,
    },
    /// The runtime that restores reported a failure.
    #[error("the restore failed: {reason}")]
    Restore {
        /// Its words, CRIU's first error among them.
        reason: String,
    },
    /// The verdict was another one: a script or a recovery decided first.
    #[error(
        "ABORT was written while the target restored, because the container was frozen for too long without an answer"
    )]
    Outvoted,
    /// runc does not know the container.
    #[error(
        "container {container} has no state under /run/docker/runtime-*/moby; only Docker's runc containers can be moved"
    )]
    NoRuntimeState {
        /// Its name.
        container: String,
    },
    /// The container ended while it was being moved.
    #[error("container {container} ended by itself before it was frozen")]
    Ended {
        /// Its name.
        container: String,
    },
    /// Nothing is open that a person would have to decide.
    #[error(
        "migration {id} is {phase} on this host, its {side}: there is nothing to resolve; `spothop status {id}` shows how it goes on"
    )]
    NotOpen {
        /// The migration.
        id: String,
        /// This host's side.
        side: super::Side,
        /// How far it is.
        phase: super::Phase,
    },
    /// Two hosts that reach each other need nobody.
    #[error("{peer} answers, so migration {id} ends by itself; `spothop status {id} --follow` shows how")]
    PeerAnswers {
        /// The migration.
        id: String,
        /// The other host.
        peer: String,
    },
    /// What runs with half of its memory has been seen by others.
    #[error(
        "the container of migration {id} runs here since {peer} gave it away, and cannot go back; `spothop resolve {id} --here` gives up the \
         memory that is still there"
    )]
    RunsHere {
        /// The migration.
        id: String,
        /// The other host.
        peer: String,
    },
    /// A host asks about what two others have between them.
    #[error("migration {migration} is none of {peer}'s")]
    NotYours {
        /// Who asks.
        peer: String,
        /// About what.
        migration: String,
    },
    /// CRIU gave up before every task was in its images.
    #[error("CRIU let the tasks go on before the dump was whole")]
    NotHeld,
    /// Whatever let CRIU go is none of ours, and the images may be older than the tasks.
    #[error("CRIU ended while it held the dump")]
    HolderDied,
    /// Found by the next daemon.
    #[error("the daemon ended during the migration")]
    DaemonDied,
    /// A test asked for it.
    #[error(transparent)]
    Injected(#[from] spothop_criu::failpoint::Injected),
    /// A file of the runtime directory.
    #[error("cannot {action} {path}", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// No such host in the inventory.
    #[error(
        "{peer} is not in this host's inventory (`spothop hosts`); add it under [[peers]] in /etc/spothop/config.toml, or to a source of [inventory]"
    )]
    UnknownPeer {
        /// Its name.
        peer: String,
    },
    /// A host that was in the inventory wants more than the end of its own migrations.
    #[error("{peer} is no longer in this host's inventory, and is given no room")]
    Departed {
        /// Its name.
        peer: String,
    },
}

/// The error and its causes on one line, for journals, answers and people.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        // Transparent wrappers, and some libraries' messages, repeat their cause.
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}
