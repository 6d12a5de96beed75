//! A container's TCP connections, through the kernel's socket diagnostics (sock_diag(7), `linux/inet_diag.h`).

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendmsg, socket};

use super::{NetnsError, of_pid, within};
use crate::tasks;

/// `IPPROTO_TCP`.
const IPPROTO_TCP: u8 = 6;

/// `SOCK_DIAG_BY_FAMILY`: request and answer of a listing.
pub(super) const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `SOCK_DESTROY`: needs CONFIG_INET_DIAG_DESTROY.
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
pub(super) const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
pub(super) const NLM_F_DUMP: u16 = 0x300;

/// `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// `struct inet_diag_sockid`: ports and addresses (36), interface (4), cookie (8).
const SOCKET_ID_LEN: usize = 48;
/// `struct inet_diag_msg`: family, state, timer, retransmissions; socket id; expires, two queues, uid, inode.
const MESSAGE_LEN: usize = 4 + SOCKET_ID_LEN + 20;

/// `TCP_LISTEN` in the kernel's numbering of states.
const TCP_LISTEN: u8 = 10;
/// Every state but LISTEN and CLOSE (7).
const CONNECTED: u32 = 0xfff & !(1 << TCP_LISTEN) & !(1 << 7);
/// Every state.
const ANY_STATE: u32 = u32::MAX;

/// One socket of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Socket {
    family: u8,
    id: [u8; SOCKET_ID_LEN],
    /// The inode by which `/proc/PID/fd` names it; 0 when no process has it open.
    pub(crate) inode: u32,
}

/// Closes every TCP connection that a task of `pid`'s container has open, so that the peers get a reset and connect again at
/// once; listeners stay. Returns how many were closed.
///
/// For a container whose address does not move with it: after COMMIT, with the tasks still frozen, and not silenced. Right
/// also for a container with the host's network: other processes' connections are not touched.
///
/// # Errors
/// When the container is gone, or the kernel lacks CONFIG_INET_DIAG_DESTROY.
pub fn reset_connections(pid: i32) -> Result<usize, NetnsError> {
    let inodes: HashSet<u32> = tasks::socket_inodes(pid);
    let error = |what| move |source| NetnsError::Diagnostics { what, source };
    within(&of_pid(pid), || {
        let netlink = Diagnostics::open().map_err(error("open a socket"))?;
        let mut closed = 0;
        for socket in netlink.list(IPPROTO_TCP, CONNECTED).map_err(error("list connections"))? {
            if inodes.contains(&socket.inode) && netlink.destroy(&socket).map_err(error("close connections"))? {
                closed += 1;
            }
        }
        Ok(closed)
    })
}

/// A netlink socket for questions to the kernel's socket diagnostics.
pub(super) struct Diagnostics(OwnedFd);

impl Diagnostics {
    /// A socket in the calling thread's namespace.
    pub(super) fn open() -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkSockDiag;
        Ok(Self(socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?))
    }

    fn list(&self, protocol: u8, states: u32) -> io::Result<Vec<Socket>> {
        let mut sockets = Vec::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            self.send(&request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, protocol, states, &[0; SOCKET_ID_LEN]))?;
            loop {
                match parse(&self.receive()?)? {
                    Part::Sockets(part) => sockets.extend(part),
                    Part::Done(part) => {
                        sockets.extend(part);
                        break;
                    }
                }
            }
        }
        Ok(sockets)
    }

    /// Closes `socket`; false when it was gone already.
    fn destroy(&self, socket: &Socket) -> io::Result<bool> {
        self.send(&request(SOCK_DESTROY, NLM_F_ACK, socket.family, IPPROTO_TCP, ANY_STATE, &socket.id))?;
        match parse(&self.receive()?) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn send(&self, message: &[u8]) -> io::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        sendmsg(self.0.as_raw_fd(), &[IoSlice::new(message)], &[], MsgFlags::empty(), Some(&kernel))?;
        Ok(())
    }

    pub(super) fn receive(&self) -> io::Result<Vec<u8>> {
        // The kernel fills at most 32 KiB per message of a dump (NLMSG_GOODSIZE rounded up by netlink_dump).
        let mut buffer = vec![0; 64 << 10];
        let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        buffer.truncate(length);
        Ok(buffer)
    }
}

/// `struct nlmsghdr`, `struct inet_diag_req_v2`.
fn request(kind: u16, flags: u16, family: u8, protocol: u8, states: u32, id: &[u8; SOCKET_ID_LEN]) -> Vec<u8> {
    let mut body = vec![family, protocol, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    message(kind, flags | NLM_F_REQUEST, &body)
}

/// A netlink message: `struct nlmsghdr` and its body.
pub(super) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = vec![0; HEADER_LEN];
    message.extend(body);
    let length = message.len() as u32;
    message[0..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    message
}

#[derive(Debug, PartialEq)]
enum Part {
    Sockets(Vec<Socket>),
    Done(Vec<Socket>),
}

fn parse(datagram: &[u8]) -> io::Result<Part> {
    let (bodies, done) = answers(datagram)?;
    let sockets = bodies.into_iter().filter(|body| body.len() >= MESSAGE_LEN).map(|body| {
        let mut id = [0; SOCKET_ID_LEN];
        id.copy_from_slice(&body[4..4 + SOCKET_ID_LEN]);
        Socket { family: body[0], id, inode: u32_at(body, MESSAGE_LEN - 4) }
    });
    Ok(if done { Part::Done(sockets.collect()) } else { Part::Sockets(sockets.collect()) })
}

/// Reads one datagram of answers: their bodies, and whether it was the last; an error message with a number other than 0 is an
/// error.
pub(super) fn answers(mut datagram: &[u8]) -> io::Result<(Vec<&[u8]>, bool)> {
    let mut bodies = Vec::new();
    while datagram.len() >= HEADER_LEN {
        let length = u32_at(datagram, 0) as usize;
        let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
        if length < HEADER_LEN || length > datagram.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a netlink message of impossible length"));
        }
        let body = &datagram[HEADER_LEN..length];
        match kind {
            NLMSG_DONE => return Ok((bodies, true)),
            NLMSG_ERROR if body.len() >= 4 => match u32_at(body, 0).cast_signed() {
                0 => return Ok((bodies, true)),
                errno => return Err(io::Error::from_raw_os_error(-errno)),
            },
            SOCK_DIAG_BY_FAMILY => bodies.push(body),
            _ => {}
        }
        // Messages are aligned to 4 bytes (NLMSG_ALIGN).
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok((bodies, false))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_kernels_layout() {
        let message = request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, 2, IPPROTO_TCP, CONNECTED, &[0; SOCKET_ID_LEN]);
        assert_eq!(message.len(), 72);
        assert_eq!(u32_at(&message, 0), 72);
        assert_eq!(message[4..8], [20, 0, 1, 3]);
        assert_eq!(message[16..18], [2, 6]);
        assert_eq!(u32_at(&message, 20), 0xb7f);
    }

    #[test]
    fn an_answer_gives_sockets_until_done_and_errors_are_errors() {
        let mut body = vec![0_u8; MESSAGE_LEN];
        body[0] = 10;
        body[MESSAGE_LEN - 4..].copy_from_slice(&99_u32.to_ne_bytes());
        let message = |kind, body: &[u8]| message(kind, 0, body);
        let listing = [message(SOCK_DIAG_BY_FAMILY, &body), message(NLMSG_DONE, &[0; 4])].concat();
        let Part::Done(sockets) = parse(&listing).unwrap() else { panic!("not done") };
        assert_eq!((sockets.len(), sockets[0].family, sockets[0].inode), (1, 10, 99));
        let denied = message(NLMSG_ERROR, &(-libc::EPERM).to_ne_bytes());
        assert_eq!(parse(&denied).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert!(parse(&[200; 20]).is_err());
    }

    #[test]
    fn our_own_connection_is_listed_by_its_inode() {
        use std::os::unix::fs::MetadataExt;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let inode = std::fs::metadata(format!("/proc/self/fd/{}", client.as_raw_fd())).unwrap().ino();
        // Listing needs no privilege; a sandbox may forbid netlink altogether.
        let Ok(netlink) = Diagnostics::open() else { return };
        let Ok(sockets) = netlink.list(IPPROTO_TCP, CONNECTED) else { return };
        assert!(sockets.iter().any(|s| u64::from(s.inode) == inode));
    }
}
