//! What the tests of several modules need.

use std::ops::ControlFlow;
use std::path::Path;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::certs::{self, Existing};
use crate::session::Session;
use crate::tls::Identity;
use crate::wire::Connection;

/// Room in a pipe in memory: far less than a chunk, so that sender and receiver have to take turns.
const PIPE: usize = 64 << 10;

/// What happens to the bytes of a pipe on their way.
pub(crate) type Tamper = Box<dyn FnMut(u64, &mut [u8]) -> ControlFlow<()> + Send>;

/// Two sessions with each other, over pipes in memory, with so many data connections.
pub(crate) fn pair(connections: usize) -> (Session, Session) {
    tampered_pair(connections, |_| None)
}

/// As [`pair`]; `tamper` says for each data connection what happens to its bytes from the first session to the second. It is called with the
/// offset of the bytes in the connection; `Break` cuts the connection before them.
pub(crate) fn tampered_pair(connections: usize, mut tamper: impl FnMut(usize) -> Option<Tamper>) -> (Session, Session) {
    let (control_a, control_b) = tokio::io::duplex(PIPE);
    let mut data_a: Vec<Connection> = Vec::new();
    let mut data_b: Vec<Connection> = Vec::new();
    for index in 0..connections {
        let (a, b) = tokio::io::duplex(PIPE);
        data_a.push(Box::new(a));
        match tamper(index) {
            None => data_b.push(Box::new(b)),
            Some(tamper) => {
                let (c, d) = tokio::io::duplex(PIPE);
                tokio::spawn(relay(b, c, tamper));
                data_b.push(Box::new(d));
            }
        }
    }
    let session = |control: DuplexStream, data, name: &str| {
        Session::new(Box::new(control), data, name.into(), ([127, 0, 0, 1], 7077).into(), 1)
    };
    (session(control_a, data_a, "b"), session(control_b, data_b, "a"))
}

async fn relay(mut from: DuplexStream, mut to: DuplexStream, mut tamper: Tamper) {
    let mut buffer = vec![0; 16 << 10];
    let mut offset = 0;
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if tamper(offset, &mut buffer[..length]).is_break() || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
        offset += length as u64;
    }
}

/// Flips one bit of the byte at `position`.
pub(crate) fn flip(position: u64) -> Tamper {
    Box::new(move |offset, bytes| {
        if let Some(byte) = position.checked_sub(offset).and_then(|at| bytes.get_mut(at as usize)) {
            *byte ^= 4;
        }
        ControlFlow::Continue(())
    })
}

/// Cuts the connection about `position` (to the length of a read).
pub(crate) fn cut(position: u64) -> Tamper {
    Box::new(
        move |offset, bytes| {
            if offset + bytes.len() as u64 > position { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        },
    )
}

/// Bytes that do not compress (xorshift), different for each seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ (seed + 1);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// An authority, and the hosts that it issues certificates to.
pub(crate) struct Authority {
    dir: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        certs::init(dir.path(), Existing::Keep).unwrap();
        Self { dir }
    }

    /// The directory of the authority, or of a host.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn identity(&self, host: &str) -> Identity {
        let out = self.dir.path().join(host);
        certs::issue(self.dir.path(), host, &[], &out, Existing::Keep).unwrap();
        Identity::load(&out).unwrap()
    }
}
