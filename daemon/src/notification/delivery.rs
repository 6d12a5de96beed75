//! One message to one receiver, until it is heard.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::Message;
use crate::config::notification::{Format, Kind, Notification};
use crate::migration::{chain, unpanicked};
use crate::standard_webhooks::{ID, SIGNATURE, Secrets, TIME};
use crate::{https, secret};

/// For a connection and an answer. Standard Webhooks recommends 15 to 30 s.
const LIMIT: Duration = Duration::from_secs(15);

/// Between the first two attempts; twice as long each time, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(1);

const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What nobody has heard by then is old: the host has been gone for most of it.
const GIVE_UP: Duration = Duration::from_secs(3600);

/// Messages to one receiver that are tried at a time.
const UNDER_WAY: usize = 256;

/// A receiver that nothing can be sent to.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// The authorities' file.
    #[error("cannot use {path} of [[notifications]]", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// What is in it.
    #[error("the authorities of [[notifications]] cannot be used")]
    Tls(#[from] rustls::Error),
}

/// Why a message was not heard.
#[derive(Debug, thiserror::Error)]
enum Unheard {
    #[error("{0}")]
    Secret(String),
    #[error("the request cannot be made")]
    Request(#[from] hyper::http::Error),
    #[error("there is no connection")]
    Transport(#[from] hyper_util::client::legacy::Error),
    #[error("no answer within {LIMIT:?}")]
    Silence,
    #[error("the answer is {0}")]
    Status(StatusCode),
}

/// Brings messages to one receiver.
pub(super) struct Courier {
    to: Notification,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    turns: Arc<Semaphore>,
    /// See [`PAUSE`], which tests shorten.
    pub(super) pause: Duration,
}

impl Courier {
    pub(super) fn new(to: Notification) -> Result<Self, DeliveryError> {
        let roots = match &to.ca_file {
            None => https::system_roots(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                let file = |source| DeliveryError::File { path: path.clone(), source };
                for authority in CertificateDer::pem_file_iter(path).map_err(file)? {
                    roots.add(authority.map_err(file)?)?;
                }
                roots
            }
        };
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(LIMIT));
        let client = Client::builder(TokioExecutor::new()).build(https::connector(tcp, roots, None)?);
        Ok(Self { to, client, turns: Arc::new(Semaphore::new(UNDER_WAY)), pause: PAUSE })
    }

    pub(super) fn wants(&self, kind: Kind) -> bool {
        self.to.wants(kind)
    }

    /// Begins to send it.
    pub(super) fn send(self: &Arc<Self>, message: &Arc<Message>) {
        let Ok(turn) = Arc::clone(&self.turns).try_acquire_owned() else {
            warn!(url = self.to.url, what = message.kind().name(), "not told: too much is still to be told");
            return;
        };
        let (courier, message) = (Arc::clone(self), Arc::clone(message));
        tokio::spawn(async move {
            courier.until_heard(&message).await;
            drop(turn);
        });
    }

    async fn until_heard(&self, message: &Message) {
        let (begun, mut pause) = (Instant::now(), self.pause);
        let (url, what) = (&self.to.url, message.kind().name());
        let mut complained = false;
        loop {
            match self.attempt(message).await {
                Ok(()) => return debug!(url, what, "told"),
                // "The receiver is not interested any more."
                Err(Unheard::Status(StatusCode::GONE)) => {
                    return warn!(url, what, "not told: the receiver wants to hear nothing (410)");
                }
                Err(failure) if begun.elapsed() >= GIVE_UP => {
                    return warn!(url, what, error = chain(&failure), "not told, and given up");
                }
                Err(failure) if !complained => {
                    complained = true;
                    warn!(url, what, error = chain(&failure), "not told yet; trying again");
                }
                Err(_) => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(&self, message: &Message) -> Result<(), Unheard> {
        let path = self.to.secret_file.clone();
        // Each time: it may have been replaced.
        let secret = unpanicked(spawn_blocking(move || secret::read(&path)).await);
        let secret = secret.map_err(|error| Unheard::Secret(chain(&error)))?;
        let request = Request::post(&self.to.url).header(CONTENT_TYPE, "application/json");
        let request = match self.to.format {
            Format::Standard => {
                let secrets = Secrets::parse(&secret, true)
                    .map_err(|error| Unheard::Secret(format!("{}: {error}", self.to.secret_file.display())))?;
                let (body, time) = (message.to_json(), Timestamp::now().as_second().to_string());
                request
                    .header(ID, message.id())
                    .header(SIGNATURE, secrets.sign(message.id(), &time, body.as_bytes()))
                    .header(TIME, time)
                    .body(Full::from(body))?
            }
            Format::Spotio => {
                // https://docs.spot.io/api: POST /aws/ec2/instance/signal?accountId=…
                let body = json!({ "instanceId": message.instance(), "signal": "INSTANCE_READY_TO_SHUTDOWN" });
                let mut token =
                    HeaderValue::from_str(&format!("Bearer {}", secret.trim())).map_err(hyper::http::Error::from)?;
                token.set_sensitive(true);
                request.header(AUTHORIZATION, token).body(Full::from(body.to_string()))?
            }
        };
        let answer = timeout(LIMIT, self.client.request(request)).await.map_err(|_| Unheard::Silence)??;
        if answer.status().is_success() { Ok(()) } else { Err(Unheard::Status(answer.status())) }
    }
}
