//! The accepting side: handshakes in tasks of their own, and data connections finding their session.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::handshake::{self, PeerIdentity, within};
use super::{MAX_DATA_CONNECTIONS, Options, Session};
use crate::credentials::Credentials;
use crate::error::Error;
use crate::socket::{self, Tcp};
use crate::tls;
use crate::wire::Connection;
use crate::wire::hello::{Role, Token, Verdict};

/// Pause after the system refused to hand over a connection (usually: too many open files), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listening port. Dropping it closes the port and unfinished handshakes, not the sessions accepted.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    local_addr: SocketAddr,
    context: Arc<Context>,
    handshakes: JoinSet<Option<Session>>,
    /// One mark per address that has handshakes under way; each of them holds a copy.
    addresses: HashMap<IpAddr, Arc<()>>,
}

/// What all handshakes share.
#[derive(Debug)]
struct Context {
    credentials: Credentials,
    options: Options,
    waiting: Mutex<HashMap<Token, Waiting>>,
    /// One mark per peer that has sessions open; each of them holds a copy.
    open: Mutex<HashMap<String, Arc<()>>>,
}

/// A session that waits for its data connections.
#[derive(Debug)]
struct Waiting {
    peer: PeerIdentity,
    version: u16,
    arrivals: mpsc::Sender<(u8, TlsConnection)>,
}

type TlsConnection = tokio_rustls::server::TlsStream<Tcp>;

impl Listener {
    /// Opens the port with the default [`Options`]: an [`Identity`](crate::Identity), or [`Credentials`] that are renewed while it is open. `address` is `host:port`; port 0 takes a free one.
    ///
    /// # Errors
    /// [`Error::Bind`].
    pub async fn bind(address: &str, credentials: impl Into<Credentials>) -> Result<Self, Error> {
        Self::bind_with(address, credentials, Options::default()).await
    }

    /// As [`Listener::bind`], with options.
    ///
    /// # Errors
    /// [`Error::Bind`].
    pub async fn bind_with(
        address: &str,
        credentials: impl Into<Credentials>,
        options: Options,
    ) -> Result<Self, Error> {
        let failed = |source| Error::Bind { address: address.to_owned(), source: Arc::new(source) };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        let context =
            Context { credentials: credentials.into(), options, waiting: Mutex::default(), open: Mutex::default() };
        Ok(Self {
            listener,
            local_addr,
            context: Arc::new(context),
            handshakes: JoinSet::new(),
            addresses: HashMap::new(),
        })
    }

    /// The address that the port is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The next session that is complete: certificates checked, version agreed, all data connections there.
    ///
    /// Handshakes run in tasks of their own, each with a timeout and limited in number, so slow or hostile peers cannot
    /// hold up others; a failed one is logged (`warn`, with the peer's address and the reason) and forgotten.
    /// Connections are taken in only while this is being awaited, so keep awaiting it. Cancel-safe.
    pub async fn accept(&mut self) -> Session {
        loop {
            tokio::select! {
                Some(finished) = self.handshakes.join_next() => match finished {
                    Ok(Some(session)) => return session,
                    Ok(None) => {}
                    Err(error) => warn!(%error, "a handshake ended abnormally"),
                },
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, address)) => self.begin(stream, address),
                    Err(error) => {
                        warn!(%error, "cannot take in a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    /// Starts a handshake, unless there are too many.
    fn begin(&mut self, stream: TcpStream, address: SocketAddr) {
        self.addresses.retain(|_, mark| Arc::strong_count(mark) > 1);
        let mark = self.addresses.entry(address.ip()).or_default();
        let options = &self.context.options;
        if self.handshakes.len() >= options.max_pending || Arc::strong_count(mark) > options.max_pending_per_address {
            warn!(peer = %address, "refused a connection: too many handshakes under way");
            return;
        }
        let (context, mark) = (self.context.clone(), mark.clone());
        self.handshakes.spawn(async move {
            let _mark = mark;
            let peer = address.to_string();
            match context.welcome(stream, address, &peer).await {
                Ok(session) => session,
                Err(error) => {
                    warn!(%peer, %error, "refused a connection");
                    None
                }
            }
        });
    }
}

impl Context {
    /// The whole handshake. `None` for a data connection, which has gone to its session.
    async fn welcome(&self, stream: TcpStream, address: SocketAddr, peer: &str) -> Result<Option<Session>, Error> {
        let limit = self.options.handshake_timeout;
        let (mut stream, known) = handshake::accept(stream, &self.credentials.current(), peer, &self.options).await?;
        let greeting = handshake::greet(&mut stream, peer, limit).await?;
        if self.options.peers.as_ref().is_some_and(|peers| !peers.borrow().contains(&known.name)) {
            handshake::answer(&mut stream, Verdict::Stranger, peer).await;
            return Err(Error::UnknownName { peer: peer.into(), name: known.name });
        }
        match greeting {
            (version, Role::Control { data_connections }) => {
                let count = usize::from(data_connections);
                if !(1..=MAX_DATA_CONNECTIONS).contains(&count) {
                    handshake::answer(&mut stream, Verdict::BadHello, peer).await;
                    return Err(Error::Limit {
                        what: "the number of data connections",
                        actual: count as u64,
                        limit: MAX_DATA_CONNECTIONS as u64,
                    });
                }
                let Some(mark) = self.one_more(&known.name) else {
                    handshake::answer(&mut stream, Verdict::BadHello, peer).await;
                    let limit = self.options.max_sessions_per_peer as u64;
                    return Err(Error::Limit { what: "the number of sessions of one peer", actual: limit + 1, limit });
                };
                socket::limit_silence(stream.get_ref().0.get_ref(), self.options.peer_timeout)
                    .map_err(|error| Error::from_io(peer, "the TCP set-up", error))?;
                let data = self.gather(&mut stream, &known, version, count, peer).await?;
                debug!(peer, name = known.name, version, data_connections, "session accepted");
                Ok(Some(Session::new(Box::new(stream), data, known.name, address, version).marked(mark)))
            }
            (version, Role::Data { index, token }) => {
                self.hand_over(stream, &known, version, index, &token, peer).await?;
                Ok(None)
            }
        }
    }

    /// Counts another session of a peer; `None` when it has as many as it may.
    fn one_more(&self, peer: &str) -> Option<Arc<()>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, mark| Arc::strong_count(mark) > 1);
        let mark = open.entry(peer.to_owned()).or_default();
        (Arc::strong_count(mark) <= self.options.max_sessions_per_peer).then(|| mark.clone())
    }

    /// Answers a control connection's hello and waits for the session's data connections; in the order of their indices.
    async fn gather(
        &self,
        stream: &mut TlsConnection,
        known: &PeerIdentity,
        version: u16,
        count: usize,
        peer: &str,
    ) -> Result<Vec<Connection>, Error> {
        let (arrivals, mut arriving) = mpsc::channel(count);
        let token = tls::random_bytes();
        let waiting = Waiting { peer: known.clone(), version, arrivals };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(token, waiting);
        // The entry goes however this ends.
        let _entry = Entry { context: self, token };
        handshake::answer(stream, Verdict::Accepted { version, token }, peer).await;

        let mut places: Vec<Option<Connection>> = std::iter::repeat_with(|| None).take(count).collect();
        within(self.options.handshake_timeout, peer, "opening its data connections", async {
            let mut missing = count;
            while missing > 0 {
                // The sender is in the entry, so this does not end before.
                let Some((index, mut connection)) = arriving.recv().await else { break };
                match places.get_mut(usize::from(index)) {
                    Some(place @ None) => {
                        let verdict = Verdict::Accepted { version, token: Token::default() };
                        handshake::answer(&mut connection, verdict, peer).await;
                        *place = Some(Box::new(connection));
                        missing -= 1;
                    }
                    _ => {
                        handshake::answer(&mut connection, Verdict::BadHello, peer).await;
                        let rule = "data connections are numbered, each with its own number";
                        return Err(Error::Protocol { peer: peer.into(), rule });
                    }
                }
            }
            Ok(())
        })
        .await?;
        Ok(places.into_iter().flatten().collect())
    }

    /// Gives a data connection to the session with its token, if it was opened by the same host.
    async fn hand_over(
        &self,
        mut stream: TlsConnection,
        known: &PeerIdentity,
        version: u16,
        index: u8,
        token: &Token,
        peer: &str,
    ) -> Result<(), Error> {
        let arrivals = {
            let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let session = waiting.get(token).filter(|session| session.peer == *known && session.version == version);
            session.map(|session| session.arrivals.clone())
        };
        let Some(arrivals) = arrivals else {
            handshake::answer(&mut stream, Verdict::UnknownSession, peer).await;
            return Err(Error::UnknownSession { peer: peer.into() });
        };
        // There is room for as many as there should be; a peer that sends more of them loses them.
        arrivals.try_send((index, stream)).map_err(|_| Error::UnknownSession { peer: peer.into() })
    }
}

/// Takes the session off the list of those waiting.
struct Entry<'a> {
    context: &'a Context,
    token: Token,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.context.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.token);
    }
}
