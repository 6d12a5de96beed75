//! Notices that somebody else sends: a spot-management service, a script, another cloud's events (`[webhook]`).
//!
//! `POST /v1/webhooks/SENDER` (for `signature = "path"` with the secret after it). The answer comes at once, and an event that comes again
//! gets the same:
//!
//! | answer | when |
//! |---|---|
//! | 202 `{"evacuation": ID}` | it is a notice for this host, or withdraws one; `spothop history` shows the id as the cause |
//! | 200 `{"ignored": WORD}` | the sender's word means nothing here |
//! | 400 | the body is not what `[webhook.senders]` says |
//! | 401 | it does not come from this sender |
//! | 404 | there is no such sender |
//! | 413 | it is longer than any event |
//! | 421 | it is about another host |
//! | 429 | too many from this address |
//! | 500 | this host's secrets cannot be read; its log says why |
//! | 503 | this host is busy with notices |
//!
//! What is said here is a person's word and no cloud's: containers leave because of it, but nobody takes the host for gone.

mod listener;
mod memory;
mod reading;
mod signature;

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Extension, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tracing::{info, warn};

pub(crate) use self::listener::check_identity;
pub use self::listener::{ListenError, Server};
use self::memory::Memory;
use self::reading::{Said, Unreadable, Us};
use self::signature::Signed;
use super::{Complaint, NoticeEvent};
use crate::api::{Problem, ProblemCode};
use crate::config::Webhook;
use crate::config::webhook::{Sender, Signature};
use crate::hex;
use crate::migration::{chain, unpanicked};
use crate::provider::Instance;
use crate::secret;
use crate::standard_webhooks::{ID, Secrets};

/// The longest body, in bytes. An event names a host and a time.
const LONGEST_BODY: usize = 64 << 10;

/// Addresses that are remembered for the sake of their rate before those are forgotten that have been silent.
const ADDRESSES: usize = 1024;

/// What all requests share.
pub struct Desk {
    senders: HashMap<String, Sender>,
    name: String,
    instance: Arc<OnceLock<Instance>>,
    rate: DefaultKeyedRateLimiter<IpAddr>,
    answered: Mutex<Memory<(StatusCode, Value)>>,
    refused: Mutex<Complaint>,
    events: mpsc::Sender<NoticeEvent>,
}

impl Desk {
    /// For the host of this name, which the cloud may know as `instance` besides.
    #[must_use]
    pub fn new(
        config: &Webhook,
        name: &str,
        instance: Arc<OnceLock<Instance>>,
        events: mpsc::Sender<NoticeEvent>,
    ) -> Self {
        let senders = config.senders.iter().map(|sender| (sender.name.clone(), sender.clone())).collect();
        Self {
            senders,
            name: name.to_owned(),
            instance,
            rate: RateLimiter::keyed(quota(config.rate)),
            answered: Mutex::default(),
            refused: Mutex::default(),
            events,
        }
    }

    fn us(&self) -> Us {
        Us { name: self.name.clone(), instance: self.instance.get().map(|instance| instance.id().to_owned()) }
    }

    /// Time until this address may ask again; none if it may now.
    fn wait(&self, from: IpAddr) -> Option<u64> {
        if self.rate.len() > ADDRESSES {
            self.rate.retain_recent();
        }
        let early = self.rate.check_key(&from).err()?;
        Some(early.wait_time_from(DefaultClock::default().now()).as_secs() + 1)
    }

    async fn secrets(&self, sender: &Sender) -> Result<Secrets, Refusal> {
        let one = sender.clone();
        unpanicked(spawn_blocking(move || secrets_of(&one)).await).map_err(|reason| Refusal {
            log: Some(format!("the secrets of webhook sender {} cannot be used: {reason}", sender.name)),
            ..Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                ProblemCode::Internal,
                "this host cannot read the secrets of this sender",
            )
        })
    }

    async fn take(
        &self,
        from: IpAddr,
        name: &str,
        token: Option<&str>,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<(StatusCode, Value), Refusal> {
        let sender = self.senders.get(name).ok_or_else(|| {
            Refusal::new(StatusCode::NOT_FOUND, ProblemCode::NotFound, format!("there is no sender {name:?} here"))
        })?;
        let secrets = self.secrets(sender).await?;
        let now = Timestamp::now();
        Signed { headers, token, body }.check(sender, &secrets, now).map_err(|forged| Refusal {
            log: Some(format!("a request from {from} that says it is from {name} is not believed: {forged}")),
            ..Refusal::new(StatusCode::UNAUTHORIZED, ProblemCode::Unauthorized, forged.to_string())
        })?;
        let id = headers.get(ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
        let event = id.or_else(|| reading::id(body, sender)).unwrap_or_else(|| digest(body));
        // Held to the end: the same event twice at a time is answered one after the other.
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = answered.recall(name, &event, Instant::now()) {
            return Ok(known.clone());
        }
        let said = reading::read(body, sender, &self.us(), now)?;
        let answer = self.pass_on(said, name, &event)?;
        answered.keep(name, &event, answer.clone(), Instant::now());
        Ok(answer)
    }

    fn pass_on(&self, said: Said, sender: &str, event: &str) -> Result<(StatusCode, Value), Refusal> {
        let (id, events) = match said {
            Said::Nothing { word } => return Ok((StatusCode::OK, json!({ "ignored": word }))),
            Said::Notice(id, events) => (id, events),
        };
        // All or none: a part of a withdrawal would be taken for all of it.
        let places = self.events.try_reserve_many(events.len()).map_err(|_| {
            Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                ProblemCode::Busy,
                "this host is busy with notices; try again",
            )
        })?;
        for (place, event) in places.zip(events) {
            place.send(event);
        }
        info!(sender, event, notice = id, "heard by webhook");
        Ok((StatusCode::ACCEPTED, json!({ "evacuation": id })))
    }

    /// Says no, and why; in the log too where the operator should know, but not as often as somebody likes to ask.
    fn refuse(&self, refusal: Refusal) -> Response {
        if let Some(log) = refusal.log
            && self.refused.lock().unwrap_or_else(PoisonError::into_inner).failed(Instant::now())
        {
            warn!("{log}");
        }
        let problem = Problem { code: refusal.code, message: refusal.message, advice: None };
        (refusal.status, Json(problem)).into_response()
    }
}

/// A sender's secrets as its file has them now, or why there are none. Blocks.
fn secrets_of(sender: &Sender) -> Result<Secrets, String> {
    let text = secret::read(&sender.secret_file).map_err(|error| chain(&error))?;
    Secrets::parse(&text, sender.signature == Signature::Standard)
        .map_err(|error| format!("{}: {error}", sender.secret_file.display()))
}

/// Whether this sender's secrets can be used; why not, otherwise. Blocks.
///
/// # Errors
/// The reason, for people.
pub(crate) fn check_sender(sender: &Sender) -> Result<(), String> {
    secrets_of(sender).map(drop)
}

/// Without an id an event is known by what it says.
fn digest(body: &[u8]) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, body).as_ref())
}

fn quota(rate: NonZeroU32) -> Quota {
    Quota::per_minute(rate)
}

/// An answer that is not 2xx.
struct Refusal {
    status: StatusCode,
    code: ProblemCode,
    message: String,
    /// What the operator should know.
    log: Option<String>,
}

impl Refusal {
    fn new(status: StatusCode, code: ProblemCode, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), log: None }
    }
}

impl From<Unreadable> for Refusal {
    fn from(unreadable: Unreadable) -> Self {
        let (status, code) = match unreadable {
            Unreadable::Elsewhere { .. } => (StatusCode::MISDIRECTED_REQUEST, ProblemCode::Refused),
            _ => (StatusCode::BAD_REQUEST, ProblemCode::BadRequest),
        };
        Self {
            log: Some(format!("an event is refused: {unreadable}")),
            ..Self::new(status, code, unreadable.to_string())
        }
    }
}

/// All paths, but for the address that a request comes from, which goes with each connection.
fn router(desk: Arc<Desk>) -> Router {
    let unknown = || async { not_found().into_response() };
    Router::new()
        .route("/v1/webhooks/{sender}", post(without_token))
        .route("/v1/webhooks/{sender}/{token}", post(with_token))
        .fallback(unknown)
        .layer(DefaultBodyLimit::max(LONGEST_BODY))
        .with_state(desk)
}

fn not_found() -> (StatusCode, Json<Problem>) {
    let message = "there is nothing here but /v1/webhooks/SENDER".to_owned();
    (StatusCode::NOT_FOUND, Json(Problem { code: ProblemCode::NotFound, message, advice: None }))
}

type Sent = Result<Bytes, BytesRejection>;

async fn without_token(
    State(desk): State<Arc<Desk>>,
    Extension(from): Extension<IpAddr>,
    Path(sender): Path<String>,
    headers: HeaderMap,
    body: Sent,
) -> Response {
    answer(&desk, from, &sender, None, &headers, body).await
}

async fn with_token(
    State(desk): State<Arc<Desk>>,
    Extension(from): Extension<IpAddr>,
    Path((sender, token)): Path<(String, String)>,
    headers: HeaderMap,
    body: Sent,
) -> Response {
    answer(&desk, from, &sender, Some(&token), &headers, body).await
}

async fn answer(
    desk: &Desk,
    from: IpAddr,
    sender: &str,
    token: Option<&str>,
    headers: &HeaderMap,
    body: Sent,
) -> Response {
    if let Some(seconds) = desk.wait(from) {
        let busy =
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, ProblemCode::Busy, "too many requests from this address");
        let mut response = desk.refuse(busy);
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        return response;
    }
    let taken = match &body {
        Ok(body) => desk.take(from, sender, token, headers, body).await,
        Err(rejection) => Err(Refusal::new(rejection.status(), ProblemCode::BadRequest, rejection.body_text())),
    };
    match taken {
        Ok((status, body)) => (status, Json(body)).into_response(),
        Err(refusal) => desk.refuse(refusal),
    }
}

#[cfg(test)]
mod tests;
