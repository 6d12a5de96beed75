//! Asking a cloud's metadata service: plain HTTP on an address that means this machine, never through a proxy, with the
//! headers by which each cloud makes sure that the question was not sent by accident.
//!
//! What differs is a [`Dialect`]. Two of the clouds (EC2 and Alibaba) want session tokens: had by a `PUT` with the time to live
//! that is asked for in seconds (1 to 21600) in one header, and sent back with every `GET` in another; 401 for a token that
//! is missing, unknown or expired.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, ETAG, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url, redirect};
use tokio::time::Instant;

use super::SourceError;

/// The longest time to live of a token that is granted: six hours, in seconds.
const TTL_SECONDS: u64 = 21_600;
/// More than this is not an answer of a metadata service: Azure's events of a large scale set are its longest.
const LONGEST_ANSWER: usize = 256 * 1024;
/// Characters of a nonsensical answer that an error repeats.
const LONGEST_QUOTE: usize = 200;

/// What differs between the metadata services of clouds.
#[derive(Debug)]
pub(super) struct Dialect {
    /// Whose service it is, for messages: `EC2`.
    pub(super) service: &'static str,
    /// A header that goes with every request.
    pub(super) request: Option<(&'static str, &'static str)>,
    /// A header that every answer has; one without it comes from somewhere else.
    pub(super) answer: Option<(&'static str, &'static str)>,
    /// How session tokens are had.
    pub(super) tokens: Option<TokenDialect>,
}

/// Where a service gives session tokens, and what it calls its headers.
#[derive(Debug)]
pub(super) struct TokenDialect {
    /// Path to `PUT`.
    pub(super) path: &'static str,
    /// Request header of the `PUT`, and response header of its answer: how long the token is good for, in seconds.
    pub(super) ttl_header: &'static str,
    /// Request header of every `GET`.
    pub(super) token_header: &'static str,
}

/// Why a request to a metadata service had no usable answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No answer at all, or a broken one.
    #[error("{method} {url} got no answer: {}", chain(source))]
    Transport { method: Method, url: Url, source: reqwest::Error },
    /// An answer that is neither 200 nor, where something may be absent, 404.
    #[error("{method} {url} was answered {status}: {}", hint(*status))]
    Status { method: Method, url: Url, status: StatusCode },
    /// An answer of something else.
    #[error("GET {url} was answered without the header {header:?}: this is not the metadata service of {service}")]
    Stranger { url: Url, header: &'static str, service: &'static str },
    /// An answer longer than the service ever gives.
    #[error(
        "GET {url} was answered with more than {LONGEST_ANSWER} bytes: this is not the metadata service of {service}"
    )]
    TooLong { url: Url, service: &'static str },
    /// A token that cannot be sent back. It is not shown: it may be one.
    #[error(
        "PUT {url} was answered with something that cannot be a token: this is not the metadata service of {service}"
    )]
    BadToken { url: Url, service: &'static str },
    /// A document that does not say what it should.
    #[error("GET {url} was answered {body:?}: {reason}")]
    Malformed { url: Url, body: String, reason: String },
}

impl Error {
    /// Whether another address of the service may do better.
    pub(super) fn is_transport(&self) -> bool {
        matches!(self, Self::Transport { .. })
    }
}

/// reqwest's own message stops at "error sending request"; what happened is in the sources.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn hint(status: StatusCode) -> &'static str {
    match status.as_u16() {
        300..=399 => "it has moved, and a metadata service does not move; check the endpoint in the configuration",
        400 => "the service did not understand the request; check the endpoint in the configuration",
        401 => "a token that was just issued is refused; will ask for another",
        403 => {
            "the service is turned off for this instance; turn on its HTTP endpoint in the instance's metadata options"
        }
        404 => "there is no such thing; check that the endpoint in the configuration is this cloud's",
        429 | 503 => "the service is asked too often; will ask again",
        _ => "will ask again",
    }
}

/// What a service answers a `GET` with.
#[derive(Debug)]
pub(super) struct Answer {
    /// The document.
    pub(super) body: String,
    /// Which version of it, where the service counts them.
    pub(super) etag: Option<String>,
}

/// A session token, and when to get the next one.
struct Token {
    /// Marked sensitive, so that no log of headers shows it.
    value: HeaderValue,
    renew_at: Instant,
}

/// A metadata service.
pub(super) struct Service {
    dialect: &'static Dialect,
    client: Client,
    /// At least one; the first is in use, and the next one whenever no answer comes at all.
    endpoints: Vec<Url>,
    /// How long one request may take unless it says otherwise.
    patience: Duration,
    token: Option<Token>,
}

/// A client for services of this very machine: it uses neither proxies nor redirects, since link-local is link-local.
///
/// # Errors
/// [`SourceError::Client`].
pub(super) fn client(patience: Duration) -> Result<Client, SourceError> {
    let client = Client::builder().no_proxy().redirect(redirect::Policy::none()).connect_timeout(patience).build()?;
    Ok(client)
}

impl Service {
    /// A service at these addresses, bases such as `http://169.254.169.254`.
    ///
    /// # Errors
    /// [`SourceError`] when there is no address, or one that is not `http://`.
    pub(super) fn new(
        dialect: &'static Dialect,
        endpoints: &[String],
        patience: Duration,
    ) -> Result<Self, SourceError> {
        let parse = |endpoint: &String| match Url::parse(endpoint) {
            Ok(url) if url.scheme() == "http" => Ok(url),
            _ => Err(SourceError::Endpoint { service: dialect.service, endpoint: endpoint.clone() }),
        };
        let endpoints = endpoints.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(SourceError::NoEndpoint { service: dialect.service });
        }
        Ok(Self { dialect, client: client(patience)?, endpoints, patience, token: None })
    }

    /// The error for a document at `path` that makes no sense to the caller.
    pub(super) fn malformed(&self, path: &str, body: &str, reason: impl Into<String>) -> Error {
        let body = body.chars().take(LONGEST_QUOTE).collect();
        Error::Malformed { url: self.url(path, &[]), body, reason: reason.into() }
    }

    /// The document at `path`; `None` when there is none (404).
    pub(super) async fn get(&mut self, path: &str) -> Result<Option<Answer>, Error> {
        self.ask(path, &[], self.patience).await
    }

    /// The document at `path` with a query, for which the service may take that long; `None` when there is none (404).
    ///
    /// A token that is refused is replaced, once, and the question asked again.
    pub(super) async fn ask(
        &mut self,
        path: &str,
        query: &[(&str, &str)],
        patience: Duration,
    ) -> Result<Option<Answer>, Error> {
        let answer = self.ask_here(path, query, patience).await;
        if answer.as_ref().is_err_and(Error::is_transport) {
            self.endpoints.rotate_left(1);
            // It was another one's.
            self.token = None;
        }
        answer
    }

    async fn ask_here(
        &mut self,
        path: &str,
        query: &[(&str, &str)],
        patience: Duration,
    ) -> Result<Option<Answer>, Error> {
        let url = self.url(path, query);
        let mut response = self.send_get(&url, patience).await?;
        if response.status() == StatusCode::UNAUTHORIZED && self.token.take().is_some() {
            response = self.send_get(&url, patience).await?;
        }
        let status = response.status();
        if status == StatusCode::UNAUTHORIZED {
            self.token = None;
        }
        if let Some((header, value)) = self.dialect.answer
            && response.headers().get(header).is_none_or(|sent| sent != value)
        {
            // An error may well have been given by something in between; it is told as it is.
            if status == StatusCode::OK || status == StatusCode::NOT_FOUND {
                return Err(Error::Stranger { url, header, service: self.dialect.service });
            }
        }
        match status {
            StatusCode::OK => {
                let etag = response.headers().get(ETAG).and_then(|value| value.to_str().ok()).map(str::to_owned);
                Ok(Some(Answer { body: self.read(url, response).await?, etag }))
            }
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(Error::Status { method: Method::GET, url, status }),
        }
    }

    /// Posts a JSON document, which the service must answer with 200.
    pub(super) async fn post(&mut self, path: &str, query: &[(&str, &str)], document: String) -> Result<(), Error> {
        let url = self.url(path, query);
        let request = self.headed(self.client.post(url.clone())).header(CONTENT_TYPE, "application/json");
        let sent = request.timeout(self.patience).body(document).send().await;
        let status = sent.map_err(|source| transport(Method::POST, &url, source))?.status();
        if status == StatusCode::OK { Ok(()) } else { Err(Error::Status { method: Method::POST, url, status }) }
    }

    async fn send_get(&mut self, url: &Url, patience: Duration) -> Result<Response, Error> {
        let token = match &self.dialect.tokens {
            Some(dialect) => Some((dialect.token_header, self.token(dialect).await?)),
            None => None,
        };
        let mut request = self.headed(self.client.get(url.clone())).timeout(patience);
        if let Some((header, token)) = token {
            request = request.header(header, token);
        }
        request.send().await.map_err(|source| transport(Method::GET, url, source))
    }

    fn headed(&self, request: RequestBuilder) -> RequestBuilder {
        match self.dialect.request {
            Some((header, value)) => request.header(header, value),
            None => request,
        }
    }

    /// The token in hand, or a new one if there is none or it gets old.
    async fn token(&mut self, dialect: &TokenDialect) -> Result<HeaderValue, Error> {
        if let Some(token) = &self.token
            && Instant::now() < token.renew_at
        {
            return Ok(token.value.clone());
        }
        match (self.new_token(dialect).await, &self.token) {
            (Ok(token), _) => Ok(self.token.insert(token).value.clone()),
            // The old one is good for a while yet, and it is the service that decides: it answers 401 when it is not.
            (Err(error), Some(old)) => {
                tracing::debug!(
                    "the metadata token of {} could not be renewed, using the old one: {error}",
                    self.dialect.service
                );
                Ok(old.value.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    async fn new_token(&self, dialect: &TokenDialect) -> Result<Token, Error> {
        let url = self.url(dialect.path, &[]);
        let asked = Instant::now();
        let request = self.headed(self.client.put(url.clone())).header(dialect.ttl_header, TTL_SECONDS);
        let sent = request.timeout(self.patience).send().await;
        let response = sent.map_err(|source| transport(Method::PUT, &url, source))?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(Error::Status { method: Method::PUT, url, status });
        }
        let granted =
            response.headers().get(dialect.ttl_header).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let lifetime = Duration::from_secs(granted.unwrap_or(TTL_SECONDS).min(TTL_SECONDS));
        let bad = Error::BadToken { url: url.clone(), service: self.dialect.service };
        let body = self.read(url, response).await?;
        let value = match HeaderValue::from_str(body.trim()) {
            Ok(value) if !value.is_empty() => value,
            _ => return Err(bad),
        };
        Ok(Token::new(value, asked, lifetime))
    }

    fn url(&self, path: &str, query: &[(&str, &str)]) -> Url {
        let mut url = self.endpoints[0].clone();
        url.set_path(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// The body as text, if it is not absurdly long.
    async fn read(&self, url: Url, mut response: Response) -> Result<String, Error> {
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() > LONGEST_ANSWER => {
                    return Err(Error::TooLong { url, service: self.dialect.service });
                }
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => return Ok(String::from_utf8_lossy(&body).into_owned()),
                Err(source) => return Err(transport(Method::GET, &url, source)),
            }
        }
    }
}

impl Token {
    /// To be renewed when nine tenths of its life are over: 36 minutes early for one of six hours, so that many failed
    /// attempts at renewing fit in before the old one ends.
    fn new(mut value: HeaderValue, asked: Instant, lifetime: Duration) -> Self {
        value.set_sensitive(true);
        Self { value, renew_at: asked + lifetime * 9 / 10 }
    }
}

fn transport(method: Method, url: &Url, source: reqwest::Error) -> Error {
    Error::Transport { method, url: url.clone(), source: source.without_url() }
}

/// The id or name, if that is what the text can be. It becomes part of a notice's id and is shown, so it has no odd characters.
pub(super) fn identifier(text: &str) -> Option<String> {
    let id = text.trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
    ((1..=128).contains(&id.len()) && id.chars().all(plain)).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_before_its_end_and_never_shown() {
        let now = Instant::now();
        let token = Token::new(HeaderValue::from_static("secret"), now, Duration::from_secs(TTL_SECONDS));
        assert_eq!(token.renew_at - now, Duration::from_secs(TTL_SECONDS - 2_160));
        assert_eq!(format!("{:?}", token.value), "Sensitive");
    }

    #[test]
    fn addresses_are_checked_beforehand() {
        static PLAIN: Dialect = Dialect { service: "a cloud", request: None, answer: None, tokens: None };
        let new = |endpoints: &[&str]| {
            let endpoints: Vec<String> = endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect();
            Service::new(&PLAIN, &endpoints, Duration::from_secs(1))
        };
        assert!(new(&["http://169.254.169.254", "http://[fd00:ec2::254]"]).is_ok());
        assert!(matches!(new(&[]), Err(SourceError::NoEndpoint { .. })));
        for wrong in ["169.254.169.254", "https://169.254.169.254", "", "http://fd00:ec2::254"] {
            assert!(matches!(new(&[wrong]), Err(SourceError::Endpoint { .. })), "{wrong}");
        }
    }

    #[test]
    fn an_id_has_no_odd_characters() {
        assert_eq!(identifier("scale-set_0\n").as_deref(), Some("scale-set_0"));
        for wrong in ["", "  ", "i-0:terminate", "<html>", "i-0\ni-1", &"x".repeat(129)] {
            assert_eq!(identifier(wrong), None, "{wrong:?}");
        }
    }
}
