//! JSON over HTTP with whoever knows the hosts: questions with one answer, and answers that go on line by line.

use std::error::Error as StdError;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::https;

/// For a question and its answer. Whoever knows the hosts is near, and is asked again anyway.
const LIMIT: Duration = Duration::from_secs(5);

/// Silent connections are asked so often, [`LIMIT`] apart, before they are given up.
const KEEPALIVES: u32 = 3;

/// More than this is no answer: ten thousand nodes of Kubernetes in pages of 500 have 25 MB a page at most.
const LONGEST_ANSWER: usize = 64 << 20;

/// Characters of an unexpected answer that an error repeats.
const LONGEST_QUOTE: usize = 200;

/// What is needed besides a URL.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// PEM file with the authorities that are believed; without it there is no `https://`.
    pub ca: Option<PathBuf>,
    /// PEM files with this host's certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// File with a token to show.
    pub token: Option<PathBuf>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// A file of [`Access`].
    #[error("cannot read {what} from {path}; check the path in [inventory]", path = path.display())]
    File {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A certificate and its key do not fit together, or an authority is none.
    #[error("the certificates in [inventory] cannot be used")]
    Tls(#[from] rustls::Error),
    /// A certificate without its key, or a key without its certificate.
    #[error("cert and key in [inventory.etcd] go together: set both or none")]
    HalfIdentity,
    /// `https://` without an authority.
    #[error("{url} needs the authority of its certificate: set `ca` in [inventory]")]
    NoAuthority {
        /// The URL.
        url: String,
    },
    /// Kubernetes's API is not named.
    #[error(
        "there is no Kubernetes around this process (KUBERNETES_SERVICE_HOST is not set): set api in [inventory.kubernetes]"
    )]
    NoCluster,
    /// A URL that is none.
    #[error("{url} is not a URL")]
    Url {
        /// What was written.
        url: String,
        /// Why it is none.
        source: hyper::http::Error,
    },
    /// No connection, or it broke.
    #[error("{url} does not answer")]
    Transport {
        /// Who was asked.
        url: String,
        /// What went wrong.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// No answer in time.
    #[error("{url} did not answer within {:.0} s", limit.as_secs_f64())]
    TimedOut {
        /// Who was asked.
        url: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// An answer that is not 2xx.
    #[error("{url} answers {status}: {body}")]
    Status {
        /// Who was asked.
        url: String,
        /// The status.
        status: StatusCode,
        /// The beginning of the body.
        body: String,
    },
    /// An answer that is not what was asked for.
    #[error("{url} answers what makes no sense here ({reason}): {body}")]
    Malformed {
        /// Who was asked.
        url: String,
        /// Why not.
        reason: String,
        /// The beginning of the body.
        body: String,
    },
    /// An answer that goes on ended.
    #[error("{url} ended what it was to tell on and on")]
    Ended {
        /// Who was asked.
        url: String,
    },
}

/// A client with [`Access`] as it was when this was opened. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    token: Option<HeaderValue>,
    secure: bool,
}

impl Http {
    /// Reads the files of `access`.
    ///
    /// # Errors
    /// [`HttpError::File`], [`HttpError::Tls`].
    pub(super) fn open(access: &Access) -> Result<Self, HttpError> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = &access.ca {
            for authority in certificates("an authority's certificate", path)? {
                roots.add(authority)?;
            }
        }
        let identity = access.identity.as_ref().map(|(certificate, key)| {
            let chain = certificates("a certificate", certificate)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| file("a private key", key, error))?;
            Ok::<_, HttpError>((chain, key))
        });
        let mut tcp = HttpConnector::new();
        // A watch may be silent for as long as nothing changes: only the kernel can tell that the other end is no more.
        tcp.set_keepalive(Some(LIMIT));
        tcp.set_keepalive_interval(Some(LIMIT));
        tcp.set_keepalive_retries(Some(KEEPALIVES));
        let connector = https::connector(tcp, roots, identity.transpose()?)?;
        let token = access.token.as_deref().map(token).transpose()?;
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, token, secure: access.ca.is_some() })
    }

    /// A question in JSON with one answer in JSON.
    pub(super) async fn post<T: DeserializeOwned>(&self, url: &str, body: &impl Serialize) -> Result<T, HttpError> {
        let answer = self.send(Method::POST, url, encode(url, body)?).await?;
        self.whole(url, answer).await
    }

    /// A document in JSON.
    pub(super) async fn get<T: DeserializeOwned>(&self, url: &str) -> Result<T, HttpError> {
        let answer = self.send(Method::GET, url, Bytes::new()).await?;
        self.whole(url, answer).await
    }

    /// A question in JSON whose answer is one line of JSON after the other.
    pub(super) async fn post_lines(&self, url: &str, body: &impl Serialize) -> Result<Lines, HttpError> {
        let answer = self.send(Method::POST, url, encode(url, body)?).await?;
        Ok(Lines { url: url.to_owned(), body: answer.into_body(), buffer: BytesMut::new() })
    }

    /// A document that goes on, one line of JSON after the other.
    pub(super) async fn get_lines(&self, url: &str) -> Result<Lines, HttpError> {
        let answer = self.send(Method::GET, url, Bytes::new()).await?;
        Ok(Lines { url: url.to_owned(), body: answer.into_body(), buffer: BytesMut::new() })
    }

    /// The answer's head, which is 2xx.
    async fn send(&self, method: Method, url: &str, body: Bytes) -> Result<Response<Incoming>, HttpError> {
        if url.starts_with("https://") && !self.secure {
            return Err(HttpError::NoAuthority { url: url.to_owned() });
        }
        let mut request = Request::builder().method(method).uri(url);
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        let bad = |source| HttpError::Url { url: url.to_owned(), source };
        let request = request.body(Full::new(body)).map_err(bad)?;
        let answer = timeout(LIMIT, self.client.request(request)).await;
        let answer = answer.map_err(|_| timed_out(url))?.map_err(|error| transport(url, error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let said = read(url, answer.into_body()).await.unwrap_or_default();
        Err(HttpError::Status { url: url.to_owned(), status, body: quote(&said) })
    }

    async fn whole<T: DeserializeOwned>(&self, url: &str, answer: Response<Incoming>) -> Result<T, HttpError> {
        let said = read(url, answer.into_body()).await?;
        serde_json::from_slice(&said).map_err(|error| malformed(url, error.to_string(), &said))
    }
}

/// An answer that goes on.
#[derive(Debug)]
pub(super) struct Lines {
    url: String,
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    /// The next line. May be dropped and asked again: nothing that has come is lost.
    ///
    /// # Errors
    /// It has ended or broken, or the line is something else.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<T, HttpError> {
        let line = loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                break self.buffer.split_to(end + 1);
            }
            if self.buffer.len() > LONGEST_ANSWER {
                return Err(malformed(&self.url, "a line without end".to_owned(), &self.buffer));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
                Some(Err(error)) => return Err(transport(&self.url, error)),
                None => return Err(HttpError::Ended { url: self.url.clone() }),
            }
        };
        serde_json::from_slice(&line).map_err(|error| malformed(&self.url, error.to_string(), &line))
    }
}

/// An answer to `url` that is JSON, but not what was asked for.
pub(super) fn malformed(url: &str, reason: String, said: &[u8]) -> HttpError {
    HttpError::Malformed { url: url.to_owned(), reason, body: quote(said) }
}

async fn read(url: &str, mut body: Incoming) -> Result<Bytes, HttpError> {
    let whole = async {
        let mut said = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| transport(url, error))?;
            said.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
            if said.len() > LONGEST_ANSWER {
                return Err(malformed(url, format!("more than {LONGEST_ANSWER} bytes"), &said));
            }
        }
        Ok(said.freeze())
    };
    timeout(LIMIT, whole).await.unwrap_or_else(|_| Err(timed_out(url)))
}

fn encode(url: &str, body: &impl Serialize) -> Result<Bytes, HttpError> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|error| malformed(url, error.to_string(), b""))
}

fn transport(url: &str, error: impl StdError + Send + Sync + 'static) -> HttpError {
    HttpError::Transport { url: url.to_owned(), source: Box::new(error) }
}

fn timed_out(url: &str) -> HttpError {
    HttpError::TimedOut { url: url.to_owned(), limit: LIMIT }
}

fn file(what: &'static str, path: &Path, error: impl StdError + Send + Sync + 'static) -> HttpError {
    HttpError::File { what, path: path.to_owned(), source: Box::new(error) }
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, HttpError> {
    https::certificates(path).map_err(|error| file(what, path, error))
}

/// Marked sensitive, so that no log of headers shows it.
fn token(path: &Path) -> Result<HeaderValue, HttpError> {
    let text = fs::read_to_string(path).map_err(|error| file("a token", path, error))?;
    let mut value =
        HeaderValue::from_str(&format!("Bearer {}", text.trim())).map_err(|error| file("a token", path, error))?;
    value.set_sensitive(true);
    Ok(value)
}

fn quote(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let text = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    text.take(LONGEST_QUOTE).collect()
}
