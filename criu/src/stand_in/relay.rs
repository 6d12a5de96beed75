//! Between runc and CRIU during a dump: makes the log that runc asks for less verbose, and passes everything else on.
//!
//! runc always asks for the most verbose log, which has four lines for every run of pages, each a write of its own: a quarter of the time
//! that CRIU needs for a large task. CRIU takes the level from the request alone (criu, `criu/cr-service.c`, `setup_logging_from_req`),
//! and finds the directories by the numbers of the requester's descriptors: those of this process here.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, getsockopt, recv, send, shutdown, socketpair, sockopt,
};
use prost::Message;

use super::criu::{LONGEST, NAME, VERB};
use super::real;
use crate::pidfd;

/// CRIU's `LOG_INFO`: its warnings and errors, and what it does, but not with every run of pages.
const LOG_LEVEL: i32 = 3;

/// `criu_req`: the fields of a dump, the options as they are encoded.
#[derive(Clone, PartialEq, Eq, Message)]
struct Request {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(bytes = "vec", optional, tag = "2")]
    options: Option<Vec<u8>>,
}

/// What is changed in `criu_opts`.
#[derive(Clone, PartialEq, Eq, Message)]
struct Options {
    #[prost(int32, required, tag = "1")]
    images_dir_fd: i32,
    #[prost(int32, optional, tag = "9")]
    log_level: Option<i32>,
    #[prost(int32, optional, tag = "17")]
    work_dir_fd: Option<i32>,
    /// Another descriptor of the requester's, which runc gives to restores only.
    #[prost(int32, optional, tag = "49")]
    status_fd: Option<i32>,
}

/// Runs CRIU for `request`, which waits on `fd`, and returns its exit status; `None` if it is not a request as runc makes them.
pub(super) fn relay(fd: RawFd, request: &[u8], directory: &Path) -> io::Result<Option<ExitCode>> {
    match real(NAME, directory) {
        Some(program) => relay_to(&program, fd, request),
        None => Ok(None),
    }
}

fn relay_to(program: &Path, fd: RawFd, request: &[u8]) -> io::Result<Option<ExitCode>> {
    // SAFETY: runc has opened it for this process, which closes it by ending only.
    #[expect(unsafe_code)]
    let runc = unsafe { BorrowedFd::borrow_raw(fd) };
    let requester = getsockopt(&runc, sockopt::PeerCredentials)?.pid();
    let Some((request, _directories)) = less_verbose(request, requester) else { return Ok(None) };
    let (ours, criu) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    fcntl(&criu, FcntlArg::F_SETFD(FdFlag::empty()))?;
    send(ours.as_raw_fd(), &request, MsgFlags::MSG_NOSIGNAL)?;

    // The message was looked at only until now.
    recv(fd, &mut [], MsgFlags::empty())?;
    // runc must hear it if this process dies.
    fcntl(runc, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let mut child = Command::new(program).arg0(NAME).arg(VERB).arg(criu.as_raw_fd().to_string()).spawn()?;
    drop(criu);
    pass_on(runc, &ours, &pidfd::open(child.id().cast_signed())?)?;
    drop(ours);
    let code = child.wait()?.code().and_then(|code| u8::try_from(code).ok());
    Ok(Some(code.map_or(ExitCode::FAILURE, ExitCode::from)))
}

/// The request with another log level and with our own descriptors of its directories; `None` if it is none that we understand, or they
/// cannot be opened: then CRIU's own words are better.
fn less_verbose(request: &[u8], requester: i32) -> Option<(Vec<u8>, [File; 2])> {
    let mut request = Request::decode(request).ok()?;
    let options = request.options.as_mut()?;
    let read = Options::decode(&options[..]).ok().filter(|read| read.status_fd.is_none())?;
    let open = |fd: i32| {
        let flags = libc::O_DIRECTORY | libc::O_CLOEXEC;
        OpenOptions::new().read(true).custom_flags(flags).open(format!("/proc/{requester}/fd/{fd}")).ok()
    };
    let directories = [open(read.images_dir_fd)?, open(read.work_dir_fd?)?];
    let [images_dir_fd, work_dir_fd] = directories.each_ref().map(AsRawFd::as_raw_fd);
    // Of a field that is there twice the last one counts (protobuf's encoding).
    let changed =
        Options { images_dir_fd, log_level: Some(LOG_LEVEL), work_dir_fd: Some(work_dir_fd), status_fd: None };
    options.extend(changed.encode_to_vec());
    Some((request.encode_to_vec(), directories))
}

/// Passes messages on, both ways, until CRIU has ended. It may go on after runc has closed its end: it is told.
fn pass_on(runc: BorrowedFd<'_>, criu: &OwnedFd, process: &impl AsFd) -> io::Result<()> {
    let mut message = vec![0; LONGEST];
    let mut runc_listens = true;
    loop {
        let mut fds = [criu.as_fd(), process.as_fd(), runc].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let watched = if runc_listens { &mut fds[..] } else { &mut fds[..2] };
        match poll(watched, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let [from_criu, ended, from_runc] = fds.map(|fd| fd.any() == Some(true));
        if from_criu {
            match received(criu.as_fd(), &mut message)? {
                // A runc that is gone is noticed below.
                Some(message) => drop(send(runc.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL)),
                None => return Ok(()),
            }
        } else if ended {
            return Ok(());
        }
        if from_runc {
            match received(runc, &mut message)? {
                // A CRIU that is gone is noticed above.
                Some(message) => drop(send(criu.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL)),
                None => {
                    runc_listens = false;
                    let _ = shutdown(criu.as_raw_fd(), Shutdown::Write);
                }
            }
        }
    }
}

/// The next message; `None` when the other end is closed.
fn received<'a>(from: BorrowedFd<'_>, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
    match recv(from.as_raw_fd(), buffer, MsgFlags::empty()) {
        Ok(0) | Err(Errno::ECONNRESET) => Ok(None),
        Ok(length) => Ok(Some(&buffer[..length])),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::thread;

    use super::*;

    /// A request as runc makes it: DUMP, and options of which we know three.
    fn request(images: i32, work: i32) -> Vec<u8> {
        let mut options =
            Options { images_dir_fd: images, log_level: Some(4), work_dir_fd: Some(work), status_fd: None }
                .encode_to_vec();
        // pid 77, which is none of ours.
        options.extend([0x10, 77]);
        Request { kind: 1, options: Some(options) }.encode_to_vec()
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    #[test]
    fn a_dump_gets_another_level_and_the_same_directories() {
        let scratch = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let theirs = scratch.each_ref().map(|directory| File::open(directory.path()).unwrap());
        let text = request(theirs[0].as_raw_fd(), theirs[1].as_raw_fd());
        let (changed, ours) = less_verbose(&text, std::process::id().cast_signed()).unwrap();
        let changed = Request::decode(&changed[..]).unwrap();
        let options = changed.options.unwrap();
        assert_eq!(changed.kind, 1);
        let read = Options::decode(&options[..]).unwrap();
        assert_eq!(read.log_level, Some(LOG_LEVEL));
        assert_eq!([Some(read.images_dir_fd), read.work_dir_fd], ours.each_ref().map(|fd| Some(fd.as_raw_fd())));
        let inode = |file: &File| file.metadata().unwrap().ino();
        assert_eq!(ours.each_ref().map(inode), theirs.each_ref().map(inode));
        assert!(options.windows(2).any(|field| field == [0x10, 77]), "what is not ours is lost: {options:?}");
    }

    #[test]
    fn a_request_that_is_not_as_runc_makes_it_is_left_alone() {
        for text in [&[0x08, 1][..], &[0x08, 1, 0x12, 0], &[0x08, 1, 0x12, 2, 0x08, 5], &[0xff]] {
            assert!(less_verbose(text, 1).is_none(), "{text:?}");
        }
        // No process has an id above the kernel's limit (2^22).
        assert!(less_verbose(&request(3, 4), 1 << 23).is_none());
    }

    /// Messages of both sides through [`pass_on`], while `criu` talks to its end.
    fn passed_on(criu: impl FnOnce(OwnedFd) + Send + 'static, runc: impl FnOnce(OwnedFd)) {
        let ((runc_end, relay_to_runc), (relay_to_criu, criu_end)) = (pair(), pair());
        // A process that outlives the test: the socket's end counts.
        let process = pidfd::open(std::process::id().cast_signed()).unwrap();
        let relay = thread::spawn(move || pass_on(relay_to_runc.as_fd(), &relay_to_criu, &process).unwrap());
        let criu = thread::spawn(move || criu(criu_end));
        runc(runc_end);
        criu.join().unwrap();
        relay.join().unwrap();
    }

    fn say(to: &OwnedFd, text: &[u8]) {
        assert_eq!(send(to.as_raw_fd(), text, MsgFlags::MSG_NOSIGNAL), Ok(text.len()));
    }

    fn hear(from: &OwnedFd) -> Option<Vec<u8>> {
        received(from.as_fd(), &mut [0; 64]).unwrap().map(<[u8]>::to_vec)
    }

    #[test]
    fn messages_pass_both_ways_until_criu_ends() {
        passed_on(
            |criu| {
                say(&criu, b"post-dump?");
                assert_eq!(hear(&criu).unwrap(), b"yes");
                say(&criu, b"done");
            },
            |runc| {
                assert_eq!(hear(&runc).unwrap(), b"post-dump?");
                say(&runc, b"yes");
                assert_eq!(hear(&runc).unwrap(), b"done");
                assert_eq!(hear(&runc), None);
            },
        );
    }

    #[test]
    fn criu_goes_on_without_runc_and_is_told() {
        passed_on(
            |criu| {
                assert_eq!(hear(&criu), None);
                say(&criu, b"done");
            },
            drop,
        );
    }

    #[test]
    fn criu_is_run_with_the_request_and_its_exit_status_is_passed_on() {
        let scratch = tempfile::tempdir().unwrap();
        let (bin, images) = (scratch.path().join("other"), File::open(scratch.path()).unwrap());
        fs::create_dir(&bin).unwrap();
        let criu = bin.join(NAME);
        let heard = scratch.path().join("heard");
        // Other shells know descriptors up to 9 only.
        let script = format!(
            "#!/bin/bash\ntest \"$1\" = swrk && dd bs=65536 count=1 of={} <&\"$2\" && exit 7\n",
            heard.display()
        );
        fs::write(&criu, script).unwrap();
        fs::set_permissions(&criu, fs::Permissions::from_mode(0o755)).unwrap();
        let (runc, ours) = pair();
        let text = request(images.as_raw_fd(), images.as_raw_fd());
        say(&runc, &text);
        let code = relay_to(&criu, ours.as_raw_fd(), &text).unwrap();
        assert_eq!(code, Some(ExitCode::from(7)));
        let heard = Request::decode(&fs::read(&heard).unwrap()[..]).unwrap();
        assert_eq!(Options::decode(&heard.options.unwrap()[..]).unwrap().log_level, Some(LOG_LEVEL));
        let left = recv(ours.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_DONTWAIT);
        assert_eq!(left, Err(Errno::EAGAIN), "runc's own request is still there");
    }
}
