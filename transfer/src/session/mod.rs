//! One conversation between two hosts.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::bulk::{Limits, Stats};
use crate::error::Error;
use crate::tls::Identity;

/// Largest control message, in bytes.
pub const MAX_MESSAGE: usize = 16 << 20;
/// Most data connections that one session may have.
pub const MAX_DATA_CONNECTIONS: usize = 16;

/// Times and sizes; the defaults are right for hosts in one region.
#[derive(Debug, Clone)]
pub struct Options {
    /// For resolving the name and the TCP connection. Default 5 s.
    pub connect_timeout: Duration,
    /// For TLS and hello of one connection, and for all data connections of a session to arrive. Default 5 s.
    pub handshake_timeout: Duration,
    /// After this long without any sign of life from the peer's kernel (TCP_USER_TIMEOUT and keepalive), the session is lost. Default 6 s.
    pub peer_timeout: Duration,
    /// Connections that a listener lets be in their handshake at once; more are closed unanswered. Default 256.
    pub max_pending: usize,
    /// The same for one address, so that one host cannot keep the others out. Default 64.
    pub max_pending_per_address: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            peer_timeout: Duration::from_secs(6),
            max_pending: 256,
            max_pending_per_address: 64,
        }
    }
}

/// The listening port. Dropping it closes the port and unfinished handshakes, not the sessions accepted.
#[derive(Debug)]
pub struct Listener {}

impl Listener {
    /// Opens the port with the default [`Options`]. `address` is `host:port`; port 0 takes a free one.
    ///
    /// # Errors
    /// [`Error::Bind`].
    pub async fn bind(address: &str, identity: &Identity) -> Result<Self, Error> {
        Self::bind_with(address, identity, Options::default()).await
    }

    /// As [`Listener::bind`], with options.
    ///
    /// # Errors
    /// [`Error::Bind`].
    pub async fn bind_with(address: &str, identity: &Identity, options: Options) -> Result<Self, Error> {
        let _ = (address, identity, options);
        todo!()
    }

    /// The address that the port is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        todo!()
    }

    /// The next session that is complete: certificates checked, version agreed, all data connections there.
    ///
    /// Handshakes run in tasks of their own, each with a timeout and limited in number, so slow or hostile peers cannot hold up others;
    /// a failed one is logged (`warn`, with the peer's address and the reason) and forgotten. Connections are taken in only while this is
    /// being awaited, so keep awaiting it. Cancel-safe.
    pub async fn accept(&mut self) -> Session {
        todo!()
    }
}

/// Opens a session with the host `expected_name` at `address` (`host:port`), with the default [`Options`].
///
/// `data_connections` is 1 to [`MAX_DATA_CONNECTIONS`]; others are clamped to that.
///
/// # Errors
/// [`Error::Connect`], [`Error::Timeout`], [`Error::NotSpothop`], [`Error::PeerName`], [`Error::PeerCertificate`],
/// [`Error::OwnCertificate`], [`Error::Version`], [`Error::Tls`], [`Error::Truncated`], [`Error::Disconnected`].
pub async fn connect(
    address: &str,
    expected_name: &str,
    identity: &Identity,
    data_connections: usize,
) -> Result<Session, Error> {
    connect_with(address, expected_name, identity, data_connections, &Options::default()).await
}

/// As [`connect`], with options.
///
/// # Errors
/// As [`connect`].
pub async fn connect_with(
    address: &str,
    expected_name: &str,
    identity: &Identity,
    data_connections: usize,
    options: &Options,
) -> Result<Session, Error> {
    let _ = (address, expected_name, identity, data_connections, options);
    todo!()
}

/// One conversation with one peer.
///
/// Messages and transfers may go either way, whoever opened the session; at most one transfer runs at a time, and both sides must
/// have agreed on it by messages (one calls `send_*`, the other the matching `receive_*`).
///
/// A failed transfer closes the data connections on both sides (later transfers: [`Error::NoDataConnections`]) but messages still work, so
/// that the two can say what they do next. Dropping the future of a transfer is such a failure: the peer gets
/// [`Error::Peer`] with [`AbortCode::Cancelled`](crate::error::AbortCode::Cancelled). Dropping the session closes everything at once; the
/// peer then gets an error. [`Session::close`] ends it in good order.
#[derive(Debug)]
pub struct Session {}

impl Session {
    /// The peer's name: the first DNS name of its certificate, which TLS has verified.
    pub fn peer_name(&self) -> &str {
        todo!()
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> SocketAddr {
        todo!()
    }

    /// The protocol version that both sides speak.
    pub fn version(&self) -> u16 {
        todo!()
    }

    /// Sends a message of up to [`MAX_MESSAGE`] bytes; returns when the kernel has taken it.
    ///
    /// If the future is dropped, the message is sent whole or not at all.
    ///
    /// # Errors
    /// [`Error::Limit`] (the session goes on); else the session's end.
    pub async fn send(&mut self, message: &[u8]) -> Result<(), Error> {
        let _ = message;
        todo!()
    }

    /// The next message; `None` when the peer closed the session in good order. Cancel-safe: for use in `tokio::select!`.
    ///
    /// # Errors
    /// The session's end: [`Error::Truncated`] or [`Error::Disconnected`] when the peer died or dropped the session (within
    /// [`Options::peer_timeout`] if it just vanished), [`Error::Checksum`], [`Error::Protocol`], [`Error::Tls`].
    pub async fn recv(&mut self) -> Result<Option<Vec<u8>>, Error> {
        todo!()
    }

    /// Says goodbye after all messages sent before, and closes everything. The peer's [`Session::recv`] then gives `None`.
    ///
    /// # Errors
    /// The session's end, if it had one before.
    pub async fn close(self) -> Result<(), Error> {
        todo!()
    }

    /// Sends the files `root/name` for each of `files`; returns when the receiver has verified all of them.
    ///
    /// `progress` is told the raw bytes sent since the call began. The files must not change meanwhile.
    ///
    /// # Errors
    /// [`Error::FileName`], [`Error::File`], [`Error::Peer`] with the receiver's cause, [`Error::NoDataConnections`], or the session's end.
    pub async fn send_files(
        &mut self,
        root: &Path,
        files: &[String],
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Stats, Error> {
        let _ = (root, files, progress);
        todo!()
    }

    /// Receives what the peer's [`Session::send_files`] sends, as new files (mode 0600) in the existing directory `root`.
    ///
    /// Zero chunks become holes. On an error the files made so far are left behind, incomplete: the directory is the caller's to discard.
    /// `progress` is told the raw bytes written since the call began.
    ///
    /// # Errors
    /// [`Error::FileName`], [`Error::File`] (`AlreadyExists` for a file that is there), [`Error::Limit`], [`Error::Checksum`], [`Error::Digest`],
    /// [`Error::Truncated`], [`Error::Protocol`], [`Error::Peer`] with the sender's cause, [`Error::NoDataConnections`], or the session's end.
    pub async fn receive_files(
        &mut self,
        root: &Path,
        limits: &Limits,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Stats, Error> {
        let _ = (root, limits, progress);
        todo!()
    }

    /// Sends everything that `source` gives until its end; returns when the receiver has verified and handed on all of it.
    ///
    /// # Errors
    /// [`Error::Source`], [`Error::Peer`], [`Error::NoDataConnections`], or the session's end.
    pub async fn send_stream(
        &mut self,
        source: impl AsyncRead + Send + Unpin,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Stats, Error> {
        let _ = (source, progress);
        todo!()
    }

    /// Receives what the peer's [`Session::send_stream`] sends, in order, into `sink`, which is shut down after the last byte has been verified
    /// and dropped in any case.
    ///
    /// Whoever reads the other end of `sink` sees an ordinary end of file after an error too: only `Ok` here means that the stream was whole.
    ///
    /// # Errors
    /// [`Error::Sink`], [`Error::Limit`] when there are more than `max_bytes`, [`Error::Checksum`], [`Error::Digest`], [`Error::Truncated`],
    /// [`Error::Protocol`], [`Error::Peer`], [`Error::NoDataConnections`], or the session's end.
    pub async fn receive_stream(
        &mut self,
        sink: impl AsyncWrite + Send + Unpin,
        max_bytes: u64,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Stats, Error> {
        let _ = (sink, max_bytes, progress);
        todo!()
    }
}
