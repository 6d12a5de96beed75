//! What runc finds as `criu` while it restores: this program, which becomes CRIU when the images are there.
//!
//! runc takes longer to come up to the point where it asks for the restore (it reads the bundle, starts CRIU once to hear its version,
//! mounts) than the engine's clients should have to wait for. So it is started before there are any images, with a directory of ours
//! before all others in its PATH:
//!
//! ```text
//! create ──► keeper ──► runc restore ──► bin/criu swrk FD   the request on FD is no restore: becomes CRIU at once
//!                                    ──► bin/criu swrk FD   it is one: connects to criu.sock, where `create` listens …
//! create ── "go [network namespace]" ──► bin/criu           … enters the namespace, and becomes CRIU
//! ```
//! Without that word it ends, and the restore fails before CRIU has done anything. `swrk` is how runc runs CRIU as a service for one
//! request (criu, `criu/crtools.c`), on a socket whose messages are `criu_req` of criu's `images/rpc.proto`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{MsgFlags, recv};

use super::gate;

/// The program's name, and its verb.
const NAME: &str = "criu";
const VERB: &str = "swrk";

/// The environment variable that names the migration's directory to it.
const VARIABLE: &str = "SPOTHOP_RESTORE";

/// What begins a request for a restore: `type = RESTORE`, the first field of `criu_req`.
const RESTORE: [u8; 2] = [0x08, 2];

/// The word of `create`, before the path of a network namespace.
const GO: &[u8] = b"go ";

/// Longer than any path.
const LONGEST_WORD: u64 = 8192;

/// Where the CRIU of a restore comes in.
#[derive(Debug)]
pub(super) struct Entrance {
    listener: UnixListener,
    directory: PathBuf,
}

impl Entrance {
    /// Makes it in the migration's directory.
    pub(super) fn make(directory: &Path) -> io::Result<Self> {
        let bin = bin(directory);
        fs::create_dir_all(&bin)?;
        let link = bin.join(NAME);
        match symlink(env::current_exe()?, &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        Ok(Self { listener: gate::bind(&socket(directory))?, directory: directory.to_owned() })
    }

    /// What runc's environment must have.
    pub(super) fn environment(&self) -> [(&'static str, OsString); 2] {
        let mut path = bin(&self.directory).into_os_string();
        if let Some(rest) = env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        [("PATH", path), (VARIABLE, self.directory.clone().into_os_string())]
    }

    /// The CRIU that waits; `None` if there is none within `milliseconds`.
    pub(super) fn waiting(&self, milliseconds: u16) -> io::Result<Option<Waiting>> {
        let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(milliseconds)) {
            Ok(ready) if ready > 0 => self.listener.accept().map(|(criu, _)| Some(Waiting(criu))),
            _ => Ok(None),
        }
    }
}

/// A CRIU that waits to begin. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Waiting(UnixStream);

impl Waiting {
    /// Lets it begin, in the network namespace at this path.
    pub(super) fn go(mut self, netns: Option<&Path>) -> io::Result<()> {
        let netns = netns.map_or(OsStr::new(""), Path::as_os_str);
        self.0.write_all(&[GO, netns.as_bytes(), b"\n"].concat())
    }
}

/// Becomes CRIU when this process was started as it; `None` when it was not.
pub(super) fn called_by_runc(arguments: &[OsString]) -> Option<ExitCode> {
    let [name, verb, fd] = arguments else { return None };
    if name != NAME || verb != VERB {
        return None;
    }
    let directory = PathBuf::from(env::var_os(VARIABLE)?);
    let fd = fd.to_str()?.parse().ok()?;
    let error = match wait_for_images(fd, &directory) {
        Ok(()) => become_criu(&directory, arguments),
        Err(error) => error,
    };
    eprintln!("spothop-oci: CRIU is not started: {error}");
    Some(ExitCode::FAILURE)
}

fn wait_for_images(fd: RawFd, directory: &Path) -> io::Result<()> {
    let mut request = [0; RESTORE.len()];
    // A message of which only this much is looked at, and which CRIU reads.
    recv(fd, &mut request, MsgFlags::MSG_PEEK)?;
    if request != RESTORE {
        return Ok(());
    }
    let create = UnixStream::connect(socket(directory))?;
    let Some(netns) = heard(create)? else {
        return Err(io::Error::other("the migration was given up"));
    };
    if !netns.as_os_str().is_empty() {
        setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
    }
    Ok(())
}

/// The network namespace in the word; `None` without the word.
fn heard(create: impl Read) -> io::Result<Option<PathBuf>> {
    let mut word = Vec::new();
    BufReader::new(create.take(LONGEST_WORD)).read_until(b'\n', &mut word)?;
    let path = word.strip_prefix(GO).and_then(|rest| rest.strip_suffix(b"\n"));
    Ok(path.map(|path| OsString::from_vec(path.to_owned()).into()))
}

/// Returns only when that fails.
fn become_criu(directory: &Path, arguments: &[OsString]) -> io::Error {
    let path = env::var_os("PATH").unwrap_or_default();
    let others = env::split_paths(&path).filter(|other| *other != bin(directory));
    match env::join_paths(others) {
        // It is looked up in the PATH that it gets.
        Ok(path) => Command::new(NAME).args(&arguments[1..]).env("PATH", path).env_remove(VARIABLE).exec(),
        Err(error) => io::Error::other(error),
    }
}

fn bin(directory: &Path) -> PathBuf {
    directory.join("bin")
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("criu.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criu_is_let_in_with_its_network_or_ends() {
        let scratch = tempfile::tempdir().unwrap();
        let entrance = Entrance::make(scratch.path()).unwrap();
        assert!(entrance.waiting(0).unwrap().is_none());
        for netns in [Some(Path::new("/run/netns/n")), None] {
            let criu = UnixStream::connect(socket(scratch.path())).unwrap();
            entrance.waiting(1000).unwrap().unwrap().go(netns).unwrap();
            assert_eq!(heard(criu).unwrap(), Some(netns.map(PathBuf::from).unwrap_or_default()));
        }
        let criu = UnixStream::connect(socket(scratch.path())).unwrap();
        drop(entrance.waiting(1000).unwrap().unwrap());
        assert_eq!(heard(criu).unwrap(), None);
        for word in ["go /run/netns/cut", "stop\n", ""] {
            assert_eq!(heard(word.as_bytes()).unwrap(), None, "{word}");
        }
    }

    #[test]
    fn runc_finds_this_program_first() {
        let scratch = tempfile::tempdir().unwrap();
        let entrance = Entrance::make(scratch.path()).unwrap();
        let [(_, path), (_, directory)] = entrance.environment();
        assert_eq!(env::split_paths(&path).next(), Some(scratch.path().join("bin")));
        assert_eq!(directory, scratch.path());
        assert_eq!(fs::read_link(scratch.path().join("bin/criu")).unwrap(), env::current_exe().unwrap());
        // Once more, as a second attempt does.
        drop(entrance);
        Entrance::make(scratch.path()).unwrap();
    }

    #[test]
    fn other_requests_do_not_wait() {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, send, socketpair};
        use std::os::fd::AsRawFd;
        let (runc, criu) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        // VERSION, of which nothing is taken away.
        for _ in 0..2 {
            send(runc.as_raw_fd(), &[0x08, 10], MsgFlags::empty()).unwrap();
            wait_for_images(criu.as_raw_fd(), Path::new("/nonexistent")).unwrap();
            let mut read = [0; 8];
            assert_eq!(recv(criu.as_raw_fd(), &mut read, MsgFlags::empty()), Ok(2));
        }
        send(runc.as_raw_fd(), &[0x08, 2, 0x12, 0], MsgFlags::empty()).unwrap();
        assert!(wait_for_images(criu.as_raw_fd(), Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn only_runcs_call_is_meant() {
        let call = |words: &[&str]| called_by_runc(&words.iter().map(OsString::from).collect::<Vec<_>>());
        for words in [&["spothop-oci", "swrk", "3"][..], &["criu", "dump", "3"], &["criu", "swrk"], &[]] {
            assert_eq!(call(words), None);
        }
        // Without the variable it is none of ours.
        assert_eq!(call(&["criu", "swrk", "3"]), None);
    }
}
