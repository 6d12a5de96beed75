//! From a TCP connection to one whose peer is known and whose version is agreed, on both sides.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::certs;
use crate::error::Error;
use crate::session::Options;
use crate::socket::{self, Tcp};
use crate::tls::Identity;
use crate::version::{self, SUPPORTED, VersionRange};
use crate::wire::hello::{self, Hello, Role, Token, Verdict, Welcome};

/// What is known of the other side after TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerIdentity {
    /// The first DNS name of its certificate.
    pub(crate) name: String,
    /// The certificate itself, to tell whether two connections are from the same host.
    certificate: CertificateDer<'static>,
}

impl PeerIdentity {
    fn new(chain: Option<&[CertificateDer<'static>]>, peer: &str) -> Result<Self, Error> {
        let nameless = || Error::Protocol { peer: peer.into(), rule: "a host's certificate carries a DNS name" };
        let certificate = chain.and_then(<[_]>::first).ok_or_else(nameless)?.clone();
        let info = certs::parse(&certificate).map_err(|_| nameless())?;
        Ok(Self { name: info.names.into_iter().next().ok_or_else(nameless)?, certificate })
    }
}

/// Runs `step`, for at most `limit`.
pub(crate) async fn within<T>(
    limit: Duration,
    peer: &str,
    step: &'static str,
    run: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let late = Error::Timeout { peer: peer.into(), step, after: limit };
    tokio::time::timeout(limit, run).await.unwrap_or(Err(late))
}

/// A connection opened by us, verified to lead to the expected host.
pub(crate) async fn connect(
    address: &str,
    expected: &str,
    identity: &Identity,
    options: &Options,
) -> Result<(client::TlsStream<Tcp>, SocketAddr, PeerIdentity), Error> {
    identity.check_period(SystemTime::now()).map_err(|source| Error::OwnPeriod { peer: address.to_owned(), source })?;
    let name = ServerName::try_from(expected.to_owned()).map_err(|_| Error::HostName { name: expected.to_owned() })?;
    let failed = |source| Error::Connect { address: address.to_owned(), source: Arc::new(source) };
    let stream = within(options.connect_timeout, address, "the TCP connection", async {
        TcpStream::connect(address).await.map_err(failed)
    })
    .await?;
    let peer_addr = stream.peer_addr().map_err(failed)?;
    socket::prepare(&stream, options.peer_timeout).map_err(failed)?;
    let peer = peer_addr.to_string();
    let stream = within(options.handshake_timeout, &peer, "the TLS handshake", async {
        let connector = TlsConnector::from(identity.client.clone());
        connector
            .connect(name, socket::buffered(stream))
            .await
            .map_err(|error| Error::from_handshake(&peer, Some(expected), error))
    })
    .await?;
    let known = PeerIdentity::new(stream.get_ref().1.peer_certificates(), &peer)?;
    Ok((stream, peer_addr, known))
}

/// Says hello and takes the answer: the version and the session's token.
pub(crate) async fn open(
    stream: &mut (impl crate::wire::Io + ?Sized),
    role: Role,
    peer: &str,
    limit: Duration,
) -> Result<(u16, Token), Error> {
    within(limit, peer, "the hello", async {
        let mut stream = stream;
        hello::write(&mut stream, &Hello { versions: SUPPORTED, role }.encode(), peer).await?;
        let welcome = Welcome::read(&mut stream, peer).await?;
        match welcome.verdict {
            Verdict::Accepted { version, token } => {
                if !(SUPPORTED.min..=SUPPORTED.max).contains(&version) {
                    let rule = "the version chosen is one that was offered";
                    return Err(Error::Protocol { peer: peer.into(), rule });
                }
                Ok((version, token))
            }
            Verdict::Version => Err(Error::Version { peer: peer.into(), ours: SUPPORTED, theirs: welcome.versions }),
            Verdict::UnknownSession => Err(Error::UnknownSession { peer: peer.into() }),
            Verdict::Stranger => Err(Error::Stranger { peer: peer.into() }),
            Verdict::BadHello => {
                Err(Error::Protocol { peer: peer.into(), rule: "the hello is acceptable to the other side" })
            }
        }
    })
    .await
}

/// A connection opened by a peer, its certificate verified.
pub(crate) async fn accept(
    stream: TcpStream,
    identity: &Identity,
    peer: &str,
    options: &Options,
) -> Result<(server::TlsStream<Tcp>, PeerIdentity), Error> {
    socket::prepare(&stream, options.peer_timeout).map_err(|error| Error::from_io(peer, "the TCP set-up", error))?;
    let stream = within(options.handshake_timeout, peer, "the TLS handshake", async {
        let acceptor = TlsAcceptor::from(identity.server.clone());
        acceptor.accept(socket::buffered(stream)).await.map_err(|error| Error::from_handshake(peer, None, error))
    })
    .await?;
    let known = PeerIdentity::new(stream.get_ref().1.peer_certificates(), peer)?;
    Ok((stream, known))
}

/// Takes a hello and agrees on the version; without one in common says so and fails.
pub(crate) async fn greet(
    stream: &mut (impl crate::wire::Io + ?Sized),
    peer: &str,
    limit: Duration,
) -> Result<(u16, Role), Error> {
    within(limit, peer, "the hello", async {
        let mut stream = stream;
        let hello = Hello::read(&mut stream, peer).await?;
        match version::negotiate(SUPPORTED, hello.versions) {
            Some(version) => Ok((version, hello.role)),
            None => {
                answer(&mut stream, Verdict::Version, peer).await;
                Err(Error::Version { peer: peer.into(), ours: SUPPORTED, theirs: hello.versions })
            }
        }
    })
    .await
}

/// Answers a hello. Best effort: a peer that does not get its answer fails by itself, and so will the next read.
pub(crate) async fn answer(stream: &mut (impl crate::wire::Io + ?Sized), verdict: Verdict, peer: &str) {
    let mut stream = stream;
    // A stranger is not even told which release this is.
    let versions = if verdict == Verdict::Stranger { VersionRange { min: 0, max: 0 } } else { SUPPORTED };
    let _ = hello::write(&mut stream, &Welcome { versions, verdict }.encode(), peer).await;
}
