//! How a restore's CRIU is kept waiting for its images.
//!
//! runc takes longer to come up to the point where it asks for the restore (it reads the bundle, starts CRIU once to hear its version,
//! mounts) than the engine's clients should have to wait for. So it is started before there are any images, and what it finds as `criu`
//! is [`crate::stand_in`]:
//!
//! ```text
//! create ──► keeper ──► runc restore ──► criu swrk FD   the request on FD is no restore: becomes CRIU at once
//!                                    ──► criu swrk FD   it is one: connects to criu.sock, where `create` listens …
//! create ── "go [network namespace]" ──► criu           … enters the namespace, and becomes CRIU
//! ```
//! Without that word it ends, and the restore fails before CRIU has done anything.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};

use super::gate;
use crate::stand_in::StandIns;

/// The word of `create`, before the path of a network namespace.
const GO: &[u8] = b"go ";

/// Longer than any path.
const LONGEST_WORD: u64 = 8192;

/// Where the CRIU of a restore comes in.
#[derive(Debug)]
pub(super) struct Entrance {
    listener: UnixListener,
    stand_ins: StandIns,
}

impl Entrance {
    /// Makes it in the migration's directory.
    pub(super) fn make(directory: &Path) -> io::Result<Self> {
        let stand_ins = StandIns::make(directory, &env::current_exe()?)?;
        Ok(Self { listener: gate::bind(&socket(directory))?, stand_ins })
    }

    /// What runc's environment must have.
    pub(super) fn environment(&self) -> [(&'static str, OsString); 2] {
        self.stand_ins.environment()
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

/// Waits for the word, and enters the network namespace in it.
///
/// # Errors
/// There is to be no restore.
pub(crate) fn wait_for_images(directory: &Path) -> io::Result<()> {
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
}
