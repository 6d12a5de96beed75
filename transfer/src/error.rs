//! What can go wrong between two hosts.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::version::VersionRange;

/// Why a connection, a message or a transfer failed.
///
/// Cloneable, because the first cause of a session's end is given to every later call on it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The listening port could not be opened.
    #[error("cannot listen on {address}: {source}; is another daemon using the port?")]
    Bind {
        /// As given by the caller.
        address: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// No TCP connection to the peer.
    #[error("cannot connect to {address}: {source}; is spothop running there and the port open?")]
    Connect {
        /// As given by the caller.
        address: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The peer did not do its part in time.
    #[error("{peer} did not finish {step} within {after:?}")]
    Timeout {
        /// Address of the peer.
        peer: String,
        /// What was waited for.
        step: &'static str,
        /// How long.
        after: Duration,
    },
    /// What is at the other end does not speak this protocol (plain HTTP, another TLS service, ...).
    #[error("{peer} does not speak the spothop protocol: {found}; is the address right?")]
    NotSpothop {
        /// Address of the peer.
        peer: String,
        /// What was seen instead.
        found: &'static str,
    },
    /// The name to be expected of a peer is not one that a certificate could carry.
    #[error("{name:?} is not a valid host name; correct it in the inventory")]
    HostName {
        /// The name.
        name: String,
    },
    /// The peer's certificate is valid, but for another host.
    #[error(
        "the host at {peer} is not {expected:?}: its certificate is for {presented:?}; check the inventory's names and addresses"
    )]
    PeerName {
        /// Address of the peer.
        peer: String,
        /// The name that the caller wanted.
        expected: String,
        /// The names in the certificate, as rustls prints them.
        presented: Vec<String>,
    },
    /// The peer's certificate is not of our authority, expired, or not there at all.
    #[error(
        "the certificate of {peer} is not accepted: {source}; was it issued by this host's ca.pem, and are the clocks right?"
    )]
    PeerCertificate {
        /// Address of the peer.
        peer: String,
        /// rustls's reason.
        source: rustls::Error,
    },
    /// The peer's certificate has expired.
    #[error(
        "the certificate of {peer} expired on {until}; where the authority is, issue a new one (spothop cert issue NAME --force),          and put its host.pem and host.key into that host's tls directory"
    )]
    PeerExpired {
        /// Address of the peer.
        peer: String,
        /// Its last day.
        until: String,
    },
    /// This host's own certificate cannot be used now.
    #[error("no connection to {peer}: {source}")]
    OwnPeriod {
        /// Address of the peer.
        peer: String,
        /// The file, its date, and what to do.
        source: crate::certs::Error,
    },
    /// The peer does not know a host of our name.
    #[error("{peer} does not know this host: the name in its certificate is not under [[peers]] there")]
    Stranger {
        /// Address of the peer.
        peer: String,
    },
    /// A host with a certificate of our authority is not one of those that we know. Told to nobody but the log.
    #[error("{peer} has a good certificate for {name:?}, which is not under [[peers]] in this host's configuration")]
    UnknownName {
        /// Address of the peer.
        peer: String,
        /// The name in its certificate.
        name: String,
    },
    /// The peer refused *our* certificate.
    #[error(
        "{peer} refused this host's certificate: {source}; was it issued by the authority in the peer's ca.pem, and are the clocks right?"
    )]
    OwnCertificate {
        /// Address of the peer.
        peer: String,
        /// The alert that it sent.
        source: rustls::Error,
    },
    /// Any other failure of TLS, for example a record whose authentication tag is wrong.
    #[error("TLS with {peer} failed: {source}")]
    Tls {
        /// Address of the peer.
        peer: String,
        /// rustls's reason.
        source: rustls::Error,
    },
    /// The two sides have no protocol version in common.
    #[error("{peer} speaks protocol versions {theirs}, this host {ours}; bring both to releases next to each other")]
    Version {
        /// Address of the peer.
        peer: String,
        /// What this side speaks.
        ours: VersionRange,
        /// What the peer speaks.
        theirs: VersionRange,
    },
    /// A data connection named a session that is not being opened by its sender (wrong token, too late, twice).
    #[error(
        "{peer} knows no session with the token of this data connection; it was opened too late or by another host"
    )]
    UnknownSession {
        /// Address of the peer.
        peer: String,
    },
    /// The connection ended in the middle of something.
    #[error("the connection to {peer} ended in the middle of {during}")]
    Truncated {
        /// Address of the peer.
        peer: String,
        /// What was being read.
        during: &'static str,
    },
    /// The connection broke: reset, or the peer answers no more.
    #[error("lost the connection to {peer} during {during}: {source}")]
    Disconnected {
        /// Address of the peer.
        peer: String,
        /// What was being done.
        during: &'static str,
        /// What the system said (`TimedOut` when the peer vanished).
        source: Arc<io::Error>,
    },
    /// Bytes are not what their checksum says.
    #[error("{object} from {peer} is damaged at byte {offset}: its checksum is wrong")]
    Checksum {
        /// Address of the peer.
        peer: String,
        /// File name, `the stream`, `object` and its number, or the part of the protocol.
        object: String,
        /// Where the damaged chunk begins, in bytes.
        offset: u64,
    },
    /// All chunks were right in themselves, but the whole is not what the sender's closing manifest says.
    #[error("{object} from {peer} is not what was sent: the manifest's length or digest differs")]
    Digest {
        /// Address of the peer.
        peer: String,
        /// File name, `the stream`, or `the set of extents`.
        object: String,
    },
    /// The peer broke a rule of the protocol.
    #[error("{peer} broke the protocol: {rule}")]
    Protocol {
        /// Address of the peer.
        peer: String,
        /// The rule.
        rule: &'static str,
    },
    /// Something is larger than allowed.
    #[error("{what} is {actual}, more than the limit of {limit}")]
    Limit {
        /// What, with its unit.
        what: &'static str,
        /// Its size.
        actual: u64,
        /// The size allowed.
        limit: u64,
    },
    /// A file name that is not a plain name (empty, `.`, `..`, with a slash or a NUL), or is there twice.
    #[error("{name:?} is not an acceptable file name: plain names only, each once")]
    FileName {
        /// The name.
        name: String,
    },
    /// A file could not be opened, read, made or written here.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// `open`, `read`, `create`, `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said; `AlreadyExists` when a file to be received is there already.
        source: Arc<io::Error>,
    },
    /// The caller's own reader failed in [`Session::send_stream`](crate::Session::send_stream).
    #[error("cannot read the stream to be sent: {source}")]
    Source {
        /// What the reader said.
        source: Arc<io::Error>,
    },
    /// The caller's own writer failed in [`Session::receive_stream`](crate::Session::receive_stream).
    #[error("cannot hand on the received stream: {source}")]
    Sink {
        /// What the writer said.
        source: Arc<io::Error>,
    },
    /// The caller's own source failed in [`Session::send_extents`](crate::Session::send_extents), or its sink in
    /// [`Session::receive_extents`](crate::Session::receive_extents).
    #[error("cannot {action} object {object} at byte {offset}: {source}")]
    Extent {
        /// `read` for a source, `write` for a sink.
        action: &'static str,
        /// Number of the object.
        object: u32,
        /// Where the piece begins in its object, in bytes.
        offset: u64,
        /// What the source or the sink said; `InvalidInput` for an extent that cannot be, `InvalidData` when more was read than asked for.
        source: Arc<io::Error>,
    },
    /// The peer gave up a transfer and said why.
    #[error("{peer} gave up the transfer: {message}")]
    Peer {
        /// Address of the peer.
        peer: String,
        /// The kind of its cause.
        code: AbortCode,
        /// Its own words.
        message: String,
    },
    /// The session has ended in good order; nothing more can be sent or expected.
    #[error("the session with {peer} is closed")]
    Closed {
        /// Address of the peer.
        peer: String,
    },
    /// An earlier transfer on this session failed or was dropped, so its data connections are gone.
    #[error("the session with {peer} can carry no more transfers: an earlier one failed or was given up")]
    NoDataConnections {
        /// Address of the peer.
        peer: String,
    },
}

/// The kind of a failed transfer's cause, as told to the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AbortCode {
    /// The caller dropped the transfer.
    Cancelled,
    /// Bytes arrived damaged or incomplete.
    Corrupt,
    /// A limit of the receiver was exceeded.
    Limit,
    /// A file, a stream or an extent could not be read or written.
    Storage,
    /// The connection broke.
    Connection,
    /// A rule of the protocol was broken.
    Protocol,
    /// A code of a later version.
    #[serde(other)]
    Unknown,
}

impl Error {
    /// What a failed read or write on a connection to `peer` means, after its handshake.
    pub(crate) fn from_io(peer: &str, during: &'static str, error: io::Error) -> Self {
        let peer = peer.to_owned();
        match tls_cause(&error) {
            // In TLS 1.3 the connecting side has finished its handshake when the other looks at its certificate.
            Some(rustls::Error::AlertReceived(alert)) if is_about_certificates(*alert) => {
                Self::OwnCertificate { peer, source: rustls::Error::AlertReceived(*alert) }
            }
            Some(cause) => Self::Tls { peer, source: cause.clone() },
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::Truncated { peer, during },
            None => Self::Disconnected { peer, during, source: Arc::new(error) },
        }
    }

    /// What a failed TLS handshake with `peer` means; `expected` is the name that it should have.
    pub(crate) fn from_handshake(peer: &str, expected: Option<&str>, error: io::Error) -> Self {
        use rustls::{AlertDescription, CertificateError, Error as Tls};
        let during = "the TLS handshake";
        let not_spothop = |found| Self::NotSpothop { peer: peer.to_owned(), found };
        match tls_cause(&error) {
            Some(Tls::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. })) => {
                Self::PeerName {
                    peer: peer.to_owned(),
                    expected: expected.unwrap_or_default().to_owned(),
                    presented: presented.clone(),
                }
            }
            Some(Tls::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
                let until = SystemTime::UNIX_EPOCH + Duration::from_secs(not_after.as_secs());
                Self::PeerExpired { peer: peer.to_owned(), until: crate::tls::date(until) }
            }
            Some(source @ (Tls::InvalidCertificate(_) | Tls::NoCertificatesPresented)) => {
                Self::PeerCertificate { peer: peer.to_owned(), source: source.clone() }
            }
            Some(Tls::InvalidMessage(_)) => not_spothop("what it says is not TLS"),
            Some(
                Tls::PeerIncompatible(_)
                | Tls::AlertReceived(AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure),
            ) => not_spothop("it speaks TLS, but not 1.3 as spothop does"),
            _ => Self::from_io(peer, during, error),
        }
    }

    /// Whether the cause may be no more than the echo of a failure on the other side, which then says why.
    pub(crate) fn is_connection_loss(&self) -> bool {
        matches!(self, Self::Truncated { .. } | Self::Disconnected { .. } | Self::Tls { .. })
    }

    /// What the other side is told about this.
    pub(crate) fn abort_code(&self) -> AbortCode {
        match self {
            Self::Checksum { .. } | Self::Digest { .. } | Self::Tls { .. } => AbortCode::Corrupt,
            Self::Truncated { .. } | Self::Disconnected { .. } => AbortCode::Connection,
            Self::Limit { .. } => AbortCode::Limit,
            Self::File { .. } | Self::Source { .. } | Self::Sink { .. } | Self::Extent { .. } => AbortCode::Storage,
            _ => AbortCode::Protocol,
        }
    }
}

fn tls_cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn is_about_certificates(alert: rustls::AlertDescription) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
    )
}
