//! Connections of senders: TLS with a certificate that may be renewed at any time, and no room for those who only hold a connection.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Extension;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::{Desk, router};
use crate::config::Webhook;
use crate::migration::{chain, unpanicked};

/// For a handshake, and for the head of a request; a whole connection gets [`LIFE`].
const PATIENCE: Duration = Duration::from_secs(10);

/// A sender has one event to tell; who has more connects again.
const LIFE: Duration = Duration::from_secs(60);

/// Connections at once.
const CONNECTIONS: usize = 64;

/// When there are no file descriptors or the like, before it is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// Why senders cannot be listened to.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address.
    #[error("cannot listen on {address} for webhooks; see [webhook] listen")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// A file of the certificate or its key.
    #[error("cannot use {path} of [webhook]", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// They do not fit together.
    #[error("cert and key of [webhook] cannot be used")]
    Tls(#[from] rustls::Error),
}

/// Listens to senders.
pub struct Server {
    listener: TcpListener,
    identity: Option<Identity>,
    desk: Arc<Desk>,
}

impl Server {
    /// Listens, where `config` says so, and hands what is heard to `desk`.
    ///
    /// # Errors
    /// [`ListenError`].
    pub async fn bind(config: &Webhook, desk: Desk) -> Result<Option<Self>, ListenError> {
        let Some(address) = config.listen else { return Ok(None) };
        let identity = match config.identity.clone() {
            Some((cert, key)) => Some(unpanicked(spawn_blocking(|| Identity::open(cert, key)).await)?),
            None => None,
        };
        let listener = TcpListener::bind(address).await.map_err(|source| ListenError::Bind { address, source })?;
        info!(%address, tls = identity.is_some(), "listening for webhooks");
        Ok(Some(Self { listener, identity, desk: Arc::new(desk) }))
    }

    /// Where it listens, for tests that take any port.
    #[cfg(test)]
    pub(super) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Answers until the process ends.
    pub async fn serve(self) {
        let turns = Arc::new(Semaphore::new(CONNECTIONS));
        let identity = self.identity.map(|identity| Arc::new(Mutex::new(identity)));
        loop {
            // It is never closed.
            let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
            let (stream, from) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "a webhook's connection was not accepted");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let (desk, identity) = (Arc::clone(&self.desk), identity.clone());
            tokio::spawn(async move {
                let served = async {
                    match identity {
                        None => answer(stream, from, desk).await,
                        Some(identity) => {
                            let config = Identity::current(&identity).await;
                            match timeout(PATIENCE, TlsAcceptor::from(config).accept(stream)).await {
                                Ok(Ok(stream)) => answer(stream, from, desk).await,
                                Ok(Err(error)) => debug!(%from, %error, "no TLS with a webhook's sender"),
                                Err(_) => debug!(%from, "a webhook's sender is silent"),
                            }
                        }
                    }
                };
                if timeout(LIFE, served).await.is_err() {
                    debug!(%from, "a webhook's sender took too long");
                }
                drop(turn);
            });
        }
    }
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, from: SocketAddr, desk: Arc<Desk>) {
    // What came by an IPv4 address to a socket for both is known by that.
    let service = TowerToHyperService::new(router(desk).layer(Extension(from.ip().to_canonical())));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        debug!(%from, error = chain(&error), "a webhook's connection broke");
    }
}

/// This host's certificate for senders, as its files were last read.
struct Identity {
    cert: PathBuf,
    key: PathBuf,
    modified: [Option<SystemTime>; 2],
    config: Arc<ServerConfig>,
}

impl Identity {
    fn open(cert: PathBuf, key: PathBuf) -> Result<Self, ListenError> {
        let modified = modified(&cert, &key);
        let config = Arc::new(read(&cert, &key)?);
        Ok(Self { cert, key, modified, config })
    }

    /// With files that were replaced since, if they will do; otherwise as before, and the log says why.
    async fn current(shared: &Mutex<Self>) -> Arc<ServerConfig> {
        let mut identity = shared.lock().await;
        let (cert, key) = (identity.cert.clone(), identity.key.clone());
        let known = identity.modified;
        let look = move || {
            let modified = modified(&cert, &key);
            (modified != known).then(|| (modified, read(&cert, &key)))
        };
        if let Some((modified, read)) = unpanicked(spawn_blocking(look).await) {
            identity.modified = modified;
            match read {
                Ok(config) => {
                    info!("the certificate for webhooks was renewed");
                    identity.config = Arc::new(config);
                }
                Err(error) => warn!(error = chain(&error), "the new certificate for webhooks is not taken"),
            }
        }
        Arc::clone(&identity.config)
    }
}

/// Whether these files are a certificate and its key. Blocks.
///
/// # Errors
/// They cannot be read, or do not fit together.
pub(crate) fn check_identity(cert: &Path, key: &Path) -> Result<(), ListenError> {
    read(cert, key).map(drop)
}

fn modified(cert: &Path, key: &Path) -> [Option<SystemTime>; 2] {
    [cert, key].map(|path| std::fs::metadata(path).and_then(|about| about.modified()).ok())
}

fn read(cert: &Path, key: &Path) -> Result<ServerConfig, ListenError> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| ListenError::File { path, source }
    };
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(cert).and_then(Iterator::collect).map_err(file(cert))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(file(key))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
