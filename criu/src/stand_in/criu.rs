//! `criu swrk FD`: how runc runs CRIU as a service for one request (criu, `criu/crtools.c`), on a socket whose messages are `criu_req` and
//! `criu_resp` of criu's `images/rpc.proto`.

use std::ffi::OsString;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::process::ExitCode;

use nix::sys::socket::{MsgFlags, recv};
use prost::Message;

use super::{become_real, relay};
use crate::oci::swrk;

pub(super) const NAME: &str = "criu";
pub(super) const VERB: &str = "swrk";

/// Longer than any request.
pub(super) const LONGEST: usize = 256 << 10;

/// `criu_req_type`, the two that are ours.
const DUMP: i32 = 1;
const RESTORE: i32 = 2;

/// `criu_req`, as far as it matters which it is.
#[derive(Clone, PartialEq, Eq, Message)]
struct Head {
    #[prost(int32, required, tag = "1")]
    kind: i32,
}

pub(super) fn run(arguments: &[OsString], directory: &Path) -> ExitCode {
    let done = match arguments {
        [verb, fd] if verb == VERB => match fd.to_str().and_then(|fd| fd.parse().ok()) {
            Some(fd) => serve(fd, directory),
            None => Ok(None),
        },
        _ => Ok(None),
    };
    match done {
        Ok(Some(code)) => code,
        Ok(None) => become_real(NAME, arguments, directory),
        Err(error) => {
            eprintln!("spothop-oci: CRIU is not started: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `None` when CRIU is to serve the request itself now.
fn serve(fd: RawFd, directory: &Path) -> io::Result<Option<ExitCode>> {
    let mut request = vec![0; LONGEST];
    // CRIU shall find the message where it was.
    let length = recv(fd, &mut request, MsgFlags::MSG_PEEK)?;
    request.truncate(length);
    match Head::decode(&request[..]).map(|head| head.kind) {
        Ok(RESTORE) => swrk::wait_for_images(directory).map(|()| None),
        Ok(DUMP) => relay::relay(fd, &request, directory),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, send, socketpair};

    use super::*;

    #[test]
    fn other_requests_are_served_at_once_and_nothing_is_taken_from_them() {
        let (runc, criu) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        // VERSION.
        for _ in 0..2 {
            send(runc.as_raw_fd(), &[0x08, 10], MsgFlags::empty()).unwrap();
            assert_eq!(serve(criu.as_raw_fd(), Path::new("/nonexistent")).unwrap(), None);
            let mut read = [0; 8];
            assert_eq!(recv(criu.as_raw_fd(), &mut read, MsgFlags::empty()), Ok(2));
        }
        // RESTORE, of which nobody knows.
        send(runc.as_raw_fd(), &[0x08, 2, 0x12, 0], MsgFlags::empty()).unwrap();
        assert!(serve(criu.as_raw_fd(), Path::new("/nonexistent")).is_err());
    }
}
