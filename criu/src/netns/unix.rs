//! Unix connections that wait to be accepted, through the kernel's socket diagnostics (sock_diag(7), `linux/unix_diag.h`).

use std::collections::HashMap;

use super::connections::{Diagnostics, NLM_F_DUMP, NLM_F_REQUEST, SOCK_DIAG_BY_FAMILY, answers, message, u32_at};
use super::{NetnsError, of_pid, within};

/// `UDIAG_SHOW_ICONS` and `UDIAG_SHOW_RQLEN`.
const SHOW: u32 = 0x8 | 0x10;
/// `UNIX_DIAG_ICONS`: the inodes of the sockets that wait to be accepted; 0 for one that is closed already.
const ICONS: u16 = 3;
/// `UNIX_DIAG_RQLEN`: bytes in the receive and in the send queue.
const RQLEN: u16 = 4;
/// `struct unix_diag_msg`: family, type, state, padding; inode; cookie (8).
const MESSAGE_LEN: usize = 16;
/// `struct nlattr`: length, type.
const ATTRIBUTE_LEN: usize = 4;

/// A listener with connections that CRIU cannot move: it takes those that are open and empty only (criu/sk-unix.c).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// The listener, by the inode of its socket.
    pub(crate) listener: u32,
    /// The sockets that wait with data, by inode, and a 0 for each that waits closed.
    pub(crate) waiting: Vec<u32>,
}

/// The listeners with such connections in the network namespace of `pid`.
pub(crate) fn backlogs(pid: i32) -> Result<Vec<Backlog>, NetnsError> {
    let error = |source| NetnsError::Diagnostics { what: "list unix sockets", source };
    within(&of_pid(pid), || {
        let list = || {
            let netlink = Diagnostics::open()?;
            // `struct unix_diag_req`: family, protocol, padding; all states; no inode; what to show; cookie.
            let mut body = vec![libc::AF_UNIX as u8, 0, 0, 0];
            for word in [u32::MAX, 0, SHOW, 0, 0] {
                body.extend(word.to_ne_bytes());
            }
            netlink.send(&message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, &body))?;
            let mut sockets = Vec::new();
            loop {
                let datagram = netlink.receive()?;
                let (bodies, done) = answers(&datagram)?;
                sockets.extend(bodies.into_iter().filter_map(Socket::of));
                if done {
                    return Ok(stuck(&sockets));
                }
            }
        };
        list().map_err(error)
    })
}

#[derive(Debug, Default, PartialEq)]
struct Socket {
    inode: u32,
    /// Inodes of the sockets that wait to be accepted.
    waiting: Vec<u32>,
    /// Bytes sent and not yet read by the other end.
    unread: u32,
}

impl Socket {
    fn of(body: &[u8]) -> Option<Self> {
        let mut socket = Self { inode: u32_at(body.get(..MESSAGE_LEN)?, 4), ..Self::default() };
        let mut attributes = &body[MESSAGE_LEN..];
        while attributes.len() >= ATTRIBUTE_LEN {
            let length = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
            let kind = u16::from_ne_bytes([attributes[2], attributes[3]]);
            let value = attributes.get(ATTRIBUTE_LEN..length)?;
            let mut words = value.chunks_exact(4).map(|word| u32_at(word, 0));
            match kind {
                ICONS => socket.waiting = words.collect(),
                RQLEN => socket.unread = words.nth(1).unwrap_or_default(),
                _ => {}
            }
            attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Some(socket)
    }
}

fn stuck(sockets: &[Socket]) -> Vec<Backlog> {
    let unread: HashMap<u32, u32> = sockets.iter().map(|socket| (socket.inode, socket.unread)).collect();
    let full = |inode: &u32| *inode == 0 || unread.get(inode).is_some_and(|bytes| *bytes > 0);
    let backlogs = sockets.iter().map(|socket| Backlog {
        listener: socket.inode,
        waiting: socket.waiting.iter().copied().filter(full).collect(),
    });
    backlogs.filter(|backlog| !backlog.waiting.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn inode(socket: &impl AsRawFd) -> u32 {
        std::fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap().ino() as u32
    }

    #[test]
    fn an_answer_is_read_by_its_attributes_and_a_broken_one_is_left_out() {
        let mut body = vec![1, 1, 10, 0];
        body.extend(77_u32.to_ne_bytes());
        body.extend([0; 8]);
        body.extend([12, 0, 3, 0]);
        body.extend([5_u32, 0].iter().flat_map(|inode| inode.to_ne_bytes()));
        body.extend([12, 0, 4, 0]);
        body.extend([2_u32, 9].iter().flat_map(|bytes| bytes.to_ne_bytes()));
        assert_eq!(Socket::of(&body), Some(Socket { inode: 77, waiting: vec![5, 0], unread: 9 }));
        assert_eq!(Socket::of(&body[..36]), None);
        assert_eq!(Socket::of(&[0; 3]), None);
    }

    #[test]
    fn a_connection_stands_in_the_way_once_it_has_data_or_is_closed() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        // Entering a namespace needs privileges, also if it is our own.
        let own = || {
            let all = backlogs(std::process::id().cast_signed()).ok()?;
            Some(all.into_iter().find(|backlog| backlog.listener == inode(&listener)).map(|backlog| backlog.waiting))
        };
        let mut empty = UnixStream::connect(&path).unwrap();
        let Some(waiting) = own() else { return };
        assert_eq!(waiting, None);
        empty.write_all(b"hello").unwrap();
        assert_eq!(own().unwrap(), Some(vec![inode(&empty)]));
        drop(empty);
        assert_eq!(own().unwrap(), Some(vec![0]));
        listener.accept().unwrap();
        assert_eq!(own().unwrap(), None);
    }
}
