//! Amazon EC2's instance metadata service, version 2: tokens, and GETs that carry them.
//!
//! From the EC2 user guide, "Use the Instance Metadata Service": a session token is had by
//! `PUT /latest/api/token` with the header `X-aws-ec2-metadata-token-ttl-seconds` (1 to 21600; the answer repeats it) and
//! goes into `X-aws-ec2-metadata-token` of every GET. Answers: 400 for a PUT without a valid TTL, 401 for a token that is
//! missing, unknown or expired, 403 when the service is turned off or does not like the request, 404 for what does not
//! exist, 503 when asked too often.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderValue;
use reqwest::{Client, Method, Response, StatusCode, Url};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Request header of the PUT, and response header of its answer: how long the token is good for, in seconds.
pub(super) const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// Request header of every GET.
pub(super) const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
/// The longest time to live that the service grants: six hours, in seconds.
const TTL_SECONDS: u64 = 21_600;
/// More than this is not an answer of the service: the longest document that is read here has about 500 bytes.
const LONGEST_ANSWER: usize = 16 * 1024;
/// Characters of a nonsensical answer that an error repeats.
const LONGEST_QUOTE: usize = 200;

/// Why a request to the metadata service had no usable answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImdsError {
    /// No answer at all, or a broken one.
    #[error("{method} {url} got no answer: {}", chain(source))]
    Transport { method: Method, url: Url, source: reqwest::Error },
    /// An answer that is neither 200 nor, where something may be absent, 404.
    #[error("{method} {url} was answered {status}: {}", hint(*status))]
    Status { method: Method, url: Url, status: StatusCode },
    /// An answer longer than the service ever gives.
    #[error("GET {url} was answered with more than {LONGEST_ANSWER} bytes: this is not the metadata service of EC2")]
    TooLong { url: Url },
    /// A token that cannot be sent back. It is not shown: it may be one.
    #[error("PUT {url} was answered with something that cannot be a token: this is not the metadata service of EC2")]
    BadToken { url: Url },
    /// A document that does not say what it should.
    #[error("GET {url} was answered {body:?}: {reason}")]
    Malformed { url: Url, body: String, reason: String },
}

impl ImdsError {
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
        404 => "there is no such thing; check that the endpoint in the configuration is EC2's",
        429 | 503 => "the service is asked too often; will ask again",
        _ => "will ask again",
    }
}

/// A session token, and when to get the next one.
struct Token {
    /// Marked sensitive, so that no log of headers shows it.
    value: HeaderValue,
    renew_at: Instant,
}

/// One address of the metadata service. Clones share their token.
#[derive(Clone)]
pub(super) struct Imds {
    client: Client,
    endpoint: Url,
    token: Arc<Mutex<Option<Token>>>,
}

impl Imds {
    /// `endpoint` is the base, such as `http://169.254.169.254/`.
    pub(super) fn new(client: Client, endpoint: Url) -> Self {
        Self { client, endpoint, token: Arc::default() }
    }

    /// The error for a document at `path` below `/latest/` that makes no sense to the caller.
    pub(super) fn malformed(&self, path: &str, body: &str, reason: String) -> ImdsError {
        let body = body.chars().take(LONGEST_QUOTE).collect();
        ImdsError::Malformed { url: self.document(path), body, reason }
    }

    /// The document at `path` below `/latest/`; `None` when there is none (404).
    ///
    /// A token that is refused is replaced, once, and the question asked again.
    pub(super) async fn get(&self, path: &str) -> Result<Option<String>, ImdsError> {
        let url = self.document(path);
        let mut token = self.token().await?;
        let mut response = self.send_get(&url, token.clone()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.forget(&token).await;
            token = self.token().await?;
            response = self.send_get(&url, token.clone()).await?;
        }
        match response.status() {
            StatusCode::OK => read(url, response).await.map(Some),
            StatusCode::NOT_FOUND => Ok(None),
            status => {
                if status == StatusCode::UNAUTHORIZED {
                    self.forget(&token).await;
                }
                Err(ImdsError::Status { method: Method::GET, url, status })
            }
        }
    }

    async fn send_get(&self, url: &Url, token: HeaderValue) -> Result<Response, ImdsError> {
        let request = self.client.get(url.clone()).header(TOKEN_HEADER, token);
        request.send().await.map_err(|source| transport(Method::GET, url, source))
    }

    /// The token in hand, or a new one if there is none or it gets old.
    async fn token(&self) -> Result<HeaderValue, ImdsError> {
        let mut known = self.token.lock().await;
        if let Some(token) = &*known
            && Instant::now() < token.renew_at
        {
            return Ok(token.value.clone());
        }
        match (self.new_token().await, &*known) {
            (Ok(token), _) => Ok(known.insert(token).value.clone()),
            // The old one is good for a while yet, and it is the service that decides: it answers 401 when it is not.
            (Err(error), Some(old)) => {
                tracing::debug!("the AWS metadata token could not be renewed, using the old one: {error}");
                Ok(old.value.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    /// This one was refused. Another clone may have got the next already.
    async fn forget(&self, refused: &HeaderValue) {
        self.token.lock().await.take_if(|token| token.value == *refused);
    }

    async fn new_token(&self) -> Result<Token, ImdsError> {
        let url = self.url("latest/api/token");
        let asked = Instant::now();
        let request = self.client.put(url.clone()).header(TTL_HEADER, TTL_SECONDS);
        let response = request.send().await.map_err(|source| transport(Method::PUT, &url, source))?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(ImdsError::Status { method: Method::PUT, url, status });
        }
        let granted = response.headers().get(TTL_HEADER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let lifetime = Duration::from_secs(granted.unwrap_or(TTL_SECONDS).min(TTL_SECONDS));
        let bad = ImdsError::BadToken { url: url.clone() };
        let body = read(url, response).await?;
        let value = match HeaderValue::from_str(body.trim()) {
            Ok(value) if !value.is_empty() => value,
            _ => return Err(bad),
        };
        Ok(Token::new(value, asked, lifetime))
    }

    fn document(&self, path: &str) -> Url {
        self.url(&format!("latest/{path}"))
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.endpoint.clone();
        url.set_path(path);
        url
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

fn transport(method: Method, url: &Url, source: reqwest::Error) -> ImdsError {
    ImdsError::Transport { method, url: url.clone(), source: source.without_url() }
}

/// The body as text, if it is not absurdly long.
async fn read(url: Url, mut response: Response) -> Result<String, ImdsError> {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > LONGEST_ANSWER => return Err(ImdsError::TooLong { url }),
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(String::from_utf8_lossy(&body).into_owned()),
            Err(source) => return Err(transport(Method::GET, &url, source)),
        }
    }
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
}
