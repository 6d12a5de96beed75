//! What can go wrong while a testbed is made, used or taken down.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, with what was tried and on what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, directory, socket or mount could not be handled.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The verb, as it reads after "cannot".
        action: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program could not be started at all.
    #[error("cannot run {program}; is it installed?")]
    Start {
        /// The program's name.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// A program ran and failed.
    #[error("`{command}` failed ({status}): {output}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said on standard error, or on standard output when that was empty.
        output: String,
    },
    /// Tests failed on an older kernel, or it did not get to their end.
    #[error("the tests on the older kernel did not pass; its last words:\n{console}")]
    OlderKernel {
        /// The end of what was on its console.
        console: String,
    },
    /// Something in /proc, or said by a program or a helper process, was not in the expected form.
    #[error("cannot make sense of {what}: {text:?}")]
    Unexpected {
        /// Where the text comes from.
        what: String,
        /// The text itself.
        text: String,
    },
    /// A state or request in JSON could not be read or written.
    #[error("{what} is not the expected JSON")]
    Json {
        /// Which document.
        what: String,
        /// Why not.
        source: serde_json::Error,
    },
    /// There is no testbed of this name.
    #[error("no testbed {0:?} is up; run `cargo testbed up` first")]
    NotUp(String),
    /// There is one already.
    #[error("testbed {0:?} is up already; `cargo testbed down` ends it")]
    AlreadyUp(String),
    /// The testbed has no host of this name.
    #[error("there is no host {name:?} in this testbed; it has {}", known.join(", "))]
    NoSuchHost {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// The host is powered off.
    #[error("host {0} is off")]
    HostOff(String),
    /// The host has power already.
    #[error("host {0} is on already")]
    HostOn(String),
    /// An option that is planned and not made.
    #[error("{0} is not there yet")]
    NotYet(String),
    /// An argument is outside of what the testbed can do.
    #[error("{what} is {value}; it must be {allowed}")]
    OutOfRange {
        /// Which argument.
        what: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        allowed: String,
    },
    /// A host did not come up.
    #[error("host {host} did not boot: {reason}\n{log}")]
    Boot {
        /// The host's name.
        host: String,
        /// What is known about why.
        reason: String,
        /// The last lines of its console.
        log: String,
    },
    /// The metadata service's control socket refused a request.
    #[error("the metadata service of host {host} refused: {reason}")]
    Notice {
        /// The host's name.
        host: String,
        /// Its words.
        reason: String,
    },
    /// No Debian source is configured that packages could be fetched from.
    #[error("apt on this machine has no Debian source with component main; `apt-get indextargets` shows what it has")]
    NoMirror,
    /// cgroup v2 is not mounted anywhere.
    #[error(
        "no cgroup v2 hierarchy is mounted on this machine; mount one (`mount -t cgroup2 none /sys/fs/cgroup/unified`)"
    )]
    NoCgroup2,
    /// The caller is not root.
    #[error("the testbed makes namespaces, mounts and network links: run it as root")]
    NotRoot,
    /// The connection to a Redis server could not be made, or broke.
    #[error("the connection to the Redis server at {peer} is lost")]
    RedisConnection {
        /// The server.
        peer: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A Redis server answered what it must not.
    #[error("the Redis server at {peer} {problem}")]
    RedisAnswer {
        /// The server.
        peer: SocketAddr,
        /// What it did, as it reads after its address.
        problem: String,
    },
    /// spothop failed in a benchmark.
    #[error("{what} failed: {reason}")]
    Bench {
        /// What it should have done.
        what: String,
        /// Its words.
        reason: String,
    },
    /// A system call failed.
    #[error("cannot {action}")]
    System {
        /// The verb, as it reads after "cannot".
        action: &'static str,
        /// The kernel's answer.
        source: nix::Error,
    },
}

/// Adds what was tried to the errors of the standard library and of nix.
pub(crate) trait Context<T> {
    /// "cannot `action` `path`".
    fn on(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io { action, path: path.to_owned(), source })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|errno| Error::Io { action, path: path.to_owned(), source: errno.into() })
    }
}

/// Adds what was tried to a system call that has no path.
pub(crate) fn system<T>(action: &'static str, result: nix::Result<T>) -> Result<T> {
    result.map_err(|source| Error::System { action, source })
}
