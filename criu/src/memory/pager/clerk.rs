//! The pager's talk with the daemon about pages that are still at the source.
//!
//! The daemon listens to nobody here: it connects, says one line and hears one, both JSON, and the connection ends. So either may be
//! killed at any time, and nothing but the pager's own ledger says what is still owed.
//!
//! ```text
//! daemon → {"arrived":[[vpid,start,end],…],"most":BYTES}         what is in the store by now; how much to name
//! pager  → {"pages":[[vpid,start,end],…],"bytes":BYTES}          what to fetch next; how much is owed in all
//! daemon → {"lost":"why"}                                        it will never come: the pager fails
//! ```

use std::io::{self, BufRead, BufReader, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::ledger::Ledger;
use super::progress::Progress;
use super::{PAGE, PagerError};
use crate::memory::Vpid;

/// A line of this length names more pages than anybody fetches at once, in bytes.
const LONGEST_LINE: u64 = 8 << 20;

/// For a line that was begun, and for an answer to it. A host may be busy.
const ANSWER: Duration = Duration::from_secs(10);

/// Pages of one task in one piece: its id, and where the piece begins and ends in the store.
pub type Piece = (Vpid, u64, u64);

/// What the daemon says.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Word {
    arrived: Vec<Piece>,
    most: u64,
    lost: Option<String>,
}

/// What a pager lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lacking {
    /// What to fetch next, the most urgent first; empty when nothing is owed.
    pub pages: Vec<Piece>,
    /// How much is owed in all, in bytes.
    pub bytes: u64,
}

/// Says to the pager that listens at `socket` what is in its store by now, and hears what it lacks, of which it names at most `most`
/// bytes. `None`: there is no such pager, because its tasks need none any more: they are whole, or dead.
///
/// # Errors
/// It does not answer. Whether it is there is to be asked again: only who finds nobody at the socket may believe that it has ended.
pub fn ask(socket: &Path, arrived: Vec<Piece>, most: u64) -> io::Result<Option<Lacking>> {
    let Some(said) = say(socket, &Word { arrived, most, lost: None })? else { return Ok(None) };
    Ok(Some(serde_json::from_str(&said)?))
}

/// Says to the pager that what it lacks is lost. It fails, and its tasks are killed. Does nothing where there is none.
///
/// # Errors
/// It does not answer; to be said again.
pub fn lose(socket: &Path, why: &str) -> io::Result<()> {
    say(socket, &Word { lost: Some(why.to_owned()), ..Word::default() }).map(drop)
}

fn say(socket: &Path, word: &Word) -> io::Result<Option<String>> {
    let mut pager = match UnixStream::connect(socket) {
        // The socket goes with the migration's directory, or is closed with the last process that listens.
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&error.kind()) => {
            return Ok(None);
        }
        connected => connected?,
    };
    pager.set_read_timeout(Some(ANSWER))?;
    pager.set_write_timeout(Some(ANSWER))?;
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    pager.write_all(&line)?;
    hear(&pager).map(Some)
}

/// One line, whole.
fn hear(stream: &UnixStream) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST_LINE)).read_line(&mut line)?;
    match line.ends_with('\n') {
        true => Ok(line),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The pager's end.
pub(super) struct Clerk<'p, 'c> {
    pub(super) daemon: UnixListener,
    pub(super) progress: &'p Progress<'c>,
    /// Closed when there is nothing more to do.
    pub(super) closing: PipeReader,
}

impl Clerk<'_, '_> {
    /// Answers until everything is over.
    ///
    /// # Errors
    /// [`PagerError::Lost`], when the daemon says so.
    pub(super) fn serve(self) -> Result<(), PagerError> {
        loop {
            let mut fds = [&self.daemon.as_fd(), &self.closing.as_fd()].map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(PagerError::System(errno.into())),
            }
            if fds[1].any() == Some(true) {
                return Ok(());
            }
            if fds[0].any() == Some(true) && let Ok((daemon, _)) = self.daemon.accept()
                // One that was killed comes again.
                && let Ok(Some(why)) = self.answer(&daemon)
            {
                return Err(PagerError::Lost { why });
            }
        }
    }

    /// Returns why what is owed is lost, if it is.
    fn answer(&self, mut daemon: &UnixStream) -> io::Result<Option<String>> {
        daemon.set_read_timeout(Some(ANSWER))?;
        daemon.set_write_timeout(Some(ANSWER))?;
        let word: Word = serde_json::from_str(&hear(daemon)?)?;
        if word.lost.is_some() {
            // It is lost whether or not this is heard.
            let _ = daemon.write_all(b"{}\n");
            return Ok(word.lost);
        }
        let ledger: &Ledger = self.progress.ledger();
        let is_page = |&(_, start, end): &Piece| start < end && start % PAGE == 0 && end % PAGE == 0;
        if word.arrived.iter().any(|piece| !is_page(piece)) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if !word.arrived.is_empty() {
            ledger.arrived(word.arrived.into_iter().map(|(vpid, start, end)| (vpid, start..end)));
            self.progress.ring_all();
        }
        let (pages, bytes) = ledger.next(word.most);
        let pages = pages.into_iter().map(|(vpid, range)| (vpid, range.start, range.end)).collect();
        let mut line = serde_json::to_vec(&Lacking { pages, bytes })?;
        line.push(b'\n');
        daemon.write_all(&line)?;
        Ok(None)
    }
}
