//! One conversation between two hosts.

mod control;
mod handshake;
mod listener;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::bulk::{ExtentSink, ExtentSource, Limits, Stats, extents, files, stream};
use crate::error::Error;
use crate::link::Link;
use crate::socket;
use crate::tls::Identity;
use crate::wire::hello::Role;
use crate::wire::{Connection, frame};

pub(crate) use control::{Aborter, Control};
#[cfg(feature = "fuzzing")]
pub(crate) use handshake::greet;
pub use listener::Listener;

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
    /// The hosts that a listener takes, by the first name in their certificates; another one with a good certificate hears
    /// [`Error::Stranger`] and nothing else. Looked at for every connection, so they may change; sessions that are open go on.
    /// Default none: every host with a good certificate.
    pub peers: Option<watch::Receiver<BTreeSet<String>>>,
    /// Sessions that a listener lets one peer (by its name) have open at once; more are refused. A migration has two at most, the
    /// second to say its verdict again. Each may hold 17 connections and 64 MiB of buffers. Default 64.
    pub max_sessions_per_peer: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            peer_timeout: Duration::from_secs(6),
            max_pending: 256,
            max_pending_per_address: 64,
            peers: None,
            max_sessions_per_peer: 64,
        }
    }
}

/// Opens a session with the host `expected_name` at `address` (`host:port`), with the default [`Options`].
///
/// `data_connections` is 1 to [`MAX_DATA_CONNECTIONS`]; others are clamped to that.
///
/// # Errors
/// [`Error::Connect`], [`Error::Timeout`], [`Error::NotSpothop`], [`Error::PeerName`], [`Error::PeerCertificate`],
/// [`Error::PeerExpired`], [`Error::OwnCertificate`], [`Error::OwnPeriod`], [`Error::Stranger`], [`Error::Version`], [`Error::Tls`], [`Error::Truncated`], [`Error::Disconnected`].
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
    let count = data_connections.clamp(1, MAX_DATA_CONNECTIONS);
    let (mut stream, peer_addr, known) = handshake::connect(address, expected_name, identity, options).await?;
    let peer = peer_addr.to_string();
    socket::limit_silence(stream.get_ref().0.get_ref(), options.peer_timeout)
        .map_err(|error| Error::from_io(&peer, "the TCP set-up", error))?;
    // At most 16, see above.
    let role = Role::Control { data_connections: count as u8 };
    let (version, token) = handshake::open(&mut stream, role, &peer, options.handshake_timeout).await?;

    // All at once: each costs some round trips.
    let mut opening = JoinSet::new();
    for index in 0..count {
        let (address, expected_name) = (peer.clone(), expected_name.to_owned());
        let (identity, options) = (identity.clone(), options.clone());
        opening.spawn(async move {
            let (mut stream, ..) = handshake::connect(&address, &expected_name, &identity, &options).await?;
            let role = Role::Data { index: index as u8, token };
            handshake::open(&mut stream, role, &address, options.handshake_timeout).await?;
            Ok::<_, Error>((index, Box::new(stream) as Connection))
        });
    }
    let mut data = Vec::with_capacity(count);
    while let Some(opened) = opening.join_next().await {
        // Nobody aborts these tasks, so a missing result is a panic.
        data.push(opened.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?);
    }
    data.sort_by_key(|(index, _)| *index);
    let data = data.into_iter().map(|(_, connection)| connection).collect();
    Ok(Session::new(Box::new(stream), data, known.name, peer_addr, version))
}

/// One conversation with one peer.
///
/// Messages and transfers may go either way, whoever opened the session; at most one transfer runs at a time, and both sides must
/// have agreed on it by messages (one calls `send_*`, the other the matching `receive_*`).
///
/// At most 64 messages of 32 MiB in all may wait unread on a side when a transfer begins there; more would keep the transfer's own messages
/// from being read. A transfer holds up to about 4 MiB of buffers per data connection and side, whatever it carries.
///
/// A failed transfer closes the data connections on both sides (later transfers: [`Error::NoDataConnections`]) but messages still work, so
/// that the two can say what they do next. Dropping the future of a transfer is such a failure: the peer gets
/// [`Error::Peer`] with [`AbortCode::Cancelled`](crate::error::AbortCode::Cancelled). Dropping the session closes everything at once; the
/// peer then gets an error. [`Session::close`] ends it in good order.
pub struct Session {
    control: Control,
    /// In the order of their indices; empty while a transfer runs and after one failed.
    data: Vec<Connection>,
    link: Arc<Link>,
    /// Number of the last transfer begun, the same on both sides.
    transfers: u32,
    peer_name: String,
    peer_addr: SocketAddr,
    version: u16,
    /// Counts among the peer's open sessions while it is there.
    _open: Option<Arc<()>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("peer_name", &self.peer_name)
            .field("peer_addr", &self.peer_addr)
            .field("version", &self.version)
            .field("data_connections", &self.data.len())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Takes over connections after their hellos.
    pub(crate) fn new(
        control: Connection,
        data: Vec<Connection>,
        peer_name: String,
        peer_addr: SocketAddr,
        version: u16,
    ) -> Self {
        // Messages name the host too: an address alone means little to people.
        let peer = Arc::from(format!("{peer_name} ({peer_addr})"));
        let link = Arc::new(Link::new(data.len()));
        Self {
            control: Control::new(control, peer),
            data,
            link,
            transfers: 0,
            peer_name,
            peer_addr,
            version,
            _open: None,
        }
    }

    /// Keeps `mark` as long as the session is open.
    pub(crate) fn marked(self, mark: Arc<()>) -> Self {
        Self { _open: Some(mark), ..self }
    }

    /// The parts that a transfer works with, its number, and the data connections, which the transfer gives back if it succeeds.
    ///
    /// # Errors
    /// The session's end, or [`Error::NoDataConnections`].
    pub(crate) fn begin_transfer(&mut self) -> Result<TransferParts<'_>, Error> {
        self.control.check()?;
        if self.data.is_empty() {
            return Err(Error::NoDataConnections { peer: self.control.peer().to_string() });
        }
        self.transfers += 1;
        let connections = std::mem::take(&mut self.data);
        let (control, home, link) = (&mut self.control, &mut self.data, self.link.clone());
        Ok(TransferParts { control, home, link, number: self.transfers, connections })
    }

    /// The peer's name: the first DNS name of its certificate, which TLS has verified.
    pub fn peer_name(&self) -> &str {
        &self.peer_name
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer_addr
    }

    /// The protocol version that both sides speak.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Sends a message of up to [`MAX_MESSAGE`] bytes; returns when the kernel has taken it.
    ///
    /// If the future is dropped, the message is sent whole or not at all.
    ///
    /// # Errors
    /// [`Error::Limit`] (the session goes on); else the session's end.
    pub async fn send(&mut self, message: &[u8]) -> Result<(), Error> {
        self.control.send(frame::Kind::Message, message).await
    }

    /// The next message; `None` when the peer closed the session in good order. Cancel-safe: for use in `tokio::select!`.
    ///
    /// # Errors
    /// The session's end: [`Error::Truncated`] or [`Error::Disconnected`] when the peer died or dropped the session (within
    /// [`Options::peer_timeout`] if it just vanished), [`Error::Checksum`], [`Error::Protocol`], [`Error::Tls`].
    pub async fn recv(&mut self) -> Result<Option<Vec<u8>>, Error> {
        self.control.recv().await
    }

    /// Says goodbye after all messages sent before, and closes everything. The peer's [`Session::recv`] then gives `None`.
    ///
    /// # Errors
    /// The session's end, if it had one before.
    pub async fn close(self) -> Result<(), Error> {
        drop(self.data);
        self.control.close().await
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
        files::send(self.begin_transfer()?, root, files, progress).await
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
        files::receive(self.begin_transfer()?, root, limits, progress).await
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
        stream::send(self.begin_transfer()?, source, progress).await
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
        stream::receive(self.begin_transfer()?, sink, max_bytes, progress).await
    }

    /// Sends the pieces that `source` gives until it has no more; returns when the receiver's sink has taken all of them, verified.
    ///
    /// They go over all data connections at once, in any order. Pieces of zeros cost a chunk's header. `progress` is told the raw bytes
    /// sent since the call began. No call of `source` is under way when this returns.
    ///
    /// # Errors
    /// [`Error::Extent`], [`Error::Peer`] with the receiver's cause, [`Error::NoDataConnections`], or the session's end.
    pub async fn send_extents(
        &mut self,
        source: Arc<dyn ExtentSource>,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Stats, Error> {
        extents::send(self.begin_transfer()?, source, progress).await
    }

    /// Receives what the peer's [`Session::send_extents`] sends, into `sink`, which never gets more than `limits.max_bytes` in all.
    ///
    /// On an error the sink has some of the pieces: only `Ok` here means that it has all of them, each once. `progress` is told the raw
    /// bytes handed on since the call began. No call of `sink` is under way when this returns.
    ///
    /// # Errors
    /// [`Error::Extent`], [`Error::Limit`], [`Error::Checksum`], [`Error::Digest`], [`Error::Truncated`], [`Error::Protocol`], [`Error::Peer`]
    /// with the sender's cause, [`Error::NoDataConnections`], or the session's end.
    pub async fn receive_extents(
        &mut self,
        sink: Arc<dyn ExtentSink>,
        limits: &Limits,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Stats, Error> {
        extents::receive(self.begin_transfer()?, sink, limits, progress).await
    }
}

/// What [`Session::begin_transfer`] hands out.
pub(crate) struct TransferParts<'a> {
    pub(crate) control: &'a mut Control,
    /// Where the connections go back to.
    pub(crate) home: &'a mut Vec<Connection>,
    pub(crate) link: Arc<Link>,
    pub(crate) number: u32,
    pub(crate) connections: Vec<Connection>,
}
