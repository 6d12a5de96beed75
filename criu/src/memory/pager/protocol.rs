//! What CRIU says on `lazy-pages.socket` (criu/uffd.c, `send_uffd` and `lazy_pages_finish_restore`).
//!
//! For each process its id as an `i32`, then one byte that carries its userfaultfd; a zombie's id is negated, and nothing follows. At the
//! end, before the tasks run, 0x52535446 as an `u32`. Numbers are in the machine's byte order. If the restore fails there is no end mark.

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::cmsg_space;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recv, recvmsg};

use super::PagerError;
use super::uffd::Uffd;
use crate::memory::Vpid;

/// LAZY_PAGES_RESTORE_FINISHED.
const FINISHED: i32 = 0x5253_5446;

/// The largest process id that Linux gives (PID_MAX_LIMIT).
const LARGEST_ID: i32 = 1 << 22;

/// For the rest of a message that has begun. CRIU sends each at once.
const REST: Duration = Duration::from_secs(10);

/// How a userfaultfd is called in /proc.
const USERFAULTFD: &str = "anon_inode:[userfaultfd]";

/// One message.
#[derive(Debug)]
pub(super) enum Message {
    /// A process, and its memory.
    Task(Vpid, Uffd),
    /// A process that has no memory any more.
    Zombie,
    /// All are there; the tasks are about to run.
    Finished,
    /// CRIU has ended, or has closed the connection.
    Closed,
}

/// Prepares a connection for [`next`].
pub(super) fn prepare(criu: &UnixStream) -> io::Result<()> {
    criu.set_nonblocking(false)?;
    criu.set_read_timeout(Some(REST))
}

/// The next message, once there is something to read. `finished` is called when it is the end mark, before that is taken.
pub(super) fn next(criu: &UnixStream, finished: impl FnOnce()) -> Result<Message, PagerError> {
    let Some(word) = word(criu, MsgFlags::MSG_PEEK)? else { return Ok(Message::Closed) };
    if word == FINISHED {
        finished();
    }
    self::word(criu, MsgFlags::empty())?;
    match word {
        FINISHED => Ok(Message::Finished),
        vpid @ 1..=LARGEST_ID => Ok(Message::Task(vpid, descriptor(criu)?)),
        zombie if (-LARGEST_ID..0).contains(&zombie) => Ok(Message::Zombie),
        _ => Err(PagerError::Protocol { what: "a number that is no process id" }),
    }
}

fn word(criu: &UnixStream, flags: MsgFlags) -> Result<Option<i32>, PagerError> {
    let mut word = [0; size_of::<i32>()];
    match recv(criu.as_raw_fd(), &mut word, flags | MsgFlags::MSG_WAITALL) {
        Ok(0) => Ok(None),
        Ok(4) => Ok(Some(i32::from_ne_bytes(word))),
        Ok(_) => Err(PagerError::Protocol { what: "half a number" }),
        Err(errno) => Err(PagerError::Connection(errno.into())),
    }
}

fn descriptor(criu: &UnixStream) -> Result<Uffd, PagerError> {
    let (mut byte, mut space) = ([0], cmsg_space!(RawFd));
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(criu.as_raw_fd(), &mut bytes, Some(&mut space), flags);
    let message = message.map_err(|errno| PagerError::Connection(errno.into()))?;
    let mut descriptors = Vec::new();
    for part in message.cmsgs().map_err(|errno| PagerError::Connection(errno.into()))? {
        if let ControlMessageOwned::ScmRights(received) = part {
            descriptors.extend(received.into_iter().map(own));
        }
    }
    let [descriptor] = <[_; 1]>::try_from(descriptors)
        .map_err(|_| PagerError::Protocol { what: "a process id without its userfaultfd" })?;
    let link = fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd())).map_err(PagerError::Connection)?;
    if link != Path::new(USERFAULTFD) {
        return Err(PagerError::Protocol { what: "a descriptor that is no userfaultfd" });
    }
    // CRIU's is; ours must be, as it is read until nothing is left.
    fcntl(&descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|errno| PagerError::Connection(errno.into()))?;
    Ok(descriptor.into())
}

#[expect(unsafe_code, reason = "a descriptor that came over a socket has no owner yet")]
fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just opened it for us alone.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Write};
    use std::os::fd::AsFd;

    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    fn hear(said: &[u8], descriptors: &[RawFd]) -> Result<Message, PagerError> {
        let (mut criu, ours) = UnixStream::pair().unwrap();
        prepare(&ours).unwrap();
        criu.write_all(said).unwrap();
        if !descriptors.is_empty() {
            let rights = [ControlMessage::ScmRights(descriptors)];
            sendmsg::<()>(criu.as_raw_fd(), &[IoSlice::new(&[0])], &rights, MsgFlags::empty(), None).unwrap();
        }
        drop(criu);
        next(&ours, || {})
    }

    #[test]
    fn zombies_the_end_mark_and_the_end_are_told_apart() {
        assert!(matches!(hear(&(-7_i32).to_ne_bytes(), &[]), Ok(Message::Zombie)));
        assert!(matches!(hear(&0x5253_5446_u32.to_ne_bytes(), &[]), Ok(Message::Finished)));
        assert!(matches!(hear(&[], &[]), Ok(Message::Closed)));
    }

    #[test]
    fn what_crius_protocol_has_not_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let (one, two) = ([file.as_raw_fd()], [file.as_raw_fd(), file.as_fd().as_raw_fd()]);
        let cases: [(&[u8], &[RawFd]); 7] = [
            (&[1, 0], &[]),
            (&[1, 0], &one),
            (&0_i32.to_ne_bytes(), &[]),
            (&(LARGEST_ID + 1).to_ne_bytes(), &one),
            (&1_i32.to_ne_bytes(), &[]),
            (&1_i32.to_ne_bytes(), &one),
            (&1_i32.to_ne_bytes(), &two),
        ];
        for (said, descriptors) in cases {
            let heard = hear(said, descriptors);
            assert!(matches!(heard, Err(PagerError::Protocol { .. })), "{said:?} {}: {heard:?}", descriptors.len());
        }
    }
}
